//! `sidecar init` and the sidecars after it, which need no privilege: what it attached stays, a crash at any step is repaired, and
//! nothing leaves before it may.

#[path = "init/beside.rs"]
mod beside;
#[path = "init/layout.rs"]
mod layout;
#[path = "init/refused.rs"]
mod refused;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use sidecar_tests::{
    cases::net::{ANY, PORT, TO_V4, TO_V6},
    harness::{Authority, BPF_FS, PATIENCE, Pod, Process, Puppet, Sidecar, Wire, World, bpf, eventually},
};

const OPEN: &str = "{ proxy: { drain_deadline: 200ms } }";
const CLOSED: &str = "{ capture: { on_failure: closed }, proxy: { drain_deadline: 200ms } }";
/// Programs that another configuration cannot use.
const OTHER_PORT: &str = "{ capture: { inbound: { port: 15106 } }, proxy: { drain_deadline: 200ms } }";

/// A sidecar that has no capability at all.
fn powerless(pod: &Arc<Pod>, config: &str) -> Result<Sidecar> {
    Sidecar::spawn_through(pod, config, "setpriv", &["--bounding-set=-all", "--inh-caps=-all"])
}

fn started(mut sidecar: Sidecar) -> Result<Sidecar> {
    sidecar.wait_until_ready(PATIENCE)?;
    Ok(sidecar)
}

/// The command line of `sidecar COMMAND` with this configuration.
fn command(pod: &Pod, command: &str, config: &str, more: &[&str]) -> Result<Command> {
    let file = pod.directory().join(format!("{command}.yaml"));
    fs::write(&file, config)?;
    let mut program = Sidecar::program()?;
    program.arg(command).arg("--config").arg(file).args(more);
    Ok(program)
}

fn run_init(pod: &Pod, config: &str, more: &[&str]) -> Result<(ExitStatus, Process)> {
    let mut process = pod.spawn_beside_sidecar(command(pod, "init", config, more)?)?;
    let status = process.wait(PATIENCE)?;
    Ok((status, process))
}

fn init(pod: &Pod, config: &str) -> Result<String> {
    let (status, process) = run_init(pod, config, &[])?;
    ensure!(status.success(), "{status}{}", process.output());
    Ok(process.out.text())
}

/// What is pinned for pods, a directory for each.
fn stores(pod: &Pod) -> Result<Vec<PathBuf>> {
    pod.mounts().run(|| {
        let entries = fs::read_dir(Path::new(BPF_FS).join("sidecar"))?;
        Ok(entries.flatten().map(|entry| entry.path()).collect())
    })?
}

/// A visit from `app` to `to` went direct: the server saw the application's own port.
fn is_direct(app: &mut Puppet, server: &mut Puppet) -> Result<bool> {
    let local = app.visit(TO_V4)?;
    Ok(server.accepted()?.last().map(std::net::SocketAddr::port) == Some(local.port()))
}

fn is_refused(app: &mut Puppet) -> Result<bool> {
    Ok(app.try_open(TO_V4)?.1.outcome == "ECONNREFUSED")
}

#[test]
fn a_sidecar_without_any_capability_uses_what_init_attached() -> Result<()> {
    let world = World::new()?;
    let mut server = Puppet::serving(&world.server, ANY)?;
    let mut app = Puppet::serving(&world.client, ANY)?;
    let said = init(&world.client, OPEN)?;
    ensure!(said.contains(&format!("{BPF_FS}/sidecar/")), "{said}");
    let attached = bpf::attached_programs(&world.client)?;
    ensure!(is_direct(&mut app, &mut server)?, "no sidecar serves, and on_failure is open");
    for _ in 0..2 {
        let mut sidecar = started(powerless(&world.client, OPEN)?)?;
        for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
            let status = fs::read_to_string(format!("/proc/{}/status", sidecar.process.pid()))?;
            ensure!(status.contains(&format!("{set}\t0000000000000000")), "{status}");
        }
        for to in [TO_V4, TO_V6] {
            app.visit(to)?;
        }
        ensure!(sidecar.verdict("connect", "capture", "captured")? >= 2, "{}", sidecar.verdicts());
        server.visit((world.client.v4(), PORT).into())?;
        ensure!(sidecar.verdict("sk_lookup", "capture", "steered")? >= 1, "{}", sidecar.verdicts());
        let seen = app.accepted()?.last().map(|peer| peer.ip().to_canonical());
        ensure!(seen == Some(world.server.v4().into()), "the application sees {seen:?}");
        sidecar.signal(Signal::SIGTERM)?;
        ensure!(sidecar.process.wait(PATIENCE)?.success(), "{}", sidecar.process.output());
        // What serves the sidecar's own sockets is attached to its own cgroup.
        ensure!(bpf::attached_programs(&world.client)? >= attached, "init's programs are gone");
        ensure!(is_direct(&mut app, &mut server)?, "a stopped sidecar opens the pod");
    }
    Ok(())
}

