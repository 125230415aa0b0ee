//! The connections that are open now.

use std::{
    array,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use slab::Slab;
use tokio::sync::Notify;

use crate::addr::ClientAddr;

use super::{
    CloseReason, Direction,
    live::{ConnectionRow, Live},
};

/// Locks over which connections are spread, so that a walk over 100 000 of them (a scrape) stops a worker only for the
/// sixteenth part of that walk.
const SHARDS: usize = 16;

/// Entries that an empty shard may keep room for.
const SMALL_SHARD: usize = 64;

/// Sweeps per idle limit: an idle connection is ended at most two sweeps, a quarter of the limit, late.
const SWEEPS_PER_LIMIT: u32 = 8;

/// The connections that are open now.
pub struct ConnectionTable {
    shards: [Mutex<Slab<Arc<Live>>>; SHARDS],
    ids: AtomicU64,
    open: AtomicUsize,
    none_left: Notify,
    first_came: Notify,
}

impl Default for ConnectionTable {
    fn default() -> Self {
        Self {
            shards: array::from_fn(|_| Mutex::default()),
            ids: AtomicU64::new(1),
            open: AtomicUsize::new(0),
            none_left: Notify::new(),
            first_came: Notify::new(),
        }
    }
}

impl ConnectionTable {
    /// How many are open.
    pub fn len(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many of one direction are open.
    pub fn count(&self, direction: Direction) -> usize {
        let mut count = 0;
        self.for_each(|live| count += usize::from(live.direction == direction));
        count
    }

    /// Asks all of them to end. One that has been asked before keeps its first reason.
    pub fn close_all(&self, reason: CloseReason) {
        self.for_each(|live| live.close(reason));
    }

    /// The application is gone: asks those to end of which it had finished its side, and all that it sent was handed to the kernel.
    /// The kernel answers what may still come for it with a reset, as without us.
    pub fn end_without_application(&self) {
        self.for_each(Live::end_without_application);
    }

    /// Asks those on which no byte moved for `limit` to end, and returns when to call it again.
    ///
    /// It compares byte totals with those of the sweep before; a connection is therefore ended never before `limit`
    /// and at most a quarter of it late.
    pub fn sweep_idle(&self, limit: Duration) -> Duration {
        self.for_each(|live| {
            if live.idle_for(limit) {
                live.close(CloseReason::IdleTimeout);
            }
        });
        limit / SWEEPS_PER_LIMIT
    }

    /// Resolves when no connection is open.
    pub async fn empty(&self) {
        wait_until(&self.none_left, || self.is_empty()).await;
    }

    /// Resolves when a connection is open, so that a sweeper needs no timer while there is nothing to sweep.
    pub async fn not_empty(&self) {
        wait_until(&self.first_came, || !self.is_empty()).await;
    }

    /// All of them, oldest first.
    pub fn snapshot(&self) -> Vec<ConnectionRow> {
        let mut rows = Vec::with_capacity(self.len());
        self.for_each(|live| rows.push(live.row()));
        rows.sort_unstable_by_key(|row| row.id);
        rows
    }

    /// Adds a connection; the slot is what [`Self::remove`] needs.
    pub(super) fn insert(&self, direction: Direction, client: ClientAddr, accepted: Instant) -> (Arc<Live>, usize) {
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let live = Arc::new(Live::new(id, direction, client, accepted));
        let slot = self.shard(live.id).insert(Arc::clone(&live));
        if self.open.fetch_add(1, Ordering::AcqRel) == 0 {
            self.first_came.notify_waiters();
        }
        (live, slot)
    }

    /// Takes a connection out.
    pub(super) fn remove(&self, live: &Live, slot: usize) {
        {
            let mut shard = self.shard(live.id);
            shard.try_remove(slot);
            // A burst of connections does not keep its memory for ever.
            if shard.is_empty() && shard.capacity() > SMALL_SHARD {
                *shard = Slab::new();
            }
        }
        if self.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.none_left.notify_waiters();
        }
    }

    /// Calls `visit` on each, one shard at a time.
    pub(super) fn for_each(&self, mut visit: impl FnMut(&Live)) {
        for shard in &self.shards {
            lock(shard).iter().for_each(|(_, live)| visit(live));
        }
    }

    fn shard(&self, id: u64) -> MutexGuard<'_, Slab<Arc<Live>>> {
        lock(&self.shards[id as usize % SHARDS])
    }
}

/// A panic while a lock was held leaves a slab that is still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Resolves when `holds`; `changed` is notified whenever it may have become so. The waiting begins before the question,
/// because `notify_waiters` reaches only those that wait.
async fn wait_until(changed: &Notify, holds: impl Fn() -> bool) {
    loop {
        let notified = changed.notified();
        if holds() {
            return;
        }
        notified.await;
    }
}
