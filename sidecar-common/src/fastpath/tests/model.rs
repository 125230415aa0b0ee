//! A model of two sockets and everything that moves between them, one step at a time in any order: the decision must never lose
//! a byte, move one, or let more wait than it says.
//!
//! What is modelled is what the kernel does (net/ipv4/tcp_bpf.c, net/ipv4/tcp.c): bytes by TCP arrive in the receiver's TCP
//! queue some time after they were sent; redirected ones are in its other queue when the call returns; a receive looks at the
//! other queue first, and at TCP's if that is empty.

use std::{collections::VecDeque, ops::Range};

use proptest::{collection::vec, prelude::*};

use super::super::*;

/// One step of one of the three.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The application sends so many bytes, if TCP takes them; `plain`: in a way that could be redirected.
    Send { bytes: u32, plain: bool },
    /// So many of the bytes that TCP has on its way arrive.
    Arrive(u32),
    /// The proxy receives at most so many bytes.
    Receive(u32),
    /// The operator switches.
    Switch(bool),
    /// The application changes the mode of its descriptor.
    Block(bool),
    /// The application sends no more.
    Finish,
}

#[derive(Default)]
struct Connection {
    on: bool,
    blocking: bool,
    finished: bool,
    /// The number of the next byte to send and to receive.
    sent: u64,
    received: u64,
    /// `write_seq` and `copied_seq`, which count what goes by TCP.
    written: u32,
    consumed: u32,
    on_the_way: Queue,
    by_tcp: Queue,
    past_tcp: Queue,
    redirected: u64,
}

/// Numbers of bytes, in pieces as they came.
#[derive(Default)]
struct Queue(VecDeque<Range<u64>>);

impl Queue {
    fn bytes(&self) -> u64 {
        self.0.iter().map(|piece| piece.end - piece.start).sum()
    }

    fn add(&mut self, piece: Range<u64>) {
        self.0.push_back(piece);
    }

    /// The first piece, at most so many bytes of it.
    fn take(&mut self, most: u64) -> Option<Range<u64>> {
        let first = self.0.front_mut()?;
        let taken = first.start..first.end.min(first.start + most);
        first.start = taken.end;
        if first.is_empty() {
            self.0.pop_front();
        }
        Some(taken)
    }
}

/// TCP's send buffer: more is not taken before something arrives.
const SEND_BUFFER: u64 = 3_000_000;

impl Connection {
    fn new() -> Self {
        // Just before sequence numbers wrap.
        Self { on: true, written: u32::MAX - 1000, consumed: u32::MAX - 1000, ..Self::default() }
    }

    fn waiting(&self) -> Waiting {
        let messages = self.past_tcp.0.iter().take(MOST_MESSAGES as usize);
        let bytes = messages.clone().map(|message| (message.end - message.start) as u32).sum();
        Waiting { bytes, messages: messages.count() as u32 }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Send { .. } if self.finished => {}
            Step::Send { bytes, plain } => self.send(bytes, plain),
            Step::Arrive(bytes) => {
                let mut left = u64::from(bytes);
                while left > 0
                    && let Some(piece) = self.on_the_way.take(left)
                {
                    left -= piece.end - piece.start;
                    self.by_tcp.add(piece);
                }
            }
            Step::Receive(bytes) => self.receive(bytes),
            Step::Switch(on) => self.on = on,
            Step::Block(blocking) => self.blocking = blocking,
            Step::Finish => self.finished = true,
        }
    }

    fn send(&mut self, bytes: u32, plain: bool) {
        let message = Message {
            switched_on: self.on,
            layered: false,
            closing: self.finished,
            nonblocking: !self.blocking,
            plain,
            written: self.written,
            consumed: self.consumed,
            waiting: self.waiting(),
            bytes,
        };
        let piece = self.sent..self.sent + u64::from(bytes);
        match decide(&message) {
            Ok(()) => {
                self.past_tcp.add(piece);
                self.redirected += u64::from(bytes);
            }
            Err(_) if self.on_the_way.bytes() + self.by_tcp.bytes() + u64::from(bytes) > SEND_BUFFER => return,
            Err(_) => {
                self.on_the_way.add(piece);
                self.written = self.written.wrapping_add(bytes);
            }
        }
        self.sent += u64::from(bytes);
    }

    /// One receive looks at one queue: at TCP's only if the other is empty.
    fn receive(&mut self, most: u32) {
        let mut room = u64::from(most);
        let by_tcp = self.past_tcp.0.is_empty();
        let queue = if by_tcp { &mut self.by_tcp } else { &mut self.past_tcp };
        while room > 0
            && let Some(piece) = queue.take(room)
        {
            assert_eq!(piece.start, self.received, "out of order");
            let bytes = piece.end - piece.start;
            self.received += bytes;
            room -= bytes;
            if by_tcp {
                self.consumed = self.consumed.wrapping_add(bytes as u32);
            }
        }
    }

    /// Everything arrives and is received.
    fn settle(&mut self) {
        while self.received < self.sent {
            let before = self.received;
            self.step(Step::Arrive(u32::MAX));
            self.step(Step::Receive(u32::MAX));
            assert!(self.received > before, "{} of {} bytes never come", self.sent - before, self.sent);
        }
    }
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1_u32..3000, prop::bool::weighted(0.9)).prop_map(|(bytes, plain)| Step::Send { bytes, plain }),
        1 => (60_000_u32..540_000).prop_map(|bytes| Step::Send { bytes, plain: true }),
        4 => (1_u32..100_000).prop_map(Step::Arrive),
        5 => (1_u32..100_000).prop_map(Step::Receive),
        1 => any::<bool>().prop_map(Step::Switch),
        1 => any::<bool>().prop_map(Step::Block),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn no_interleaving_loses_or_moves_a_byte_or_lets_more_wait(steps in vec(steps(), 1..120), finish in any::<bool>()) {
        let mut connection = Connection::new();
        for step in steps {
            connection.step(step);
            let (bytes, messages) = (connection.past_tcp.bytes(), connection.past_tcp.0.len());
            prop_assert!(messages <= 1 || bytes <= u64::from(MOST_BYTES), "{bytes} bytes wait");
            prop_assert!(messages <= MOST_MESSAGES as usize, "{messages} messages wait");
        }
        if finish {
            connection.step(Step::Finish);
            connection.step(Step::Send { bytes: 1, plain: true });
        }
        connection.settle();
        prop_assert_eq!(connection.received, connection.sent);
    }
}

/// The model is not one in which nothing is ever redirected.
#[test]
fn a_receiver_that_keeps_up_gets_everything_past_tcp() {
    let mut connection = Connection::new();
    for _ in 0..1000 {
        connection.step(Step::Send { bytes: 1000, plain: true });
        connection.step(Step::Receive(u32::MAX));
    }
    assert_eq!((connection.redirected, connection.received), (1_000_000, 1_000_000));
}

/// A message that went by TCP holds back those after it until it has been received, and no longer.
#[test]
fn the_path_comes_back_when_what_went_by_tcp_has_been_received() {
    let mut connection = Connection::new();
    connection.step(Step::Send { bytes: 10, plain: false });
    connection.step(Step::Send { bytes: 10, plain: true });
    assert_eq!(connection.redirected, 0);
    connection.settle();
    connection.step(Step::Send { bytes: 10, plain: true });
    assert_eq!(connection.redirected, 10);
    connection.settle();
}
