//! Certificates and roots that change while handshakes go on.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::*;
use crate::identity::{
    IdentityWatch, Publisher, Source,
    mint::{Folder, workload},
};

/// Threads that shake hands.
const THREADS: usize = 2;

/// One side: files, and the contexts made of what they hold now.
struct Side {
    folder: Folder,
    contexts: Mutex<Option<Arc<Contexts>>>,
    made: AtomicUsize,
}

impl Side {
    fn new(name: &str) -> Self {
        Self { folder: Folder::new(name), contexts: Mutex::default(), made: AtomicUsize::new(0) }
    }

    fn now(&self) -> Arc<Contexts> {
        Arc::clone(self.contexts.lock().unwrap().as_ref().unwrap())
    }

    /// Makes contexts of each identity, as a worker would.
    async fn follow(&self) {
        let (publisher, watch) = Publisher::new();
        let source = config::Identity { files: Some(self.folder.files(false)), ..config::Identity::default() };
        tokio::select! {
            never = Source::of(&source).unwrap().run(publisher) => match never {},
            () = self.make(watch) => {}
        }
    }

    async fn make(&self, mut watch: IdentityWatch) {
        loop {
            watch.changed().await;
            if let Some(identity) = watch.current() {
                let fresh = Contexts::new(identity, &config::Mtls::default()).unwrap();
                *self.contexts.lock().unwrap() = Some(Arc::new(fresh));
                self.made.fetch_add(1, Ordering::Release);
            }
        }
    }

    /// Replaces the files and waits until they are used.
    fn rotate(&self, set: usize, id: &str, issuer: &Root, roots: &str) {
        let before = self.made.load(Ordering::Acquire);
        self.folder.swap_to(&format!("set-{set}"), &issuer.mint(&workload(id)), roots);
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.made.load(Ordering::Acquire) == before {
            assert!(Instant::now() < deadline, "set {set} was not taken up");
            thread::yield_now();
        }
    }
}

/// Handshakes at a steady pace until `stop`, counted in `done`; what failed.
fn handshakes(client: &Side, server: &Side, stop: &AtomicBool, done: &AtomicUsize) -> Vec<String> {
    // 250 a second on each thread, where the machine is that fast.
    const EVERY: Duration = Duration::from_millis(4);
    let mut failed = Vec::new();
    let begun = Instant::now();
    for count in 0_u32.. {
        if stop.load(Ordering::Relaxed) {
            return failed;
        }
        thread::sleep((EVERY * count).saturating_sub(begun.elapsed()));
        let (client, server) = (client.now(), server.now());
        // Whoever began with the last identity ends with it, though it was replaced meanwhile.
        let (at_client, at_server) = meet_natively(&client, &server);
        if at_client.peer.is_err() || at_server.peer.is_err() {
            failed.push(format!("{at_client:?} {at_server:?}"));
        }
        done.fetch_add(1, Ordering::Release);
    }
    unreachable!("the counter is longer than the test")
}

#[test]
fn certificates_and_the_root_rotate_26_times_while_handshakes_go_on_and_none_fails() {
    let (old, new) = (Root::new("old"), Root::new("new"));
    let both = old.pem.clone() + &new.pem;
    let (web, db) = (Side::new("rotate-web"), Side::new("rotate-db"));
    let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (end, ended) = oneshot::channel::<()>();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            runtime.block_on(async {
                tokio::select! {
                    () = web.follow() => {}
                    () = db.follow() => {}
                    _ = ended => {}
                }
            });
        });
        let rotate = |set, issuer: &Root, roots: &str| {
            web.rotate(set, WEB, issuer, roots);
            db.rotate(set, DB, issuer, roots);
        };
        let rotate_under_load = |set, issuer: &Root, roots: &str| {
            rotate(set, issuer, roots);
            // Of so many that end from now on at least one has begun after the rotation.
            let enough = done.load(Ordering::Acquire) + THREADS + 1;
            while done.load(Ordering::Acquire) < enough {
                thread::yield_now();
            }
        };
        rotate(0, &old, &old.pem);
        let begun = Instant::now();
        let load: Vec<_> = (0..THREADS).map(|_| scope.spawn(|| handshakes(&web, &db, &stop, &done))).collect();
        for set in 1..6 {
            rotate_under_load(set, &old, &old.pem);
        }
        // A root is announced, switched to, and only then is the old one forgotten.
        for (set, (issuer, roots)) in [(&old, &*both), (&new, &both), (&new, &new.pem)].into_iter().enumerate() {
            rotate_under_load(6 + set, issuer, roots);
        }
        for set in 9..14 {
            rotate_under_load(set, &new, &new.pem);
        }
        stop.store(true, Ordering::Relaxed);
        let seconds = begun.elapsed().as_secs_f64();
        let failed: Vec<_> = load.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        drop(end);
        let total = done.load(Ordering::Acquire);
        let rotations: usize = [&web, &db].map(|side| side.made.load(Ordering::Acquire) - 1).iter().sum();
        println!("{total} handshakes in {seconds:.1} s, {rotations} rotations");
        assert!(failed.is_empty(), "{} of {total} failed: {}", failed.len(), failed[0]);
        assert!(rotations >= 26, "{rotations} rotations");
    });
}
