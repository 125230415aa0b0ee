use std::{
    io::Write,
    sync::{Arc, Mutex},
};

use super::*;
use crate::config::AccessLog;

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
    }
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn config(log_format: LogFormat) -> Telemetry {
    Telemetry {
        metrics: "127.0.0.1:0".parse().unwrap(),
        health: "127.0.0.1:0".parse().unwrap(),
        admin: "127.0.0.1:0".parse().unwrap(),
        admin_socket: None,
        access_log: AccessLog::Off,
        log_level: "info".into(),
        log_format,
        bpf_log: false,
    }
}

fn started(format: LogFormat) -> (Dispatch, LogControl, Captured) {
    let output = Captured::default();
    let writer = output.clone();
    let (subscriber, control) = subscriber(&config(format), move || writer.clone()).unwrap();
    (subscriber, control, output)
}

#[test]
fn the_level_changes_while_it_runs_and_a_bad_one_changes_nothing() {
    let (dispatch, control, output) = started(LogFormat::Text);
    tracing::dispatcher::with_default(&dispatch, || {
        tracing::debug!("hidden");
        assert_eq!(output.take(), "");
        control.set("debug").unwrap();
        assert_eq!(control.current(), "debug");
        tracing::debug!(answer = 42, "shown");
        let line = output.take();
        assert!(line.contains("DEBUG") && line.contains("shown answer=42"), "{line}");

        for bad in ["inof", "", "debug,loud", "sidecar=loud"] {
            assert!(control.set(bad).is_err(), "{bad}");
            assert_eq!(control.current(), "debug");
        }
        assert!(control.set("inof").unwrap_err().to_string().starts_with("`inof` is not a log level: use off,"));
        control.set("warn,sidecar::telemetry=trace").unwrap();
        tracing::trace!("of this module");
        tracing::info!(target: "elsewhere", "of another");
        assert!(output.take().contains("of this module"));
    });
}

#[test]
fn a_json_line_is_an_object_with_the_fields_beside_the_message() {
    let (dispatch, _control, output) = started(LogFormat::Json);
    tracing::dispatcher::with_default(&dispatch, || tracing::warn!(port = 15001, text = "a \"b\"\nc", "cannot bind"));
    let line: serde_json::Value = serde_json::from_str(&output.take()).unwrap();
    assert_eq!(line["level"], "WARN");
    assert_eq!(line["message"], "cannot bind");
    assert_eq!(line["port"], 15001);
    assert_eq!(line["text"], "a \"b\"\nc");
}

/// The only test that may claim the process's log.
#[test]
fn records_of_the_log_crate_are_bridged_and_follow_the_level() {
    let (subscriber, control, output) = started(LogFormat::Text);
    subscriber.try_init().unwrap();
    ::log::info!(target: "bridged", "from the kernel");
    ::log::debug!(target: "bridged", "too quiet");
    control.set("debug").unwrap();
    ::log::debug!(target: "bridged", "now heard");
    let lines = output.take();
    let bridged: Vec<_> = lines.lines().filter(|line| line.contains("bridged")).collect();
    assert_eq!(bridged.len(), 2, "{lines}");
    assert!(bridged[0].contains("from the kernel") && bridged[1].contains("now heard"), "{lines}");
    assert!(matches!(init(&config(LogFormat::Text)), Err(Error::Installed(_))));
}
