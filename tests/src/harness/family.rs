//! A process and its children: the sidecar is two, a supervisor and its worker.

use std::{fs, os::fd::AsFd, time::Duration};

use anyhow::{Result, bail};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::Pid,
};

use super::process::pidfd_open;

/// The children of a process that live, the oldest first. Their numbers do not say: they begin anew after `kernel.pid_max`.
pub fn children(parent: Pid) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok());
    let lives = numbers.filter_map(|number| Some((Life::of(number)?, number)));
    let mut children: Vec<_> = lives.filter(|(life, _)| life.parent == parent.as_raw()).collect();
    children.sort_by_key(|(life, _)| life.start);
    children.into_iter().map(|(_, number)| Pid::from_raw(number)).collect()
}

struct Life {
    parent: i32,
    /// Clock ticks after the boot.
    start: u64,
}

impl Life {
    /// From the fields after the name, which stands in parentheses and may hold anything; none of a process that has ended.
    /// Source: `proc_pid_stat(5)`.
    fn of(number: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
        let fields: Vec<_> = stat.rsplit_once(") ")?.1.split(' ').collect();
        let field = |number: usize| fields.get(number - 3);
        let lives = *field(3)? != "Z";
        lives.then_some(Self { parent: field(4)?.parse().ok()?, start: field(22)?.parse().ok()? })
    }
}

/// Waits for the end of a process that is nobody's child here.
pub(super) fn wait_for_end(process: Pid, limit: Duration) -> Result<()> {
    // One that is gone has ended.
    let Ok(pidfd) = pidfd_open(process) else { return Ok(()) };
    if poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::try_from(limit)?)? == 0 {
        bail!("process {process} still runs after {limit:?}");
    }
    Ok(())
}
