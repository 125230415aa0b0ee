//! Both directions, in which the fast path could be used as well: probed by `sidecar check`, so that what speaks against it is seen on
//! each kernel. Nothing is carried that way.

use std::io;

use nix::poll::PollFlags;

use super::{Directions, Engine, Error, Maps, Parts, prepare, probe};
use crate::{
    config::Acceleration,
    lifecycle::fast_path::{Report, TRAPS},
    net::{self, scratch::Rendezvous},
    redirect::programs::Programs,
};

/// What was found.
pub struct Findings {
    /// Of the fast path.
    pub report: Report,
    /// Of both directions.
    pub both: BothDirections,
}

/// What the traps show of both directions, and the bytes that are lost of [`UNREAD`] when the application's end leaves the fast path.
pub struct BothDirections(Result<(Report, usize), Error>);

/// Bytes that an application has not read.
const UNREAD: usize = 1000;

impl BothDirections {
    /// What was found, for people.
    pub fn verdict(&self) -> String {
        let all = TRAPS.len();
        match &self.0 {
            Err(error) => format!("never used; not tried here: {error}"),
            Ok((Report { redirects: false, .. }, _)) => "never used; this kernel does not redirect so".to_owned(),
            Ok((Report { sprung, took, .. }, lost)) => {
                let (count, names) = match sprung.as_slice() {
                    [] => ("none".to_owned(), String::new()),
                    sprung => (sprung.len().to_string(), format!(": {}", sprung.join(", "))),
                };
                let lost = if *lost == 0 { "" } else { "; what is unread is lost when it is switched off" };
                let used =
                    if sprung.is_empty() && lost.is_empty() { "not implemented for traffic" } else { "never used" };
                format!("a difference in {count} of {all} traps{names}{lost}; {used} ({} ms)", took.as_millis())
            }
        }
    }
}

impl Programs {
    /// Probes the kernel as the fast path would at its start, with sockets of its own, and then both directions.
    ///
    /// # Errors
    /// Why there is no fast path.
    pub fn try_fast_path(mut self) -> Result<Findings, Error> {
        let maps = Maps::take(&mut self.maps)?;
        let netns =
            net::netns_cookie().map_err(|source| Error::Probe { what: "ask for the network namespace", source })?;
        let ebpf = self.ebpf.take().ok_or(Error::Programs)?;
        let (mut engine, report) = prepare(Parts { ebpf, maps, netns }, Acceleration::Force)?;
        let both = engine.with_answers(|engine| {
            let report = probe::probe(engine, Directions::Both)?;
            Ok((report, lost_when_let_go(engine)?))
        });
        Ok(Findings { report, both: BothDirections(both) })
    }
}

/// Switches the fast path off while an application has not read what was sent to it, and has its end leave the map.
fn lost_when_let_go(engine: &mut Engine) -> Result<usize, Error> {
    let failed = |source| Error::Probe { what: "let go over loopback", source };
    let meeting = Rendezvous::open().map_err(failed)?;
    let (app, proxy) = meeting.connect(false).map_err(failed)?;
    let (port, own) = (meeting.port().map_err(failed)?, app.port().map_err(failed)?);
    let is_there = |enrolled: &[u16]| enrolled.contains(&own);
    // What stays as it was shows nothing.
    let must = |did: bool| if did { Ok(()) } else { Err(failed(io::ErrorKind::WouldBlock.into())) };
    must(is_there(&probe::enrol(engine, &meeting, &[own])?))?;
    let sent = proxy.write(&[1; UNREAD]).map_err(failed)?;
    app.await_event(PollFlags::POLLIN).map_err(failed)?;
    engine.turn(false)?;
    must(!is_there(&probe::pass_until(engine, port, |enrolled| !is_there(enrolled))?))?;
    // It was there already: whatever the answer is, nothing more comes.
    Ok(sent - app.receive(UNREAD, 0).map_or(0, |received| received.len()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn both_directions_are_told_by_what_they_show_and_never_as_what_carries_traffic() {
        let report = |redirects, sprung: &[&str], lost| {
            let sprung = sprung.iter().map(|name| (*name).to_owned()).collect();
            Ok((Report { redirects, sprung, untried: Vec::new(), took: Duration::from_millis(7) }, lost))
        };
        for (outcome, words) in [
            (report(true, &["splice", "peek"], 0), "a difference in 2 of 19 traps: splice, peek; never used (7 ms)"),
            (
                report(true, &[], 9),
                "a difference in none of 19 traps; what is unread is lost when it is switched off; never used (7 ms)",
            ),
            (report(true, &[], 0), "a difference in none of 19 traps; not implemented for traffic (7 ms)"),
            (report(false, &[], 0), "never used; this kernel does not redirect so"),
            (Err(Error::Programs), "never used; not tried here: its programs were not loaded"),
        ] {
            assert_eq!(BothDirections(outcome).verdict(), words);
        }
    }
}
