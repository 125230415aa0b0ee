//! A new binary takes the place of the one that runs, and nobody notices; one that cannot changes nothing.

#[path = "upgrade/asking.rs"]
mod asking;
#[path = "upgrade/capable_file.rs"]
mod capable_file;
#[path = "upgrade/given_back.rs"]
mod given_back;
#[path = "upgrade/job.rs"]
mod job;
#[path = "upgrade/orphan.rs"]
mod orphan;
#[path = "upgrade/refused.rs"]
mod refused;

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sidecar_tests::{
    agent::puppet::{Handle, Order},
    cases::net::{ANY, TO_V4, TO_V6},
    harness::{
        Authority, Mesh, PATIENCE, Pod, Puppet, Sidecar, World, bpf, children, eventually, patient, with_other_tags,
        without_helper, work,
    },
};

use asking::{command, refused, script, upgrade};

/// So long that no stream of a test is cut because the machine is slow.
const LONG: &str = "proxy: { drain_deadline: 10m }\n";

/// A client with a sidecar, and a server with another.
struct Stage {
    app: Puppet,
    server: Puppet,
    client: Sidecar,
    world: World,
}

impl Stage {
    fn new(config: &str) -> Result<Self> {
        let world = World::new()?;
        let server = Puppet::serving(&world.server, ANY)?;
        let client = Sidecar::start(&world.client, config)?;
        Ok(Self { app: Puppet::start(&world.client)?, server, client, world })
    }

    fn pod(&self) -> &Pod {
        &self.world.client
    }

    fn upgrade(&self, args: &[&str]) -> Result<String> {
        upgrade(&self.world.client, args)
    }

    fn refused(&self, args: &[&str]) -> Result<String> {
        refused(&self.world.client, args)
    }

    fn script(&self, name: &str, text: &str) -> Result<String> {
        script(self.pod(), name, text)
    }

    /// The sidecar is as it was: the same processes, ready, and a connection goes through it.
    fn goes_on(&mut self, processes: &[Pid]) -> Result<()> {
        ensure!(self.client.pids() == processes, "{:?}, not {processes:?}", self.client.pids());
        ensure!(self.client.is_ready(), "it is not ready{}", self.client.process.output());
        let local = self.app.visit(TO_V4)?;
        let seen = self.server.accepted()?.last().copied().context("nobody has connected")?;
        ensure!(seen.port() != local.port(), "it goes direct");
        Ok(())
    }
}

/// The ids of the programs that run for connects of the pod.
fn programs(pod: &Pod) -> Result<Vec<u32>> {
    bpf::connect_programs(pod.app_cgroup())
}

fn upgrades(sidecar: &Sidecar, result: &str) -> Result<u64> {
    Ok(sidecar.metrics()?.sum("sidecar_upgrades_total", &[("result", result)]) as u64)
}

