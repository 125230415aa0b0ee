//! What a binary says of itself before it may take the place of another one.

use std::{
    io::{self, PipeReader, PipeWriter, Read, Write as _},
    os::fd::{AsFd, BorrowedFd},
    process::{Child, Command, ExitStatus, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use serde::{Deserialize, Serialize};
use sidecar_common::layout::LAYOUT;

use super::state;
use crate::{control, redirect::missing_capabilities};

/// The subcommand that prints them.
pub const COMMAND: &str = "handover-facts";

/// A cold binary on a loaded machine takes a second.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes that are read of what it prints.
const MOST: u64 = 16 * 1024;

/// What two binaries must agree on. Later versions may say more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Of the binary, for people.
    pub version: String,
    /// Of the language of supervisor and worker ([`control::VERSION`]).
    pub language: u64,
    /// Of what one supervisor hands to the next.
    pub state: u64,
    /// Of the eBPF maps ([`LAYOUT`]).
    pub layout: u64,
    /// Capabilities that it needs to load its programs, and would not have: they depend on its file, and it is asked as what the
    /// supervisor will be.
    #[serde(default)]
    pub lacks: Vec<String>,
}

impl Facts {
    /// Those of this binary.
    pub fn ours() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            language: control::VERSION.into(),
            state: state::VERSION.into(),
            layout: LAYOUT.into(),
            lacks: missing_capabilities().into_iter().map(str::to_owned).collect(),
        }
    }

    /// Why a binary of these facts cannot take over what one of ours has; `None`: it can.
    pub(super) fn refuse(&self, new: &Self) -> Option<String> {
        let differs = |what, ours: u64, theirs: u64| {
            (ours != theirs).then(|| {
                format!(
                    "its {what} is of version {theirs} (sidecar {}), and that of the running sidecar of version {ours} (sidecar {}): \
                     what runs is never reinterpreted; end the sidecar and start the new one",
                    new.version, self.version
                )
            })
        };
        differs("layout of eBPF maps", self.layout, new.layout)
            .or_else(|| differs("state of supervisors", self.state, new.state))
            .or_else(|| differs("language of supervisor and worker", self.language, new.language))
            .or_else(|| self.refuse_less(new))
    }

    /// One that may not load programs would go on with those of the binary before, and with nothing else than they can. One of ours
    /// that may not either has them from `sidecar init`.
    fn refuse_less(&self, new: &Self) -> Option<String> {
        let lost: Vec<&str> =
            new.lacks.iter().map(String::as_str).filter(|lost| !self.lacks.iter().any(|lacks| lacks == lost)).collect();
        (!lost.is_empty()).then(|| {
            format!(
                "it would run without {}, which the running sidecar has: capabilities of a file do not pass to another. Give it those \
                 that `getcap` shows for the file that runs: `setcap cap_bpf,cap_net_admin,cap_perfmon,cap_sys_admin+ep FILE`, on a \
                 file system that is not mounted nosuid",
                lost.join(", ")
            )
        })
    }
}

/// A binary that was asked. It is listened to on a thread of its own: one that does not answer must not keep the supervisor from
/// anything. It ends when this is dropped.
pub(in crate::supervisor) struct Asking {
    child: Child,
    thread: Option<JoinHandle<io::Result<Vec<u8>>>>,
    done: PipeReader,
}

impl Asking {
    pub(super) fn begin(program: Command) -> Result<Self, String> {
        let pipe = || io::pipe().map_err(|error| format!("the kernel gives no pipe: {error}"));
        let ((done, mut tell), (reader, writer)) = (pipe()?, pipe()?);
        let child = start(program, writer).map_err(|error| format!("it cannot be started: {error}"))?;
        let mut asking = Self { child, thread: None, done };
        let listen = move || {
            let said = listen(&reader, Instant::now() + PATIENCE);
            // Whoever asked may be gone; closing it tells the same.
            let _ = tell.write_all(b".");
            said
        };
        let thread = thread::Builder::new().name("facts".to_owned()).stack_size(256 * 1024).spawn(listen);
        asking.thread = Some(thread.map_err(|error| format!("the kernel gives no thread: {error}"))?);
        Ok(asking)
    }

