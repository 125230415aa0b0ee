//! The guest's file systems.

use crate::plan::Share;
use anyhow::Context as _;
use nix::mount::{MsFlags, mount};
use std::fs::create_dir_all;
use std::os::unix::fs::symlink;
use std::process::Command;

const PLAIN: MsFlags = MsFlags::empty();

/// Mounts `fstype` at `target`, which is made if it is missing.
fn mount_at(target: &str, source: &str, fstype: &str, flags: MsFlags, options: &str) -> anyhow::Result<()> {
    create_dir_all(target).with_context(|| format!("create {target}"))?;
    mount(Some(source), target, Some(fstype), flags, Some(options))
        .with_context(|| format!("mount {fstype} ({source}, {options:?}) on {target}"))
}

/// What loading modules and talking to the console need.
pub(crate) fn mount_early() -> anyhow::Result<()> {
    mount_at("/proc", "proc", "proc", PLAIN, "")?;
    mount_at("/dev", "dev", "devtmpfs", PLAIN, "")
}

/// Makes the host's root the root of this machine, below a tmpfs that takes every write.
pub(crate) fn switch_to_host(share: &Share) -> anyhow::Result<()> {
    mount_at("/host", &share.tag, &share.fstype, MsFlags::MS_RDONLY, &share.options)?;
    mount_at("/writes", "writes", "tmpfs", PLAIN, "mode=755")?;
    for directory in ["/writes/upper", "/writes/work"] {
        create_dir_all(directory).with_context(|| format!("create {directory}"))?;
    }
    let layers = "lowerdir=/host,upperdir=/writes/upper,workdir=/writes/work";
    mount_at("/root", "root", "overlay", PLAIN, layers)?;

    for directory in ["/proc", "/dev"] {
        let target = format!("/root{directory}");
        mount(Some(directory), target.as_str(), None::<&str>, MsFlags::MS_MOVE, None::<&str>)
            .with_context(|| format!("move {directory} to {target}"))?;
    }
    // An initramfs cannot be the subject of pivot_root(2): move the new root over it instead.
    std::env::set_current_dir("/root").context("enter the new root")?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).context("move the new root to /")?;
    nix::unistd::chroot(".").context("chroot to the new root")?;
    std::env::set_current_dir("/").context("enter the new root")
}

/// What the suite needs to find: the host's own copies of these trees belong to another kernel.
pub(crate) fn mount_for_suite() -> anyhow::Result<()> {
    mount_at("/sys", "sys", "sysfs", PLAIN, "")?;
    mount_at("/sys/fs/cgroup", "cgroup2", "cgroup2", PLAIN, "")?;
    // An init system passes it on to all that it starts.
    let controllers = "/sys/fs/cgroup/cgroup.subtree_control";
    std::fs::write(controllers, "+memory").with_context(|| format!("write +memory to {controllers}"))?;
    mount_at("/sys/fs/bpf", "bpf", "bpf", PLAIN, "mode=700")?;
    mount_at("/dev/pts", "devpts", "devpts", PLAIN, "mode=620,ptmxmode=666")?;
    mount_at("/dev/shm", "shm", "tmpfs", PLAIN, "mode=1777")?;
    mount_at("/run", "run", "tmpfs", PLAIN, "mode=755")?;
    // udev makes these elsewhere.
    for (link, target) in [("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        symlink(format!("/proc/self/{target}"), format!("/dev/{link}")).with_context(|| format!("link /dev/{link}"))?;
    }
    let loopback = Command::new("/usr/bin/env").args(["ip", "link", "set", "lo", "up"]).status();
    anyhow::ensure!(loopback.context("start `ip link set lo up`")?.success(), "`ip link set lo up` failed");
    Ok(())
}
