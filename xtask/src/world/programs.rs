//! The eBPF programs at the hooks of a pod, as the kernel tells them (bpf(2)).

use super::pod::{Place, Pod};
use anyhow::{Context, Result};
use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, RawFd},
};

/// `BPF_PROG_QUERY` (linux/bpf.h).
const PROG_QUERY: libc::c_int = 16;
/// The attach types that a sidecar uses: of a network namespace (`sk_lookup`), of the pod's cgroup (sockops, connect4/6, getpeername4/6,
/// getsockname4/6), and of the sidecar's own (sockops, getsockopt, setsockopt).
const NETNS: [u32; 1] = [36];
const POD: [u32; 7] = [3, 10, 11, 29, 30, 31, 32];
const OWN: [u32; 3] = [3, 21, 22];

/// The part of `union bpf_attr` that the command uses.
#[repr(C)]
#[derive(Default)]
struct Query {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    _tail: u32,
}

/// The ids of the programs at each hook that has any.
pub(crate) fn ids(pod: &Pod) -> Result<Vec<Vec<u32>>> {
    let open = |place: &std::path::Path| File::open(place).with_context(|| format!("open {}", place.display()));
    let (cgroup, own) = (open(pod.cgroup.path())?, open(pod.container(Place::Sidecar).path())?);
    let netns = pod.netns.descriptor()?;
    let places = [(netns.as_raw_fd(), &NETNS[..]), (cgroup.as_raw_fd(), &POD), (own.as_raw_fd(), &OWN)];
    let mut hooks = Vec::new();
    for (place, types) in places {
        for kind in types {
            let ids = at(place, *kind).with_context(|| format!("BPF_PROG_QUERY of attach type {kind}"))?;
            hooks.extend((!ids.is_empty()).then_some(ids));
        }
    }
    Ok(hooks)
}

fn at(target: RawFd, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; 64];
    let mut query = Query {
        target: target.cast_unsigned(),
        attach_type,
        ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        ..Query::default()
    };
    // SAFETY: the size is that of `query`, and `ids` has room for as many as `count` says; both live through the call.
    let asked = unsafe { libc::syscall(libc::SYS_bpf, PROG_QUERY, std::ptr::from_mut(&mut query), size_of::<Query>()) };
    if asked < 0 {
        return Err(io::Error::last_os_error());
    }
    ids.truncate(query.count as usize);
    Ok(ids)
}
