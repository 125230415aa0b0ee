//! Whether an application could tell the fast path from TCP on the running kernel: tried, not read from a version.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use serde_json::{Value as Json, json};

use super::{
    engine::{Engine, Error},
    traps::{End, Ends, Seen, TRAPS, Trap, is_late},
};
use crate::{
    lifecycle::{
        self,
        fast_path::{Both, Report},
    },
    net::scratch::{Rendezvous, Scratch},
};

impl Report {
    /// As it is kept.
    pub(super) fn to_json(&self) -> Json {
        json!({ "redirects": self.redirects, "sprung": self.sprung })
    }

    /// As it was kept; `None`: not one.
    pub(super) fn from_json(kept: &Json) -> Option<Self> {
        let known = |name: &Json| {
            let name = name.as_str()?;
            lifecycle::fast_path::TRAPS.contains(&name).then(|| name.to_owned())
        };
        let sprung = kept.get("sprung")?.as_array()?.iter().map(known).collect::<Option<_>>()?;
        Some(Self { redirects: kept.get("redirects")?.as_bool()?, sprung, ..Self::default() })
    }
}

impl Both {
    /// As it is kept.
    pub(super) fn to_json(&self) -> Json {
        json!({ "report": self.report.to_json(), "loses_unread": self.loses_unread })
    }

    /// As it was kept; `None`: not one.
    pub(super) fn from_json(kept: &Json) -> Option<Self> {
        let report = Report::from_json(kept.get("report")?)?;
        Some(Self { report, loses_unread: kept.get("loses_unread")?.as_bool()? })
    }
}

/// What goes past TCP.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Directions {
    /// What the application sends: the fast path.
    One,
    /// What the proxy sends as well.
    Both,
}

/// Looks at the sockets at most until all that is wanted is enrolled: a socket may be in use just when it is looked at.
const LOOKS: u32 = 5;
/// What both directions may take before the rest stays untried: each wait that ends in nothing takes a second, and the fast path begins
/// after it.
const BUDGET: Duration = Duration::from_secs(5);
/// Between two looks.
const A_MOMENT: Duration = Duration::from_millis(1);

/// Plays every trap with these directions. Leaves the engine switched off.
pub(super) fn probe(engine: &mut Engine, directions: Directions) -> Result<Report, Error> {
    let started = Instant::now();
    let outcome = Stage::enrolled(engine).and_then(|stage| stage.report(directions));
    // Whatever it came to: what is enrolled already would be redirected on.
    engine.turn(false)?;
    outcome.map(|report| Report { took: started.elapsed(), ..report })
}

/// A connection for each trap, and one more.
struct Stage {
    meeting: Rendezvous,
    ends: Vec<Ends>,
    /// Shows that messages are redirected.
    witness: Ends,
    /// Ports of the applications' ends that are enrolled.
    enrolled: Vec<u16>,
}

fn connect(meeting: &Rendezvous, end: End) -> io::Result<Ends> {
    let (app, proxy) = meeting.connect(end == End::Blocking)?;
    if end == End::ZeroCopy {
        app.allow_zero_copy()?;
    }
    Ok(Ends { app, proxy })
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Probe { what, source }
}

impl Stage {
    /// What is to be on the fast path is, as far as the kernel lets it.
    fn enrolled(engine: &mut Engine) -> Result<Self, Error> {
        let meeting = Rendezvous::open().map_err(failed("listen on loopback"))?;
        let ends = TRAPS.iter().map(|trap| connect(&meeting, trap.end)).collect::<io::Result<Vec<_>>>();
        let both = ends.and_then(|ends| Ok((ends, connect(&meeting, End::Willing)?)));
        let (ends, witness) = both.map_err(failed("connect over loopback"))?;
        let willing = TRAPS.iter().zip(&ends).filter(|(trap, _)| trap.end == End::Willing).map(|(_, ends)| ends);
        let wanted = willing.chain([&witness]).map(|ends| ends.app.port()).collect::<io::Result<Vec<_>>>();
        let enrolled = enrol(engine, &meeting, &wanted.map_err(failed("connect over loopback"))?)?;
        Ok(Self { meeting, ends, witness, enrolled })
    }

    fn has(&self, ends: &Ends) -> Result<bool, Error> {
        let port = ends.app.port().map_err(failed("connect over loopback"))?;
        Ok(self.enrolled.contains(&port))
    }

