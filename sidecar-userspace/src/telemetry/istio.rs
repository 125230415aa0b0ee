//! Istio's TCP families: one set of series for each direction's peers without a proven identity, which exists from the
//! start, and one for each peer that proved its own.
//!
//! Istio's names and labels keep existing dashboards working. `istio_tcp_received_bytes_total` is what the client sent
//! and `istio_tcp_sent_bytes_total` what the server answered, **on both reporters**: seen from the source the two are
//! therefore flipped, as in Istio itself (istio/istio#32399). The access log is not flipped.
//! `istio_tcp_connections_opened_total` and the byte counters always carry `response_flags="-"`: they count before it
//! is known how a connection ends.
//!
//! They are kept and rendered here and not by the exporter, which can only forget a series by its age, the unknown
//! peer's included; a peer's series must live as long as one of its connections and not much longer.

mod series;

use std::{
    collections::HashMap,
    fmt::Write,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{config::Pod, id::SpiffeId};

use super::Direction;

use series::{FAMILIES, Labels};

pub(super) use series::Series;

/// Peers per direction that have series of their own at one time; further ones share those of the principal `overflow`.
/// Each costs some 1 KiB here, and some 3 KiB of every scrape.
const PEERS: usize = 200;

/// How long a peer keeps its series after its last connection: twice the five minutes for which Prometheus takes a
/// series that it no longer finds for present, so that no total goes unseen.
const KEPT: Duration = Duration::from_secs(600);

/// Shortest time between two looks for peers that may be forgotten, when new ones keep coming.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// The principal of the series that the peers beyond [`PEERS`] share.
const OVERFLOW: &str = "overflow";

/// All series of one direction.
pub(super) struct Peers {
    direction: Direction,
    pod: Pod,
    unknown: Series,
    known: Mutex<Known>,
}

/// The identity that this sidecar showed, and that of its peer.
type Key = (Option<SpiffeId>, SpiffeId);

struct Known {
    peers: HashMap<Key, Entry>,
    /// By the identity that this sidecar showed.
    overflow: HashMap<Option<SpiffeId>, Entry>,
    swept: Instant,
}

struct Entry {
    series: Arc<Series>,
    /// The first sweep since the last look-up that found no connection open.
    idle_since: Option<Instant>,
}

impl Peers {
    pub(super) fn new(direction: Direction, pod: &Pod) -> Self {
        let unknown = Series::new(&Labels { direction, pod, own: None, principal: None, namespace: None });
        let known = Known { peers: HashMap::new(), overflow: HashMap::new(), swept: Instant::now() };
        Self { direction, pod: pod.clone(), unknown, known: Mutex::new(known) }
    }

    /// The series of connections whose other end has not proved who it is.
    pub(super) fn unknown(&self) -> &Series {
        &self.unknown
    }

    /// Counts a connection with `peer` as opened, and returns its series. They are kept at least until
    /// [`Series::closed`] was called as often.
    pub(super) fn opened(&self, own: Option<&SpiffeId>, peer: &SpiffeId, now: Instant) -> Arc<Series> {
        let key = (own.cloned(), peer.clone());
        let mut known = self.known();
        if known.peers.len() >= PEERS && now.saturating_duration_since(known.swept) >= SWEEP_EVERY {
            known.sweep(now);
        }
        let full = known.peers.len() >= PEERS;
        let new = |principal, namespace| {
            let labels = Labels { direction: self.direction, pod: &self.pod, own, principal, namespace };
            Entry { series: Arc::new(Series::new(&labels)), idle_since: None }
        };
        let entry = if full && !known.peers.contains_key(&key) {
            known.overflow.entry(key.0).or_insert_with(|| new(Some(OVERFLOW), None))
        } else {
            known.peers.entry(key).or_insert_with(|| new(Some(peer.as_str()), peer.namespace()))
        };
        // Under the lock, so that no sweep finds it without a connection.
        entry.series.opened();
        entry.idle_since = None;
        Arc::clone(&entry.series)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The series that are there at `now`, those of the unknown peer excepted.
    fn at(&self, now: Instant) -> Vec<Arc<Series>> {
        let mut known = self.known();
        known.sweep(now);
        known.peers.values().chain(known.overflow.values()).map(|entry| Arc::clone(&entry.series)).collect()
    }
}

impl Known {
    /// Forgets the peers that had no connection for [`KEPT`], as far as sweeps can tell.
    fn sweep(&mut self, now: Instant) {
        self.swept = now;
        let keep = |entry: &mut Entry| {
            if entry.series.is_open() {
                entry.idle_since = None;
                return true;
            }
            now.saturating_duration_since(*entry.idle_since.get_or_insert(now)) < KEPT
        };
        self.peers.retain(|_, entry| keep(entry));
        self.overflow.retain(|_, entry| keep(entry));
    }
}

/// Appends all series of both directions in Prometheus' text format. Of a peer with an identity only the totals that
/// have begun to grow: the zeros would make most of a scrape.
pub(super) fn render(directions: [&Peers; 2], now: Instant, text: &mut String) {
    let known = directions.map(|peers| peers.at(now));
    for family in &FAMILIES {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "# HELP {0} {1}\n# TYPE {0} counter", family.name, family.help);
        for peers in directions {
            peers.unknown.render(family, true, text);
        }
        for series in known.iter().flatten() {
            series.render(family, false, text);
        }
        text.push('\n');
    }
}

#[cfg(test)]
mod tests;
