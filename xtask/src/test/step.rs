//! A program that runs tests: shown as it runs, its verdict lines counted.

use std::{
    io::{BufRead, BufReader},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::mpsc::{Sender, channel},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::Tally;
use crate::process;

/// How long lines written before the exit may be on their way.
const LAST_LINES: Duration = Duration::from_secs(1);

enum Event {
    Line(String),
    Exit(std::io::Result<ExitStatus>),
}

/// Runs a program to its end, shows its stdout and counts the verdict lines in it.
///
/// The end is the program's exit, not the end of its output: a daemon that a broken test left behind would hold the
/// pipe open for ever.
///
/// # Errors
/// When it cannot be started or ends without success.
pub(super) fn counted(command: &mut Command, tally: &mut Tally) -> Result<()> {
    let started = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child = started.with_context(|| format!("cannot start `{}`", process::line(command)))?;
    let stdout = child.stdout.take().context("the program has no stdout")?;
    let (events, received) = channel();
    let lines = events.clone();
    thread::spawn(move || read(stdout, &lines));
    thread::spawn(move || wait(child, &events));
    let mut exit = None;
    loop {
        let event = if exit.is_none() { received.recv().ok() } else { received.recv_timeout(LAST_LINES).ok() };
        match event {
            Some(Event::Line(line)) => {
                println!("{line}");
                tally.count(&line);
            }
            Some(Event::Exit(status)) => exit = Some(status),
            None => break,
        }
    }
    let status = exit.context("the program's exit was not seen")?.context("cannot wait for the program")?;
    if !status.success() {
        bail!("`{}` failed: {status}", process::line(command));
    }
    Ok(())
}

fn read(stdout: ChildStdout, events: &Sender<Event>) {
    let mut reader = BufReader::new(stdout);
    let mut line = Vec::new();
    // What a test prints need not be UTF-8.
    while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        let text = String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned();
        if events.send(Event::Line(text)).is_err() {
            return;
        }
        line.clear();
    }
}

fn wait(mut child: Child, events: &Sender<Event>) {
    // A send fails only when nobody waits for the answer any more.
    let _ = events.send(Event::Exit(child.wait()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_a_program_says_even_when_a_daemon_keeps_its_output_open() {
        let mut tally = Tally::default();
        let said = "echo 'test result: ok. 3 passed; 0 failed; 0 ignored'";
        let mut shell = Command::new("sh");
        // The daemon ends by itself; were its end awaited, this test would take a minute.
        shell.args(["-c", &format!("{said}; sleep 60 & echo $! >&2")]).stderr(Stdio::null());
        let start = std::time::Instant::now();
        counted(&mut shell, &mut tally).expect("success");
        assert!(start.elapsed() < Duration::from_secs(30));
        assert_eq!(tally.to_string(), "3 passed, 0 failed");
    }

    #[test]
    fn a_program_that_fails_is_an_error_whatever_it_said() {
        let mut tally = Tally::default();
        let mut shell = Command::new("sh");
        shell.args(["-c", "echo 'test result: FAILED. 1 passed; 2 failed'; exit 3"]);
        assert!(counted(&mut shell, &mut tally).is_err());
        assert_eq!(tally.to_string(), "1 passed, 2 failed");
    }
}
