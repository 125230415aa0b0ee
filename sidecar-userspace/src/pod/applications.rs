//! Who of the pod's processes is the application: every one that is neither the sidecar's own, nor the pause process that
//! holds the pod's namespaces, nor one of those that watch containers.
//!
//! In a PID namespace of its own the sidecar sees that others are there, but not who they are (`cgroup.procs` says 0 for each,
//! kernel/cgroup/cgroup.c, `__cgroup_procs_show`). So they are told by their cgroups.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use super::names;

/// The processes of the pod's application. Clones look at the same pod.
#[derive(Clone, Debug)]
pub struct Applications {
    pod: PathBuf,
    /// Cgroups of the sidecar itself.
    own: Vec<PathBuf>,
    /// The container that only holds the pod's namespaces.
    sandbox: Option<String>,
    /// CPU time that others than ours had used at the beginning, at most.
    used_before: Duration,
}

/// Less CPU time than a runtime uses in a cgroup to start a container there (runc and crun: several milliseconds).
const A_LITTLE: Duration = Duration::from_millis(1);

impl Applications {
    /// Those below `pod`, but for the cgroups `own` and the container with the id `sandbox`.
    pub(super) fn new(pod: PathBuf, own: Vec<PathBuf>, sandbox: Option<String>) -> Self {
        let mut applications = Self { pod, own, sandbox, used_before: Duration::ZERO };
        let ours = applications.used_by_us();
        applications.used_before = used(&applications.pod).saturating_sub(ours);
        applications
    }

    /// Whether there is a process, or was one since the sidecar began: one that came and went between two looks has left
    /// the CPU time that it used with the pod.
    pub fn were_there(&self) -> bool {
        // In this order, as at the beginning in the other: what we use between the two readings never counts as theirs.
        let all = used(&self.pod);
        let others = all.saturating_sub(self.used_by_us());
        self.are_there().is_ok_and(|there| there) || others >= self.used_before + A_LITTLE
    }

    fn used_by_us(&self) -> Duration {
        let mut ours = Duration::ZERO;
        let mut open = vec![self.pod.clone()];
        while let Some(cgroup) = open.pop() {
            let (us, others) =
                super::subdirectories(&cgroup).into_iter().partition::<Vec<_>, _>(|path| self.is_ours(path));
            ours += us.iter().map(|path| used(path)).sum::<Duration>();
            open.extend(others);
        }
        ours
    }

    /// How many processes there are. Reads a small file for each cgroup of the pod.
    ///
    /// # Errors
    /// The pod's cgroup cannot be read.
    pub fn count(&self) -> io::Result<usize> {
        self.count_to(usize::MAX)
    }

    /// Whether there is one. Reads until it has found one.
    ///
    /// # Errors
    /// The pod's cgroup cannot be read.
    pub fn are_there(&self) -> io::Result<bool> {
        self.count_to(1).map(|count| count > 0)
    }

    /// Whether this process is one of them, as far as it can be seen from here.
    ///
    /// # Errors
    /// The pod's cgroup cannot be read.
    pub fn hold(&self, pid: u32) -> io::Result<bool> {
        let pid = pid.to_string();
        self.count_of(1, |listed| listed == pid).map(|count| count > 0)
    }

    fn count_to(&self, enough: usize) -> io::Result<usize> {
        self.count_of(enough, |pid| !holds_namespaces(pid))
    }

    fn count_of(&self, enough: usize, counts: impl Fn(&str) -> bool) -> io::Result<usize> {
        let mut count = processes(&self.pod, &counts)?;
        let mut open = self.others_below(&self.pod);
        while count < enough
            && let Some(cgroup) = open.pop()
        {
            // One that went away in the meantime has no processes; one of threads shows them in a cgroup above.
            count += processes(&cgroup, &counts).unwrap_or(0);
            if count < enough {
                open.extend(self.others_below(&cgroup));
            }
        }
        Ok(count)
    }

    fn others_below(&self, cgroup: &Path) -> Vec<PathBuf> {
        let mut below = super::subdirectories(cgroup);
        below.retain(|path| !self.is_ours(path));
        below
    }

