//! What else the fast path could be: probed by `sidecar check`, so that what speaks against it is seen on each kernel. None of it
//! carries traffic.

use super::{Error, Maps, Parts, Variant, prepare, probe};
use crate::{
    config::Acceleration,
    lifecycle::fast_path::{Report, TRAPS},
    net,
    redirect::programs::Programs,
};

/// From the one that would accelerate most.
const VARIANTS: [(&str, Variant); 3] = [
    ("both directions", Variant { answers: true, verdict: false }),
    ("both directions with a stream verdict", Variant { answers: true, verdict: true }),
    ("application to proxy with a stream verdict", Variant { answers: false, verdict: true }),
];

/// What was found.
pub struct Findings {
    /// Of the fast path, whose direction is application to proxy.
    pub report: Report,
    /// Of what it could be as well.
    pub variants: Vec<Tried>,
}

/// A variant that was tried.
pub struct Tried {
    name: &'static str,
    outcome: Result<Report, Error>,
}

impl Tried {
    /// What was found, for people.
    pub fn verdict(&self) -> String {
        let Self { name, outcome } = self;
        let all = TRAPS.len();
        match outcome {
            Err(error) => format!("{name}: never used; not tried here: {error}"),
            Ok(Report { redirects: false, .. }) => format!("{name}: never used; this kernel does not redirect so"),
            Ok(Report { sprung, took, .. }) if sprung.is_empty() => format!(
                "{name}: a difference in none of {all} traps; not implemented for traffic ({} ms)",
                took.as_millis()
            ),
            Ok(Report { sprung, took, .. }) => format!(
                "{name}: a difference in {} of {all} traps: {}; never used ({} ms)",
                sprung.len(),
                sprung.join(", "),
                took.as_millis()
            ),
        }
    }
}

impl Programs {
    /// Probes the kernel as the fast path would at its start, with sockets of its own, and then its variants.
    ///
    /// # Errors
    /// Why there is no fast path.
    pub fn try_fast_path(mut self) -> Result<Findings, Error> {
        let maps = Maps::take(&mut self.maps)?;
        let netns =
            net::netns_cookie().map_err(|source| Error::Probe { what: "ask for the network namespace", source })?;
        let ebpf = self.ebpf.take().ok_or(Error::Programs)?;
        let (mut engine, report) = prepare(Parts { ebpf, maps, netns }, Acceleration::Force)?;
        let variants = VARIANTS.into_iter().map(|(name, variant)| {
            let outcome = engine.as_variant(variant, |engine| probe::probe(engine, variant));
            Tried { name, outcome }
        });
        Ok(Findings { report, variants: variants.collect() })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_variant_is_told_by_what_it_shows_and_never_as_one_that_carries_traffic() {
        let report = |redirects, sprung: &[&str]| {
            let sprung = sprung.iter().map(|name| (*name).to_owned()).collect();
            Ok(Report { redirects, sprung, took: Duration::from_millis(7) })
        };
        for (outcome, words) in [
            (report(true, &["splice", "peek"]), "a difference in 2 of 19 traps: splice, peek; never used (7 ms)"),
            (report(true, &[]), "a difference in none of 19 traps; not implemented for traffic (7 ms)"),
            (report(false, &[]), "never used; this kernel does not redirect so"),
            (Err(Error::Programs), "never used; not tried here: its programs were not loaded"),
        ] {
            let tried = Tried { name: "both directions", outcome };
            assert!(tried.verdict().ends_with(words), "{}", tried.verdict());
        }
    }
}
