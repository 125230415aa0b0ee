//! A child process by its number: one that this process has started, or that it had when it ran another binary.

use std::{io, os::unix::process::ExitStatusExt, process::ExitStatus};

use nix::{
    sys::{
        signal::{Signal, kill},
        wait::WaitPidFlag,
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
        if self.ended.is_none() {
            self.ended = wait(self.pid, flags)?.filter(|status| status.code().or(status.signal()).is_some());
        }
        Ok(self.ended)
    }
}

/// The word of wait(2) of a process; `None`: it has none. As the kernel gives it: one that names its signals knows no real-time ones.
pub(super) fn wait(pid: Pid, flags: WaitPidFlag) -> io::Result<Option<ExitStatus>> {
    let mut word = 0;
    loop {
        // SAFETY: the kernel writes one word, and `word` lives through the call.
        match unsafe { libc::waitpid(pid.as_raw(), &raw mut word, flags.bits()) } {
            0 => return Ok(None),
            -1 => match io::Error::last_os_error() {
                interrupted if interrupted.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
            _ => return Ok(Some(ExitStatus::from_raw(word))),
        }
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

    #[test]
    fn the_end_by_a_real_time_signal_is_one_like_any_other() {
        let mut runs = Child::of(Command::new("sleep").arg("1000").spawn().unwrap().id());
        // SAFETY: kill(2) takes no pointers.
        assert_eq!(unsafe { libc::kill(runs.pid.as_raw(), libc::SIGRTMIN() + 3) }, 0);
        assert_eq!(runs.wait().unwrap().unwrap().signal(), Some(libc::SIGRTMIN() + 3));
    }
}
