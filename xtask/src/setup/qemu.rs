//! An emulator whose two CPUs agree on what the code is.
//!
//! Kernels rewrite their own code while it runs, behind a breakpoint. Before version 8.1 QEMU's translator let one
//! emulated CPU run the breakpoint after the other had taken it away ("accel/tcg: Always lock pages before
//! translation" mends it), and the kernel died of it ("Oops: int3") in some runs of the suite. Where the distribution's
//! QEMU is older, its backport is unpacked beside it, below .tools; the older one brings the libraries.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::debian;
use crate::{archive::Suite, process, scratch::Scratch};

/// The emulator, of the package qemu-system-x86.
const PROGRAM: &str = "qemu-system-x86_64";

/// The oldest version that is good, as major and minor.
const OLDEST: (u32, u32) = (8, 1);

/// What is unpacked: the program, its devices' firmware, the machine's.
const PACKAGES: [&str; 3] = ["qemu-system-x86", "qemu-system-data", "seabios"];

/// A QEMU on this machine.
pub(crate) struct Emulator {
    program: PathBuf,
    /// Where it was unpacked to; none for one that is installed.
    root: Option<PathBuf>,
}

impl Emulator {
    /// The installed one, or else ours, if it is new enough.
    pub(crate) fn find() -> Option<Self> {
        let root = home();
        let unpacked = Self { program: root.join("usr/bin").join(PROGRAM), root: Some(root) };
        let installed = process::find(PROGRAM).map(|program| Self { program, root: None });
        installed.into_iter().chain([unpacked]).find(|emulator| emulator.version().is_ok_and(|is| is >= OLDEST))
    }

    /// A command that starts it.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(root) = &self.root {
            // The places that are compiled in are those of the older one.
            command.env("QEMU_MODULE_DIR", root.join("usr/lib/x86_64-linux-gnu/qemu"));
            for firmware in ["usr/share/qemu", "usr/share/seabios"] {
                command.arg("-L").arg(root.join(firmware));
            }
        }
        command
    }

    fn version(&self) -> Result<(u32, u32)> {
        let said = process::output(self.command().arg("--version"))?;
        parse(&said).with_context(|| format!("{} says no version: {said}", self.program.display()))
    }
}

pub(super) fn present() -> Result<bool> {
    Ok(Emulator::find().is_some())
}

/// The distribution's, and its backport where that is too old.
pub(super) fn install() -> Result<()> {
    if process::find(PROGRAM).is_none() {
        debian::require_root(&[PACKAGES[0]])?;
        debian::install(&[PACKAGES[0]])?;
    }
    if Emulator::find().is_some() {
        return Ok(());
    }
    let suite = format!("{}-backports", codename()?);
    let (major, minor) = OLDEST;
    println!("setup: the distribution's QEMU is older than {major}.{minor}: taking the one of {suite}");
    unpack(&suite, &home())
}

fn home() -> PathBuf {
    process::root().join(".tools/qemu")
}

/// Unpacks the packages of `suite` as `home`, whole or not at all.
fn unpack(suite: &str, home: &Path) -> Result<()> {
    let tools = process::root().join(".tools");
    fs::create_dir_all(&tools).with_context(|| format!("cannot make {}", tools.display()))?;
    let scratch = Scratch::beside(&tools, "qemu")?;
    let root = scratch.path().join("root");
    let packages = Suite::open(suite, scratch.path())?;
    for name in PACKAGES {
        let package = packages.find(name, |_| true).with_context(|| format!("{suite} has no {name}"))?;
        let deb = packages.download(package, scratch.path())?;
        process::output(Command::new("dpkg-deb").arg("--extract").arg(deb).arg(&root))?;
    }
    let unpacked = Emulator { program: root.join("usr/bin").join(PROGRAM), root: Some(root.clone()) };
    let version = unpacked.version().context("the backport does not run here")?;
    if version < OLDEST {
        bail!("{suite} has QEMU {}.{} only: install a newer one", version.0, version.1);
    }
    if home.exists() {
        fs::rename(home, scratch.path().join("replaced")).with_context(|| format!("move {}", home.display()))?;
    }
    fs::rename(&root, home).with_context(|| format!("cannot put {} in place", home.display()))
}

/// The distribution's name for this release, as its suites have it.
fn codename() -> Result<String> {
    let path = "/etc/os-release";
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name.with_context(|| format!("{path} has no VERSION_CODENAME"))?.trim_matches('"').to_owned())
}

/// Major and minor of `QEMU emulator version 10.0.2 (Debian ...)`.
fn parse(said: &str) -> Option<(u32, u32)> {
    let (_, rest) = said.split_once("version ")?;
    let mut numbers = rest.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::{OLDEST, parse};

    #[test]
    fn a_version_is_compared_by_number() {
        let version = |text: &str| parse(&format!("QEMU emulator version {text}\nCopyright"));
        assert_eq!(version("10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)"), Some((10, 0)));
        assert!(version("10.0.2") >= Some(OLDEST) && version("8.1.0") >= Some(OLDEST));
        assert!(version("7.2.22") < Some(OLDEST) && version("8.0.4") < Some(OLDEST));
        assert_eq!(parse("no QEMU"), None);
    }
}