#[test]
fn closed_refuses_from_init_on_until_a_sidecar_serves() -> Result<()> {
    let world = World::new()?;
    let mut server = Puppet::serving(&world.server, ANY)?;
    let mut app = Puppet::start(&world.client)?;
    init(&world.client, CLOSED)?;
    for carried in 1..=2 {
        ensure!(is_refused(&mut app)?, "a connection is not refused");
        let mut sidecar = started(powerless(&world.client, CLOSED)?)?;
        app.visit(TO_V4)?;
        ensure!(server.accepted()?.len() == carried, "something went direct");
        sidecar.kill()?;
    }
    ensure!(is_refused(&mut app)?, "a killed sidecar opens the pod");
    Ok(())
}

/// The application is never broken by a dead owner, and whoever comes next mends what it left.
#[test]
fn a_crash_of_init_at_any_step_is_repaired() -> Result<()> {
    let usual = {
        let world = World::new()?;
        let _sidecar = Sidecar::start(&world.client, OPEN)?;
        bpf::attached_programs(&world.client)?
    };
    for step in ["load", "rules", "half", "attach", "mark", "clear"] {
        for by_init in [true, false] {
            repaired(step, by_init, usual)
                .with_context(|| format!("a crash after {step}, mended by init: {by_init}"))?;
        }
    }
    Ok(())
}

fn repaired(step: &str, by_init: bool, usual: u32) -> Result<()> {
    let world = World::new()?;
    let _server = Puppet::serving(&world.server, ANY)?;
    let mut app = Puppet::start(&world.client)?;
    if step == "clear" {
        init(&world.client, OTHER_PORT)?;
    }
    let (status, process) = run_init(&world.client, OPEN, &["--stop-after", step])?;
    ensure!(status.code() == Some(1), "{status}{}", process.output());
    app.visit(TO_V4)?;
    let sidecar = if by_init {
        init(&world.client, OPEN)?;
        started(powerless(&world.client, OPEN)?)?
    } else {
        Sidecar::start(&world.client, OPEN)?
    };
    app.visit(TO_V4)?;
    ensure!(sidecar.verdict("connect", "capture", "captured")? == 1, "{}", sidecar.verdicts());
    let stores = stores(&world.client)?;
    ensure!(stores.len() <= 1, "{stores:?}");
    // Two programs on one hook would count twice, or hand over what is handed over already.
    let programs = bpf::attached_programs(&world.client)?;
    ensure!(programs == usual, "{programs} programs, {usual} without a crash");
    Ok(())
}

