use std::{
    fs::File,
    io::{IoSlice, Read, Seek, Write},
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

use nix::{
    sys::{
        memfd::{MFdFlags, memfd_create},
        socket::{ControlMessage, MsgFlags, sendmsg},
    },
    unistd::write,
};

use super::{Channel, Condition, Error, Order, Report, Start, Withdrawn, message::LONGEST};

fn start() -> Start {
    Start {
        cpus: 2,
        tunnels: true,
        reloaded: false,
        generation: 3,
        reload_failed: false,
        began: u64::MAX,
        predecessors: 1,
        successor: true,
        supervisor: 4711,
        log_level: Some("debug".to_owned()),
    }
}

#[test]
fn every_message_arrives_as_it_was_sent_and_alone() {
    let (supervisor, worker) = Channel::pair().unwrap();
    let orders = || {
        [
            Order::Start(start()),
            Order::Ping(u64::MAX),
            Order::Condition { condition: Condition::Programs, unready: Some("a\n\"b\" \u{0}".to_owned()) },
            Order::Condition { condition: Condition::Addresses, unready: None },
            Order::Reload(2),
            Order::Board,
            Order::HandOver { left: Duration::from_secs(30) },
            Order::ReloadFailed,
            Order::Drain { why: "SIGTERM".to_owned(), left: Duration::from_millis(1500) },
            Order::End { signal: "SIGINT".to_owned() },
        ]
    };
    orders().iter().for_each(|order| supervisor.send(order, &[]).unwrap());
    for order in orders() {
        assert_eq!(worker.receive::<Order>().unwrap().0, order);
    }
    let reports = || {
        let (failed, level) = (Report::Failed("no thread".to_owned()), Report::LogLevel("info".to_owned()));
        [
            Report::Serving,
            failed,
            Report::Pong(0),
            Report::Reloaded { offer: 2, in_force: true },
            level,
            Report::Open(7),
            Report::Drain,
            Report::Withdraw(Withdrawn::Inbound),
        ]
    };
    reports().iter().for_each(|report| worker.send(report, &[]).unwrap());
    for report in reports() {
        assert_eq!(supervisor.receive::<Report>().unwrap().0, report);
    }
    assert!(matches!(supervisor.receive::<Report>(), Err(Error::Busy)));
}

#[test]
fn descriptors_travel_with_their_message() {
    let (one, other) = Channel::pair().unwrap();
    let mut file = File::from(memfd_create(c"text", MFdFlags::empty()).unwrap());
    file.write_all(b"proxy: {}").unwrap();
    one.send(&Order::Ping(1), &[]).unwrap();
    one.send(&Order::Reload(1), &[file.as_fd(), file.as_fd()]).unwrap();
    drop(file);
    assert!(other.receive::<Order>().unwrap().1.is_empty());
    let (order, descriptors) = other.receive::<Order>().unwrap();
    assert_eq!((order, descriptors.len()), (Order::Reload(1), 2));
    let mut text = String::new();
    let mut received = File::from(descriptors.into_iter().next().unwrap());
    received.rewind().unwrap();
    received.read_to_string(&mut text).unwrap();
    assert_eq!(text, "proxy: {}");
}

#[test]
fn what_is_not_of_the_language_is_refused_and_the_next_message_is_understood() {
    let (worker, supervisor) = Channel::pair().unwrap();
    let long = [&b"\x03{\"Failed\":\""[..], &vec![b'x'; LONGEST], b"\"}"].concat();
    for (bytes, expected) in [
        (&b"\x04\"Serving\""[..], "version 4"),
        (b"\x03", "cannot be understood"),
        (b"\x03\"Serving", "cannot be understood"),
        (b"\x03\"Surrender\"", "unknown variant"),
        (b"\x03{\"Pong\":-1}", "invalid value"),
        (b"\x03{\"Pong\":1,\"Pong\":2}", "cannot be understood"),
        (b"\x03{\"Reloaded\":{\"a\":1}}", "unknown field"),
        (b"\x03\"Serving\" \"Serving\"", "trailing"),
        (b"\x03\xff\xfe", "cannot be understood"),
        (&long, "it was cut"),
    ] {
        write(&worker, bytes).unwrap();
        let error = supervisor.receive::<Report>().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    worker.send(&Report::Serving, &[]).unwrap();
    assert_eq!(supervisor.receive::<Report>().unwrap().0, Report::Serving);
}

#[test]
fn an_order_with_a_field_too_many_or_too_few_is_refused() {
    let (supervisor, worker) = Channel::pair().unwrap();
    for bytes in [
        &b"\x03{\"Start\":{\"cpus\":1}}"[..],
        b"\x03{\"Drain\":{\"why\":\"SIGTERM\",\"left\":{\"secs\":1,\"nanos\":0},\"now\":true}}",
        b"\x03{\"Condition\":{\"condition\":\"Weather\",\"unready\":null}}",
    ] {
        write(&supervisor, bytes).unwrap();
        assert!(matches!(worker.receive::<Order>(), Err(Error::Malformed(_))));
    }
}

#[test]
fn more_descriptors_than_allowed_are_closed_and_the_message_is_refused() {
    let (worker, supervisor) = Channel::pair().unwrap();
    let (end, other) = Channel::pair().unwrap();
    let many = vec![end.as_raw_fd(); 40];
    let rights = [ControlMessage::ScmRights(&many)];
    sendmsg::<()>(worker.as_raw_fd(), &[IoSlice::new(b"\x01\"Serving\"")], &rights, MsgFlags::empty(), None).unwrap();
    drop(end);
    assert!(matches!(supervisor.receive::<Report>(), Err(Error::TooManyDescriptors)));
    assert!(matches!(other.receive::<Report>(), Err(Error::Gone)), "a descriptor is still open");
    assert!(matches!(worker.send(&Report::Serving, &[other.as_fd(); 40]), Err(Error::TooManyDescriptors)));
}

#[test]
fn an_end_that_is_gone_or_does_not_read_is_told_and_nobody_waits() {
    let (one, other) = Channel::pair().unwrap();
    let sent = (0..1_000_000).find(|number| one.send(&Order::Ping(*number), &[]).is_err());
    assert!(sent.is_some(), "it takes messages without end");
    assert!(matches!(one.send(&Order::Ping(0), &[]), Err(Error::Busy)));
    drop(other);
    assert!(matches!(one.send(&Order::Ping(0), &[]), Err(Error::Gone)));
    assert!(matches!(one.receive::<Report>(), Err(Error::Gone)));
    let long = Report::Failed("x".repeat(LONGEST));
    assert!(matches!(one.send(&long, &[]), Err(Error::TooLong(_))));
}

#[test]
fn only_a_socket_is_taken_for_an_end() {
    let file = memfd_create(c"no-socket", MFdFlags::empty()).unwrap();
    assert!(matches!(Channel::inherited(file), Err(Error::Malformed(_))));
    let (one, other) = Channel::pair().unwrap();
    let inherited = Channel::inherited(one.into()).unwrap();
    inherited.send(&Order::Reload(1), &[]).unwrap();
    assert_eq!(other.receive::<Order>().unwrap().0, Order::Reload(1));
}
