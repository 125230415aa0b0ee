//! Two pods, an application in each, and what is to be between them.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sidecar_tests::{
    agent::puppet::{Handle, Order},
    cases::net::ANY,
    harness::{Authority, PATIENCE, Pod, Puppet, Sidecar, World, eventually},
};

/// What is beside an application.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End<'a> {
    /// No sidecar.
    Bare,
    /// A sidecar of this configuration without an identity.
    Anonymous(&'a str),
    /// A sidecar of this configuration with an identity of the stage's authority: the service account is the pod's name.
    Known(&'a str),
}

/// The pods and everything in them.
pub(crate) struct Stage {
    client: Option<Sidecar>,
    server: Option<Sidecar>,
    /// What connects.
    pub(crate) app: Puppet,
    /// What listens at [`ANY`] and answers with what it is sent.
    pub(crate) service: Puppet,
    pub(crate) authority: Authority,
    pub(crate) world: World,
}

impl Stage {
    /// Starts everything.
    pub(crate) fn new(client: End<'_>, server: End<'_>) -> Result<Self> {
        let mut stage = Self::without_sidecars()?;
        stage.client = stage.start("client", client)?;
        stage.server = stage.start("server", server)?;
        Ok(stage)
    }

    /// Starts only the applications.
    pub(crate) fn without_sidecars() -> Result<Self> {
        let world = World::new()?;
        let (service, app) = (Puppet::serving(&world.server, ANY)?, Puppet::start(&world.client)?);
        Ok(Self { client: None, server: None, app, service, authority: Authority::new(&world)?, world })
    }

    fn start(&self, account: &'static str, end: End<'_>) -> Result<Option<Sidecar>> {
        let pod = if account == "client" { &self.world.client } else { &self.world.server };
        let config = match end {
            End::Bare => return Ok(None),
            End::Anonymous(config) => config.to_owned(),
            End::Known(config) => self.authority.issue(pod, account)? + config,
        };
        Sidecar::start(pod, &(config + "telemetry: { access_log: json }\n")).map(Some)
    }

    /// Starts a sidecar in place of the client's.
    pub(crate) fn start_client(&mut self, config: &str) -> Result<()> {
        self.client = None;
        self.client = Some(Sidecar::start(&self.world.client, config)?);
        Ok(())
    }

    /// Starts a sidecar in place of the server's.
    pub(crate) fn start_server(&mut self, config: &str) -> Result<()> {
        self.server = None;
        self.server = Some(Sidecar::start(&self.world.server, config)?);
        Ok(())
    }

    /// The client's sidecar.
    pub(crate) fn client(&self) -> Result<&Sidecar> {
        self.client.as_ref().context("the client has no sidecar")
    }

    /// The server's sidecar.
    pub(crate) fn server(&self) -> Result<&Sidecar> {
        self.server.as_ref().context("the server has no sidecar")
    }

    /// The server's sidecar, to do it harm.
    pub(crate) fn server_mut(&mut self) -> Result<&mut Sidecar> {
        self.server.as_mut().context("the server has no sidecar")
    }

    /// The sidecars that there are.
    pub(crate) fn sidecars(&self) -> impl Iterator<Item = &Sidecar> {
        [&self.client, &self.server].into_iter().flatten()
    }

    /// How a connection ends on which the application has already sent something.
    pub(crate) fn end_of(&mut self, to: std::net::SocketAddr) -> Result<String> {
        let (socket, answer) = self.app.try_open(to)?;
        if answer.outcome != "ok" {
            return Ok(answer.outcome);
        }
        let sent = self.app.order(Order::Send(socket, 1000))?.outcome;
        if sent != "ok" { Ok(sent) } else { Ok(self.app.order(Order::AwaitEnd(socket))?.outcome) }
    }

    /// The one with this connection is told that it ended in a reset.
    pub(crate) fn ends_in_a_reset(&mut self, socket: Handle) -> Result<()> {
        let end = self.app.order(Order::AwaitEnd(socket))?.outcome;
        ensure!(end == "ECONNRESET", "{end}{}", self.logs());
        Ok(())
    }

    /// What both sidecars have written so far.
    pub(crate) fn logs(&self) -> String {
        self.sidecars().map(|sidecar| sidecar.process.output()).collect()
    }
}

/// Waits until this many connections have ended for this reason.
pub(crate) fn closed(sidecar: &Sidecar, reason: &str, count: u64) -> Result<()> {
    let has = eventually(PATIENCE, || sidecar.closed(reason).is_ok_and(|closed| closed == count));
    ensure!(has, "{} closed: {reason}, not {count}{}", sidecar.closed(reason)?, sidecar.process.output());
    Ok(())
}

/// Handshakes that failed in this role; for this reason, or for any.
pub(crate) fn failures(sidecar: &Sidecar, role: &str, reason: Option<&str>) -> Result<f64> {
    let mut labels = vec![("role", role)];
    labels.extend(reason.map(|reason| ("reason", reason)));
    Ok(sidecar.metrics()?.sum("sidecar_tls_handshake_failures_total", &labels))
}

/// Waits until a measure of the sidecar's has this value.
pub(crate) fn becomes(sidecar: &Sidecar, name: &str, labels: &[(&str, &str)], value: f64) -> Result<()> {
    let now = || sidecar.metrics().map(|metrics| metrics.sum(name, labels));
    let is = eventually(PATIENCE, || now().is_ok_and(|now| now == value));
    ensure!(is, "{name}{labels:?} is {}, not {value}{}", now()?, sidecar.process.output());
    Ok(())
}

/// The connections that it carries.
pub(crate) fn rows(sidecar: &Sidecar) -> Result<Vec<Value>> {
    Ok(sidecar.connections()?.as_array().context("no rows")?.clone())
}

/// The service account `account` of the stage's authority has a new certificate, and is in force in `sidecar`.
pub(crate) fn renew(authority: &Authority, pod: &Pod, account: &str, sidecar: &Sidecar) -> Result<()> {
    const GENERATION: &str = "sidecar_identity_generation";
    let before = sidecar.metrics()?.sum(GENERATION, &[]);
    authority.issue(pod, account)?;
    becomes(sidecar, GENERATION, &[], before + 1.0)
}
