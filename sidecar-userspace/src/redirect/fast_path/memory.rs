//! What the probe found is remembered for as long as the machine runs this kernel with these programs and this probe.

use std::{
    fs::{self, File, Metadata},
    hash::{BuildHasher as _, DefaultHasher, Hash as _, Hasher as _, RandomState},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use serde_json::{Value as Json, json};

use crate::{
    lifecycle::fast_path::{Both, Report},
    redirect::programs::OBJECT,
};

/// Where reports are kept: beside the admin sockets, in a directory that only root may write to.
const DIRECTORY: &str = "/run/sidecar";
const FILE: &str = "fast-path.json";
/// Bytes of it that are read: one has less than 2 KiB.
const MOST: u64 = 64 << 10;

macro_rules! sources {
    ($($path:literal,)*) => { &[$(($path, include_bytes!($path)),)*] };
}

/// What a report hangs on beside the programs: a probe that looks otherwise may find something else.
const PROBE: &[(&str, &[u8])] = sources! {
    "../fast_path.rs",
    "both.rs",
    "engine.rs",
    "kernel_types.rs",
    "memory.rs",
    "probe.rs",
    "traps.rs",
    "../../net/scratch.rs",
    "../../net/scratch/completions.rs",
    "../../net/scratch/rendezvous.rs",
    "../../lifecycle/fast_path/report.rs",
};

/// The sources as one number (FNV-1a), which is all that the binary has of them.
const PROBE_HASH: u64 = {
    let (mut hash, mut file) = (0xcbf2_9ce4_8422_2325_u64, 0);
    while file < PROBE.len() {
        let (bytes, mut at) = (PROBE[file].1, 0);
        while at < bytes.len() {
            hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0100_0000_01b3);
            at += 1;
        }
        file += 1;
    }
    hash
};

/// Boot, kernel, programs and probe that a report is about.
fn subject() -> io::Result<Json> {
    let read = |path| fs::read_to_string(path).map(|text| text.trim().to_owned());
    let mut hasher = DefaultHasher::new();
    OBJECT.hash(&mut hasher);
    Ok(json!({
        "boot": read("/proc/sys/kernel/random/boot_id")?,
        "kernel": read("/proc/sys/kernel/osrelease")?,
        "programs": format!("{:016x}", hasher.finish()),
        "probe": format!("{PROBE_HASH:016x}"),
    }))
}

/// What is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Kept {
    /// Of the fast path.
    pub(super) report: Option<Report>,
    /// Of both directions.
    pub(super) both: Option<Both>,
}

/// What this boot, kernel and programs were found to do by this probe.
pub(super) fn recall() -> Kept {
    subject().ok().and_then(|subject| recall_from(Path::new(DIRECTORY), &subject)).unwrap_or_default()
}

/// Keeps what was found, where it is more than what is `known`; what cannot be kept is found anew by the next start, and so is what was
/// not tried in all traps.
pub(super) fn remember(known: Kept, report: &Report, both: Option<&Both>) {
    let whole = Kept {
        report: Some(report.clone()).filter(|report| report.untried.is_empty()),
        both: both.cloned().filter(|both| both.report.untried.is_empty()),
    };
    if whole.report.is_none() || whole == known {
        return;
    }
    let kept = subject().and_then(|subject| remember_in(Path::new(DIRECTORY), &subject, &whole));
    if let Err(error) = kept {
        tracing::debug!(%error, "what the probe found is not kept");
    }
}

/// Whether it is as only we and root could have made it: whoever else can write it could switch the fast path on where it does harm.
fn is_ours(metadata: &Metadata) -> bool {
    let own = metadata.uid() == 0 || metadata.uid() == nix::unistd::geteuid().as_raw();
    own && metadata.mode() & 0o022 == 0
}

/// Nobody else can put anything there: a link is not followed.
fn trusted(directory: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(directory)?;
    if metadata.is_dir() && is_ours(&metadata) {
        return Ok(());
    }
    let why = format!("{} is no directory of root's or ours that nobody else can write to", directory.display());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
}

fn recall_from(directory: &Path, subject: &Json) -> Option<Kept> {
    trusted(directory).ok()?;
    // A pipe in its place would not be waited for.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags).open(directory.join(FILE)).ok()?;
    let metadata = file.metadata().ok()?;
    if !metadata.is_file() || !is_ours(&metadata) {
        return None;
    }
    let kept: Json = serde_json::from_reader(file.take(MOST)).ok()?;
    let report = Report::from_json(kept.get("report")?)?;
    // One of before has nothing of both directions.
    let both = kept.get("both").and_then(Both::from_json);
    (kept.get("subject") == Some(subject)).then_some(Kept { report: Some(report), both })
}

