//! What to do, as `cargo xtask vm` wrote it into the initramfs.

use anyhow::Context as _;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The whole plan of one boot.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plan {
    /// Files below `/modules`, each after the ones it depends on.
    pub(crate) modules: Vec<String>,
    /// How the host's file system is reached.
    pub(crate) share: Share,
    /// The whole environment of every binary.
    pub(crate) env: BTreeMap<String, String>,
    /// Run in this order, one at a time.
    pub(crate) binaries: Vec<Binary>,
}

/// A file system that the host serves.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Share {
    /// `9p` or `virtiofs`.
    pub(crate) fstype: String,
    /// The name that QEMU gave it.
    pub(crate) tag: String,
    /// Mount options.
    pub(crate) options: String,
}

/// One program to run. Paths are the host's.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Binary {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) directory: PathBuf,
}

impl Plan {
    /// Reads the plan at `path`.
    pub(crate) fn read(path: &str) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {path}"))?;
        serde_json::from_str(&text).with_context(|| format!("parse {path}"))
    }
}
