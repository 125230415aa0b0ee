//! `policy-rc.d`: the file by which a Debian machine forbids packages to start their daemons.

use std::{
    fs::{self, Permissions},
    io::ErrorKind,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

const FILE: &str = "/usr/sbin/policy-rc.d";

/// 101 is "action forbidden by policy" in invoke-rc.d(8).
const FORBID: &str =
    "#!/bin/sh\n# Written by `cargo xtask setup` while it installs packages; safe to remove.\nexit 101\n";

/// While this lives no package starts a daemon; the machine's own policy comes back when it is dropped.
pub(super) struct Policy {
    file: PathBuf,
    saved: PathBuf,
    ours: bool,
}

/// Forbids packages to start daemons.
///
/// # Errors
/// When the policy file cannot be written.
pub(super) fn start_no_daemons() -> Result<Policy> {
    forbid(Path::new(FILE))
}

fn forbid(file: &Path) -> Result<Policy> {
    let mut policy = Policy { file: file.into(), saved: file.with_extension("d.before-xtask"), ours: false };
    policy.clear_leftovers()?;
    if policy.forbids_already() {
        return Ok(policy);
    }
    let fresh = file.with_extension("d.xtask-new");
    fs::write(&fresh, FORBID).with_context(|| format!("cannot write {}", fresh.display()))?;
    fs::set_permissions(&fresh, Permissions::from_mode(0o755)).context("cannot make policy-rc.d executable")?;
    policy.ours = true;
    rename_if_there(file, &policy.saved)?;
    fs::rename(&fresh, file).with_context(|| format!("cannot put {} in place", file.display()))?;
    Ok(policy)
}

impl Policy {
    /// What a run that was killed left: its policy goes, the machine's comes back.
    fn clear_leftovers(&self) -> Result<()> {
        if fs::read(&self.file).is_ok_and(|text| text == FORBID.as_bytes()) {
            fs::remove_file(&self.file).with_context(|| format!("cannot remove {}", self.file.display()))?;
        }
        rename_if_there(&self.saved, &self.file)
    }

    fn forbids_already(&self) -> bool {
        loop {
            match Command::new(&self.file).args(["nginx", "start"]).output() {
                // A process that another thread has just forked has inherited the descriptor with which it was written,
                // and keeps it until it becomes another program (execve(2), ETXTBSY).
                Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
                asked => return asked.is_ok_and(|output| output.status.code() == Some(101)),
            }
        }
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = self.clear_leftovers()
        {
            eprintln!("warning: {error:#}; until it is removed no package can start its daemon");
        }
    }
}

fn rename_if_there(from: &Path, to: &Path) -> Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot rename {} to {}", from.display(), to.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    const OPEN: &str = "#!/bin/sh\nexit 0\n";
    const CLOSED: &str = "#!/bin/sh\n# the machine's own\nexit 101\n";

    fn write(file: &Path, text: &str, mode: u32) {
        fs::write(file, text).expect("write");
        fs::set_permissions(file, Permissions::from_mode(mode)).expect("chmod");
    }

    #[test]
    fn the_machines_own_policy_comes_back() {
        let name = format!("policy-{}", std::process::id());
        let scratch = Scratch::beside(&std::env::temp_dir(), &name).expect("scratch");
        let file = scratch.path().join("policy-rc.d");
        drop(forbid(&file).expect("forbid"));
        assert!(!file.exists(), "a machine without a policy has none afterwards");

        for (text, mode, is_ours) in [(OPEN, 0o755, true), (CLOSED, 0o644, true), (CLOSED, 0o755, false)] {
            write(&file, text, mode);
            let policy = forbid(&file).expect("forbid");
            assert!(policy.forbids_already());
            assert_eq!(policy.ours, is_ours, "a policy that forbids already is left alone");
            // As when the process is killed: the next run puts right what this one left.
            std::mem::forget(policy);
            drop(forbid(&file).expect("forbid again"));
            assert_eq!(fs::read_to_string(&file).expect("read"), text);
            assert_eq!(fs::read_dir(scratch.path()).expect("list").count(), 1);
        }
    }
}
