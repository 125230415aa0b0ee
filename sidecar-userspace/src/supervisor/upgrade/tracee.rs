//! A process whose program does not do what it should, as the one that traces it sees it (ptrace(2)): it is made to call the kernel
//! in its own name, whatever it was doing.

use std::{
    fs,
    io::{self, BufRead, BufReader},
    os::unix::{fs::FileExt, process::ExitStatusExt},
    process::ExitStatus,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        ptrace::{self, Options},
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        wait::WaitPidFlag,
    },
    unistd::Pid,
};
use std::os::fd::AsFd;

use crate::supervisor::child;

/// A call that waits for nothing is over in this time, on any machine.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// A process that this one traces. It goes on, as it is, when this process ends.
pub(super) struct Tracee {
    pid: Pid,
    /// The kernel tells of every stop by SIGCHLD.
    stops: SignalFd,
}

/// Why it does not run at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// It is about to call the kernel by this number.
    Enters(u64),
    /// The kernel has answered.
    Leaves,
    /// It is about to get the signal of this number: real-time ones have no names.
    Gets(i32),
    /// It was asked to stop.
    Asked,
}

/// What has become of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// It does not run, and waits to be told to.
    Stopped(Stop),
    /// There is no such process any more.
    Gone,
    /// Nothing, in the time that was given.
    Nothing,
}

