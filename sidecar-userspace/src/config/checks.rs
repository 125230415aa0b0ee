//! What keys demand of each other.

use super::{
    Mode, OnFailure,
    draft::Parts,
    fault::{Place, Problem},
    load::Reader,
    words::quoted,
};

/// Where the identity of a workload can come from, for people.
const SOURCES: &str = "`identity.files`, `identity.workload_api` or `identity.ca`";

impl Reader {
    /// Checks what no single key can know. Keys that were refused are left alone: what stands for them now is not what
    /// was meant.
    pub(super) fn check(&mut self) {
        self.inherit_modes();
        self.strict_fails_closed();
        let identified = self.identity();
        if !identified {
            self.strict_needs_identity();
        }
        self.ports(identified);
    }

    /// Every listener needs a port of its own: the kernel side tells them apart by port alone. That of a direction that is
    /// not captured is bound all the same; without an identity there is no HBONE.
    fn ports(&mut self, identified: bool) {
        let mut listeners = vec![
            ("capture.outbound.port", self.draft.capture.outbound.port),
            ("capture.inbound.port", self.draft.capture.inbound.port),
            ("telemetry.metrics", self.draft.telemetry.metrics.port()),
            ("telemetry.health", self.draft.telemetry.health.port()),
            ("telemetry.admin", self.draft.telemetry.admin.port()),
        ];
        listeners.extend(self.draft.mtls.hbone_port.filter(|_| identified).map(|port| ("mtls.hbone_port", port)));
        listeners.retain(|(path, _)| !self.refused.contains(path));
        // The fault belongs to whoever spoke last: a default is never to blame.
        listeners.sort_by_key(|(path, _)| self.origin(path));
        for (index, &(path, port)) in listeners.iter().enumerate() {
            if let Some(&(other, _)) = listeners[..index].iter().find(|(_, taken)| *taken == port) {
                let place = self.origin(other);
                self.fault(self.origin(path), Problem::PortTaken { path, port, other, place });
            }
        }
    }

    /// A direction that has no mode of its own takes `mtls.mode`, and is said to have it from there.
    fn inherit_modes(&mut self) {
        let (both, place) = (self.draft.mtls.mode, self.origin("mtls.mode"));
        for path in ["mtls.outbound.mode", "mtls.inbound.mode"] {
            if self.origin(path) != Place::Default {
                continue;
            }
            let mtls = &mut self.draft.mtls;
            let modes = if path == "mtls.outbound.mode" { &mut mtls.outbound } else { &mut mtls.inbound };
            modes.mode = both;
            self.origins.insert(path, place.clone());
        }
    }

    /// At most one source of identity, and that one whole. Returns whether any was meant.
    fn identity(&mut self) -> bool {
        let mut meant = false;
        let mut first: Option<(&'static str, Place)> = None;
        for source in self.draft.sources() {
            let all = || source.needed.iter().chain(&source.more);
            if all().any(|(path, _)| self.refused.contains(path)) {
                meant = true;
                continue;
            }
            let Some(&(given, _)) = all().find(|(_, given)| *given) else { continue };
            meant = true;
            let place = self.origin(given);
            self.whole(&source, &place);
            match &first {
                None => first = Some((given, place)),
                Some((other, there)) => {
                    let problem = Problem::SecondIdentity { path: given, other, place: there.clone() };
                    self.fault(place, problem);
                }
            }
        }
        meant
    }

    fn whole(&mut self, source: &Parts, place: &Place) {
        let missing: Vec<&str> = source.needed.iter().filter(|(_, given)| !given).map(|(path, _)| *path).collect();
        if !missing.is_empty() {
            self.fault(place.clone(), Problem::PartMissing { path: source.path, missing: quoted(missing) });
        }
    }

    /// Without a proxy there is no mutual TLS: where it is a must, nothing may go direct unless somebody says so.
    fn strict_fails_closed(&mut self) {
        const PATH: &str = "capture.on_failure";
        let Some(&of) = self.strict_keys().first() else { return };
        if self.origin(PATH) == Place::Default {
            self.draft.capture.on_failure = OnFailure::Closed;
            self.origins.insert(PATH, Place::Because { of, place: Box::new(self.origin(of)) });
        }
    }

    /// The keys that make mutual TLS a must.
    fn strict_keys(&self) -> Vec<&'static str> {
        let mtls = &self.draft.mtls;
        let strict = |mode: &Mode| *mode == Mode::Strict;
        let keys = [
            ("mtls.outbound.mode", strict(&mtls.outbound.mode)),
            ("mtls.inbound.mode", strict(&mtls.inbound.mode)),
            ("mtls.outbound.ports", mtls.outbound.ports.iter().any(|(_, mode)| strict(mode))),
            ("mtls.outbound.cidrs", mtls.outbound.cidrs.iter().any(|(_, mode)| strict(mode))),
            ("mtls.inbound.ports", mtls.inbound.ports.iter().any(|(_, mode)| strict(mode))),
            ("mtls.inbound.cidrs", mtls.inbound.cidrs.iter().any(|(_, mode)| strict(mode))),
        ];
        let mut wanting: Vec<&'static str> = Vec::new();
        for (path, _) in keys.into_iter().filter(|(_, strict)| *strict) {
            // An inherited mode is the fault of the key that it was inherited from.
            let inherited = path.ends_with(".mode") && self.origin(path) == self.origin("mtls.mode");
            wanting.push(if inherited { "mtls.mode" } else { path });
        }
        wanting.dedup();
        wanting
    }

    fn strict_needs_identity(&mut self) {
        for path in self.strict_keys() {
            self.fault(self.origin(path), Problem::StrictWithoutIdentity { path, sources: SOURCES });
        }
    }
}
