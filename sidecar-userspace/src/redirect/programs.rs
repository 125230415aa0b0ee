//! The programs of the eBPF object: created, verified, not yet attached.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use aya::{
    Ebpf,
    programs::{Program, ProgramError},
};

use super::{
    attach::{Code, Named},
    bpf_log::BpfLog,
    capabilities::missing_capabilities,
    discovery::{self, MESH_PROGRAM},
    error::{Error, refusal, verifier_words},
    loader,
    maps::{KEPT, Maps, Rooms},
    store::{Marker, Store},
};
use crate::config;

/// The object for use. Built from source by build.rs.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sidecar.bpf.o"));
/// The same with programs that speak through aya-log.
static TALKATIVE_OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sidecar-log.bpf.o"));

/// A program's name, and the number of what it is attached as.
pub(super) type Hook = (&'static str, u32);

/// The programs that run for every socket of the pod's cgroup, with their attach types (linux/bpf.h, `bpf_attach_type`).
pub(super) const POD_PROGRAMS: [Hook; 7] = [
    ("on_tcp_event", 3),
    ("on_getpeername4", 29),
    ("on_getpeername6", 30),
    ("on_getsockname4", 31),
    ("on_getsockname6", 32),
    ("on_connect4", 10),
    ("on_connect6", 11),
];
/// The programs that run for the proxy's own sockets only.
pub(super) const PROXY_PROGRAMS: [Hook; 2] = [("on_getsockopt", 21), ("on_setsockopt", 22)];
/// The program that runs for connections that arrive at the pod's network namespace.
pub(super) const LOOKUP_PROGRAM: Hook = ("on_lookup", 36);

/// Loaded and verified programs.
pub struct Programs {
    /// The object, whose other programs are the fast path's; `None`: the programs were there.
    pub(super) ebpf: Option<Ebpf>,
    pub(super) maps: Maps,
    /// Every program that this process can attach.
    pub(super) code: Code,
    /// Where maps and links are kept for other processes.
    pub(super) store: Option<Store>,
    /// What the store says when all is attached.
    pub(super) marker: Marker,
    pub(super) log: Option<BpfLog>,
    /// Other sidecars can be discovered, or why not.
    pub(super) discovery: Result<(), String>,
    /// It serves the proxy's own sockets.
    pub(super) mesh_link: Option<Named>,
    /// CPUs that have counters of their own.
    pub(super) cpus: u32,
    pub(super) subflows: Subflows,
}

/// What becomes of the connect of an MPTCP socket, which the hooks see as that of a TCP socket, its first subflow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subflows {
    /// It is told from TCP and goes direct.
    Told,
    /// It is captured: the kernel lacks what tells it.
    TakenForTcp {
        /// The kernel's words when it refused the program that asks.
        reason: String,
    },
}

/// What the kernel shows to programs, which leave out the rest.
#[derive(Clone)]
struct Shown {
    subflows: Subflows,
    v6_only: bool,
}

impl Programs {
    /// Creates the maps, with room for so many `connections` of the proxy, and has the kernel verify every program. With
    /// `talkative` the programs tell what they count in
    /// the sidecar's log.
    ///
    /// With a `store` they use the maps that are in there, and what they make is pinned there: connections keep their names and
    /// notes when a successor loads its programs, and attaching exchanges the program of every link that is in there.
    ///
    /// The kernel's own type information (BTF) is not read: parsing it costs about 95 ms, and nothing here needs it.
    ///
    /// # Errors
    /// A capability is missing; the kernel refuses a program; the store is of another layout, or its maps have not the room that
    /// this configuration asks for.
    pub fn load(
        capture: &config::Capture,
        connections: usize,
        talkative: bool,
        store: Option<Store>,
    ) -> Result<Self, Error> {
        let missing = missing_capabilities();
        if !missing.is_empty() {
            return Err(Error::Capabilities(missing));
        }
        let rooms = Rooms::of(capture, connections)?;
        let by_init = match &store {
            Some(store) => {
                let marker = store.open()?;
                rooms.fit(store)?;
                marker.is_some_and(|marker| marker.by_init)
            }
            None => false,
        };
        let mut shown = Shown { subflows: Subflows::Told, v6_only: true };
        let loaded = loop {
            // Helpers cannot be asked for: what a kernel lacks shows when it refuses the program.
            match Loaded::load(&rooms, capture.inbound.port, talkative, store.as_ref(), &shown) {
                Err(Error::Load { program: "on_connect4", source }) if shown.subflows == Subflows::Told => {
                    shown.subflows = Subflows::TakenForTcp { reason: refusal(&source) };
                }
                Err(Error::Load { program: "on_tcp_event", source }) if shown.v6_only => {
                    shown.v6_only = false;
                    tracing::info!(error = %source, "IPV6_V6ONLY of listening sockets is read in the socket table here: it is known some milliseconds late");
                }
                loaded => break loaded,
            }
        };
        match (&loaded, &shown.subflows) {
            (Ok(_), Subflows::TakenForTcp { reason }) => {
                tracing::warn!(%reason, "this kernel does not tell MPTCP sockets from TCP ones: they are captured as well");
            }
            (Err(Error::Load { program, source }), _) => {
                tracing::error!(program, verifier = verifier_words(source), "the kernel refuses a program");
            }
            _ => {}
        }
        let Loaded { mut ebpf, discovery, log } = loaded?;
        let marker = Marker::new(object(talkative), capture.inbound.port, &shown.subflows, by_init);
        let code = code(&ebpf, discovery.is_ok())?;
        if let Some(store) = &store {
            pin_own(store, &code)?;
        }
        Ok(Self {
            maps: Maps::of(&mut ebpf),
            ebpf: Some(ebpf),
            code,
            store,
            marker,
            log,
            discovery,
            mesh_link: None,
            cpus: rooms.cpus,
            subflows: shown.subflows,
        })
    }

