//! What the process may do.

use std::fs;

/// What loading and attaching need, with the numbers of capabilities(7). `CAP_PERFMON` spares programs the restrictions
/// on pointer arithmetic that guard against speculation, which compiled code does not keep to.
const NEEDED: [(&str, u32); 3] = [("CAP_BPF", 39), ("CAP_NET_ADMIN", 12), ("CAP_PERFMON", 38)];
/// `CAP_SYS_ADMIN` stands for what was split off from it in Linux 5.8.
const SYS_ADMIN: u32 = 21;
/// What it stands for.
const SPLIT_OFF: [&str; 2] = ["CAP_BPF", "CAP_PERFMON"];

/// The capabilities that loading and attaching need and that this process does not have.
pub fn missing_capabilities() -> Vec<&'static str> {
    let Some(effective) = fs::read_to_string("/proc/self/status").ok().as_deref().and_then(effective) else {
        // Without /proc the kernel's own answers will have to do.
        return Vec::new();
    };
    missing(effective)
}

fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn missing(effective: u64) -> Vec<&'static str> {
    let holds = |capability: u32| effective & (1 << capability) != 0;
    let held = |(name, number): &(&str, u32)| holds(*number) || (SPLIT_OFF.contains(name) && holds(SYS_ADMIN));
    NEEDED.iter().filter(|needed| !held(needed)).map(|(name, _)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_missing_capability_is_named() {
        for (status, expected) in [
            ("CapEff:\t000001ffffffffff", &[][..]),
            ("CapEff:\t0000000000201000", &[]), // NET_ADMIN and SYS_ADMIN
            ("CapEff:\t000000c000001000", &[]), // NET_ADMIN, PERFMON, BPF
            ("CapEff:\t0000008000001000", &["CAP_PERFMON"]),
            ("CapEff:\t0000004000001000", &["CAP_BPF"]),
            ("CapEff:\t000000c000000000", &["CAP_NET_ADMIN"]),
            ("CapEff:\t0000000000000000", &["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]),
        ] {
            assert_eq!(missing(effective(status).unwrap()), expected, "{status}");
        }
    }
}