    /// Becomes readable when there is an answer.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.done.as_fd()
    }

    pub(super) fn is_done(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// The answer, or why there is none. Waits for it.
    pub(super) fn answer(mut self) -> Result<Facts, String> {
        let said = self.thread.take().map(JoinHandle::join);
        let status = self.end().map_err(|error| format!("wait for it: {error}"))?;
        let said = match said {
            Some(Ok(said)) => said.map_err(|error| format!("it does not answer `{COMMAND}`: {error}"))?,
            _ => return Err("listening to it panicked; please report".to_owned()),
        };
        serde_json::from_slice(&said).map_err(|_| {
            let said = String::from_utf8_lossy(&said);
            let first: String = said.lines().next().unwrap_or_default().chars().take(200).collect();
            format!("it is no sidecar that can take over: asked for `{COMMAND}` it said `{first}` ({status})")
        })
    }
}

impl Asking {
    /// It has nothing more to say: ends it, but lets it tell first how it ends by itself.
    fn end(&mut self) -> io::Result<ExitStatus> {
        const A_MOMENT: Duration = Duration::from_millis(2);
        for _ in 0..50 {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(A_MOMENT);
        }
        let _ = self.child.kill();
        self.child.wait()
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What it says on either output comes through one pipe.
fn start(mut command: Command, writer: PipeWriter) -> io::Result<Child> {
    command.arg(COMMAND).stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    command.spawn()
}

fn listen(reader: &PipeReader, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut said = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(reader.as_fd(), PollFlags::POLLIN)], timeout) {
            Err(Errno::EINTR) => continue,
            Ok(0) => return Err(io::Error::new(io::ErrorKind::TimedOut, format!("nothing for {PATIENCE:?}"))),
            polled => polled?,
        };
        let mut part = [0; 4096];
        let read = (&*reader).read(&mut part)?;
        if read == 0 || said.len() as u64 > MOST {
            return Ok(said);
        }
        said.extend_from_slice(&part[..read]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_of_another_layout_state_or_language_is_refused_and_the_reason_names_both() {
        let ours = Facts { version: "1.0.0".to_owned(), language: 2, state: 3, layout: 4, lacks: vec![] };
        let new =
            |language, state, layout| Facts { version: "1.1.0".to_owned(), language, state, layout, lacks: vec![] };
        assert_eq!(ours.refuse(&new(2, 3, 4)), None);
        for (theirs, what, versions) in [
            (new(2, 3, 5), "layout of eBPF maps", [5, 4]),
            (new(2, 2, 4), "state of supervisors", [2, 3]),
            (new(1, 3, 4), "language of supervisor and worker", [1, 2]),
        ] {
            let reason = ours.refuse(&theirs).unwrap();
            let [new, old] = versions.map(|version| format!("of version {version}"));
            let place = |words: &str| reason.find(words).unwrap_or_else(|| panic!("no {words}: {reason}"));
            assert!(place(what) < place(&new) && place(&new) < place("1.1.0"), "{reason}");
            assert!(place(&old) < place("1.0.0"), "{reason}");
        }
    }

    #[test]
    fn a_binary_may_lack_the_capabilities_that_ours_lacks_and_no_other() {
        let facts =
            |lacks: &[&str]| Facts { lacks: lacks.iter().map(|lacks| (*lacks).to_owned()).collect(), ..Facts::ours() };
        for (ours, new, lost) in [
            (&["CAP_BPF", "CAP_PERFMON"][..], &["CAP_BPF", "CAP_PERFMON"][..], None),
            (&["CAP_BPF"], &[], None),
            (&["CAP_BPF"], &["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"], Some("CAP_NET_ADMIN, CAP_PERFMON, which")),
        ] {
            let reason = facts(ours).refuse(&facts(new));
            assert_eq!(reason.is_some(), lost.is_some(), "{reason:?}");
            assert!(lost.is_none_or(|lost| reason.unwrap().contains(&format!("without {lost}"))));
        }
    }

    #[test]
    fn later_versions_may_say_more_but_not_less() {
        let more: Facts =
            serde_json::from_str(r#"{"version":"9","language":2,"state":1,"layout":1,"moon":"full"}"#).unwrap();
        assert_eq!(more.version, "9");
        assert!(serde_json::from_str::<Facts>(r#"{"version":"9","language":2,"state":1}"#).is_err());
    }

    #[test]
    fn what_is_no_sidecar_is_told_by_what_it_says() {
        let said = |program: &str| Asking::begin(Command::new(program)).and_then(Asking::answer).unwrap_err();
        assert!(
            said("/bin/echo")
                .contains("no sidecar that can take over: asked for `handover-facts` it said `handover-facts`")
        );
        assert!(said("/bin/false").contains("exit status: 1"), "{}", said("/bin/false"));
        assert!(said("/etc/passwd").contains("cannot be started"));
    }
}
