//! One receive, and what the reactor is told of it.

use std::{
    cell::Cell,
    io::{self, Read as _},
};

use socket2::Socket;
use tokio::io::{Ready, unix::AsyncFdReadyGuard};

use crate::net::{
    Arrived, Received, options,
    two_queues::{Told, TwoQueues},
};

/// Something can be received.
///
/// The reactor's word of urgent data is as old as its word of anything: it holds for the first receive after it. If that leaves the word
/// in place, whatever arrives before the next one is not in it.
pub struct Receivable<'a> {
    pub(super) guard: AsyncFdReadyGuard<'a, Socket>,
    pub(super) queues: &'a TwoQueues,
    /// A receive since the reactor's last word came back with less than was asked for, and there may be more.
    pub(super) used: &'a Cell<bool>,
}

impl Arrived for Receivable<'_> {
    fn receive(mut self, buffer: &mut [u8], more: bool) -> io::Result<Received> {
        // Before the receive: if that finds nothing, it holds.
        let told = self.queues.told(self.guard.get_inner());
        let urgent = if self.used.replace(true) || more {
            // A read from an empty queue might begin with an urgent byte that comes meanwhile, as if it were an ordinary one.
            match options::arrived(self.guard.get_inner()) {
                Ok(Some(urgent)) => urgent,
                Ok(None) => return Ok(self.nothing(told)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Received::Nothing),
                Err(error) => return Err(error),
            }
        } else {
            self.guard.ready().is_priority()
        };
        // The socket keeps urgent bytes in the stream (`SO_OOBINLINE`), so that one that is overtaken by the next is not
        // lost; a read stops before the mark, and at the mark the one byte is the urgent one.
        let at_mark = urgent && options::at_urgent_mark(self.guard.get_inner())?;
        let past_tcp = told != Told::One;
        let buffer = if at_mark { &mut buffer[..1] } else { buffer };
        match self.read(buffer, past_tcp) {
            Ok(0) => Ok(Received::End),
            Ok(_) if at_mark && !(past_tcp && options::at_urgent_mark(self.guard.get_inner())?) => {
                self.guard.clear_ready_matching(Ready::PRIORITY);
                Ok(Received::Urgent(buffer[0]))
            }
            Ok(bytes) => {
                self.queues.add(bytes);
                if bytes < buffer.len() {
                    self.emptied(urgent);
                } else {
                    // Whoever is interested in marks says so with the next receive (`more`), but not of a byte at one.
                    self.used.set(at_mark);
                }
                Ok(Received::Bytes(bytes))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(self.nothing(told)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Received::Nothing),
            Err(error) => Err(error),
        }
    }
}

impl Receivable<'_> {
    /// With two queues the end of one may be seen in the moment in which the other has been filled: the end is what is seen twice.
    fn read(&self, buffer: &mut [u8], past_tcp: bool) -> io::Result<usize> {
        match (&mut self.guard.get_inner()).read(buffer) {
            Ok(0) if past_tcp => (&mut self.guard.get_inner()).read(buffer),
            read => read,
        }
    }

    /// Less than asked for means that the queue is empty (epoll(7)), unless reading stopped at the urgent mark or there is something
    /// in another one. That is asked after the receive (`sidecar_common::fastpath::mixed`).
    fn emptied(&mut self, urgent: bool) {
        if !urgent && !self.queues.may_hold_more(self.queues.told(self.guard.get_inner())) {
            self.forget();
        }
    }

    /// Both queues were empty at some time after this was told.
    fn nothing(&mut self, told: Told) -> Received {
        self.queues.found_empty(told);
        self.forget();
        Received::Nothing
    }

    /// The next receive waits for what the reactor says then.
    fn forget(&mut self) {
        self.guard.clear_ready_matching(Ready::READABLE | Ready::PRIORITY);
        self.used.set(false);
    }
}
