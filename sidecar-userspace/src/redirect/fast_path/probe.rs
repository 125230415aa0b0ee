//! Whether an application could tell the fast path from TCP on the running kernel: tried, not read from a version.

use std::{
    io,
    time::{Duration, Instant},
};

use serde_json::{Value as Json, json};

use super::{
    engine::{Engine, Error},
    traps::{Ends, TRAPS, Trap},
};
use crate::{
    lifecycle::{self, fast_path::Report},
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
        Some(Self { redirects: kept.get("redirects")?.as_bool()?, sprung, took: Duration::ZERO })
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

/// Plays every trap with these directions. Leaves the engine switched off.
pub(super) fn probe(engine: &mut Engine, directions: Directions) -> Result<Report, Error> {
    let started = Instant::now();
    let failed = |what| move |source| Error::Probe { what, source };
    let meeting = Rendezvous::open().map_err(failed("listen on loopback"))?;
    let port = meeting.port().map_err(failed("listen on loopback"))?;
    let connect = |blocking| -> io::Result<Ends> {
        let (app, proxy) = meeting.connect(blocking)?;
        Ok(Ends { app, proxy })
    };
    let connect_all = || TRAPS.iter().map(|trap| connect(trap.blocking)).collect::<io::Result<Vec<_>>>();
    let enrolled = connect_all().and_then(|ends| Ok((ends, connect(false)?)));
    let (ends, witness) = enrolled.map_err(failed("connect over loopback"))?;
    engine.turn(true)?;
    engine.look_for(Some(port), 0)?;
    let passed = engine.pass();
    // What is connected from here on is for comparison, and nobody enrols it.
    engine.look_for(None, u64::MAX)?;
    passed?;
    let Ends { app, proxy } = &witness;
    let there = witness_redirection(app, proxy).map_err(failed("write over loopback"))?;
    let back =
        directions == Directions::One || witness_redirection(proxy, app).map_err(failed("write over loopback"))?;
    let mut sprung = Vec::new();
    for (trap, ends) in TRAPS.iter().zip(ends) {
        let expected = connect(trap.blocking).and_then(trap.play).map_err(failed("play a trap by TCP"))?;
        if springs(trap, ends, &expected) {
            sprung.push(trap.name.to_owned());
        }
    }
    engine.turn(false)?;
    Ok(Report { redirects: there && back, sprung, took: started.elapsed() })
}

/// Whether something else is seen than `expected`; what does not end in time is something else.
fn springs(trap: &Trap, ends: Ends, expected: &[i64]) -> bool {
    match (trap.play)(ends) {
        Ok(seen) if seen == expected => false,
        Ok(seen) => {
            tracing::debug!(trap = trap.name, ?seen, ?expected, "the fast path shows");
            true
        }
        Err(error) => {
            tracing::debug!(trap = trap.name, %error, ?expected, "the fast path shows");
            true
        }
    }
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
mod tests {
    use super::*;

    #[test]
    fn a_report_is_kept_and_found_again() {
        for report in [
            Report { redirects: true, sprung: Vec::new(), took: Duration::ZERO },
            Report { redirects: false, sprung: vec!["fionread".into(), "order".into()], took: Duration::ZERO },
        ] {
            assert_eq!(Report::from_json(&report.to_json()), Some(report));
        }
    }

    #[test]
    fn what_is_no_report_is_none() {
        for text in [
            "{}",
            "[]",
            "null",
            r#"{"redirects": true}"#,
            r#"{"redirects": 1, "sprung": []}"#,
            r#"{"redirects": true, "sprung": ["a trap of another version"]}"#,
        ] {
            assert_eq!(Report::from_json(&serde_json::from_str(text).unwrap()), None, "{text}");
        }
    }

    #[test]
    fn only_a_kernel_that_redirects_and_shows_nothing_is_clean() {
        let report = |redirects, sprung: &[&str]| Report {
            redirects,
            sprung: sprung.iter().map(|name| (*name).to_owned()).collect(),
            took: Duration::ZERO,
        };
        assert!(report(true, &[]).is_clean());
        assert!(!report(false, &[]).is_clean());
        assert!(!report(true, &["fionread"]).is_clean());
        assert!(report(true, &["fionread"]).verdict().contains("fionread"));
    }

    #[test]
    fn every_trap_has_a_name_of_its_own_and_shows_the_same_twice_by_tcp() {
        let meeting = Rendezvous::open().unwrap();
        let mut names = std::collections::HashSet::new();
        assert!(TRAPS.iter().map(|trap| trap.name).eq(lifecycle::fast_path::TRAPS));
        for trap in TRAPS {
            assert!(names.insert(trap.name), "{}", trap.name);
            let play = || {
                let (app, proxy) = meeting.connect(trap.blocking).unwrap();
                (trap.play)(Ends { app, proxy }).unwrap()
            };
            assert_eq!(play(), play(), "{}", trap.name);
        }
    }
}
