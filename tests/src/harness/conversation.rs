//! A case, run once between two pods.

use std::{process::Command, time::Duration};

use anyhow::{Context, Result, bail};

use super::{PATIENCE, Pod, Process, World, patient, sidecar::built_beside};
use crate::{
    agent::{Event, Observation},
    cases::Case,
};

/// The part of a case that runs in one pod.
#[derive(Debug)]
pub struct Agent {
    /// Its process.
    pub process: Process,
}

impl Agent {
    /// Starts one end (`server` or `client`) of a case as an application of `pod`.
    pub fn start(pod: &Pod, role: &str, case: &str) -> Result<Self> {
        Ok(Self { process: pod.spawn(Self::command(role, case)?)? })
    }

    /// The command that plays one end of a case.
    pub fn command(role: &str, case: &str) -> Result<Command> {
        let mut command = Command::new(built_beside("agent")?);
        command.args([role, case]).env_remove("RUST_BACKTRACE");
        Ok(command)
    }

    /// Waits until it says that the other side may go on; `false` if it had to skip.
    pub fn wait_until_ready(&self) -> Result<bool> {
        let found = self.process.out.wait_for(PATIENCE, |lines| {
            let mut events = lines.iter().filter_map(|line| Event::parse(line).ok());
            let said = events.find(|event| matches!(event, Event::Ready | Event::Skip(_)));
            said.map(|event| matches!(event, Event::Ready))
        });
        found.with_context(|| format!("it never said it was ready{}", self.process.output()))
    }

    /// Waits for its end and returns what it saw.
    pub fn finish(mut self, limit: Duration) -> Result<Report> {
        let status = self.process.wait(limit)?;
        if !status.success() {
            bail!("it ended with {status}{}", self.process.output());
        }
        let mut report = Report::default();
        for line in self.process.out.lines() {
            match Event::parse(&line)? {
                Event::Ready => {}
                Event::Skip(reason) => report.skip = Some(reason),
                Event::Saw(observation) => report.saw.push(observation),
            }
        }
        Ok(report)
    }
}

/// What one end saw.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// In order.
    pub saw: Vec<Observation>,
    /// Why it could not run here.
    pub skip: Option<String>,
}

/// What both ends of a case saw.
#[derive(Clone, Debug)]
pub struct Conversation {
    /// The end that connects.
    pub client: Report,
    /// The end that listens.
    pub server: Report,
}

impl Conversation {
    /// Why the case could not run here, if so.
    pub fn skipped(&self) -> Option<&str> {
        self.client.skip.as_deref().or(self.server.skip.as_deref())
    }
}

/// Runs a case: its server in the server's pod, then its client in the client's.
///
/// Each end gives up by itself when nothing moves for 30 s, and says where it stood; so this waits longer than that, and as
/// much longer as the machine is slow: some cases carry 128 MiB through two sidecars' TLS.
pub fn converse(world: &World, case: &Case) -> Result<Conversation> {
    let limit = PATIENCE + patient(PATIENCE);
    let server = Agent::start(&world.server, "server", case.name).context("server")?;
    if !server.wait_until_ready().context("server")? {
        return Ok(Conversation { client: Report::default(), server: server.finish(limit).context("server")? });
    }
    let client = Agent::start(&world.client, "client", case.name).context("client")?;
    let client =
        client.finish(limit).with_context(|| format!("client; the server so far{}", server.process.output()))?;
    if client.skip.is_some() {
        return Ok(Conversation { client, server: Report::default() });
    }
    let server = server.finish(limit).with_context(|| format!("server; the client saw {:?}", client.saw))?;
    Ok(Conversation { client, server })
}
