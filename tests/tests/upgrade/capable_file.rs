//! A sidecar of another user than root, with the capabilities of its file.

use std::{
    ffi::CString,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::chown},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use nix::libc;
use sidecar_tests::{
    agent::puppet::Order,
    cases::net::{ANY, TO_V4},
    harness::{
        PATIENCE, Pod, Puppet, Sidecar, Spawn, World, bpf, eventually, patient, with_other_tags, without_helper, work,
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

/// Puts a copy of a binary where everybody may run it.
fn bare(binary: &Path, directory: &Path, name: &str) -> Result<PathBuf> {
    let path = directory.join(name);
    let mut install = Command::new("install");
    install.args(["-m", "755"]).arg(binary).arg(&path);
    Spawn::default().start(install)?.finish(PATIENCE)?;
    Ok(path)
}

/// The same, with capabilities.
fn capable(binary: &Path, directory: &Path, name: &str) -> Result<PathBuf> {
    let path = bare(binary, directory, name)?;
    give_capabilities(&path)?;
    Ok(path)
}

/// A directory of the user's.
fn home(pod: &Pod) -> Result<PathBuf> {
    let directory = pod.directory().join("user");
    fs::create_dir(&directory)?;
    chown(&directory, Some(USER), Some(USER))?;
    Ok(directory)
}

/// Starts a sidecar of the user, by this file and with these capabilities that are not of the file.
fn start(pod: &Arc<Pod>, directory: &Path, file: &Path, ambient: &str) -> Result<Sidecar> {
    let config = format!("telemetry: {{ admin_socket: {}/admin.sock }}\n{LONG}", directory.display());
    let shell = format!("exec {} \"$@\"", file.display());
    let ids = [format!("--reuid={USER}"), format!("--regid={USER}"), "--clear-groups".to_owned()];
    let sets = ["--inh-caps", "--ambient-caps"].map(|set| format!("{set}={ambient}"));
    let args = ids.iter().chain(&sets).map(String::as_str).chain(["sh", "-c", &shell]).collect::<Vec<_>>();
    let mut sidecar = Sidecar::spawn_through(pod, &config, "setpriv", &args)?;
    sidecar.wait_until_ready(patient(PATIENCE))?;
    let status = fs::read_to_string(format!("/proc/{}/status", sidecar.process.pid()))?;
    ensure!(status.contains(&format!("Uid:\t{USER}\t{USER}")), "{status}");
    Ok(sidecar)
}

#[test]
fn a_sidecar_with_the_capabilities_of_its_file_is_upgraded_and_takes_back_as_one_of_root() -> Result<()> {
    let world = World::new()?;
    let (pod, ours) = (&world.client, PathBuf::from(Sidecar::program()?.get_program()));
    let directory = home(pod)?;
    let first = capable(&ours, &directory, "first")?;
    let next = capable(&with_other_tags(&ours, &directory)?, &directory, "next")?;
    let broken = capable(&without_helper(&ours, &directory, 107)?, &directory, "broken")?;
    let [next, broken] = [&next, &broken].map(|path| path.to_str().context("a path of words"));
    let sidecar = start(pod, &directory, &first, "-all")?;
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

#[test]
fn a_file_that_lacks_the_capabilities_of_the_one_that_runs_is_refused_and_the_answer_names_them() -> Result<()> {
    let world = World::new()?;
    let (pod, ours) = (&world.client, PathBuf::from(Sidecar::program()?.get_program()));
    let directory = home(pod)?;
    let (first, bare) = (capable(&ours, &directory, "first")?, bare(&ours, &directory, "bare")?);
    let bare = bare.to_str().context("a path of words")?;
    let sidecar = start(pod, &directory, &first, "-all")?;
    let (processes, before) = (sidecar.pids(), bpf::tags(pod)?);
    let why = refused(pod, &["--binary", bare]).with_context(|| sidecar.process.output())?;
    let told =
        ["everything is as it was", "CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON", "setcap"].map(|part| why.contains(part));
    ensure!(told == [true; 3] && why.contains(bare), "{why}");
    ensure!(sidecar.pids() == processes && bpf::tags(pod)? == before && sidecar.is_ready());
    ensure!(upgrades(&sidecar, "refused")? == 1);
    drop(sidecar);
    // What is not of the file stays with the process, whatever it runs.
    let sidecar = start(pod, &directory, Path::new(bare), "+net_admin,+sys_admin,+perfmon,+bpf")?;
    upgrade(pod, &["--binary", bare]).with_context(|| sidecar.process.output())?;
    ensure!(eventually(PATIENCE, || sidecar.is_ready()), "{}", sidecar.process.output());
    Ok(())
}
