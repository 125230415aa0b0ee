//! The kernel side of sidecar: one file per program kind, thin shells around the pure decisions in `sidecar-common`.
//!
//! A program never holds the name of its section (the linker would see two symbols), hence the `on_` prefix.
#![no_std]
#![no_main]
// Stable Rust offers no atomic addition for BPF, although the instruction exists: `count::add`.
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "see above")]

mod cgroup_sock_addr;
mod cgroup_sockopt;
mod count;
mod ctx;
mod enrol;
mod fast_path;
mod maps;
mod mesh;
mod sk_lookup;
mod sock_ops;

/// Never reached: the verifier refuses programs that could panic, and the compiler removes what cannot.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Helpers such as `bpf_sk_storage_get` are for GPL-compatible programs only (linux/bpf.h, `license_is_gpl_compatible`).
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
