//! `on_failure: closed`: without a sidecar the pod's connections fail, also after a sidecar that was killed. What keeps
//! them from going direct is pinned in the BPF file system, and goes when a sidecar ends in order.

use std::{fs, os::fd::AsFd, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use sidecar_tests::{
    agent::puppet::{Answer, Order},
    cases::net::{ANY, TO_V4, TO_V6},
    harness::{BPF_FS, PATIENCE, Pod, Puppet, Sidecar, World, bpf, eventually, patient},
};

const CLOSED: &str = "{ capture: { on_failure: closed }, proxy: { drain_deadline: 200ms } }";

/// Everything that sidecars have pinned.
fn pins(pod: &Pod) -> Result<Vec<String>> {
    fn walk(directory: &str, found: &mut Vec<String>) -> std::io::Result<()> {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path().display().to_string();
            if fs::symlink_metadata(&path)?.is_dir() {
                walk(&path, found)?;
            }
            found.push(path);
        }
        Ok(())
    }
    let mut found = Vec::new();
    match pod.mounts().run(|| walk(&format!("{BPF_FS}/sidecar"), &mut found))? {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(found),
    }
}

fn is_refused_at_once(answer: &Answer) -> bool {
    answer.outcome == "ECONNREFUSED" && answer.took < patient(Duration::from_millis(500))
}

/// Starts a sidecar and kills it. Says how many programs it had attached.
fn killed(pod: &Arc<Pod>) -> Result<u32> {
    let mut sidecar = Sidecar::start(pod, CLOSED)?;
    let attached = bpf::attached_programs(pod)?;
    sidecar.kill()?;
    ensure!(!pins(pod)?.is_empty() && bpf::attached_programs(pod)? > 0, "nothing refuses any more");
    Ok(attached)
}

#[test]
fn connects_fail_at_once_after_the_sidecar_was_killed() -> Result<()> {
    let world = World::new()?;
    let mut server = Puppet::serving(&world.server, ANY)?;
    let mut app = Puppet::serving(&world.client, ANY)?;
    killed(&world.client)?;
    for to in [TO_V4, TO_V6] {
        let (_, answer) = app.try_open(to)?;
        ensure!(is_refused_at_once(&answer), "{to}: {answer:?}");
    }
    ensure!(server.accepted()?.is_empty(), "a connection went direct");
    // What stays in the pod never was the sidecar's.
    app.visit("127.0.0.1:8080".parse()?)?;
    app.visit("10.77.0.1:8080".parse()?).map(drop)
}

#[test]
fn clients_are_refused_at_once_after_the_servers_sidecar_was_killed() -> Result<()> {
    let world = World::new()?;
    let mut server = Puppet::serving(&world.server, ANY)?;
    let mut client = Puppet::start(&world.client)?;
    killed(&world.server)?;
    for to in [TO_V4, TO_V6] {
        let (_, answer) = client.try_open(to)?;
        ensure!(is_refused_at_once(&answer), "{to}: {answer:?}");
    }
    ensure!(server.accepted()?.is_empty(), "a connection went direct");
    Ok(())
}

#[test]
fn a_killed_sidecar_resets_its_streams_in_closed_mode() -> Result<()> {
    let world = World::new()?;
    let _server = Puppet::serving(&world.server, ANY)?;
    let mut app = Puppet::start(&world.client)?;
    let mut sidecar = Sidecar::start(&world.client, CLOSED)?;
    let (stream, _) = app.open(TO_V4)?;
    app.echo(stream)?;
    sidecar.kill()?;
    let end = app.order(Order::AwaitEnd(stream))?;
    ensure!(end.outcome == "ECONNRESET" && end.took < patient(Duration::from_secs(1)), "{end:?}");
    Ok(())
}

#[test]
fn the_next_sidecar_takes_over_from_a_killed_one() -> Result<()> {
    let world = World::new()?;
    let mut server = Puppet::serving(&world.server, ANY)?;
    let mut app = Puppet::start(&world.client)?;
    let attached = [killed(&world.client)?, killed(&world.server)?];
    for _ in 0..3 {
        let mut sidecars = [Sidecar::start(&world.client, CLOSED)?, Sidecar::start(&world.server, CLOSED)?];
        let now = [bpf::attached_programs(&world.client)?, bpf::attached_programs(&world.server)?];
        // One that still ran for the killed sidecar would refuse what the new one captures.
        ensure!(now == attached, "{attached:?} programs before, {now:?} after");
        let local = app.visit(TO_V4)?;
        ensure!(server.accepted()?.last().map(|peer| peer.ip().to_canonical()) == Some(local.ip()));
        ensure!(sidecars[0].verdict("connect", "capture", "captured")? == 1, "outbound");
        ensure!(sidecars[1].verdict("sk_lookup", "capture", "steered")? == 1, "inbound");
        for sidecar in &mut sidecars {
            sidecar.kill()?;
        }
    }
    Ok(())
}

