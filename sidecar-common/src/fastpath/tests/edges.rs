//! A model of a reader that is woken by edges, and of two threads that send on one socket: whatever the order of steps, nothing stays
//! in a queue of which the reader will not be told again.
//!
//! What is modelled is what the kernel does (net/ipv4/tcp_bpf.c, fs/eventpoll.c): the sender's lock is free between the decision to
//! redirect and the moment at which the message is in the queue; what arrives tells the reactor, which tells the reader once; a receive
//! looks into the queue of redirected messages first, and into TCP's only if that is empty.

use proptest::{collection::vec, prelude::*};

use super::super::{mixed::*, *};

/// What the proxy's end is told of a message that goes by TCP.
type Rule = fn(Refusal, Waiting, bool) -> Mixing;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// One of the two threads sends a byte; `plain`: in a way that could be redirected.
    Send { thread: usize, plain: bool },
    /// What that thread's call has had redirected gets into the queue, and the call ends.
    Land(usize),
    /// So many of the bytes that TCP has on its way arrive.
    Arrive(u64),
    /// The reactor asks the kernel.
    Ask,
    /// The reader receives at most so many bytes, if it was told that there are some.
    Receive(u64),
    /// The fast path is switched.
    Switch(bool),
    /// The socket is let go by a pass, which finds out by itself whether something moves.
    LetGo,
    /// The next pass enrols it.
    Enrol,
}

struct Connection {
    rule: Rule,
    on: bool,
    enrolled: bool,
    /// In the middle of a call, with a message that is not in the queue yet.
    moving: [bool; 2],
    past_tcp: u64,
    on_the_way: u64,
    by_tcp: u64,
    /// Bytes that went by TCP and were received.
    written: u32,
    consumed: u32,
    mixed: Mixed,
    /// Something has arrived since the reactor asked last.
    edge: bool,
    /// The reader was told, and has not found the end of it.
    ready: bool,
    settled: Option<u64>,
    /// Receives that found nothing.
    idle: u32,
}

impl Connection {
    fn new(rule: Rule) -> Self {
        Self {
            rule,
            on: true,
            enrolled: true,
            moving: [false; 2],
            past_tcp: 0,
            on_the_way: 0,
            by_tcp: 0,
            written: 0,
            consumed: 0,
            mixed: Mixed::default(),
            edge: false,
            ready: false,
            settled: None,
            idle: 0,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            // Its call has not returned.
            Step::Send { thread, .. } if self.moving[thread] => {}
            Step::Send { thread, plain } => self.send(thread, plain),
            Step::Land(thread) => {
                if std::mem::take(&mut self.moving[thread]) {
                    self.past_tcp += 1;
                    self.edge = true;
                }
            }
            Step::Arrive(bytes) => {
                let arrived = bytes.min(self.on_the_way);
                self.on_the_way -= arrived;
                self.by_tcp += arrived;
                self.edge |= arrived != 0;
            }
            Step::Ask => self.ready |= std::mem::take(&mut self.edge),
            Step::Receive(most) => self.receive(most),
            Step::Switch(on) => self.on = on,
            Step::LetGo => self.let_go(),
            Step::Enrol => self.enrolled = true,
        }
    }

    fn waiting(&self) -> Waiting {
        Waiting { bytes: self.past_tcp as u32, messages: self.past_tcp as u32 }
    }

    fn note(&mut self, mixing: Mixing) {
        match mixing {
            Mixing::Apart => {}
            Mixing::Mixed => self.mixed.count += 1,
            Mixing::Always => self.mixed.always = 1,
        }
    }

    fn send(&mut self, thread: usize, plain: bool) {
        let message = Message {
            switched_on: self.on,
            layered: false,
            closing: false,
            nonblocking: true,
            plain,
            written: self.written,
            consumed: self.consumed,
            waiting: self.waiting(),
            bytes: 1,
        };
        // Who is not enrolled is not judged.
        match decide(&message) {
            Ok(()) if self.enrolled => self.moving[thread] = true,
            decision => {
                if let (true, Err(refusal)) = (self.enrolled, decision) {
                    self.note((self.rule)(refusal, self.waiting(), !self.moving[1 - thread]));
                }
                self.on_the_way += 1;
                self.written += 1;
            }
        }
    }

    fn let_go(&mut self) {
        if std::mem::take(&mut self.enrolled) && (self.past_tcp != 0 || self.moving != [false; 2]) {
            self.note(Mixing::Always);
        }
    }

    fn told(&self) -> Option<u64> {
        (self.mixed.always == 0).then_some(self.mixed.count)
    }

