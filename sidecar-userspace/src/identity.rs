//! Who this workload is: its certificate, its key, and the authorities whose word it takes for others.
//!
//! A set of these is verified as a whole before anybody sees it ([`Identity::verify`]), by the same rules ([`svid`]) that
//! peers' certificates are held to. Whoever needs it holds an [`IdentityWatch`]; a [`Source`] keeps it filled.

pub mod authority;
pub mod inspect;
pub mod pem;
pub mod problem;
mod set;
mod source;
pub mod svid;
mod trust;
mod watch;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::{
    pki_types::{CertificateDer, UnixTime},
    sign::CertifiedKey,
};

use crate::id::SpiffeId;

pub use problem::Problem;
pub use set::{Names, Parts, Refused};
pub use source::Source;
pub use svid::Leaf;
pub use trust::{Role, Trust};
pub use watch::{IdentityWatch, Publisher, State};

/// One verified set: certificate, key, and the bundles and revocation lists that peers are judged by.
pub struct Identity {
    leaf: Leaf,
    certified: Arc<CertifiedKey>,
    trust: Trust,
}

impl Identity {
    /// The workload's name.
    pub fn id(&self) -> &SpiffeId {
        &self.leaf.id
    }

    /// Certificate chain, leaf first, with its key.
    pub fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }

    /// Bundles and revocation lists.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// End of the certificate's validity: it is valid up to and including this second.
    pub fn not_after(&self) -> SystemTime {
        self.leaf.not_after
    }

    /// The first moment at which the certificate is no longer valid.
    pub fn usable_until(&self) -> SystemTime {
        self.leaf.usable_until()
    }

    /// Whether the certificate's validity has ended.
    pub fn expired(&self, now: SystemTime) -> bool {
        self.leaf.expired(now)
    }

    /// Whether one of a peer's certificates has been revoked: for sweeping live connections after the lists changed.
    pub fn revoked(&self, chain: &[CertificateDer<'_>]) -> bool {
        self.trust.revoked(chain)
    }
}

impl fmt::Debug for Identity {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("id", self.id()).field("not_after", &self.not_after()).finish_non_exhaustive()
    }
}

/// Seconds since 1970, as certificates count.
fn unix(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// A certificate's second as a time; before 1970 is 1970.
fn system_time(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap_or(0))
}

#[cfg(test)]
pub(crate) mod mint;
#[cfg(test)]
mod tests;
