//! What else the fast path could be: probed by `sidecar check`, so that what speaks against it is seen on each kernel. None of it
//! carries traffic.

use nix::poll::PollFlags;

use super::{Engine, Error, Maps, Parts, Variant, prepare, probe};
use crate::{
    config::Acceleration,
    lifecycle::fast_path::{Report, TRAPS},
    net::{self, scratch::Rendezvous},
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
    /// What the traps show, and the bytes that are lost of [`UNREAD`] when the application's end leaves the fast path.
    outcome: Result<(Report, usize), Error>,
}

/// Bytes that an application has not read.
const UNREAD: usize = 1000;

impl Tried {
    /// What was found, for people.
    pub fn verdict(&self) -> String {
        let Self { name, outcome } = self;
        let all = TRAPS.len();
        match outcome {
            Err(error) => format!("{name}: never used; not tried here: {error}"),
            Ok((Report { redirects: false, .. }, _)) => format!("{name}: never used; this kernel does not redirect so"),
            Ok((Report { sprung, took, .. }, lost)) => {
                let (count, names) = match sprung.as_slice() {
                    [] => ("none".to_owned(), String::new()),
                    sprung => (sprung.len().to_string(), format!(": {}", sprung.join(", "))),
                };
                let lost = if *lost == 0 { "" } else { "; what is unread is lost when it is switched off" };
                let used =
                    if sprung.is_empty() && lost.is_empty() { "not implemented for traffic" } else { "never used" };
                format!("{name}: a difference in {count} of {all} traps{names}{lost}; {used} ({} ms)", took.as_millis())
            }
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
            let outcome = engine.as_variant(variant, |engine| {
                let report = probe::probe(engine, variant)?;
                Ok((report, lost_when_let_go(engine)?))
            });
            Tried { name, outcome }
        });
        Ok(Findings { report, variants: variants.collect() })
    }
}

/// Switches the fast path off while an application has not read what was sent to it, and has its end leave the map.
fn lost_when_let_go(engine: &mut Engine) -> Result<usize, Error> {
    let failed = |source| Error::Probe { what: "let go over loopback", source };
    let meeting = Rendezvous::open().map_err(failed)?;
    let port = meeting.port().map_err(failed)?;
    let (app, proxy) = meeting.connect(false).map_err(failed)?;
    let pass = |engine: &mut Engine, on| {
        engine.turn(on)?;
        engine.look_for(Some(port), 0)?;
        let passed = engine.pass();
        engine.look_for(None, u64::MAX)?;
        passed
    };
    pass(engine, true)?;
    let sent = proxy.write(&[1; UNREAD]).map_err(failed)?;
    app.await_event(PollFlags::POLLIN).map_err(failed)?;
    pass(engine, false)?;
    // It was there already: whatever the answer is, nothing more comes.
    Ok(sent - app.receive(UNREAD, 0).map_or(0, |received| received.len()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_variant_is_told_by_what_it_shows_and_never_as_one_that_carries_traffic() {
        let report = |redirects, sprung: &[&str], lost| {
            let sprung = sprung.iter().map(|name| (*name).to_owned()).collect();
            Ok((Report { redirects, sprung, took: Duration::from_millis(7) }, lost))
        };
        for (outcome, words) in [
            (report(true, &["splice", "peek"], 0), "a difference in 2 of 19 traps: splice, peek; never used (7 ms)"),
            (
                report(true, &[], 9),
                "in none of 19 traps; what is unread is lost when it is switched off; never used (7 ms)",
            ),
            (report(true, &[], 0), "a difference in none of 19 traps; not implemented for traffic (7 ms)"),
            (report(false, &[], 0), "never used; this kernel does not redirect so"),
            (Err(Error::Programs), "never used; not tried here: its programs were not loaded"),
        ] {
            let tried = Tried { name: "both directions", outcome };
            assert!(tried.verdict().ends_with(words), "{}", tried.verdict());
        }
    }
}
