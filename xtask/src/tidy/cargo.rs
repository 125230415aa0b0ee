//! The checks that cargo's own tools make.

use std::{path::Path, process::Command};

use crate::{process, test::Tally};

const EBPF: &str = "sidecar-ebpf/Cargo.toml";

/// Formatting and lints of the workspace, and of the eBPF crate, which is outside it.
pub(super) fn check(tally: &mut Tally) {
    one(tally, process::cargo().args(["fmt", "--all", "--check"]), "run `cargo fmt --all`");
    let mut clippy = process::cargo();
    clippy.args(["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"]);
    one(tally, &mut clippy, "mend what it names");
    if process::root().join(EBPF).is_file() {
        one(tally, process::cargo().args(["fmt", "--manifest-path", EBPF, "--check"]), "run it without --check");
        one(tally, &mut ebpf_clippy(), "mend what it names");
    }
}

/// The bpf target has no core library to install, so it is built, which stable allows only by this variable.
fn ebpf_clippy() -> Command {
    let mut clippy = process::cargo();
    // Cargo reads the crate's own .cargo/config.toml only when started in its folder.
    clippy.current_dir(process::root().join(Path::new(EBPF).parent().unwrap_or(Path::new("."))));
    clippy.env("RUSTC_BOOTSTRAP", "1");
    clippy.args([
        "clippy",
        "--locked",
        "--target",
        "bpfel-unknown-none",
        "-Z",
        "build-std=core",
        "--",
        "-D",
        "warnings",
    ]);
    clippy
}

fn one(tally: &mut Tally, command: &mut Command, fix: &str) {
    let result = process::run(command);
    tally.check(result.is_ok());
    match result {
        Ok(()) => println!("tidy: {} ... ok", process::line(command)),
        Err(error) => println!("{error:#}; {fix}"),
    }
}
