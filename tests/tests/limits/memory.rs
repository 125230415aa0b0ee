//! Memory that runs out: what the configured bounds make of it.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use sidecar_tests::{
    agent::puppet::Order,
    cases::net::{ANY, TO_V4},
    harness::{MemoryLimit, PATIENCE, Puppet, Sidecar, World, eventually, skip},
};

/// Connections whose receiver does not read.
const BLOCKED: usize = 200;

/// What they need by the formula of docs/operations.md, with a `socket_buffer` of 24 KiB and a `max_buffer` of 16 KiB.
const ENOUGH: u64 = (20 << 20) + BLOCKED as u64 * ((16 << 10) + ((2 * 24 + 16 + 24) << 10));

/// 38
#[test]
fn a_small_memory_limit_is_enough_for_two_hundred_blocked_streams() -> Result<()> {
    block_streams("a_small_memory_limit_is_enough_for_two_hundred_blocked_streams", ENOUGH)
}

/// 38: less than is needed to keep the program's own file in memory, so that the kernel is short of it all the time.
#[test]
fn blocked_streams_lose_nothing_while_memory_is_short() -> Result<()> {
    block_streams("blocked_streams_lose_nothing_while_memory_is_short", ENOUGH - (12 << 20))
}

/// More connections than the memory is for: what is above `proxy.max_connections` waits with the kernel, which does not count
/// it as the sidecar's until it is accepted.
#[test]
fn connections_above_the_bound_that_the_memory_is_for_wait_and_nothing_is_killed() -> Result<()> {
    let world = World::new()?;
    let Some(limit) = MemoryLimit::new(&world.client, ENOUGH)? else {
        skip("connections_above_the_bound_that_the_memory_is_for_wait_and_nothing_is_killed", "no memory controller");
        return Ok(());
    };
    small_socket_buffers(&world)?;
    let config = format!("proxy: {{ max_connections: {BLOCKED}, max_buffer: 16KiB, socket_buffer: 24KiB }}");
    let mut sidecar = Sidecar::spawn_through(&world.client, &config, "sh", &["-ec", &limit.enter()])?;
    sidecar.wait_until_ready(PATIENCE)?;
    let mut server = Puppet::start(&world.server)?;
    server.must(Order::Ignore(ANY, 3 * BLOCKED as i32))?;
    let mut app = Puppet::start(&world.client)?;
    let mut open = || (0..BLOCKED).map(|_| app.open(TO_V4).map(|(stream, _)| stream)).collect::<Result<Vec<_>>>();
    let (blocked, waiting) = (open()?, open()?);
    let mut sent = 0;
    for stream in &blocked {
        sent = app.must(Order::Fill(*stream))?.moved;
    }
    for stream in &waiting {
        app.must(Order::Send(*stream, 1000))?;
        sent += 1000;
    }
    ensure!(sidecar.live()? == BLOCKED, "{} are carried", sidecar.live()?);
    let queued = world.client.waiting_at(15001)?;
    ensure!(queued == BLOCKED as u64, "{queued} of {BLOCKED} wait");
    let counted = sidecar.metrics()?.sum("sidecar_connection_limit_waits_total", &[("direction", "outbound")]);
    ensure!(counted >= 1.0, "that they wait is not counted");
    ensure!(limit.kills()? == 0 && sidecar.process.is_running(), "killed for want of memory{}", limit.usage());
    for stream in blocked.into_iter().chain(waiting) {
        app.must(Order::Finish(stream))?;
    }
    let mut read = 0;
    for _ in 0..2 * BLOCKED {
        read = server.must(Order::Drain)?.moved;
    }
    ensure!(read == sent, "{sent} bytes were sent, {read} arrived{}", limit.usage());
    ensure!(limit.kills()? == 0, "killed for want of memory{}", limit.usage());
    Ok(())
}

/// Blocks streams of a sidecar with so much memory, has others pass, and reads all that was sent.
fn block_streams(test: &str, bytes: u64) -> Result<()> {
    let world = World::new()?;
    let Some(limit) = MemoryLimit::new(&world.client, bytes)? else {
        skip(test, "no memory controller");
        return Ok(());
    };
    small_socket_buffers(&world)?;
    let config = "proxy: { max_buffer: 16KiB, socket_buffer: 24KiB }";
    let mut sidecar = Sidecar::spawn_through(&world.client, config, "sh", &["-ec", &limit.enter()])?;
    sidecar.wait_until_ready(PATIENCE)?;
    let mut server = Puppet::serving(&world.server, ANY)?;
    let deaf = SocketAddr::new(ANY.ip(), 9090);
    server.must(Order::Ignore(deaf, 300))?;
    let mut app = Puppet::start(&world.client)?;
    let to = SocketAddr::new(TO_V4.ip(), deaf.port());
    let streams = (0..BLOCKED).map(|_| app.open(to).map(|(stream, _)| stream)).collect::<Result<Vec<_>>>()?;
    let mut sent = 0;
    for stream in &streams {
        sent = app.must(Order::Fill(*stream))?.moved;
    }
    for _ in 0..3 {
        app.must(Order::Churn(TO_V4, 100))?;
    }
    ensure!(limit.kills()? == 0 && sidecar.process.is_running(), "killed for want of memory{}", limit.usage());
    ensure!(sidecar.live()? >= BLOCKED, "{} connections are left", sidecar.live()?);
    // All at once: the server need not have got them in this order.
    for stream in streams {
        app.must(Order::Finish(stream))?;
    }
    let mut read = 0;
    for _ in 0..BLOCKED {
        read = server.must(Order::Drain)?.moved;
    }
    ensure!(read == sent, "{sent} bytes were sent, {read} arrived{}", limit.usage());
    drop(sidecar);
    Ok(())
}

/// Or the test would take a gigabyte of the kernel's memory.
fn small_socket_buffers(world: &World) -> Result<()> {
    for pod in [&world.client, &world.server] {
        pod.sysctl("net/ipv4/tcp_rmem", "4096 131072 262144")?;
        pod.sysctl("net/ipv4/tcp_wmem", "4096 16384 262144")?;
    }
    Ok(())
}

/// 5: what a receiver does not read stays with the sender and in the kernel.
#[test]
fn receivers_that_do_not_read_cost_no_more_than_the_configured_buffer() -> Result<()> {
    let world = World::new()?;
    small_socket_buffers(&world)?;
    let sidecar = Sidecar::start(&world.client, "proxy: { max_buffer: 16KiB }")?;
    let mut server = Puppet::start(&world.server)?;
    server.must(Order::Ignore(ANY, 300))?;
    let mut app = Puppet::start(&world.client)?;
    let before = sidecar.anonymous_kib()?;
    let streams = (0..200).map(|_| app.open(TO_V4).map(|(socket, _)| socket)).collect::<Result<Vec<_>>>()?;
    for stream in &streams {
        app.must(Order::Fill(*stream))?;
    }
    ensure!(sidecar.live()? == 200);
    let grown = sidecar.anonymous_kib()?.saturating_sub(before);
    // The sockets' own records and the allocator's rest on top.
    ensure!(grown < 200 * 16 + 2048, "{grown} KiB for 200 blocked streams");
    for stream in streams {
        app.must(Order::Reset(stream))?;
    }
    ensure!(eventually(PATIENCE, || sidecar.live().is_ok_and(|live| live == 0)), "{}", sidecar.connections()?);
    Ok(())
}
