mod edges;
mod model;

use super::*;

/// What makes a message wrong in one way.
type Spoil = fn(&mut Message);

/// A message that may go.
fn good() -> Message {
    Message {
        switched_on: true,
        layered: false,
        closing: false,
        nonblocking: true,
        plain: true,
        written: 7,
        consumed: 7,
        waiting: Waiting::default(),
        bytes: 100,
    }
}

/// Every combination of what can be wrong: a message goes only if nothing is, and the first in the order of the table says why.
#[test]
fn each_condition_alone_keeps_a_message_on_tcp() {
    let faults: [(Refusal, Spoil); 7] = [
        (Refusal::Off, |message| message.switched_on = false),
        (Refusal::Layered, |message| message.layered = true),
        (Refusal::Closing, |message| message.closing = true),
        (Refusal::Blocking, |message| message.nonblocking = false),
        (Refusal::NotPlain, |message| message.plain = false),
        (Refusal::Order, |message| message.written = 8),
        (Refusal::Full, |message| message.waiting = Waiting { bytes: MOST_BYTES, messages: 1 }),
    ];
    for wrong in 0_u32..1 << faults.len() {
        let mut message = good();
        for (index, (_, spoil)) in faults.iter().enumerate() {
            if wrong & 1 << index != 0 {
                spoil(&mut message);
            }
        }
        let expected = faults.get(wrong.trailing_zeros() as usize).map_or(Ok(()), |(refusal, _)| Err(*refusal));
        assert_eq!(decide(&message), expected, "{message:?}");
    }
}

#[test]
fn what_waits_is_bounded_in_bytes_and_messages() {
    let most = MOST_MESSAGES;
    for (waiting, bytes, expected) in [
        // The kernel cuts what is sent at some 540 KiB: one such message may go into an empty queue.
        ((0, 0), 557_056, Ok(())),
        ((MOST_BYTES - 100, 1), 100, Ok(())),
        ((MOST_BYTES - 99, 1), 100, Err(Refusal::Full)),
        ((most - 1, most - 1), 1, Ok(())),
        ((most, most), 1, Err(Refusal::Full)),
        // Empty messages cost memory as well.
        ((0, most), 0, Err(Refusal::Full)),
        ((u32::MAX, 1), u32::MAX, Err(Refusal::Full)),
    ] {
        let waiting = Waiting { bytes: waiting.0, messages: waiting.1 };
        assert_eq!(decide(&Message { waiting, bytes, ..good() }), expected, "{waiting:?} {bytes}");
    }
}

/// Sequence numbers wrap; only equality counts.
#[test]
fn unread_bytes_keep_their_place_also_when_sequence_numbers_wrap() {
    for (written, consumed) in [(0, u32::MAX), (u32::MAX, 0), (5, 4), (4, 5)] {
        assert_eq!(decide(&Message { written, consumed, ..good() }), Err(Refusal::Order));
    }
    for same in [0, u32::MAX] {
        assert_eq!(decide(&Message { written: same, consumed: same, ..good() }), Ok(()));
    }
}

#[test]
fn only_known_writes_without_urgent_data_and_zero_copy_are_plain() {
    const OOB: u64 = 1;
    const ZERO_COPY: u64 = 0x400_0000;
    const NO_SIGNAL_MORE: u64 = 0x4000 | 0x8000;
    // A buffer's length stands where `sendmsg` has its flags.
    for (number, third, fourth, plain) in [
        (syscall::WRITE, OOB, OOB, true),
        (syscall::WRITEV, OOB, OOB, true),
        (syscall::SENDTO, OOB, NO_SIGNAL_MORE, true),
        (syscall::SENDTO, 0, OOB, false),
        (syscall::SENDTO, 0, ZERO_COPY, false),
        (syscall::SENDMSG, NO_SIGNAL_MORE, OOB, true),
        (syscall::SENDMSG, OOB, 0, false),
        (syscall::SENDMSG, ZERO_COPY, 0, false),
        (syscall::SENDMMSG, OOB, 0, true),
        (syscall::SENDMMSG, 0, OOB | NO_SIGNAL_MORE, false),
        // sendfile, splice, io_uring_enter, no system call at all
        (40, 0, 0, false),
        (275, 0, 0, false),
        (426, 0, 0, false),
        (u64::MAX, 0, 0, false),
    ] {
        assert_eq!(is_plain_write(number, third, fourth), plain, "{number} {third:#x} {fourth:#x}");
    }
}

