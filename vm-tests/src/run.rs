//! Running one binary of the suite.

use crate::plan::{Binary, Plan};
use anyhow::Context as _;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::process::{Command, Stdio};
use std::time::Instant;

/// Runs `binary` to its end, with the console as its output, and says on the console how it went.
pub(crate) fn run(binary: &Binary, plan: &Plan) -> anyhow::Result<bool> {
    println!("vm-tests: running {}", binary.name);
    let started = Instant::now();
    let child = Command::new(&binary.path)
        .args(&binary.args)
        .current_dir(&binary.directory)
        .env_clear()
        .envs(&plan.env)
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("start {}", binary.path.display()))?;
    let status = reap_until(Pid::from_raw(child.id().cast_signed()))?;
    end_leftovers()?;

    let seconds = started.elapsed().as_secs_f32();
    // A binary that died may have left the console in the middle of a line.
    println!();
    match status {
        WaitStatus::Exited(_, code) => println!("vm-tests: {}: exit {code} after {seconds:.1} s", binary.name),
        other => println!("vm-tests: {}: {other:?} after {seconds:.1} s", binary.name),
    }
    Ok(matches!(status, WaitStatus::Exited(_, 0)))
}

/// Waits for `child`, and meanwhile for every orphan: PID 1 is their parent.
fn reap_until(child: Pid) -> anyhow::Result<WaitStatus> {
    loop {
        let status = waitpid(None, None).context("wait for a child")?;
        if status.pid() == Some(child) {
            return Ok(status);
        }
    }
}

/// Ends what the binary left behind, so that the next one starts in an empty machine.
fn end_leftovers() -> anyhow::Result<()> {
    // -1 is every process but PID 1.
    match kill(Pid::from_raw(-1), Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => return Err(error).context("end the processes that are left"),
    }
    loop {
        match waitpid(None, None) {
            Ok(_) => {}
            Err(Errno::ECHILD) => return Ok(()),
            Err(error) => return Err(error).context("wait for the processes that are left"),
        }
    }
}
