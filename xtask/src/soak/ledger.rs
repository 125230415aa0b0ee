//! The outcome of every request and of every exchange on a stream.

use crate::load::steady::{Kind, Outcome};
use anyhow::{Context, Result};
use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::PathBuf,
};

/// What the load has written so far.
pub(crate) struct Ledger {
    path: PathBuf,
    read: u64,
    pub(crate) outcomes: Vec<Outcome>,
}

impl Ledger {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, read: 0, outcomes: Vec::new() }
    }

    /// Reads what was added.
    pub(crate) fn read(&mut self) -> Result<&Self> {
        let failed = || format!("cannot read {}", self.path.display());
        let mut file = File::open(&self.path).with_context(failed)?;
        file.seek(SeekFrom::Start(self.read)).with_context(failed)?;
        let mut text = String::new();
        file.read_to_string(&mut text).with_context(failed)?;
        // The last line may be without its end.
        let whole = text.rfind('\n').map_or(0, |at| at + 1);
        self.outcomes.extend(text[..whole].split_inclusive('\n').filter_map(Outcome::parse));
        self.read += whole as u64;
        Ok(self)
    }

    /// When the first request was answered of those that were due since then.
    pub(crate) fn answered_since(&self, since: u64) -> Option<u64> {
        let answered = |outcome: &&Outcome| outcome.kind == Kind::Request && outcome.served() && outcome.due >= since;
        self.outcomes.iter().rev().take_while(|outcome| outcome.end >= since).filter(answered).map(|o| o.end).min()
    }
}
