//! New binaries that fail after the process has gone on as one of them: the one before goes on, in the same process, with all that was
//! open.

use std::{collections::BTreeSet, fs, os::unix::process::ExitStatusExt, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use nix::{sys::signal::Signal, unistd::Pid};
use sidecar_tests::{
    agent::puppet::Order,
    cases::net::TO_V4,
    harness::{PATIENCE, Sidecar, World, bpf, children, eventually, patient, with_other_tags, work},
};

use super::{LONG, Stage, command, exchanged, script, upgrades};

impl Stage {
    /// A binary that is ours, but for what it does when it is to take over.
    fn ours_but(&self, name: &str, takes_over: &str) -> Result<String> {
        let ours = Sidecar::program()?.get_program().to_owned();
        self.but(ours.to_str().context("a path of words")?, name, takes_over)
    }

    fn but(&self, ours: &str, name: &str, takes_over: &str) -> Result<String> {
        self.script(name, &format!("#!/bin/sh\ncase $1 in take-over) {takes_over};; *) exec {ours} \"$@\";; esac\n"))
    }

    /// An upgrade that is rolled back for this reason, while an application goes on; everything is as before after it.
    fn gives_back(&mut self, binary: &str, reason: &str) -> Result<()> {
        let (processes, attached) = (self.client.pids(), bpf::attached_programs(self.pod())?);
        let before = upgrades(&self.client, "rolled_back")?;
        self.app.begin(Order::Toil(TO_V4, 5, work(50)))?;
        let why = self.refused(&["--timeout", &limit().as_secs().to_string(), "--binary", binary])?;
        ensure!(why.contains("goes on in process") && why.contains(binary) && why.contains(reason), "{why}");
        self.app.begin(Order::Accepted)?;
        let toil = self.app.answer(PATIENCE)?;
        ensure!(toil.outcome == "ok", "{}", toil.outcome);
        self.app.answer(PATIENCE)?;
        ensure!(eventually(PATIENCE, || self.client.pids() == processes), "{:?}", self.client.pids());
        self.goes_on(&processes)?;
        ensure!(bpf::attached_programs(self.pod())? == attached, "more than one program at a hook");
        ensure!(upgrades(&self.client, "rolled_back")? == before + 1);
        Ok(())
    }

    /// One after the other, with a connection that stays open: names, what each does when it is to take over, and why it is stopped.
    fn all_give_back(&mut self, binaries: &[(&str, &str, &str)]) -> Result<()> {
        let (handle, _) = self.app.open(TO_V4)?;
        for (name, takes_over, reason) in binaries {
            let binary = self.ours_but(name, takes_over)?;
            self.gives_back(&binary, reason).with_context(|| format!("{name}{}", self.client.process.output()))?;
            self.app.echo(handle)?;
        }
        // And one that can, can.
        self.upgrade(&[])?;
        self.app.echo(handle)
    }
}

/// What a new binary gets, its worker's start among it.
fn limit() -> Duration {
    patient(Duration::from_secs(4))
}

fn late() -> String {
    format!("it had not taken over after {:?}", limit())
}

#[test]
fn a_binary_that_hangs_in_the_kernel_or_exits_when_it_is_to_take_over_gives_everything_back() -> Result<()> {
    let exits = ("exits", "exit 3", "it was about to exit by itself");
    Stage::new(LONG)?.all_give_back(&[("sleeps", "exec sleep 1000", &late()), exits])
}

#[test]
fn a_binary_that_hangs_in_its_code_or_crashes_when_it_is_to_take_over_gives_everything_back() -> Result<()> {
    let crashes = ("crashes", "kill -SEGV $$", "SIGSEGV");
    Stage::new(LONG)?.all_give_back(&[("spins", "while :; do :; done", &late()), crashes])
}

#[test]
fn a_binary_that_fails_in_the_middle_of_its_hooks_gives_back_those_that_it_has() -> Result<()> {
    let mut stage = Stage::new(LONG)?;
    let other = with_other_tags(Path::new(Sidecar::program()?.get_program()), stage.pod().directory())?;
    let other = other.to_str().context("a path of words")?;
    let before = bpf::tags(stage.pod())?;
    // The first, one in the middle, the last but one of a cgroup, the last of all.
    for program in ["on_getsockopt", "on_getsockname4", "on_connect6", "on_lookup"] {
        let binary = stage.but(other, program, &format!("exec {other} \"$@\" --refuse {program}"))?;
        stage.gives_back(&binary, program).with_context(|| stage.client.process.output())?;
        let now = bpf::tags(stage.pod())?;
        ensure!(now == before, "{program}: {now:?}, not {before:?}");
    }
    // Nothing is kept of the tries: the same without a fault puts its programs at every hook.
    stage.upgrade(&["--binary", other])?;
    let now = bpf::tags(stage.pod())?;
    ensure!(exchanged(&before, &now), "{now:?} after {before:?}");
    Ok(())
}

#[test]
fn a_binary_that_crashes_when_all_is_done_gives_back_the_links_that_it_has() -> Result<()> {
    let mut stage = Stage::new(LONG)?;
    let ours = Sidecar::program()?.get_program().to_owned();
    let ours = ours.to_str().context("a path of words")?;
    let binary = stage.but(ours, "last", &format!("exec {ours} \"$@\" --refuse take-over"))?;
    let before = links(stage.client.process.pid())?;
    stage.gives_back(&binary, "SIGABRT").with_context(|| stage.client.process.output())?;
    let now = links(stage.client.process.pid())?;
    // One that was attached anew is another, and there was a moment without either.
    ensure!(!before.is_empty() && now == before, "{now:?}, not {before:?}");
    Ok(())
}

#[test]
fn a_binary_that_is_moved_before_it_takes_over_gives_back_to_the_pod_that_it_came_from() -> Result<()> {
    let mut stage = Stage::new("{}")?;
    let (processes, attached) = (stage.client.pids(), bpf::attached_programs(stage.pod())?);
    let elsewhere = stage.world.server.app_cgroup().join("cgroup.procs");
    let ours = Sidecar::program()?.get_program().to_owned();
    let ours = ours.to_str().context("a path of words")?;
    let moves = format!("echo $$ > {} && exec {ours} \"$@\"", elsewhere.display());
    let binary = stage.ours_but("moved", &moves)?;
    let why = stage.refused(&["--binary", &binary]).with_context(|| stage.client.process.output())?;
    ensure!(why.contains("goes on in process") && why.contains("moved to another cgroup"), "{why}");
    ensure!(bpf::attached_programs(&stage.world.server)? == 0, "it has attached to another pod");
    stage.client.process.move_to(stage.pod().sidecar_cgroup())?;
    // Ready it is again at its next look, in ten seconds.
    ensure!(eventually(PATIENCE, || stage.client.pids() == processes), "{:?}", stage.client.pids());
    let local = stage.app.visit(TO_V4)?;
    ensure!(stage.server.accepted()?.last().is_some_and(|seen| seen.port() != local.port()), "it goes direct");
    ensure!(bpf::attached_programs(stage.pod())? == attached, "other programs than before are attached");
    Ok(())
}

#[test]
fn a_signal_without_a_name_while_a_binary_takes_over_is_its_own_business() -> Result<()> {
    let stage = Stage::new(LONG)?;
    let ours = Sidecar::program()?.get_program().to_owned();
    let ours = ours.to_str().context("a path of words")?;
    // A real-time one, which it ignores; whoever traces it sees it all the same.
    let binary = stage.but(ours, "signalled", &format!("trap '' 40; kill -40 $$; exec {ours} \"$@\""))?;
    stage.upgrade(&["--binary", &binary]).with_context(|| stage.client.process.output())?;
    ensure!(upgrades(&stage.client, "upgraded")? == 1);
    Ok(())
}

/// Nobody but its tracer may end it from within.
#[test]
fn the_first_process_of_a_pid_namespace_ends_if_it_cannot_be_given_back() -> Result<()> {
    let world = World::new()?;
    let pod = &world.client;
    let ours = Sidecar::program()?.get_program().to_owned();
    let ours = ours.to_str().context("a path of words")?;
    let args = ["--pid", "--mount-proc", "--fork", "--kill-child"];
    let mut sidecar = Sidecar::spawn_through(pod, "{}", "unshare", &args)?;
    sidecar.wait_until_ready(patient(PATIENCE))?;
    let first = children(sidecar.process.pid()).first().copied().context("no supervisor")?;
    // Without descriptors it does not find the binary before.
    let close = "for fd in /proc/self/fd/*; do fd=${fd##*/}; [ $fd -gt 2 ] && eval \"exec $fd>&-\"; done";
    let text = format!("#!/bin/bash\ncase $1 in take-over) {close}; exit 3;; *) exec {ours} \"$@\";; esac\n");
    let binary = script(pod, "closes", &text)?;
    let upgrade = command(pod, &["--binary", &binary])?;
    let mut inside = Command::new("nsenter");
    inside
        .args(["--target", &first.to_string(), "--pid", "--mount"])
        .arg(upgrade.get_program())
        .args(upgrade.get_args());
    Sidecar::unconfigured(&mut inside);
    let mut asks = pod.spawn_beside_sidecar(inside)?;
    let status = sidecar.process.wait(patient(PATIENCE)).with_context(|| asks.output())?;
    // Not every version of unshare(1) can end by the signal that its child was ended by; this is none by which it may have crashed.
    let ended = status.signal().is_none_or(|signal| signal == Signal::SIGKILL as i32);
    ensure!(ended && !status.success(), "{status}{}", sidecar.process.output());
    let told = sidecar.process.err.text().contains("cannot be made to give back");
    // Whoever asks lives in that namespace, and may end with it before it has said so.
    let refused =
        matches!(asks.wait(patient(PATIENCE))?, status if status.code() == Some(1) || status.signal() == Some(9));
    ensure!(told && refused, "{}{}", sidecar.process.output(), asks.output());
    ensure!(
        eventually(patient(PATIENCE), || bpf::attached_programs(pod).is_ok_and(|count| count == 0)),
        "programs stay"
    );
    Ok(())
}

/// The numbers of the links that a process holds.
fn links(process: Pid) -> Result<BTreeSet<u64>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{process}/fdinfo"))? {
        // One that was open for a moment is gone.
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        let number = text.lines().find_map(|line| line.strip_prefix("link_id:"));
        found.extend(number.map(|number| number.trim().parse::<u64>()).transpose()?);
    }
    Ok(found)
}
