//! Running the same suite on one kernel after the other.

use super::Totals;
use super::initramfs::Initramfs;
use super::kernels::Kernel;
use super::modules::{self, Module};
use super::qemu::{self, Accelerator, Limits, Outcome};
use super::suite::{self, Binary, Suite};
use anyhow::Context as _;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// How the guest mounts this machine's root. What was read once stays cached: nothing changes below it.
const ROOT_OPTIONS: &str = "trans=virtio,version=9p2000.L,msize=512000,cache=loose";

/// Two tests at a time, for the guest has two CPUs and most tests wait; the output of passing tests too, for it holds
/// what was skipped.
const LIBTEST: [&str; 3] = ["--test-threads=2", "--show-output", "--color=never"];

/// Lines of the console that are shown when a run goes wrong otherwise than by a failed test.
const TAIL: usize = 40;

/// What is the same on every kernel.
pub(super) struct Series {
    pub(super) suite: Suite,
    pub(super) limits: Limits,
    /// For every binary.
    pub(super) arguments: Vec<String>,
    pub(super) verbose: bool,
    /// Where the consoles' logs go.
    pub(super) directory: PathBuf,
}

/// A kernel, ready to boot.
pub(super) struct Ready<'a> {
    kernel: &'a Kernel,
    image: PathBuf,
    modules: Vec<Module>,
}

impl<'a> Ready<'a> {
    /// Fetches `kernel`, and from it those of `modules` that are not built in.
    pub(super) fn new(kernel: &'a Kernel, modules: &[String]) -> anyhow::Result<Self> {
        let unpacked = kernel.fetch().with_context(|| format!("fetch the kernel {}", kernel.name))?;
        let wanted: Vec<_> = kernel.modules.iter().chain(modules).cloned().collect();
        let modules = modules::closure(&unpacked.modules, &wanted)
            .with_context(|| format!("collect the modules of the kernel {}", kernel.name))?;
        Ok(Self { kernel, image: unpacked.image, modules })
    }
}

impl Series {
    /// How guests can run on this machine, tried with a boot of `ready` that runs nothing.
    pub(super) fn accelerator(&self, ready: &Ready<'_>) -> anyhow::Result<Accelerator> {
        let initramfs = self.pack(ready, Accelerator::Kvm, &[])?;
        let log = self.directory.join("kvm.log");
        let boot = qemu::Boot { image: &ready.image, initramfs: &initramfs.0, log: &log, verbose: false };
        Accelerator::probe(&boot)
    }

    /// Runs the suite on `ready`, and prints how it went.
    pub(super) fn run(&self, ready: &Ready<'_>, accelerator: Accelerator) -> anyhow::Result<Totals> {
        let initramfs = self.pack(ready, accelerator, &self.suite.binaries)?;
        let log = self.directory.join(format!("{}.log", ready.kernel.name));
        println!("{}: booting with {}, console in {}", ready.kernel.name, accelerator.name(), log.display());
        let boot = qemu::Boot { image: &ready.image, initramfs: &initramfs.0, log: &log, verbose: self.verbose };
        let mut outcome = boot.run(accelerator, self.limits)?;
        for _ in 0..MORE_BOOTS {
            let Some(blame) = emulators_fault(&outcome, accelerator) else { break };
            show_end(&log);
            println!("{}: {blame}; starting it once more", ready.kernel.name);
            outcome = boot.run(accelerator, self.limits)?;
        }
        Ok(report(ready.kernel, &outcome, &log))
    }

    /// Writes the initramfs: the init, its plan, and the modules.
    fn pack(&self, ready: &Ready<'_>, accelerator: Accelerator, binaries: &[Binary]) -> anyhow::Result<RemovedFile> {
        let init = &self.suite.init;
        let mut archive = Initramfs::default();
        archive.program("init", &fs::read(init).with_context(|| format!("read {}", init.display()))?);
        archive.file("plan.json", self.plan(ready, accelerator, binaries).to_string().as_bytes());
        archive.directory("modules");
        for module in &ready.modules {
            archive.file(&format!("modules/{}", module.file), &module.bytes);
        }
        let file = RemovedFile(self.directory.join(format!("{}.{}.cpio", ready.kernel.name, std::process::id())));
        fs::write(&file.0, archive.finish()).with_context(|| format!("write {}", file.0.display()))?;
        Ok(file)
    }

    /// What vm-tests/src/plan.rs reads.
    fn plan(&self, ready: &Ready<'_>, accelerator: Accelerator, binaries: &[Binary]) -> Value {
        let arguments: Vec<_> = LIBTEST.into_iter().chain(self.arguments.iter().map(String::as_str)).collect();
        let binaries = binaries.iter().map(|binary| {
            json!({ "name": binary.name, "path": binary.path, "args": arguments, "directory": binary.directory })
        });
        json!({
            "modules": ready.modules.iter().map(|module| &module.file).collect::<Vec<_>>(),
            "share": { "fstype": "9p", "tag": qemu::ROOT_TAG, "options": ROOT_OPTIONS },
            "env": {
                "PATH": std::env::var("PATH").unwrap_or_else(|_| "/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
                "HOME": "/root",
                "TERM": "dumb",
                suite::SIDECAR: self.suite.sidecar,
                suite::SLOWNESS: accelerator.slowness().to_string(),
                "VM_TESTS_KERNEL": ready.kernel.name,
                "VM_TESTS_PROGRAMS": ready.kernel.programs.join(" "),
            },
            "binaries": binaries.collect::<Vec<_>>(),
        })
    }
}

/// Boots after the first one that an emulator's own faults may cost.
const MORE_BOOTS: usize = 2;

/// What went wrong that neither the kernel nor the suite is to blame for, but the emulation of a machine with two CPUs.
fn emulators_fault(outcome: &Outcome, accelerator: Accelerator) -> Option<&'static str> {
    let hung = matches!(accelerator, Accelerator::Emulation) && outcome.console.ready.is_none();
    hung.then_some("hung before it had started its init")
}

