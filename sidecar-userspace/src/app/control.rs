//! The thread that answers questions and signals while the workers carry connections.

use std::{
    cell::Cell,
    convert::Infallible,
    future::pending,
    io,
    net::TcpListener,
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

use super::{
    Error, acceleration,
    hooks::{export_counters, export_uncaptured, hooks},
    reload::{Hangups, Reload},
    start::{Sidecar, millis, start},
    trust::Trust,
};
use crate::{
    admin,
    config::{Config, Loaded},
    lifecycle::readiness::Condition,
    net,
    redirect::{self, AddressWatch, Attached, BpfLog, Capture, ListenerWatch},
    serve::UnderWay,
    telemetry::{CloseReason, Telemetry},
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

async fn control(sidecar: Sidecar, mut signals: Signals, hangups: Hangups) -> Result<ExitCode, Error> {
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
        started,
    } = sidecar;
    let Attached { capture, addresses, listeners, uncaptured, log: bpf_log } = attached;
    let control = Control {
        capture: Arc::new(Mutex::new(capture)),
        programs: readiness.condition("programs"),
        addresses: readiness.condition("addresses"),
        serving: readiness.condition("serving"),
        telemetry: telemetry.clone(),
        config: loaded.config.clone(),
        queues,
        under_way,
        tunnels: Cell::new(tunnels),
        drain,
    };
    if let Some(trust) = &trust {
        trust.tell(&control.queues[1]);
    }
    export_counters(&telemetry, &control.capture);
    export_uncaptured(&telemetry, uncaptured.figures());
    let mut failure = None;
    control.check(&mut failure);
    control.addresses.ready();
    control.serving.ready();
    if readiness.ready() {
        tracing::info!(ready_ms = millis(started.elapsed()), "ready");
    }
    let fast_path = acceleration::begin(control.config.capture.acceleration, &control.capture, &telemetry);
    let reload = Reload::new(loaded, permits, &telemetry);
    let hooks = hooks(readiness, heartbeat, &telemetry, log, reload.in_force(), fast_path);
    let code = tokio::select! {
        failed = admin::serve(endpoints, hooks) => failed.map(|never| match never {}).map_err(Error::from),
        code = control.stop_on_signal(&mut signals) => Ok(code),
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
        never = follow_identity(trust, &control.queues[1]) => match never {},
    };
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
    serving: Condition,
    telemetry: Telemetry,
    config: Config,
    queues: [TcpListener; 2],
    tunnels: Cell<Option<TcpListener>>,
    drain: watch::Sender<bool>,
    under_way: UnderWay,
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

    /// The first signal drains, the second ends at once.
    async fn stop_on_signal(&self, signals: &mut Signals) -> ExitCode {
        let name = signals.next().await;
        tracing::info!(signal = name, open = self.telemetry.connections().len(), "draining");
        self.serving.unready(format!("draining after {name}"));
        if let Err(error) = self.capture().stop() {
            tracing::warn!(%error, "the kernel goes on handing over connections while draining");
        }
        // Those that open tunnels are told, and go on with those that they have. The workers close their descriptors too.
        self.drain.send_replace(true);
        drop(self.tunnels.take());
        tokio::select! {
            () = self.drain() => ExitCode::SUCCESS,
            name = signals.next() => {
                tracing::warn!(signal = name, "ending at once");
                ExitCode::SUCCESS
            }
        }
    }

    /// Connections get the deadline to end by themselves, then are reset.
    async fn drain(&self) {
        let table = self.telemetry.connections();
        let started = Instant::now();
        if tokio::time::timeout(self.config.proxy.drain_deadline, self.nothing_left()).await.is_ok() {
            tracing::info!(ms = millis(started.elapsed()), "drained");
            return;
        }
        tracing::warn!(open = table.len(), "the drain deadline has passed; resetting what is open");
        table.close_all(CloseReason::DrainDeadline);
        // Closing is a matter of each worker's next turn; a worker that hangs must not keep the sidecar from ending.
        let _ = tokio::time::timeout(Duration::from_secs(1), table.empty()).await;
    }

    /// No connection is open, and none waits that the kernel handed over before it stopped.
    async fn nothing_left(&self) {
        /// A client whose SYN was answered before the listeners were withdrawn completes its handshake a round trip later,
        /// and the kernel shows nobody that it is under way.
        const HANDSHAKE: Duration = Duration::from_millis(100);
        /// Workers empty the queues in microseconds; one that hangs keeps them filled until the deadline.
        const LOOK_AGAIN: Duration = Duration::from_millis(1);
        tokio::time::sleep(HANDSHAKE).await;
        loop {
            self.telemetry.connections().empty().await;
            if self.under_way.is_none() && self.queues.iter().all(|queue| net::backlog(queue).unwrap_or(0) == 0) {
                return;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
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

/// Signals that end the sidecar.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> Result<Self, Error> {
        let listen =
            |kind| signal(kind).map_err(|source: io::Error| Error::Runtime { what: "listen for signals", source });
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
