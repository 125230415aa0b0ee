//! The sidecar of a job that was upgraded meanwhile.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use sidecar_tests::{
    agent::puppet::Order,
    cases::net::{ANY, TO_V4},
    harness::{PATIENCE, Puppet, patient},
};

use super::Stage;

const JOB: &str = "{ lifecycle: { exit_with_application: true }, proxy: { drain_deadline: 10m } }";

/// A worker that was replaced carries a connection whose other end never closes.
#[test]
fn it_ends_with_the_job_whatever_the_worker_of_before_carries() -> Result<()> {
    let mut stage = Stage::new(JOB)?;
    let deaf = SocketAddr::new(ANY.ip(), 9090);
    stage.server.must(Order::Ignore(deaf, 10))?;
    let (socket, _) = stage.app.open(SocketAddr::new(TO_V4.ip(), deaf.port()))?;
    stage.app.must(Order::Send(socket, 30_000))?;
    let said = stage.upgrade(&[])?;
    ensure!(said.contains("1 connections go on"), "{said}");
    stage.app = Puppet::start(&stage.world.server)?;
    let start = Instant::now();
    let status = stage.client.process.wait(patient(PATIENCE))?;
    ensure!(status.code() == Some(0), "{status}{}", stage.client.process.output());
    ensure!(start.elapsed() < patient(Duration::from_secs(2)), "it took {:?}", start.elapsed());
    Ok(())
}
