//! What applications see of their connections is the same with and without sidecars.
//!
//! Every case of the table runs direct, and with a sidecar on the client's side, on the server's and on both; what the
//! two ends report must be equal. The sidecars' counters must show that they carried the connections, so that "equal"
//! cannot come from a capture that is off.

use std::{
    collections::HashMap,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, anyhow, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use sidecar_tests::{
    agent::Observation,
    cases::{self, Barred, Case, Difference, InStrict, net},
    harness::{self, Conversation, Layout, Mesh, Metrics, Sidecar, World},
};

/// Where the sidecars are; the first is what the others are compared with.
const LAYOUTS: [(&str, Layout); 7] = [
    ("direct", Layout::DIRECT),
    ("client_sidecar", Layout { server: false, ..Layout::BOTH }),
    ("server_sidecar", Layout { client: false, ..Layout::BOTH }),
    ("both_sidecars", Layout::BOTH),
    ("strict", Layout::STRICT),
    ("tunnels", Layout::TUNNELS),
    ("accelerated", Layout::ACCELERATED),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let scenes: Arc<Vec<Scene>> = Arc::new(LAYOUTS.into_iter().map(Scene::new).collect());
    let trials = cases::all().flat_map(|case| trials_of(case, &scenes)).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    // Here and not in a destructor: the runner's threads may still hold the scenes.
    scenes.iter().for_each(Scene::strike);
    conclusion.exit_code()
}

fn trials_of(case: &'static Case, scenes: &Arc<Vec<Scene>>) -> Vec<Trial> {
    let trial = |(index, scene): (usize, &Scene)| {
        let scenes = Arc::clone(scenes);
        let name = format!("{}::{}", case.name, scene.name);
        Trial::test(name, move || {
            check(case, &scenes[0], &scenes[index]).map_err(|error| Failed::from(format!("{error:#}")))
        })
    };
    let compared = |scene: &Scene| {
        let refused = scene.layout.strict && case.in_strict == InStrict::Refused;
        !refused && !is_barred(case, scene.layout)
    };
    scenes.iter().enumerate().filter(|(_, scene)| compared(scene)).map(trial).collect()
}

fn is_barred(case: &Case, layout: Layout) -> bool {
    case.barred.is_some_and(|(barred, _)| match barred {
        Barred::MutualTls => layout.strict,
        Barred::Tunnels => layout.tunnels,
    })
}

/// Runs `case` in `scene` and compares it with its direct run.
fn check(case: &'static Case, direct: &Scene, scene: &Scene) -> Result<()> {
    let expected = direct.outcome(case)?;
    if let Some(reason) = expected.skipped() {
        harness::skip(case.name, reason);
        return Ok(());
    }
    check_source_port(Layout::DIRECT, &expected)?;
    if scene.layout == Layout::DIRECT {
        return Ok(());
    }
    let actual = scene.outcome(case)?;
    compare(case, scene.layout, "client", &expected.client.saw, &actual.client.saw)?;
    compare(case, scene.layout, "server", &expected.server.saw, &actual.server.saw)?;
    check_source_port(scene.layout, &actual)
}

fn compare(case: &Case, layout: Layout, end: &str, expected: &[Observation], actual: &[Observation]) -> Result<()> {
    let keys = |saw: &[Observation]| saw.iter().map(|observation| observation.key.clone()).collect::<Vec<_>>();
    ensure!(keys(expected) == keys(actual), "the {end} went another way:\ndirect:  {expected:?}\nsidecar: {actual:?}");
    for (direct, seen) in expected.iter().zip(actual) {
        let key = format!("{end}.{}", direct.key);
        match difference(case, layout, &key) {
            Some(difference) => {
                let instead = seen.value.as_str().is_some_and(|value| difference.instead.contains(&value));
                ensure!(instead, "{key}: {}, but {difference:?}", seen.value);
            }
            None => {
                ensure!(direct.value == seen.value, "{key}: {} direct, {} with a sidecar", direct.value, seen.value)
            }
        }
    }
    Ok(())
}

fn difference(case: &Case, layout: Layout, key: &str) -> Option<&'static Difference> {
    case.differs.iter().find(|difference| layout.client && difference.key == key)
}

