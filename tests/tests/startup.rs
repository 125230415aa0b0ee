//! A sidecar that cannot start says why, attaches nothing and leaves the application alone. The numbers are those of the
//! fault table in the project's notes.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::net::UnixListener,
    path::Path,
};

use anyhow::{Context, Result, ensure};
use sidecar_tests::{
    cases::{
        self,
        net::{ANY, TO_V4},
    },
    harness::{Authority, Cgroup, PATIENCE, Puppet, Sidecar, Spawn, World, bpf, converse, eventually, patient},
};

/// 18
#[test]
fn a_foreign_program_that_does_not_share_the_hook_is_named() -> Result<()> {
    let world = World::new()?;
    bpf::attach_foreign_connect4(world.client.cgroup(), false)?;
    let mut sidecar = Sidecar::spawn(&world.client, "{}")?;
    let status = sidecar.process.wait(PATIENCE)?;
    let message = sidecar.process.err.text();
    ensure!(!status.success() && message.contains("connect4") && message.contains("cgroup"), "{status}: {message}");
    // The application goes on without it.
    let _server = Puppet::serving(&world.server, ANY)?;
    Puppet::start(&world.client)?.visit(TO_V4)?;
    Ok(())
}

/// 43
#[test]
fn it_refuses_to_capture_a_whole_machine() -> Result<()> {
    let world = World::new()?;
    let command = Sidecar::command(&world.client, "{}")?;
    // In the root of cgroup2, as on a host with both versions.
    let mut sidecar = Spawn { netns: Some(world.client.netns()), cgroup: Some(&Cgroup::mount()?), ..Spawn::default() }
        .start(command)?;
    let status = sidecar.wait(PATIENCE)?;
    let message = sidecar.err.text();
    ensure!(!status.success() && message.contains("cgroup"), "{status}: {message}");
    ensure!(bpf::attached_programs(&world.client)? == 0);
    Ok(())
}

/// 18: whoever attached it to a parent forbade everybody else to attach below.
#[test]
fn a_foreign_program_on_a_parent_that_forbids_others_is_named() -> Result<()> {
    let world = World::new()?;
    let node = world.client.cgroup().parent().context("a pod without a parent")?;
    bpf::attach_foreign_connect4(node, false)?;
    let message = refusal(&world, &mut Sidecar::spawn(&world.client, "{}")?)?;
    for part in ["on_connect4", "BPF_F_ALLOW_MULTI", "bpftool cgroup tree"] {
        ensure!(message.contains(part), "{part} is missing: {message}");
    }
    Ok(())
}

/// 43: what cannot be a pod's cgroup, such as one of the older hierarchy.
#[test]
fn a_directory_that_is_no_pods_cgroup_is_named() -> Result<()> {
    let world = World::new()?;
    let mount = Cgroup::mount()?;
    for path in [Path::new("/proc"), Path::new("/sys/fs/cgroup"), &mount, &mount.join("nothing-here")] {
        let config = format!("pod: {{ cgroup: {} }}", path.display());
        let message = refusal(&world, &mut Sidecar::spawn(&world.client, &config)?)?;
        ensure!(message.contains(path.to_str().context("path")?), "{}: {message}", path.display());
    }
    Ok(())
}

/// Waits for the end of a sidecar that cannot start: one line that says why, exit code 1, nothing attached, and an
/// application that goes on. Returns the line.
fn refusal(world: &World, sidecar: &mut Sidecar) -> Result<String> {
    let status = sidecar.process.wait(PATIENCE)?;
    // A verifier's log may be long.
    let message = sidecar.process.err.tail();
    ensure!(status.code() == Some(1), "{status}: {message}");
    let reason = message.lines().last().filter(|line| line.starts_with("sidecar: "));
    let reason = reason.with_context(|| format!("it does not end with one line that says why: {message}"))?;
    let left = bpf::attached_programs(&world.client)?;
    ensure!(left == 0, "{left} programs are attached after a failed start");
    let _server = Puppet::serving(&world.server, ANY)?;
    Puppet::start(&world.client)?.visit(TO_V4)?;
    Ok(reason.to_owned())
}

/// 48: each missing capability is named, and the application goes on.
#[test]
fn a_missing_capability_is_named() -> Result<()> {
    let world = World::new()?;
    // CAP_SYS_ADMIN contains CAP_BPF and CAP_PERFMON, and CAP_NET_ADMIN where programs are loaded.
    let netns = format!("pod: {{ netns: {} }}", world.server.netns().path().display());
    let table = [
        ("bpf,sys_admin", "{}", "CAP_BPF"),
        ("net_admin,sys_admin", "{}", "CAP_NET_ADMIN"),
        ("perfmon,sys_admin", "{}", "CAP_PERFMON"),
        ("sys_admin", netns.as_str(), "CAP_SYS_ADMIN"),
    ];
    for (missing, config, named) in table {
        let message = refusal(&world, &mut without(&world, missing, config)?)?;
        ensure!(message.contains(named), "{missing}: {message}");
    }
    Ok(())
}

