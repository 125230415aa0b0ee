//! `sidecar wait`: blocks until the sidecar of this pod carries connections.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use super::{
    answer::{DONE, FAILED, fail},
    config::SourceArgs,
};
use crate::{config, config::Config, pod};

/// Arguments of `sidecar wait`.
#[derive(Clone, Debug, clap::Args)]
pub struct WaitArgs {
    /// The configuration of the sidecar to wait for: its health endpoint, and its network namespace.
    #[command(flatten)]
    pub sources: SourceArgs,
    /// Give up after this time, such as `500ms` or `2m`.
    #[arg(long, default_value = "30s", value_parser = timeout)]
    timeout: Duration,
}

fn timeout(text: &str) -> Result<Duration, String> {
    config::time(text).ok_or_else(|| "expected a time with its unit, such as `30s`".to_owned())
}

/// Between two questions. A port that nobody listens on refuses at once, and costs microseconds.
const ASK_EVERY: Duration = Duration::from_millis(10);

/// Waits until the health endpoint says ready: any process of the pod may ask it, and needs no right for that.
pub fn run(args: &WaitArgs, config: &Config) -> ExitCode {
    if let Some(path) = &config.pod.netns
        && let Err(error) = pod::enter_netns(path)
    {
        return fail(error, FAILED);
    }
    let deadline = Instant::now() + args.timeout;
    let address = within_pod(config.telemetry.health);
    loop {
        let missing = match ask(address, deadline) {
            Ok(Health::Ready) => return ExitCode::from(DONE),
            Ok(Health::Unready(why)) => why,
            Err(error) => format!(
                "no sidecar answers at {address}: {error}; is one being started in this pod (telemetry.health says where it answers)?"
            ),
        };
        if Instant::now() + ASK_EVERY >= deadline {
            return fail(format_args!("not ready after {:?}: {missing}", args.timeout), FAILED);
        }
        thread::sleep(ASK_EVERY);
    }
}

/// Where it answers to the pod itself, if it listens everywhere.
fn within_pod(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        // A socket at `::` answers there as well, and the pod may have no IPv6.
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) | IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        certain => certain,
    };
    SocketAddr::new(ip, address.port())
}

enum Health {
    Ready,
    /// What is missing.
    Unready(String),
}

fn ask(address: SocketAddr, deadline: Instant) -> io::Result<Health> {
    /// The least time that a question gets, and the most.
    const BOUNDS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
    let left = deadline.saturating_duration_since(Instant::now()).clamp(BOUNDS.0, BOUNDS.1);
    let mut stream = TcpStream::connect_timeout(&address, left)?;
    stream.set_read_timeout(Some(left))?;
    // HTTP/1.0 keeps the answer free of chunks, and ends it with the connection.
    stream.write_all(b"GET /healthz/ready HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    match head.split(' ').nth(1) {
        Some("200") => Ok(Health::Ready),
        Some("503") => Ok(Health::Unready(body.trim().replace('\n', "; "))),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("not a sidecar's health: {}", head.trim()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sidecar_that_listens_everywhere_is_asked_on_loopback() {
        for (listens, asked) in [
            ("[::]:15021", "127.0.0.1:15021"),
            ("0.0.0.0:80", "127.0.0.1:80"),
            ("[::1]:15021", "[::1]:15021"),
            ("10.0.0.1:15021", "10.0.0.1:15021"),
        ] {
            assert_eq!(within_pod(listens.parse().unwrap()), asked.parse().unwrap(), "{listens}");
        }
    }
}
