//! Both directions, in which the fast path could be used as well: probed, so that what speaks against it is seen on each kernel.
//! Nothing is carried that way.

use std::io;

use nix::poll::PollFlags;

use super::{Engine, Error, Maps, Parts, prepare, probe, probe::Directions};
use crate::{
    config::Acceleration,
    lifecycle::fast_path::{Both, Report},
    net::{self, scratch::Rendezvous},
    redirect::programs::Programs,
};

/// What was found.
pub struct Findings {
    /// Of the fast path.
    pub report: Report,
    /// Of both directions, or why nothing was.
    pub both: Result<Both, Error>,
}

/// Bytes that an application has not read.
const UNREAD: usize = 1000;

impl Programs {
    /// Probes the kernel as the fast path does at its start, with sockets of its own.
    ///
    /// # Errors
    /// Why there is no fast path.
    pub fn try_fast_path(mut self) -> Result<Findings, Error> {
        let maps = Maps::take(&mut self.maps)?;
        let netns =
            net::netns_cookie().map_err(|source| Error::Probe { what: "ask for the network namespace", source })?;
        let ebpf = self.ebpf.take().ok_or(Error::Programs)?;
        prepare(Parts { ebpf, maps, netns }, Acceleration::Force).map(|(_, findings)| findings)
    }
}

/// Plays the traps with both directions, and lets go of one that is not read. Leaves the engine as it was.
pub(super) fn probe(engine: &mut Engine) -> Result<Both, Error> {
    engine.with_answers(|engine| {
        let report = probe::probe(engine, Directions::Both)?;
        Ok(Both { report, loses_unread: loses_when_let_go(engine)? })
    })
}

/// Switches the fast path off while an application has not read what was sent to it, and has its end leave the map.
fn loses_when_let_go(engine: &mut Engine) -> Result<bool, Error> {
    let failed = |source| Error::Probe { what: "let go over loopback", source };
    let meeting = Rendezvous::open().map_err(failed)?;
    let (app, proxy) = meeting.connect(false).map_err(failed)?;
    let (port, own) = (meeting.port().map_err(failed)?, app.port().map_err(failed)?);
    let is_there = |enrolled: &[u16]| enrolled.contains(&own);
    // What stays as it was shows nothing.
    let must = |did: bool, or: &str| if did { Ok(()) } else { Err(failed(io::Error::other(or))) };
    must(is_there(&probe::enrol(engine, &meeting, &[own])?), "its connection could not be enrolled")?;
    let sent = proxy.write(&[1; UNREAD]).map_err(failed)?;
    app.await_event(PollFlags::POLLIN).map_err(failed)?;
    engine.turn(false)?;
    must(
        !is_there(&probe::pass_until(engine, port, |enrolled| !is_there(enrolled))?),
        "its connection stays enrolled",
    )?;
    // It was there already: whatever the answer is, nothing more comes.
    Ok(app.receive(UNREAD, 0).map_or(0, |received| received.len()) < sent)
}
