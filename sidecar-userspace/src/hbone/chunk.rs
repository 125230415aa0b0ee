//! Bytes on their way into a connection, and the knowledge of how many are still on it.

use std::{cell::Cell, rc::Rc};

use bytes::Buf;
use tokio::sync::Notify;

/// Bytes that one stream gave to HTTP/2 and that have not been written yet.
#[derive(Default)]
pub(super) struct Unwritten {
    bytes: Cell<usize>,
    all_written: Notify,
}

impl Unwritten {
    /// Whether there are any.
    pub(super) fn any(&self) -> bool {
        self.bytes.get() > 0
    }

    /// Resolves when there are none: written, or given up by HTTP/2.
    pub(super) async fn none(&self) {
        while self.any() {
            self.all_written.notified().await;
        }
    }
}

/// Payload of a DATA frame. HTTP/2 drops it when it is written.
pub(super) struct Chunk {
    bytes: Box<[u8]>,
    at: usize,
    unwritten: Rc<Unwritten>,
}

impl Chunk {
    pub(super) fn new(bytes: &[u8], unwritten: &Rc<Unwritten>) -> Self {
        unwritten.bytes.set(unwritten.bytes.get() + bytes.len());
        Self { bytes: bytes.into(), at: 0, unwritten: Rc::clone(unwritten) }
    }
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    fn advance(&mut self, count: usize) {
        assert!(count <= self.remaining(), "{count} of {} bytes", self.remaining());
        self.at += count;
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let left = self.unwritten.bytes.get() - self.bytes.len();
        self.unwritten.bytes.set(left);
        if left == 0 {
            // One task at most waits, and one that begins to wait later looks first.
            self.unwritten.all_written.notify_waiters();
        }
    }
}
