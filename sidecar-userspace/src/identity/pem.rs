//! Reading PEM files.

use std::{fs, io, path::Path};

use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer,
    pem::{self, PemObject},
};
use thiserror::Error;

/// A megabyte: a bundle of a thousand roots has half of it.
const LARGEST: u64 = 1 << 20;

/// Why a file does not give what it should, with the fix.
#[derive(Debug, Error)]
pub enum Fault {
    /// It cannot be read.
    #[error("{0}; {fix}", fix = fix(.0))]
    Io(#[from] io::Error),
    /// It has so many bytes.
    #[error("{0} bytes; at most {LARGEST} are read")]
    Large(u64),
    /// It is not PEM.
    #[error("not PEM ({0}); write it as base64 between BEGIN and END lines")]
    NotPem(pem::Error),
    /// It holds no key.
    #[error("no private key in it; it must hold one as PEM: PKCS #8, SEC 1 or PKCS #1, not encrypted")]
    NoKey,
}

/// What an operator does about it that a file cannot be read or written.
pub fn fix(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => "restore it, or correct the path",
        io::ErrorKind::PermissionDenied => "give the sidecar's user access to it",
        io::ErrorKind::ReadOnlyFilesystem => "choose a place that can be written",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room on its file system",
        io::ErrorKind::InvalidData => "write it as text",
        _ => "see that this user can read and write it with other tools",
    }
}

/// The content of a file.
///
/// # Errors
/// It cannot be read, or has more than a megabyte.
pub fn read(path: &Path) -> Result<Vec<u8>, Fault> {
    let length = fs::metadata(path)?.len();
    if length > LARGEST { Err(Fault::Large(length)) } else { Ok(fs::read(path)?) }
}

/// The content of a file as text.
///
/// # Errors
/// As [`read`], and it is not UTF-8.
pub fn text(path: &Path) -> Result<String, Fault> {
    let bytes = read(path)?;
    String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error).into())
}

/// The certificates, in their order; there may be none.
///
/// # Errors
/// It is not PEM.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Fault> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(Fault::NotPem)
}

/// The first key.
///
/// # Errors
/// There is none, or it is not PEM.
pub fn key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, Fault> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        pem::Error::NoItemsFound => Fault::NoKey,
        other => Fault::NotPem(other),
    })
}

/// The revocation lists; there may be none.
///
/// # Errors
/// It is not PEM.
pub fn crls(pem: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, Fault> {
    CertificateRevocationListDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(Fault::NotPem)
}
