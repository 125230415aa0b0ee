//! What processes are shown, as real machines show it: Kubernetes with containerd, cri-o and dockerd, docker, podman, systemd;
//! cgroup v2 alone and beside v1; with and without a cgroup namespace.

use super::Layout;

/// Container and pod ids, as long as they are.
const SIDECAR: &str = "5a1decar5a1decar5a1decar5a1decar5a1decar5a1decar5a1decar5a1dec00";
const UID: &str = "0f0e2a8c-1111-4222-8333-444455556666";
const UID_: &str = "0f0e2a8c_1111_4222_8333_444455556666";

/// The rest of what it takes to see where a container is.
const WORDS_ABOVE: &[&str] = &["above what is mounted at /sys/fs/cgroup", "hostPath", "/sys/fs/cgroup:/host/cgroup:ro"];
const WORDS_MANY: &[&str] = &["holds more than one pod", "--cgroup-parent", "pod.cgroup"];

/// Hexadecimal digits instead of letters that only people read.
fn id(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_hexdigit() { c } else { '0' }).collect()
}

fn sidecar() -> String {
    id(SIDECAR)
}

/// Another container.
fn other(digit: char) -> String {
    digit.to_string().repeat(64)
}

fn cgroup2(root: &str, at: &str) -> String {
    format!("812 790 0:27 {root} {at} ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate\n")
}

fn cgroup1(controller: &str) -> String {
    format!("813 790 0:30 / /sys/fs/cgroup/{controller} ro,relatime - cgroup cgroup rw,{controller}\n")
}

fn etc_hosts(uid: &str) -> String {
    format!("820 790 8:1 /var/lib/kubelet/pods/{uid}/etc-hosts /etc/hosts rw,relatime - ext4 /dev/sda1 rw\n")
}

/// Every ancestor of these, and others beside them.
fn tree(cgroups: &[String]) -> Vec<String> {
    let mut tree: Vec<String> =
        ["/init.scope", "/system.slice", "/system.slice/ssh.service"].map(str::to_owned).to_vec();
    for cgroup in cgroups {
        let parts: Vec<&str> = cgroup.split('/').skip(1).collect();
        for end in 1..=parts.len() {
            let name = format!("/{}", parts[..end].join("/"));
            if !tree.contains(&name) {
                tree.push(name);
            }
        }
    }
    tree
}

/// `/..` so many times.
fn up(levels: usize) -> String {
    if levels == 0 { "/".to_owned() } else { "/..".repeat(levels) }
}

/// A container with a cgroup namespace of its own, that is shown the whole hierarchy at /host/cgroup, if anything: `pod` and
/// `container` are names on the machine, the second below the first.
fn private(name: &'static str, pod: &str, container: &str, host: bool) -> Layout {
    let here = format!("{pod}/{container}");
    let levels = here.split('/').count() - 1;
    let beside = [format!("{pod}/{}", other('a')), format!("{}/{}", pod, other('b')), here.clone()];
    let mut mountinfo = cgroup2("/", "/sys/fs/cgroup");
    let mut shown = vec![("/sys/fs/cgroup", here.clone())];
    let mut expected: Result<_, &[&str]> = Err(WORDS_ABOVE);
    if host {
        mountinfo += &cgroup2(&up(levels), "/host/cgroup");
        shown.push(("/host/cgroup", "/".to_owned()));
        expected = Ok((format!("/host/cgroup{pod}"), format!("/host/cgroup{here}")));
    }
    Layout { name, membership: "0::/\n", mountinfo, shown, tree: tree(&beside), here, expected }
}

/// A process without a cgroup namespace of its own. `membership` holds its name.
fn plain(name: &'static str, membership: &'static str, mount: &'static str, pod: &str) -> Layout {
    let here = membership.lines().find_map(|line| line.strip_prefix("0::")).unwrap().to_owned();
    let own = format!("{mount}{here}");
    let expected = Ok((format!("{mount}{pod}"), own));
    let (mountinfo, shown) = (cgroup2("/", mount), vec![(mount, "/".to_owned())]);
    Layout { name, membership, mountinfo, shown, tree: tree(std::slice::from_ref(&here)), here, expected }
}

fn refused(layout: Layout, words: &'static [&'static str]) -> Layout {
    Layout { expected: Err(words), ..layout }
}

fn with_mount(mut layout: Layout, line: &str) -> Layout {
    layout.mountinfo.insert_str(0, line);
    layout
}

/// All of them.
pub(super) fn all() -> Vec<Layout> {
    [kubernetes(), engines(), hosts(), odd()].into_iter().flatten().collect()
}

