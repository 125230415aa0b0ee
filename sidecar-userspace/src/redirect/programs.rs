//! The programs of the eBPF object: created, verified, not yet attached.

use aya::{
    Ebpf, EbpfLoader,
    programs::{CgroupSockAddr, CgroupSockopt, Program, ProgramError, SkLookup, SockOps, sock_ops::SockOpsLink},
};
use sidecar_common::counter::PER_CPU;

use super::{
    bpf_log::BpfLog,
    capabilities::missing_capabilities,
    discovery,
    error::{Error, refusal, verifier_words},
};
use crate::{config, lifecycle::counters::possible_cpus};

/// The object for use. Built from source by build.rs.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sidecar.bpf.o"));
/// The same with programs that speak through aya-log.
static TALKATIVE_OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sidecar-log.bpf.o"));

/// The programs that run for every socket of the pod's cgroup, with their attach types (linux/bpf.h, `bpf_attach_type`).
pub(super) const POD_PROGRAMS: [(&str, u32); 7] = [
    ("on_tcp_event", 3),
    ("on_getpeername4", 29),
    ("on_getpeername6", 30),
    ("on_getsockname4", 31),
    ("on_getsockname6", 32),
    ("on_connect4", 10),
    ("on_connect6", 11),
];
/// The programs that run for the proxy's own sockets only.
pub(super) const PROXY_PROGRAMS: [(&str, u32); 2] = [("on_getsockopt", 21), ("on_setsockopt", 22)];
/// The program that runs for connections that arrive at the pod's network namespace.
pub(super) const LOOKUP_PROGRAM: (&str, u32) = ("on_lookup", 36);

/// Loaded and verified programs.
pub struct Programs {
    pub(super) ebpf: Ebpf,
    pub(super) log: Option<BpfLog>,
    /// Other sidecars can be discovered, or why not.
    pub(super) discovery: Result<(), String>,
    /// It serves the proxy's own sockets, and may die with the process.
    pub(super) discovery_link: Option<SockOpsLink>,
    /// CPUs that have counters of their own.
    pub(super) cpus: u32,
    subflows: Subflows,
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
    /// The kernel's own type information (BTF) is not read: parsing it costs about 95 ms, and nothing here needs it.
    pub fn load(capture: &config::Capture, connections: usize, talkative: bool) -> Result<Self, Error> {
        let missing = missing_capabilities();
        if !missing.is_empty() {
            return Err(Error::Capabilities(missing));
        }
        let mut shown = Shown { subflows: Subflows::Told, v6_only: true };
        let loaded = loop {
            // Helpers cannot be asked for: what a kernel lacks shows when it refuses the program.
            match Self::load_for(capture, connections, talkative, shown.clone()) {
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
        match &loaded {
            Ok(Self { subflows: Subflows::TakenForTcp { reason }, .. }) => {
                tracing::warn!(%reason, "this kernel does not tell MPTCP sockets from TCP ones: they are captured as well");
            }
            Err(Error::Load { program, source }) => {
                tracing::error!(program, verifier = verifier_words(source), "the kernel refuses a program");
            }
            _ => {}
        }
        loaded
    }

    /// What becomes of the connect of an MPTCP socket.
    pub fn subflows(&self) -> &Subflows {
        &self.subflows
    }

    fn load_for(capture: &config::Capture, connections: usize, talkative: bool, shown: Shown) -> Result<Self, Error> {
        let (outbound, inbound) = (&capture.outbound, &capture.inbound);
        let accelerated = capture.accelerated();
        let cpus = possible_cpus().map_err(Error::Cpus)?;
        let mut ebpf = EbpfLoader::new()
            .btf(None)
            .override_global("TELLS_SUBFLOWS", &u8::from(shown.subflows == Subflows::Told), true)
            .override_global("TELLS_V6_ONLY", &u8::from(shown.v6_only), true)
            .override_global("INBOUND_PORT", &inbound.port, true)
            .map_max_entries("COUNTERS", cpus * PER_CPU)
            .map_max_entries("FLOWS", capture.maps.flows)
            .map_max_entries("PRESENTED_FLOWS", entries(connections))
            .map_max_entries("APP_LISTENERS", capture.maps.listeners)
            .map_max_entries("SEEDED_LISTENERS", capture.maps.listeners)
            .map_max_entries("SENDERS", accelerated)
            .map_max_entries("RECEIVERS", accelerated)
            .map_max_entries("CANDIDATES", accelerated)
            .map_max_entries("PORTS", entries(OWN_PORTS + outbound.exclude_ports.len() + inbound.exclude_ports.len()))
            .map_max_entries("EXCLUDED_CIDRS", entries(outbound.exclude_cidrs.len()))
            .load(if talkative { TALKATIVE_OBJECT } else { OBJECT })
            .map_err(|error| Error::Object(Box::new(error)))?;
        for (name, _) in POD_PROGRAMS.into_iter().chain(PROXY_PROGRAMS).chain([LOOKUP_PROGRAM]) {
            load_one(&mut ebpf, name).map_err(|source| Error::Load { program: name, source: Box::new(source) })?;
        }
        let discovery = discovery::load(&mut ebpf);
        let log = talkative.then(|| BpfLog::open(&mut ebpf)).transpose()?;
        Ok(Self { ebpf, log, discovery, discovery_link: None, cpus, subflows: shown.subflows })
    }
}

/// Outbound, inbound, admin, metrics, health, tunnels.
const OWN_PORTS: usize = 6;

/// A map for so many entries; the kernel refuses empty ones.
fn entries(count: usize) -> u32 {
    u32::try_from(count.max(1)).unwrap_or(u32::MAX)
}

pub(super) fn load_one(ebpf: &mut Ebpf, name: &str) -> Result<(), ProgramError> {
    match program(ebpf, name) {
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSockopt(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// A program of the object by name.
fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut Program {
    ebpf.program_mut(name).expect("build.rs builds the object from the same tree")
}

/// Typed access for attaching.
pub(super) fn sock_addr<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut CgroupSockAddr, ProgramError> {
    program(ebpf, name).try_into()
}

pub(super) fn sock_ops<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SockOps, ProgramError> {
    program(ebpf, name).try_into()
}

pub(super) fn sockopt<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut CgroupSockopt, ProgramError> {
    program(ebpf, name).try_into()
}

pub(super) fn sk_lookup<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SkLookup, ProgramError> {
    program(ebpf, name).try_into()
}

/// The kernel's id of a loaded program.
pub(super) fn id(ebpf: &Ebpf, name: &'static str) -> Result<u32, Error> {
    let program = ebpf.program(name).expect("build.rs builds the object from the same tree");
    let info = program.info().map_err(|source| Error::Load { program: name, source: Box::new(source) })?;
    Ok(info.id())
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
