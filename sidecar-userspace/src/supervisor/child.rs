//! A child process by its number: one that this process has started, or that it had when it ran another binary.

use std::{io, os::unix::process::ExitStatusExt, process::ExitStatus};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

/// A child. Until its end was waited for, nobody else has its number.
#[derive(Debug)]
pub(super) struct Child {
    pid: Pid,
    ended: Option<ExitStatus>,
}

impl Child {
    /// The child of this number.
    pub(super) fn of(pid: u32) -> Self {
        Self { pid: Pid::from_raw(pid.cast_signed()), ended: None }
    }

    pub(super) fn id(&self) -> u32 {
        self.pid.as_raw().cast_unsigned()
    }

    /// How it ended, if it has.
    pub(super) fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.wait_with(WaitPidFlag::WNOHANG)
    }

    /// Waits for its end.
    pub(super) fn wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.wait_with(WaitPidFlag::empty())
    }

    /// Ends it at once; one that has ended already is left alone.
    pub(super) fn kill(&mut self) -> io::Result<()> {
        if self.ended.is_some() {
            return Ok(());
        }
        Ok(kill(self.pid, Signal::SIGKILL)?)
    }

    fn wait_with(&mut self, flags: WaitPidFlag) -> io::Result<Option<ExitStatus>> {
        while self.ended.is_none() {
            self.ended = match waitpid(self.pid, Some(flags)) {
                Err(Errno::EINTR) => continue,
                // The word of wait(2): the code in its second byte, the signal in its first.
                Ok(WaitStatus::Exited(_, code)) => Some(ExitStatus::from_raw(code << 8)),
                Ok(WaitStatus::Signaled(_, signal, dumped)) => {
                    Some(ExitStatus::from_raw(signal as i32 | if dumped { 0x80 } else { 0 }))
                }
                Ok(_) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            };
        }
        Ok(self.ended)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_end_of_a_child_is_told_by_its_number() {
        let mut exits = Child::of(Command::new("sh").args(["-c", "exit 7"]).spawn().unwrap().id());
        assert_eq!(exits.wait().unwrap().unwrap().code(), Some(7));
        assert_eq!(exits.try_wait().unwrap().unwrap().code(), Some(7), "its number is not asked for again");
        let mut runs = Child::of(Command::new("sleep").arg("1000").spawn().unwrap().id());
        assert_eq!(runs.try_wait().unwrap(), None);
        runs.kill().unwrap();
        assert_eq!(runs.wait().unwrap().unwrap().signal(), Some(9));
        runs.kill().unwrap();
    }
}
