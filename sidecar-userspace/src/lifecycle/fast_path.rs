//! The fast path as supervisor and worker know it: the supervisor has it and writes on the board how it stands, the worker reads
//! that and tells it.

use std::time::Duration;

use super::board::{Board, BoardReader, Figure};
use crate::config::Acceleration;

/// The names of all traps that a probe plays.
pub const TRAPS: [&str; 19] = [
    "fionread",
    "peek",
    "wait_all",
    "low_water",
    "splice",
    "urgent_in",
    "urgent_out",
    "edges",
    "zero_copy",
    "send_file",
    "half_close",
    "write_after_end",
    "end_after_last_byte",
    "reset",
    "order",
    "back_pressure",
    "writable",
    "blocking_half_close",
    "blocking_receive",
];

/// What the probe found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Messages were redirected, and arrived as they were sent.
    pub redirects: bool,
    /// Names of the traps in which something else was seen than without the fast path.
    pub sprung: Vec<String>,
    /// How long it took; zero when it was remembered from before in this boot.
    pub took: Duration,
}

impl Report {
    /// Whether nothing observable changes.
    pub fn is_clean(&self) -> bool {
        self.redirects && self.sprung.is_empty()
    }

    /// For people: what `acceleration: auto` makes of it.
    pub fn verdict(&self) -> String {
        if !self.redirects {
            return "this kernel does not redirect".to_owned();
        }
        match self.sprung.as_slice() {
            [] => format!("none of {} traps changes anything an application sees", TRAPS.len()),
            sprung => format!("an application would see a difference: {}", sprung.join(", ")),
        }
    }

    /// A bit for each trap that was sprung.
    fn bits(&self) -> u64 {
        let at = |name: &String| TRAPS.iter().position(|trap| trap == name);
        self.sprung.iter().filter_map(at).fold(0, |bits, at| bits | 1 << at)
    }

    fn from_bits(redirects: bool, bits: u64) -> Self {
        let sprung = TRAPS.iter().enumerate().filter(|(at, _)| bits & 1 << at != 0).map(|(_, name)| (*name).to_owned());
        Self { redirects, sprung: sprung.collect(), took: Duration::ZERO }
    }
}

/// The number of [`Phase::Present`] on the board while looks fail.
const FAILING: u64 = 4;

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The configuration has none.
    Off,
    /// It is being loaded and probed.
    Starting,
    /// There is none, and why.
    Absent(String),
    /// There is one.
    Present {
        /// What the probe found.
        report: Report,
        /// Messages may be redirected now.
        on: bool,
        /// An operator has said so.
        by_hand: bool,
        /// Connections whose application end is enrolled, at the last look.
        connections: u64,
        /// Why it is off until a look succeeds; none has failed since.
        failing: Option<String>,
    },
}

impl Phase {
    /// Writes it for whoever reads the board.
    pub fn write(&self, board: &Board) {
        let number = match self {
            Self::Off => 0,
            Self::Starting => 1,
            Self::Absent(why) => {
                board.say(why);
                2
            }
            Self::Present { report, on, by_hand, connections, failing } => {
                for (figure, value) in [
                    (Figure::FastPathRedirects, u64::from(report.redirects)),
                    (Figure::FastPathSprung, report.bits()),
                    (Figure::FastPathOn, u64::from(*on)),
                    (Figure::FastPathByHand, u64::from(*by_hand)),
                    (Figure::FastPathConnections, *connections),
                ] {
                    board.set(figure, value);
                }
                if let Some(why) = failing {
                    board.say(why);
                }
                if failing.is_some() { FAILING } else { 3 }
            }
        };
        board.set(Figure::FastPathPhase, number);
    }

    /// What the supervisor wrote last.
    pub fn read(board: &BoardReader) -> Self {
        match board.get(Figure::FastPathPhase) {
            0 => Self::Off,
            1 => Self::Starting,
            2 => Self::Absent(board.said()),
            phase => Self::Present {
                report: Report::from_bits(board.get(Figure::FastPathRedirects) != 0, board.get(Figure::FastPathSprung)),
                on: board.get(Figure::FastPathOn) != 0,
                by_hand: board.get(Figure::FastPathByHand) != 0,
                connections: board.get(Figure::FastPathConnections),
                failing: (phase == FAILING).then(|| board.said()),
            },
        }
    }

