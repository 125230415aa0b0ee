//! A model of two sockets and everything that moves between them, one step at a time in any order: the decision must never lose
//! a byte, move one, or let more wait than it says.
//!
//! What is modelled is what the kernel does (net/ipv4/tcp_bpf.c, net/ipv4/tcp.c): bytes by TCP arrive in the receiver's TCP
//! queue some time after they were sent; redirected ones are in its other queue when the call returns; a receive looks at the
//! other queue first, and at TCP's if that is empty.

use std::collections::VecDeque;

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
    /// The value of the next byte to send and to receive: bytes are numbered.
    sent: u64,
    received: u64,
    /// `write_seq` and `copied_seq`, which count what goes by TCP.
    written: u32,
    consumed: u32,
    on_the_way: VecDeque<u64>,
    by_tcp: VecDeque<u64>,
    past_tcp: VecDeque<VecDeque<u64>>,
    redirected: u64,
}

/// TCP's send buffer: more is not taken before something arrives.
const SEND_BUFFER: usize = 3_000_000;

impl Connection {
    fn new() -> Self {
        // Just before sequence numbers wrap.
        Self { on: true, written: u32::MAX - 1000, consumed: u32::MAX - 1000, ..Self::default() }
    }

    fn waiting(&self) -> Waiting {
        let messages = self.past_tcp.iter().take(MOST_MESSAGES as usize);
        Waiting { bytes: messages.clone().map(|message| message.len() as u32).sum(), messages: messages.count() as u32 }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Send { .. } if self.finished => {}
            Step::Send { bytes, plain } => self.send(bytes, plain),
            Step::Arrive(bytes) => {
                let bytes = (bytes as usize).min(self.on_the_way.len());
                self.by_tcp.extend(self.on_the_way.drain(..bytes));
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
        let values = self.sent..self.sent + u64::from(bytes);
        match decide(&message) {
            Ok(()) => {
                self.past_tcp.push_back(values.collect());
                self.redirected += u64::from(bytes);
            }
            Err(_) if self.on_the_way.len() + self.by_tcp.len() + bytes as usize > SEND_BUFFER => return,
            Err(_) => {
                self.on_the_way.extend(values);
                self.written = self.written.wrapping_add(bytes);
            }
        }
        self.sent += u64::from(bytes);
    }

    fn receive(&mut self, most: u32) {
        let mut room = most;
        let mut take = |value: u64| {
            assert_eq!(value, self.received, "out of order");
            self.received += 1;
        };
        if self.past_tcp.is_empty() {
            while room > 0
                && let Some(value) = self.by_tcp.pop_front()
            {
                take(value);
                self.consumed = self.consumed.wrapping_add(1);
                room -= 1;
            }
            return;
        }
        while let Some(message) = self.past_tcp.front_mut() {
            while room > 0
                && let Some(value) = message.pop_front()
            {
                take(value);
                room -= 1;
            }
            if !message.is_empty() {
                return;
            }
            self.past_tcp.pop_front();
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
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn no_interleaving_loses_or_moves_a_byte_or_lets_more_wait(steps in vec(steps(), 1..120), finish in any::<bool>()) {
        let mut connection = Connection::new();
        for step in steps {
            connection.step(step);
            let bytes: usize = connection.past_tcp.iter().map(VecDeque::len).sum();
            let alone = connection.past_tcp.len() == 1;
            prop_assert!(alone || bytes <= MOST_BYTES as usize, "{bytes} bytes wait");
            prop_assert!(connection.past_tcp.len() <= MOST_MESSAGES as usize);
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
