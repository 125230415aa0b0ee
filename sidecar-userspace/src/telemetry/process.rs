//! Figures of the sidecar's processes. The worker's own go by the names that every Prometheus client library gives them; those
//! of both processes have names of the sidecar's, told apart by a label.
//!
//! Read from `/proc` at each scrape and rendered here: CPU time is a counter with a fraction, which the `metrics` crate
//! does not have. A figure that cannot be read is left out. The worker may not look at its supervisor, which tells it.

use std::{fmt::Write, fs, sync::OnceLock};

use nix::unistd::{SysconfVar, sysconf};

/// What a process takes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// User and system CPU time, in seconds.
    pub cpu: Option<f64>,
    /// Resident memory, in bytes.
    pub resident: Option<f64>,
    /// What of it no file backs, in bytes.
    pub anonymous: Option<f64>,
    /// Threads.
    pub threads: Option<f64>,
    /// Open file descriptors.
    pub descriptors: Option<f64>,
}

impl Usage {
    /// What this process takes now.
    pub fn now() -> Self {
        let status = read("/proc/self/status");
        Self {
            cpu: stat_field(13).zip(stat_field(14)).map(|(user, system)| (user + system) / ticks_per_second()),
            resident: kib(&status, "VmRSS:"),
            anonymous: kib(&status, "RssAnon:"),
            threads: first_number(&status, "Threads:"),
            descriptors: open_fds(),
        }
    }
}

/// Appends the figures in Prometheus' text format; `supervisor` has been told by it, if it has.
pub(super) fn render(text: &mut String, supervisor: Option<Usage>) {
    let own = Usage::now();
    let figures = [
        ("process_cpu_seconds_total", "counter", "User and system CPU time spent.", own.cpu),
        ("process_resident_memory_bytes", "gauge", "Resident memory.", own.resident),
        ("process_anonymous_memory_bytes", "gauge", "Resident memory not backed by files.", own.anonymous),
        ("process_virtual_memory_bytes", "gauge", "Virtual memory.", kib(&read("/proc/self/status"), "VmSize:")),
        ("process_threads", "gauge", "Threads.", own.threads),
        ("process_open_fds", "gauge", "Open file descriptors.", own.descriptors),
        ("process_max_fds", "gauge", "Limit of open file descriptors.", max_fds()),
        ("process_start_time_seconds", "gauge", "Start time since the Unix epoch.", start_time()),
    ];
    for (name, kind, help, value) in figures {
        if let Some(value) = value {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        }
    }
    render_both(text, own, supervisor.unwrap_or_default());
}

fn render_both(text: &mut String, worker: Usage, supervisor: Usage) {
    let of = |figure: fn(Usage) -> Option<f64>| [("worker", figure(worker)), ("supervisor", figure(supervisor))];
    for (name, kind, help, values) in [
        ("cpu_seconds_total", "counter", "User and system CPU time spent, by process.", of(|usage| usage.cpu)),
        ("resident_memory_bytes", "gauge", "Resident memory, by process.", of(|usage| usage.resident)),
        ("anonymous_memory_bytes", "gauge", "Resident memory not backed by files, by process.", of(|u| u.anonymous)),
        ("threads", "gauge", "Threads, by process.", of(|usage| usage.threads)),
        ("open_fds", "gauge", "Open file descriptors, by process.", of(|usage| usage.descriptors)),
    ] {
        let _ = writeln!(text, "# HELP sidecar_process_{name} {help}\n# TYPE sidecar_process_{name} {kind}");
        for (process, value) in values {
            if let Some(value) = value {
                let _ = writeln!(text, "sidecar_process_{name}{{process=\"{process}\"}} {value}");
            }
        }
        text.push('\n');
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// A field of `/proc/self/stat`, counted from zero. The name in parentheses may hold spaces, so counting begins after it.
fn stat_field(index: usize) -> Option<f64> {
    let stat = read("/proc/self/stat");
    let (_, after_name) = stat.rsplit_once(") ")?;
    after_name.split(' ').nth(index - 2)?.parse().ok()
}

fn first_number(file: &str, key: &str) -> Option<f64> {
    file.lines().find_map(|line| line.strip_prefix(key))?.split_whitespace().next()?.parse().ok()
}

fn kib(status: &str, key: &str) -> Option<f64> {
    Some(first_number(status, key)? * 1024.0)
}

/// The directory handle that counts is not counted.
fn open_fds() -> Option<f64> {
    Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as f64)
}

/// The soft limit; `unlimited` is left out.
fn max_fds() -> Option<f64> {
    first_number(&read("/proc/self/limits"), "Max open files")
}

/// Asked once: it does not change, and the kernel's list of interrupts in `/proc/stat` is long.
fn start_time() -> Option<f64> {
    static START: OnceLock<Option<f64>> = OnceLock::new();
    *START.get_or_init(|| Some(first_number(&read("/proc/stat"), "btime ")? + stat_field(21)? / ticks_per_second()))
}

fn ticks_per_second() -> f64 {
    /// `USER_HZ` of every Linux architecture in use.
    const USER_HZ: i64 = 100;
    sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(USER_HZ) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{SystemTime, UNIX_EPOCH};

    fn figure(text: &str, name: &str) -> f64 {
        first_number(text, &format!("{name} ")).unwrap_or_else(|| panic!("{name} is missing in\n{text}"))
    }

    #[test]
    fn figures_agree_with_what_the_test_knows_of_itself() {
        let mut text = String::new();
        let supervisor = Usage { cpu: Some(0.5), anonymous: Some(1e6), ..Usage::default() };
        render(&mut text, Some(supervisor));
        assert!(figure(&text, "process_resident_memory_bytes") > 1e6);
        assert!(figure(&text, "process_anonymous_memory_bytes") < figure(&text, "process_resident_memory_bytes"));
        assert!(figure(&text, "process_threads") >= 1.0);
        assert!(figure(&text, "process_open_fds") >= 3.0);
        assert!(figure(&text, "process_max_fds") >= figure(&text, "process_open_fds"));
        assert!(figure(&text, "process_cpu_seconds_total") < 600.0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        assert_eq!(figure(&text, "sidecar_process_cpu_seconds_total{process=\"supervisor\"}"), 0.5);
        assert_eq!(figure(&text, "sidecar_process_anonymous_memory_bytes{process=\"supervisor\"}"), 1e6);
        assert!(figure(&text, "sidecar_process_threads{process=\"worker\"}") >= 1.0);
        assert!(!text.contains("sidecar_process_threads{process=\"supervisor\"}"), "it is not known");
        let age = now - figure(&text, "process_start_time_seconds");
        assert!((-2.0..3600.0).contains(&age), "{age}");
    }
}
