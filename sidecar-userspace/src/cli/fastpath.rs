//! `sidecar fastpath …`: ask a running sidecar about its fast path, and switch it.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    os::unix::{fs::MetadataExt as _, net::UnixStream},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use super::{
    answer::{DONE, FAILED, fail, say},
    config::SourceArgs,
};
use crate::config::Config;

/// Ask about the fast path, and switch it.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum FastPathCommand {
    /// Say whether it is on, and what the probe found.
    Status(SourceArgs),
    /// Let what applications send go past TCP.
    On(SourceArgs),
    /// Let every byte go by TCP from the next message on, so that tcpdump sees it. Loses nothing.
    Off(SourceArgs),
}

impl FastPathCommand {
    /// Where the configuration is that names the pod or the socket.
    pub(super) fn sources(&self) -> &SourceArgs {
        let (Self::Status(sources) | Self::On(sources) | Self::Off(sources)) = self;
        sources
    }
}

/// Asks the sidecar of this configuration's pod.
pub(super) fn run(command: &FastPathCommand, config: &Config) -> ExitCode {
    let (method, target) = match command {
        FastPathCommand::Status(_) => ("GET", "/fastpath"),
        FastPathCommand::On(_) => ("POST", "/fastpath?switch=on"),
        FastPathCommand::Off(_) => ("POST", "/fastpath?switch=off"),
    };
    let path = match socket(config) {
        Ok(path) => path,
        Err(error) => return fail(format_args!("the pod's network namespace: {error}; set pod.netns"), FAILED),
    };
    match ask(&path, method, target) {
        Ok((200, body)) => say(&body, DONE, FAILED),
        Ok((_, body)) => fail(body.trim_end(), FAILED),
        Err(error) => fail(
            format_args!(
                "{}: {error}; is a sidecar running there? --set telemetry.admin_socket=PATH or --set pod.netns=PATH name another",
                path.display()
            ),
            FAILED,
        ),
    }
}

/// Where the sidecar of the pod serves its admin interface.
fn socket(config: &Config) -> io::Result<PathBuf> {
    let netns = config.pod.netns.as_deref().unwrap_or(Path::new("/proc/self/ns/net"));
    Ok(crate::admin::socket::path(&config.telemetry, fs::metadata(netns)?.ino()))
}

/// Status and body of the answer.
fn ask(path: &Path, method: &str, target: &str) -> io::Result<(u16, String)> {
    /// The sidecar answers in microseconds, or hangs.
    const PATIENCE: Duration = Duration::from_secs(5);
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // HTTP/1.0 keeps the answer free of chunks.
    write!(stream, "{method} {target} HTTP/1.0\r\nHost: sidecar\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    parse(&answer).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "what answers there does not speak HTTP"))
}

fn parse(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_a_status_and_a_body() {
        assert_eq!(parse("HTTP/1.0 200 OK\r\na: b\r\n\r\non\n"), Some((200, "on\n".to_owned())));
        assert_eq!(parse("HTTP/1.1 409 Conflict\r\n\r\n"), Some((409, String::new())));
        for wrong in ["", "SSH-2.0\r\n\r\n", "HTTP/1.0 200 OK\r\n", "HTTP/1.0 ok\r\n\r\n"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
