//! A sidecar of another user than root, with the capabilities of its file.

use std::{
    ffi::CString,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::chown},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use nix::libc;
use sidecar_tests::{
    agent::puppet::Order,
    cases::net::{ANY, TO_V4},
    harness::{
        PATIENCE, Puppet, Sidecar, Spawn, World, bpf, eventually, patient, with_other_tags, without_helper, work,
    },
};

use super::{LONG, exchanged, refused, upgrade, upgrades};

const USER: u32 = 1337;
/// CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF (linux/capability.h).
const CAPABILITIES: [u32; 4] = [12, 21, 38, 39];

/// Gives a file capabilities: `struct vfs_cap_data` of revision 2, permitted and effective.
fn give_capabilities(file: &Path) -> Result<()> {
    const REVISION_2_EFFECTIVE: u32 = 0x0200_0001;
    let set = CAPABILITIES.iter().fold(0_u64, |set, capability| set | 1 << capability);
    let words = [REVISION_2_EFFECTIVE, set as u32, 0, (set >> 32) as u32, 0];
    let data: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    let path = CString::new(file.as_os_str().as_bytes())?;
    let name = c"security.capability".as_ptr();
    // SAFETY: path and name are strings, and the value has as many bytes as are told; all live through the call.
    let set = unsafe { libc::setxattr(path.as_ptr(), name, data.as_ptr().cast(), data.len(), 0) };
    ensure!(set == 0, "security.capability of {}: {}", file.display(), io::Error::last_os_error());
    Ok(())
}

/// Puts a copy of a binary where everybody may run it, with capabilities.
fn capable(binary: &Path, directory: &Path, name: &str) -> Result<PathBuf> {
    let path = directory.join(name);
    let mut install = Command::new("install");
    install.args(["-m", "755"]).arg(binary).arg(&path);
    Spawn::default().start(install)?.finish(PATIENCE)?;
    give_capabilities(&path)?;
    Ok(path)
}

#[test]
fn a_sidecar_with_the_capabilities_of_its_file_is_upgraded_and_takes_back_as_one_of_root() -> Result<()> {
    let world = World::new()?;
    let (pod, ours) = (&world.client, PathBuf::from(Sidecar::program()?.get_program()));
    let directory = pod.directory().join("user");
    fs::create_dir(&directory)?;
    chown(&directory, Some(USER), Some(USER))?;
    let first = capable(&ours, &directory, "first")?;
    let next = capable(&with_other_tags(&ours, &directory)?, &directory, "next")?;
    let broken = capable(&without_helper(&ours, &directory, 107)?, &directory, "broken")?;
    let [next, broken] = [&next, &broken].map(|path| path.to_str().context("a path of words"));
    let config = format!("telemetry: {{ admin_socket: {}/admin.sock }}\n{LONG}", directory.display());
    let shell = format!("exec {} \"$@\"", first.display());
    let user = [format!("--reuid={USER}"), format!("--regid={USER}"), "--clear-groups".to_owned()];
    let args = user.iter().map(String::as_str).chain(["sh", "-c", &shell]).collect::<Vec<_>>();
    let mut sidecar = Sidecar::spawn_through(pod, &config, "setpriv", &args)?;
    sidecar.wait_until_ready(patient(PATIENCE))?;
    let status = fs::read_to_string(format!("/proc/{}/status", sidecar.process.pid()))?;
    ensure!(status.contains(&format!("Uid:\t{USER}\t{USER}")), "{status}");
    let (_server, mut app) = (Puppet::serving(&world.server, ANY)?, Puppet::start(pod)?);
    let before = bpf::tags(pod)?;
    app.begin(Order::Toil(TO_V4, 5, work(50)))?;
    let why = refused(pod, &["--binary", broken?]).with_context(|| sidecar.process.output())?;
    ensure!(why.contains("goes on in process") && why.contains("kernel refuses"), "{why}");
    ensure!(bpf::tags(pod)? == before, "its programs are others");
    upgrade(pod, &["--binary", next?]).with_context(|| sidecar.process.output())?;
    let now = bpf::tags(pod)?;
    ensure!(exchanged(&before, &now), "the programs at the hooks had the tags {before:?} and have {now:?}");
    app.begin(Order::Accepted)?;
    let toil = app.answer(PATIENCE)?;
    ensure!(toil.outcome == "ok" && toil.moved > 0, "{}{}", toil.outcome, sidecar.process.output());
    ensure!(eventually(PATIENCE, || sidecar.is_ready()), "{}", sidecar.process.output());
    ensure!(upgrades(&sidecar, "upgraded")? == 1 && upgrades(&sidecar, "rolled_back")? == 1);
    Ok(())
}
