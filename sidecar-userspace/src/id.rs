//! Names of workloads: SPIFFE IDs.

use std::{fmt, str::FromStr, sync::Arc};

use thiserror::Error;

/// A SPIFFE ID of a workload (SPIFFE-ID standard §2): `spiffe://<trust domain>/<path>`, the path not empty.
///
/// Cheap to clone. Compared as text, byte for byte, as the standard demands.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    text: Arc<str>,
    /// Length of the trust domain within the text.
    domain: u16,
}

/// Why a text is no SPIFFE ID of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SpiffeIdError {
    /// Another scheme, or none.
    #[error("a SPIFFE ID begins with `spiffe://`")]
    Scheme,
    /// §2.1: lower-case letters, digits, dots, dashes and underscores.
    #[error("the trust domain may hold lower-case letters, digits, `.`, `-` and `_` only, and is not empty")]
    TrustDomain,
    /// §2.2: no empty, `.` or `..` segment, no percent-encoding.
    #[error("the path may hold letters, digits, `.`, `-` and `_` between single slashes only, without `.` and `..`")]
    Path,
    /// The ID of the trust domain itself, which names no workload.
    #[error("the path is missing: the ID names a trust domain, not a workload")]
    NoPath,
    /// §2.3: 2048 bytes.
    #[error("longer than 2048 bytes")]
    Long,
}

const SCHEME: &str = "spiffe://";

impl SpiffeId {
    /// §2.3: what every implementation must take, and the most that this one takes.
    const LONGEST: usize = 2048;

    /// The trust domain.
    pub fn trust_domain(&self) -> &str {
        &self.text[SCHEME.len()..SCHEME.len() + usize::from(self.domain)]
    }

    /// The path, with its leading slash.
    pub fn path(&self) -> &str {
        &self.text[SCHEME.len() + usize::from(self.domain)..]
    }

    /// The whole ID.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The Kubernetes namespace of an ID as Istio forms them (`/ns/<namespace>/sa/<service account>`).
    pub fn namespace(&self) -> Option<&str> {
        self.istio().map(|(namespace, _)| namespace)
    }

    /// The Kubernetes service account of an ID as Istio forms them.
    pub fn service_account(&self) -> Option<&str> {
        self.istio().map(|(_, account)| account)
    }

    fn istio(&self) -> Option<(&str, &str)> {
        let (namespace, account) = self.path().strip_prefix("/ns/")?.split_once("/sa/")?;
        (!namespace.contains('/') && !account.contains('/')).then_some((namespace, account))
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, SpiffeIdError> {
        if text.len() > Self::LONGEST {
            return Err(SpiffeIdError::Long);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(SpiffeIdError::Scheme)?;
        let (domain, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        check_trust_domain(domain)?;
        if path.is_empty() {
            return Err(SpiffeIdError::NoPath);
        }
        if !path[1..].split('/').all(is_segment) {
            return Err(SpiffeIdError::Path);
        }
        Ok(Self { text: text.into(), domain: domain.len() as u16 })
    }
}

/// Whether `domain` can be a trust domain.
///
/// # Errors
/// It cannot.
pub fn check_trust_domain(domain: &str) -> Result<(), SpiffeIdError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
    let good = !domain.is_empty() && domain.len() <= 255 && domain.bytes().all(allowed);
    if good { Ok(()) } else { Err(SpiffeIdError::TrustDomain) }
}

fn is_segment(segment: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    !matches!(segment, "" | "." | "..") && segment.bytes().all(allowed)
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpiffeId({})", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::{SpiffeId, SpiffeIdError};

    #[test]
    fn an_id_is_taken_apart_as_it_was_put_together() {
        let id: SpiffeId = "spiffe://td-1.example/ns/shop/sa/web_1".parse().unwrap();
        assert_eq!((id.trust_domain(), id.path()), ("td-1.example", "/ns/shop/sa/web_1"));
        assert_eq!((id.namespace(), id.service_account()), (Some("shop"), Some("web_1")));
        assert_eq!(id.to_string(), "spiffe://td-1.example/ns/shop/sa/web_1");
        let other: SpiffeId = "spiffe://td/ns/a/sa/b/c".parse().unwrap();
        assert_eq!((other.namespace(), other.service_account()), (None, None));
    }

    #[test]
    fn what_the_standard_forbids_is_refused_with_its_reason() {
        for (text, error) in [
            ("", SpiffeIdError::Scheme),
            ("http://td/a", SpiffeIdError::Scheme),
            ("SPIFFE://td/a", SpiffeIdError::Scheme),
            ("spiffe:///a", SpiffeIdError::TrustDomain),
            ("spiffe://TD/a", SpiffeIdError::TrustDomain),
            ("spiffe://td:80/a", SpiffeIdError::TrustDomain),
            ("spiffe://user@td/a", SpiffeIdError::TrustDomain),
            ("spiffe://td?q/a", SpiffeIdError::TrustDomain),
            ("spiffe://td", SpiffeIdError::NoPath),
            ("spiffe://td/", SpiffeIdError::Path),
            ("spiffe://td/a/", SpiffeIdError::Path),
            ("spiffe://td/a//b", SpiffeIdError::Path),
            ("spiffe://td/./b", SpiffeIdError::Path),
            ("spiffe://td/../b", SpiffeIdError::Path),
            ("spiffe://td/a%20b", SpiffeIdError::Path),
            ("spiffe://td/a?b", SpiffeIdError::Path),
            ("spiffe://td/a#b", SpiffeIdError::Path),
            ("spiffe://td/ä", SpiffeIdError::Path),
        ] {
            assert_eq!(text.parse::<SpiffeId>().unwrap_err(), error, "{text}");
        }
        let long = format!("spiffe://td/{}", "a".repeat(2048));
        assert_eq!(long.parse::<SpiffeId>().unwrap_err(), SpiffeIdError::Long);
    }
}
