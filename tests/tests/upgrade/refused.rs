//! Upgrades that are refused, and who may not ask for one: nothing has changed after them.

use std::{
    fs,
    io::{Read, Write},
    os::unix::{fs::MetadataExt, net::UnixStream},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::{signal::Signal, stat::Mode},
    unistd::{Pid, mkfifo},
};
use sidecar_tests::harness::{BPF_FS, PATIENCE, Sidecar, bpf, children, eventually};

use super::{Stage, command, programs, upgrades};

#[test]
fn a_binary_that_cannot_take_over_is_refused_with_the_reason_and_nothing_has_changed() -> Result<()> {
    let mut stage = Stage::new("{}")?;
    let ours = PathBuf::from(Sidecar::program()?.get_program());
    let facts = pod_run(&ours, "handover-facts")?;
    let layout = facts.replace("\"layout\":", "\"layout\":99");
    ensure!(layout != facts, "{facts}");
    let script = |body: String| format!("#!/bin/sh\ncase $1 in handover-facts) {body} esac\n");
    let ours = ours.display();
    let pipe = stage.pod().directory().join("pipe").display().to_string();
    mkfifo(Path::new(&pipe), Mode::S_IRWXU)?;
    let cases = [
        ("/no/such/file".to_owned(), "cannot be opened"),
        ("/etc/passwd".to_owned(), "cannot be started"),
        ("/bin/echo".to_owned(), "no sidecar that can take over"),
        (
            stage.script("layout", &script(format!("echo '{}';;", layout.trim())))?,
            "layout of eBPF maps is of version 99",
        ),
        (stage.script("exits", &script(format!("exec {ours} $1;; *) exit 3;;")))?, "exit status: 3"),
        (pipe.clone(), "no regular file"),
        (stage.script("late", &script(format!("exec {ours} $1;; *) exec sleep 1000;;")))?, "does not serve after 1s"),
    ];
    let (processes, before) = (stage.client.pids(), programs(stage.pod())?);
    for (binary, reason) in &cases {
        let why = stage.refused(&["--timeout", "1", "--binary", binary])?;
        ensure!(why.contains("everything is as it was") && why.contains(reason) && why.contains(binary), "{why}");
        stage.goes_on(&processes)?;
    }
    ensure!(programs(stage.pod())? == before, "its programs are others");
    let refused = upgrades(&stage.client, "refused")?;
    ensure!(refused == cases.len() as u64, "{refused} refused");
    Ok(())
}

fn pod_run(program: &Path, verb: &str) -> Result<String> {
    Ok(String::from_utf8(Command::new(program).arg(verb).output()?.stdout)?)
}

#[test]
fn an_upgrade_without_what_was_pinned_is_refused_and_the_pod_stays_closed() -> Result<()> {
    for lost in ["layout", "maps/FLOWS", ""] {
        let mut stage = Stage::new("capture: { on_failure: closed }\n")?;
        let processes = stage.client.pids();
        let remove = || -> Result<()> {
            for store in fs::read_dir(format!("{BPF_FS}/sidecar"))? {
                let path = store?.path().join(lost);
                if lost.is_empty() { remove_below(&path)? } else { fs::remove_file(path)? }
            }
            Ok(())
        };
        stage.pod().mounts().run(remove)?.with_context(|| format!("remove {lost}"))?;
        let why = stage.refused(&[])?;
        ensure!(why.contains("everything is as it was: ") && why.contains("somebody has removed"), "{lost}: {why}");
        ensure!(why.contains("end this one and start the new one"), "{lost}: {why}");
        stage.goes_on(&processes).with_context(|| format!("without {lost}"))?;
    }
    Ok(())
}

/// Where it was moved it would find the pod of another, or take the application's cgroup for its own.
#[test]
fn a_sidecar_that_was_moved_is_upgraded_only_where_it_was() -> Result<()> {
    let mut stage = Stage::new("{}")?;
    let (processes, before) = (stage.client.pids(), programs(stage.pod())?);
    let elsewhere = [stage.world.server.app_cgroup(), stage.pod().app_cgroup()].map(Path::to_owned);
    for cgroup in elsewhere {
        stage.client.process.move_to(&cgroup)?;
        let why = stage.refused(&[])?;
        for part in ["everything is as it was: ", "moved to another cgroup", "move it back"] {
            ensure!(why.contains(part), "{}: {why}", cgroup.display());
        }
        stage.client.process.move_to(stage.pod().sidecar_cgroup())?;
        // It may have noticed meanwhile.
        ensure!(eventually(3 * PATIENCE, || stage.client.is_ready()), "{}", stage.client.process.output());
        stage.goes_on(&processes)?;
    }
    ensure!(programs(stage.pod())? == before, "its programs are others");
    ensure!(bpf::attached_programs(&stage.world.server)? == 0, "it has attached to another pod");
    stage.upgrade(&[]).map(drop)
}

