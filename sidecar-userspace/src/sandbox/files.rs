//! Landlock: which files the worker may read. It may write, make, remove and execute none; its logs are open already.

use std::path::{self, Path, PathBuf};

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
    let named = readable.iter().filter_map(|path| there(path));
    let paths = named.chain(ABOUT_ITSELF.iter().map(PathBuf::from));
    let ruleset = Ruleset::default().handle_access(AccessFs::from_all(VERSION))?.create()?;
    let ruleset = ruleset.add_rules(path_beneath_rules(paths, read))?;
    Ok(ruleset.restrict_self()?.ruleset)
}

/// The path, or the first above it that exists: a rule is about a file and not about a name, and what is not there yet may
/// come. Not the root, and nothing right below it: that would be everything, or nearly so.
fn there(path: &Path) -> Option<PathBuf> {
    let whole = path::absolute(path).ok()?;
    let found = whole.ancestors().find(|ancestor| ancestor.exists())?;
    if found == whole {
        return Some(whole);
    }
    /// The root, one below it, and one below that.
    const DEEP_ENOUGH: usize = 3;
    let instead = found.display();
    if found.components().count() < DEEP_ENOUGH {
        tracing::warn!(path = %whole.display(), "does not exist, and the worker will not be let into {instead} for it: make its folder, then start the sidecar again");
        return None;
    }
    tracing::warn!(path = %whole.display(), "does not exist yet: the worker may read all of {instead} until the sidecar is started again");
    Some(found.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_not_there_yet_stands_for_what_it_will_be_in() {
        let there = |path: &str| there(Path::new(path));
        assert_eq!(there("/proc/self/status"), Some("/proc/self/status".into()));
        assert_eq!(there("/proc/self/nothing/here"), Some("/proc/self".into()));
        assert_eq!(there("here/there"), Some(std::env::current_dir().unwrap()));
    }

    #[test]
    fn nothing_that_is_missing_opens_the_root_or_what_is_right_below_it() {
        for path in ["/nowhere/id/tls.crt", "/nowhere", "/proc/nothing/here"] {
            assert_eq!(there(Path::new(path)), None, "{path}");
        }
    }
}
