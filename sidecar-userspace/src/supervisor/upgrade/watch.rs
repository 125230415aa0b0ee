//! The process that stands by while a new binary takes over in the place of the one before, which then has no process of its own:
//! if the new one hangs, crashes or exits, it is made to execute the one before again, in the same process, with all that it holds.
//!
//! It is a child of the supervisor, of the binary before, and traces its parent (ptrace(2)) from just before the execve(2) until the
//! new binary ends it, which it does when everything has gone well. Where it may not trace, all that it can do is to end the
//! supervisor, so that whoever started the sidecar starts it again.

use std::{
    io::{self, Write as _},
    os::fd::AsFd,
    process::ExitCode,
    sync::mpsc,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        prctl::set_pdeathsig,
        ptrace::{self, Options},
        signal::{Signal, kill},
    },
    unistd::{Pid, getppid},
};

use super::{
    state::State,
    tracee::{Caller, News, Stop, Tracee},
};

/// The subcommand; its argument is the time in milliseconds that the new binary may take.
pub const COMMAND: &str = "stand-by";

/// What it says when it traces.
pub(super) const READY: &[u8] = b".";

/// After it was asked to stop a process stops at once, unless it waits for what cannot be interrupted.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Signals by which a program that does what it must not is ended.
const CRASHES: [Signal; 7] =
    [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE, Signal::SIGABRT, Signal::SIGSYS, Signal::SIGTRAP];

/// Stands by. Standard input is the [`State`] that the one before is to go on with.
pub fn stand_by(patience: Duration) -> ExitCode {
    let supervisor = getppid();
    let until = Instant::now() + patience;
    let traced = seize_soon(supervisor);
    // Nobody reads it any more, or nobody would end this process: then there is nothing to stand by for.
    let told = set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from);
    if told.and_then(|()| io::stdout().write_all(READY)).and_then(|()| io::stdout().flush()).is_err() {
        return ExitCode::FAILURE;
    }
    let traced = traced.or_else(|_| {
        // A process that has its capabilities from its file may be traced when it has executed another.
        std::thread::sleep(patience);
        Tracee::seize(supervisor)
    });
    let failed = traced.and_then(|tracee| watch(tracee, until, patience));
    let given_back = failed.and_then(|failed| match failed {
        Some((caller, why)) => give_back(&caller, &why).and_then(|()| caller.release()),
        None => Ok(()),
    });
    let Err(error) = given_back else { return ExitCode::SUCCESS };
    // From here on this process is to outlive the other.
    let _ = set_pdeathsig(None);
    let end = end(supervisor);
    say(format!("the new binary has not taken over, and cannot be made to give back what it holds ({error}): {end}\n"));
    ExitCode::FAILURE
}

/// On standard error, if somebody reads it: with the end of this process that of the supervisor may be due.
fn say(words: String) {
    const PATIENCE: Duration = Duration::from_secs(1);
    let (said, done) = mpsc::channel();
    std::thread::spawn(move || {
        let _ = io::stderr().write_all(words.as_bytes());
        let _ = said.send(());
    });
    let _ = done.recv_timeout(PATIENCE);
}

/// Ends it, and says how. Nobody may kill the first process of a PID namespace from within it, but the kernel does when whoever traces
/// it ends (`PTRACE_O_EXITKILL`), if that was said while it stood still.
fn end(supervisor: Pid) -> String {
    let goes_with_this = ptrace::setoptions(supervisor, Options::PTRACE_O_EXITKILL).is_ok();
    let _ = kill(supervisor, Signal::SIGKILL);
    if supervisor == Pid::from_raw(1) && !goes_with_this {
        return "as the first process of its PID namespace it cannot be ended from here: restart its container"
            .to_owned();
    }
    format!("process {supervisor} is killed, and the sidecar is to be started again")
}

/// Waits until something goes wrong, and says what; `None`: the supervisor has ended otherwise.
fn watch(tracee: Tracee, until: Instant, patience: Duration) -> io::Result<Option<(Caller, String)>> {
    let late = || {
        format!("it had not taken over after {patience:?}; is the machine short of CPU? Give it more with --timeout")
    };
    loop {
        let stop = match tracee.wait(until)? {
            News::Gone => return Ok(None),
            News::Nothing => {
                let Some(stop) = stopped(&tracee)? else { return Ok(None) };
                stop
            }
            News::Stopped(stop) => stop,
        };
        let why = match stop {
            // Looked at here too: one that makes one call after the other may always be found at a stop.
            _ if Instant::now() >= until => {
                if State::is_nothing(io::stdin().as_fd())? {
                    // It is still the binary before, which was slow to begin, and goes on.
                    return tracee.release().map(|()| None);
                }
                late()
            }
            Stop::Enters(call) if ends(call) => "it was about to exit by itself, before it had taken over".to_owned(),
            Stop::Gets(signal) => {
                let crash = CRASHES.into_iter().find(|crash| *crash as i32 == signal);
                let Some(crash) = crash else {
                    tracee.go_on(Some(signal))?;
                    continue;
                };
                format!("it was about to be ended by {crash}")
            }
            Stop::Enters(_) | Stop::Leaves | Stop::Asked => {
                tracee.go_on(None)?;
                continue;
            }
        };
        return Ok(Some((Caller::new(tracee, stop)?, why)));
    }
}

