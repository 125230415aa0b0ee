//! What a certificate says, and which rules it breaks.

use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::Serialize;

use super::{Error, read};
use crate::identity::inspect::{Report, report};

/// A certificate of a file.
#[derive(Debug, Serialize)]
pub struct Inspected {
    /// The file.
    pub file: PathBuf,
    /// Which of its certificates, from 1.
    pub number: usize,
    /// What it says.
    #[serde(flatten)]
    pub report: Report,
}

/// Inspects the certificates of a PEM file, or of those of a directory, in order of their names.
///
/// # Errors
/// A file cannot be read, or there is no certificate.
pub fn inspect(path: &Path, now: SystemTime) -> Result<Vec<Inspected>, Error> {
    let mut found = Vec::new();
    for file in files(path)? {
        let reports = report(read(&file)?.as_bytes(), now);
        let numbered = reports.into_iter().enumerate();
        found.extend(numbered.map(|(index, report)| Inspected { file: file.clone(), number: index + 1, report }));
    }
    if found.is_empty() { Err(Error::Nothing(path.to_owned())) } else { Ok(found) }
}

fn files(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::Io { path: path.to_owned(), source };
    if !fs::metadata(path).map_err(failed)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        let hidden = file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let wanted = file.extension().is_some_and(|extension| extension == "pem" || extension == "crt");
        if wanted && !hidden && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}
