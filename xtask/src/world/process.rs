//! A process of a pod: its output goes to a file, and it does not outlive this value.

use super::{
    folder::Folder,
    pod::{Place, Pod},
    wait,
};
use crate::interrupt;
use anyhow::{Context, Result, anyhow, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, ExitStatus},
    time::{Duration, Instant},
};

/// A running process.
pub(crate) struct Process {
    name: String,
    child: Child,
    output: PathBuf,
    errors: PathBuf,
}

impl Process {
    /// Starts a program in a pod. `name` names it in messages, and its output in the world's folder.
    pub(crate) fn start<A: AsRef<OsStr>>(
        pod: &Pod,
        place: Place,
        folder: &Folder,
        name: &str,
        line: &[A],
    ) -> Result<Self> {
        interrupt::check()?;
        let (program, args) = line.split_first().ok_or_else(|| anyhow!("{name} has no program"))?;
        let [output, errors] = ["out", "err"].map(|kind| folder.path().join(format!("{name}.{kind}")));
        let open = |path| File::create(path).with_context(|| format!("cannot make the output of {name}"));
        let mut command = pod.command(place, program)?;
        command.args(args).stdout(open(&output)?).stderr(open(&errors)?);
        let child = command.spawn().with_context(|| format!("cannot start {}", program.as_ref().display()))?;
        Ok(Self { name: name.to_owned(), child, output, errors })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its process id, and those of its children: the sidecar is a supervisor and its worker.
    pub(crate) fn pids(&self) -> Vec<u32> {
        [vec![self.pid()], children(self.pid())].concat()
    }

    /// What it has written to standard output so far.
    pub(crate) fn output(&self) -> Result<String> {
        fs::read_to_string(&self.output).with_context(|| format!("cannot read {}", self.output.display()))
    }

    /// The file with that.
    pub(crate) fn output_path(&self) -> &Path {
        &self.output
    }

    /// The last lines of everything it has written.
    pub(crate) fn last_words(&self) -> String {
        let read = |path: &PathBuf| fs::read_to_string(path).unwrap_or_default();
        let lines = [read(&self.output), read(&self.errors)].concat();
        let lines: Vec<_> = lines.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    /// Fails when it has ended, with what it wrote.
    pub(crate) fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait().with_context(|| format!("cannot wait for {}", self.name))? {
            bail!("{} ended by itself ({status}):\n{}", self.name, self.last_words());
        }
        Ok(())
    }

    /// Asks again and again until there is an answer, as long as the process lives.
    pub(crate) fn until<T>(
        &mut self,
        limit: Duration,
        what: &str,
        mut ask: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let end = Instant::now() + limit;
        loop {
            if let Some(answer) = ask()? {
                return Ok(answer);
            }
            self.check()?;
            if Instant::now() >= end {
                bail!("{}: {what} did not come within {limit:?}; its last words:\n{}", self.name, self.last_words());
            }
            wait::pause(wait::STEP)?;
        }
    }

    /// The lines of its output so far.
    pub(crate) fn lines(&self) -> Result<Vec<String>> {
        complete_lines(&self.output)
    }

    /// Waits for a line of its output that the closure accepts, leaving out the first `skip`.
    pub(crate) fn line(
        &mut self,
        skip: usize,
        limit: Duration,
        what: &str,
        accept: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let output = self.output.clone();
        self.until(limit, what, || Ok(complete_lines(&output)?.into_iter().skip(skip).find(|line| accept(line))))
    }

    /// Sends it a signal; one that kills goes to its children as well.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let children = if signal == Signal::SIGKILL { children(self.pid()) } else { Vec::new() };
        // The child has not been waited for, so its id cannot have gone to another process.
        kill(Pid::from_raw(self.pid().cast_signed()), signal)
            .with_context(|| format!("cannot send {signal} to {}", self.name))?;
        for child in children {
            // It may have ended with its parent.
            let _ = kill(Pid::from_raw(child.cast_signed()), signal);
        }
        Ok(())
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        let child = &mut self.child;
        wait::until(limit, &what, || child.try_wait().with_context(|| format!("cannot await {what}")))
    }

    /// Waits for its success and gives its output.
    pub(crate) fn finish(mut self, limit: Duration) -> Result<String> {
        let status = self.wait(limit)?;
        if !status.success() {
            bail!("{} failed ({status}):\n{}", self.name, self.last_words());
        }
        self.output()
    }

    /// Sends a signal and waits for the end without a pause between looks; says how it ended and how long that took.
    pub(crate) fn end(&mut self, signal: Signal, limit: Duration) -> Result<(ExitStatus, Duration)> {
        let sent = Instant::now();
        self.signal(signal)?;
        loop {
            if let Some(status) = self.child.try_wait().with_context(|| format!("cannot wait for {}", self.name))? {
                return Ok((status, sent.elapsed()));
            }
            if sent.elapsed() > limit {
                bail!("{} did not end within {limit:?} after {signal}", self.name);
            }
            interrupt::check()?;
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

/// The processes whose parent this is (proc_pid_stat(5): the second field after the name in parentheses).
fn children(parent: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
    let parent_of = |number: &u32| {
        let stat = fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
    };
    numbers.filter(|number| parent_of(number) == Some(parent)).collect()
}

/// A last line without its end is still being written.
fn complete_lines(path: &Path) -> Result<Vec<String>> {
    let output = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(output.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).map(str::to_owned).collect())
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to do, and no one to tell.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.signal(Signal::SIGKILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
