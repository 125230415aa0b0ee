//! The context of `getsockopt` and `setsockopt`.

use core::ptr::{NonNull, read_volatile, write_volatile};

use aya_ebpf::{bindings::bpf_sockopt, programs::SockoptContext};

use super::Socket;

/// `getsockopt` and `setsockopt`.
pub struct Sockopt<'a>(pub &'a SockoptContext);

impl Sockopt<'_> {
    #[inline(always)]
    fn raw(&self) -> *mut bpf_sockopt {
        self.0.sockopt
    }

    /// Level and name of the option.
    #[inline(always)]
    pub fn option(&self) -> (i32, i32) {
        unsafe { (read_volatile(&raw const (*self.raw()).level), read_volatile(&raw const (*self.raw()).optname)) }
    }

    /// The length that the caller gave.
    #[inline(always)]
    pub fn len(&self) -> i32 {
        unsafe { read_volatile(&raw const (*self.raw()).optlen) }
    }

    /// The socket.
    #[inline(always)]
    pub fn socket(&self) -> Option<Socket> {
        NonNull::new(unsafe { read_volatile(&raw const (*self.raw()).__bindgen_anon_1.sk) }).map(Socket)
    }

    /// The option's value, if the caller gave at least its size.
    #[inline(always)]
    pub fn value<T: Copy>(&self) -> Option<T> {
        let (start, end) = self.span();
        if start.wrapping_add(size_of::<T>()) > end {
            return None;
        }
        Some(unsafe { start.cast::<T>().read_unaligned() })
    }

    /// Answers a getsockopt with `value`; false if the caller's buffer is too small.
    #[inline(always)]
    pub fn answer<T: Copy>(&self, value: T) -> bool {
        let (start, end) = self.span();
        if start.wrapping_add(size_of::<T>()) > end {
            return false;
        }
        unsafe {
            start.cast::<T>().write_unaligned(value);
            write_volatile(&raw mut (*self.raw()).optlen, size_of::<T>() as i32);
            write_volatile(&raw mut (*self.raw()).retval, 0);
        }
        true
    }

    /// A setsockopt that has been dealt with: the kernel's own handler is left out (`optlen` -1, linux/bpf.h).
    #[inline(always)]
    pub fn swallow(&self) {
        unsafe { write_volatile(&raw mut (*self.raw()).optlen, -1) };
    }

    /// The program has no opinion on a value longer than it can see (4096 bytes): the kernel must not copy it back
    /// truncated (`optlen` 0, Documentation/bpf/prog_cgroup_sockopt.rst).
    #[inline(always)]
    pub fn leave_long_value_alone(&self) {
        unsafe { write_volatile(&raw mut (*self.raw()).optlen, 0) };
    }

    #[inline(always)]
    fn span(&self) -> (*mut u8, *mut u8) {
        unsafe {
            (
                read_volatile(&raw const (*self.raw()).__bindgen_anon_2.optval).cast(),
                read_volatile(&raw const (*self.raw()).__bindgen_anon_3.optval_end).cast(),
            )
        }
    }
}
