//! The embedded certificate authority: a directory with a root, and certificates issued from it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;

use super::{
    Problem,
    pem::{self, Fault},
    svid, system_time,
};
use crate::id::{SpiffeId, SpiffeIdError, check_trust_domain};

/// The certificate that issues.
pub const CERTIFICATE: &str = "ca.pem";
/// Its key.
pub const KEY: &str = "ca.key";
/// Every root that peers shall believe.
pub const ROOTS: &str = "roots.pem";
/// What an authority is made of.
pub const FILES: [&str; 3] = [CERTIFICATE, KEY, ROOTS];
/// The link that makes a directory's files change at once, as in a Kubernetes volume.
pub const DATA: &str = "..data";

/// Certificates are dated back by this much, for peers whose clocks are behind. As Istio.
const DATED_BACK: Duration = Duration::from_secs(120);

/// Why an authority cannot issue.
#[derive(Debug, Error)]
pub enum Error {
    /// A file cannot be read, or does not hold what it should.
    #[error("{path}: {reason}")]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong, with the fix.
        reason: String,
    },
    /// The identity is of another trust domain.
    #[error(
        "{id} is not of this authority's trust domain {domain}; issue spiffe://{domain}/… or use another authority"
    )]
    Foreign {
        /// What was asked for.
        id: SpiffeId,
        /// The authority's.
        domain: String,
    },
    /// The root has expired.
    #[error("the authority's certificate has expired; `sidecar ca rotate` makes another")]
    Expired,
    /// A trust domain that cannot be.
    #[error("{domain}: {error}")]
    TrustDomain {
        /// What was asked for.
        domain: String,
        /// What is wrong with it.
        error: SpiffeIdError,
    },
    /// The lifetime is too short, or beyond what a certificate can say.
    #[error("a lifetime of {0:?} is not possible; from 1 s to 100 years")]
    Lifetime(Duration),
    /// The provider fails.
    #[error("making a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// An authority that can issue.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    trust_domain: String,
    roots: Vec<CertificateDer<'static>>,
    not_after: SystemTime,
    files: Files,
}

/// What the files of an authority held at one moment, PEM.
pub struct Files {
    /// The certificate that issues.
    pub certificate: String,
    /// Its key.
    pub key: String,
    /// Every root that peers shall believe.
    pub roots: String,
}

/// A certificate with its key.
pub struct Issued {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    /// The certificate as PEM.
    pub certificate_pem: String,
    /// The key.
    pub key: PrivateKeyDer<'static>,
    /// The key as PEM, PKCS #8.
    pub key_pem: String,
    /// End of validity.
    pub not_after: SystemTime,
}

/// What to do about a file of an authority that was lost or damaged.
const RESTORE: &str = "restore it from the backup";

impl Files {
    fn read(directory: &Path) -> Result<Self, Error> {
        // Through the link's target of now: a rotation meanwhile replaces the link, not the files behind it.
        let set = fs::canonicalize(directory.join(DATA)).unwrap_or_else(|_| directory.to_owned());
        let read = |name: &str| {
            pem::text(&set.join(name)).map_err(|fault| {
                let reason = match fault {
                    Fault::Io(error) if error.kind() == io::ErrorKind::NotFound => {
                        format!("{error}; {}", if occupied(directory) { RESTORE } else { MAKE })
                    }
                    other => other.to_string(),
                };
                Error::File { path: directory.join(name), reason }
            })
        };
        Ok(Self { certificate: read(CERTIFICATE)?, key: read(KEY)?, roots: read(ROOTS)? })
    }
}

/// What to do where there is no authority.
const MAKE: &str = "`sidecar ca init` makes an authority";

/// Whether some file of an authority is in `directory`, so that none can be made there.
pub fn occupied(directory: &Path) -> bool {
    FILES.iter().any(|name| directory.join(name).symlink_metadata().is_ok())
}

