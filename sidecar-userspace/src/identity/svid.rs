//! The rules of the X509-SVID standard for a single certificate
//! (<https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md>). Signatures and paths are [`Trust`]'s.
//!
//! [`Trust`]: super::Trust

use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{Problem, system_time};
use crate::id::{SpiffeId, SpiffeIdError, check_trust_domain};

/// What a workload's certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Whose it is.
    pub id: SpiffeId,
    /// Begin of its validity.
    pub not_before: SystemTime,
    /// End of its validity.
    pub not_after: SystemTime,
    /// Whether issuer and subject are the same name.
    pub own_issuer: bool,
}

impl Leaf {
    /// The first moment at which it is no longer valid: its last second counts whole.
    pub fn usable_until(&self) -> SystemTime {
        usable_until(self.not_after)
    }

    /// Whether its validity has ended.
    pub fn expired(&self, now: SystemTime) -> bool {
        now >= self.usable_until()
    }
}

/// The first moment at which a certificate that says `not_after` is no longer valid (RFC 5280 §4.1.2.5: inclusive).
pub(super) fn usable_until(not_after: SystemTime) -> SystemTime {
    not_after + Duration::from_secs(1)
}

/// Parses a certificate; trailing bytes are refused.
pub(super) fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Problem> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(Problem::Malformed),
    }
}

/// Holds a certificate to the rules for leaves.
///
/// # Errors
/// The first rule that it breaks.
pub fn leaf(der: &CertificateDer<'_>) -> Result<Leaf, Problem> {
    let certificate = parse(der)?;
    leaf_usage(&certificate)?;
    let names = uri_names(&certificate)?;
    let id = match names.uris.as_slice() {
        [] => return Err(Problem::NoUriSan),
        [uri] => uri.parse().map_err(|error| match error {
            SpiffeIdError::NoPath => Problem::NoPath,
            other => Problem::NotSpiffe(other),
        })?,
        _ => return Err(Problem::TwoUriSans),
    };
    // An empty name is an empty sequence: tag and length.
    if certificate.subject().as_raw().len() <= 2 && !names.critical {
        return Err(Problem::SanNotCritical);
    }
    Ok(Leaf {
        id,
        not_before: system_time(certificate.validity().not_before.timestamp()),
        not_after: system_time(certificate.validity().not_after.timestamp()),
        own_issuer: certificate.subject().as_raw() == certificate.issuer().as_raw(),
    })
}

fn leaf_usage(certificate: &X509Certificate<'_>) -> Result<(), Problem> {
    let constraints = certificate.basic_constraints().map_err(|_| Problem::Malformed)?;
    if constraints.is_some_and(|constraints| constraints.value.ca) {
        return Err(Problem::CaLeaf);
    }
    let usage = certificate.key_usage().map_err(|_| Problem::Malformed)?.ok_or(Problem::KeyUsage)?;
    if usage.value.key_cert_sign() {
        return Err(Problem::KeyCertSignLeaf);
    }
    if usage.value.crl_sign() {
        return Err(Problem::CrlSignLeaf);
    }
    if !usage.critical || !usage.value.digital_signature() {
        return Err(Problem::KeyUsage);
    }
    let extended = certificate.extended_key_usage().map_err(|_| Problem::Malformed)?;
    if extended.is_some_and(|extended| !(extended.value.server_auth && extended.value.client_auth)) {
        return Err(Problem::Eku);
    }
    Ok(())
}

/// Holds a certificate to the rules for those that sign others; answers the trust domain it names, if it names one.
///
/// # Errors
/// The first rule that it breaks.
pub fn signing(der: &CertificateDer<'_>) -> Result<Option<String>, Problem> {
    let certificate = parse(der)?;
    let constraints = certificate.basic_constraints().map_err(|_| Problem::Malformed)?;
    let usage = certificate.key_usage().map_err(|_| Problem::Malformed)?;
    let is_authority = constraints.is_some_and(|constraints| constraints.value.ca);
    if !is_authority || !usage.is_some_and(|usage| usage.value.key_cert_sign()) {
        return Err(Problem::SigningUsage);
    }
    let names = uri_names(&certificate)?;
    match names.uris.as_slice() {
        [] => Ok(None),
        [uri] => {
            let domain = uri.strip_prefix("spiffe://").ok_or(Problem::SigningId)?;
            check_trust_domain(domain).map_err(|_| Problem::SigningId)?;
            Ok(Some(domain.to_owned()))
        }
        _ => Err(Problem::SigningId),
    }
}

struct UriNames<'a> {
    uris: Vec<&'a str>,
    critical: bool,
}

fn uri_names<'a>(certificate: &'a X509Certificate<'a>) -> Result<UriNames<'a>, Problem> {
    let names = certificate.subject_alternative_name().map_err(|_| Problem::Malformed)?;
    let Some(names) = names else { return Ok(UriNames { uris: Vec::new(), critical: false }) };
    let uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    Ok(UriNames { uris: uris.collect(), critical: names.critical })
}

/// The URI name of a certificate that has exactly one.
pub(super) fn only_uri<'a>(certificate: &'a X509Certificate<'a>) -> Option<&'a str> {
    let [uri] = *uri_names(certificate).ok()?.uris else { return None };
    Some(uri)
}
