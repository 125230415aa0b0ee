//! One virtual machine, from power-on to its last word.

use super::console::Console;
use crate::{interrupt, setup::qemu::Emulator};
use anyhow::Context as _;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// The tag under which the guest finds this machine's root directory.
pub(super) const ROOT_TAG: &str = "host";

/// How often a wait looks whether Ctrl-C was pressed.
const TICK: Duration = Duration::from_millis(200);

/// A boot takes about 2 s where KVM works.
const KVM_BOOT: Duration = Duration::from_secs(15);

/// How long a kernel may be silent before it starts the init: it needs a few seconds for the whole way.
const BOOT_SILENCE: Duration = Duration::from_secs(60);

/// How long a kernel that has said it is in trouble may be silent: long enough for the rest of its report.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Every feature that can be had but "enhanced rep movsb": with it the kernel copies byte by byte, which the emulator
/// does byte by byte. Without it there is no "fast short rep mov" either: a machine that claims only the latter is none
/// that exists, and Linux 6.1 copies nothing on it (arch/x86/lib/memmove_64.S) and never says a word.
///
/// And no AVX: programs would use it wherever they copy or encrypt, and the emulator takes twice as long for that as for the
/// same done with SSE.
const CPU: &str = "max,-erms,-fsrm,-avx,-avx2";

/// The kernel's command line. Warnings go to the console. A kernel in trouble stops at once instead of going on in
/// some state. The watchdogs are patient: under emulation a CPU may stand still because the host is busy.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 loglevel=5 panic=-1 oops=panic watchdog_thresh=60 \
    rcupdate.rcu_cpu_stall_timeout=120 mitigations=off random.trust_cpu=on";

/// How the guest's CPUs run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accelerator {
    Kvm,
    Emulation,
}

impl Accelerator {
    /// KVM if `machine` really runs with it. /dev/kvm may be there and openable, and QEMU abort or the guest hang at
    /// an instruction that the host cannot run for it: only a whole boot proves anything.
    pub(super) fn probe(machine: &Boot<'_>) -> anyhow::Result<Self> {
        if File::options().read(true).write(true).open("/dev/kvm").is_err() {
            return Ok(Self::Emulation);
        }
        let outcome = machine.run(Self::Kvm, Limits { total: KVM_BOOT, silence: KVM_BOOT })?;
        Ok(if outcome.console.success == Some(true) { Self::Kvm } else { Self::Emulation })
    }

    /// How many times slower than the host the guest is, roughly.
    pub(super) fn slowness(self) -> u32 {
        match self {
            Self::Kvm => 1,
            Self::Emulation => 8,
        }
    }

    /// What QEMU calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Emulation => "tcg",
        }
    }
}

/// How long a run may take.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// From power-on to the verdict.
    pub(super) total: Duration,
    /// Between two outputs.
    pub(super) silence: Duration,
}

/// What came of a run.
pub(super) struct Outcome {
    pub(super) console: Console,
    /// From power-on to the start of the first binary.
    pub(super) boot: Option<Duration>,
    pub(super) total: Duration,
}

/// A machine to boot.
pub(super) struct Boot<'a> {
    pub(super) image: &'a Path,
    pub(super) initramfs: &'a Path,
    /// Everything that the console said.
    pub(super) log: &'a Path,
    /// Show the console too.
    pub(super) verbose: bool,
}

