//! A certificate authority for the pods of a world, made and used with the sidecar's own commands.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use super::{Pod, Sidecar, World};

/// Trust domain of every authority here.
pub const TRUST_DOMAIN: &str = "td.example";

/// An authority, in a directory that goes away with its world.
#[derive(Debug)]
pub struct Authority(PathBuf);

impl Authority {
    /// A new one.
    pub fn new(world: &World) -> Result<Self> {
        Self::named(world, "ca", TRUST_DOMAIN)
    }

    /// A new one of this name and trust domain.
    pub fn named(world: &World, name: &str, trust_domain: &str) -> Result<Self> {
        let authority = Self(world.client.directory().join(name));
        authority.command("init", &["--trust-domain", trust_domain])?;
        Ok(authority)
    }

    /// Issues the identity of this service account of the namespace `test` to `pod`; answers the configuration that uses
    /// it. A second time it replaces the first.
    pub fn issue(&self, pod: &Pod, account: &str) -> Result<String> {
        let out = pod.directory().join("identity");
        let out = out.to_string_lossy();
        self.command("issue", &["--namespace", "test", "--service-account", account, "--out", &out])?;
        Ok(format!("identity: {{ files: {{ cert: {out}/cert.pem, key: {out}/key.pem, roots: {out}/roots.pem }} }}\n"))
    }

    /// Its files.
    pub fn directory(&self) -> &Path {
        &self.0
    }

    /// Runs a command of the authority's.
    pub fn command(&self, verb: &str, args: &[&str]) -> Result<()> {
        let output = Sidecar::program()?.arg("ca").arg(verb).arg(&self.0).args(args).output()?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "sidecar ca {verb} {args:?}: {}: {told}", output.status);
        Ok(())
    }
}

/// The SPIFFE ID of a service account of the namespace `test`.
pub fn spiffe_id(account: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/test/sa/{account}")
}