#[test]
fn upgrades_in_a_row_under_load_cost_no_connection_and_no_byte() -> Result<()> {
    let mut stage = Stage::new(LONG)?;
    let _server = Sidecar::start(&stage.world.server, LONG)?;
    let ours = PathBuf::from(Sidecar::program()?.get_program());
    let binaries = [with_other_tags(&ours, stage.pod().directory())?, ours];
    let (supervisor, mut before) = (stage.client.process.pid(), bpf::tags(stage.pod())?);
    stage.app.begin(Order::Toil(TO_V4, 20, work(100)))?;
    let mut held = 0;
    for (round, binary) in (1..=5).zip(binaries.iter().cycle()) {
        let worker = stage.client.worker()?;
        let said = stage.upgrade(&["--binary", binary.to_str().context("a path of words")?])?;
        ensure!(said.contains(&format!("in process {supervisor}\n")), "{said}");
        let now = bpf::tags(stage.pod())?;
        ensure!(exchanged(&before, &now), "the programs at the hooks had the tags {before:?} and have {now:?}");
        ensure!(stage.client.pids().first() == Some(&supervisor) && stage.client.is_ready());
        ensure!(serving(&stage.client)? != worker, "the worker is the one before");
        let done = upgrades(&stage.client, "upgraded")?;
        ensure!(done == round, "{done} upgrades, not {round}");
        if round == 1 {
            held = stage.client.descriptors_of_supervisor()?;
        } else if round == 3 {
            upgrade(&stage.world.server, &[])?;
        }
        before = now;
    }
    stage.app.begin(Order::Accepted)?;
    let toil = stage.app.answer(PATIENCE)?;
    ensure!(toil.outcome == "ok", "{}{}", toil.outcome, stage.client.process.output());
    ensure!(toil.moved > 50, "only {} connections", toil.moved);
    stage.app.answer(PATIENCE)?;
    // Those that were replaced have nothing more to do.
    let alone = || children(supervisor).len() == 1;
    ensure!(eventually(PATIENCE, alone), "{:?}{}", children(supervisor), stage.client.process.output());
    let now = stage.client.descriptors_of_supervisor()?;
    ensure!(now <= held, "the supervisor held {held} descriptors after one upgrade, and holds {now} after five");
    ensure!(stage.client.closed("drain_deadline")? == 0);
    stage.app.leave()?;
    stage.client.signal(Signal::SIGTERM)?;
    let status = stage.client.process.wait(PATIENCE)?;
    ensure!(status.code() == Some(0), "{status}{}", stage.client.process.output());
    ensure!(bpf::attached_programs(&stage.world.client)? == 0, "programs stay");
    Ok(())
}

#[test]
fn what_is_pinned_and_what_goes_past_tcp_outlives_upgrades() -> Result<()> {
    for config in ["capture: { on_failure: closed }\n", "acceleration: force\n"] {
        let mut stage = Stage::new(&format!("{config}{LONG}"))?;
        let mut before = programs(stage.pod())?;
        stage.app.begin(Order::Toil(TO_V4, 3, work(20)))?;
        let forced = config.contains("force") && stage.client.fast_path_probed()?["redirects"] == true;
        let mut past = if forced { Some(Past::begin(&stage)?) } else { None };
        for _ in 0..2 {
            past.as_mut().map_or(Ok(()), |past| past.stream())?;
            stage.upgrade(&[]).with_context(|| format!("{config}{}", stage.client.process.output()))?;
            past.as_mut().map_or(Ok(()), |past| past.is_back(&stage))?;
            let now = programs(stage.pod())?;
            ensure!(now.len() == 1 && now != before, "{config}{before:?}, {now:?}");
            before = now;
        }
        stage.app.begin(Order::Accepted)?;
        let toil = stage.app.answer(PATIENCE)?;
        ensure!(toil.outcome == "ok", "{config}{}{}", toil.outcome, stage.client.process.output());
        stage.app.answer(PATIENCE)?;
        stage.client.kill()?;
        let closed = config.contains("closed");
        let (_, answer) = stage.app.try_open(TO_V4)?;
        ensure!(answer.outcome == if closed { "ECONNREFUSED" } else { "ok" }, "{config}{}", answer.outcome);
        if closed {
            // A successor takes the place of what refuses, and opens the pod at its end.
            let mut next = Sidecar::start(&stage.world.client, config)?;
            next.signal(Signal::SIGTERM)?;
            ensure!(next.process.wait(PATIENCE)?.code() == Some(0), "{}", next.process.output());
        }
        ensure!(bpf::attached_programs(stage.pod())? == 0, "{config}programs stay");
    }
    Ok(())
}

/// An application whose messages go past TCP.
struct Past {
    app: Puppet,
    socket: Handle,
}

impl Past {
    fn begin(stage: &Stage) -> Result<Self> {
        let mut app = Puppet::start(stage.pod())?;
        let (socket, _) = app.open(TO_V4)?;
        let mut past = Self { app, socket };
        past.goes_past(stage)?;
        Ok(past)
    }

    /// Begins to stream, whatever happens meanwhile.
    fn stream(&mut self) -> Result<()> {
        self.app.begin(Order::Stream(self.socket, u64::from(work(64)) << 20, 20_000))
    }

