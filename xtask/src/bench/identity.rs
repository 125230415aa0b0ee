//! Identities of the two pods, for the sidecar and for Envoy alike.

use crate::{
    process,
    world::{folder::Folder, pod::Pod},
};
use anyhow::Result;
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Trust domain of both.
pub(super) const TRUST_DOMAIN: &str = "bench.example";

/// Makes an authority and has it issue certificates, all of them with keys on P-256, with the sidecar's own commands.
pub(super) fn issue(sidecar: &Path, folder: &Folder, pods: &[&Pod]) -> Result<()> {
    let authority = folder.path().join("ca");
    let command = |verb: &str, args: &[&str]| {
        process::output(Command::new(sidecar).arg("ca").arg(verb).arg(&authority).args(args)).map(drop)
    };
    command("init", &["--trust-domain", TRUST_DOMAIN])?;
    pods.iter().try_for_each(|pod| {
        let out = of(folder, pod).display().to_string();
        command("issue", &["--namespace", "pods", "--service-account", &pod.name, "--out", &out])
    })
}

/// Where `cert.pem`, `key.pem` and `roots.pem` of a pod are.
pub(super) fn of(folder: &Folder, pod: &Pod) -> PathBuf {
    folder.path().join(format!("identity-{}", pod.name))
}

/// The sidecar's configuration for them.
pub(super) fn settings(folder: &Folder, pod: &Pod) -> String {
    let at = of(folder, pod);
    let at = at.display();
    format!("identity: {{ files: {{ cert: {at}/cert.pem, key: {at}/key.pem, roots: {at}/roots.pem }} }}\n")
}
