//! The end of the sidecar: asked for by signals, by `sidecar drain`, by the end of the application.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::turns::{Ending, Supervisor};
use crate::control::{Order, Withdrawn};

impl Supervisor {
    /// The first signal drains, the second ends at once; where a drain began without one, the first says nothing new.
    pub(super) fn signalled(&mut self, signal: Signal) {
        match signal {
            Signal::SIGHUP => self.reload(),
            Signal::SIGTERM | Signal::SIGINT => match &mut self.ending {
                None => self.drain(signal.as_str(), true),
                Some(ending) if !ending.signalled => {
                    ending.signalled = true;
                    tracing::info!(%signal, "draining already");
                }
                Some(_) => self.end_at_once(signal),
            },
            Signal::SIGUSR2 => self.upgrade_by_signal(),
            // A child has changed its state: that is looked at in every turn.
            _ => {}
        }
    }

    fn reload(&mut self) {
        if !self.configurations.read_again() {
            self.tell(&Order::ReloadFailed);
        }
    }

    /// Has the worker let what is open end. It says when which connections are not to come any more; until it has said so of
    /// all, one that dies or hangs has a successor, and so has one that was dead already.
    pub(super) fn drain(&mut self, why: &str, signalled: bool) {
        if self.ending.is_some() {
            return;
        }
        let deadline = Instant::now() + self.limits.drain_deadline;
        self.ending = Some(Ending { why: why.to_owned(), deadline, carries: true, signalled, kill_at: None });
        self.application.await_end(&self.board);
        // Its port is closed when the worker has closed it, too.
        self.listeners.tunnels = None;
        self.tell_to_drain();
    }

    pub(super) fn tell_to_drain(&self) {
        if let Some(Ending { why, deadline, .. }) = &self.ending {
            let left = deadline.saturating_duration_since(Instant::now());
            self.tell(&Order::Drain { why: why.clone(), left });
        }
    }

    pub(super) fn withdraw(&mut self, withdrawn: Withdrawn) {
        let capture = &mut self.keeping.capture;
        let stopped = match withdrawn {
            Withdrawn::Inbound => capture.stop_inbound(),
            Withdrawn::Everything => {
                self.ending.iter_mut().for_each(|ending| ending.carries = false);
                capture.stop()
            }
        };
        if let Err(error) = stopped {
            tracing::warn!(%error, "the kernel goes on handing over connections while draining");
        }
    }

    fn end_at_once(&mut self, signal: Signal) {
        /// For the last lines of the access log.
        const A_MOMENT: Duration = Duration::from_secs(2);
        self.restart_at = None;
        let end = Order::End { signal: signal.to_string() };
        self.tell(&end);
        for leaving in &mut self.upgrades.leaving {
            leaving.worker.tell(&end);
            leaving.until = leaving.until.min(Instant::now() + A_MOMENT);
        }
        if let Some(ending) = &mut self.ending {
            ending.kill_at.get_or_insert_with(|| Instant::now() + A_MOMENT);
        }
    }

    /// The capture goes first. A failure detaches nothing on purpose: `on_failure` decides, as when the process dies. So it
    /// does where mutual TLS is a must: whoever ends the sidecar did not ask for plaintext.
    pub(super) fn end(self, code: ExitCode) -> ExitCode {
        let Self { keeping, limits, worker, listeners, upgrades, .. } = self;
        let mut capture = keeping.capture;
        if code == ExitCode::SUCCESS && !limits.stays_closed {
            if let Err(error) = capture.detach() {
                tracing::error!(%error, "the programs stay attached");
            }
        } else {
            let _ = capture.stop();
            if limits.stays_closed {
                tracing::info!(
                    "mtls is strict: the pod stays closed until another sidecar runs, or the pins are removed"
                );
            }
            drop(capture);
        }
        drop(worker);
        drop(upgrades);
        drop(listeners);
        code
    }
}
