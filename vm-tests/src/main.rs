//! PID 1 of a virtual machine that runs the integration suite on another kernel.
//!
//! `cargo xtask vm` boots a kernel with an initramfs that holds this program as `/init`, a plan and the modules that
//! the plan names. From there, in order: load the modules, make the host's file system the root (read-only below a
//! tmpfs overlay, so that every program of the host is there unchanged and nothing written survives), mount what
//! the suite needs, run the binaries one after the other, say how each ended, and power off.
//!
//! Everything goes to the serial console. Lines that start with `vm-tests: ` are for `cargo xtask vm` to read.

mod kmsg;
mod modules;
mod plan;
mod root;
mod run;

use anyhow::Context as _;
use kmsg::Kmsg;
use plan::Plan;

fn main() {
    if std::process::id() != 1 {
        eprintln!("vm-tests is the init of a virtual machine; run `cargo xtask vm` instead");
        std::process::exit(2);
    }
    let passed = boot_and_run().unwrap_or_else(|error| {
        println!("vm-tests: cannot run the suite: {error:#}");
        false
    });
    println!("vm-tests: {}", if passed { "success" } else { "failure" });
    power_off();
}

/// Whether every binary ended well and the kernel had nothing to complain about.
fn boot_and_run() -> anyhow::Result<bool> {
    root::mount_early()?;
    let plan = Plan::read("/plan.json")?;
    modules::load("/modules", &plan.modules)?;
    root::switch_to_host(&plan.share)?;
    root::mount_for_suite()?;
    let mut kmsg = Kmsg::open()?;

    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's release")?;
    println!("vm-tests: ready on {}", release.trim());
    let mut passed = kmsg.report_faults()?;
    for binary in &plan.binaries {
        passed &= run::run(binary, &plan)?;
        passed &= kmsg.report_faults()?;
    }
    Ok(passed)
}

fn power_off() -> ! {
    // The console is a serial port: wait until its last byte has left before the machine goes away.
    // SAFETY: tcdrain takes a descriptor by value and touches no memory of ours.
    unsafe { libc::tcdrain(libc::STDOUT_FILENO) };
    match nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_POWER_OFF) {
        Ok(never) => match never {},
        // PID 1 must not return, for the kernel would panic; the panic ends the machine, which is what we want.
        Err(error) => panic!("power off: {error}"),
    }
}
