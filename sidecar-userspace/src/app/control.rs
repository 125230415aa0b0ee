//! The thread that answers questions and signals while the workers carry connections.

use std::{
    cell::Cell,
    convert::Infallible,
    future::pending,
    net::TcpListener,
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::runtime;

use super::{
    Error,
    drain::{Drain, Signals, Switch},
    hooks::{export_counters, export_uncaptured, hooks},
    reload::{Hangups, Reload},
    start::{Sidecar, millis, start},
    trust::Trust,
};
use crate::{
    admin,
    config::{Config, Loaded},
    lifecycle::readiness::Condition,
    redirect::{self, AddressWatch, Attached, BpfLog, Capture, ListenerWatch},
    telemetry::Telemetry,
};

/// Time between two checks that the programs are still effective.
const CHECK_EVERY: Duration = Duration::from_secs(10);

/// Starts the sidecar and serves until a signal ends it.
pub(super) fn run(loaded: Loaded) -> Result<ExitCode, Error> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::Runtime { what: "start the control reactor", source })?;
    runtime.block_on(async {
        // A signal that comes while the sidecar starts waits until there is something to undo.
        let (signals, hangups) = (Signals::listen()?, Hangups::listen()?);
        control(start(loaded).await?, signals, hangups).await
    })
}

async fn control(sidecar: Sidecar, signals: Signals, hangups: Hangups) -> Result<ExitCode, Error> {
    let Sidecar {
        attached,
        workers,
        endpoints,
        admin_socket,
        queues,
        tunnels,
        drain,
        heartbeat,
        telemetry,
        log,
        loaded,
        permits,
        trust,
        readiness,
        under_way,
        applications,
        started,
    } = sidecar;
    let Attached { capture, addresses, listeners, uncaptured, log: bpf_log } = attached;
    let capture = Arc::new(Mutex::new(capture));
    let switch = Switch::new(&applications, &telemetry);
    let control = Control {
        capture: Arc::clone(&capture),
        programs: readiness.condition("programs"),
        addresses: readiness.condition("addresses"),
        telemetry: telemetry.clone(),
        config: loaded.config.clone(),
    };
    let drain = Drain {
        capture,
        telemetry: telemetry.clone(),
        serving: readiness.condition("serving"),
        queues,
        under_way,
        tunnels: Cell::new(tunnels),
        no_more_tunnels: drain,
        applications,
        deadline: loaded.config.proxy.drain_deadline,
        follows_application: loaded.config.lifecycle.exit_with_application,
        switch: switch.clone(),
    };
    if let Some(trust) = &trust {
        trust.tell(&drain.queues[1]);
    }
    export_counters(&telemetry, &control.capture);
    export_uncaptured(&telemetry, uncaptured.figures());
    let mut failure = None;
    control.check(&mut failure);
    control.addresses.ready();
    drain.serving.ready();
    if readiness.ready() {
        tracing::info!(ready_ms = millis(started.elapsed()), "ready");
    }
    let reload = Reload::new(loaded, permits, &telemetry);
    let hooks = hooks(readiness, heartbeat, &telemetry, log, reload.in_force(), switch);
    let code = tokio::select! {
        failed = admin::serve(endpoints, hooks) => failed.map(|never| match never {}).map_err(Error::from),
        code = drain.follow(signals) => Ok(code),
        () = workers.worker_lost() => {
            tracing::error!("a worker thread has ended; the sidecar ends too, so that it is started anew");
            Ok(ExitCode::FAILURE)
        }
        () = control.check_again(failure) => Ok(ExitCode::FAILURE),
        () = control.follow_addresses(addresses) => Ok(ExitCode::FAILURE),
        () = follow_listeners(listeners) => Ok(ExitCode::FAILURE),
        () = uncaptured.follow() => Ok(ExitCode::FAILURE),
        () = follow_bpf_log(bpf_log) => Ok(ExitCode::FAILURE),
        () = reload.follow(hangups) => Ok(ExitCode::FAILURE),
        () = control.sweep_idle() => Ok(ExitCode::FAILURE),
        never = follow_identity(trust, &drain.queues[1]) => match never {},
    };
    drop(drain);
    // The capture goes before the workers, so that no connection is handed to nobody. A failure detaches nothing on
    // purpose: `on_failure` decides, as when the process dies. So it does where mutual TLS is a must: whoever ends the
    // sidecar did not ask for plaintext.
    if matches!(code, Ok(ExitCode::SUCCESS)) && !control.config.stays_closed() {
        control.detach();
    } else {
        let _ = control.capture().stop();
        if control.config.stays_closed() {
            tracing::info!("mtls is strict: the pod stays closed until another sidecar runs, or the pins are removed");
        }
        drop(control);
    }
    drop(workers);
    drop(admin_socket);
    telemetry.flush(Duration::from_secs(1));
    code
}

