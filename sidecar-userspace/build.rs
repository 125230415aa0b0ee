//! Builds the eBPF objects from source, every time: one for use, one whose programs also speak through aya-log.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() {
    if let Err(error) = build() {
        // `cargo::error` fails the build and shows the message alone, without a panic's backtrace.
        println!("cargo::error=the eBPF object cannot be built: {error}");
    }
}

fn build() -> Result<()> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("..").canonicalize()?;
    for input in ["sidecar-ebpf/src", "sidecar-ebpf/Cargo.toml", "sidecar-ebpf/Cargo.lock", "sidecar-common"] {
        println!("cargo::rerun-if-changed={}", root.join(input).display());
    }
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let linker = linker(&root)?;
    require_rust_src()?;
    compile(&root, &linker, &out, &[], "sidecar.bpf.o")?;
    compile(&root, &linker, &out, &["--features", "log"], "sidecar-log.bpf.o")
}

/// The project's own bpf-linker, else the one on `PATH`.
fn linker(root: &Path) -> Result<PathBuf> {
    let own = root.join(".tools/bin/bpf-linker");
    println!("cargo::rerun-if-changed={}", own.display());
    if own.exists() {
        return Ok(own);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .map(|dir| dir.join("bpf-linker"))
        .find(|candidate| candidate.exists())
        .ok_or_else(|| "bpf-linker is not installed; run `cargo xtask setup`".into())
}

/// `-Z build-std=core` compiles the core library from the toolchain's own source.
fn require_rust_src() -> Result<()> {
    let rustc = env::var("RUSTC")?;
    let sysroot = Command::new(&rustc).args(["--print", "sysroot"]).output()?.stdout;
    let core = Path::new(String::from_utf8(sysroot)?.trim()).join("lib/rustlib/src/rust/library/core");
    if core.is_dir() {
        return Ok(());
    }
    Err(format!("rust-src is not installed ({} is missing); run `cargo xtask setup`", core.display()).into())
}

fn compile(root: &Path, linker: &Path, out: &Path, features: &[&str], name: &str) -> Result<()> {
    let target_dir = out.join("ebpf");
    let mut cargo = Command::new(env::var("CARGO")?);
    cargo
        .current_dir(root.join("sidecar-ebpf"))
        .args(["build", "--release", "--locked", "--quiet", "-Z", "build-std=core", "--target", "bpfel-unknown-none"])
        .args(features)
        .arg("--target-dir")
        .arg(&target_dir)
        // Stable rustc offers build-std under this variable only; it reaches the eBPF crate alone.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker)
        // BPF's third instruction set (32-bit jumps) exists since kernel 5.1; debug information becomes BTF.
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            "--cfg=bpf_target_arch=\"x86_64\"\u{1f}-Cdebuginfo=2\u{1f}-Clink-arg=--btf\u{1f}-Ctarget-cpu=v3",
        );
    // What cargo set for the build of this package must not reach the other one.
    for variable in ["RUSTC", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CARGO_TARGET_DIR"] {
        cargo.env_remove(variable);
    }
    let output = cargo.output().map_err(|error| format!("{cargo:?}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{cargo:?} failed:\n{}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let object = fs::read(target_dir.join("bpfel-unknown-none/release/sidecar-ebpf"))?;
    fs::write(out.join(name), without_debug_info(&object)?)?;
    Ok(())
}

/// DWARF has become BTF by now; without it the object is a quarter of the size and parsed in a fraction of the time.
fn without_debug_info(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder = object::build::elf::Builder::read(object)?;
    for section in builder.sections.iter_mut() {
        section.delete = section.name.starts_with(b".debug_") || section.name.starts_with(b".rel.debug_");
    }
    builder.delete_orphans();
    // LLVM keeps the names of sections and symbols in one table; the writer wants one for each.
    let names = builder.sections.add();
    names.name = b".shstrtab"[..].into();
    names.sh_type = object::elf::SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = object::build::elf::SectionData::SectionString;
    let mut stripped = Vec::new();
    builder.write(&mut stripped)?;
    Ok(stripped)
}
