//! Certificates told for people.

use std::time::SystemTime;

use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde::Serialize;
use x509_parser::{certificate::X509Certificate, extensions::KeyUsage};

use super::{Problem, svid, system_time};

/// What a certificate says, and what is wrong with it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Its URI name, if it has exactly one.
    pub id: Option<String>,
    /// Whether it is an authority's.
    pub authority: bool,
    /// Serial number, as colon-separated bytes.
    pub serial: String,
    /// Who signed it.
    pub issuer: String,
    /// Begin of validity, RFC 2822.
    pub not_before: String,
    /// End of validity, RFC 2822.
    pub not_after: String,
    /// End of validity, seconds since 1970.
    pub not_after_timestamp: i64,
    /// What its key may be used for.
    pub key_usage: Vec<String>,
    /// What it may be used for.
    pub extended_key_usage: Vec<String>,
    /// The rules that it breaks, each with its fix. The first of each kind.
    pub problems: Vec<String>,
}

/// Tells of each certificate in `pem`; one that cannot be read has nothing but its problem.
pub fn report(pem: &[u8], now: SystemTime) -> Vec<Report> {
    let certificates = CertificateDer::pem_slice_iter(pem).filter_map(Result::ok);
    certificates.map(|der| svid::parse(&der).map_or_else(unreadable, |parsed| of(&der, &parsed, now))).collect()
}

fn unreadable(problem: Problem) -> Report {
    Report {
        id: None,
        authority: false,
        serial: String::new(),
        issuer: String::new(),
        not_before: String::new(),
        not_after: String::new(),
        not_after_timestamp: 0,
        key_usage: Vec::new(),
        extended_key_usage: Vec::new(),
        problems: vec![told(problem)],
    }
}

fn told(problem: Problem) -> String {
    format!("{}: {problem}; {}", problem.label(), problem.fix())
}

fn of(der: &CertificateDer<'_>, parsed: &X509Certificate<'_>, now: SystemTime) -> Report {
    let authority = parsed.is_ca();
    let judged = if authority { svid::signing(der).map(drop) } else { svid::leaf(der).map(drop) };
    let validity = parsed.validity();
    let mut problems: Vec<Problem> = judged.err().into_iter().collect();
    if now < system_time(validity.not_before.timestamp()) {
        problems.push(Problem::NotYetValid);
    }
    if now >= svid::usable_until(system_time(validity.not_after.timestamp())) {
        problems.push(Problem::Expired);
    }
    let time = |time: x509_parser::time::ASN1Time| time.to_rfc2822().unwrap_or_else(|error| error);
    Report {
        id: svid::only_uri(parsed).map(str::to_owned),
        authority,
        serial: parsed.raw_serial_as_string(),
        issuer: parsed.issuer().to_string(),
        not_before: time(validity.not_before),
        not_after: time(validity.not_after),
        not_after_timestamp: validity.not_after.timestamp(),
        key_usage: parsed.key_usage().ok().flatten().map(|usage| key_usage(usage.value)).unwrap_or_default(),
        extended_key_usage: extended_key_usage(parsed),
        problems: problems.into_iter().map(told).collect(),
    }
}

fn key_usage(usage: &KeyUsage) -> Vec<String> {
    let all = [
        (usage.digital_signature(), "digitalSignature"),
        (usage.key_encipherment(), "keyEncipherment"),
        (usage.key_agreement(), "keyAgreement"),
        (usage.key_cert_sign(), "keyCertSign"),
        (usage.crl_sign(), "cRLSign"),
    ];
    all.into_iter().filter(|(set, _)| *set).map(|(_, name)| name.to_owned()).collect()
}

fn extended_key_usage(parsed: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(usage)) = parsed.extended_key_usage() else { return Vec::new() };
    let all = [(usage.value.server_auth, "serverAuth"), (usage.value.client_auth, "clientAuth")];
    let named = all.into_iter().filter(|(set, _)| *set).map(|(_, name)| name.to_owned());
    named.chain(usage.value.other.iter().map(ToString::to_string)).collect()
}
