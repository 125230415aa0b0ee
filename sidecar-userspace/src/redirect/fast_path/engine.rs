//! The programs of the fast path, loaded, and the passes that bring connections onto it.

use std::{
    collections::HashSet,
    io::{self, Read as _},
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, MapError, SockHash, sock::SockMapFd},
    programs::{Iter, Program, ProgramError, SkMsg},
};
use sidecar_common::{
    fastpath::{Candidate, Fields, Switch, mixed::place, step},
    flow::FlowKey,
};

use super::kernel_types::{self, KernelTypes};
use crate::{
    lifecycle::mixed::Mixes,
    redirect::{
        capture::{map_error, mapping},
        error::{Error as RedirectError, refusal},
        maps::Maps as AllMaps,
    },
};

/// The program that judges messages.
const MESSAGE_PROGRAM: &str = "on_message";
/// The program that judges what the proxy sends.
const ANSWER_PROGRAM: &str = "on_answer";
/// The program that passes over sockets.
const SOCKET_PROGRAM: &str = "on_socket";

/// Why there is no fast path.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel does not tell what must be known.
    #[error(transparent)]
    Types(#[from] kernel_types::Error),
    /// The kernel refuses a program.
    #[error("the kernel refuses the eBPF program `{program}` of the fast path: {words}")]
    Program {
        /// Its name.
        program: &'static str,
        /// The verifier's words.
        words: String,
    },
    /// The object is not there.
    #[error("its programs were not loaded")]
    Programs,
    /// A map cannot be used.
    #[error(transparent)]
    Map(#[from] RedirectError),
    /// A pass cannot be read.
    #[error("a pass over the pod's sockets failed: {0}")]
    Pass(#[source] io::Error),
    /// The probe's own sockets failed.
    #[error("the probe of the fast path: {what}: {source}")]
    Probe {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Maps of the fast path. They stay open as long as the process lives: with the last descriptor of a `SOCKHASH` its program goes.
pub(in crate::redirect) struct Maps {
    switch: Array<MapData, Switch>,
    fields: Array<MapData, Fields>,
    candidates: HashMap<MapData, FlowKey, Candidate>,
    senders: SockHash<MapData, FlowKey>,
    receivers: SockHash<MapData, FlowKey>,
    mixes: Mixes,
}

impl Maps {
    /// Takes them from among all maps.
    pub(in crate::redirect) fn take(all: &mut AllMaps) -> Result<Self, RedirectError> {
        fn open<T: TryFrom<Map, Error = MapError>>(all: &mut AllMaps, name: &'static str) -> Result<T, RedirectError> {
            all.take(name).try_into().map_err(map_error(name, "opened"))
        }
        Ok(Self {
            switch: open(all, "FAST_PATH")?,
            fields: open(all, "KERNEL_FIELDS")?,
            candidates: open(all, "CANDIDATES")?,
            senders: open(all, "SENDERS")?,
            receivers: open(all, "RECEIVERS")?,
            mixes: Mixes::map(all.lend("MIXED")?).map_err(mapping("MIXED"))?,
        })
    }

    /// Lets every byte go by TCP. Maps are kept: a supervisor before may have left it switched on.
    pub(in crate::redirect) fn turn_off(all: &mut AllMaps) -> Result<(), RedirectError> {
        let mut switch: Array<&mut MapData, Switch> = all.get("FAST_PATH")?;
        switch.set(0, Switch::default(), 0).map_err(map_error("FAST_PATH", "written"))
    }

    /// Where programs for applications' ends are attached.
    fn senders(&self) -> Result<SockMapFd, RedirectError> {
        self.senders.fd().try_clone().map_err(MapError::IoError).map_err(map_error("SENDERS", "opened"))
    }

    /// Where programs for the proxy's ends are attached.
    fn receivers(&self) -> Result<SockMapFd, RedirectError> {
        self.receivers.fd().try_clone().map_err(MapError::IoError).map_err(map_error("RECEIVERS", "opened"))
    }
}

/// The loaded fast path.
pub(super) struct Engine {
    ebpf: Ebpf,
    maps: Maps,
    switch: Switch,
}

impl Engine {
    /// Reads the kernel's types, has the kernel verify the programs and attaches them to the maps, which are empty yet. `netns` is
    /// the cookie of the pod's network namespace, which must be this thread's.
    pub(super) fn load(mut ebpf: Ebpf, mut maps: Maps, netns: u64) -> Result<Self, Error> {
        let KernelTypes { fields, iterator } = kernel_types::read()?;
        maps.fields.set(0, fields, 0).map_err(map_error("KERNEL_FIELDS", "written"))?;
        iterator_of(&mut ebpf).and_then(|program| program.load("tcp", &iterator)).map_err(refused(SOCKET_PROGRAM))?;
        let senders = maps.senders()?;
        // Attached before the first insertion: a socket takes its program from the map when it comes in.
        message_program(&mut ebpf, MESSAGE_PROGRAM)
            .and_then(|program| {
                program.load()?;
                program.attach(&senders)
            })
            .map_err(refused(MESSAGE_PROGRAM))?;
        let mut engine = Self { ebpf, maps, switch: Switch { netns, ..Switch::default() } };
        engine.write()?;
        Ok(engine)
    }

    /// Lets messages be redirected, or no longer.
    pub(super) fn turn(&mut self, on: bool) -> Result<(), Error> {
        self.switch.on = u32::from(on);
        self.write()
    }

    /// Takes for legs what connects to this port, however little it has carried; `None`: what the capture noted, if it has carried
    /// `worth` bytes.
    pub(super) fn look_for(&mut self, probe_port: Option<u16>, worth: u64) -> Result<(), Error> {
        self.switch.probe_port = probe_port.map_or(0, u64::from);
        self.switch.worth = worth;
        self.write()
    }

    /// One pass: enrols what is worth it, lets go of what may not stay. Says how many connections it found.
    pub(super) fn pass(&mut self) -> Result<usize, Error> {
        self.forget_mixing();
        self.walk(step::FIND)?;
        let found = self.maps.candidates.keys().filter_map(Result::ok).collect::<Vec<_>>();
        let enrolled =
            if found.is_empty() { Ok(()) } else { self.walk(step::RECEIVERS).and_then(|()| self.walk(step::SENDERS)) };
        // Also after a failure: the next pass may be one that only lets go.
        for key in &found {
            // One that is gone already is as good.
            let _ = self.maps.candidates.remove(key);
        }
        enrolled.map(|()| found.len())
    }

    /// Has those be counted for again whose connections are gone. Only a pass enrols, so that no other comes meanwhile; the kernel lists
    /// every one that stays, however many leave.
    fn forget_mixing(&self) {
        let Maps { receivers, mixes, .. } = &self.maps;
        if !mixes.any_uncounted() {
            return;
        }
        let place = |key: FlowKey| place(key.local.port.host(), key.remote.port.host());
        // What cannot be listed stays as it is, which costs its readers a receive more.
        if let Ok(enrolled) = receivers.keys().map(|key| key.map(place)).collect::<Result<HashSet<_>, _>>() {
            mixes.forget(&enrolled);
        }
    }

    /// Does `probe` while what the proxy sends is judged as well, on connections that are enrolled meanwhile: a socket takes its
    /// program from the map when it comes in. The program is loaded for that time only.
    pub(super) fn with_answers<T>(&mut self, probe: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        let receivers = self.maps.receivers()?;
        let answers = message_program(&mut self.ebpf, ANSWER_PROGRAM);
        let attached = answers.and_then(|program| {
            program.load()?;
            program.attach(&receivers)
        });
        let outcome = attached.map_err(refused(ANSWER_PROGRAM)).and_then(|_| probe(self));
        let gone = match message_program(&mut self.ebpf, ANSWER_PROGRAM).and_then(SkMsg::unload) {
            Err(ProgramError::NotLoaded) => Ok(()),
            unloaded => unloaded.map_err(refused(ANSWER_PROGRAM)),
        };
        // Whatever the probe came to.
        self.turn(false)?;
        outcome.and_then(|outcome| gone.map(|()| outcome))
    }

    /// Ports of the applications' ends of connections to this port, of those of which both ends are enrolled.
    pub(super) fn enrolled_to(&self, port: u16) -> Vec<u16> {
        let receivers: Vec<FlowKey> = self.maps.receivers.keys().filter_map(Result::ok).collect();
        let senders = self.maps.senders.keys().filter_map(Result::ok);
        let both = senders.filter(|key| key.remote.port.host() == port && receivers.contains(&key.reversed()));
        both.map(|key| key.local.port.host()).collect()
    }

    /// Enrolled ends now: the applications' and the proxy's.
    pub(super) fn enrolled(&self) -> (usize, usize) {
        (self.maps.senders.keys().count(), self.maps.receivers.keys().count())
    }

    fn write(&mut self) -> Result<(), Error> {
        self.maps.switch.set(0, self.switch, 0).map_err(map_error("FAST_PATH", "written")).map_err(Error::from)
    }

    /// Has the kernel run the program for every TCP socket of this thread's network namespace.
    fn walk(&mut self, step: u32) -> Result<(), Error> {
        self.switch.step = step;
        self.write()?;
        let attach = |program: &mut Iter| {
            let link = program.attach()?;
            program.take_link(link)
        };
        let iterator = iterator_of(&mut self.ebpf).and_then(attach).map_err(refused(SOCKET_PROGRAM))?;
        let mut file = iterator.into_file().map_err(|error| Error::Pass(io::Error::other(error)))?;
        // The program writes nothing: the end comes when every socket was seen, or `EAGAIN` in the middle of many.
        let mut nothing = [0; 64];
        loop {
            match file.read(&mut nothing) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => return Err(Error::Pass(error)),
            }
        }
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut Program {
    ebpf.program_mut(name).expect("build.rs builds the object from the same tree")
}

fn iterator_of(ebpf: &mut Ebpf) -> Result<&mut Iter, ProgramError> {
    program(ebpf, SOCKET_PROGRAM).try_into()
}

fn message_program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SkMsg, ProgramError> {
    program(ebpf, name).try_into()
}

fn refused(program: &'static str) -> impl FnOnce(ProgramError) -> Error {
    move |error| Error::Program { program, words: refusal(&error) }
}
