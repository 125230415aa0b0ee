//! What the eBPF programs say (`telemetry.bpf_log: true`), passed on to the sidecar's own log.

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use sidecar_common::counter::Counter;
use tokio::io::{Interest, unix::AsyncFd};

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

    /// Passes records on until the ring buffer cannot be watched.
    pub async fn follow(self) -> std::io::Error {
        // SAFETY: the logger is owned by the `AsyncFd` and keeps its ring buffer, and with it the descriptor, as long as
        // it lives.
        let mut records = match unsafe { AsyncFd::register_with_interest(self.0, Interest::READABLE) } {
            Ok(records) => records,
            Err(error) => return error.into(),
        };
        loop {
            let mut ready = match records.readable_mut().await {
                Ok(ready) => ready,
                Err(error) => return error,
            };
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    }
}