fn remember_in(directory: &Path, subject: &Json, found: &Kept) -> io::Result<()> {
    trusted(directory)?;
    let (report, both) = (found.report.as_ref().map(Report::to_json), found.both.as_ref().map(Both::to_json));
    let kept = json!({ "subject": subject, "report": report, "both": both });
    // Several sidecars of a node may start at once, each as process 1 of its container: each replaces the whole.
    let temporary = directory.join(format!("{FILE}.{:016x}", RandomState::new().build_hasher().finish()));
    // Neither what is there nor a link is opened.
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let written = file.write_all(format!("{kept:#}\n").as_bytes());
    let replaced = written.and_then(|()| fs::rename(&temporary, directory.join(FILE)));
    if replaced.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    replaced
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::{PermissionsExt as _, symlink},
        path::PathBuf,
    };

    use super::*;

    #[test]
    fn no_source_of_the_probe_is_left_out_of_what_a_report_is_about() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let here = source.join("redirect/fast_path");
        let counted: Vec<_> = PROBE.iter().map(|(path, _)| here.join(path).canonicalize().unwrap()).collect();
        for directory in [here, source.join("net/scratch")] {
            let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path().canonicalize().unwrap());
            let missing: Vec<_> = files.filter(|path| path.is_file() && !counted.contains(path)).collect();
            assert!(missing.is_empty(), "{missing:?}");
        }
    }

    fn own_directory(name: &str) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("sidecar-memory-{name}-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        directory
    }

    #[test]
    fn a_report_is_recalled_for_its_own_subject_and_from_its_own_file_alone() {
        let directory = own_directory("own");
        let report = Report { redirects: true, sprung: vec!["fionread".into()], ..Report::default() };
        let both = Both { report: Report { redirects: true, ..Report::default() }, loses_unread: true };
        let (this, other) = (json!({ "boot": "a" }), json!({ "boot": "b" }));
        assert_eq!(recall_from(&directory, &this), None);
        for both in [Some(both), None] {
            let found = Kept { report: Some(report.clone()), both };
            remember_in(&directory, &this, &found).unwrap();
            assert_eq!(recall_from(&directory, &this), Some(found));
        }
        assert_eq!(recall_from(&directory, &other), None);
        // As versions wrote it that had nothing of both directions, and as no version does.
        for rest in ["", r#", "both": 7"#, r#", "both": { "redirects": true, "sprung": [] }"#] {
            let text = format!(r#"{{ "subject": {this}, "report": {}{rest} }}"#, report.to_json());
            fs::write(directory.join(FILE), text).unwrap();
            let found = Kept { report: Some(report.clone()), both: None };
            assert_eq!(recall_from(&directory, &this), Some(found), "{rest}");
        }
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn what_another_could_have_written_is_neither_recalled_nor_replaced() {
        let directory = own_directory("foreign");
        let (path, subject) = (directory.join(FILE), json!({ "boot": "a" }));
        let found = Kept { report: Some(Report { redirects: true, ..Report::default() }), both: None };
        let allow = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let kept = |directory: &Path| recall_from(directory, &subject).is_some();
        remember_in(&directory, &subject, &found).unwrap();
        assert!(kept(&directory));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "something stays beside it");
        allow(&path, 0o666);
        assert!(!kept(&directory));
        allow(&path, 0o600);
        // Whoever may write to the directory may put another file there.
        for mode in [0o777, 0o1777, 0o775] {
            allow(&directory, mode);
            assert!(!kept(&directory) && remember_in(&directory, &subject, &found).is_err(), "{mode:o}");
        }
        allow(&directory, 0o755);
        assert!(kept(&directory));
        let link = own_directory("link");
        symlink(&path, link.join(FILE)).unwrap();
        assert!(!kept(&link));
        fs::remove_dir_all(&link).unwrap();
        symlink(&directory, &link).unwrap();
        assert!(!kept(&link) && remember_in(&link, &subject, &found).is_err());
        fs::remove_file(&link).unwrap();
        fs::remove_dir_all(&directory).unwrap();
    }
}
