//! Programs of somebody else at a network namespace.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};

use super::{Attr, BPF_SK_LOOKUP, bpf, instruction, load};

const BPF_LINK_CREATE: i32 = 28;
const BPF_LINK_DETACH: i32 = 34;
const BPF_PROG_TYPE_SK_LOOKUP: u32 = 30;

/// What the kernel attaches at most (kernel/bpf/net_namespace.c, `netns_bpf_max_progs`).
pub const MOST_LOOKUPS: usize = 64;

/// They are detached when it is dropped.
pub struct ForeignLookups(Vec<OwnedFd>);

impl Drop for ForeignLookups {
    fn drop(&mut self) {
        // Closing them is not enough: what another thread forks holds them until it executes.
        for link in &self.0 {
            let mut attr = Attr::default();
            attr.0[0] = link.as_raw_fd().cast_unsigned();
            // The namespace may be gone.
            let _ = bpf(BPF_LINK_DETACH, &mut attr);
        }
    }
}

/// Attaches so many sk_lookup programs that pass everything.
pub fn attach_foreign_lookups(netns: BorrowedFd<'_>, count: usize) -> Result<ForeignLookups> {
    // r0 = SK_PASS; exit
    let pass = [instruction(0xb7, 0, 0, 1), instruction(0x95, 0, 0, 0)];
    let program = load((BPF_PROG_TYPE_SK_LOOKUP, BPF_SK_LOOKUP), &pass).context("BPF_PROG_LOAD of sk_lookup")?;
    let mut attached = ForeignLookups(Vec::new());
    for _ in 0..count {
        let mut attr = Attr::default();
        let [program, netns] = [program.as_raw_fd(), netns.as_raw_fd()].map(i32::cast_unsigned);
        attr.0[..3].copy_from_slice(&[program, netns, BPF_SK_LOOKUP]);
        let link = bpf(BPF_LINK_CREATE, &mut attr).context("BPF_LINK_CREATE of sk_lookup")?;
        // SAFETY: the kernel has just returned this descriptor to us alone.
        attached.0.push(unsafe { OwnedFd::from_raw_fd(link) });
    }
    Ok(attached)
}