fn ends(call: u64) -> bool {
    [libc::SYS_exit_group, libc::SYS_exit].contains(&call.cast_signed())
}

/// Stops it now; `None`: it has ended.
fn stopped(tracee: &Tracee) -> io::Result<Option<Stop>> {
    tracee.ask_to_stop()?;
    match tracee.wait(Instant::now() + STOP_LIMIT)? {
        News::Stopped(stop) => Ok(Some(stop)),
        News::Gone => Ok(None),
        News::Nothing => Err(io::Error::other("it waits for what cannot be interrupted")),
    }
}

/// Traces it. The kernel may refuse that until the parent has allowed it (`PR_SET_PTRACER`), which it does when this process is there.
fn seize_soon(supervisor: Pid) -> io::Result<Tracee> {
    const PATIENCE: Duration = Duration::from_millis(100);
    const PAUSE: Duration = Duration::from_millis(1);
    let asked = Instant::now();
    loop {
        match Tracee::seize(supervisor) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && asked.elapsed() < PATIENCE => {
                std::thread::sleep(PAUSE);
            }
            outcome => return outcome,
        }
    }
}

/// Has the new binary execute the one before.
fn give_back(caller: &Caller, why: &str) -> io::Result<()> {
    let (state, memory) = State::of_the_one_before(io::stdin().as_fd(), why)?;
    for descriptor in state.descriptors() {
        // One that the new binary has closed the one before will miss.
        let _ = caller.call(libc::SYS_fcntl, [descriptor as u64, libc::F_SETFD as u64, 0, 0, 0, 0]);
    }
    let line =
        [format!("/proc/self/fd/{}", state.own), "sidecar".to_owned(), super::TAKE_OVER.to_owned(), memory.to_string()];
    let environment = std::fs::read("/proc/self/environ")?;
    let block = Block::of(&line.map(String::into_bytes), &environment);
    let at = caller.give(block.length(), |at| block.bytes(at))?;
    let [arguments, variables] = block.arrays(at);
    caller.call(libc::SYS_execve, [at, arguments, variables, 0, 0, 0]).map(drop)
}

/// Strings and what points to them, as execve(2) wants them: the path first, then arguments, then the environment.
struct Block {
    strings: Vec<u8>,
    /// Where each string begins; the path is no argument.
    arguments: Vec<usize>,
    variables: Vec<usize>,
}

impl Block {
    fn of(line: &[Vec<u8>], environment: &[u8]) -> Self {
        let mut block = Self { strings: Vec::new(), arguments: Vec::new(), variables: Vec::new() };
        block.arguments = line.iter().map(|word| block.add(word)).collect();
        block.arguments.remove(0);
        let variables = environment.split(|byte| *byte == 0).filter(|variable| !variable.is_empty());
        block.variables = variables.map(|variable| block.add(variable)).collect();
        // Pointers are aligned.
        block.strings.resize(block.strings.len().next_multiple_of(8), 0);
        block
    }

    fn add(&mut self, string: &[u8]) -> usize {
        let at = self.strings.len();
        self.strings.extend_from_slice(string);
        self.strings.push(0);
        at
    }

    fn length(&self) -> usize {
        self.strings.len() + 8 * (self.arguments.len() + self.variables.len() + 2)
    }

    /// Where the two arrays of pointers are if it lies there.
    fn arrays(&self, at: u64) -> [u64; 2] {
        let arguments = at + self.strings.len() as u64;
        [arguments, arguments + 8 * (self.arguments.len() as u64 + 1)]
    }

    fn bytes(&self, at: u64) -> Vec<u8> {
        let mut bytes = self.strings.clone();
        for strings in [&self.arguments, &self.variables] {
            let pointers = strings.iter().map(|offset| at + *offset as u64).chain([0]);
            bytes.extend(pointers.flat_map(u64::to_ne_bytes));
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_points_to_its_strings_wherever_it_lies() {
        let block = Block::of(&["path", "one", "two"].map(|word| word.as_bytes().to_vec()), b"A=1\0B=22\0");
        let at = 0x1000;
        let bytes = block.bytes(at);
        assert_eq!(bytes.len(), block.length());
        let string = |pointer: u64| {
            let rest = &bytes[usize::try_from(pointer - at).unwrap()..];
            String::from_utf8_lossy(rest.split(|byte| *byte == 0).next().unwrap()).into_owned()
        };
        let array = |start: u64| -> Vec<String> {
            let words = bytes[usize::try_from(start - at).unwrap()..].chunks_exact(8);
            let pointers = words.map(|word| u64::from_ne_bytes(word.try_into().unwrap()));
            pointers.take_while(|pointer| *pointer != 0).map(string).collect()
        };
        let [arguments, variables] = block.arrays(at);
        assert_eq!(
            (string(at), array(arguments), array(variables)),
            ("path".into(), vec!["one".into(), "two".into()], vec!["A=1".into(), "B=22".into()])
        );
    }
}