struct Control {
    capture: Arc<Mutex<Capture>>,
    programs: Condition,
    addresses: Condition,
    telemetry: Telemetry,
    config: Config,
}

impl Control {
    fn capture(&self) -> MutexGuard<'_, Capture> {
        // A panic elsewhere leaves a capture that still works.
        self.capture.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn detach(self) {
        // The metrics hold it only while they are rendered, which happens on this thread.
        let Some(capture) = Arc::into_inner(self.capture) else {
            tracing::error!("the programs stay attached until this process has ended");
            return;
        };
        let detached = capture.into_inner().unwrap_or_else(PoisonError::into_inner).detach();
        if let Err(error) = detached {
            tracing::error!(%error, "the programs stay attached");
        }
    }

    /// Ready only while the programs are effective and a real connection passes them.
    fn check(&self, known: &mut Option<String>) {
        let failure = self.capture().check().err().map(|error| error.to_string());
        match &failure {
            None => self.programs.ready(),
            Some(error) => self.programs.unready(error),
        }
        if failure != *known {
            match &failure {
                None => tracing::info!("capturing again"),
                Some(error) => tracing::error!(%error, "not capturing"),
            }
            *known = failure;
        }
    }

    async fn check_again(&self, mut known: Option<String>) {
        loop {
            tokio::time::sleep(CHECK_EVERY).await;
            self.check(&mut known);
        }
    }

    async fn follow_addresses(&self, addresses: AddressWatch) {
        let known = Cell::new(true);
        let outcome = |refreshed: Result<(), redirect::Error>| match refreshed {
            Ok(()) => {
                known.set(true);
                self.addresses.ready();
            }
            Err(error) => {
                if known.replace(false) {
                    tracing::error!(%error, "the pod's addresses could not be told to the kernel side; trying again");
                }
                self.addresses.unready(error.to_string());
            }
        };
        let error = addresses.follow(outcome).await;
        tracing::error!(%error, "changes of the pod's addresses are no longer noticed; restart the sidecar");
        self.addresses.unready(error.to_string());
        pending().await
    }

    /// Resets connections on which nothing moved for the idle timeout. Has no timer while there are none.
    async fn sweep_idle(&self) {
        let Some(limit) = self.config.proxy.idle_timeout else { return pending().await };
        let table = self.telemetry.connections();
        loop {
            table.not_empty().await;
            tokio::time::sleep(table.sweep_idle(limit)).await;
        }
    }
}

async fn follow_identity(trust: Option<Trust>, listener: &TcpListener) -> Infallible {
    match trust {
        Some(trust) => trust.follow(listener).await,
        None => pending().await,
    }
}

async fn follow_listeners(listeners: ListenerWatch) {
    let error = listeners.follow().await;
    tracing::warn!(%error, "the set of listening ports is no longer compared with the kernel's socket table");
    pending().await
}

async fn follow_bpf_log(log: Option<BpfLog>) {
    if let Some(log) = log {
        let error = log.follow().await;
        tracing::warn!(%error, "what the eBPF programs say is no longer logged");
    }
    pending().await
}
