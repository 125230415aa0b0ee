//! The pods and what runs in them.

use crate::{
    interrupt::{self, Caught},
    load::{READY, answer},
    process,
    world::{
        self, CLIENT, SERVER,
        cgroup::{self, Cgroup},
        folder::Folder,
        metrics::Metrics,
        pod::{Place, Pod},
        process::Process,
        sidecar::Plan,
        wait,
    },
};
use anyhow::{Context, Result};
use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

const START_LIMIT: Duration = Duration::from_secs(15);
/// No endpoint takes longer, also with a thousand neighbours.
const ASK_LIMIT: Duration = Duration::from_secs(5);

/// All of them.
pub(super) struct Fleet {
    pub(super) members: Vec<Member>,
    root: Cgroup,
    pub(super) xtask: String,
    pub(super) binary: PathBuf,
    pub(super) folder: Folder,
    pub(super) race: bool,
    _caught: Caught,
}

/// A pod, its application and its sidecar.
pub(super) struct Member {
    pub(super) pod: Pod,
    application: Option<Process>,
    pub(super) sidecar: Option<Process>,
    plan: Option<Plan>,
    /// Starts of its sidecar so far.
    runs: u32,
}

impl Fleet {
    /// Builds the namespaces, cgroups and veths.
    pub(super) fn new(count: usize, binary: &Path, race: bool) -> Result<Self> {
        let caught = interrupt::catch()?;
        let cgroups = cgroup::mount_point()?;
        world::remove_abandoned(&cgroups);
        let id = format!("{}{}-scale", world::PREFIX, std::process::id());
        let folder = Folder::new(&std::env::temp_dir().join(&id))?;
        let path = cgroups.join(&id);
        let root = Cgroup::new(&path)?;
        let xtask = std::env::current_exe().context("cannot find this program's own file")?.display().to_string();
        let mut fleet =
            Self { members: Vec::new(), root, xtask, binary: binary.to_owned(), folder, race, _caught: caught };
        for number in 0..count {
            interrupt::check()?;
            let address = if number % 2 == 0 { CLIENT } else { SERVER };
            let name = format!("pod-{number}");
            let pod = Pod::new(&name, address, &path.join(&name))?;
            fleet.members.push(Member { pod, application: None, sidecar: None, plan: None, runs: 0 });
            if let [.., one, other] = &fleet.members[..]
                && number % 2 == 1
            {
                fleet.join(&one.pod, &other.pod)?;
            }
        }
        Ok(fleet)
    }

    /// A veth between two pods. Each knows the other's hardware address, so that no pair has a part in the neighbour
    /// tables, which all namespaces share.
    fn join(&self, one: &Pod, other: &Pod) -> Result<()> {
        let (here, there) = ("02:00:00:00:00:01", "02:00:00:00:00:02");
        let netns = other.netns.path();
        let veth = ["link", "add", "eth0", "address", here, "type", "veth"];
        one.netns.ip(&[&veth[..], &["peer", "name", "eth0", "address", there, "netns", &netns]].concat())?;
        for (pod, peer, hardware) in [(one, other, there), (other, one, here)] {
            let commands = format!(
                "link set lo up\naddress add {}/24 dev eth0\nlink set eth0 up\n\
                 neighbour add {} lladdr {hardware} nud permanent dev eth0\n",
                pod.address, peer.address
            );
            let batch = self.folder.write("batch", &commands)?;
            pod.netns.ip(&["-batch", &batch.display().to_string()])?;
        }
        Ok(())
    }

    /// An authority, an identity for each pod, and the configurations.
    pub(super) fn identify(&mut self) -> Result<()> {
        let authority = self.folder.path().join("ca");
        let command = |verb: &str, args: &[&str]| {
            process::output(Command::new(&self.binary).arg("ca").arg(verb).arg(&authority).args(args)).map(drop)
        };
        command("init", &["--trust-domain", "scale.example"])?;
        for member in &mut self.members {
            interrupt::check()?;
            let name = &member.pod.name;
            let at = self.folder.path().join(format!("identity-{name}")).display().to_string();
            command("issue", &["--namespace", "pods", "--service-account", name, "--out", &at])?;
            let files = format!("{{ cert: {at}/cert.pem, key: {at}/key.pem, roots: {at}/roots.pem }}");
            // What a pod whose sidecar is killed does: go direct, so that nothing is left on a bpffs. A race has one.
            let open = if self.race { "" } else { "capture: { on_failure: open }\n" };
            let extra = format!("identity: {{ files: {files} }}\nmtls: {{ mode: strict }}\n{open}");
            member.plan = Some(Plan::new(&self.binary, &member.pod, &self.folder, "off", &extra)?);
        }
        Ok(())
    }

    /// Starts all applications.
    pub(super) fn applications(&mut self) -> Result<()> {
        for member in &mut self.members {
            super::enough_memory()?;
            let (pod, name) = (&member.pod, &member.pod.name);
            let line = [&self.xtask, "load", "answer", "--at", &pod.address.to_string(), "--name", name];
            let process = Process::start(pod, Place::App, &self.folder, &format!("app-{name}"), &line)?;
            member.application = Some(process);
        }
        for member in &mut self.members {
            let application = member.application.as_mut().context("no application was started")?;
            application.line(0, START_LIMIT, "its readiness", |line| line == READY)?;
        }
        Ok(())
    }