/// The server sees the very port that the client has, unless the client's sidecar connects from one of its own.
fn check_source_port(layout: Layout, seen: &Conversation) -> Result<()> {
    let port = |saw: &[Observation], key: &str| saw.iter().find(|o| o.key == key).and_then(|o| o.port);
    let ports = (port(&seen.client.saw, "getsockname"), port(&seen.server.saw, "accept"));
    if let (Some(own), Some(shown), false) = (ports.0, ports.1, layout.client) {
        ensure!(own == shown, "the client's port is {own}, the server saw {shown}");
    }
    Ok(())
}

/// A world with sidecars in some of its pods. Its cases run one after the other, so that the counters are theirs.
struct Scene {
    name: &'static str,
    layout: Layout,
    stage: Mutex<Stage>,
}

/// What has been built and seen of a scene so far.
#[derive(Default)]
struct Stage {
    mesh: Option<Mesh>,
    seen: HashMap<&'static str, Conversation>,
}

impl Scene {
    fn new((name, layout): (&'static str, Layout)) -> Self {
        Self { name, layout, stage: Mutex::default() }
    }

    /// What both ends of `case` see here; run at the first question.
    fn outcome(&self, case: &'static Case) -> Result<Conversation> {
        let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seen) = stage.seen.get(case.name) {
            return Ok(seen.clone());
        }
        if stage.mesh.is_none() {
            stage.mesh = Some(build(self.layout)?);
        }
        let mesh = stage.mesh.as_ref().context("a scene without a mesh")?;
        let seen =
            play(mesh, case).map_err(|error| anyhow!("{} {}: {error:#}{}", case.name, self.name, mesh.logs()))?;
        stage.seen.insert(case.name, seen.clone());
        Ok(seen)
    }

    fn strike(&self) {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner).mesh = None;
    }
}

fn build(layout: Layout) -> Result<Mesh> {
    let world = World::new()?;
    world.client.add_address(&format!("{}/24", net::CLIENT_SECOND_V4))?;
    world.client.add_address(&format!("{}/64", net::CLIENT_LINK_LOCAL))?;
    world.server.add_address(&format!("{}/24", net::SERVER_SECOND_V4))?;
    world.server.add_address(&format!("{}/64", net::SERVER_LINK_LOCAL))?;
    for pod in [&world.client, &world.server] {
        // Fast Open in both roles.
        pod.sysctl("net/ipv4/tcp_fastopen", "3")?;
    }
    Mesh::in_world(world, layout)
}

/// Runs `case` and checks that the sidecars carried its connections.
fn play(mesh: &Mesh, case: &Case) -> Result<Conversation> {
    let counted = if mesh.strict { case.strict() } else { *case };
    let before = Counts::now(mesh, &counted)?;
    let seen = harness::converse(&mesh.world, case)?;
    if seen.skipped().is_none() {
        let grown = Counts::now(mesh, &counted)?.since(before);
        let expected = Counts {
            captured: mesh.client.is_some().then_some(counted.captured),
            other: mesh.client.is_some().then_some(counted.other.map_or(0, |(_, _, count)| count)),
            steered: mesh.server.is_some().then_some(counted.steered),
        };
        ensure!(grown == expected, "the counters grew by {grown:?}, not by {expected:?}");
    }
    Ok(seen)
}

/// Verdicts that a case moves; `None` where there is no sidecar to count them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counts {
    captured: Option<u64>,
    other: Option<u64>,
    /// With mutual TLS: what reached the application. Connections that wait for their use are steered as well.
    steered: Option<u64>,
}

impl Counts {
    fn now(mesh: &Mesh, case: &Case) -> Result<Self> {
        let scrape = |sidecar: &Option<Sidecar>| sidecar.as_ref().map(Sidecar::metrics).transpose();
        let (client, server) = (scrape(&mesh.client)?, scrape(&mesh.server)?);
        let carried =
            |server: &Metrics| server.sum("sidecar_connect_seconds_count", &[("direction", "inbound")]) as u64;
        let (verdict, reason, _) = case.other.unwrap_or(("none", "none", 0));
        Ok(Self {
            captured: client.as_ref().map(|client| client.verdict("connect", "capture", "captured")),
            other: client.as_ref().map(|client| client.verdict("connect", verdict, reason)),
            steered: server.as_ref().map(|server| match mesh.strict {
                true => carried(server),
                false => server.verdict("sk_lookup", "capture", "steered"),
            }),
        })
    }

    fn since(self, before: Self) -> Self {
        let grown = |now: Option<u64>, then: Option<u64>| Some(now?.saturating_sub(then?));
        Self {
            captured: grown(self.captured, before.captured),
            other: grown(self.other, before.other),
            steered: grown(self.steered, before.steered),
        }
    }
}
