//! Certificate, key, roots and revocation lists become an identity, or a refusal that says what to mend.

use std::time::SystemTime;

use rustls::{
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer},
    sign::CertifiedKey,
};
use thiserror::Error;

use super::{Identity, Problem, Role, Trust, svid};

/// Where the parts came from, for errors: paths, or what a person would say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// Of the certificate chain.
    pub chain: String,
    /// Of the key.
    pub key: String,
    /// Of the roots.
    pub roots: String,
    /// Of the revocation lists.
    pub crls: String,
}

/// A set that nobody has verified.
pub struct Parts {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
    /// Roots of the leaf's own trust domain.
    pub roots: Vec<CertificateDer<'static>>,
    /// Roots of other trust domains.
    pub federated: Vec<(String, Vec<CertificateDer<'static>>)>,
    /// Revocation lists of any of them.
    pub crls: Vec<CertificateRevocationListDer<'static>>,
    /// Where they came from.
    pub names: Names,
}

/// Why a set is not used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// There is no certificate in it.
    #[error("{place}: no certificate in it; it must hold the workload's certificate as PEM (BEGIN CERTIFICATE)")]
    NoCertificate {
        /// Where.
        place: String,
    },
    /// There is no root in it.
    #[error("{place}: no certificate in it; it must hold the trust domain's root certificates as PEM")]
    NoRoots {
        /// Where.
        place: String,
    },
    /// There is no key in it.
    #[error("{place}: no private key in it; it must hold one as PEM: PKCS #8, SEC 1 or PKCS #1, not encrypted")]
    NoKey {
        /// Where.
        place: String,
    },
    /// A certificate breaks a rule.
    #[error("{place}, certificate {number}: {problem}; {}", .problem.fix())]
    Certificate {
        /// Where.
        place: String,
        /// Which of those in the same place, from 1.
        number: usize,
        /// Which rule.
        problem: Problem,
    },
    /// The provider cannot sign with the key.
    #[error("{place}: {reason}; use an ECDSA P-256 key, or one of P-384, Ed25519 or RSA")]
    UnusableKey {
        /// Where.
        place: String,
        /// What the provider says.
        reason: String,
    },
    /// The key is not the certificate's.
    #[error("{place}: not the key of the certificate in {chain}; replace both together")]
    KeyMismatch {
        /// Where the key is.
        place: String,
        /// Where the certificate is.
        chain: String,
    },
    /// A revocation list cannot be read.
    #[error("{place}, list {number}: {reason}; write it as PEM (BEGIN X509 CRL), complete and not delta")]
    Crl {
        /// Where.
        place: String,
        /// Which, from 1.
        number: usize,
        /// What is wrong.
        reason: String,
    },
    /// A part cannot be read.
    #[error("{place}: {reason}")]
    Unreadable {
        /// Where.
        place: String,
        /// What the kernel or the parser says, with the fix.
        reason: String,
    },
    /// Whoever should provide the set does not.
    #[error("{place}: {reason}")]
    Unavailable {
        /// Where.
        place: String,
        /// What was answered, with the fix.
        reason: String,
    },
}

impl Refused {
    /// The reason as it is counted.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NoCertificate { .. } => "no_certificate",
            Self::NoRoots { .. } => "no_roots",
            Self::NoKey { .. } => "no_key",
            Self::Certificate { problem, .. } => problem.label(),
            Self::UnusableKey { .. } => "unusable_key",
            Self::KeyMismatch { .. } => "key_mismatch",
            Self::Crl { .. } => "crl",
            Self::Unreadable { .. } => "unreadable",
            Self::Unavailable { .. } => "unavailable",
        }
    }
}

impl Identity {
    /// Verifies a set as a whole, as of `now`.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn verify(parts: Parts, now: SystemTime) -> Result<Self, Refused> {
        let Parts { chain, key, roots, federated, crls, names } = parts;
        let (leaf, intermediates) =
            chain.split_first().ok_or_else(|| Refused::NoCertificate { place: names.chain.clone() })?;
        let wrong = |problem| Refused::Certificate { place: names.chain.clone(), number: 1, problem };
        let domain = svid::leaf(leaf).map_err(wrong)?.id.trust_domain().to_owned();
        if roots.is_empty() {
            return Err(Refused::NoRoots { place: names.roots });
        }
        let mut trust = Trust::new();
        let federated = federated.into_iter().map(|(domain, roots)| (false, domain, roots));
        for (own, domain, roots) in std::iter::once((true, domain, roots)).chain(federated) {
            for (index, root) in roots.iter().enumerate() {
                let wrong = |problem| {
                    let place =
                        if own { names.roots.clone() } else { format!("{}, trust domain {domain}", names.roots) };
                    Refused::Certificate { place, number: index + 1, problem }
                };
                trust.add_root(&domain, root).map_err(wrong)?;
            }
        }
        for (index, signing) in intermediates.iter().enumerate() {
            let wrong = |problem| Refused::Certificate { place: names.chain.clone(), number: index + 2, problem };
            svid::signing(signing).map_err(wrong)?;
        }
        // Before the lists are added: one that revokes our own certificate must still be applied to others.
        let leaf = trust.verify(leaf, intermediates, Role::Server, now).map_err(wrong)?;
        for (index, crl) in crls.iter().enumerate() {
            let wrong = |reason: webpki::Error| Refused::Crl {
                place: names.crls.clone(),
                number: index + 1,
                reason: format!("not a usable revocation list ({reason})"),
            };
            trust.add_crl(crl).map_err(wrong)?;
        }
        let certified = certify(chain, key, &names)?;
        Ok(Self { leaf, certified: certified.into(), trust })
    }
}

fn certify(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    names: &Names,
) -> Result<CertifiedKey, Refused> {
    let unusable = |error: rustls::Error| Refused::UnusableKey { place: names.key.clone(), reason: error.to_string() };
    let signing = aws_lc_rs::default_provider().key_provider.load_private_key(key).map_err(unusable)?;
    let certified = CertifiedKey::new(chain, signing);
    let mismatch = |_| Refused::KeyMismatch { place: names.key.clone(), chain: names.chain.clone() };
    certified.keys_match().map_err(mismatch)?;
    Ok(certified)
}
