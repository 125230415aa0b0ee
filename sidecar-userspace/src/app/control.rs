//! The thread that answers questions and orders while the workers carry connections.

use std::{cell::Cell, convert::Infallible, future::pending, net::TcpListener, process::ExitCode, time::Duration};

use nix::sys::signal::{SigSet, Signal};
use tokio::{runtime, sync::watch};

use super::{
    Error,
    acceleration::{self, FastPath},
    confine::confine,
    drain::{Drain, Switch},
    hooks::{Levers, hooks},
    inherited::Inherited,
    orders::{Orders, Stop, Told, stopped},
    orphan,
    reload::Reload,
    start::{Began, Sidecar, millis, start},
    trust::Trust,
};
use crate::{
    admin,
    control::{Channel, Report},
    lifecycle::readiness::Readiness,
    telemetry::{self, Telemetry},
};

/// Waits for the order to start, gives up every privilege, and serves until the supervisor says otherwise.
pub(super) fn run(channel: &Channel) -> Result<ExitCode, Error> {
    leave_signals_to_the_supervisor()?;
    let inherited = Inherited::await_start(channel)?;
    let log = telemetry::log::init(&inherited.loaded.config.telemetry)?;
    if let Some(directives) = &inherited.start.log_level {
        log.set(directives)?;
    }
    if let Some(error) = &inherited.refused {
        tracing::error!(
            %error,
            "the rules that were in force are refused; those of the start are in force: mend the configuration and send SIGHUP"
        );
    }
    // Threads inherit what is given up, so that is done before there are any.
    confine(&inherited.loaded.config)?;
    let drain_deadline = inherited.loaded.config.proxy.drain_deadline;
    let serves = orphan::watch(channel.duplicate().map_err(Error::Alone)?, drain_deadline)?;
    let (waiting, woken) = (inherited.heartbeat.clone(), inherited.heartbeat.clone());
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_park(move || waiting.main_waits(true))
        .on_thread_unpark(move || woken.main_waits(false))
        .build()
        .map_err(|source| Error::Runtime { what: "start the control reactor", source })?;
    runtime.block_on(async {
        let orders = Orders::watch(channel.duplicate().map_err(Error::Alone)?)?;
        let sidecar = start(inherited, log).await?;
        serves.begin();
        control(sidecar, orders).await
    })
}

/// Whoever signals every process of the sidecar, a terminal or a service manager, means the supervisor. Threads inherit it.
fn leave_signals_to_the_supervisor() -> Result<(), Error> {
    let mut set = SigSet::empty();
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR2].into_iter().for_each(|signal| set.add(signal));
    set.thread_block().map_err(|errno| Error::Runtime { what: "block signals", source: errno.into() })
}

async fn control(sidecar: Sidecar, orders: Orders) -> Result<ExitCode, Error> {
    let Sidecar {
        workers,
        endpoints,
        queues,
        tunnels,
        drain,
        handed_over,
        heartbeat,
        telemetry,
        log,
        loaded,
        permits,
        trust,
        readiness,
        under_way,
        waiting,
        generation,
        reload_failed,
        began,
        board,
        supervisor,
    } = sidecar;
    let told = Told {
        programs: readiness.condition("programs"),
        addresses: readiness.condition("addresses"),
        attached: watch::Sender::new(false),
        stop: watch::Sender::new(Stop::Not),
        board: board.clone(),
    };
    let switch = Switch::new(board.clone(), supervisor, &telemetry);
    let acceleration = loaded.config.capture.acceleration;
    let fast_path = FastPath::new(acceleration, board.clone(), orders.clone());
    let carried = acceleration::tell_what_is_carried(acceleration, &telemetry, heartbeat.clone());
    let drain = Drain {
        orders: orders.clone(),
        telemetry: telemetry.clone(),
        serving: readiness.condition("serving"),
        queues,
        under_way,
        waiting,
        tunnels: Cell::new(tunnels),
        no_more_tunnels: drain,
        handed_over,
        heartbeat: heartbeat.clone(),
        board,
        deadline: loaded.config.proxy.drain_deadline,
        switch: switch.clone(),
    };
    drain.serving.ready();
    let idle_timeout = loaded.config.proxy.idle_timeout;
    let (attached, stop, orphaned) = (told.attached.subscribe(), told.stop.subscribe(), told.stop.subscribe());
    let no_more_questions = drain.handed_over.subscribe();
    let reload = Reload::new(loaded, generation, permits, &telemetry);
    if reload_failed {
        reload.failed();
    }
    let levers = Levers { switch, fast_path, orders: orders.clone() };
    let hooks = hooks(readiness.clone(), heartbeat, &telemetry, log, reload.in_force(), levers);
    orders.report(&Report::Serving);
    let code = tokio::select! {
        failed = serve_endpoints(endpoints, hooks, no_more_questions, orphaned) => failed.map(|never| match never {}).map_err(Error::from),
        code = drain.follow(stop) => Ok(code),
        () = workers.worker_lost() => {
            tracing::error!("a worker thread has ended; the worker process ends too, so that it is started anew");
            Ok(ExitCode::FAILURE)
        }
        () = follow_orders(&orders, &told, &reload) => Ok(ExitCode::FAILURE),
        never = sweep_idle(&telemetry, idle_timeout) => match never {},
        never = carried => match never {},
        never = tell_when_ready(&readiness, began) => match never {},
        never = follow_identity(trust, &drain.queues[1], attached) => match never {},
    };
    drop(workers);
    telemetry.flush(Duration::from_secs(1));
    code
}

/// Serves the endpoints until another worker does, or the supervisor is gone: whoever comes after it needs the ports.
async fn serve_endpoints(
    endpoints: admin::Listeners,
    hooks: admin::Hooks,
    no_more: watch::Receiver<bool>,
    mut stop: watch::Receiver<Stop>,
) -> Result<Infallible, admin::Error> {
    tokio::select! {
        failed = admin::serve(endpoints, hooks, no_more) => failed,
        _ = stopped(&mut stop, |stop| *stop == Stop::Orphaned) => pending().await,
    }
}

async fn follow_orders(orders: &Orders, told: &Told, reload: &Reload) {
    orders.follow(told, reload).await;
    // What is to be done about that is not its business.
    pending().await
}

async fn tell_when_ready(readiness: &Readiness, began: Began) -> Infallible {
    readiness.wait_ready().await;
    tracing::info!(ready_ms = millis(began.elapsed()), "ready");
    pending().await
}

/// Resets connections on which nothing moved for the idle timeout. Has no timer while there are none.
async fn sweep_idle(telemetry: &Telemetry, limit: Option<Duration>) -> Infallible {
    let Some(limit) = limit else { return pending().await };
    let table = telemetry.connections();
    loop {
        table.not_empty().await;
        tokio::time::sleep(table.sweep_idle(limit)).await;
    }
}

/// The inbound listener can be told what to answer only when the programs are attached.
async fn follow_identity(
    trust: Option<Trust>,
    listener: &TcpListener,
    mut attached: watch::Receiver<bool>,
) -> Infallible {
    let Some(trust) = trust else { return pending().await };
    if attached.wait_for(|attached| *attached).await.is_err() {
        return pending().await;
    }
    trust.tell(listener);
    trust.follow(listener).await
}
