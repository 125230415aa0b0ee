//! Connections that arrive at the pod's network namespace.

use aya_ebpf::{bindings::sk_action, macros::sk_lookup, programs::SkLookupContext};
use sidecar_common::{
    addr::{Endpoint, Ip},
    capture::Transport,
    rules::{CaptureRules, Liveness, listener_slot},
    steer::{Arrival, Steering, assign_refused, verdict},
};

use crate::{
    count::count,
    ctx::{self, Lookup},
    maps::{LISTENERS_LOST, device_of, is_v6_only, listened_at, port_roles},
};

#[sk_lookup]
pub fn on_lookup(ctx: SkLookupContext) -> u32 {
    let Some(rules) = ctx::rules() else { return sk_action::SK_PASS };
    let incoming = Incoming { lookup: Lookup(&ctx), rules };
    let mut verdict = verdict(rules, &incoming);
    if verdict.steering == Steering::Steer && !incoming.lookup.assign(listener_slot::INBOUND) {
        verdict = assign_refused(rules);
    }
    count(&ctx, verdict.counter);
    if verdict.steering == Steering::Drop { sk_action::SK_DROP } else { sk_action::SK_PASS }
}

/// An arriving connection whose facts are looked up when they are asked for.
struct Incoming<'a> {
    lookup: Lookup<'a>,
    rules: &'a CaptureRules,
}

impl Arrival for Incoming<'_> {
    #[inline(always)]
    fn transport(&self) -> Transport {
        self.lookup.transport()
    }

    #[inline(always)]
    fn local(&self) -> Endpoint {
        self.lookup.local()
    }

    #[inline(always)]
    fn remote(&self) -> Ip {
        self.lookup.remote_ip()
    }

    #[inline(always)]
    fn is_own(&self, ip: Ip) -> bool {
        device_of(ip) != 0
    }

    #[inline(always)]
    fn port_roles(&self) -> u32 {
        port_roles(self.local().port)
    }

    #[inline(always)]
    fn listened(&self) -> bool {
        listened(self.local())
    }

    #[inline(always)]
    fn listeners_lost(&self) -> bool {
        LISTENERS_LOST.get(0).is_some_and(|lost| *lost != 0)
    }

    #[inline(always)]
    fn proxy(&self) -> Liveness {
        ctx::proxy_liveness(self.rules, listener_slot::INBOUND)
    }
}

/// Whether the application listens at this address: on it, on its family's wildcard, or, for IPv4, on a `::` that serves
/// both families.
#[inline(always)]
fn listened(local: Endpoint) -> bool {
    if listened_at(local) {
        return true;
    }
    if local.ip.is_v4() {
        if listened_at(Endpoint::new(Ip::UNSPECIFIED_V4, local.port)) {
            return true;
        }
        if is_v6_only(local.port) {
            return false;
        }
    }
    listened_at(Endpoint::new(Ip::UNSPECIFIED_V6, local.port))
}