#[test]
fn what_init_pinned_for_a_pod_that_is_gone_is_removed_at_the_next_start() -> Result<()> {
    let world = World::new()?;
    let cgroup = world.client.cgroup().with_file_name("gone");
    fs::create_dir(&cgroup)?;
    let elsewhere = format!("pod: {{ cgroup: {} }}", cgroup.display());
    let made = init(&world.client, &elsewhere);
    // The process moved below it, and has ended.
    fs::remove_dir(cgroup.join("sidecar")).and_then(|()| fs::remove_dir(&cgroup))?;
    made?;
    ensure!(stores(&world.client)?.len() == 1, "nothing is pinned");
    let _sidecar = Sidecar::start(&world.client, "{}")?;
    let left = stores(&world.client)?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

#[test]
fn wait_says_what_is_missing_and_ends_in_time() -> Result<()> {
    let world = World::new()?;
    let mut waiting = world.client.spawn(command(&world.client, "wait", "{}", &["--timeout", "300ms"])?)?;
    let status = waiting.wait(PATIENCE)?;
    let message = waiting.err.text();
    for part in ["300ms", "127.0.0.1:15021", "telemetry.health"] {
        ensure!(status.code() == Some(1) && message.contains(part), "{status}: {message}");
    }
    let _sidecar = Sidecar::start(&world.client, "{}")?;
    world.client.spawn(command(&world.client, "wait", "{}", &[])?)?.finish(PATIENCE)?;
    Ok(())
}

/// An application that connects in its first instruction after `sidecar wait`, started before any sidecar was.
#[test]
fn an_application_that_waits_is_carried_and_nothing_leaves_in_plaintext_before() -> Result<()> {
    const SECRET: &str = "no-word-of-this-on-the-wire";
    let world = World::new()?;
    let _server = Puppet::serving(&world.server, ANY)?;
    let authority = Authority::new(&world)?;
    let [client, server] = [(&world.client, "client"), (&world.server, "server")]
        .map(|(pod, account)| Ok::<_, anyhow::Error>(authority.issue(pod, account)? + "mtls: { mode: strict }\n"));
    let (client, server) = (client?, server?);
    init(&world.client, &client)?;
    init(&world.server, &server)?;
    let mut wire = Wire::tap(world.client.netns())?;
    let talk = format!(
        "exec 3<>/dev/tcp/{}/{PORT} && echo {SECRET} >&3 && read -r answer <&3 && echo $answer",
        world.server.v4()
    );
    let mut early = world.client.spawn(bash(&talk))?;
    ensure!(!early.wait(PATIENCE)?.success(), "carried by nobody: {}", early.output());

    let wait = command(&world.client, "wait", &client, &[])?;
    let words: Vec<_> = std::iter::once(wait.get_program()).chain(wait.get_args()).collect();
    let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    let waiting: Vec<_> =
        (0..4).map(|_| world.client.spawn(bash(&format!("{} && {talk}", words.join(" "))))).collect::<Result<_>>()?;
    let _receiving = started(powerless(&world.server, &server)?)?;
    let sending = powerless(&world.client, &client)?;
    for application in waiting {
        let answer = application.finish(2 * PATIENCE).context(sending.process.output())?;
        ensure!(answer.trim() == SECRET, "{answer}");
    }
    let plain = |payload: &[u8]| payload.windows(SECRET.len()).any(|part| part == SECRET.as_bytes());
    let leaked: Vec<_> =
        wire.segments()?.iter().filter(|segment| !segment.loopback && plain(&segment.payload)).collect();
    ensure!(leaked.is_empty(), "{leaked:?}");
    ensure!(eventually(Duration::from_secs(1), || sending.is_ready()));
    Ok(())
}

/// The programs of `init` capture from the moment that a sidecar listens, which is before it has told anybody that it is ready.
#[test]
fn the_first_connection_that_a_starting_sidecar_takes_is_carried() -> Result<()> {
    let world = World::new()?;
    let _server = Puppet::serving(&world.server, ANY)?;
    init(&world.client, CLOSED)?;
    let connect =
        format!("until {{ exec 3<>/dev/tcp/{}/{PORT}; }} 2>/dev/null; do sleep 0.01; done", world.server.v4());
    let hasty = format!("{connect}; echo word >&3 && read -r answer <&3 && echo $answer");
    let hasty = (0..3).map(|_| world.client.spawn(bash(&hasty))).collect::<Result<Vec<_>>>()?;
    let _sidecar = started(powerless(&world.client, CLOSED)?)?;
    for application in hasty {
        ensure!(application.finish(PATIENCE)?.trim() == "word");
    }
    Ok(())
}

fn bash(script: &str) -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", script]);
    Sidecar::unconfigured(&mut command);
    command
}