fn kubernetes() -> Vec<Layout> {
    let me = sidecar();
    let burstable = format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice");
    let guaranteed = format!("/kubepods.slice/kubepods-pod{UID_}.slice");
    let containerd = format!("cri-containerd-{me}.scope");
    let kind = "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice";
    let kind = format!("{kind}/kubelet-kubepods-besteffort-pod{UID_}.slice");
    let static_pod = "/kubepods/burstable/pod0123456789abcdef0123456789abcdef";
    vec![
        private("containerd, systemd driver, burstable", &burstable, &containerd, true),
        private("containerd, systemd driver, no host mount", &burstable, &containerd, false),
        with_mount(private("containerd, systemd driver, guaranteed", &guaranteed, &containerd, true), &etc_hosts(UID)),
        private("containerd, cgroupfs driver, besteffort", &format!("/kubepods/besteffort/pod{UID}"), &me, true),
        with_mount(
            private("containerd, cgroupfs driver, guaranteed", &format!("/kubepods/pod{UID}"), &me, true),
            &etc_hosts(UID),
        ),
        private("a static pod, named by a hash", static_pod, &me, true),
        private("cri-o, systemd driver, runc", &burstable, &format!("crio-{me}.scope"), true),
        private("cri-o, systemd driver, crun", &burstable, &format!("crio-{me}.scope/container"), true),
        private("cri-o, cgroupfs driver", &format!("/kubepods/burstable/pod{UID}"), &format!("crio-{me}"), true),
        private("cri-dockerd, systemd driver", &burstable, &format!("docker-{me}.scope"), true),
        private("cri-dockerd, cgroupfs driver", &format!("/kubepods/burstable/pod{UID}"), &me, true),
        with_mount(private("kind: a node in a container", &kind, &containerd, true), &etc_hosts(UID)),
        private("k3s in docker", &format!("/docker/{}/kubepods/besteffort/pod{UID}", other('d')), &me, true),
        refused(
            with_mount(
                private("the kubelet names another pod", &burstable, &containerd, true),
                &etc_hosts("99999999-1111-4222-8333-444455556666"),
            ),
            &["is not that of its pod 99999999-1111-4222-8333-444455556666", "pod.cgroup"],
        ),
        refused(
            private(
                "containerd told the wrong driver",
                "/system.slice/containerd.service",
                &format!("kubepods-burstable-pod{UID_}.slice:cri-containerd:{me}"),
                true,
            ),
            WORDS_MANY,
        ),
    ]
}

fn engines() -> Vec<Layout> {
    let me = sidecar();
    let pod = other('9');
    let libpod = format!("libpod-{me}.scope/container");
    let user = "/user.slice/user-1000.slice/user@1000.service/user.slice";
    vec![
        refused(private("docker, systemd driver", "/system.slice", &format!("docker-{me}.scope"), true), WORDS_MANY),
        refused(private("docker, cgroupfs driver", "/docker", &me, true), WORDS_MANY),
        private("docker --cgroup-parent, systemd driver", "/shop.slice", &format!("docker-{me}.scope"), true),
        private("docker --cgroup-parent, cgroupfs driver", "/shop", &me, true),
        private("docker without the host's cgroups", "/shop.slice", &format!("docker-{me}.scope"), false),
        private("podman pod, systemd, crun", &format!("/machine.slice/machine-libpod_pod_{pod}.slice"), &libpod, true),
        private("podman pod, cgroupfs", &format!("/libpod_parent/{pod}"), &format!("libpod-{me}"), true),
        refused(private("podman without a pod, systemd", "/machine.slice", &libpod, true), WORDS_MANY),
        refused(private("podman without a pod, cgroupfs", "/libpod_parent", &format!("libpod-{me}"), true), WORDS_MANY),
        private("rootless podman pod", &format!("{user}/user-libpod_pod_{pod}.slice"), &libpod, true),
        refused(private("rootless podman without a pod", user, &libpod, true), WORDS_MANY),
        refused(private("nerdctl, cgroupfs driver", "/default", &me, true), WORDS_MANY),
        private("Amazon ECS", "/ecstasks.slice/ecstasks-0af1.slice", &format!("docker-{me}.scope"), true),
    ]
}

const SERVICE: &str = "0::/system.slice/sidecar.service\n";
const POD: &str = "0::/pods/web/sidecar\n";
/// A hybrid host: controllers in v1 hierarchies, and an empty v2 hierarchy beside them.
const HYBRID: &str = "9:name=systemd:/pods/web/sidecar\n4:memory:/pods/web/sidecar\n0::/pods/web/sidecar\n";

