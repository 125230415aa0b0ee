//! Limits on the memory of a sidecar, by whichever version of the memory controller the machine has.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

use super::{Cgroup, Pod, cgroup::MEMORY_V1, eventually};

/// A cgroup whose processes get so much memory and no more.
#[derive(Debug)]
pub struct MemoryLimit {
    cgroup: PathBuf,
    /// Where the number of processes is that the kernel has killed for want of memory.
    events: PathBuf,
    /// Made for this, and not the pod's own.
    of_its_own: bool,
}

impl MemoryLimit {
    /// Limits what will be started in it to `bytes`; `None` where the machine has no memory controller to use.
    pub fn new(pod: &Pod, bytes: u64) -> Result<Option<Self>> {
        let first = Path::new(MEMORY_V1);
        if first.join("memory.limit_in_bytes").exists() {
            return Self::of_first_version(pod, first, bytes).map(Some);
        }
        let delegates = |cgroup: &Path| {
            fs::read_to_string(cgroup.join("cgroup.subtree_control")).is_ok_and(|list| list.contains("memory"))
        };
        if delegates(&Cgroup::mount()?) { Self::of_second_version(pod, bytes).map(Some) } else { Ok(None) }
    }

    fn of_first_version(pod: &Pod, controller: &Path, bytes: u64) -> Result<Self> {
        let world = pod.cgroup().parent().and_then(Path::file_name).context("a pod without a world")?;
        let cgroup = controller.join(world);
        fs::create_dir(&cgroup).with_context(|| format!("create {}", cgroup.display()))?;
        let limit = Self { events: cgroup.join("memory.oom_control"), cgroup, of_its_own: true };
        limit.write("memory.limit_in_bytes", bytes)?;
        Ok(limit)
    }

    fn of_second_version(pod: &Pod, bytes: u64) -> Result<Self> {
        let world = pod.cgroup().parent().context("a pod without a world")?;
        for parent in [world, pod.cgroup()] {
            fs::write(parent.join("cgroup.subtree_control"), "+memory").context("pass the memory controller on")?;
        }
        let cgroup = pod.sidecar_cgroup().to_owned();
        let limit = Self { events: cgroup.join("memory.events"), cgroup, of_its_own: false };
        limit.write("memory.max", bytes)?;
        Ok(limit)
    }

    fn write(&self, file: &str, value: u64) -> Result<()> {
        let path = self.cgroup.join(file);
        fs::write(&path, value.to_string()).with_context(|| format!("write {}", path.display()))
    }

    /// A shell script that enters it and becomes the program of its arguments.
    pub fn enter(&self) -> String {
        format!("echo $$ > {}/cgroup.procs; exec \"$0\" \"$@\"", self.cgroup.display())
    }

    /// What the memory is used for, for a failure message.
    pub fn usage(&self) -> String {
        let used = |line: &&str| !line.ends_with(" 0");
        let read = |file: &str| fs::read_to_string(self.cgroup.join(file)).unwrap_or_default();
        let stat = read("memory.stat");
        format!("\n{}{}", read("memory.peak"), stat.lines().filter(used).collect::<Vec<_>>().join(", "))
    }

    /// How many processes the kernel has killed for want of memory.
    pub fn kills(&self) -> Result<u64> {
        let text = fs::read_to_string(&self.events).with_context(|| self.events.display().to_string())?;
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        Ok(count.with_context(|| format!("no oom_kill in {text}"))?.trim().parse()?)
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // Its processes have been killed by now, and take a moment to be gone.
        if self.of_its_own && !eventually(Duration::from_secs(5), || fs::remove_dir(&self.cgroup).is_ok()) {
            eprintln!("cgroup {} stays behind", self.cgroup.display());
        }
    }
}
