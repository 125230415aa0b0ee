//! Attaches programs: each to its cgroup or network namespace, by a link, which a store may hold.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use aya::programs::loaded_programs;

use super::{
    bpf,
    error::Error,
    pins::Pins,
    programs::{Hook, LOOKUP_PROGRAM, POD_PROGRAMS},
    query,
    store::{self, Store},
};
use crate::{lifecycle::predecessor, pod::Pod};

/// Programs by name.
pub(super) type Code = HashMap<&'static str, OwnedFd>;

/// A link and the name of its program.
pub(super) type Named = (&'static str, OwnedFd);

/// Two sidecars in one pod would capture what the other dials, without end. What was pinned for pods that are gone is removed first: it
/// is nobody's, and may run in this network namespace.
///
/// The kernel takes the programs of a removed cgroup, of a killed process and of a removed pin away some time after
/// (`cgroup_bpf_offline` and `bpf_link_put` leave it to work queues): what is there only for that long is no other sidecar.
///
/// # Errors
/// Another sidecar serves the pod, and goes on.
pub(super) fn require_alone(pod: &Pod, store: Option<&Store>) -> Result<(), Error> {
    let alone = || {
        Pins::sweep();
        refuse_second_sidecar(pod, store)
    };
    predecessor::given_time(alone, |error| matches!(error, Error::Taken { .. }))
}

/// Another one's programs are known by name; those that a dead predecessor left pinned are about to be replaced, and those in our own
/// store are ours.
fn refuse_second_sidecar(pod: &Pod, store: Option<&Store>) -> Result<(), Error> {
    let ((lookup, lookup_type), (connect, connect_type)) = (LOOKUP_PROGRAM, POD_PROGRAMS[5]);
    let running = query::program_ids(pod.netns(), lookup_type, 0).unwrap_or_default();
    let effective = File::open(pod.cgroup_path())
        .and_then(|cgroup| query::program_ids(&cgroup, connect_type, query::EFFECTIVE))
        .unwrap_or_default();
    let mut known = Pins::of(pod).program_ids();
    known.extend(store.iter().flat_map(|store| store.program_ids()));
    let others: Vec<_> = running.into_iter().chain(effective).filter(|id| !known.contains(id)).collect();
    if others.is_empty() {
        return Ok(());
    }
    // Names are told to CAP_SYS_ADMIN only; without it the port that is in use says the same, as a rule.
    let named = loaded_programs().flatten().filter(|program| others.contains(&program.id()));
    match named
        .filter_map(|program| program.name_as_str().map(str::to_owned))
        .find(|found| found == connect || found == lookup)
    {
        Some(program) => Err(Error::Taken { program }),
        None => Ok(()),
    }
}

/// Where a program is attached.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    descriptor: BorrowedFd<'a>,
    /// As a link's [`bpf::Link::target`].
    id: u64,
    shown: &'a dyn std::fmt::Display,
}

/// Attaches to each of the three places of a pod.
pub(super) struct Attaching<'a> {
    pub(super) code: &'a Code,
    pub(super) store: Option<&'a Store>,
    pub(super) pod: &'a Pod,
    /// The program at whose turn it fails, as if the kernel refused: to see what becomes of those before it.
    pub(super) refused: Option<&'a str>,
}

impl Attaching<'_> {
    /// What serves the proxy's own sockets.
    pub(super) fn to_own_cgroup(&self, hooks: &[Hook]) -> Result<Vec<Named>, Error> {
        let shown = self.pod.own_cgroup_path().display();
        let (descriptor, id) = (self.pod.own_cgroup(), self.pod.own_cgroup_id());
        self.all(hooks, Target { descriptor, id, shown: &shown })
    }

    pub(super) fn to_pod_cgroup(&self, hooks: &[Hook]) -> Result<Vec<Named>, Error> {
        let shown = self.pod.cgroup_path().display();
        let (descriptor, id) = (self.pod.cgroup(), self.pod.cgroup_id());
        self.all(hooks, Target { descriptor, id, shown: &shown })
    }

    pub(super) fn to_netns(&self, hooks: &[Hook]) -> Result<Vec<Named>, Error> {
        let (descriptor, id) = (self.pod.netns().as_fd(), self.pod.netns_inode());
        self.all(hooks, Target { descriptor, id, shown: &"the pod's network namespace" })
    }

    fn all(&self, hooks: &[Hook], target: Target<'_>) -> Result<Vec<Named>, Error> {
        hooks.iter().map(|hook| Ok((hook.0, self.one(*hook, target)?))).collect()
    }

    /// A link that the store has of the same place goes on, with our program if we have one: there is no moment with two or none.
    fn one(&self, (program, attach_type): Hook, target: Target<'_>) -> Result<OwnedFd, Error> {
        let failed = |source| Error::Attach { program, target: target.shown.to_string(), source };
        if self.refused == Some(program) {
            return Err(failed(io::Error::other("it is to be refused, by --refuse")));
        }
        let kept = self.store.and_then(|store| store.link_to(program, target.id));
        let link = match (kept, self.code.get(program)) {
            (Some(link), Some(code)) => return bpf::update(link.as_fd(), code.as_fd()).map(|()| link).map_err(failed),
            (Some(link), None) => return Ok(link),
            (None, Some(code)) => bpf::link(code.as_fd(), target.descriptor, attach_type).map_err(failed)?,
            (None, None) => return Err(failed(io::ErrorKind::NotFound.into())),
        };
        if let Some(store) = self.store {
            store.pin_link(program, link.as_fd())?;
        }
        Ok(link)
    }
}

impl Store {
    /// The link of a program, if it is attached to this.
    pub(super) fn link_to(&self, program: &str, target: u64) -> Option<OwnedFd> {
        let link = self.link(program)?;
        bpf::link_info(link.as_fd()).is_ok_and(|info| info.target == target).then_some(link)
    }

    fn program_ids(&self) -> Vec<u32> {
        store::pinned_links(&self.root(), None).into_iter().map(|link| link.program).collect()
    }
}