    /// Starts the sidecar of a pod, and does not wait for it.
    pub(super) fn launch(&mut self, number: usize) -> Result<()> {
        super::enough_memory()?;
        let member = &mut self.members[number];
        member.runs += 1;
        let plan = member.plan.as_ref().context("the pod has no configuration yet")?;
        // What `sidecar init` is for.
        let through: &[&str] = if self.race { &["setpriv", "--bounding-set=-all", "--inh-caps=-all"] } else { &[] };
        member.sidecar = Some(plan.start(&member.pod, &self.folder, &format!("run-{}", member.runs), through)?);
        Ok(())
    }

    /// The configuration of a pod's sidecar.
    pub(super) fn config(&self, number: usize) -> Result<&Path> {
        Ok(self.members[number].plan.as_ref().context("the pod has no configuration yet")?.config())
    }

    /// Whether the binary has the verb.
    pub(super) fn upgrades(&self) -> bool {
        process::output(Command::new(&self.binary).args(["upgrade", "--help"])).is_ok()
    }

    /// Has the sidecar of a pod replace itself, and waits until it has.
    pub(super) fn upgrade(&self, number: usize) -> Result<()> {
        let member = &self.members[number];
        let mut command = member.pod.command(Place::Sidecar, &self.binary)?;
        command.args(["upgrade", "--config"]).arg(self.config(number)?);
        process::output(&mut command).map(drop).with_context(|| format!("upgrade the sidecar of {}", member.pod.name))
    }

    /// Whether the sidecar of a pod is ready; an error when it has ended.
    pub(super) fn ready(&mut self, number: usize) -> Result<bool> {
        self.members[number].sidecar.as_mut().context("no sidecar was started")?.check()?;
        Ok(self.ask(number, "/ready").is_ok_and(|answer| answer.is_some()))
    }

    /// What a pod's sidecar has counted.
    pub(super) fn metrics(&self, number: usize) -> Result<Metrics> {
        let name = &self.members[number].pod.name;
        let text = self.ask(number, "/stats/prometheus").with_context(|| format!("ask the sidecar of {name}"))?;
        Ok(Metrics::parse(&text.with_context(|| format!("the sidecar of {name} gave no metrics"))?))
    }

    /// Asks the admin interface on its socket, which takes no namespace; none: not a 200.
    fn ask(&self, number: usize, path: &str) -> Result<Option<String>> {
        let socket = self.folder.path().join(format!("sidecar-{}.sock", self.members[number].pod.name));
        let mut stream = UnixStream::connect(&socket)?;
        stream.set_read_timeout(Some(ASK_LIMIT))?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("the answer has no end of headers")?;
        Ok((head.split(' ').nth(1) == Some("200")).then(|| body.to_owned()))
    }

    /// Starts asking a pod's neighbour.
    pub(super) fn asker(&self, number: usize, purpose: &str, requests: u32, every: u64) -> Result<Process> {
        super::enough_memory()?;
        let pod = &self.members[number].pod;
        let line = self.question(number, requests, every);
        Process::start(pod, Place::App, &self.folder, &format!("{purpose}-{}", pod.name), &line)
    }

    /// The command that asks a pod's neighbour.
    pub(super) fn question(&self, number: usize, requests: u32, every: u64) -> Vec<String> {
        let (pod, neighbour) = (&self.members[number].pod, &self.members[number ^ 1].pod);
        let to = format!("{}:{}", neighbour.address, answer::PORT);
        let (requests, every) = (requests.to_string(), every.to_string());
        let question = ["--to", &to, "--name", &pod.name, "--expect", &neighbour.name];
        let extent = ["--requests", &requests, "--every", &every];
        let line = [&[&self.xtask, "load", "ask"][..], &question, &extent].concat();
        line.into_iter().map(str::to_owned).collect()
    }
}

/// So many pods end at the same time: each has programs to detach, one after the other under one lock of the kernel.
const END_AT_ONCE: usize = 16;
/// Until the last process of that many is gone.
const END_LIMIT: Duration = Duration::from_secs(30);

impl Drop for Fleet {
    /// All stand still at once, so that nothing needs the machine any more; then they are killed, a few at a time.
    fn drop(&mut self) {
        if let Err(error) = self.root.freeze() {
            eprintln!("cannot freeze {}: {error}", self.root.path().display());
        }
        let begin = Instant::now();
        let count = self.members.len();
        while !self.members.is_empty() {
            let ending = self.members.split_off(self.members.len().saturating_sub(END_AT_ONCE));
            for member in &ending {
                // What this does not end is killed with its parent.
                let _ = member.pod.cgroup.kill();
            }
            let end = Instant::now() + END_LIMIT;
            let lives = |member: &Member| member.pod.cgroup.populated().unwrap_or(false);
            while ending.iter().any(lives) && Instant::now() < end {
                std::thread::sleep(wait::STEP);
            }
        }
        println!("everything of {count} pods ended after {:.1} s", begin.elapsed().as_secs_f64());
    }
}
