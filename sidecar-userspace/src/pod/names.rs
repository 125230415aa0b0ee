//! What the names of cgroups and mounts say about containers. Names only help where numbers say nothing: who is a sandbox,
//! which directory holds more than one pod.

/// Programs that hold a pod's namespaces and do nothing else: Kubernetes' and Podman's.
pub(super) const PAUSE: [&str; 2] = ["/pause", "/catatonit"];

/// Cgroups that hold many pods, containers or services: never one pod's. By default of systemd, docker, podman, the kubelet.
const SHARED: [&str; 17] = [
    "system.slice",
    "user.slice",
    "machine.slice",
    "init.scope",
    "app.slice",
    "session.slice",
    "docker",
    "libpod_parent",
    "kubepods",
    "besteffort",
    "burstable",
    "guaranteed",
    "kubepods.slice",
    "kubelet",
    "kubelet.slice",
    "lxc",
    "buildkit",
];

/// Namespaces of containerd, each of which is the parent of all of its containers without systemd's driver. An operator may
/// well call a pod so.
const NAMESPACES: [&str; 3] = ["default", "moby", "k8s.io"];

/// Whether a cgroup of this name is one container's: docker's, containerd's, cri-o's or podman's, by either driver
/// (`<id>`, `docker-<id>.scope`, `cri-containerd-<id>.scope`, `crio-<id>`, `…slice:cri-containerd:<id>`).
pub(super) fn is_container(name: &str) -> bool {
    let id = name.strip_suffix(".scope").unwrap_or(name).rsplit(['-', ':']).next().unwrap_or_default();
    is_id(id) && !watches_containers(name)
}

/// Whether processes in a cgroup of this name only watch containers: conmon of cri-o and podman, which lives in the pod.
pub(super) fn watches_containers(name: &str) -> bool {
    name == "conmon" || name.starts_with("crio-conmon-") || name.starts_with("libpod-conmon-")
}

/// Whether a cgroup of this name holds more than one pod, if `child` is one of those in it.
pub(super) fn holds_more_than_a_pod(name: &str, child: &str) -> bool {
    let number = |prefix: &str, suffix: &str| {
        let middle = name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(suffix));
        middle.is_some_and(|middle| middle.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let of_user = number("user-", ".slice") || number("user@", ".service");
    // Classes of pods: `kubepods-burstable.slice`, but not `kubepods-burstable-pod….slice` nor `kubepods-pod….slice`.
    let of_class = name.starts_with("kubepods-") && name.ends_with(".slice") && !name.contains("-pod");
    let of_containerd = NAMESPACES.contains(&name) && is_container(child);
    SHARED.contains(&name) || of_user || of_class || of_containerd
}

/// The id of the container that only holds the pod's namespaces, by the files that the runtime mounts from its folder into
/// every container of the pod. `pod` is the name of the pod's cgroup: other containers share files without such a one.
pub(super) fn sandbox(mountinfo: &str, pod: &str) -> Option<String> {
    const SHARED_FILES: [&str; 3] = ["/etc/resolv.conf", "/etc/hostname", "/etc/hosts"];
    let is_pod = pod.starts_with("kubepods") || pod.starts_with("pod") || pod.contains("libpod_pod_") || is_id(pod);
    let sources = mountinfo.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(3);
        let (source, at) = (fields.next()?, fields.next()?);
        SHARED_FILES.contains(&at).then_some(source)
    });
    let id_in = |source: &str| {
        let parts: Vec<&str> = source.split('/').collect();
        let at = parts.iter().rposition(|part| is_id(part))?;
        let folder = parts.get(at.checked_sub(1)?)?;
        // containerd names the folder for its purpose; the others have one for every container.
        let of_any = *folder == "containers" || folder.ends_with("-containers");
        let known = *folder == "sandboxes" || (is_pod && of_any);
        known.then(|| parts[at].to_owned())
    };
    sources.filter_map(id_in).next()
}

/// The uid of the Kubernetes pod, by the file that the kubelet mounts at /etc/hosts.
pub(super) fn pod_uid(mountinfo: &str) -> Option<String> {
    let source = mountinfo.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(3);
        let (source, at) = (fields.next()?, fields.next()?);
        (at == "/etc/hosts").then_some(source)
    })?;
    let (folder, file) = source.rsplit_once('/')?;
    let (folder, uid) = folder.rsplit_once('/')?;
    (file == "etc-hosts" && folder.ends_with("/pods")).then(|| uid.to_owned())
}

/// Whether the name of a pod's cgroup is that of the pod `uid`: the systemd driver writes `_` for `-`.
pub(super) fn is_pod(name: &str, uid: &str) -> bool {
    name.contains(uid) || name.contains(&uid.replace('-', "_"))
}

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