/// All but directories: the kernel keeps a store that was removed without a name.
fn remove_below(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { remove_below(&entry.path())? } else { fs::remove_file(entry.path())? }
    }
    Ok(fs::remove_dir(directory)?)
}

#[test]
fn neither_the_application_nor_one_that_does_not_wait_for_the_answer_may_ask() -> Result<()> {
    let mut stage = Stage::new("{}")?;
    let processes = stage.client.pids();
    let told = |stage: &Stage, whys: &[&str]| {
        let told = || whys.iter().any(|why| stage.client.process.output().contains(why));
        ensure!(eventually(PATIENCE, told), "none of {whys:?}{}", stage.client.process.output());
        Ok(())
    };
    // Both are of the sidecar's user.
    let mut application = stage.pod().spawn(command(stage.pod(), &[])?)?;
    let status = application.wait(6 * PATIENCE)?;
    ensure!(status.code() == Some(1), "{status}{}", application.output());
    ensure!(
        application.err.text().contains("only root and the user of the sidecar may ask"),
        "{}",
        application.output()
    );
    told(&stage, &["it is in the pod, and not in the sidecar's cgroup"])?;
    // One that asks while the supervisor cannot look, and is gone when it can.
    stage.client.process.signal(Signal::SIGSTOP)?;
    let mut hasty = stage.pod().spawn_beside_sidecar(command(stage.pod(), &[])?)?;
    let waits = || {
        let place = fs::read_to_string(format!("/proc/{}/wchan", hasty.pid()));
        place.is_ok_and(|place| place.contains("unix_stream"))
    };
    let has_asked = eventually(PATIENCE, waits);
    hasty.signal(Signal::SIGKILL)?;
    hasty.wait(PATIENCE)?;
    stage.client.process.signal(Signal::SIGCONT)?;
    ensure!(has_asked, "it has not asked");
    told(&stage, &["it has ended, and whoever asks", "a process that is gone"])?;
    stage.goes_on(&processes)?;
    ensure!(upgrades(&stage.client, "upgraded")? == 0 && upgrades(&stage.client, "refused")? == 0);
    ensure!(!stage.client.process.output().contains("an upgrade begins"), "{}", stage.client.process.output());
    Ok(())
}

#[test]
fn a_time_that_no_clock_can_count_ends_nothing() -> Result<()> {
    let stage = Stage::new("{}")?;
    let mut process = stage.pod().spawn_beside_sidecar(command(stage.pod(), &["--timeout", &u64::MAX.to_string()])?)?;
    let status = process.wait(PATIENCE)?;
    ensure!(status.code() == Some(2) && process.err.text().contains("3600"), "{status}{}", process.output());
    // Whoever asks may be another program.
    let ours = PathBuf::from(Sidecar::program()?.get_program());
    let text = "case $1 in handover-facts) exec OURS $1;; *) exec sleep 1000;; esac\n";
    let late = stage.script("late", &format!("#!/bin/sh\n{}", text.replace("OURS", &ours.display().to_string())))?;
    let (supervisor, seconds) = (stage.client.process.pid(), u64::MAX);
    let netns = fs::metadata(format!("/proc/{supervisor}/ns/net"))?.ino();
    let mut door = UnixStream::connect(format!("/run/sidecar/{netns}.sock.upgrade"))?;
    writeln!(door, r#"{{"binary":"{late}","patience":{{"secs":{seconds},"nanos":0}}}}"#)?;
    let sleeps = |pid: &Pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n");
    let waits = || children(supervisor).iter().any(sleeps);
    ensure!(eventually(PATIENCE, waits), "its worker is not waited for{}", stage.client.process.output());
    let why = stage.refused(&[])?;
    ensure!(why.contains("another upgrade is under way"), "{why}");
    Ok(())
}

#[test]
fn who_connects_and_does_not_ask_is_let_go() -> Result<()> {
    let stage = Stage::new("{}")?;
    let netns = fs::metadata(stage.pod().netns().path())?.ino();
    let mut silent = UnixStream::connect(format!("/run/sidecar/{netns}.sock.upgrade"))?;
    silent.set_read_timeout(Some(PATIENCE))?;
    // Nobody else speaks to the supervisor meanwhile.
    ensure!(silent.read(&mut [0; 1])? == 0);
    Ok(())
}
