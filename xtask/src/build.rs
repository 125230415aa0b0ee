//! `cargo xtask build`: the sidecar in release mode.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{
    process,
    setup::{self, Group},
};

/// Arguments of `build`.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Builds and says where the binary is.
pub(crate) fn run(_args: Args) -> Result<()> {
    let binary = sidecar()?;
    println!("{}", binary.display());
    Ok(())
}

/// Builds the sidecar in release mode, with its eBPF object, and returns the path of the binary.
///
/// # Errors
/// When the toolchain cannot be completed or the build fails.
pub(crate) fn sidecar() -> Result<PathBuf> {
    setup::ensure(&[Group::Toolchain])?;
    let mut build = process::cargo();
    build.args(["build", "--release", "--package", "sidecar", "--bin", "sidecar"]);
    build.arg("--message-format=json-render-diagnostics");
    let messages = messages(&mut build)?;
    executable(&messages, "sidecar").context("cargo built the sidecar but named no executable")
}

/// Cargo says where the binary is: CARGO_TARGET_DIR and the configuration move it.
fn messages(build: &mut Command) -> Result<String> {
    let output = build.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("`{}` failed: {}", process::line(build), output.status);
    }
    String::from_utf8(output.stdout).context("cargo's messages are not UTF-8")
}

fn executable(messages: &str, target: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact" && message["target"]["name"] == target)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::executable;

    #[test]
    fn finds_the_executable_among_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"sidecar"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"other"},"executable":"/t/other"}
{"reason":"compiler-artifact","target":{"name":"sidecar"},"executable":"/t/sidecar"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages, "sidecar"), Some("/t/sidecar".into()));
        assert_eq!(executable(messages, "absent"), None);
    }
}
