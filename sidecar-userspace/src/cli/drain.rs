//! `sidecar drain`: tells the sidecar of this pod to end as SIGTERM does, from wherever its admin socket can be reached.

use std::{
    fmt::Write as _,
    fs,
    io::{self, Read, Write as _},
    os::unix::{fs::MetadataExt, net::UnixStream},
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::Duration,
};

use serde::Deserialize;

use super::{
    answer::{DONE, FAILED, fail, say},
    config::SourceArgs,
};
use crate::{admin, config::Config};

/// Arguments of `sidecar drain`.
#[derive(Clone, Debug, clap::Args)]
pub struct DrainArgs {
    /// The configuration of the sidecar that is to end: where its admin socket is, and its network namespace.
    #[command(flatten)]
    pub sources: SourceArgs,
    /// Return when the drain has begun, and do not wait for its end.
    #[arg(long)]
    no_wait: bool,
}

/// What the sidecar says about itself.
#[derive(Debug, Deserialize)]
struct State {
    process: u32,
    stage: String,
    applications: Option<usize>,
    inbound: usize,
    outbound: usize,
    seconds_left: Option<f64>,
}

/// Time between two questions about what remains.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// A sidecar that does not answer for so long hangs.
const PATIENCE: Duration = Duration::from_secs(5);

/// Begins the drain, says what remains, and waits until the sidecar has gone.
pub fn run(args: &DrainArgs, config: &Config) -> ExitCode {
    let socket = match socket(config) {
        Ok(socket) => socket,
        Err(error) => return fail(error, FAILED),
    };
    let begun = match ask(&socket, "POST").and_then(|asked| begun(&socket, asked)) {
        Ok(Some(state)) => state,
        Ok(None) => return ended(),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return fail(hangs(&socket), FAILED),
        Err(error) => return fail(nobody(&socket, &error), FAILED),
    };
    if args.no_wait {
        return say(&begun.describe(), DONE, FAILED);
    }
    wait(&socket, begun)
}

/// What is said when the drain has begun, which is a moment after it was asked for; `None`: it has ended by then.
fn begun(socket: &Path, asked: State) -> io::Result<Option<State>> {
    /// Between two questions, and questions at most.
    const A_MOMENT: Duration = Duration::from_millis(10);
    const QUESTIONS: usize = 200;
    let mut state = asked;
    for _ in 0..QUESTIONS {
        if state.stage != "serving" {
            break;
        }
        thread::sleep(A_MOMENT);
        state = match ask(socket, "GET") {
            Ok(now) if now.process == state.process => now,
            Ok(_) => return Ok(None),
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
    }
    Ok(Some(state))
}

fn wait(socket: &Path, begun: State) -> ExitCode {
    let process = begun.process;
    let mut state = begun;
    let mut said = String::new();
    loop {
        let line = state.describe();
        if line != said {
            // A reader that has gone away wants no more lines; the exit code still counts.
            let _ = io::stdout().write_all(line.as_bytes());
            said = line;
        }
        thread::sleep(ASK_EVERY);
        state = match ask(socket, "GET") {
            // Another one has taken its place.
            Ok(now) if now.process != process => return ended(),
            Ok(now) => now,
            Err(error) if is_gone(&error) => return ended(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return fail(hangs(socket), FAILED),
            // It ended while it answered: the next question finds nobody.
            Err(_) => continue,
        };
    }
}

fn ended() -> ExitCode {
    say("ended\n", DONE, FAILED)
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

impl State {
    fn describe(&self) -> String {
        let mut line = match (self.stage.as_str(), self.applications) {
            ("serving", _) => "told to drain, and has not begun".to_owned(),
            ("open", _) => "draining: outbound has stopped".to_owned(),
            (_, Some(1)) => "draining: inbound has stopped; 1 application process".to_owned(),
            (_, Some(count)) => format!("draining: inbound has stopped; {count} application processes"),
            (_, None) => "draining: inbound has stopped; the pod's processes cannot be counted".to_owned(),
        };
        let _ = write!(line, ", {} inbound and {} outbound connections", self.inbound, self.outbound);
        if let Some(seconds) = self.seconds_left {
            let _ = write!(line, "; at most {seconds:.0} s");
        }
        line + "\n"
    }
}

fn nobody(socket: &Path, error: &io::Error) -> String {
    format!(
        "no sidecar answers at {}: {error}; is one running in this pod? Say which: run this in the pod's network namespace \
         (nsenter --net=…, kubectl exec), give --config FILE, or --set telemetry.admin_socket=PATH",
        socket.display()
    )
}

fn hangs(socket: &Path) -> String {
    format!(
        "the sidecar at {} has not answered for {PATIENCE:?}; SIGTERM twice, or SIGKILL, ends it at once",
        socket.display()
    )
}

/// The admin socket of the sidecar of this configuration.
pub(super) fn socket(config: &Config) -> Result<PathBuf, String> {
    let netns = config.pod.netns.as_deref().unwrap_or(Path::new("/proc/self/ns/net"));
    let inode = fs::metadata(netns).map_err(|error| format!("stat {}: {error}", netns.display()))?.ino();
    Ok(admin::socket::path(&config.telemetry, inode))
}

fn ask(socket: &Path, method: &str) -> io::Result<State> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // HTTP/1.0 keeps the answer free of chunks, and ends it with the connection.
    write!(stream, "{method} /drain HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let other = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{what}: {}", answer.trim_end()));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| other("not an HTTP answer"))?;
    if head.split(' ').nth(1) != Some("200") {
        return Err(other("it refuses"));
    }
    serde_json::from_str(body).map_err(|_| other("a sidecar of another version"))
}