    /// The stream has its end, and messages go past TCP.
    fn is_back(&mut self, stage: &Stage) -> Result<()> {
        let streamed = self.app.answer(patient(PATIENCE))?;
        ensure!(streamed.outcome == "ok", "{}{}", streamed.outcome, stage.client.process.output());
        self.goes_past(stage)
    }

    fn goes_past(&mut self, stage: &Stage) -> Result<()> {
        const EXCHANGES: u32 = 50;
        let exchange = |app: &mut Puppet| app.must(Order::Edges(self.socket, EXCHANGES, 20_000));
        let sidecar = &stage.client;
        // A look may find it, at a moment at which nothing is on its way.
        let enrolled = eventually(patient(PATIENCE), || {
            exchange(&mut self.app).is_ok() && sidecar.fast_path().is_ok_and(|status| status["connections"] == 1)
        });
        ensure!(enrolled, "{}{}", sidecar.fast_path()?, sidecar.verdicts());
        let messages = || sidecar.verdict("sk_msg", "redirect", "fast");
        let before = messages()?;
        exchange(&mut self.app)?;
        let past = messages()? - before;
        ensure!(past > u64::from(EXCHANGES) / 2, "{past} of {EXCHANGES} went past TCP{}", sidecar.verdicts());
        Ok(())
    }
}

#[test]
fn upgrades_of_both_ends_cost_no_connection_that_they_protect() -> Result<()> {
    let world = World::new()?;
    let authority = Authority::new(&world)?;
    let start = |pod, account| {
        Sidecar::start(pod, &format!("{}mtls: {{ mode: strict }}\n{LONG}", authority.issue(pod, account)?))
    };
    let (client, server) = (start(&world.client, "client")?, start(&world.server, "server")?);
    let mesh = Mesh { client: Some(client), server: Some(server), strict: true, accelerated: None, world };
    let _server = Puppet::serving(&mesh.world.server, ANY)?;
    let mut app = Puppet::start(&mesh.world.client)?;
    app.begin(Order::Toil(TO_V4, 5, work(60)))?;
    for _ in 0..3 {
        for pod in [&mesh.world.server, &mesh.world.client] {
            upgrade(pod, &[]).with_context(|| mesh.logs())?;
        }
    }
    app.begin(Order::Accepted)?;
    let toil = app.answer(PATIENCE)?;
    ensure!(toil.outcome == "ok" && toil.moved > 0, "{}{}{}", toil.outcome, app.process().output(), mesh.logs());
    // Each worker counts from nothing.
    Puppet::start(&mesh.world.client)?.visit(TO_V4)?;
    mesh.ensure_encrypted()
}

/// Whether there is one program at every hook, with another tag than before.
fn exchanged(before: &bpf::Tags, now: &bpf::Tags) -> bool {
    let other = |(before, now): (&Vec<_>, &Vec<_>)| before.len() == 1 && now.len() == 1 && before != now;
    before.len() == now.len() && before.iter().zip(now).all(other)
}

/// The worker that was started last.
fn serving(sidecar: &Sidecar) -> Result<Pid> {
    children(sidecar.process.pid()).pop().context("no worker")
}

