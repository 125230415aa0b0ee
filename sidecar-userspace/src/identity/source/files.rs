//! Certificate, key and roots in files that somebody renews.

use std::{convert::Infallible, path::Path};

use super::{
    folders::{self, Folders, Print},
    publish,
};
use crate::{
    config::IdentityFiles,
    identity::{
        Names, Parts, Publisher, Refused,
        pem::{self, Fault},
    },
};

/// How often a set is read again at once because it changed meanwhile; then the next change is waited for.
const TRIES: usize = 10;

/// Publishes the set that is there, and each that replaces it.
pub(super) async fn run(files: &IdentityFiles, publisher: &mut Publisher) -> Infallible {
    let paths = paths(files);
    let mut accepted = None;
    loop {
        let folders = Folders::watch(&paths);
        if accepted.as_ref() != Some(&folders::print(&paths)) {
            let (print, parts) = read(files, &paths);
            // A set that was refused is read again after each change and each minute: it may be valid only from then on.
            accepted = publish(publisher, parts).then_some(print);
        }
        folders.changed().await;
    }
}

fn paths(files: &IdentityFiles) -> Vec<&Path> {
    let all = [Some(&files.cert), Some(&files.key), Some(&files.roots), files.crl.as_ref()];
    all.into_iter().flatten().map(std::path::PathBuf::as_path).collect()
}

/// All files as they were at one moment.
fn read(files: &IdentityFiles, paths: &[&Path]) -> (Print, Result<Parts, Refused>) {
    let mut before = folders::print(paths);
    for _ in 0..TRIES {
        let parts = parts(files);
        let after = folders::print(paths);
        if before == after {
            return (after, parts);
        }
        before = after;
    }
    let reason = "the files change faster than they can be read; replace them together, by a rename".to_owned();
    (before, Err(Refused::Unreadable { place: files.cert.display().to_string(), reason }))
}

fn parts(files: &IdentityFiles) -> Result<Parts, Refused> {
    let name = |path: &Path| path.display().to_string();
    Ok(Parts {
        chain: part(&files.cert, pem::certificates)?,
        key: part(&files.key, pem::key)?,
        roots: part(&files.roots, pem::certificates)?,
        federated: Vec::new(),
        crls: files.crl.as_deref().map(|path| part(path, pem::crls)).transpose()?.unwrap_or_default(),
        names: Names {
            chain: name(&files.cert),
            key: name(&files.key),
            roots: name(&files.roots),
            crls: files.crl.as_deref().map(name).unwrap_or_default(),
        },
    })
}

/// What `parse` finds in a file.
fn part<T>(path: &Path, parse: fn(&[u8]) -> Result<T, Fault>) -> Result<T, Refused> {
    let place = || path.display().to_string();
    pem::read(path).and_then(|bytes| parse(&bytes)).map_err(|fault| match fault {
        Fault::NoKey => Refused::NoKey { place: place() },
        other => Refused::Unreadable { place: place(), reason: other.to_string() },
    })
}