impl Tracee {
    /// Begins to trace a process, which stops soon, as if it had been asked to.
    pub(super) fn seize(pid: Pid) -> io::Result<Self> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGCHLD);
        signals.thread_block()?;
        let stops = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        ptrace::seize(pid, Options::PTRACE_O_TRACESYSGOOD)?;
        let tracee = Self { pid, stops };
        // Only one that was told to go on to the next call stops there.
        tracee.ask_to_stop()?;
        Ok(tracee)
    }

    /// Has it stop soon.
    pub(super) fn ask_to_stop(&self) -> io::Result<()> {
        Ok(ptrace::interrupt(self.pid)?)
    }

    /// Has it go on to the next call or signal, with a signal or none.
    pub(super) fn go_on(&self, signal: Option<i32>) -> io::Result<()> {
        let (nowhere, signal) = (std::ptr::null_mut::<libc::c_void>(), signal.unwrap_or(0) as libc::c_long);
        // SAFETY: the call reads and writes no memory; the fourth argument is a number.
        let told = unsafe { libc::ptrace(libc::PTRACE_SYSCALL, self.pid.as_raw(), nowhere, signal) };
        if told < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Has it go on, and traces it no more.
    pub(super) fn release(self) -> io::Result<()> {
        Ok(ptrace::detach(self.pid, None)?)
    }

    /// Waits for the next stop.
    pub(super) fn wait(&self, until: Instant) -> io::Result<News> {
        loop {
            match child::wait(self.pid, WaitPidFlag::WNOHANG | WaitPidFlag::__WALL) {
                Ok(None) => {}
                Ok(Some(status)) => return self.understand(status),
                Err(error) if error.raw_os_error() == Some(libc::ECHILD) => return Ok(News::Gone),
                Err(error) => return Err(error),
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(News::Nothing);
            }
            let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.stops.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(_) | Err(Errno::EINTR) => while self.stops.read_signal()?.is_some() {},
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn understand(&self, status: ExitStatus) -> io::Result<News> {
        /// What stops at a call shows as (`PTRACE_O_TRACESYSGOOD`, ptrace(2)).
        const AT_CALL: i32 = libc::SIGTRAP | 0x80;
        let Some(signal) = status.stopped_signal() else { return Ok(News::Gone) };
        // The third byte of the word is that of an event, which no signal is.
        let is_event = status.into_raw() >> 16 != 0;
        Ok(News::Stopped(match signal {
            AT_CALL => self.call()?,
            _ if is_event => Stop::Asked,
            signal => Stop::Gets(signal),
        }))
    }

    /// Whether it enters a call or leaves one: `struct ptrace_syscall_info`, since Linux 5.3.
    fn call(&self) -> io::Result<Stop> {
        /// `PTRACE_GET_SYSCALL_INFO` and `PTRACE_SYSCALL_INFO_ENTRY` (linux/ptrace.h).
        const GET_SYSCALL_INFO: u32 = 0x420e;
        const ENTRY: u64 = 1;
        /// Where the number of the call is, in words.
        const NUMBER: usize = 3;
        let mut info = [0_u64; 11];
        // SAFETY: the kernel writes no more bytes than the third argument says into the fourth.
        let told =
            unsafe { libc::ptrace(GET_SYSCALL_INFO as _, self.pid.as_raw(), size_of_val(&info), info.as_mut_ptr()) };
        if told < 0 {
            return Err(io::Error::last_os_error());
        }
        // The first byte says which it is.
        let is_entry = u64::from(info[0].to_ne_bytes()[0]) == ENTRY;
        Ok(if is_entry { Stop::Enters(info[NUMBER]) } else { Stop::Leaves })
    }

    /// Waits for a stop at a call, and keeps every signal from it.
    fn at_call(&self) -> io::Result<Stop> {
        let until = Instant::now() + CALL_LIMIT;
        loop {
            match self.wait(until)? {
                News::Stopped(stop @ (Stop::Enters(_) | Stop::Leaves)) => return Ok(stop),
                News::Stopped(_) => self.go_on(None)?,
                News::Gone => return Err(io::Error::other("it has ended")),
                News::Nothing => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
    }

    /// Writes into its memory, also where it may not write itself.
    pub(super) fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        fs::OpenOptions::new().write(true).open(format!("/proc/{}/mem", self.pid))?.write_all_at(bytes, at)
    }

    /// The first address of its code.
    fn code(&self) -> io::Result<u64> {
        let maps = BufReader::new(fs::File::open(format!("/proc/{}/maps", self.pid))?);
        for line in maps.lines() {
            let line = line?;
            let (range, rest) = line.split_once(' ').unwrap_or_default();
            let start = range.split('-').next().unwrap_or_default();
            if rest.split(' ').next().is_some_and(|rights| rights.contains('x')) {
                return u64::from_str_radix(start, 16).map_err(io::Error::other);
            }
        }
        Err(io::Error::other("it has no code"))
    }
}

/// One that stands where a call can be made in its name.
pub(super) struct Caller(Tracee);

#[cfg(target_arch = "x86_64")]
impl Caller {
    /// From any stop. What it was doing is lost: there is nothing for it but another program.
    pub(super) fn new(tracee: Tracee, stop: Stop) -> io::Result<Self> {
        /// The instruction that calls the kernel.
        const SYSCALL: [u8; 2] = [0x0f, 0x05];
        if let Stop::Enters(_) = stop {
            // The call that it was about to make is none.
            let mut registers = ptrace::getregs(tracee.pid)?;
            registers.orig_rax = u64::MAX;
            ptrace::setregs(tracee.pid, registers)?;
            tracee.go_on(None)?;
            tracee.at_call()?;
        }
        tracee.write(tracee.code()?, &SYSCALL)?;
        Ok(Self(tracee))
    }

    /// Makes a call.
    pub(super) fn call(&self, number: libc::c_long, arguments: [u64; 6]) -> io::Result<u64> {
        let Self(tracee) = self;
        let mut registers = ptrace::getregs(tracee.pid)?;
        registers.rip = tracee.code()?;
        registers.rax = number.cast_unsigned();
        // A call that was interrupted is not made again.
        registers.orig_rax = u64::MAX;
        [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9] = arguments;
        ptrace::setregs(tracee.pid, registers)?;
        for _ in ["enters", "leaves"] {
            tracee.go_on(None)?;
            tracee.at_call()?;
        }
        let answer = ptrace::getregs(tracee.pid)?.rax.cast_signed();
        if (-4095..0).contains(&answer) {
            return Err(io::Error::from_raw_os_error(-answer as i32));
        }
        Ok(answer.cast_unsigned())
    }
}

#[cfg(not(target_arch = "x86_64"))]
impl Caller {
    pub(super) fn new(_: Tracee, _: Stop) -> io::Result<Self> {
        Err(io::Error::other("this is not done on this kind of CPU"))
    }

    pub(super) fn call(&self, _: libc::c_long, _: [u64; 6]) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Caller {
    /// Gives it memory with these bytes in it, which may depend on where that is.
    pub(super) fn give(&self, length: usize, bytes: impl FnOnce(u64) -> Vec<u8>) -> io::Result<u64> {
        let (rights, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let nowhere = u64::MAX;
        let at = self.call(libc::SYS_mmap, [0, length as u64, rights as u64, kind as u64, nowhere, 0])?;
        self.0.write(at, &bytes(at))?;
        Ok(at)
    }

    /// Has it go on, and traces it no more.
    pub(super) fn release(self) -> io::Result<()> {
        self.0.release()
    }
}
