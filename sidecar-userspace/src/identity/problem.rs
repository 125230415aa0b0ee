//! What can be wrong with a certificate.

use thiserror::Error;

use crate::id::SpiffeIdError;

/// Why a certificate is not accepted, our own or a peer's: a rule of the X509-SVID standard, or of RFC 5280.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// It cannot be read as a certificate.
    #[error("it is no X.509 certificate")]
    Malformed,
    /// X509-SVID §2: exactly one URI SAN.
    #[error("it holds no URI name, so it names no workload")]
    NoUriSan,
    /// X509-SVID §2: exactly one URI SAN.
    #[error("it holds more than one URI name")]
    TwoUriSans,
    /// X509-SVID §2: the URI must be a SPIFFE ID.
    #[error("its URI name is no SPIFFE ID: {0}")]
    NotSpiffe(SpiffeIdError),
    /// X509-SVID §4.1: a leaf's ID has a path.
    #[error("its SPIFFE ID has no path: it names a trust domain, not a workload")]
    NoPath,
    /// No bundle of that trust domain is known.
    #[error("its trust domain is not trusted")]
    WrongTrustDomain,
    /// X509-SVID §4.1: a leaf has CA false.
    #[error("it is an authority's (CA is true), which must not be used to authenticate")]
    CaLeaf,
    /// X509-SVID §4.3: a leaf must not sign certificates.
    #[error("its key may sign certificates (keyCertSign)")]
    KeyCertSignLeaf,
    /// X509-SVID §4.3: a leaf must not sign revocation lists.
    #[error("its key may sign revocation lists (cRLSign)")]
    CrlSignLeaf,
    /// X509-SVID §4.3: key usage is present, critical, and allows signing.
    #[error("its key usage is missing, not critical or without digitalSignature")]
    KeyUsage,
    /// X509-SVID §4.4: where present, both of serverAuth and clientAuth.
    #[error("its extended key usage lacks serverAuth or clientAuth")]
    Eku,
    /// RFC 5280 §4.1.2.6.
    #[error("its subject is empty and its subject alternative name not critical")]
    SanNotCritical,
    /// X509-SVID §4: a signing certificate has CA true and keyCertSign.
    #[error("a certificate of an authority lacks CA true or keyCertSign")]
    SigningUsage,
    /// X509-SVID §4.1: a signing certificate's ID has no path.
    #[error("a certificate of an authority has a SPIFFE ID with a path, or more than one")]
    SigningId,
    /// The validity has ended.
    #[error("it has expired")]
    Expired,
    /// The validity has not begun: issued by a clock ahead of ours, or ours is behind.
    #[error("it is not valid yet")]
    NotYetValid,
    /// It vouches for itself.
    #[error("it is signed by itself")]
    SelfSigned,
    /// No path to an authority of its trust domain.
    #[error("no authority of its trust domain has issued it")]
    UnknownIssuer,
    /// It, or one of its issuers, is on a revocation list.
    #[error("it has been revoked")]
    Revoked,
    /// More certificates, or longer ones, than we look at.
    #[error("its chain is too long")]
    ChainTooLong,
    /// The issuer's signature is wrong.
    #[error("its signature does not verify")]
    BadSignature,
    /// The issuer's revocation list cannot be used.
    #[error("the revocation list of its issuer does not verify")]
    BadCrl,
    /// Another rule of RFC 5280 path validation.
    #[error("its chain breaks a rule of RFC 5280")]
    BadChain,
}

/// Gives an enum `label`, the name that it is counted by, and `labels`, all that there are, from one table: the compiler
/// sees that no variant is missing. `or` names a variant that has the labels of what it holds.
macro_rules! labels {
    ($of:ty { $($variant:ident => $label:literal,)* } $(or $outer:ident: $inner:ty)?) => {
        impl $of {
            /// Every reason that `label` can give.
            pub fn labels() -> impl Iterator<Item = &'static str> {
                [$($label),*].into_iter()$(.chain(<$inner>::labels()))?
            }

            /// The reason as it is counted.
            pub fn label(self) -> &'static str {
                match self {
                    $(Self::$variant { .. } => $label,)*
                    $(Self::$outer(inner) => inner.label(),)?
                }
            }
        }
    };
}
pub(crate) use labels;

labels! { Problem {
    Malformed => "malformed",
    NoUriSan => "no_uri_san",
    TwoUriSans => "two_uri_sans",
    NotSpiffe => "not_spiffe",
    NoPath => "no_path",
    WrongTrustDomain => "wrong_trust_domain",
    CaLeaf => "ca_leaf",
    KeyCertSignLeaf => "key_cert_sign_leaf",
    CrlSignLeaf => "crl_sign_leaf",
    KeyUsage => "key_usage",
    Eku => "eku",
    SanNotCritical => "san_not_critical",
    SigningUsage => "signing_usage",
    SigningId => "signing_id",
    Expired => "expired",
    NotYetValid => "not_yet_valid",
    SelfSigned => "self_signed",
    UnknownIssuer => "unknown_issuer",
    Revoked => "revoked",
    ChainTooLong => "chain_too_long",
    BadSignature => "bad_signature",
    BadCrl => "bad_crl",
    BadChain => "bad_chain",
} }

impl Problem {
    /// What an operator does about it.
    pub fn fix(self) -> &'static str {
        match self {
            Self::Malformed => "write it as PEM, BEGIN CERTIFICATE",
            Self::NoUriSan | Self::TwoUriSans | Self::NotSpiffe(_) | Self::NoPath => {
                "issue it with exactly one URI name, spiffe://<trust domain>/<path>"
            }
            Self::WrongTrustDomain => "issue it for the trust domain of the roots, or give that domain's roots",
            Self::CaLeaf | Self::KeyCertSignLeaf | Self::CrlSignLeaf => {
                "put the workload's certificate first, not the authority's, and issue it with CA:FALSE"
            }
            Self::KeyUsage => "issue it with `keyUsage = critical, digitalSignature`",
            Self::Eku => "issue it with `extendedKeyUsage = serverAuth, clientAuth`, or without the extension",
            Self::SanNotCritical => "issue it with a subject, or with `subjectAltName = critical, …`",
            Self::SigningUsage => {
                "issue the authority with `basicConstraints = critical, CA:TRUE` and `keyUsage = critical, keyCertSign`"
            }
            Self::SigningId => "issue the authority with no URI name, or with spiffe://<trust domain> alone",
            Self::Expired => "renew it",
            Self::NotYetValid => "compare this machine's clock with the issuer's",
            Self::SelfSigned | Self::UnknownIssuer => "add the authority that issued it to the roots",
            Self::Revoked => "issue a new one",
            Self::ChainTooLong => "present the leaf and its intermediates only",
            Self::BadSignature | Self::BadChain => "issue it anew",
            Self::BadCrl => "have the authority sign its revocation list anew, with cRLSign in its key usage",
        }
    }
}
