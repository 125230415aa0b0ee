//! Handshaked connections that wait for the application's next one to the same destination.
//!
//! Each thread keeps its own. How many are wanted for a destination follows its use: none before the second connection,
//! twice as many each time that none was there, or that the last one went in a burst, one fewer for each that was not used
//! in time. They are made when the destination is left in peace, for a handshake beside a request delays it at both ends;
//! at once only when few are left.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{role::ClientEnd, secure::Secured};
use crate::{
    config,
    telemetry::{InProgress, Role, Spare, Telemetry},
    tls::Contexts,
};

type Client = Secured<ClientEnd>;

thread_local! {
    static SPARES: RefCell<Spares> = RefCell::default();
}

#[derive(Default)]
struct Spares {
    destinations: HashMap<SocketAddr, Destination>,
    /// A task looks after those that wait.
    swept: bool,
}

struct Destination {
    ready: Vec<Waiting>,
    /// Being opened.
    opening: usize,
    wanted: usize,
    used: Instant,
    /// Those that are missing will be opened once nobody has asked for one for [`PEACE`].
    due: bool,
}

/// A destination that is not used for so long is used no more for now: a connection between neighbours with one request
/// takes a tenth of it.
const PEACE: Duration = Duration::from_millis(5);

/// When missing connections are to be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refill {
    /// Not, or somebody sees to it already.
    Not,
    /// Once the destination is left in peace.
    InPeace,
    /// At once.
    Now,
}

struct Waiting {
    connection: Client,
    contexts: Arc<Contexts>,
    since: Instant,
    _counted: InProgress,
}

impl Waiting {
    /// The other end has neither closed it nor said anything, and it was made with `contexts`.
    fn is_good(&self, contexts: &Arc<Contexts>) -> bool {
        Arc::ptr_eq(&self.contexts, contexts) && self.connection.stream.is_silent()
    }
}

/// Takes a connection to `to` that was made with `contexts`, if one is ready.
pub fn take(to: SocketAddr, contexts: &Arc<Contexts>, telemetry: &Telemetry) -> Option<Client> {
    let taken = SPARES.with_borrow_mut(|spares| {
        let ready = &mut spares.destinations.get_mut(&to)?.ready;
        // The newest first: what is left over is what has waited longest.
        while let Some(waiting) = ready.pop() {
            if waiting.is_good(contexts) {
                return Some(waiting.connection);
            }
            telemetry.spare(Spare::Dead);
        }
        None
    });
    telemetry.spare(if taken.is_some() { Spare::Hit } else { Spare::Miss });
    taken
}

/// What is opened for the application's next connections.
pub struct Replenish<'a> {
    /// Where to.
    pub to: SocketAddr,
    /// A spare connection was there for the last one.
    pub hit: bool,
    /// As whom.
    pub contexts: &'a Arc<Contexts>,
    /// How many, and for how long.
    pub limits: config::Spare,
    /// Most that this thread keeps, to all destinations together: each holds a descriptor.
    pub most: usize,
    /// Counts them.
    pub telemetry: &'a Telemetry,
}

impl Replenish<'_> {
    /// Opens with `open` as many connections as are wanted and missing. It yields none if the destination cannot be
    /// reached, or has no sidecar this time.
    pub fn with<F: Future<Output = Option<Client>> + 'static>(self, open: impl Fn() -> F + 'static) {
        let Self { to, hit, contexts, limits, most, telemetry } = self;
        let refill = SPARES.with_borrow_mut(|spares| spares.used(to, hit, limits.per_destination, Instant::now()));
        let (contexts, telemetry) = (Arc::clone(contexts), telemetry.clone());
        let swept = SPARES.with_borrow_mut(|spares| std::mem::replace(&mut spares.swept, true));
        if !swept {
            tokio::task::spawn_local(sweep(limits.idle, telemetry.clone()));
        }
        match refill {
            Refill::Not => {}
            Refill::Now => fill(to, most, &contexts, &telemetry, open),
            Refill::InPeace => drop(tokio::task::spawn_local(async move {
                while let Some(left) = SPARES.with_borrow_mut(|spares| spares.until_peace(to, Instant::now())) {
                    tokio::time::sleep(left).await;
                }
                fill(to, most, &contexts, &telemetry, open);
            })),
        }
    }
}

