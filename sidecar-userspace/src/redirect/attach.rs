//! Attaches programs: each to its cgroup or network namespace, by a link.

use std::fs::File;

use aya::{
    Ebpf,
    programs::{CgroupAttachMode, ProgramError, cgroup_sockopt::CgroupSockoptLink, links::FdLink, loaded_programs},
};

use super::{
    error::Error,
    pins::Pins,
    programs::{self, LOOKUP_PROGRAM, POD_PROGRAMS, PROXY_PROGRAMS},
    query,
};
use crate::pod::Pod;

/// `CgroupAttachMode::Single` leaves the flags of the link zero; the kernel runs all links of a cgroup all the same, and
/// refuses the flag that the name of the other mode suggests.
pub(super) const LINK: CgroupAttachMode = CgroupAttachMode::Single;

/// `BPF_CGROUP_SOCK_OPS`.
const SOCK_OPS: u32 = 3;

/// Two sidecars in one pod would capture what the other dials, without end. Another one's programs are known by name; those
/// that a dead predecessor left pinned are about to be replaced.
pub(super) fn refuse_second_sidecar(pod: &Pod) -> Result<(), Error> {
    let (name, attach_type) = LOOKUP_PROGRAM;
    let running = query::program_ids(pod.netns(), attach_type, 0).unwrap_or_default();
    let pinned = Pins::of(pod).program_id(name);
    let others = running.into_iter().filter(|id| Some(*id) != pinned);
    let (connect, connect_type) = POD_PROGRAMS[5];
    let effective = File::open(pod.cgroup_path())
        .and_then(|cgroup| query::program_ids(&cgroup, connect_type, query::EFFECTIVE))
        .unwrap_or_default();
    let pinned = Pins::of(pod).program_id(connect);
    let others: Vec<_> = others.chain(effective.into_iter().filter(|id| Some(*id) != pinned)).collect();
    if others.is_empty() {
        return Ok(());
    }
    // Names are told to CAP_SYS_ADMIN only; without it the port that is in use says the same, as a rule.
    let named = loaded_programs().flatten().filter(|program| others.contains(&program.id()));
    match named
        .filter_map(|program| program.name_as_str().map(str::to_owned))
        .find(|found| found == connect || found == name)
    {
        Some(program) => Err(Error::Taken { program }),
        None => Ok(()),
    }
}

/// A link and the name of its program.
type Named = (&'static str, FdLink);

/// These serve the proxy's own sockets.
pub(super) fn attach_to_own_cgroup(ebpf: &mut Ebpf, pod: &Pod) -> Result<Vec<CgroupSockoptLink>, Error> {
    let attach = |(name, _): (&'static str, u32)| {
        let attached = programs::sockopt(ebpf, name).and_then(|program| {
            let id = program.attach(pod.own_cgroup(), LINK)?;
            program.take_link(id)
        });
        attached.map_err(attach_error(name, pod.own_cgroup_path().display()))
    };
    PROXY_PROGRAMS.into_iter().map(attach).collect()
}

pub(super) fn attach_to_cgroup(ebpf: &mut Ebpf, pod: &Pod) -> Result<Vec<Named>, Error> {
    POD_PROGRAMS
        .into_iter()
        .map(|(name, attach_type)| {
            let attached = match attach_type {
                SOCK_OPS => attach_sock_ops(ebpf, name, pod),
                _ => attach_sock_addr(ebpf, name, pod),
            };
            attached.map(|link| (name, link)).map_err(attach_error(name, pod.cgroup_path().display()))
        })
        .collect()
}

fn attach_sock_ops(ebpf: &mut Ebpf, name: &str, pod: &Pod) -> Result<FdLink, ProgramError> {
    let program = programs::sock_ops(ebpf, name)?;
    let id = program.attach(pod.cgroup(), LINK)?;
    fd_link(program.take_link(id)?)
}

fn attach_sock_addr(ebpf: &mut Ebpf, name: &str, pod: &Pod) -> Result<FdLink, ProgramError> {
    let program = programs::sock_addr(ebpf, name)?;
    let id = program.attach(pod.cgroup(), LINK)?;
    fd_link(program.take_link(id)?)
}

/// Only kernels before 5.7 attach to a cgroup without a link, and they lack more than that.
fn fd_link(link: impl TryInto<FdLink>) -> Result<FdLink, ProgramError> {
    link.try_into().map_err(|_| ProgramError::NotAttached)
}

pub(super) fn attach_to_netns(ebpf: &mut Ebpf, pod: &Pod) -> Result<Named, Error> {
    let (name, _) = LOOKUP_PROGRAM;
    let attached = programs::sk_lookup(ebpf, name).and_then(|program| {
        let id = program.attach(pod.netns())?;
        Ok(program.take_link(id)?.into())
    });
    attached.map(|link| (name, link)).map_err(attach_error(name, "the pod's network namespace"))
}

pub(super) fn attach_error(program: &'static str, target: impl ToString) -> impl FnOnce(ProgramError) -> Error {
    let target = target.to_string();
    move |source| Error::Attach { program, target, source: Box::new(source) }
}
