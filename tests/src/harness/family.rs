//! A process and its children: the sidecar is two, a supervisor and its worker.

use std::{fs, os::fd::AsFd, time::Duration};

use anyhow::{Result, bail};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::Pid,
};

use super::process::pidfd_open;

/// The children of a process that live.
pub fn children(parent: Pid) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok());
    numbers.filter(|number| parent_of(*number) == Some(parent.as_raw())).map(Pid::from_raw).collect()
}

/// The second field after the name, which stands in parentheses and may hold anything; none of a process that has ended.
fn parent_of(number: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    fields.next()?.parse().ok().filter(|_| state != "Z")
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