/// Opens what is missing.
fn fill<F: Future<Output = Option<Client>> + 'static>(
    to: SocketAddr,
    most: usize,
    contexts: &Arc<Contexts>,
    telemetry: &Telemetry,
    open: impl Fn() -> F,
) {
    let missing = SPARES.with_borrow_mut(|spares| spares.missing(to, most));
    for _ in 0..missing {
        let (open, contexts, telemetry) = (open(), Arc::clone(contexts), telemetry.clone());
        tokio::task::spawn_local(async move {
            let opening = Opening { to, opened: None };
            let waiting = open.await.map(|connection| Waiting {
                connection,
                contexts,
                since: Instant::now(),
                _counted: telemetry.spare_waits(Role::Client),
            });
            opening.becomes(waiting);
        });
    }
}

/// A connection that is being opened. However that ends, it no longer counts as one then.
struct Opening {
    to: SocketAddr,
    opened: Option<Waiting>,
}

impl Opening {
    fn becomes(mut self, waiting: Option<Waiting>) {
        self.opened = waiting;
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        let opened = self.opened.take();
        // The thread may be ending, and its spare connections with it.
        let _ = SPARES.try_with(|spares| spares.borrow_mut().opened(self.to, opened));
    }
}

/// Closes what waits too long, as long as anything does.
async fn sweep(idle: Duration, telemetry: Telemetry) {
    loop {
        tokio::time::sleep(idle / 2).await;
        let empty = SPARES.with_borrow_mut(|spares| {
            spares.expire(idle, &telemetry);
            spares.swept = !spares.destinations.is_empty();
            !spares.swept
        });
        if empty {
            return;
        }
    }
}

impl Spares {
    /// A connection to `to` was asked for; `hit`: one was ready. Of each destination at most `most` are wanted.
    fn used(&mut self, to: SocketAddr, hit: bool, most: usize, now: Instant) -> Refill {
        let Some(destination) = self.destinations.get_mut(&to) else {
            self.destinations
                .insert(to, Destination { ready: Vec::new(), opening: 0, wanted: 0, used: now, due: false });
            return Refill::Not;
        };
        let burst = now.duration_since(destination.used) < PEACE;
        destination.used = now;
        let left = destination.ready.len();
        if !hit || (burst && left == 0) {
            destination.wanted = (destination.wanted * 2).max(1);
        }
        destination.wanted = destination.wanted.min(most);
        let few = destination.wanted / 4;
        match left + destination.opening {
            there if there <= few => Refill::Now,
            there if there >= destination.wanted || destination.due => Refill::Not,
            _ => {
                destination.due = true;
                Refill::InPeace
            }
        }
    }

    /// How long it is until `to` has been left in peace; `None`: it has been, or is not known any more.
    fn until_peace(&mut self, to: SocketAddr, now: Instant) -> Option<Duration> {
        let destination = self.destinations.get_mut(&to)?;
        let left = PEACE.saturating_sub(now.duration_since(destination.used));
        destination.due = !left.is_zero();
        destination.due.then_some(left)
    }

    /// How many are to be opened to `to` now, at most `most` in all; they count as being opened.
    fn missing(&mut self, to: SocketAddr, most: usize) -> usize {
        let all: usize = self.destinations.values().map(|one| one.ready.len() + one.opening).sum();
        let Some(destination) = self.destinations.get_mut(&to) else { return 0 };
        let missing = destination.wanted.saturating_sub(destination.ready.len() + destination.opening);
        let missing = missing.min(most.saturating_sub(all));
        destination.opening += missing;
        missing
    }

    fn opened(&mut self, to: SocketAddr, waiting: Option<Waiting>) {
        let Some(destination) = self.destinations.get_mut(&to) else { return };
        destination.opening -= 1;
        match waiting {
            Some(waiting) => destination.ready.push(waiting),
            // Where one cannot be had, the next connection is better off without waiting for more of them.
            None => destination.wanted = 0,
        }
    }

    fn expire(&mut self, idle: Duration, telemetry: &Telemetry) {
        self.destinations.retain(|_, destination| {
            let before = destination.ready.len();
            destination.ready.retain(|waiting| waiting.since.elapsed() < idle);
            let expired = before - destination.ready.len();
            (0..expired).for_each(|_| telemetry.spare(Spare::Expired));
            destination.wanted = destination.wanted.saturating_sub(expired);
            !destination.ready.is_empty() || destination.opening > 0 || destination.used.elapsed() < idle
        });
    }
}

#[cfg(test)]
mod tests;
