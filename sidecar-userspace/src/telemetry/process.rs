//! The process's own figures, under the names that every Prometheus client library gives them.
//!
//! Read from `/proc` at each scrape and rendered here: CPU time is a counter with a fraction, which the `metrics` crate
//! does not have. A figure that cannot be read is left out.

use std::{fmt::Write, fs, sync::OnceLock};

use nix::unistd::{SysconfVar, sysconf};

/// Appends the figures in Prometheus' text format.
pub(super) fn render(text: &mut String) {
    let status = read("/proc/self/status");
    let cpu = stat_field(13).zip(stat_field(14)).map(|(user, system)| (user + system) / ticks_per_second());
    let figures = [
        ("process_cpu_seconds_total", "counter", "User and system CPU time spent.", cpu),
        ("process_resident_memory_bytes", "gauge", "Resident memory.", kib(&status, "VmRSS:")),
        ("process_anonymous_memory_bytes", "gauge", "Resident memory not backed by files.", kib(&status, "RssAnon:")),
        ("process_virtual_memory_bytes", "gauge", "Virtual memory.", kib(&status, "VmSize:")),
        ("process_threads", "gauge", "Threads.", first_number(&status, "Threads:")),
        ("process_open_fds", "gauge", "Open file descriptors.", open_fds()),
        ("process_max_fds", "gauge", "Limit of open file descriptors.", max_fds()),
        ("process_start_time_seconds", "gauge", "Start time since the Unix epoch.", start_time()),
    ];
    for (name, kind, help, value) in figures {
        if let Some(value) = value {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        }
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
        render(&mut text);
        assert!(figure(&text, "process_resident_memory_bytes") > 1e6);
        assert!(figure(&text, "process_anonymous_memory_bytes") < figure(&text, "process_resident_memory_bytes"));
        assert!(figure(&text, "process_threads") >= 1.0);
        assert!(figure(&text, "process_open_fds") >= 3.0);
        assert!(figure(&text, "process_max_fds") >= figure(&text, "process_open_fds"));
        assert!(figure(&text, "process_cpu_seconds_total") < 600.0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let age = now - figure(&text, "process_start_time_seconds");
        assert!((-2.0..3600.0).contains(&age), "{age}");
    }
}