    /// What becomes of the connect of an MPTCP socket.
    pub fn subflows(&self) -> &Subflows {
        &self.subflows
    }
}

/// The object in the kernel.
struct Loaded {
    ebpf: Ebpf,
    discovery: Result<(), String>,
    log: Option<BpfLog>,
}

impl Loaded {
    fn load(
        rooms: &Rooms,
        inbound_port: u16,
        talkative: bool,
        store: Option<&Store>,
        shown: &Shown,
    ) -> Result<Self, Error> {
        let subflows = u8::from(shown.subflows == Subflows::Told);
        let v6_only = u8::from(shown.v6_only);
        let mut loader = loader::plain();
        loader
            .override_global("TELLS_SUBFLOWS", &subflows, true)
            .override_global("TELLS_V6_ONLY", &v6_only, true)
            .override_global("INBOUND_PORT", &inbound_port, true);
        for (map, entries) in rooms.of_maps {
            loader.map_max_entries(map, entries);
        }
        if let Some(store) = store {
            for map in KEPT {
                loader.map_pin_path(map, store.map(map));
            }
        }
        let mut ebpf = loader.load(object(talkative)).map_err(|error| Error::Object(Box::new(error)))?;
        for (name, _) in POD_PROGRAMS.into_iter().chain(PROXY_PROGRAMS).chain([LOOKUP_PROGRAM]) {
            load_one(&mut ebpf, name).map_err(|source| Error::Load { program: name, source: Box::new(source) })?;
        }
        let discovery = discovery::load(&mut ebpf);
        let log = talkative.then(|| BpfLog::open(&mut ebpf)).transpose()?;
        Ok(Self { ebpf, discovery, log })
    }
}

/// What the programs are loaded from.
pub(super) fn object(talkative: bool) -> &'static [u8] {
    if talkative { TALKATIVE_OBJECT } else { OBJECT }
}

/// The programs of the sidecar's own sockets: a successor in another cgroup attaches them there.
fn pin_own(store: &Store, code: &Code) -> Result<(), Error> {
    let own = PROXY_PROGRAMS.into_iter().chain([MESH_PROGRAM]);
    own.filter_map(|(name, _)| Some((name, code.get(name)?)))
        .try_for_each(|(name, code)| store.pin_program(name, code.as_fd()))
}

pub(super) fn load_one(ebpf: &mut Ebpf, name: &str) -> Result<(), ProgramError> {
    match ebpf.program_mut(name).expect("build.rs builds the object from the same tree") {
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSockopt(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// Descriptors of all loaded programs: they live on when the object is dropped.
fn code(ebpf: &Ebpf, discovers: bool) -> Result<Code, Error> {
    let discovery = discovers.then_some(MESH_PROGRAM);
    let all = POD_PROGRAMS.into_iter().chain(PROXY_PROGRAMS).chain([LOOKUP_PROGRAM]).chain(discovery);
    all.map(|(name, _)| {
        let failed = |source| Error::Load { program: name, source: Box::new(source) };
        let program = ebpf.program(name).expect("build.rs builds the object from the same tree");
        let descriptor: io::Result<OwnedFd> = program.fd().map_err(failed)?.as_fd().try_clone_to_owned();
        Ok((name, descriptor.map_err(|source| failed(ProgramError::IOError(source)))?))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use object::{Object, ObjectSection, SectionKind};

    use super::*;

    /// `BPF_JMP | BPF_CALL` (linux/bpf_common.h); a register of zero in the source says that it calls a helper.
    const CALL: u8 = 0x85;

    /// What kernel lockdown takes from programs by its level "confidentiality" (kernel/bpf/helpers.c,
    /// `bpf_base_func_proto`; kernel/trace/bpf_trace.c): `bpf_probe_read`, `bpf_probe_write_user`, `bpf_probe_read_str`,
    /// `bpf_probe_read_kernel`, `bpf_probe_read_kernel_str`.
    const LOCKED: [u32; 5] = [4, 36, 45, 113, 115];

    /// The programs of the fast path read the kernel's memory: without these helpers there is none.
    const FAST_PATH: [&str; 2] = ["sk_msg", "iter/tcp"];

    /// The numbers of the helpers that a section calls.
    fn helpers<'a>(section: &impl ObjectSection<'a>) -> Vec<u32> {
        let instructions = section.data().unwrap().chunks_exact(8);
        let calls = instructions.filter(|instruction| instruction[..2] == [CALL, 0]);
        calls.map(|instruction| u32::from_le_bytes(instruction[4..].try_into().unwrap())).collect()
    }

    #[test]
    fn no_program_of_the_capture_calls_a_helper_that_lockdown_takes_away() {
        for bytes in [OBJECT, TALKATIVE_OBJECT] {
            let object = object::File::parse(bytes).unwrap();
            let code = object.sections().filter(|section| section.kind() == SectionKind::Text);
            let (fast, capture): (Vec<_>, Vec<_>) =
                code.partition(|section| FAST_PATH.contains(&section.name().unwrap()));
            let calls: Vec<_> = capture.iter().flat_map(helpers).collect();
            // `bpf_map_lookup_elem`: they were looked at indeed.
            assert!(calls.contains(&1), "{calls:?}");
            assert!(!calls.iter().any(|helper| LOCKED.contains(helper)), "{calls:?}");
            assert_eq!(fast.len(), FAST_PATH.len());
            assert!(fast.iter().all(|section| helpers(section).iter().any(|helper| LOCKED.contains(helper))));
        }
    }
}
