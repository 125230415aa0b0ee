//! A sidecar as a kernel sees it that lacks a helper: a copy of the binary under test whose programs call, in its place, one
//! that no kernel has. What it does about that is the real binary's doing, and the refusal is the real verifier's.

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::{PATIENCE, Spawn};

/// A helper that no kernel has.
const UNKNOWN: u32 = 9999;
/// `EM_BPF` (linux/elf-em.h).
const EM_BPF: u16 = 247;

/// Copies `binary` to `directory` and has the programs in it call an unknown helper instead of `helper`, a number of
/// `enum bpf_func_id` (linux/bpf.h).
pub fn without_helper(binary: &Path, directory: &Path, helper: u32) -> Result<PathBuf> {
    let mut bytes = fs::read(binary).with_context(|| format!("read {}", binary.display()))?;
    let mut calls = 0;
    for object in embedded_objects(&bytes) {
        let (wanted, unknown) = (call(helper), call(UNKNOWN));
        // Instructions are eight bytes, and so is the alignment of their sections.
        for instruction in bytes[object].chunks_exact_mut(8).filter(|instruction| **instruction == wanted) {
            instruction.copy_from_slice(&unknown);
            calls += 1;
        }
    }
    ensure!(calls > 0, "no program in {} calls helper {helper}", binary.display());
    install(&bytes, directory, &format!("sidecar-without-{helper}"))
}

/// Copies `binary` to `directory` with programs that do the same and have other tags: what sets a register to a number that is
/// not negative does so in the other one of the two ways that there are.
pub fn with_other_tags(binary: &Path, directory: &Path) -> Result<PathBuf> {
    /// `BPF_ALU64 | BPF_MOV | BPF_K` and `BPF_ALU | BPF_MOV | BPF_K`: the upper half is zero in either case.
    const WAYS: [u8; 2] = [0xb7, 0xb4];
    let mut bytes = fs::read(binary).with_context(|| format!("read {}", binary.display()))?;
    for object in embedded_objects(&bytes) {
        for code in code_sections(&bytes[object.clone()]) {
            for instruction in bytes[object.clone()][code].chunks_exact_mut(8) {
                let [way, _, 0, 0, _, _, _, 0..=0x7f] = instruction else { continue };
                if let Some(at) = WAYS.iter().position(|known| known == way) {
                    *way = WAYS[1 - at];
                }
            }
        }
    }
    install(&bytes, directory, "sidecar-with-other-tags")
}

fn install(bytes: &[u8], directory: &Path, name: &str) -> Result<PathBuf> {
    let (draft, copy) = (directory.join("sidecar.draft"), directory.join(name));
    fs::write(&draft, bytes).with_context(|| format!("write {}", draft.display()))?;
    // Another process writes what is to be executed: a child that is forked here meanwhile would hold the file open for
    // writing, and execve(2) would answer ETXTBSY.
    let mut install = Command::new("install");
    install.args(["-m", "700"]).args([&draft, &copy]);
    Spawn::default().start(install)?.finish(PATIENCE)?;
    fs::remove_file(&draft).with_context(|| format!("remove {}", draft.display()))?;
    Ok(copy)
}

/// `BPF_JMP | BPF_CALL` of a helper, little endian.
fn call(helper: u32) -> [u8; 8] {
    let [a, b, c, d] = helper.to_le_bytes();
    [0x85, 0, 0, 0, a, b, c, d]
}

/// Where the eBPF objects are in a binary: ELF files in an ELF file.
fn embedded_objects(bytes: &[u8]) -> Vec<Range<usize>> {
    const MAGIC: [u8; 7] = *b"\x7fELF\x02\x01\x01";
    let u16_at = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let end_of = |start: usize| {
        // e_machine, e_shoff, e_shentsize, e_shnum of Elf64_Ehdr; the section headers come last.
        (u16_at(start + 18)? == EM_BPF).then_some(())?;
        let headers = u64::from_le_bytes(bytes.get(start + 40..start + 48)?.try_into().ok()?);
        let size = usize::from(u16_at(start + 58)?) * usize::from(u16_at(start + 60)?);
        Some(start + usize::try_from(headers).ok()? + size)
    };
    let starts = (0..bytes.len()).step_by(8).filter(|at| bytes[*at..].starts_with(&MAGIC));
    starts.filter_map(|start| Some(start..end_of(start)?)).filter(|object| object.end <= bytes.len()).collect()
}

/// Where the sections with instructions are in an object (Elf64_Shdr: sh_flags, sh_offset, sh_size).
fn code_sections(object: &[u8]) -> Vec<Range<usize>> {
    const EXECUTABLE: u64 = 4;
    let u16_at = |at: usize| usize::from(u16::from_le_bytes([object[at], object[at + 1]]));
    let u64_at = |at: usize| u64::from_le_bytes(object[at..at + 8].try_into().unwrap_or_default());
    let (headers, size, count) = (u64_at(40) as usize, u16_at(58), u16_at(60));
    let headers = (0..count).map(|number| headers + number * size);
    let code = headers.filter(|at| u64_at(at + 8) & EXECUTABLE != 0);
    code.map(|at| u64_at(at + 24) as usize..(u64_at(at + 24) + u64_at(at + 32)) as usize).collect()
}
