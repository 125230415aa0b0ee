//! What the fast path could be as well, for the probe alone.

use aya::programs::{ProgramError, SkSkb};

use super::{Engine, Error, message_program, program, refused};

/// The program that judges what the proxy sends.
const ANSWER_PROGRAM: &str = "on_answer";
/// The program that passes on what an application receives.
const STREAM_PROGRAM: &str = "on_stream";

/// Which way the fast path is used: by default as the product does, for what applications send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Variant {
    /// What the proxy sends goes past TCP as well.
    pub(in super::super) answers: bool,
    /// What an application receives by TCP comes through the sockmap's queue too: a stream verdict that passes everything.
    pub(in super::super) verdict: bool,
}

impl Engine {
    /// Does `probe` with what this variant has beyond the fast path, which is loaded for that time only: a socket takes its programs from
    /// the map when it comes in.
    pub(in super::super) fn as_variant<T>(
        &mut self,
        variant: Variant,
        probe: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let loaded = self.attach(variant);
        let outcome = loaded.and_then(|()| probe(self));
        let unloaded = self.detach();
        outcome.and_then(|outcome| unloaded.map(|()| outcome))
    }

    fn attach(&mut self, variant: Variant) -> Result<(), Error> {
        if variant.answers {
            let receivers = self.maps.receivers()?;
            let attach = |program: &mut aya::programs::SkMsg| {
                program.load()?;
                program.attach(&receivers)
            };
            message_program(&mut self.ebpf, ANSWER_PROGRAM).and_then(attach).map_err(refused(ANSWER_PROGRAM))?;
        }
        if variant.verdict {
            let senders = self.maps.senders()?;
            let attach = |program: &mut SkSkb| {
                program.load()?;
                program.attach(&senders)
            };
            self.stream_program().and_then(attach).map_err(refused(STREAM_PROGRAM))?;
        }
        Ok(())
    }

    /// Takes away what was attached, for sockets that come into the maps from here on.
    fn detach(&mut self) -> Result<(), Error> {
        let gone = |unloaded| match unloaded {
            Err(ProgramError::NotLoaded) => Ok(()),
            unloaded => unloaded,
        };
        let answers = message_program(&mut self.ebpf, ANSWER_PROGRAM).and_then(|program| gone(program.unload()));
        let stream = self.stream_program().and_then(|program| gone(program.unload()));
        answers.map_err(refused(ANSWER_PROGRAM))?;
        stream.map(drop).map_err(refused(STREAM_PROGRAM))
    }

    fn stream_program(&mut self) -> Result<&mut SkSkb, ProgramError> {
        program(&mut self.ebpf, STREAM_PROGRAM).try_into()
    }
}
