//! `sidecar upgrade`: has a new binary take the place of the one that runs in this pod.

use std::{
    fmt::Write as _,
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use super::{
    answer::{DONE, FAILED, fail, say},
    config::SourceArgs,
    drain::socket,
};
use crate::{
    config::Config,
    supervisor::{self, Done, Facts, MOST_PATIENCE, Outcome, Wanted},
};

/// Arguments of `sidecar upgrade`.
#[derive(Clone, Debug, clap::Args)]
pub struct UpgradeArgs {
    /// The configuration of the sidecar that is to be upgraded: where its admin socket is, and its network namespace.
    #[command(flatten)]
    pub sources: SourceArgs,
    /// The new binary, as the sidecar sees the file; without it, what lies by now where the sidecar was started from.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Seconds that the new worker may take until it serves, its identity included: 1 to 3600.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=MOST_PATIENCE.as_secs()))]
    timeout: u64,
}

/// Asks, waits, and says what became of it: exit code 0 if the new binary runs, else 1.
pub fn run(args: &UpgradeArgs, config: &Config) -> ExitCode {
    let asked = socket(config).and_then(|socket| {
        let binary = args.binary.as_deref().map(absolute).transpose()?;
        let wanted = Wanted { binary, patience: Duration::from_secs(args.timeout) };
        supervisor::ask(&socket, &wanted).map_err(|error| nobody(&socket, &error))
    });
    match asked {
        Ok(outcome) if outcome.result == Done::Upgraded => say(&describe(&outcome), DONE, FAILED),
        Ok(outcome) => fail(describe(&outcome).trim_end(), FAILED),
        Err(error) => fail(error, FAILED),
    }
}

/// What this binary must agree on with one whose place it takes.
pub fn tell_facts() -> ExitCode {
    match serde_json::to_string(&Facts::ours()) {
        Ok(facts) => say(&(facts + "\n"), DONE, FAILED),
        Err(error) => fail(error, FAILED),
    }
}

fn absolute(path: &Path) -> Result<PathBuf, String> {
    std::path::absolute(path).map_err(|error| format!("--binary {}: {error}", path.display()))
}

fn nobody(socket: &Path, error: &io::Error) -> String {
    let why = match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            return format!(
                "the sidecar at {} has not said what became of the upgrade; sidecar_upgrades_total and its log do",
                socket.display()
            );
        }
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            "; only root and the user of the sidecar may ask, from its own container (kubectl exec) or from outside the pod, and \
             where the sidecar sees their PID; its log says why not"
        }
        _ => {
            "; is one running in this pod? Say which: run this in the pod's network namespace (nsenter --net=…, kubectl exec), \
             give --config FILE, or --set telemetry.admin_socket=PATH"
        }
    };
    format!("no sidecar answers at {}.upgrade: {error}{why}", socket.display())
}

fn describe(outcome: &Outcome) -> String {
    let Outcome { result, reason, process, before, after, steps, draining } = outcome;
    let reason = reason.as_deref().unwrap_or("no reason was given");
    let mut text = match result {
        Done::Upgraded => {
            format!(
                "upgraded from {before} to {} in process {process}\n",
                after.as_deref().unwrap_or("an unknown version")
            )
        }
        Done::Refused => format!("no upgrade, everything is as it was: {reason}\n"),
        Done::RolledBack => {
            format!("no upgrade, {before} goes on in process {process} with all that was open: {reason}\n")
        }
    };
    for (step, micros) in steps {
        let _ = writeln!(text, "{:>9.1} ms  {step}", *micros as f64 / 1e3);
    }
    if let Some((open, left)) = draining {
        let _ = writeln!(
            text,
            "{open} connections go on in a worker that takes no more, for at most {:.0} s",
            left.as_secs_f64()
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_tells_versions_steps_and_what_still_drains() {
        let outcome = Outcome {
            result: Done::Upgraded,
            reason: None,
            process: 7,
            before: "1.0.0".to_owned(),
            after: Some("1.1.0".to_owned()),
            steps: vec![("asked".to_owned(), 1_500), ("serves".to_owned(), 20_000)],
            draining: Some((3, Duration::from_secs(30))),
        };
        assert_eq!(
            describe(&outcome),
            "upgraded from 1.0.0 to 1.1.0 in process 7\n      1.5 ms  asked\n     20.0 ms  serves\n3 connections go on in a worker \
             that takes no more, for at most 30 s\n"
        );
        let refused =
            Outcome { result: Done::Refused, reason: Some("no".to_owned()), steps: vec![], draining: None, ..outcome };
        assert_eq!(describe(&refused), "no upgrade, everything is as it was: no\n");
    }
}
