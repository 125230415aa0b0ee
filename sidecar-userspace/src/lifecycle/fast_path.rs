//! The fast path as supervisor and worker know it: the supervisor has it and writes on the board how it stands, the worker reads
//! that and tells it.

mod report;

use std::time::Duration;

use super::board::{Board, BoardReader, Figure};
use crate::config::Acceleration;

pub use report::{Both, Report, TRAPS};

/// The number of [`Phase::Present`] on the board while looks fail.
const FAILING: u64 = 4;

/// Bits of [`Figure::FastPathBoth`].
mod both {
    pub(super) const PROBED: u64 = 1;
    pub(super) const REDIRECTS: u64 = 2;
    pub(super) const LOSES_UNREAD: u64 = 4;
}

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
        /// What it found of both directions, if it could.
        both: Option<Both>,
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
            Self::Present { report, both, on, by_hand, connections, failing } => {
                write_both(board, both.as_ref());
                for (figure, value) in [
                    (Figure::FastPathRedirects, u64::from(report.redirects)),
                    (Figure::FastPathSprung, bits(&report.sprung)),
                    (Figure::FastPathUntried, bits(&report.untried)),
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
                both: read_both(board),
                report: Report {
                    redirects: board.get(Figure::FastPathRedirects) != 0,
                    sprung: names(board.get(Figure::FastPathSprung)),
                    untried: names(board.get(Figure::FastPathUntried)),
                    took: Duration::ZERO,
                },
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
                let stays = if *on { "on" } else { "off" };
                Err(format!(
                    "the fast path stays {stays}; the sidecar's log says why, unless somebody else has switched it meanwhile"
                ))
            }
            Self::Off | Self::Starting | Self::Absent(_) => Ok(()),
        }
    }
}

fn write_both(board: &Board, found: Option<&Both>) {
    let Some(Both { report, loses_unread }) = found else { return board.set(Figure::FastPathBoth, 0) };
    let bit = |is, bit| if is { bit } else { 0 };
    let found = both::PROBED | bit(report.redirects, both::REDIRECTS) | bit(*loses_unread, both::LOSES_UNREAD);
    board.set(Figure::FastPathBoth, found);
    board.set(Figure::FastPathBothSprung, bits(&report.sprung));
    board.set(Figure::FastPathBothUntried, bits(&report.untried));
}

fn read_both(board: &BoardReader) -> Option<Both> {
    let found = board.get(Figure::FastPathBoth);
    let report = Report {
        redirects: found & both::REDIRECTS != 0,
        sprung: names(board.get(Figure::FastPathBothSprung)),
        untried: names(board.get(Figure::FastPathBothUntried)),
        took: Duration::ZERO,
    };
    (found & both::PROBED != 0).then_some(Both { report, loses_unread: found & both::LOSES_UNREAD != 0 })
}

/// A bit for each of these traps.
fn bits(traps: &[String]) -> u64 {
    let at = |name: &String| TRAPS.iter().position(|trap| trap == name);
    traps.iter().filter_map(at).fold(0, |bits, at| bits | 1 << at)
}

/// The traps of these bits.
fn names(bits: u64) -> Vec<String> {
    let set = TRAPS.iter().enumerate().filter(|(at, _)| bits & 1 << at != 0);
    set.map(|(_, name)| (*name).to_owned()).collect()
}

#[cfg(test)]
mod tests;