    fn is_ours(&self, path: &Path) -> bool {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_sandbox = || self.sandbox.as_ref().is_some_and(|id| name.contains(id.as_str()));
        self.own.iter().any(|own| own == path) || names::watches_containers(name) || is_sandbox()
    }
}

/// CPU time used in a cgroup, by those that are gone as well.
fn used(cgroup: &Path) -> Duration {
    let stat = fs::read_to_string(cgroup.join("cpu.stat")).unwrap_or_default();
    let micros = stat.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok());
    Duration::from_micros(micros.unwrap_or(0))
}

/// Processes right in a cgroup, dead ones not among them (Documentation/admin-guide/cgroup-v2.rst, "Processes").
fn processes(cgroup: &Path, counts: impl Fn(&str) -> bool) -> io::Result<usize> {
    let listed = fs::read_to_string(cgroup.join("cgroup.procs"))?;
    Ok(listed.lines().filter(|pid| counts(pid)).count())
}

/// Where its process can be seen, a pod's pause process is known by its program.
fn holds_namespaces(pid: &str) -> bool {
    pid != "0"
        && fs::read_link(Path::new("/proc").join(pid).join("exe"))
            .is_ok_and(|exe| names::PAUSE.iter().any(|p| exe == Path::new(p)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Directories that look like cgroups, each with so many processes.
    fn pod(name: &str, cgroups: &[(&str, &str)]) -> PathBuf {
        let pod = std::env::temp_dir().join(format!("sidecar-applications-{name}-{}", std::process::id()));
        for (path, procs) in cgroups {
            fs::create_dir_all(pod.join(path)).unwrap();
            fs::write(pod.join(path).join("cgroup.procs"), procs).unwrap();
        }
        pod
    }

    #[test]
    fn everyone_counts_but_the_sidecar_the_sandbox_and_who_watches_containers() {
        let id = |digit: &str| digit.repeat(64);
        let (own, sandbox) = (format!("crio-{}.scope", id("a")), format!("crio-{}.scope", id("b")));
        let (app, conmon) = (format!("crio-{}.scope", id("c")), format!("crio-conmon-{}.scope", id("a")));
        let nested = format!("{own}/container");
        let pod = pod(
            "table",
            &[
                ("", ""),
                (&own, ""),
                (&nested, "7\n"),
                (&sandbox, "0\n"),
                (&conmon, "0\n"),
                (&app, "0\n0\n"),
                ("more/deep", "77\n"),
            ],
        );
        fs::write(pod.join("more/cgroup.procs"), "").unwrap();
        let applications = |sandbox| Applications::new(pod.clone(), vec![pod.join(&own)], sandbox);
        assert_eq!(applications(Some(id("b"))).count().unwrap(), 3);
        assert_eq!(applications(None).count().unwrap(), 4, "without its id the sandbox counts");
        assert_eq!([7, 77].map(|pid| applications(None).hold(pid).unwrap()), [false, true]);
        fs::remove_dir_all(&pod).unwrap();
        assert!(applications(None).count().is_err(), "a pod that is gone has an unknown number");
    }

    #[test]
    fn an_application_that_nobody_saw_has_left_its_time() {
        let pod = pod("time", &[("", ""), ("own", "1\n"), ("app", "")]);
        let says = |cgroup: &str, micros: u32| {
            fs::write(pod.join(cgroup).join("cpu.stat"), format!("usage_usec {micros}\nuser_usec 0\n")).unwrap();
        };
        says("", 500_000);
        says("own", 400_000);
        says("app", 100_000);
        let applications = Applications::new(pod.clone(), vec![pod.join("own")], None);
        assert!(!applications.were_there(), "what was before does not count");
        says("", 900_000);
        says("own", 800_000);
        assert!(!applications.were_there(), "what the sidecar itself uses does not count");
        says("", 905_000);
        fs::remove_dir_all(pod.join("app")).unwrap();
        assert!(applications.were_there());
        fs::remove_dir_all(&pod).unwrap();
    }
}
