//! How commands answer: text on standard output, what went wrong on standard error, and an exit code.

use std::{
    fmt::Display,
    io::{self, Write},
    process::ExitCode,
};

/// Exit code: it was done, or the answer is yes.
pub(super) const DONE: u8 = 0;
/// Exit code: it failed, or the answer is no.
pub(super) const FAILED: u8 = 1;
/// Exit code: the configuration or the usage is wrong.
pub(super) const MISCONFIGURED: u8 = 2;

/// Formats of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Writes the answer and ends with `code`; with `unwritten` if that fails.
pub(super) fn say(text: &str, code: u8, unwritten: u8) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::from(code),
        Err(error) => fail(format_args!("cannot write to standard output: {error}"), unwritten),
    }
}

/// Says what went wrong and ends with `code`.
pub(super) fn fail(error: impl Display, code: u8) -> ExitCode {
    eprintln!("sidecar: {error}");
    ExitCode::from(code)
}

/// Tells the faults of a configuration, each on a line that begins with its place, as compilers do.
pub(super) fn faulty(faults: &crate::config::Faults) -> ExitCode {
    eprintln!("{faults}");
    ExitCode::from(MISCONFIGURED)
}