    fn receive(&mut self, most: u64) {
        if !self.ready {
            return;
        }
        let told = self.told();
        let queue = if self.past_tcp == 0 { &mut self.by_tcp } else { &mut self.past_tcp };
        let received = most.min(*queue);
        *queue -= received;
        if self.past_tcp == 0 && received == 0 {
            self.idle += 1;
            self.settled = told.or(self.settled);
            self.ready = false;
            return;
        }
        // Whatever was received by TCP is what was sent and has neither to arrive nor to be received.
        self.consumed = self.written - (self.on_the_way + self.by_tcp) as u32;
        if received < most && self.told().is_some_and(|count| self.settled == Some(count)) {
            self.ready = false;
        }
    }

    /// Everything arrives, and the reader does what it is told to.
    fn settle(&mut self) -> u64 {
        for step in [Step::Land(0), Step::Land(1), Step::Arrive(u64::MAX)] {
            self.step(step);
        }
        self.step(Step::Ask);
        while self.ready {
            self.step(Step::Receive(100));
        }
        self.past_tcp + self.by_tcp
    }
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_usize..2, prop::bool::weighted(0.9)).prop_map(|(thread, plain)| Step::Send { thread, plain }),
        6 => (0_usize..2).prop_map(Step::Land),
        4 => (1_u64..4).prop_map(Step::Arrive),
        4 => Just(Step::Ask),
        8 => (1_u64..6).prop_map(Step::Receive),
        1 => any::<bool>().prop_map(Step::Switch),
        1 => Just(Step::LetGo),
        2 => Just(Step::Enrol),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn no_interleaving_leaves_something_that_nobody_will_be_told_of(steps in vec(steps(), 1..60)) {
        let mut connection = Connection::new(mixing);
        for step in steps {
            connection.step(step);
        }
        prop_assert_eq!(connection.settle(), 0);
    }
}

/// Both queues are filled before the reactor asks, once it was seen that both can be empty.
const BOTH: [Step; 9] = [
    Step::Send { thread: 0, plain: true },
    Step::Land(0),
    Step::Ask,
    Step::Receive(100),
    Step::Receive(100),
    Step::Send { thread: 0, plain: true },
    Step::Land(0),
    Step::Send { thread: 0, plain: false },
    Step::Arrive(1),
];

/// The other thread's message is decided upon before and gets into the queue after what goes by TCP, which was counted and had not arrived
/// when both queues were found empty.
const MEANWHILE: [Step; 10] = [
    Step::Send { thread: 0, plain: true },
    Step::Land(0),
    Step::Send { thread: 1, plain: true },
    Step::Switch(false),
    Step::Send { thread: 0, plain: true },
    Step::Ask,
    Step::Receive(100),
    Step::Receive(100),
    Step::Arrive(1),
    Step::Land(1),
];

#[test]
fn neither_what_waits_nor_who_else_sends_can_be_left_out() {
    const WHAT_WAITS: Rule = |_, _, _| Mixing::Apart;
    const WHO_ELSE: Rule = |_, _, _| Mixing::Mixed;
    for (steps, rule) in [(&BOTH[..], WHAT_WAITS), (&MEANWHILE[..], WHO_ELSE)] {
        for (rule, left) in [(rule, 1), (mixing as Rule, 0)] {
            let mut connection = Connection::new(rule);
            steps.iter().for_each(|step| connection.step(*step));
            assert_eq!(connection.settle(), left, "{steps:?}");
        }
    }
}

/// That is what it is for: each message redirected, and each receive the only one, but for the first.
#[test]
fn what_is_redirected_alone_is_received_once() {
    let mut connection = Connection::new(mixing);
    for _ in 0..1000 {
        connection.step(Step::Send { thread: 0, plain: true });
        connection.step(Step::Land(0));
        assert_eq!(connection.settle(), 0);
    }
    assert_eq!(connection.idle, 1);
}

#[test]
fn only_what_is_known_to_be_apart_is_not_told() {
    use Refusal::*;
    for refusal in [Off, Layered, Closing, Blocking, NotPlain, Order, Full, Unknown] {
        for (messages, alone) in [(0, true), (1, true), (MOST_MESSAGES, true), (0, false), (1, false)] {
            let expected = match (refusal, messages, alone) {
                (Off | Order | Full, 0, true) => Mixing::Apart,
                (Off | Order | Full, _, true) => Mixing::Mixed,
                _ => Mixing::Always,
            };
            assert_eq!(
                mixing(refusal, Waiting { bytes: 0, messages }, alone),
                expected,
                "{refusal:?} {messages} {alone}"
            );
        }
    }
}

#[test]
fn a_leg_has_one_place_from_both_ends_and_seldom_another_s() {
    // Clients of one listener: the kernel gives out every second port.
    let ports = (32_768..60_999).step_by(2).take(1000);
    let taken: std::collections::HashSet<_> = ports.map(|port| place(port, 15_001)).collect();
    assert!(taken.len() > 850, "{}", taken.len());
    for (one, other) in [(0, 0), (u16::MAX, 0), (40_000, 15_001), (15_001, 40_001)] {
        assert_eq!(place(one, other), place(other, one));
        assert!(place(one, other) < PLACES);
    }
}
