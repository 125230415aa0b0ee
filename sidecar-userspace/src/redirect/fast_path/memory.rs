//! What the probe found is remembered for as long as the machine runs this kernel with these programs.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use serde_json::{Value as Json, json};

use crate::{lifecycle::fast_path::Report, redirect::programs::OBJECT};

/// Where reports are kept: beside the admin sockets, in a directory that only root may write to.
const DIRECTORY: &str = "/run/sidecar";
const FILE: &str = "fast-path.json";

/// Boot, kernel and programs that a report is about.
fn subject() -> io::Result<Json> {
    let read = |path| fs::read_to_string(path).map(|text| text.trim().to_owned());
    let mut hasher = DefaultHasher::new();
    OBJECT.hash(&mut hasher);
    Ok(json!({
        "boot": read("/proc/sys/kernel/random/boot_id")?,
        "kernel": read("/proc/sys/kernel/osrelease")?,
        "programs": format!("{:016x}", hasher.finish()),
    }))
}

/// The report of this boot, kernel and programs.
pub(super) fn recall() -> Option<Report> {
    recall_from(Path::new(DIRECTORY), &subject().ok()?)
}

/// Keeps a report; one that cannot be kept is made anew by the next start.
pub(super) fn remember(report: &Report) {
    let kept = subject().and_then(|subject| remember_in(Path::new(DIRECTORY), &subject, report));
    if let Err(error) = kept {
        tracing::debug!(%error, "the probe's report is not kept");
    }
}

fn recall_from(directory: &Path, subject: &Json) -> Option<Report> {
    let path = directory.join(FILE);
    let metadata = fs::symlink_metadata(&path).ok()?;
    // Whoever can write it could switch the fast path on where it does harm.
    let own = metadata.uid() == nix::unistd::geteuid().as_raw() || metadata.uid() == 0;
    if !metadata.is_file() || !own || metadata.mode() & 0o022 != 0 {
        return None;
    }
    let kept: Json = serde_json::from_str(&fs::read_to_string(path).ok()?).ok()?;
    if kept.get("subject") == Some(subject) { Report::from_json(kept.get("report")?) } else { None }
}

fn remember_in(directory: &Path, subject: &Json, report: &Report) -> io::Result<()> {
    let kept = json!({ "subject": subject, "report": report.to_json() });
    // Several sidecars of a node may start at once: each replaces the whole.
    let temporary: PathBuf = directory.join(format!("{FILE}.{}", std::process::id()));
    fs::write(&temporary, format!("{kept:#}\n"))?;
    let replaced = fs::rename(&temporary, directory.join(FILE));
    if replaced.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    replaced
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_report_is_recalled_for_its_own_subject_and_from_its_own_file_alone() {
        let directory = std::env::temp_dir().join(format!("sidecar-memory-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let report = Report { redirects: true, sprung: vec!["fionread".into()], ..Report::default() };
        let (this, other) = (json!({ "boot": "a" }), json!({ "boot": "b" }));
        assert_eq!(recall_from(&directory, &this), None);
        remember_in(&directory, &this, &report).unwrap();
        assert_eq!(recall_from(&directory, &this), Some(report));
        assert_eq!(recall_from(&directory, &other), None);
        fs::set_permissions(directory.join(FILE), fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(recall_from(&directory, &this), None);
        fs::remove_dir_all(&directory).unwrap();
    }
}
