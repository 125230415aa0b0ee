//! What runs inside: the init, the integration tests' binaries, the sidecar.

use crate::process;
use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Naming the target keeps the statically linked init apart from the one that `cargo test` builds.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Names a sidecar that is built already, to cargo xtask vm as to the suite.
pub(super) const SIDECAR: &str = "SIDECAR_BIN";

/// Tells the suite how slow its machine is (tests/src/harness/pace.rs).
pub(super) const SLOWNESS: &str = "SIDECAR_TEST_SLOWNESS";

/// Directories in which the guest has files of its own (vm-tests/src/root.rs).
const HIDDEN: &[&str] = &["/dev", "/proc", "/run", "/sys"];

/// Everything that was built.
pub(super) struct Suite {
    pub(super) init: PathBuf,
    pub(super) sidecar: PathBuf,
    pub(super) binaries: Vec<Binary>,
}

/// One binary of integration tests.
pub(super) struct Binary {
    pub(super) name: String,
    pub(super) path: PathBuf,
    /// Where cargo would run it.
    pub(super) directory: PathBuf,
}

/// A line of `cargo --message-format=json`, as far as it matters here.
#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
    name: String,
}

impl Suite {
    /// Builds what is not built yet.
    pub(super) fn build() -> anyhow::Result<Self> {
        let init = built(
            process::cargo()
                .args(["rustc", "--quiet", "--package", "vm-tests", "--bin", "vm-tests", "--target", TARGET])
                .args(["--message-format=json-render-diagnostics", "--", "-C", "target-feature=+crt-static"]),
            "bin",
        )?;
        let mut tests = process::cargo();
        tests.args(["test", "--quiet", "--no-run", "--message-format=json-render-diagnostics"]);
        // Of the whole workspace, as `cargo xtask test` compiles them.
        tests.args(["--workspace", "--test", "*"]);
        let mut binaries = built(&mut tests, "test")?;
        // Cargo names them in the order in which they happened to be ready.
        binaries.sort_by(|a, b| a.name.cmp(&b.name));
        let suite = Self { init: the_one(init, "vm-tests")?, sidecar: sidecar()?, binaries };
        let paths = suite.binaries.iter().map(|binary| &binary.path).chain([&suite.sidecar]);
        paths.into_iter().try_for_each(|path| ensure_visible(path))?;
        Ok(suite)
    }

    /// Leaves out a binary, which there must be.
    pub(super) fn leave_out(&mut self, name: &str) -> anyhow::Result<()> {
        let all = self.binaries.len();
        self.binaries.retain(|binary| binary.name != name);
        ensure!(self.binaries.len() < all, "vm-tests/kernels.toml: indifferent: there is no test binary {name}");
        Ok(())
    }
}

/// The sidecar that the environment names, else a fresh release build.
fn sidecar() -> anyhow::Result<PathBuf> {
    if let Some(path) = env::var_os(SIDECAR) {
        return PathBuf::from(&path).canonicalize().with_context(|| format!("{SIDECAR}={}", path.display()));
    }
    let arguments = ["build", "--quiet", "--release", "--package", "sidecar", "--bin", "sidecar"];
    let build = built(process::cargo().args(arguments).arg("--message-format=json-render-diagnostics"), "bin")?;
    the_one(build, "sidecar")
}

/// An error if the guest cannot see the host's `path`.
fn ensure_visible(path: &Path) -> anyhow::Result<()> {
    if let Some(directory) = HIDDEN.iter().find(|directory| path.starts_with(directory)) {
        bail!("{}: the guest cannot see it, for it has a {directory} of its own", path.display());
    }
    Ok(())
}

fn the_one(binaries: Vec<Binary>, name: &str) -> anyhow::Result<PathBuf> {
    let binary = binaries.into_iter().find(|binary| binary.name == name);
    Ok(binary.with_context(|| format!("cargo built no {name}"))?.path)
}

/// Runs a build and returns the executables of one `kind`.
fn built(cargo: &mut Command, kind: &str) -> anyhow::Result<Vec<Binary>> {
    let output = cargo.stderr(Stdio::inherit()).output().with_context(|| format!("start {cargo:?}"))?;
    ensure!(output.status.success(), "`{}`: {}", process::line(cargo), output.status);
    let text = String::from_utf8(output.stdout).context("read what cargo built")?;
    let messages = text.lines().filter(|line| line.starts_with('{'));
    let messages = messages.map(serde_json::from_str::<Message>).collect::<Result<Vec<_>, _>>();
    Ok(messages.context("parse what cargo built")?.into_iter().filter_map(|message| binary(message, kind)).collect())
}

fn binary(message: Message, kind: &str) -> Option<Binary> {
    let target = message.target.filter(|target| target.kind.iter().any(|each| each == kind))?;
    let directory = message.manifest_path?.parent()?.to_owned();
    Some(Binary { name: target.name, path: message.executable?, directory })
}