impl Authority {
    /// Opens the authority in `directory`, its files as they were at one moment.
    ///
    /// # Errors
    /// A file is missing or does not hold what it should.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let files = Files::read(directory)?;
        let wrong = |name: &str, reason: String| Error::File { path: directory.join(name), reason };
        let broken = |name: &str, fault: Fault| wrong(name, fault.to_string());
        let found = pem::certificates(files.certificate.as_bytes()).map_err(|fault| broken(CERTIFICATE, fault))?;
        let [certificate] = <[_; 1]>::try_from(found).map_err(|found| {
            wrong(CERTIFICATE, format!("{} certificates; it must hold exactly one: {RESTORE}", found.len()))
        })?;
        let breaks = |problem: Problem| wrong(CERTIFICATE, format!("{problem}; {}", problem.fix()));
        let trust_domain = svid::signing(&certificate).map_err(breaks)?.ok_or_else(|| {
            wrong(CERTIFICATE, "it names no trust domain; `sidecar ca init` makes an authority that does".into())
        })?;
        let parsed = svid::parse(&certificate).map_err(breaks)?;
        let not_after = system_time(parsed.validity().not_after.timestamp());
        let key = KeyPair::from_pem(&files.key)
            .map_err(|error| wrong(KEY, format!("not a usable key ({error}); {RESTORE}")))?;
        if key.public_key_raw() != &*parsed.public_key().subject_public_key.data {
            return Err(wrong(KEY, format!("not the key of {CERTIFICATE}; restore both from the same backup")));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        let roots = pem::certificates(files.roots.as_bytes()).map_err(|fault| broken(ROOTS, fault))?;
        Ok(Self { issuer, trust_domain, roots, not_after, files })
    }

    /// What its files held when it was opened.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// The domain that it issues for.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// Every root that peers shall believe.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// Issues a certificate for `id` with a new key, valid from `now` for `lifetime`, or as long as the root.
    ///
    /// # Errors
    /// `id` is of another trust domain, or the root has expired.
    pub fn issue(&self, id: &SpiffeId, lifetime: Duration, now: SystemTime) -> Result<Issued, Error> {
        if id.trust_domain() != self.trust_domain {
            return Err(Error::Foreign { id: id.clone(), domain: self.trust_domain.clone() });
        }
        if now >= self.not_after {
            return Err(Error::Expired);
        }
        let not_after = end(lifetime, now)?.min(self.not_after);
        let mut params = params(now, not_after);
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(issued(&certificate, &key, not_after))
    }
}

/// Makes a root for `trust_domain`.
///
/// # Errors
/// The trust domain or the lifetime cannot be.
pub fn root(trust_domain: &str, lifetime: Duration, now: SystemTime) -> Result<Issued, Error> {
    check_trust_domain(trust_domain).map_err(|error| Error::TrustDomain { domain: trust_domain.into(), error })?;
    let key = KeyPair::generate()?;
    let not_after = end(lifetime, now)?;
    let mut params = params(now, not_after);
    // Each root has a name of its own: revocation lists are found by their issuer's.
    let own = params.key_identifier(&key).iter().take(4).map(|byte| format!("{byte:02x}")).collect::<String>();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain);
    params.distinguished_name.push(DnType::CommonName, format!("sidecar root {own}"));
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key)?;
    Ok(issued(&certificate, &key, not_after))
}

fn params(now: SystemTime, not_after: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = (now - DATED_BACK).into();
    params.not_after = not_after.into();
    params
}

fn end(lifetime: Duration, now: SystemTime) -> Result<SystemTime, Error> {
    const LONGEST: Duration = Duration::from_secs(100 * 366 * 86400);
    let possible = (Duration::from_secs(1)..=LONGEST).contains(&lifetime);
    if possible { Ok(now + lifetime) } else { Err(Error::Lifetime(lifetime)) }
}

fn issued(certificate: &rcgen::Certificate, key: &KeyPair, not_after: SystemTime) -> Issued {
    Issued {
        certificate: certificate.der().clone(),
        certificate_pem: certificate.pem(),
        key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        key_pem: key.serialize_pem(),
        not_after,
    }
}