#[test]
fn a_binary_that_fails_after_it_has_taken_over_gives_everything_back() -> Result<()> {
    let mut stage = Stage::new("{}")?;
    // It serves well as a worker, but the kernel refuses its programs: bpf_sk_storage_get(), which the one before may call.
    let ours = PathBuf::from(Sidecar::program()?.get_program());
    let binary = without_helper(&ours, stage.pod().directory(), 107)?;
    let binary = binary.to_str().context("a path of words")?.to_owned();
    let (processes, attached) = (stage.client.pids(), bpf::attached_programs(stage.pod())?);
    stage.app.begin(Order::Toil(TO_V4, 5, work(50)))?;
    let why = stage.refused(&["--binary", &binary]).with_context(|| stage.client.process.output())?;
    ensure!(why.contains("goes on in process") && why.contains(&binary) && why.contains("kernel refuses"), "{why}");
    stage.app.begin(Order::Accepted)?;
    let toil = stage.app.answer(PATIENCE)?;
    ensure!(toil.outcome == "ok", "{}{}", toil.outcome, stage.client.process.output());
    stage.app.answer(PATIENCE)?;
    ensure!(eventually(PATIENCE, || stage.client.pids() == processes), "{:?}", stage.client.pids());
    stage.goes_on(&processes)?;
    ensure!(bpf::attached_programs(stage.pod())? == attached, "more than one program at a hook");
    ensure!(upgrades(&stage.client, "rolled_back")? == 1);
    // And one that can, can.
    stage.upgrade(&[])?;
    ensure!(upgrades(&stage.client, "upgraded")? == 1);
    Ok(())
}

/// The client's IPv4 address is denied.
const WITHOUT_V4: &str = "authorization:\n- { name: no v4, action: deny, from: [{ cidrs: [10.77.0.1/32] }] }\n";

#[test]
fn rules_that_a_reload_takes_away_end_what_a_worker_of_before_carries() -> Result<()> {
    let world = World::new()?;
    let (mut app, _server) = (Puppet::start(&world.client)?, Puppet::serving(&world.server, ANY)?);
    let sidecar = Sidecar::start(&world.server, LONG)?;
    let (v4, v6) = (app.open(TO_V4)?.0, app.open(TO_V6)?.0);
    upgrade(&world.server, &[])?;
    app.echo(v4)?;
    fs::write(world.server.directory().join("sidecar.yaml"), format!("{LONG}{WITHOUT_V4}"))?;
    sidecar.signal(Signal::SIGHUP)?;
    let end = app.order(Order::AwaitEnd(v4))?.outcome;
    ensure!(end == "ECONNRESET", "{end}{}", sidecar.process.output());
    app.echo(v6).context("the connection that the new rules allow")?;
    app.leave()
}

#[test]
fn a_signal_upgrades_and_only_one_at_a_time_and_none_while_it_drains() -> Result<()> {
    let mut stage = Stage::new(LONG)?;
    let (handle, _) = stage.app.open(TO_V4)?;
    let worker = stage.client.worker()?;
    stage.client.signal(Signal::SIGUSR2)?;
    let upgraded = || upgrades(&stage.client, "upgraded").is_ok_and(|done| done == 1);
    ensure!(eventually(PATIENCE, upgraded), "{}", stage.client.process.output());
    // What was open is carried by the worker before.
    stage.app.echo(handle)?;
    ensure!(children(stage.client.process.pid()).contains(&worker), "it has gone");
    let late = stage.script("late", "#!/bin/sh\nexec sleep 1000\n")?;
    let mut first = stage.pod().spawn_beside_sidecar(command(stage.pod(), &["--binary", &late])?)?;
    let begun = || stage.client.process.err.text().contains(&format!("an upgrade begins binary={late}"));
    ensure!(eventually(PATIENCE, begun));
    let why = || stage.refused(&[]);
    ensure!(eventually(PATIENCE, || why().is_ok_and(|why| why.contains("another upgrade is under way"))), "{}", why()?);
    stage.client.signal(Signal::SIGTERM)?;
    ensure!(first.wait(PATIENCE)?.code() == Some(1), "{}", first.output());
    ensure!(first.err.text().contains("it drains after SIGTERM"), "{}", first.output());
    ensure!(eventually(PATIENCE, || why().is_ok_and(|why| why.contains("it drains after SIGTERM"))), "{}", why()?);
    // It ends when what was open has, in either worker.
    ensure!(stage.client.process.is_running());
    stage.app.echo(handle)?;
    stage.app.leave()?;
    let status = stage.client.process.wait(patient(Duration::from_secs(10)))?;
    ensure!(status.code() == Some(0), "{status}{}", stage.client.process.output());
    ensure!(kill(worker, None).is_err(), "worker {worker} is left");
    Ok(())
}
