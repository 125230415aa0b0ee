//! Who may ask for an upgrade: root and the sidecar's user, but neither its workers nor the application, which may be of the same user.

use std::{
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        getsockopt,
        sockopt::{PeerCredentials, PeerPidfd},
    },
    unistd::geteuid,
};

/// Who has connected.
pub(super) struct Peer {
    uid: u32,
    /// 0: it is in a PID namespace that this process does not see.
    pid: u32,
    /// The process, whoever has its number by now; `None`: the kernel does not give it (before 6.5).
    process: Option<OwnedFd>,
}

/// Who may not ask.
pub(super) struct Strangers<'a> {
    /// Those of the workers, of which none was reaped since the peers were looked at last.
    pub(super) workers: &'a [u32],
    /// Whether a process is the application's.
    pub(super) is_application: &'a dyn Fn(u32) -> io::Result<bool>,
}

impl Peer {
    pub(super) fn of(client: &UnixStream) -> io::Result<Self> {
        let credentials = getsockopt(client, PeerCredentials)?;
        let process = match getsockopt(client, PeerPidfd) {
            Err(Errno::ENOPROTOOPT) => None,
            // It is gone already.
            process => Some(process?),
        };
        Ok(Self { uid: credentials.uid(), pid: credentials.pid().cast_unsigned(), process })
    }

    /// Why it may not ask; `None`: it may. The file's mode keeps others out, but for those who had it open.
    pub(super) fn refuse(&self, strangers: &Strangers<'_>) -> Option<&'static str> {
        if self.uid != 0 && self.uid != geteuid().as_raw() {
            return Some("it is of another user");
        }
        if self.pid == 0 {
            return Some("it is in a PID namespace that the sidecar does not see");
        }
        if strangers.workers.contains(&self.pid) {
            return Some("it is a worker");
        }
        match (strangers.is_application)(self.pid) {
            Ok(false) => {}
            Ok(true) => return Some("it is in the pod, and not in the sidecar's cgroup"),
            Err(_) => return Some("the pod's cgroup cannot be read"),
        }
        // At last: what was found above was found of this process, and of no other with its number.
        (!self.lives()).then_some("it has ended, and whoever asks waits for the answer")
    }

    fn lives(&self) -> bool {
        let ended = self.process.as_ref().is_some_and(|process| {
            let mut polled = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
            poll(&mut polled, PollTimeout::ZERO) != Ok(0)
        });
        !ended && lives(self.pid)
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} of user {}", self.pid, self.uid)
    }
}

/// By its state in /proc/PID/stat, which comes after its name in brackets (proc_pid_stat(5)). A dead one that nobody has waited for
/// does not live.
fn lives(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

#[cfg(test)]
mod tests {
    use std::{
        process::{Command, Stdio},
        thread,
        time::Duration,
    };

    use super::*;

    #[test]
    fn workers_applications_and_those_that_cannot_be_seen_may_not_ask() {
        let (client, _other) = UnixStream::pair().unwrap();
        let (peer, us) = (Peer::of(&client).unwrap(), std::process::id());
        let refused = |workers: &[u32], is_application: &dyn Fn(u32) -> io::Result<bool>| {
            peer.refuse(&Strangers { workers, is_application })
        };
        assert_eq!(refused(&[], &|_| Ok(false)), None);
        assert_eq!(refused(&[us], &|_| Ok(false)), Some("it is a worker"));
        assert!(refused(&[], &|pid| Ok(pid == us)).is_some());
        assert!(refused(&[], &|_| Err(io::ErrorKind::NotFound.into())).is_some());
        let unseen = Peer { pid: 0, ..peer };
        assert!(unseen.refuse(&Strangers { workers: &[], is_application: &|_| Ok(false) }).is_some());
    }

    #[test]
    fn one_that_has_ended_may_not_ask_whether_it_was_waited_for_or_not() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        assert!(lives(child.id()));
        drop(child.stdin.take());
        while lives(child.id()) {
            thread::sleep(Duration::from_millis(1));
        }
        let pid = child.id();
        child.wait().unwrap();
        assert!(!lives(pid));
    }
}
