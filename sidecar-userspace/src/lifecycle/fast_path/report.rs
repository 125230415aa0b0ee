//! What a probe finds.

use std::time::Duration;

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
    /// Names of the traps that say nothing: what they are played on did not get onto the fast path, or they did not end in time.
    pub untried: Vec<String>,
    /// How long it took; zero when it was remembered from before in this boot.
    pub took: Duration,
}

impl Report {
    /// Whether nothing observable changes.
    pub fn is_clean(&self) -> bool {
        self.redirects && self.sprung.is_empty() && self.untried.is_empty()
    }

    /// For people: what `acceleration: auto` makes of it.
    pub fn verdict(&self) -> String {
        let all = TRAPS.len();
        if self.untried.len() == all && !self.redirects {
            return "none of the probe's connections could be enrolled".to_owned();
        }
        let mut words = Vec::new();
        if !self.redirects {
            words.push("this kernel does not redirect".to_owned());
        } else if !self.sprung.is_empty() {
            words.push(format!("an application would see a difference: {}", self.sprung.join(", ")));
        }
        if !self.untried.is_empty() {
            words.push(format!(
                "not tried, for their connections could not be enrolled or they did not end in time: {}",
                self.untried.join(", ")
            ));
        }
        if words.is_empty() {
            format!("none of {all} traps changes anything an application sees")
        } else {
            words.join("; ")
        }
    }
}

/// What the probe found of both directions, in which nothing is carried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Both {
    /// What the traps showed.
    pub report: Report,
    /// What an application has not read is lost when its end leaves the fast path.
    pub loses_unread: bool,
}

impl Both {
    /// Whether nothing observable changes.
    pub fn is_clean(&self) -> bool {
        self.report.is_clean() && !self.loses_unread
    }

    /// For people.
    pub fn verdict(&self) -> String {
        let Report { redirects, sprung, untried, .. } = &self.report;
        if !redirects {
            return "never used; this kernel does not redirect so".to_owned();
        }
        let (count, names) = match sprung.as_slice() {
            [] => ("none".to_owned(), String::new()),
            sprung => (sprung.len().to_string(), format!(": {}", sprung.join(", "))),
        };
        let untried = if untried.is_empty() { String::new() } else { format!("; not tried: {}", untried.join(", ")) };
        let lost = if self.loses_unread { "; what is unread is lost when it is switched off" } else { "" };
        let used = if self.is_clean() { "not implemented for traffic" } else { "never used" };
        format!("a difference in {count} of {} traps{names}{untried}{lost}; {used}", TRAPS.len())
    }
}