fn hosts() -> Vec<Layout> {
    let in_root = Layout { here: "/".to_owned(), ..plain("in the root", "0::/\n", "/sys/fs/cgroup", "/") };
    let hybrid_root = "9:name=systemd:/docker/x\n4:memory:/docker/x\n0::/\n";
    let hybrid_root =
        Layout { here: "/".into(), ..plain("hybrid, v1 containers", hybrid_root, "/sys/fs/cgroup/unified", "/") };
    vec![
        plain("a pod that is called default", "0::/pods/default/sidecar\n", "/sys/fs/cgroup", "/pods/default"),
        plain("a host, cgroup v2 alone", POD, "/sys/fs/cgroup", "/pods/web"),
        with_mount(plain("a hybrid host", HYBRID, "/sys/fs/cgroup/unified", "/pods/web"), &cgroup1("memory")),
        plain(
            "below a delegated service",
            "0::/system.slice/shop.service/sidecar\n",
            "/sys/fs/cgroup",
            "/system.slice/shop.service",
        ),
        refused(plain("a systemd service", SERVICE, "/sys/fs/cgroup", ""), WORDS_MANY),
        refused(
            plain("right below the root", "0::/sidecar\n", "/sys/fs/cgroup", ""),
            &["root of the cgroup v2 hierarchy"],
        ),
        refused(in_root, &["root of the cgroup v2 hierarchy /sys/fs/cgroup", "pod.cgroup"]),
        refused(with_mount(hybrid_root, &cgroup1("memory")), &["root of the cgroup v2 hierarchy", "hybrid"]),
    ]
}

fn odd() -> Vec<Layout> {
    let me = sidecar();
    let slice = format!("/kubepods.slice/kubepods-pod{UID_}.slice");
    let here = format!("{slice}/cri-containerd-{me}.scope");
    let leak = |text: String| -> &'static str { Box::leak(text.into_boxed_str()) };
    // The host's cgroup namespace, and a mount of the container's own cgroup alone.
    let own_alone = || Layout {
        name: "the host's namespace, its own cgroup mounted",
        membership: leak(format!("0::{here}\n")),
        mountinfo: cgroup2(&here, "/sys/fs/cgroup"),
        shown: vec![("/sys/fs/cgroup", here.clone())],
        tree: tree(std::slice::from_ref(&here)),
        here: here.clone(),
        expected: Err(WORDS_ABOVE),
    };
    let mut beside = own_alone();
    beside.name = "the host's namespace, and all mounted elsewhere";
    beside.mountinfo += &cgroup2("/", "/host\\040cgroup");
    beside.shown.push(("/host cgroup", "/".to_owned()));
    beside.expected = Ok((format!("/host cgroup{slice}"), format!("/host cgroup{here}")));
    // Only the pod's own cgroup is mounted, from its namespace two levels up.
    let mut pod_alone =
        private("only the pod's cgroup is mounted", &slice, &format!("cri-containerd-{me}.scope"), true);
    pod_alone.mountinfo = cgroup2("/", "/sys/fs/cgroup") + &cgroup2("/..", "/pod");
    pod_alone.shown = vec![("/sys/fs/cgroup", here.clone()), ("/pod", slice.clone())];
    pod_alone.expected = Ok(("/pod".to_owned(), format!("/pod/cri-containerd-{me}.scope")));
    // Its cgroup namespace is another's: it is beside the root of what it sees.
    let mut sibling = private("a namespace of another container", &slice, &format!("crio-{me}.scope"), true);
    sibling.membership = leak(format!("0::/../crio-{me}.scope\n"));
    sibling.shown[0].1 = format!("{slice}/{}", other('a'));
    // No mount of its own: found by its process number.
    let mut by_process = private("only the host's mount", &slice, &format!("cri-containerd-{me}.scope"), true);
    by_process.mountinfo = cgroup2(&up(3), "/host/cgroup");
    by_process.shown.remove(0);
    let mut unreadable =
        private("a hierarchy that cannot be read", &slice, &format!("cri-containerd-{me}.scope"), true);
    unreadable.tree.retain(|cgroup| !cgroup.contains("cri-containerd"));
    let mut elsewhere = private("a mount of another branch", &slice, &format!("cri-containerd-{me}.scope"), true);
    elsewhere.mountinfo = cgroup2("/../../../system.slice", "/host/cgroup");
    let v1_alone = private("cgroup v1 alone", &slice, &me, true);
    let v1_alone = Layout { mountinfo: cgroup1("memory"), membership: "4:memory:/docker/x\n", ..v1_alone };
    let mut no_mount = private("a container without a cgroup mount", &slice, &me, false);
    no_mount.mountinfo = cgroup1("memory");
    vec![
        own_alone(),
        beside,
        pod_alone,
        sibling,
        by_process,
        refused(unreadable, &["3 levels below /host/cgroup", "readable"]),
        refused(elsewhere, &["none of the cgroup v2 mounts (/host/cgroup) contains", "hostPath"]),
        refused(v1_alone, &["no cgroup v2 hierarchy is mounted"]),
        refused(no_mount, &["no cgroup v2 hierarchy is mounted"]),
    ]
}