/// 48
#[test]
fn capabilities_that_it_does_not_use_may_be_missing() -> Result<()> {
    let world = World::new()?;
    for missing in ["sys_admin", "sys_resource", "sys_ptrace", "net_raw", "dac_override"] {
        let mut sidecar = without(&world, missing, "{}")?;
        sidecar.wait_until_ready(PATIENCE).with_context(|| missing.to_owned())?;
    }
    Ok(())
}

/// A sidecar whose capabilities lack these.
fn without(world: &World, missing: &str, config: &str) -> Result<Sidecar> {
    let dropped = missing.split(',').map(|name| format!("-{name}")).collect::<Vec<_>>().join(",");
    let flags = [format!("--bounding-set={dropped}"), format!("--inh-caps={dropped}")];
    Sidecar::spawn_through(&world.client, config, "setpriv", &[&flags[0], &flags[1]])
}

/// 38: the place of the admin socket cannot be written.
#[test]
fn a_file_system_that_is_full_or_read_only_is_named() -> Result<()> {
    let world = World::new()?;
    for (options, problem) in [("ro", "Read-only file system"), ("nr_inodes=1", "No space left on device")] {
        let script = format!("mount -t tmpfs -o {options} none /run; exec \"$0\" \"$@\"");
        let mut sidecar = Sidecar::spawn_through(&world.client, "{}", "unshare", &["--mount", "sh", "-ec", &script])?;
        let message = refusal(&world, &mut sidecar)?;
        for part in [problem, "/run/sidecar", "telemetry.admin_socket"] {
            ensure!(message.contains(part), "{part} is missing: {message}");
        }
    }
    Ok(())
}

/// 47: `bpf_set_retval`, `bpf_sock_ops_cb_flags_set`, `bpf_sk_assign`, `bpf_get_netns_cookie`.
#[test]
fn a_helper_that_the_kernel_lacks_is_named() -> Result<()> {
    let world = World::new()?;
    for (helper, program) in [(187, "on_connect4"), (59, "on_tcp_event"), (124, "on_lookup"), (122, "on_tcp_event")] {
        let message = refusal(&world, &mut Sidecar::spawn_without_helper(&world.client, "{}", helper)?)?;
        for part in [program, "invalid func unknown#9999", "Linux 5.19"] {
            ensure!(message.contains(part), "{helper}: {part} is missing: {message}");
        }
    }
    Ok(())
}

/// 47: without `bpf_skc_to_mptcp_sock` MPTCP sockets cannot be told from TCP ones.
#[test]
fn a_kernel_that_does_not_tell_mptcp_is_captured_all_the_same() -> Result<()> {
    const SKC_TO_MPTCP_SOCK: u32 = 196;
    let world = World::new()?;
    let mut sidecar = Sidecar::spawn_without_helper(&world.client, "{}", SKC_TO_MPTCP_SOCK)?;
    sidecar.wait_until_ready(PATIENCE)?;
    let said: Vec<_> = sidecar.process.err.lines().into_iter().filter(|line| line.contains("MPTCP")).collect();
    let [line] = said.as_slice() else { anyhow::bail!("it speaks of MPTCP in {} lines: {said:?}", said.len()) };
    ensure!(line.contains("WARN") && line.contains("invalid func unknown#9999"), "{line}");
    ensure!(sidecar.metrics()?.sum("sidecar_fallback", &[("mode", "mptcp_as_tcp")]) == 1.0);

    let answered = converse(&world, cases::find("names_v4").context("no such case")?)?;
    ensure!(sidecar.verdict("connect", "capture", "captured")? == 1, "{answered:?}");
    let answered = converse(&world, cases::find("multipath_client").context("no such case")?)?;
    if answered.skipped().is_none() {
        ensure!(sidecar.verdict("connect", "capture", "captured")? == 2, "{}", sidecar.verdicts());
        ensure!(sidecar.verdict("connect", "bypass", "mptcp")? == 0);
    }
    drop(sidecar);
    // The same kernel with the helper.
    let sidecar = Sidecar::start(&world.client, "{}")?;
    ensure!(sidecar.metrics()?.sum("sidecar_fallback", &[("mode", "mptcp_as_tcp")]) == 0.0);
    ensure!(!sidecar.process.err.text().contains("MPTCP"), "{}", sidecar.process.output());
    Ok(())
}

/// Without `bpf_store_hdr_opt` no sidecar is discovered, which matters to those who expect to be encrypted.
#[test]
fn a_kernel_without_discovery_warns_whoever_has_an_identity() -> Result<()> {
    const STORE_HDR_OPT: u32 = 143;
    let world = World::new()?;
    let identity = Authority::new(&world)?.issue(&world.client, "web")?;
    for (config, level) in [(identity.as_str(), "WARN"), ("{}", "INFO")] {
        let mut sidecar = Sidecar::spawn_without_helper(&world.client, config, STORE_HDR_OPT)?;
        sidecar.wait_until_ready(PATIENCE)?;
        let lines = sidecar.process.err.lines();
        let said: Vec<_> = lines.iter().filter(|line| line.contains("cannot be discovered")).collect();
        let [line] = said.as_slice() else { anyhow::bail!("it speaks of discovery in {} lines: {said:?}", said.len()) };
        ensure!(line.contains(level) && line.contains("invalid func unknown#9999"), "{line}");
        ensure!(sidecar.metrics()?.sum("sidecar_fallback", &[("mode", "no_discovery")]) == 1.0);
    }
    // The same kernel with the helper.
    let sidecar = Sidecar::start(&world.client, &identity)?;
    ensure!(sidecar.metrics()?.sum("sidecar_fallback", &[("mode", "no_discovery")]) == 0.0);
    ensure!(!sidecar.process.err.text().contains("discovered"), "{}", sidecar.process.output());
    Ok(())
}

