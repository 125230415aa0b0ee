//! What the eBPF programs say (`telemetry.bpf_log: true`), passed on to the sidecar's own log.

use std::os::fd::{AsFd, BorrowedFd};

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use sidecar_common::counter::Counter;

use super::error::Error;

/// Records of the programs, in a ring buffer.
pub struct BpfLog(EbpfLogger<Spoken>);

/// Tells a counter by its labels: the programs know its index only.
struct Spoken;

impl Log for Spoken {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let text = record.args().to_string();
        let index = text.strip_prefix("counter ").and_then(|index| index.parse::<usize>().ok());
        match index.and_then(|index| Counter::ALL.get(index)) {
            Some(counter) => {
                let (hook, verdict, reason) = counter.labels();
                tracing::info!(hook, verdict, reason, "kernel side");
            }
            None => tracing::info!(text, "kernel side"),
        }
    }

    fn flush(&self) {}
}

impl BpfLog {
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, Error> {
        EbpfLogger::init_with_logger(ebpf, Spoken).map(Self).map_err(|error| Error::BpfLog(error.to_string()))
    }

    /// Becomes readable when there are records.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Passes on the records that there are.
    pub fn turn(&mut self) {
        self.0.flush();
    }
}
