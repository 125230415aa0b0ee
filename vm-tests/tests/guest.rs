//! What the suite may rely on inside the virtual machine: its file systems, its network, its kernel's programs.

#[path = "guest/bpf.rs"]
mod bpf;

use anyhow::{Context as _, ensure};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::{env, fs, thread};

/// Where a file system of this type is mounted.
fn mount_point(fstype: &str) -> anyhow::Result<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("read mountinfo")?;
    let line = table.lines().find(|line| line.contains(&format!(" - {fstype} ")));
    let field = line.and_then(|line| line.split(' ').nth(4));
    Ok(field.with_context(|| format!("no {fstype} in mountinfo"))?.into())
}

fn ip(arguments: &str) -> anyhow::Result<()> {
    let status = Command::new("ip").args(arguments.split(' ')).status().context("start ip")?;
    ensure!(status.success(), "ip {arguments}: {status}");
    Ok(())
}

/// Killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Either fails only for a child that was waited for already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_kernel_is_the_one_asked_for() -> anyhow::Result<()> {
    let asked = env::var("VM_TESTS_KERNEL").context("set by `cargo xtask vm`")?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    ensure!(release.starts_with(&format!("{asked}.")), "asked for {asked}, runs {release}");
    Ok(())
}

#[test]
fn a_process_can_move_into_a_new_cgroup() -> anyhow::Result<()> {
    let root = mount_point("cgroup2")?;
    assert_eq!(root, Path::new("/sys/fs/cgroup"));
    let cgroup = root.join("guest-test");
    fs::create_dir(&cgroup)?;
    let sleeper = Running(Command::new("sleep").arg("60").spawn()?);
    fs::write(cgroup.join("cgroup.procs"), sleeper.0.id().to_string())?;
    assert_eq!(fs::read_to_string(format!("/proc/{}/cgroup", sleeper.0.id()))?, "0::/guest-test\n");
    drop(sleeper);
    fs::remove_dir(&cgroup)?;
    Ok(())
}

#[test]
fn bpffs_is_mounted() -> anyhow::Result<()> {
    assert_eq!(mount_point("bpf")?, Path::new("/sys/fs/bpf"));
    Ok(())
}

#[test]
fn what_is_written_stays_in_the_guest() -> anyhow::Result<()> {
    let file = Path::new("/usr/vm-tests-guest");
    fs::write(file, "x")?;
    assert_eq!(fs::read_to_string(file)?, "x");
    assert_eq!(
        fs::read_to_string("/proc/mounts")?.lines().find(|line| line.contains(" / ")).map(|l| &l[..4]),
        Some("root")
    );
    Ok(fs::remove_file(file)?)
}

#[test]
fn a_connection_crosses_a_veth_pair_between_namespaces() -> anyhow::Result<()> {
    ip("netns add guest-test")?;
    ip("link add guest0 type veth peer name eth0 netns guest-test")?;
    ip("addr add 10.77.0.1/24 dev guest0")?;
    ip("link set guest0 up")?;
    ip("-n guest-test addr add 10.77.0.2/24 dev eth0")?;
    ip("-n guest-test link set eth0 up")?;

    let server = TcpListener::bind("10.77.0.1:0")?;
    let port = server.local_addr()?.port();
    let client = thread::spawn(move || -> anyhow::Result<()> {
        let namespace = fs::File::open("/run/netns/guest-test")?;
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
        TcpStream::connect(("10.77.0.1", port))?.write_all(b"across")?;
        Ok(())
    });
    let (mut stream, peer) = server.accept()?;
    let mut received = String::new();
    stream.read_to_string(&mut received)?;
    client.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
    assert_eq!((received.as_str(), peer.ip().to_string().as_str()), ("across", "10.77.0.2"));
    ip("netns del guest-test")
}

#[test]
fn nginx_of_the_host_answers_curl() -> anyhow::Result<()> {
    let directory = Path::new("/tmp/guest-nginx");
    fs::create_dir_all(directory)?;
    let configuration = directory.join("nginx.conf");
    let body = "daemon off; pid /tmp/guest-nginx/pid; error_log stderr; events {} http { access_log off; server { \
        listen 127.0.0.1:8077; location / { return 200 'hello from the guest'; } } }";
    fs::write(&configuration, body)?;
    let nginx =
        Command::new("nginx").arg("-e").arg("stderr").arg("-c").arg(&configuration).stdin(Stdio::null()).spawn()?;
    let _nginx = Running(nginx);
    let curl = ["--silent", "--show-error", "--retry", "50", "--retry-connrefused", "--retry-delay", "1"];
    let answer = Command::new("curl").args(curl).arg("http://127.0.0.1:8077/").output().context("start curl")?;
    assert_eq!(String::from_utf8_lossy(&answer.stdout), "hello from the guest");
    Ok(())
}

#[test]
fn every_program_that_kernels_toml_names_loads() -> anyhow::Result<()> {
    let programs = env::var("VM_TESTS_PROGRAMS").context("set by `cargo xtask vm`")?;
    let failures: Vec<_> =
        programs.split(' ').filter_map(|section| bpf::load(section).err()).map(|error| format!("{error:#}")).collect();
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}
