//! The embedded certificate authority at work: `sidecar ca …`.
//!
//! An authority is a directory. Its files, and those that it issues, are replaced together by the rename of one symbolic
//! link (`..data`, as in a Kubernetes volume), so that nobody ever reads a key beside another's certificate.

mod folder;
mod inspect;

use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use thiserror::Error;

use crate::{
    id::{SpiffeId, SpiffeIdError},
    identity::{
        authority::{self, Authority, CERTIFICATE, Issued, KEY, ROOTS},
        pem,
    },
};

use folder::Folder;
pub use inspect::{Inspected, inspect};

/// Names of what is issued.
const ISSUED: [&str; 3] = ["cert.pem", "key.pem", ROOTS];

/// The root that will issue after the next step of a rotation.
const NEXT_CERTIFICATE: &str = "next.pem";
const NEXT_KEY: &str = "next.key";

/// Why the authority did not do what was asked.
#[derive(Debug, Error)]
pub enum Error {
    /// The authority cannot issue.
    #[error(transparent)]
    Authority(#[from] authority::Error),
    /// A file or directory cannot be read or written.
    #[error("{path}: {source}; {}", pem::fix(.source))]
    Io {
        /// Which.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path}: {fault}")]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong, with the fix.
        fault: pem::Fault,
    },
    /// There is an authority already.
    #[error("{0} already holds an authority; `sidecar ca rotate` replaces its root, another directory makes another")]
    Exists(PathBuf),
    /// Files that somebody else wrote would be replaced.
    #[error("{0} exists and was not written by `sidecar ca`; remove it or choose another directory")]
    Foreign(PathBuf),
    /// `--finish` although the new root does not issue yet.
    #[error("{0} is not ready to finish: {1}")]
    NotYet(PathBuf, &'static str),
    /// Namespace and service account make no identity.
    #[error("{text}: {error}")]
    Name {
        /// What they make.
        text: String,
        /// What is wrong with it.
        error: SpiffeIdError,
    },
    /// Nobody is named.
    #[error("give --id, or --namespace and --service-account")]
    NoName,
    /// There is nothing in it that could be inspected.
    #[error("{0}: no certificate in it; give a PEM file, or a directory with some")]
    Nothing(PathBuf),
}

impl Error {
    /// Whether what was asked for is wrong, and not the machine.
    pub fn is_usage(&self) -> bool {
        use authority::Error::{Foreign, Lifetime, TrustDomain};
        matches!(self, Self::Name { .. } | Self::NoName)
            || matches!(self, Self::Authority(Foreign { .. } | Lifetime(_) | TrustDomain { .. }))
    }
}

/// Makes an authority in `directory`; answers its root.
///
/// # Errors
/// There is one already, the trust domain cannot be, or the directory cannot be written.
pub fn init(directory: &Path, trust_domain: &str, lifetime: Duration, now: SystemTime) -> Result<Issued, Error> {
    let root = authority::root(trust_domain, lifetime, now)?;
    let folder = Folder::open(directory, &[])?;
    if authority::occupied(directory) {
        return Err(Error::Exists(directory.to_owned()));
    }
    folder.replace(&[(CERTIFICATE, &root.certificate_pem), (KEY, &root.key_pem), (ROOTS, &root.certificate_pem)])?;
    Ok(root)
}

/// Issues a certificate from the authority in `directory` and writes it, its key and the roots to `out`.
///
/// # Errors
/// The authority cannot issue it, or `out` cannot be written; then what was there before stays.
pub fn issue(
    directory: &Path,
    id: &SpiffeId,
    lifetime: Duration,
    out: &Path,
    now: SystemTime,
) -> Result<Issued, Error> {
    issue_from(&Authority::open(directory)?, id, lifetime, out, now)
}

fn issue_from(
    authority: &Authority,
    id: &SpiffeId,
    lifetime: Duration,
    out: &Path,
    now: SystemTime,
) -> Result<Issued, Error> {
    let issued = authority.issue(id, lifetime, now)?;
    // The roots of the same moment as the certificate: the authority may have been rotated meanwhile.
    let [certificate, key, roots] = ISSUED;
    Folder::open(out, &ISSUED)?.replace(&[
        (certificate, &issued.certificate_pem),
        (key, &issued.key_pem),
        (roots, &authority.files().roots),
    ])?;
    Ok(issued)
}

/// The trust domain of the authority in `directory`.
///
/// # Errors
/// It cannot be opened.
pub fn trust_domain(directory: &Path) -> Result<String, Error> {
    Ok(Authority::open(directory)?.trust_domain().to_owned())
}

/// What a step of a rotation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A new root is among those that peers believe; the old one issues.
    Announced,
    /// The new root issues; the old one is still believed.
    Switched,
    /// The old root is gone.
    Finished,
}

impl Step {
    /// What was done, and what comes next.
    pub fn told(self, directory: &Path) -> String {
        let directory = directory.display();
        match self {
            Self::Announced => format!(
                "step 1 of 3: a new root is in {directory}/{ROOTS}, the old one still issues\n\
                 next: bring {ROOTS} to every workload (issue again; sidecars with `identity.ca` do it by themselves),\n      \
                 then `sidecar ca rotate {directory}`"
            ),
            Self::Switched => format!(
                "step 2 of 3: the new root issues, the old one is still believed\n\
                 next: wait until every certificate of the old root was replaced or has expired,\n      \
                 then `sidecar ca rotate {directory} --finish`"
            ),
            Self::Finished => format!(
                "step 3 of 3: only the new root is left in {directory}/{ROOTS}\n\
                 next: bring {ROOTS} to every workload; certificates of the old root are refused from then on"
            ),
        }
    }
}

/// Takes the next step of a rotation of the root; the last one only if `finish`.
///
/// # Errors
/// The step is not due, or the directory cannot be written; then the authority stays as it is.
pub fn rotate(directory: &Path, lifetime: Duration, finish: bool, now: SystemTime) -> Result<Step, Error> {
    // Opened for its error first: a folder that is no authority must not be made.
    drop(Authority::open(directory)?);
    let folder = Folder::open(directory, &[CERTIFICATE, KEY, ROOTS, NEXT_CERTIFICATE, NEXT_KEY])?;
    let authority = Authority::open(directory)?;
    let announced = directory.join(NEXT_CERTIFICATE).exists();
    let overlapping = authority.roots().len() > 1;
    let now_there = authority.files();
    let next = |name: &str| read(&directory.join(name));
    match (announced, overlapping, finish) {
        (false, true, true) => {
            let certificate = &now_there.certificate;
            folder.replace(&[(CERTIFICATE, certificate), (KEY, &now_there.key), (ROOTS, certificate)])?;
            Ok(Step::Finished)
        }
        (true, _, true) => {
            Err(Error::NotYet(directory.to_owned(), "the old root still issues; rotate without --finish first"))
        }
        (false, false, true) => Err(Error::NotYet(directory.to_owned(), "no rotation is under way")),
        (true, _, false) => {
            let (certificate, key) = (next(NEXT_CERTIFICATE)?, next(NEXT_KEY)?);
            folder.replace(&[(CERTIFICATE, &certificate), (KEY, &key), (ROOTS, &now_there.roots)])?;
            Ok(Step::Switched)
        }
        (false, true, false) => {
            let reason = "the rotation before it is under way; finish it with --finish";
            Err(Error::NotYet(directory.to_owned(), reason))
        }
        (false, false, false) => {
            let next = authority::root(authority.trust_domain(), lifetime, now)?;
            let roots = now_there.roots.clone() + &next.certificate_pem;
            folder.replace(&[
                (CERTIFICATE, &now_there.certificate),
                (KEY, &now_there.key),
                (ROOTS, &roots),
                (NEXT_CERTIFICATE, &next.certificate_pem),
                (NEXT_KEY, &next.key_pem),
            ])?;
            Ok(Step::Announced)
        }
    }
}

fn read(path: &Path) -> Result<String, Error> {
    pem::text(path).map_err(|fault| Error::File { path: path.to_owned(), fault })
}

#[cfg(test)]
mod tests {
    use std::{env, fs, process};

    use super::*;

    #[test]
    fn a_rotation_meanwhile_does_not_part_a_certificate_from_its_roots() {
        let place = env::temp_dir().join(format!("ca-meanwhile-{}", process::id()));
        let (directory, out) = (place.join("ca"), place.join("web"));
        let (day, now) = (Duration::from_secs(86400), SystemTime::now());
        init(&directory, "td", day, now).unwrap();
        let authority = Authority::open(&directory).unwrap();
        for (finish, step) in [(false, Step::Announced), (false, Step::Switched), (true, Step::Finished)] {
            assert_eq!(rotate(&directory, day, finish, now).unwrap(), step);
        }
        issue_from(&authority, &"spiffe://td/web".parse().unwrap(), day, &out, now).unwrap();
        let written = fs::read_to_string(out.join(ROOTS)).unwrap();
        assert_eq!(written, authority.files().certificate, "the root that issued it");
        assert_ne!(written, Authority::open(&directory).unwrap().files().certificate, "there is another by now");
        fs::remove_dir_all(&place).unwrap();
    }
}