    /// Why it is on or not, for people.
    pub fn why(&self) -> String {
        match self {
            Self::Off => "acceleration is `off`".to_owned(),
            Self::Starting => "the kernel is being probed".to_owned(),
            Self::Absent(why) => why.clone(),
            Self::Present { failing: Some(why), .. } => format!("off until a look succeeds: {why}"),
            Self::Present { report, by_hand: true, .. } => format!("switched by hand; {}", report.verdict()),
            Self::Present { report, .. } => report.verdict(),
        }
    }

    /// Whether an operator may switch it on.
    ///
    /// # Errors
    /// Why not, and what can be done.
    pub fn allows(&self, acceleration: Acceleration) -> Result<(), String> {
        match self {
            Self::Off => {
                Err("acceleration is `off` in the configuration, and the kernel maps are made at the start: set \
                              `acceleration: auto` and start the sidecar again"
                    .to_owned())
            }
            Self::Absent(why) => Err(format!("there is no fast path on this kernel: {why}")),
            Self::Present { report, .. } if acceleration == Acceleration::Auto && !report.is_clean() => Err(format!(
                "{}; `acceleration: force` in the configuration would use it all the same",
                report.verdict()
            )),
            Self::Starting | Self::Present { .. } => Ok(()),
        }
    }

    /// Whether it is as an operator has just wished it. Where it is not there yet, the wish waits for it.
    ///
    /// # Errors
    /// Why it is not.
    pub fn has_become(&self, wished: bool) -> Result<(), String> {
        match self {
            Self::Present { on, .. } if *on == wished => Ok(()),
            Self::Present { failing: Some(why), .. } if wished => Err(format!(
                "the fast path stays off until a look at the pod's sockets succeeds, and goes on by itself then: {why}"
            )),
            Self::Present { on, .. } => {
                Err(format!("the fast path stays {}; the sidecar's log says why", if *on { "on" } else { "off" }))
            }
            Self::Off | Self::Starting | Self::Absent(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_it_stands_is_read_as_it_was_written() {
        let board = Board::new().unwrap();
        let reader = BoardReader::map(&board).unwrap();
        assert_eq!(Phase::read(&reader), Phase::Off);
        let present = |sprung: &[&str], on| Phase::Present {
            report: Report {
                redirects: true,
                sprung: sprung.iter().map(|name| (*name).to_owned()).collect(),
                took: Duration::ZERO,
            },
            on,
            by_hand: !on,
            connections: 3,
            failing: sprung.contains(&"urgent_in").then(|| "no descriptor is left".to_owned()),
        };
        for phase in [
            Phase::Starting,
            present(&["fionread", "blocking_receive"], true),
            present(&["urgent_in"], false),
            present(&[], false),
            Phase::Absent("the kernel says no \u{2013} for 7 reasons".to_owned()),
            Phase::Absent("no".to_owned()),
        ] {
            phase.write(&board);
            assert_eq!(Phase::read(&reader), phase);
        }
        let long = "x".repeat(5000);
        Phase::Absent(long.clone()).write(&board);
        let Phase::Absent(cut) = Phase::read(&reader) else { panic!("absent") };
        assert!(long.starts_with(&cut) && cut.len() > 500, "{cut}");
    }

    #[test]
    fn what_would_be_seen_is_switched_on_by_force_alone() {
        let present = |sprung: Vec<String>| Phase::Present {
            report: Report { redirects: true, sprung, took: Duration::ZERO },
            on: false,
            by_hand: false,
            connections: 0,
            failing: None,
        };
        let (seen, clean) = (present(vec!["fionread".to_owned()]), present(Vec::new()));
        assert!(seen.allows(Acceleration::Auto).unwrap_err().contains("fionread"));
        assert!(seen.allows(Acceleration::Force).is_ok() && clean.allows(Acceleration::Auto).is_ok());
        let failing = |on| Phase::Present {
            report: Report::default(),
            on,
            by_hand: true,
            connections: 0,
            failing: Some("no descriptor is left".to_owned()),
        };
        assert!(failing(false).has_become(true).unwrap_err().ends_with("no descriptor is left"));
        assert!(failing(true).has_become(false).unwrap_err().contains("stays on"));
        assert!(failing(false).has_become(false).is_ok() && Phase::Starting.has_become(true).is_ok());
        assert!(clean.has_become(true).unwrap_err().contains("stays off") && clean.has_become(false).is_ok());
        assert!(Phase::Off.allows(Acceleration::Off).unwrap_err().contains("acceleration: auto"));
    }
}
