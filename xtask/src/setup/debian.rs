//! Debian packages, without the daemons in them coming to life.

use std::{os::unix::process::CommandExt, process::Command, process::Stdio};

use anyhow::{Context, Result, bail};

use super::policy;
use crate::{interrupt, process};

/// Units that the packages of the table bring; installing enables them for the next boot.
const UNITS: &[(&str, &str)] =
    &[("nginx-light", "nginx"), ("redis-server", "redis-server"), ("postgresql", "postgresql")];

/// Fails when packages are to be installed by someone who may not, with the command that does it.
///
/// # Errors
/// When this process is not root.
pub(super) fn require_root(packages: &[&str]) -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    bail!(
        "not root, so these Debian packages cannot be installed: {}\n  run this once, then the same command again: \
         sudo env PATH=\"$PATH\" HOME=\"$HOME\" cargo xtask setup",
        packages.join(" ")
    )
}

/// Installs packages; no daemon is started, now or at the next boot.
///
/// # Errors
/// When a package cannot be found, downloaded or installed.
pub(super) fn install(packages: &[&str]) -> Result<()> {
    // The long part, which Ctrl-C may end: a package is downloaded or not.
    if download(packages).is_err() {
        interrupt::check()?;
        // No package lists yet, or the archive has moved on since they were read.
        process::output(apt_get().arg("update"))?;
        download(packages)?;
    }
    let _policy = policy::start_no_daemons()?;
    unpack(packages)?;
    disable(packages)?;
    interrupt::check()
}

fn download(packages: &[&str]) -> Result<()> {
    process::output(apt_get().args(["install", "--download-only"]).args(packages)).map(|_| ())
}

fn unpack(packages: &[&str]) -> Result<()> {
    uninterrupted(apt_get().arg("install").args(packages)).context("`dpkg --configure -a` may mend it")
}

/// Debian enables what it installs; only units of packages that were missing until now are touched.
fn disable(packages: &[&str]) -> Result<()> {
    for (_, unit) in UNITS.iter().filter(|(package, _)| packages.contains(package)) {
        let disabled = if process::find("systemctl").is_some() {
            uninterrupted(Command::new("systemctl").args(["disable", unit]))
        } else {
            uninterrupted(Command::new("update-rc.d").args([unit, "disable"]))
        };
        disabled.with_context(|| format!("{unit} may start at the next boot"))?;
    }
    Ok(())
}

/// Runs a command in a process group of its own: Ctrl-C must not reach dpkg, which would leave packages half
/// configured, nor come between the installation and the disabling. What it says is shown only when it fails.
fn uninterrupted(command: &mut Command) -> Result<()> {
    let output = command.process_group(0).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot start `{}`", process::line(command)))?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        bail!("`{}` failed: {}\n{}", process::line(command), output.status, String::from_utf8_lossy(&said));
    }
    Ok(())
}

fn apt_get() -> Command {
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive");
    // Another apt at work, such as unattended upgrades, is waited for.
    apt.args(["-qq", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120"]);
    apt
}
