//! The source of the standard library, of exactly the running compiler's version.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::rustup;
use crate::{archive::Suite, interrupt, process, scratch::Scratch};

/// The suite of Debian that follows the current compiler.
const SUITE: &str = "trixie-backports";

/// Where the compiler looks for its source, below the sysroot.
const SOURCE: &str = "lib/rustlib/src/rust";

/// What `-Z build-std=core` reads.
const PROOF: [&str; 2] = ["library/Cargo.lock", "library/core/src/lib.rs"];

pub(super) fn present() -> Result<bool> {
    let source = sysroot()?.join(SOURCE);
    Ok(PROOF.iter().all(|file| source.join(file).is_file()))
}

/// rustup's component, else the distribution's package of the same version.
pub(super) fn install() -> Result<()> {
    let Err(error) = rustup::add("rust-src") else { return Ok(()) };
    interrupt::check()?;
    println!("setup: rustup could not: {error:#}");
    println!("setup: taking the same version from Debian's {SUITE} instead");
    from_debian(&sysroot()?, &release()?)
}

/// Unpacks Debian's rust-src of the compiler version `release` into a sysroot, whole or not at all.
fn from_debian(sysroot: &Path, release: &str) -> Result<()> {
    let place = sysroot.join(SOURCE);
    fs::create_dir_all(&place).with_context(|| format!("cannot make {}: run as its owner", place.display()))?;
    let scratch = Scratch::beside(&place, "debian")?;
    let suite = Suite::open(SUITE, scratch.path())?;
    let Some(package) = suite.find("rust-src", |version| is_upstream(version, release)) else {
        bail!(
            "{SUITE} has no rust-src {release}: run `rustup component add rust-src` where rustup's server is reachable"
        );
    };
    println!("setup: rust-src {} from Debian", package.version);
    let deb = suite.download(package, scratch.path())?;
    unpack(&deb, scratch.path(), release)?;
    interrupt::check()?;
    let library = place.join("library");
    if library.exists() {
        fs::rename(&library, scratch.path().join("replaced")).context("cannot move an incomplete library away")?;
    }
    let unpacked = scratch.path().join(format!("usr/src/rustc-{release}/library"));
    fs::rename(&unpacked, &library).with_context(|| format!("cannot put {} in place", library.display()))
}

/// Only the library: the package also holds the compiler's source.
fn unpack(deb: &Path, into: &Path, release: &str) -> Result<()> {
    let mut list = Command::new("dpkg-deb");
    let mut archive =
        list.arg("--fsys-tarfile").arg(deb).stdout(Stdio::piped()).spawn().context("cannot start dpkg-deb")?;
    let stream = archive.stdout.take().context("dpkg-deb has no stdout")?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--no-same-owner", "--file=-", "--directory"]).arg(into);
    tar.arg(format!("./usr/src/rustc-{release}/library")).stdin(stream);
    let unpacked = process::run(&mut tar);
    let listed = archive.wait().context("cannot wait for dpkg-deb")?;
    unpacked?;
    if !listed.success() {
        bail!("`{}` failed: {listed}", process::line(&list));
    }
    Ok(())
}

/// Whether a Debian version is of the upstream release: `1.95.0+dfsg1-2~bpo13+1` is of 1.95.0.
fn is_upstream(version: &str, release: &str) -> bool {
    version.split(['+', '-', '~']).next() == Some(release)
}

fn sysroot() -> Result<PathBuf> {
    Ok(process::output(rustc().args(["--print", "sysroot"]))?.trim_end().into())
}

fn release() -> Result<String> {
    let version = process::output(rustc().arg("-vV"))?;
    let release = version.lines().find_map(|line| line.strip_prefix("release: "));
    Ok(release.context("rustc -vV names no release")?.to_owned())
}

fn rustc() -> Command {
    Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_only_packages_of_the_compilers_own_release() {
        assert!(is_upstream("1.95.0+dfsg1-2~bpo13+1", "1.95.0"));
        assert!(is_upstream("1.95.0-1", "1.95.0"));
        assert!(!is_upstream("1.95.1+dfsg1-1", "1.95.0"));
        assert!(!is_upstream("1.95.0.1-1", "1.95.0"));
        assert!(!is_upstream("11.95.0-1", "1.95.0"));
    }
}
