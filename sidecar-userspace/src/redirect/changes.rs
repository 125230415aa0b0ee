//! Whether connections have come or gone in a network namespace, for the price of a read: the kernel's own counters of it.
//!
//! The table of all sockets has one place for all namespaces of a node, and to look into it is to walk all of it.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    sync::atomic::{AtomicU64, Ordering},
};

/// The counters of TCP of the network namespace in which it was opened (`/proc/net/snmp`, RFC 4022: net/ipv4/proc.c).
pub(super) struct Changes {
    counters: Option<File>,
    last: Option<Counted>,
    unchanged: u32,
}

/// What changes with every connection that is opened, and with every one that ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counted {
    /// `ActiveOpens`, but for the probes of this process.
    active: u64,
    /// `PassiveOpens`, likewise.
    passive: u64,
    /// `CurrEstab`: open now.
    open: u64,
}

/// Times in a row that nothing may be said to have changed: two changes might have been each other's opposite.
const MOST_UNCHANGED: u32 = 11;

/// Connections that this process made to itself, to see whether its programs run.
static PROBES: AtomicU64 = AtomicU64::new(0);

/// A probe has connected.
pub(super) fn count_probe() {
    PROBES.fetch_add(1, Ordering::Relaxed);
}

impl Changes {
    /// Counts what comes and goes from here on. Where the kernel does not tell, something always has.
    pub(super) fn here() -> Self {
        Self { counters: File::open("/proc/thread-self/net/snmp").ok(), last: None, unchanged: 0 }
    }

    /// Whether a connection may have come or gone since the last call.
    pub(super) fn any(&mut self) -> bool {
        let now = self.counted();
        let same = now.is_some() && now == self.last && self.unchanged < MOST_UNCHANGED;
        self.last = now;
        self.unchanged = if same { self.unchanged + 1 } else { 0 };
        !same
    }

    fn counted(&self) -> Option<Counted> {
        /// Twice what there is in Linux 7.
        const ROOM: usize = 4096;
        let mut text = [0; ROOM];
        let length = self.counters.as_ref()?.read_at(&mut text, 0).ok()?;
        let counted = parse(str::from_utf8(&text[..length]).ok()?)?;
        let probes = PROBES.load(Ordering::Relaxed);
        Some(Counted {
            active: counted.active.wrapping_sub(probes),
            passive: counted.passive.wrapping_sub(probes),
            ..counted
        })
    }
}

/// Two lines that begin with `Tcp:`: names, and values in the same order.
fn parse(text: &str) -> Option<Counted> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let value = |wanted| {
        let place = names.split_whitespace().position(|name| name == wanted)?;
        values.split_whitespace().nth(place)?.parse().ok()
    };
    Some(Counted { active: value("ActiveOpens")?, passive: value("PassiveOpens")?, open: value("CurrEstab")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_counters_are_found_by_their_names() {
        let text = "Ip: Forwarding\nIp: 1\nTcp: RtoMin MaxConn PassiveOpens ActiveOpens CurrEstab InSegs\nTcp: 200 -1 7 5 3 9\n";
        assert_eq!(parse(text), Some(Counted { active: 5, passive: 7, open: 3 }));
        for other in ["", "Tcp: ActiveOpens PassiveOpens CurrEstab\n", "Tcp: ActiveOpens CurrEstab\nTcp: 1 2\n"] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn the_running_kernel_counts_what_is_opened_and_what_ends() {
        std::thread::spawn(|| {
            // A namespace of its own, in which nobody else opens anything.
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            assert!(std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
            let mut changes = Changes::here();
            assert!(changes.any(), "nothing is known before");
            assert!(!changes.any());
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            assert!(!changes.any(), "a listener is no connection");
            let connection = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            assert!(changes.any());
            assert!(!changes.any());
            drop(connection);
            assert!(changes.any());
            assert!((0..MOST_UNCHANGED).all(|_| !changes.any()));
            assert!(changes.any(), "nobody is believed for ever");
        })
        .join()
        .unwrap();
    }
}
