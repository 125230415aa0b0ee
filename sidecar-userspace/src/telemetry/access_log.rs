//! The access log: one line per connection on standard output, which never stalls traffic.
//!
//! The carrying task hands over a pointer; a thread of its own formats and writes. When standard output is not read,
//! the queue fills and further lines are dropped and counted.

mod line;

use std::{
    io::{self, Write},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use metrics::Counter;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use crate::config;

use super::{CloseReason, live::Live};

/// Lines that may wait for standard output: under a second of connects at full speed, 0.5 MiB of queue.
const QUEUE: usize = 8192;

/// Lines are written in batches of about this many bytes: the size of a pipe.
const BATCH: usize = 64 * 1024;

/// Whose log it is.
pub(super) struct Own {
    pub(super) workload: String,
    pub(super) namespace: String,
}

/// Where lost lines are counted.
#[derive(Clone)]
pub(super) struct LostLines {
    /// Standard output is not read fast enough.
    pub(super) queue_full: Counter,
    /// Standard output refused the write.
    pub(super) write_failed: Counter,
}

/// A connection that has ended.
pub(super) struct Ended {
    live: Arc<Live>,
    reason: CloseReason,
    after: Duration,
}

impl Ended {
    pub(super) fn new(live: Arc<Live>, reason: CloseReason) -> Self {
        let after = live.accepted.elapsed();
        Self { live, reason, after }
    }
}

enum Message {
    Ended(Ended),
    /// Answer when everything before has been written.
    Flush(SyncSender<()>),
}

/// The queue to the writing thread, which ends when the queue is dropped.
pub(super) struct AccessLog {
    queue: SyncSender<Message>,
    lost: LostLines,
}

impl AccessLog {
    /// Starts the writing thread; `None` when the access log is off.
    pub(super) fn start(
        format: config::AccessLog,
        own: Own,
        lost: LostLines,
        output: impl Write + Send + 'static,
    ) -> io::Result<Option<Self>> {
        let write: line::Format = match format {
            config::AccessLog::Off => return Ok(None),
            config::AccessLog::Text => line::text,
            config::AccessLog::Json => line::json,
        };
        let (queue, messages) = sync_channel(QUEUE);
        let writer =
            Writer { messages, write, own, output, lost: lost.clone(), batch: Vec::new(), lines: 0, failing: false };
        thread::Builder::new().name("access-log".to_owned()).spawn(move || writer.run())?;
        Ok(Some(Self { queue, lost }))
    }

    /// Queues a line, or drops and counts it.
    pub(super) fn tell(&self, ended: Ended) {
        if self.queue.try_send(Message::Ended(ended)).is_err() {
            self.lost.queue_full.increment(1);
        }
    }

    /// Waits until everything queued so far has been written. A full queue is not waited for: nobody reads.
    pub(super) fn flush(&self, limit: Duration) -> bool {
        let (done, written) = sync_channel(1);
        self.queue.try_send(Message::Flush(done)).is_ok() && written.recv_timeout(limit).is_ok()
    }
}

/// The thread's side.
struct Writer<W> {
    messages: Receiver<Message>,
    write: line::Format,
    own: Own,
    output: W,
    lost: LostLines,
    batch: Vec<u8>,
    lines: u64,
    /// The last write failed: it has been said.
    failing: bool,
}

impl<W: Write> Writer<W> {
    fn run(mut self) {
        while let Ok(message) = self.messages.recv() {
            self.take(message);
            while self.batch.len() < BATCH {
                let Ok(message) = self.messages.try_recv() else { break };
                self.take(message);
            }
            self.write_batch();
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Ended(ended) => {
                (self.write)(&mut self.batch, &ended, &self.own);
                self.lines += 1;
            }
            Message::Flush(done) => {
                self.write_batch();
                // Whoever asked may have stopped waiting.
                let _ = done.send(());
            }
        }
    }

    fn write_batch(&mut self) {
        let written = self.output.write_all(&self.batch).and_then(|()| self.output.flush());
        if let Err(error) = &written {
            self.lost.write_failed.increment(self.lines);
            if !self.failing {
                tracing::warn!(%error, "access log lines are lost: standard output cannot be written");
            }
        }
        self.failing = written.is_err();
        self.batch.clear();
        self.batch.shrink_to(BATCH);
        self.lines = 0;
    }
}

/// Standard output without Rust's line buffering, and with patience when another process has made it non-blocking.
pub(super) struct Stdout;

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let stdout = io::stdout();
        loop {
            match nix::unistd::write(&stdout, bytes) {
                Ok(written) => return Ok(written),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&stdout), PollFlags::POLLOUT)];
                    match poll(&mut fds, PollTimeout::NONE) {
                        Ok(_) | Err(Errno::EINTR) => {}
                        Err(errno) => return Err(errno.into()),
                    }
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
