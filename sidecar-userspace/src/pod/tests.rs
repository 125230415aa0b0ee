//! Where sidecars find themselves and their pods, on hosts and in containers as runtimes make them.

mod layouts;

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{layout::Mount, *};

/// A machine's cgroups, and what a process in one of them is shown.
struct Layout {
    name: &'static str,
    /// /proc/self/cgroup.
    membership: &'static str,
    /// /proc/self/mountinfo.
    mountinfo: String,
    /// What is mounted there: mount point, and the cgroup by its name on the machine.
    shown: Vec<(&'static str, String)>,
    /// Cgroups of the machine by name, parents before children.
    tree: Vec<String>,
    /// That of the process.
    here: String,
    /// The pod's cgroup and the sidecar's own, as the sidecar can reach them; or words of the error.
    expected: Result<(String, String), &'static [&'static str]>,
}

impl Layout {
    fn on_machine(&self, path: &Path) -> Option<String> {
        let shown = self.shown.iter().filter(|(at, _)| path.starts_with(at)).max_by_key(|(at, _)| at.len());
        let (at, cgroup) = shown?;
        let below = path.strip_prefix(at).ok()?;
        let whole = Path::new(cgroup).join(below).to_string_lossy().trim_end_matches('/').to_owned();
        Some(if whole.is_empty() { "/".to_owned() } else { whole })
    }

    fn position(&self, path: &Path) -> Option<usize> {
        let cgroup = self.on_machine(path)?;
        if cgroup == "/" { Some(0) } else { self.tree.iter().position(|known| *known == cgroup).map(|index| index + 1) }
    }
}

impl View for Layout {
    fn membership(&self) -> Result<String, Error> {
        Ok(self.membership.to_owned())
    }

    fn mounts(&self) -> Result<String, Error> {
        Ok(self.mountinfo.clone())
    }

    fn id(&self, cgroup: &Path) -> io::Result<u64> {
        let position = self.position(cgroup).ok_or(io::ErrorKind::NotFound)?;
        // As kernfs numbers them: the root is 1, and others come in no order.
        Ok(if position == 0 { 1 } else { 1_000_000 - position as u64 })
    }

    fn children(&self, cgroup: &Path) -> Vec<(PathBuf, u64)> {
        let Some(parent) = self.on_machine(cgroup) else { return Vec::new() };
        let below = self.tree.iter().filter(|known| Path::new(known).parent() == Some(Path::new(&parent)));
        let named = below.filter_map(|known| Some(cgroup.join(Path::new(known).file_name()?)));
        named.map(|path| (path.clone(), self.id(&path).unwrap())).collect()
    }

    fn is_root(&self, cgroup: &Path) -> bool {
        self.position(cgroup) == Some(0)
    }

    fn holds_us(&self, cgroup: &Path) -> bool {
        self.on_machine(cgroup).is_some_and(|cgroup| cgroup == self.here)
    }
}

#[test]
fn the_pod_is_found_in_every_layout_or_the_error_says_what_to_do() {
    let layouts = layouts::all();
    assert!(layouts.len() >= 30, "{}", layouts.len());
    for layout in layouts {
        let found = Place::find_in(&layout, &config::Pod::default());
        match (&layout.expected, found) {
            (Ok((pod, own)), Ok(place)) => {
                assert_eq!(place.cgroup, Path::new(pod), "{}: the pod", layout.name);
                assert_eq!(place.own.as_deref(), Some(Path::new(own)), "{}: its own", layout.name);
                // Whatever it was called, it is the right one.
                assert_eq!(layout.on_machine(Path::new(own)).as_ref(), Some(&layout.here), "{}", layout.name);
            }
            (Err(words), Err(error)) => {
                for word in *words {
                    assert!(error.to_string().contains(word), "{}: no {word} in: {error}", layout.name);
                }
            }
            (expected, found) => panic!("{}: expected {expected:?}, found {found:?}", layout.name),
        }
    }
}

#[test]
fn the_sandbox_is_known_by_the_files_that_it_shares() {
    let (a, b) = ("a".repeat(64), "b".repeat(64));
    let line = |source: &str, at: &str| format!("700 600 8:1 {source} {at} rw,relatime - ext4 /dev/root rw\n");
    let containerd = format!("/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/{a}/resolv.conf");
    let crio = format!("/run/containers/storage/overlay-containers/{a}/userdata/resolv.conf");
    let docker = format!("/var/lib/docker/containers/{b}/hostname");
    let pod = "kubepods-burstable-pod0f0e2a8c_1111_4222_8333_444455556666.slice";
    for (mountinfo, pod, expected) in [
        (line(&containerd, "/etc/resolv.conf"), pod, Some(&a)),
        (line(&crio, "/etc/resolv.conf"), pod, Some(&a)),
        (line(&docker, "/etc/hostname"), "pod0f0e2a8c-1111-4222-8333-444455556666", Some(&b)),
        (line(&crio, "/etc/resolv.conf"), "machine-libpod_pod_cccc.slice", Some(&a)),
        // Containers that share another's files without a pod: that other one is an application.
        (line(&docker, "/etc/hostname"), "shop", None),
        (line(&crio, "/etc/resolv.conf"), "shop.slice", None),
        // The same file elsewhere, and other files.
        (line(&containerd, "/data"), pod, None),
        (line("/etc/resolv.conf", "/etc/resolv.conf"), pod, None),
        (String::new(), pod, None),
    ] {
        assert_eq!(names::sandbox(&mountinfo, pod).as_ref(), expected, "{pod}: {mountinfo}");
    }
}

#[test]
fn cgroup_mounts_are_found_wherever_they_are() {
    for (mountinfo, expected) in [
        ("31 23 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw", vec!["/sys/fs/cgroup"]),
        (
            "30 23 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
             31 23 0:27 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup rw",
            vec!["/sys/fs/cgroup/unified"],
        ),
        (
            "31 23 0:27 /kubepods/pod1/c1 /sys/fs/cgroup ro - cgroup2 cgroup rw\n\
             32 23 0:27 / /host/cgroup\\040v2 ro - cgroup2 cgroup rw",
            vec!["/sys/fs/cgroup", "/host/cgroup v2"],
        ),
        // Another file system on top hides it.
        ("31 23 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n32 31 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw", vec![]),
        ("30 23 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu", vec![]),
        ("", vec![]),
    ] {
        let found: Vec<Mount> = layout::mounts(mountinfo);
        let found: Vec<_> = found.iter().map(|mount| mount.at.to_str().unwrap()).collect();
        assert_eq!(found, expected, "{mountinfo}");
    }
}