#[test]
fn sigterm_removes_the_pins_and_connections_go_direct() -> Result<()> {
    let world = World::new()?;
    let mut server = Puppet::serving(&world.server, ANY)?;
    let mut app = Puppet::start(&world.client)?;
    killed(&world.client)?;
    let mut sidecar = Sidecar::start(&world.client, CLOSED)?;
    ensure!(!pins(&world.client)?.is_empty(), "nothing is pinned");
    sidecar.signal(Signal::SIGTERM)?;
    let status = sidecar.process.wait(PATIENCE)?;
    ensure!(status.code() == Some(0), "{status}{}", sidecar.process.output());
    let left = pins(&world.client)?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    ensure!(bpf::attached_programs(&world.client)? == 0, "programs are still attached");
    let local = app.visit(TO_V4)?;
    ensure!(server.accepted()?.last().map(std::net::SocketAddr::port) == Some(local.port()), "not direct");
    Ok(())
}

#[test]
fn two_pods_on_one_node_do_not_share_pins() -> Result<()> {
    let world = World::new()?;
    let _server = Puppet::serving(&world.server, ANY)?;
    let mut app = Puppet::start(&world.client)?;
    let mut client = Sidecar::start(&world.client, CLOSED)?;
    let server = Sidecar::start(&world.server, CLOSED)?;
    client.signal(Signal::SIGTERM)?;
    client.process.wait(PATIENCE)?;
    ensure!(bpf::attached_programs(&world.client)? == 0);
    app.visit(TO_V4)?;
    ensure!(server.verdict("sk_lookup", "capture", "steered")? == 1 && server.is_ready());
    Ok(())
}

#[test]
fn an_open_sidecar_pins_nothing() -> Result<()> {
    let world = World::new()?;
    let _sidecar = Sidecar::start(&world.client, "{}")?;
    let pinned = pins(&world.client)?;
    ensure!(pinned.is_empty(), "{pinned:?}");
    Ok(())
}

/// An operator may change the mode after a crash.
#[test]
fn an_open_sidecar_lifts_what_a_killed_closed_one_left() -> Result<()> {
    let world = World::new()?;
    let _server = Puppet::serving(&world.server, ANY)?;
    let mut app = Puppet::start(&world.client)?;
    killed(&world.client)?;
    let mut open = Sidecar::start(&world.client, "{}")?;
    app.visit(TO_V4)?;
    open.kill()?;
    let goes_direct = || app.visit(TO_V4).is_ok();
    ensure!(eventually(PATIENCE, goes_direct), "the pins of an earlier sidecar still refuse");
    Ok(())
}

/// 38
#[test]
fn a_bpf_file_system_that_cannot_be_written_is_named() -> Result<()> {
    for (mount, problem) in [("remount,ro", "read-only"), ("", "")] {
        let world = World::new()?;
        let mounted = match mount {
            "" => format!("mount -t tmpfs none {BPF_FS}"),
            options => format!("mount -o {options} {BPF_FS}"),
        };
        let script = format!("{mounted}; exec \"$0\" \"$@\"");
        let mut sidecar = Sidecar::spawn_through(&world.client, CLOSED, "unshare", &["--mount", "sh", "-ec", &script])?;
        let status = sidecar.process.wait(PATIENCE).context(mounted.clone())?;
        let message = sidecar.process.err.text();
        ensure!(status.code() == Some(1) && message.contains(BPF_FS), "{mounted}: {status}: {message}");
        ensure!(message.to_lowercase().contains(problem) && message.contains("mount"), "no fix: {message}");
        ensure!(bpf::attached_programs(&world.client)? == 0, "something is attached after a failed start");
    }
    Ok(())
}

/// Everything but the last program, which the kernel refuses: it takes so many at a network namespace.
fn fails_at_the_last_program(pod: &Arc<Pod>, foreign: usize) -> Result<()> {
    let _foreign = bpf::attach_foreign_lookups(pod.netns().as_fd(), foreign)?;
    let mut sidecar = Sidecar::spawn(pod, CLOSED)?;
    let status = sidecar.process.wait(PATIENCE)?;
    let message = sidecar.process.err.text();
    ensure!(status.code() == Some(1) && message.contains("`on_lookup` cannot be attached"), "{status}: {message}");
    Ok(())
}

#[test]
fn a_start_that_fails_leaves_the_application_as_it_was() -> Result<()> {
    let world = World::new()?;
    let mut server = Puppet::serving(&world.server, ANY)?;
    let mut app = Puppet::start(&world.client)?;
    fails_at_the_last_program(&world.client, bpf::MOST_LOOKUPS)?;
    let left = pins(&world.client)?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    ensure!(bpf::attached_programs(&world.client)? == 0, "programs are still attached");
    let local = app.visit(TO_V4)?;
    ensure!(server.accepted()?.last().map(std::net::SocketAddr::port) == Some(local.port()), "not direct");

    // What a killed one left refuses on, and is all that is there.
    let attached = killed(&world.client)?;
    let before = pins(&world.client)?;
    fails_at_the_last_program(&world.client, bpf::MOST_LOOKUPS - 1)?;
    ensure!(is_refused_at_once(&app.try_open(TO_V4)?.1), "the failed start has opened the pod");
    let left = pins(&world.client)?;
    ensure!(left == before, "{left:?}, before {before:?}");
    let mut next = Sidecar::start(&world.client, CLOSED)?;
    app.visit(TO_V4)?;
    ensure!(bpf::attached_programs(&world.client)? == attached, "more than the programs of one sidecar");
    next.kill()
}
