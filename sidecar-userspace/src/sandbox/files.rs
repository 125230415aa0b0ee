//! Landlock: which files the worker may read. It may write, make, remove and execute none; its logs are open already.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, BitFlags, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus,
    path_beneath_rules,
};

/// How well the kernel limits them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Files {
    /// As was asked for.
    Limited,
    /// As far as this kernel can (Landlock's later versions limit more).
    Partly,
    /// Not at all: the kernel has no Landlock, or it is switched off.
    NotLimited,
}

/// What the process reads about itself and the machine: its figures for the metrics, and what the allocator and the standard
/// library ask for.
const ABOUT_ITSELF: [&str; 5] =
    ["/proc/self", "/proc/stat", "/proc/sys/vm/overcommit_memory", "/sys/fs/cgroup", "/sys/devices/system/cpu"];

/// The version whose rights are asked for; what the kernel does not know is left out.
const VERSION: ABI = ABI::V5;

/// Limits the process to reading `readable` and what is below, and what it reads about itself.
pub(super) fn limit(readable: &[PathBuf]) -> Files {
    match restrict(readable) {
        Ok(RulesetStatus::FullyEnforced) => Files::Limited,
        Ok(RulesetStatus::PartiallyEnforced) => Files::Partly,
        Ok(RulesetStatus::NotEnforced) => Files::NotLimited,
        Err(error) => {
            tracing::debug!(%error, "Landlock");
            Files::NotLimited
        }
    }
}

fn restrict(readable: &[PathBuf]) -> Result<RulesetStatus, RulesetError> {
    let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    let paths = readable.iter().map(|path| there(path)).chain(ABOUT_ITSELF.iter().map(Path::new));
    let ruleset = Ruleset::default().handle_access(AccessFs::from_all(VERSION))?.create()?;
    let ruleset = ruleset.add_rules(path_beneath_rules(paths, read))?;
    Ok(ruleset.restrict_self()?.ruleset)
}

/// The path, or the first above it that exists: a rule is about a file and not about a name, and what is not there yet may
/// come.
fn there(path: &Path) -> &Path {
    path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_not_there_yet_stands_for_what_it_will_be_in() {
        assert_eq!(there(Path::new("/proc/self/status")), Path::new("/proc/self/status"));
        assert_eq!(there(Path::new("/proc/nothing/here")), Path::new("/proc"));
    }
}
