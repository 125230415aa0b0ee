//! Whose word is taken: the roots of each trust domain, and the lists of what they took back.

use std::{collections::BTreeMap, time::SystemTime};

use rustls::{
    crypto::{WebPkiSupportedAlgorithms, aws_lc_rs},
    pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor},
};
use webpki::{
    CertRevocationList, EndEntityCert, Error, ExpirationPolicy, KeyUsage, OwnedCertRevocationList,
    RevocationCheckDepth, RevocationOptions, RevocationOptionsBuilder, UnknownStatusPolicy,
};

use super::{
    Problem,
    svid::{self, Leaf},
    unix,
};

/// Certificates that a chain may hold, the leaf included. webpki follows at most 6 intermediates.
const MAX_CHAIN: usize = 8;

/// Bytes of all certificates of a chain together. A P-256 leaf has about 600. A session ticket holds the client's chain, and
/// comes back in a ClientHello that must stay below `detect::LONGEST_HELLO`.
const MAX_CHAIN_BYTES: usize = 12 << 10;

/// What a certificate is presented as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// By a server.
    Server,
    /// By a client.
    Client,
}

/// The roots of each trust domain, and revocation lists.
pub struct Trust {
    bundles: BTreeMap<Box<str>, Vec<TrustAnchor<'static>>>,
    crls: Vec<CertRevocationList<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Trust {
    /// Trusts nobody.
    pub(super) fn new() -> Self {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        Self { bundles: BTreeMap::new(), crls: Vec::new(), algorithms }
    }

    /// Adds a root of the trust domain `domain`.
    ///
    /// # Errors
    /// It breaks a rule for signing certificates, or names another trust domain.
    pub(super) fn add_root(&mut self, domain: &str, root: &CertificateDer<'_>) -> Result<(), Problem> {
        if svid::signing(root)?.is_some_and(|named| named != domain) {
            return Err(Problem::WrongTrustDomain);
        }
        let anchor = webpki::anchor_from_trusted_cert(root).map_err(|error| problem(&error))?.to_owned();
        self.bundles.entry(domain.into()).or_default().push(anchor);
        Ok(())
    }

    /// Adds a revocation list. Its signature is verified with the issuer's key whenever it is used.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn add_crl(&mut self, crl: &CertificateRevocationListDer<'_>) -> Result<(), Error> {
        self.crls.push(OwnedCertRevocationList::from_der(crl)?.into());
        Ok(())
    }

    /// The trust domains whose workloads can be verified.
    #[cfg(test)]
    pub(super) fn domains(&self) -> impl Iterator<Item = &str> {
        self.bundles.keys().map(|domain| &**domain)
    }

    /// Verifies a chain, leaf first: the SVID rules on each certificate, and a path to a root of the leaf's own trust
    /// domain. That the other side holds the leaf's key is for the handshake to prove.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: Role,
        now: SystemTime,
    ) -> Result<Leaf, Problem> {
        let bytes = leaf.len() + intermediates.iter().map(|certificate| certificate.len()).sum::<usize>();
        if intermediates.len() >= MAX_CHAIN || bytes > MAX_CHAIN_BYTES {
            return Err(Problem::ChainTooLong);
        }
        let parsed = svid::leaf(leaf)?;
        let bundle = self.bundles.get(parsed.id.trust_domain()).ok_or(Problem::WrongTrustDomain)?;
        // webpki looks at basic constraints, not at key usage.
        for signing in intermediates {
            if svid::signing(signing)?.is_some_and(|named| named != parsed.id.trust_domain()) {
                return Err(Problem::WrongTrustDomain);
            }
        }
        let end_entity = EndEntityCert::try_from(leaf).map_err(|error| problem(&error))?;
        let usage = match role {
            Role::Server => KeyUsage::server_auth(),
            Role::Client => KeyUsage::client_auth(),
        };
        let crls: Vec<&CertRevocationList<'_>> = self.crls.iter().collect();
        let revocation = revocation(&crls);
        end_entity
            .verify_for_usage(self.algorithms.all, bundle, intermediates, unix(now), usage, revocation, None)
            .map_err(|error| match problem(&error) {
                Problem::UnknownIssuer if parsed.own_issuer => Problem::SelfSigned,
                other => other,
            })?;
        Ok(parsed)
    }

    /// Whether a list names one of these certificates.
    pub fn revoked(&self, chain: &[CertificateDer<'_>]) -> bool {
        if self.crls.is_empty() {
            return false;
        }
        chain.iter().filter_map(|der| svid::parse(der).ok()).any(|certificate| {
            let issuer = content(certificate.issuer().as_raw());
            let of_issuer = self.crls.iter().filter(|crl| crl.issuer() == issuer);
            of_issuer.into_iter().any(|crl| matches!(crl.find_serial(certificate.raw_serial()), Ok(Some(_))))
        })
    }

    /// What the handshake's own signatures may be made with.
    pub fn algorithms(&self) -> &WebPkiSupportedAlgorithms {
        &self.algorithms
    }
}

/// A certificate of an authority without a list is not revoked, and an old list still counts: an authority that is late
/// with its next list must not take the mesh down.
fn revocation<'a>(crls: &'a [&'a CertRevocationList<'a>]) -> Option<RevocationOptions<'a>> {
    let options = RevocationOptionsBuilder::new(crls).ok()?;
    Some(
        options
            .with_depth(RevocationCheckDepth::Chain)
            .with_status_policy(UnknownStatusPolicy::Allow)
            .with_expiration_policy(ExpirationPolicy::Ignore)
            .build(),
    )
}

/// What is inside of a DER value: webpki keeps names without tag and length.
fn content(tlv: &[u8]) -> &[u8] {
    let header = match tlv.get(1) {
        Some(length) if *length >= 0x80 => 2 + usize::from(length & 0x7f),
        _ => 2,
    };
    tlv.get(header..).unwrap_or_default()
}

/// webpki's errors cannot be matched without `_`: the enum grows.
fn problem(error: &Error) -> Problem {
    match error {
        Error::BadDer | Error::BadDerTime | Error::MalformedExtensions | Error::TrailingData(_) => Problem::Malformed,
        Error::CaUsedAsEndEntity => Problem::CaLeaf,
        Error::CertExpired { .. } => Problem::Expired,
        Error::CertNotValidYet { .. } => Problem::NotYetValid,
        Error::CertRevoked => Problem::Revoked,
        Error::UnknownIssuer => Problem::UnknownIssuer,
        Error::InvalidSignatureForPublicKey | Error::SignatureAlgorithmMismatch => Problem::BadSignature,
        Error::EmptyEkuExtension | Error::RequiredEkuNotFoundContext(_) => Problem::Eku,
        Error::EndEntityUsedAsCa => Problem::SigningUsage,
        Error::MaximumPathDepthExceeded
        | Error::MaximumPathBuildCallsExceeded
        | Error::MaximumSignatureChecksExceeded
        | Error::MaximumNameConstraintComparisonsExceeded => Problem::ChainTooLong,
        Error::InvalidCrlSignatureForPublicKey | Error::IssuerNotCrlSigner | Error::CrlExpired { .. } => {
            Problem::BadCrl
        }
        _ => Problem::BadChain,
    }
}
