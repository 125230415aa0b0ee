//! A world with sidecars in it.

use std::{env, net::IpAddr, time::Duration};

use anyhow::{Result, ensure};

use super::{Authority, Pod, Sidecar, World, eventually, patient};

/// Which pods have a sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The client's.
    pub client: bool,
    /// The server's.
    pub server: bool,
    /// They speak mutual TLS and nothing else.
    pub strict: bool,
    /// They know of each other that they speak HBONE.
    pub tunnels: bool,
    /// The fast path is on in both, whatever the probe says.
    pub accelerated: bool,
}

impl Layout {
    /// None.
    pub const DIRECT: Self = Self { client: false, server: false, strict: false, tunnels: false, accelerated: false };
    /// Both.
    pub const BOTH: Self = Self { client: true, server: true, ..Self::DIRECT };
    /// Both, with mutual TLS.
    pub const STRICT: Self = Self { strict: true, ..Self::BOTH };
    /// Both, with mutual TLS through tunnels.
    pub const TUNNELS: Self = Self { tunnels: true, ..Self::STRICT };
    /// Both, with the fast path.
    pub const ACCELERATED: Self = Self { accelerated: true, ..Self::BOTH };

    /// Both pods, without and with mutual TLS, and with the fast path; none with `SIDECAR_TEST_DIRECT=1`, which tells a broken application from a
    /// broken sidecar.
    pub fn for_applications() -> &'static [(&'static str, Self)] {
        let direct = env::var_os("SIDECAR_TEST_DIRECT").is_some_and(|value| value == "1");
        if direct {
            return &[("direct", Self::DIRECT)];
        }
        &[("both_sidecars", Self::BOTH), ("strict", Self::STRICT), ("accelerated", Self::ACCELERATED)]
    }
}

fn mtls(layout: Layout) -> &'static str {
    /// Every address of both pods.
    const TUNNELS: &str =
        "mtls: { mode: strict, workloads: [{ addresses: [10.77.0.0/24, \"fd77::/64\"], transport: hbone }] }\n";
    if layout.tunnels { TUNNELS } else { "mtls: { mode: strict }\n" }
}

/// A world and its sidecars, which end before it.
#[derive(Debug)]
pub struct Mesh {
    /// The client's sidecar.
    pub client: Option<Sidecar>,
    /// The server's sidecar.
    pub server: Option<Sidecar>,
    /// They speak mutual TLS and nothing else.
    pub strict: bool,
    /// The fast path is on; so many connections came onto it before any application's.
    pub accelerated: Option<u64>,
    /// The pods.
    pub world: World,
}

impl Mesh {
    /// A new world with sidecars of the default configuration.
    pub fn new(layout: Layout) -> Result<Self> {
        Self::in_world(World::new()?, layout)
    }

    /// Starts sidecars in `world`, of the default configuration but for what the layout says and what a slow machine needs.
    pub fn in_world(world: World, layout: Layout) -> Result<Self> {
        let authority = layout.strict.then(|| Authority::new(&world)).transpose()?;
        let common = format!("capture: {{ heartbeat_max_age: {}ms }}\n", patient(Duration::from_secs(1)).as_millis());
        let config = |pod: &Pod, account| match &authority {
            Some(authority) => Ok(authority.issue(pod, account)? + mtls(layout) + &common),
            None if layout.accelerated => Ok("acceleration: force\n".to_owned() + &common),
            None => anyhow::Ok(common.clone()),
        };
        let start =
            |pod, wanted: bool, account| wanted.then(|| Sidecar::start(pod, &config(pod, account)?)).transpose();
        let client = start(&world.client, layout.client, "client")?;
        let server = start(&world.server, layout.server, "server")?;
        let mut mesh = Self { client, server, strict: layout.strict, accelerated: None, world };
        if layout.accelerated {
            mesh.sidecars().try_for_each(|sidecar| {
                let status = sidecar.fast_path_probed()?;
                ensure!(status["on"] == true, "no fast path: {status}");
                Ok(())
            })?;
            mesh.accelerated = Some(mesh.enrolled()?);
        }
        Ok(mesh)
    }

    /// Connections that came onto the fast path, those of the probe among them.
    fn enrolled(&self) -> Result<u64> {
        self.sidecars().map(|sidecar| sidecar.verdict("enrol", "enrolled", "worth")).sum()
    }

    fn sidecars(&self) -> impl Iterator<Item = &Sidecar> {
        [&self.client, &self.server].into_iter().flatten()
    }

    /// An error unless both sidecars, where there are any, have carried at least `count` connections so far.
    pub fn ensure_carried(&self, count: u64) -> Result<()> {
        let verdicts = [(&self.client, "connect", "captured"), (&self.server, "sk_lookup", "steered")];
        for (sidecar, hook, reason) in verdicts {
            if let Some(sidecar) = sidecar {
                let carried = sidecar.verdict(hook, "capture", reason)?;
                ensure!(
                    carried >= count,
                    "{hook}: {carried} connections {reason}, at least {count} expected{}",
                    self.logs()
                );
            }
        }
        Ok(())
    }

    /// An error unless the sidecars have carried something so far and nothing in plaintext, where they are strict.
    pub fn ensure_encrypted(&self) -> Result<()> {
        for sidecar in self.sidecars().filter(|_| self.strict) {
            let metrics = sidecar.metrics()?;
            let count = |security| metrics.sum("sidecar_connections_security_total", &[("security", security)]);
            let (plaintext, encrypted) = (count("plaintext"), count("mutual_tls"));
            ensure!(plaintext == 0.0 && encrypted > 0.0, "{encrypted} encrypted, {plaintext} not{}", self.logs());
        }
        Ok(())
    }

    /// An error unless connections of the applications came onto the fast path, where it is on. A stream
    /// of which something always waits does not.
    pub fn ensure_accelerated(&self) -> Result<()> {
        if let Some(probe) = self.accelerated {
            ensure!(self.enrolled()? > probe, "no connection came onto the fast path{}", self.logs());
        }
        Ok(())
    }

    /// What the sidecars have written so far, for a failure message.
    pub fn logs(&self) -> String {
        self.sidecars().map(|sidecar| format!("\n{}{}", sidecar.verdicts(), sidecar.process.output())).collect()
    }
}

/// Waits until something in `pod` accepts connections to its loopback at `port`. Asked from outside the pod's cgroup.
pub fn wait_for_port(pod: &Pod, port: u16, limit: Duration) -> Result<()> {
    let address = (IpAddr::from([127, 0, 0, 1]), port);
    let listens = pod.netns().run(|| eventually(limit, || std::net::TcpStream::connect(address).is_ok()))?;
    ensure!(listens, "nothing listens at port {port} of {} after {limit:?}", pod.name());
    Ok(())
}