    /// Plays them.
    fn report(mut self, directions: Directions) -> Result<Report, Error> {
        let (began, mut report) = (Instant::now(), Report::default());
        if !self.has(&self.witness)? {
            report.untried = TRAPS.iter().map(|trap| trap.name.to_owned()).collect();
            return Ok(report);
        }
        report.redirects = self.redirects(directions).map_err(failed("write over loopback"))?;
        for (trap, ends) in TRAPS.iter().zip(std::mem::take(&mut self.ends)) {
            let enrolled = self.has(&ends)?;
            let late = directions == Directions::Both && began.elapsed() > BUDGET;
            let willing = trap.end == End::Willing;
            let shown = if late || !enrolled && willing {
                Shown::Nothing
            } else if enrolled && !willing {
                // An application that waits in a receive has noticed it already, or will count completions.
                Shown::Difference
            } else {
                self.play(trap, ends)?
            };
            match shown {
                Shown::Same => {}
                Shown::Difference => report.sprung.push(trap.name.to_owned()),
                Shown::Nothing => report.untried.push(trap.name.to_owned()),
            }
        }
        Ok(report)
    }

    fn redirects(&self, directions: Directions) -> io::Result<bool> {
        let Ends { app, proxy } = &self.witness;
        Ok(witness_redirection(app, proxy)? && (directions == Directions::One || witness_redirection(proxy, app)?))
    }

    /// Plays it by TCP too: what is connected now nobody enrols.
    fn play(&self, trap: &Trap, ends: Ends) -> Result<Shown, Error> {
        let by_tcp = connect(&self.meeting, trap.end).map_err(failed("play a trap by TCP"))?;
        compare(trap, ends, (trap.play)(by_tcp)).map_err(failed("play a trap by TCP"))
    }
}

/// Brings what is connected there onto the fast path, and switches it on; nothing that comes later. Ports of the applications' ends
/// that are enrolled, of which these are wanted.
pub(super) fn enrol(engine: &mut Engine, meeting: &Rendezvous, wanted: &[u16]) -> Result<Vec<u16>, Error> {
    let port = meeting.port().map_err(failed("listen on loopback"))?;
    engine.turn(true)?;
    pass_until(engine, port, |enrolled| wanted.iter().all(|port| enrolled.contains(port)))
}

/// Has the engine look at what is connected to this port until `done`, or for the last time.
pub(super) fn pass_until(engine: &mut Engine, port: u16, done: impl Fn(&[u16]) -> bool) -> Result<Vec<u16>, Error> {
    engine.look_for(Some(port), 0)?;
    let mut looks = 1..=LOOKS;
    let outcome = loop {
        let passed = engine.pass();
        let enrolled = engine.enrolled_to(port);
        looks.next();
        if passed.is_err() || done(&enrolled) || looks.is_empty() {
            break passed.map(|_| enrolled);
        }
        thread::sleep(A_MOMENT);
    };
    engine.look_for(None, u64::MAX)?;
    outcome
}

/// Lets go of what a supervisor before has enrolled, which is to be on the fast path only when the probe is over. Must be switched off.
pub(super) fn release(engine: &mut Engine) -> Result<(), Error> {
    for _ in 0..LOOKS {
        if engine.enrolled().0 == 0 {
            break;
        }
        engine.pass()?;
        thread::sleep(A_MOMENT);
    }
    Ok(())
}

/// What a trap has shown.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Shown {
    Same,
    Difference,
    /// It did not end in time, or could not be tried.
    Nothing,
}

/// Plays it on `ends`, and sees whether that is as `expected`.
fn compare(trap: &Trap, ends: Ends, expected: Seen) -> io::Result<Shown> {
    let expected = match expected {
        Err(error) if is_late(&error) => return Ok(Shown::Nothing),
        expected => expected?,
    };
    let (shown, seen) = match (trap.play)(ends) {
        Ok(seen) if seen == expected => return Ok(Shown::Same),
        Err(error) if is_late(&error) => (Shown::Nothing, Err(error)),
        seen => (Shown::Difference, seen),
    };
    tracing::debug!(trap = trap.name, ?shown, ?seen, ?expected, "the fast path shows");
    Ok(shown)
}

/// Messages arrive whole, and TCP knows nothing of them.
fn witness_redirection(from: &Scratch, to: &Scratch) -> io::Result<bool> {
    let before = to.received_by_tcp()?;
    let sent: Vec<u8> = (0..1000).map(|at| at as u8).collect();
    from.write(&sent)?;
    let arrived = to.await_all(sent.len())?;
    Ok(arrived == sent && to.received_by_tcp()? == before)
}

#[cfg(test)]
mod tests;
