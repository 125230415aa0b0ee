//! A configuration while it is read: what takes several keys may still lack some of them.

use std::{
    ops::{Deref, DerefMut},
    path::PathBuf,
    time::Duration,
};

use super::{Authority, Config, Identity, IdentityFiles};
use crate::id::SpiffeId;

/// Lifetime of a certificate from the embedded authority when nothing else is said.
const LIFETIME: Duration = Duration::from_secs(3600);

/// A configuration whose identity is still in parts. Everything else is that of the [`Config`] it derefs to.
pub(super) struct Draft {
    config: Config,
    pub(super) files: FileParts,
    pub(super) ca: AuthorityParts,
}

/// The parts of [`IdentityFiles`].
#[derive(Default)]
pub(super) struct FileParts {
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    pub(super) roots: Option<PathBuf>,
    pub(super) crl: Option<PathBuf>,
}

/// The parts of [`Authority`].
pub(super) struct AuthorityParts {
    pub(super) directory: Option<PathBuf>,
    pub(super) id: Option<SpiffeId>,
    pub(super) lifetime: Duration,
}

/// The keys that make up a source of identity, and which of them have a value.
pub(super) struct Parts {
    /// The source's section or key.
    pub(super) path: &'static str,
    /// Keys without which it is nothing.
    pub(super) needed: Vec<(&'static str, bool)>,
    /// Keys that may be left out.
    pub(super) more: Vec<(&'static str, bool)>,
}

impl Draft {
    /// Takes a configuration apart.
    pub(super) fn new(mut config: Config) -> Self {
        let Identity { files, ca, .. } = &mut config.identity;
        let files = files.take().map_or_else(FileParts::default, |files| FileParts {
            cert: Some(files.cert),
            key: Some(files.key),
            roots: Some(files.roots),
            crl: files.crl,
        });
        let ca = ca.take().map_or_else(AuthorityParts::default, |ca| AuthorityParts {
            directory: Some(ca.directory),
            id: Some(ca.id),
            lifetime: ca.lifetime,
        });
        Self { config, files, ca }
    }

    /// The sources of identity.
    pub(super) fn sources(&self) -> [Parts; 3] {
        let Self { files, ca, .. } = self;
        [
            Parts {
                path: "identity.files",
                needed: vec![
                    ("identity.files.cert", files.cert.is_some()),
                    ("identity.files.key", files.key.is_some()),
                    ("identity.files.roots", files.roots.is_some()),
                ],
                more: vec![("identity.files.crl", files.crl.is_some())],
            },
            Parts {
                path: "identity.workload_api",
                needed: vec![("identity.workload_api", self.config.identity.workload_api.is_some())],
                more: Vec::new(),
            },
            Parts {
                path: "identity.ca",
                needed: vec![("identity.ca.directory", ca.directory.is_some()), ("identity.ca.id", ca.id.is_some())],
                more: vec![("identity.ca.lifetime", ca.lifetime != LIFETIME)],
            },
        ]
    }

    /// Puts the parts together; a source that lacks one is no source.
    pub(super) fn into_config(self) -> Config {
        let Self { mut config, files, ca } = self;
        if let (Some(cert), Some(key), Some(roots)) = (files.cert, files.key, files.roots) {
            config.identity.files = Some(IdentityFiles { cert, key, roots, crl: files.crl });
        }
        if let (Some(directory), Some(id)) = (ca.directory, ca.id) {
            config.identity.ca = Some(Authority { directory, id, lifetime: ca.lifetime });
        }
        config
    }
}

impl Default for AuthorityParts {
    fn default() -> Self {
        Self { directory: None, id: None, lifetime: LIFETIME }
    }
}

impl Deref for Draft {
    type Target = Config;

    fn deref(&self) -> &Config {
        &self.config
    }
}

impl DerefMut for Draft {
    fn deref_mut(&mut self) -> &mut Config {
        &mut self.config
    }
}