impl Boot<'_> {
    /// Boots, and reads the console to its end or to a limit.
    pub(super) fn run(&self, accelerator: Accelerator, limits: Limits) -> anyhow::Result<Outcome> {
        let log = File::create(self.log).with_context(|| format!("create {}", self.log.display()))?;
        let mut machine = Machine::start(&mut self.command(accelerator)?)?;
        let output = machine.0.stdout.take().context("QEMU has no stdout")?;
        let mut reading = Reading::new(log, self.verbose);
        reading.follow(&pump(output), limits)?;
        machine.end();
        if reading.console.ready.is_none() {
            let mut complaint = String::new();
            let stderr = machine.0.stderr.as_mut().context("QEMU has no stderr")?;
            stderr.read_to_string(&mut complaint).context("read QEMU's stderr")?;
            reading.console.faults.extend(complaint.lines().map(str::to_owned));
        }
        Ok(reading.outcome())
    }

    fn command(&self, accelerator: Accelerator) -> anyhow::Result<Command> {
        let mut command = Emulator::find().context("QEMU is missing, or too old: run `cargo xtask setup`")?.command();
        command.args(["-accel", accelerator.name(), "-cpu", CPU, "-smp", "2", "-m", "2048M"]);
        command.args(["-no-reboot", "-display", "none", "-monitor", "none", "-serial", "stdio", "-nic", "none"]);
        let root = "local,path=/,security_model=none,readonly=on,multidevs=remap";
        command.arg("-virtfs").arg(format!("{root},mount_tag={ROOT_TAG}"));
        command.arg("-kernel").arg(self.image).arg("-initrd").arg(self.initramfs).args(["-append", KERNEL_ARGUMENTS]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(command)
    }
}

/// The console as it comes in.
struct Reading {
    console: Console,
    log: File,
    verbose: bool,
    /// The line whose end is not there yet.
    partial: Vec<u8>,
    started: Instant,
    boot: Option<Duration>,
}

impl Reading {
    fn new(log: File, verbose: bool) -> Self {
        let (console, partial) = (Console::default(), vec![]);
        Self { console, log, verbose, partial, started: Instant::now(), boot: None }
    }

    /// Reads until the console ends, or a limit, or the kernel is past help.
    fn follow(&mut self, chunks: &Receiver<Vec<u8>>, limits: Limits) -> anyhow::Result<()> {
        let mut heard = Instant::now();
        loop {
            interrupt::check()?;
            match chunks.recv_timeout(TICK) {
                Ok(chunk) => {
                    heard = Instant::now();
                    self.take(&chunk)?;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            let patience = match &self.console {
                Console { lost: true, .. } => LAST_WORDS,
                Console { ready: None, .. } => BOOT_SILENCE.min(limits.silence),
                _ => limits.silence,
            };
            if heard.elapsed() > patience {
                self.console.faults.push(format!("hung: no output for {} s", patience.as_secs()));
                return Ok(());
            }
            if self.started.elapsed() > limits.total {
                self.console.faults.push(format!("not done after {} s", limits.total.as_secs()));
                return Ok(());
            }
        }
    }

    fn take(&mut self, chunk: &[u8]) -> anyhow::Result<()> {
        self.log.write_all(chunk).context("write the console's log")?;
        if self.verbose {
            std::io::stdout().write_all(chunk).context("show the console")?;
        }
        for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if self.partial.ends_with(b"\n") {
                let line = String::from_utf8_lossy(&self.partial).trim_end().to_owned();
                self.console.line(&line);
                self.partial.clear();
            }
        }
        if self.boot.is_none() && self.console.ready.is_some() {
            self.boot = Some(self.started.elapsed());
        }
        Ok(())
    }

    fn outcome(self) -> Outcome {
        Outcome { console: self.console, boot: self.boot, total: self.started.elapsed() }
    }
}

/// Reads `output` on a thread of its own: waiting for it can then be bounded.
fn pump(mut output: ChildStdout) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        // The end of the output, a read error and a receiver that has gone all mean the same: there is no more to do.
        while let Ok(length @ 1..) = output.read(&mut buffer) {
            if sender.send(buffer[..length].to_vec()).is_err() {
                break;
            }
        }
    });
    receiver
}

/// A running QEMU; killed when dropped, and by the kernel when this process dies without dropping it.
struct Machine(Child);

impl Machine {
    fn start(command: &mut Command) -> anyhow::Result<Self> {
        // SAFETY: prctl is async-signal-safe and touches no memory of this process.
        unsafe {
            command.pre_exec(|| nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).map_err(Into::into));
        }
        let child = command.spawn().context("start QEMU")?;
        Ok(Self(child))
    }

    fn end(&mut self) {
        // Both fail only for a process that has been waited for, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end();
    }
}
