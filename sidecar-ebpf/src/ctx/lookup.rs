//! The context of a lookup for a listener.

use core::ptr::read_volatile;

use aya_ebpf::programs::SkLookupContext;
use sidecar_common::{
    addr::{Endpoint, Ip, PortBe},
    capture::Transport,
};

use super::{AF_INET6, read_v6};
use crate::maps::PROXY_LISTENERS;

/// A lookup for a listener.
pub struct Lookup<'a>(pub &'a SkLookupContext);

impl Lookup<'_> {
    /// TCP, or not ours.
    #[inline(always)]
    pub fn transport(&self) -> Transport {
        const IPPROTO_TCP: u32 = 6;
        let protocol = unsafe { read_volatile(&raw const (*self.0.lookup).protocol) };
        if protocol == IPPROTO_TCP { Transport::Tcp } else { Transport::Other }
    }

    /// The pod's end.
    #[inline(always)]
    pub fn local(&self) -> Endpoint {
        let lookup = self.0.lookup;
        let port = unsafe { read_volatile(&raw const (*lookup).local_port) };
        let (v4, v6) =
            unsafe { (read_volatile(&raw const (*lookup).local_ip4), read_v6(&raw const (*lookup).local_ip6)) };
        let ip = if self.is_v6() { v6 } else { Ip::from_v4(v4) };
        Endpoint::new(ip, PortBe::from_host(port as u16))
    }

    /// The client's address.
    #[inline(always)]
    pub fn remote_ip(&self) -> Ip {
        let lookup = self.0.lookup;
        let (v4, v6) =
            unsafe { (read_volatile(&raw const (*lookup).remote_ip4), read_v6(&raw const (*lookup).remote_ip6)) };
        if self.is_v6() { v6 } else { Ip::from_v4(v4) }
    }

    /// Hands the connection to the listener in `slot`; false if the slot is empty or the kernel refuses it.
    #[inline(always)]
    pub fn assign(&self, slot: u32) -> bool {
        PROXY_LISTENERS.redirect_sk_lookup(self.0, slot, 0).is_ok()
    }

    #[inline(always)]
    fn is_v6(&self) -> bool {
        (unsafe { read_volatile(&raw const (*self.0.lookup).family) }) == AF_INET6
    }
}
