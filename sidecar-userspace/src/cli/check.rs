//! `sidecar check`: what this machine and pod offer, a line for each thing, with the fix where one is needed.

use std::{fs, io::Write, net::SocketAddr, path::Path, process::ExitCode};

use crate::{
    config::{Acceleration, Config, OnFailure},
    net,
    pod::{self, Place},
    redirect::{self, Programs, Subflows, fast_path::Findings, missing_capabilities},
};

/// Exit code: something that the sidecar needs is missing.
const MISSING: u8 = 1;

/// Checks everything, prints the report, and fails if anything is missing.
pub fn run(config: &Config) -> ExitCode {
    let mut report = Report(Vec::new());
    report.inform("kernel", kernel_release());
    report.check("capabilities", capabilities());
    report.check("cgroup v2", pod::cgroup2_mount().map(|path| path.display().to_string()).map_err(|e| e.to_string()));
    match Place::find(&config.pod) {
        Ok(Place { cgroup, own, .. }) => {
            let own = own.map_or_else(
                || format!("{} (`sidecar run` would make it and move there)", cgroup.join("sidecar").display()),
                |own| own.display().to_string(),
            );
            report.check("pod cgroup", Ok(cgroup.display().to_string()));
            report.check("own cgroup", Ok(own));
        }
        Err(error) => report.check("pod cgroup", Err(error.to_string())),
    }
    if let Some(path) = &config.pod.netns {
        let entered = pod::enter_netns(path).map(|()| path.display().to_string());
        report.check("network namespace", entered.map_err(|error| error.to_string()));
    }
    if config.capture.on_failure == OnFailure::Closed {
        let pinning = redirect::can_pin().map(|()| "bpffs is mounted at /sys/fs/bpf".to_owned());
        report.check("bpffs", pinning.map_err(|error| error.to_string()));
    }
    for way in config.ways_past_strict() {
        report.warn("strict mutual TLS", way.to_owned());
    }
    for denial in config.denials_past_plaintext() {
        report.warn("authorization", denial);
    }
    if let Some(unbounded) = config.past_socket_buffer() {
        report.warn("memory limit", unbounded.to_owned());
    }
    let sizes = &config.capture.maps;
    match Programs::load(&config.capture, config.proxy.max_connections, false, None) {
        Ok(programs) => {
            report.check("eBPF programs", Ok("every program of the capture passes the verifier".to_owned()));
            report.inform("mesh discovery", discovery(&programs));
            report.inform("MPTCP clients", mptcp(programs.subflows(), config.mtls.outbound.any_strict()));
            fast_path(&mut report, programs, config.capture.acceleration);
        }
        Err(error) => report.check("eBPF programs", Err(error.to_string())),
    }
    report.inform(
        "map sizes",
        format!("flows {}, listeners {}, accelerated {}", sizes.flows, sizes.listeners, sizes.accelerated),
    );
    for (name, address) in ports(config) {
        let free = net::listen(address).map(|_| format!("{address} is free"));
        report.check(
            name,
            free.map_err(|error| format!("{address}: {error}; `ss -tlnp` names who has it, a running sidecar perhaps")),
        );
    }
    report.inform("kernel BTF", btf());
    report.finish()
}

struct Report(Vec<(&'static str, Line)>);

enum Line {
    Good(String),
    Bad(String),
    Note(String),
    Warning(String),
}

impl Report {
    fn check(&mut self, name: &'static str, outcome: Result<String, String>) {
        self.0.push((name, outcome.map_or_else(Line::Bad, Line::Good)));
    }

    fn inform(&mut self, name: &'static str, text: String) {
        self.0.push((name, Line::Note(text)));
    }

    fn warn(&mut self, name: &'static str, text: String) {
        self.0.push((name, Line::Warning(text)));
    }

    fn finish(self) -> ExitCode {
        let mut out = std::io::stdout().lock();
        let mut missing = 0;
        for (name, line) in &self.0 {
            let (mark, text) = match line {
                Line::Good(text) => ("ok", text),
                Line::Note(text) => ("-", text),
                Line::Warning(text) => ("WARN", text),
                Line::Bad(text) => {
                    missing += 1;
                    ("FAIL", text)
                }
            };
            // A reader that has gone away wants no more lines; the exit code still counts.
            let _ = writeln!(out, "{mark:<5} {name:<18} {text}");
        }
        if missing == 0 { ExitCode::SUCCESS } else { ExitCode::from(MISSING) }
    }
}

fn discovery(programs: &Programs) -> String {
    match programs.discovers() {
        Ok(()) => "by a TCP option in the handshake".to_owned(),
        Err(refusal) => format!("not on this kernel, every other end counts as not meshed: {refusal}"),
    }
}

fn fast_path(lines: &mut Report, programs: Programs, acceleration: Acceleration) {
    const NAME: &str = "fast path";
    if acceleration == Acceleration::Off {
        let text =
            "off; `acceleration: auto` uses it where the kernel changes nothing that an application could notice";
        return lines.inform(NAME, text.to_owned());
    }
    let Findings { report, both } = match programs.try_fast_path() {
        Ok(findings) => findings,
        Err(error) => return lines.inform(NAME, format!("not used: {error}")),
    };
    let used = match acceleration {
        Acceleration::Force if report.redirects => "forced",
        _ if report.is_clean() => "used",
        _ => "not used",
    };
    lines.inform(NAME, format!("{used}: {} ({} ms)", report.verdict(), report.took.as_millis()));
    let both = match both {
        Ok(both) => format!("{} ({} ms)", both.verdict(), both.report.took.as_millis()),
        Err(error) => format!("never used; not tried here: {error}"),
    };
    lines.inform("both directions", both);
}

fn kernel_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|error| error.to_string(), |text| text.trim().to_owned())
}

fn mptcp(subflows: &Subflows, strict: bool) -> String {
    match subflows {
        Subflows::Told if strict => "are captured as TCP: mtls.outbound is strict".to_owned(),
        Subflows::Told => "go direct".to_owned(),
        Subflows::TakenForTcp { reason } => {
            format!("are captured as TCP: this kernel does not tell them apart: {reason}")
        }
    }
}

fn btf() -> String {
    let path = Path::new("/sys/kernel/btf/vmlinux");
    if path.exists() { "present (only the fast path needs it)" } else { "absent (only the fast path needs it)" }
        .to_owned()
}

fn capabilities() -> Result<String, String> {
    match missing_capabilities().as_slice() {
        [] => Ok("all that loading and attaching need".to_owned()),
        missing => Err(redirect::Error::Capabilities(missing.to_vec()).to_string()),
    }
}

fn ports(config: &Config) -> Vec<(&'static str, SocketAddr)> {
    let everywhere = |port| SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port));
    vec![
        ("outbound port", everywhere(config.capture.outbound.port)),
        ("inbound port", everywhere(config.capture.inbound.port)),
        ("metrics port", config.telemetry.metrics),
        ("health port", config.telemetry.health),
        ("admin port", config.telemetry.admin),
    ]
}