#[test]
fn only_large_writes_gain() {
    for (acknowledged, segments, gain) in [
        (WORTH_BYTES, 4, true),
        (WORTH_BYTES, 16, true),
        (WORTH_BYTES, 17, false),
        (WORTH_BYTES, 64, false),
        (1 << 40, u32::MAX.into(), false),
        (u64::MAX, u32::MAX.into(), true),
    ] {
        let carried = Carried { bytes: acknowledged, messages: segments };
        assert_eq!(carried.gains(), gain, "{carried:?}");
    }
}

/// What lies between neither comes nor goes.
#[test]
fn many_messages_lose_that_are_small_or_go_by_tcp_all_the_same() {
    const LARGE: u64 = 64 * LEAST_MESSAGE;
    for (bytes, messages, past, loses) in [
        (0, 0, 0, false),
        (63, 63, 63, false),
        (64, 64, 64, true),
        (LARGE - 1, 64, 64, true),
        (LARGE, 64, 64, false),
        (LARGE, 64, 8, false),
        (LARGE, 64, 7, true),
        (u64::MAX, 64, 0, true),
        (u64::MAX, 63, 0, false),
        (1000 * WORTH_SEGMENT - 1, 1000, 1000, false),
    ] {
        let sent = Sent { all: Carried { bytes, messages }, past };
        assert_eq!(sent.loses(), loses, "{sent:?}");
    }
}

#[test]
fn what_was_let_go_must_carry_much_more_to_come_back() {
    let worth = |bytes, departures| Carried { bytes, messages: 1 }.is_worth(WORTH_BYTES, departures);
    for (departures, least) in [(0, WORTH_BYTES), (1, 64 << 20), (2, 16 << 30), (3, 4 << 40)] {
        assert_eq!((worth(least - 1, departures), worth(least, departures)), (false, true), "{departures}");
    }
    assert!(!worth(u64::MAX, 7) && !worth(u64::MAX, u64::MAX));
    // The probe's come with nothing, and while it is decided nothing comes.
    let bytes = |bytes| Carried { bytes, messages: 0 };
    assert!(bytes(0).is_worth(0, 0) && !bytes(u64::MAX - 1).is_worth(u64::MAX, 0));
}

#[test]
fn what_came_since_is_known_also_when_the_kernels_number_of_segments_wraps() {
    let (then, now) = (Carried { bytes: 10, messages: u32::MAX.into() }, Carried { bytes: 70_010, messages: 3 });
    assert_eq!(now.since(then), Carried { bytes: 70_000, messages: 4 });
    assert_eq!(now.since(Carried::default()), now);
}

#[test]
fn every_refusal_has_a_counter_of_its_own() {
    use Refusal::*;
    let all = [Off, Layered, Closing, Blocking, NotPlain, Order, Full, Unknown];
    let counters: std::collections::HashSet<_> = all.iter().map(|refusal| refusal.counter()).collect();
    assert_eq!(counters.len(), all.len());
    for counter in counters {
        assert_eq!(counter.labels().1, "tcp");
    }
}

#[test]
fn fields_are_read_in_the_order_of_their_paths() {
    let mut asked = Vec::new();
    let fields = Fields::from_offsets(|path| {
        asked.push(path);
        Some(asked.len() as u32)
    });
    assert_eq!(asked, Fields::PATHS);
    let fields = fields.unwrap();
    assert_eq!((fields.local_v4, fields.fourth), (1, Fields::PATHS.len() as u32));
    assert_eq!(Fields::from_offsets(|path| (path != "file.f_flags").then_some(1)), Err("file.f_flags"));
}