/// Prints the verdict on a run.
fn report(kernel: &Kernel, outcome: &Outcome, log: &Path) -> Totals {
    let (totals, faults) = judge(kernel, outcome);
    if !faults.is_empty() {
        show_end(log);
    }
    outcome.console.reasons.lines().for_each(|line| println!("{line}"));
    for failure in &outcome.console.failures {
        println!("{}: failed {failure}", kernel.name);
    }
    for fault in &faults {
        println!("{}: {fault}", kernel.name);
    }
    if totals.failed > 0 {
        println!("{}: everything that was said is in {}", kernel.name, log.display());
    }
    for (case, reason) in &outcome.console.skips {
        println!("{}: skipped {case}: {reason}", kernel.name);
    }
    let release = outcome.console.ready.as_deref().unwrap_or("(did not boot)");
    let boot = outcome.boot.map_or_else(|| "-".to_owned(), |boot| format!("{:.1} s", boot.as_secs_f32()));
    println!(
        "test result: {}. kernel {release}; boot {boot}; {} passed; {} failed; {} skipped; finished in {:.1} s",
        if totals.failed == 0 { "ok" } else { "FAILED" },
        totals.passed,
        totals.failed,
        totals.skipped,
        outcome.total.as_secs_f32(),
    );
    totals
}

/// Shows the last lines of a console: what a hang or a panic came after.
fn show_end(log: &Path) {
    let console = fs::read(log).unwrap_or_default();
    let console = String::from_utf8_lossy(&console);
    let lines: Vec<_> = console.lines().collect();
    println!("---- the end of {} ----", log.display());
    lines[lines.len().saturating_sub(TAIL)..].iter().for_each(|line| println!("{line}"));
    println!("----");
}

/// Counts, and everything that is wrong beside failed tests.
fn judge(kernel: &Kernel, outcome: &Outcome) -> (Totals, Vec<String>) {
    let console = &outcome.console;
    let mut faults = console.faults.clone();
    let skipped: BTreeSet<&str> = console.skips.iter().map(|(case, _)| case.as_str()).collect();
    let undeclared = skipped.iter().filter(|case| !kernel.skip.contains_key(**case));
    faults.extend(undeclared.map(|case| format!("{case} was skipped, which vm-tests/kernels.toml does not allow")));
    if console.passed + console.failed == 0 {
        faults.push("no test ran".to_owned());
    }
    match console.success {
        None => faults.push("the init gave no verdict".to_owned()),
        Some(false) if console.failed == 0 && faults.is_empty() => faults.push("the init saw a failure".to_owned()),
        Some(_) => {}
    }
    // To libtest a test that skips itself has passed.
    let passed = console.passed.saturating_sub(skipped.len());
    // However many things are said about a run that went wrong beside its tests, it is one failure.
    let failed = console.failed + usize::from(!faults.is_empty());
    (Totals { passed, failed, skipped: skipped.len() }, faults)
}

/// Removed when dropped.
struct RemovedFile(PathBuf);

impl Drop for RemovedFile {
    fn drop(&mut self) {
        // It is below target/, and named for this process: one that stays is in nobody's way.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::console::Console;
    use super::{Accelerator, Kernel, Outcome, emulators_fault, judge};
    use std::time::Duration;

    #[test]
    fn only_an_emulator_is_to_blame_and_only_before_the_init() {
        let mut booted = outcome(&[]);
        assert!(emulators_fault(&booted, Accelerator::Emulation).is_some());
        assert!(emulators_fault(&booted, Accelerator::Kvm).is_none());
        booted.console.ready = Some("6.12".to_owned());
        assert!(emulators_fault(&booted, Accelerator::Emulation).is_none());
    }

    fn outcome(lines: &[&str]) -> Outcome {
        let mut console = Console::default();
        lines.iter().for_each(|line| console.line(line));
        Outcome { console, boot: None, total: Duration::ZERO }
    }

    const RESULT: &str = "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";

    #[test]
    fn a_run_passes_only_with_tests_a_verdict_and_declared_skips() {
        let kernel = Kernel {
            name: "6.1".to_owned(),
            suites: vec![],
            package: String::new(),
            modules: vec![],
            programs: vec![],
            skip: [("declared".to_owned(), "why".to_owned())].into(),
        };
        let table: [(&[&str], [usize; 3]); 6] = [
            (&[RESULT, "vm-tests: success"], [3, 0, 0]),
            (&[RESULT, "SKIP declared: x", "SKIP declared: x", "vm-tests: success"], [2, 0, 1]),
            (&[RESULT, "SKIP other: x", "vm-tests: success"], [2, 1, 1]),
            (&[RESULT], [3, 1, 0]),
            (&[RESULT, "vm-tests: failure"], [3, 1, 0]),
            (&["vm-tests: success"], [0, 1, 0]),
        ];
        for (lines, [passed, failed, skipped]) in table {
            let (totals, faults) = judge(&kernel, &outcome(lines));
            assert_eq!(
                (totals.passed, totals.failed, totals.skipped),
                (passed, failed, skipped),
                "{lines:?} {faults:?}"
            );
        }
    }
}
