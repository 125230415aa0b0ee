//! Permits while rules are replaced.

use std::{
    future::Future,
    pin::pin,
    sync::atomic::{AtomicBool, Ordering},
    task::{Context, Poll, Waker},
    thread,
    time::Instant,
};

use super::*;
use crate::{
    addr::ClientAddr,
    config,
    telemetry::{CloseReason, ConnectionRecord, Direction, Telemetry},
};

fn telemetry() -> Telemetry {
    let config = config::Telemetry { access_log: config::AccessLog::Off, ..config::Telemetry::default() };
    Telemetry::start(&config, &config::Pod::default()).unwrap()
}

/// One connection from `client`, as its owner would see it.
struct Connection {
    record: ConnectionRecord,
    client: IpAddr,
}

impl Connection {
    fn from(telemetry: &Telemetry, client: &str) -> Self {
        let client: IpAddr = client.parse().unwrap();
        Self {
            record: telemetry.accepted_at(Direction::Inbound, ClientAddr((client, 4711).into()), Instant::now()),
            client,
        }
    }

    fn ask(&self, permits: &Permits, port: u16) -> Result<Permit, Refused> {
        let request = Request { client: self.client, principal: None, port };
        permits.check(&request, self.record.closer())
    }

    /// What it has been told.
    fn told(&self) -> Option<CloseReason> {
        match pin!(self.record.told_to_close()).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(reason) => Some(reason),
            Poll::Pending => None,
        }
    }
}

/// Counted by `telemetry` even where another one is the process's.
fn permits(telemetry: &Telemetry, policy: Policy) -> Permits {
    telemetry.within(|| Permits::new(policy))
}

fn denying(port: u16) -> Policy {
    Policy::new(&[deny(1, "d", vec![], &[port])])
}

#[test]
fn new_rules_close_what_they_do_not_allow_and_leave_the_rest_alone() {
    let telemetry = telemetry();
    let permits = permits(&telemetry, Policy::default());
    let connections = [("10.0.0.1", 80), ("10.0.0.2", 80), ("10.0.0.1", 81), ("10.0.0.1", 80)]
        .map(|(client, port)| (Connection::from(&telemetry, client), port));
    let mut held: Vec<Option<Permit>> =
        connections.iter().map(|(connection, port)| Some(connection.ask(&permits, *port).unwrap())).collect();
    // One that has ended is told nothing.
    held[3] = None;
    assert_eq!(permits.held(), 3);
    let rules = [deny(1, "d", vec![cidrs(&["10.0.0.1/32"])], &[80])];
    assert_eq!(permits.replace(Policy::new(&rules)), 1);
    let told: Vec<_> = connections.iter().map(|(connection, _)| connection.told()).collect();
    assert_eq!(told, [Some(CloseReason::NoLongerAuthorized), None, None, None]);
    let refused = connections[0].0.ask(&permits, 80).unwrap_err();
    assert_eq!(refused.to_string(), "denied by deny rule `d` (f:1)");
    assert_eq!(permits.held(), 3);
    drop(held);
    assert_eq!(permits.held(), 0);
    // Back again: everybody may connect.
    assert_eq!(permits.replace(Policy::default()), 0);
    assert!(connections[0].0.ask(&permits, 80).is_ok());
}

#[test]
fn an_identity_is_remembered_for_new_rules() {
    let telemetry = telemetry();
    let permits = permits(&telemetry, Policy::default());
    let connection = Connection::from(&telemetry, "10.0.0.1");
    let id: SpiffeId = WEB.parse().unwrap();
    let request = Request { client: connection.client, principal: Some(&id), port: 80 };
    let _permit = permits.check(&request, connection.record.closer()).unwrap();
    assert_eq!(permits.replace(Policy::new(&[allow(1, "a", vec![principals(&[WEB])], &[80])])), 0);
    assert_eq!(permits.replace(Policy::new(&[deny(1, "d", vec![namespaces(&["shop"])], &[80])])), 1);
    assert_eq!(connection.told(), Some(CloseReason::NoLongerAuthorized));
}

/// Threads connect without a pause while the rules change under them: whoever holds a permit that the last rules do not
/// give has been told.
#[test]
fn no_connection_slips_through_a_replacement() {
    const ROUNDS: usize = 40;
    let telemetry = telemetry();
    for _ in 0..ROUNDS {
        let permits = permits(&telemetry, Policy::default());
        let denied = AtomicBool::new(false);
        let held: Vec<(Connection, Permit)> = thread::scope(|scope| {
            let connect = || {
                let mut held = Vec::new();
                loop {
                    let known = denied.load(Ordering::SeqCst);
                    let connection = Connection::from(&telemetry, "10.0.0.1");
                    match connection.ask(&permits, 80) {
                        Ok(permit) => {
                            assert!(!known, "allowed after the rules that deny it were in force");
                            held.push((connection, permit));
                        }
                        Err(_) => return held,
                    }
                }
            };
            let threads: Vec<_> = (0..3).map(|_| scope.spawn(connect)).collect();
            while permits.held() < 5 {
                thread::yield_now();
            }
            permits.replace(denying(80));
            denied.store(true, Ordering::SeqCst);
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert!(held.len() >= 5);
        let untold = held.iter().filter(|(connection, _)| connection.told().is_none()).count();
        assert_eq!(untold, 0, "of {} connections", held.len());
    }
}

#[test]
fn decisions_are_counted_by_verdict_and_dry_run() {
    let telemetry = telemetry();
    let permits = permits(
        &telemetry,
        Policy::new(&[
            deny(1, "d", vec![], &[80]),
            deny(2, "?e", vec![], &[81]),
            allow(3, "a", vec![cidrs(&["192.0.2.0/24"])], &[82]),
            allow(4, "?b", vec![], &[82]),
        ]),
    );
    let series = |verdict: &str, dry_run: bool| {
        let name = format!("sidecar_authorization_total{{verdict=\"{verdict}\",dry_run=\"{dry_run}\"}} ");
        let text = telemetry.render_metrics();
        let line = text.lines().find_map(|line| line.strip_prefix(&name)).unwrap_or_else(|| panic!("{name}\n{text}"));
        line.parse::<u64>().unwrap()
    };
    let all = || [("allow", false), ("deny", false), ("allow", true), ("deny", true)].map(|(v, d)| series(v, d));
    assert_eq!(all(), [0, 0, 0, 0]);
    let connection = Connection::from(&telemetry, "10.0.0.1");
    for (port, expected) in [(79, [1, 0, 0, 0]), (80, [1, 1, 0, 0]), (81, [2, 1, 0, 1]), (82, [2, 2, 1, 1])] {
        let _ = connection.ask(&permits, port);
        assert_eq!(all(), expected, "{port}");
    }
}
