use super::*;
use crate::telemetry::ResponseFlags;

fn pod() -> Pod {
    Pod { cgroup: None, netns: None, workload: "shop".into(), namespace: "trade".into() }
}

fn client(number: usize) -> SpiffeId {
    format!("spiffe://td/ns/far/sa/client-{number}").parse().unwrap()
}

fn own() -> SpiffeId {
    "spiffe://td/ns/trade/sa/shop".parse().unwrap()
}

/// A connection from begin to end, with a byte each way.
fn visit(peers: &Peers, peer: &SpiffeId, now: Instant) {
    let series = peers.opened(Some(&own()), peer, now);
    series.moved(1, 1);
    series.closed(ResponseFlags::None);
}

/// Peers with series of their own, and series of the others.
fn sizes(peers: &Peers) -> (usize, usize) {
    let known = peers.known();
    (known.peers.len(), known.overflow.len())
}

fn rendered(peers: &Peers, now: Instant) -> String {
    let other = Peers::new(Direction::Outbound, &pod());
    let mut text = String::new();
    render([peers, &other], now, &mut text);
    text
}

/// The totals of closed connections, by the client's principal.
fn closed(text: &str) -> HashMap<String, u64> {
    let lines = text.lines().filter(|line| line.starts_with("istio_tcp_connections_closed_total{reporter=\"dest"));
    let mut totals = HashMap::new();
    for line in lines {
        let (_, rest) = line.split_once("source_principal=\"").unwrap();
        let (principal, _) = rest.split_once('"').unwrap();
        *totals.entry(principal.to_owned()).or_default() += line.rsplit(' ').next().unwrap().parse::<u64>().unwrap();
    }
    totals
}

#[test]
fn a_million_identities_cost_no_more_than_the_limit_and_every_connection_is_counted() {
    const IDENTITIES: usize = 1_000_000;
    let (peers, now) = (Peers::new(Direction::Inbound, &pod()), Instant::now());
    for number in 0..IDENTITIES {
        visit(&peers, &client(number), now);
    }
    assert_eq!(sizes(&peers), (PEERS, 1));
    assert!(peers.known().peers.capacity() < 4 * PEERS);
    let text = rendered(&peers, now);
    assert!(text.len() < (PEERS + 10) * 5000, "{}", text.len());
    let closed = closed(&text);
    assert_eq!(closed.len(), PEERS + 2);
    assert_eq!((closed["unknown"], closed[OVERFLOW]), (0, (IDENTITIES - PEERS) as u64));
    assert_eq!(closed["spiffe://td/ns/far/sa/client-0"], 1);
}

#[test]
fn a_peer_is_forgotten_when_it_had_no_connection_for_long_and_not_before() {
    let (peers, start) = (Peers::new(Direction::Inbound, &pod()), Instant::now());
    let (gone, comes_back, stays) = (client(0), client(1), client(2));
    let open = peers.opened(Some(&own()), &stays, start);
    visit(&peers, &gone, start);
    visit(&peers, &comes_back, start);
    assert_eq!(closed(&rendered(&peers, start))[gone.as_str()], 1);
    visit(&peers, &comes_back, start + KEPT / 2);
    assert_eq!(closed(&rendered(&peers, start + KEPT / 2))[comes_back.as_str()], 2);
    let late = rendered(&peers, start + KEPT);
    assert!(!late.contains(gone.as_str()), "{late}");
    assert_eq!(closed(&late)[comes_back.as_str()], 2);
    let later = rendered(&peers, start + KEPT * 100);
    assert!(!later.contains(comes_back.as_str()) && later.contains(stays.as_str()), "{later}");
    open.closed(ResponseFlags::None);
    assert_eq!(closed(&rendered(&peers, start + KEPT * 100))[stays.as_str()], 1);
    assert!(!rendered(&peers, start + KEPT * 101).contains(stays.as_str()));
}

#[test]
fn room_is_made_for_new_peers_without_a_scraper() {
    let (peers, start) = (Peers::new(Direction::Inbound, &pod()), Instant::now());
    let held: Vec<_> = (0..PEERS / 2).map(|number| peers.opened(None, &client(number), start)).collect();
    for number in PEERS / 2..PEERS + 1 {
        visit(&peers, &client(number), start);
    }
    assert_eq!(sizes(&peers), (PEERS, 1));
    visit(&peers, &client(PEERS), start + SWEEP_EVERY);
    assert_eq!(sizes(&peers), (PEERS, 1));
    visit(&peers, &client(PEERS), start + SWEEP_EVERY + KEPT);
    assert_eq!(sizes(&peers), (held.len() + 1, 1));
    rendered(&peers, start + SWEEP_EVERY + KEPT);
    rendered(&peers, start + SWEEP_EVERY + KEPT * 2);
    assert_eq!(sizes(&peers), (held.len(), 0));
}

#[test]
fn only_totals_that_grew_are_shown_of_a_peer_and_all_of_the_unknown_one() {
    let (peers, now) = (Peers::new(Direction::Inbound, &pod()), Instant::now());
    let lines = |text: &str, principal: &str| {
        let label = format!("source_principal=\"{principal}\"");
        text.lines().filter(|line| line.contains("reporter=\"destination\"") && line.contains(&label)).count()
    };
    let flags = ResponseFlags::ALL.len();
    let open = peers.opened(Some(&own()), &client(0), now);
    let text = rendered(&peers, now);
    assert_eq!(lines(&text, "unknown"), 3 + flags + flags - 1);
    assert_eq!(lines(&text, client(0).as_str()), 1, "{text}");
    open.closed(ResponseFlags::Deny);
    assert_eq!(lines(&rendered(&peers, now), client(0).as_str()), 3);
}
