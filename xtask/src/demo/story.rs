//! What the person at the terminal reads, and the checks that decide the exit code.

use anyhow::{Error, Result, bail};
use std::{
    io::{IsTerminal, stdout},
    time::Instant,
};

/// The story so far.
pub(super) struct Story {
    begin: Instant,
    colour: bool,
    checks: Vec<(bool, String)>,
}

const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "31";
const GREEN: &str = "32";

impl Story {
    /// Starts the clock.
    pub(super) fn begin() -> Self {
        let colour = stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { begin: Instant::now(), colour, checks: Vec::new() }
    }

    /// A new part begins.
    pub(super) fn chapter(&self, title: &str) {
        println!("\n{}  {}", self.time(), self.paint(BOLD, title));
    }

    /// Something happened.
    pub(super) fn say(&self, text: impl AsRef<str>) {
        println!("{}    {}", self.time(), text.as_ref());
    }

    /// What a program said, as it said it.
    pub(super) fn show(&self, text: &str) {
        for line in text.lines() {
            println!("{:8}      {}", "", self.paint(DIM, line));
        }
    }

    /// A claim and whether it held.
    pub(super) fn check(&mut self, held: bool, claim: impl Into<String>) {
        let claim = claim.into();
        println!("{}    {}", self.time(), self.verdict(held, &claim));
        self.checks.push((held, claim));
    }

    /// Something that had to be shown could not be.
    pub(super) fn broke_off(&mut self, error: &Error) {
        let text = format!("{error:#}");
        let (fault, rest) = text.split_once('\n').unwrap_or((&text, ""));
        self.check(false, format!("broken off: {fault}"));
        self.show(rest.trim());
    }

    /// Says what held; fails when something did not.
    pub(super) fn end(self) -> Result<()> {
        self.chapter("What held");
        for (held, claim) in &self.checks {
            println!("{:8}    {}", "", self.verdict(*held, claim));
        }
        let (all, failed) = (self.checks.len(), self.checks.iter().filter(|(held, _)| !held).count());
        println!();
        if failed > 0 {
            bail!("{failed} of {all} checks failed");
        }
        println!("{}", self.paint(GREEN, &format!("Everything held: {all} checks.")));
        Ok(())
    }

    fn time(&self) -> String {
        format!("{:7.2}s", self.begin.elapsed().as_secs_f64())
    }

    fn verdict(&self, held: bool, claim: &str) -> String {
        format!("{} {claim}", if held { self.paint(GREEN, "✓") } else { self.paint(RED, "✗") })
    }

    fn paint(&self, style: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{style}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