/// 47: the kernel's own type information, hidden from the sidecar.
#[test]
fn the_kernels_type_information_is_not_needed() -> Result<()> {
    const HIDE: &str = "[ ! -d /sys/kernel/btf ] || mount -t tmpfs none /sys/kernel/btf; exec \"$0\" \"$@\"";
    let world = World::new()?;
    let mut sidecar = Sidecar::spawn_through(&world.client, "{}", "unshare", &["--mount", "sh", "-ec", HIDE])?;
    sidecar.wait_until_ready(PATIENCE)?;
    let hidden = format!("/proc/{}/root/sys/kernel/btf/vmlinux", sidecar.process.pid());
    ensure!(!Path::new(&hidden).exists(), "the sidecar sees it");
    let _server = Puppet::serving(&world.server, ANY)?;
    Puppet::start(&world.client)?.visit(TO_V4)?;
    ensure!(sidecar.verdict("connect", "capture", "captured")? == 1);
    Ok(())
}

/// They are megabytes, and parsing them was half of the start.
#[test]
fn the_kernels_type_information_is_not_read() -> Result<()> {
    let types = fs::metadata("/sys/kernel/btf/vmlinux").context("this kernel has no type information")?.len();
    let world = World::new()?;
    let sidecar = Sidecar::start(&world.client, "acceleration: off\n")?;
    let io = fs::read_to_string(format!("/proc/{}/io", sidecar.process.pid()))?;
    let read: u64 = io.lines().find_map(|line| line.strip_prefix("rchar: ")).context("no rchar")?.parse()?;
    ensure!(read < types / 4, "{read} bytes were read until it was ready, and the kernel's types are {types}");
    Ok(())
}

/// 47
#[test]
fn a_port_that_is_taken_is_named() -> Result<()> {
    let world = World::new()?;
    let taken = SocketAddr::new(IpAddr::from([0, 0, 0, 0]), 15001);
    let _squatter = Puppet::serving(&world.client, taken)?;
    let mut sidecar = Sidecar::spawn(&world.client, "{}")?;
    let status = sidecar.process.wait(PATIENCE)?;
    let message = sidecar.process.err.text();
    ensure!(!status.success() && message.contains("15001"), "{status}: {message}");
    let left = bpf::attached_programs(&world.client)?;
    ensure!(left == 0, "{left} programs are attached after a failed start");
    Ok(())
}

/// A process that was killed has its sockets for some time yet, and may be seen no more.
#[test]
fn an_admin_socket_is_waited_for_while_its_process_ends_and_named_if_it_lives() -> Result<()> {
    let world = World::new()?;
    let path = world.client.directory().join("admin.sock");
    let config = format!("telemetry: {{ admin_socket: {} }}", path.display());
    let holder = UnixListener::bind(&path)?;
    holder.set_nonblocking(true)?;

    let mut sidecar = Sidecar::spawn(&world.client, &config)?;
    for _ in 0..2 {
        ensure!(eventually(patient(PATIENCE), || holder.accept().is_ok()), "nobody looks{}", sidecar.process.output());
    }
    drop(holder);
    sidecar.wait_until_ready(patient(PATIENCE))?;
    drop(sidecar);

    // It was killed, and its file is there.
    fs::remove_file(&path)?;
    let _holder = UnixListener::bind(&path)?;
    let message = refusal(&world, &mut Sidecar::spawn(&world.client, &config)?)?;
    for part in [path.to_str().context("path")?, &format!("in use by process {}", std::process::id())] {
        ensure!(message.contains(part), "{part} is missing: {message}");
    }
    Ok(())
}

/// A bad configuration attaches nothing and says where it is wrong.
#[test]
fn a_bad_configuration_is_refused_with_its_place() -> Result<()> {
    let world = World::new()?;
    let mut sidecar = Sidecar::spawn(&world.client, "capture:\n  outbund: {}\nproxy:\n  connect_timeout: soon\n")?;
    let status = sidecar.process.wait(PATIENCE)?;
    let message = sidecar.process.err.text();
    ensure!(!status.success(), "it runs");
    for part in ["outbund", "outbound", "connect_timeout", "sidecar.yaml"] {
        ensure!(message.contains(part), "{part} is missing: {message}");
    }
    Ok(())
}

/// The binary says what it is.
#[test]
fn the_binary_says_its_version() -> Result<()> {
    let mut command = Sidecar::program()?;
    command.arg("--version");
    let said = Spawn::default().start(command)?.finish(PATIENCE)?;
    ensure!(said.starts_with("sidecar "), "{said}");
    Ok(())
}
