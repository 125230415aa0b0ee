use std::fs::File;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::*;

fn array() -> File {
    let array = File::from(memfd_create(c"beats", MFdFlags::empty()).unwrap());
    array.set_len(4096).unwrap();
    array
}

fn both_ends(threads: usize) -> (Pulse, Heartbeat) {
    let array = array();
    (Pulse::map(&array).unwrap(), Heartbeat::map(&array, threads).unwrap())
}

#[test]
fn the_oldest_beat_is_what_the_supervisor_feels() {
    let array = array();
    let pulse = Pulse::map(&array).unwrap();
    assert!(pulse.age() < Duration::from_secs(5));
    let heartbeat = Heartbeat::map(&array, 2).unwrap();
    let first = pulse.0.get(0).load(Ordering::Relaxed);
    heartbeat.beat(1);
    assert_eq!(pulse.0.get(0).load(Ordering::Relaxed), first, "the other thread has not beaten");
    heartbeat.beat(0);
    assert!(pulse.0.get(0).load(Ordering::Relaxed) > first);
}

#[test]
fn a_thread_that_waits_for_events_is_as_alive_as_the_first_and_one_that_was_woken_must_beat_again() {
    let (pulse, heartbeat) = both_ends(2);
    let seen = || pulse.0.get(0).load(Ordering::Relaxed);
    heartbeat.waits(1);
    let mut before = seen();
    for _ in 0..2 {
        heartbeat.beat(0);
        assert!(seen() > before, "nobody else is at work");
        before = seen();
    }
    heartbeat.woke(1);
    heartbeat.beat(0);
    assert_eq!(seen(), before, "it is at work since the beat before, and has not beaten");
    heartbeat.beat(1);
    assert!(seen() > before);
}

#[tokio::test]
async fn threads_at_work_are_asked_each_time_and_those_that_sleep_where_everybody_is() {
    let (_, heartbeat) = both_ends(3);
    heartbeat.waits(2);
    heartbeat.lead(false);
    heartbeat.asked(1).await;
    tokio::select! {
        biased;
        () = heartbeat.asked(2) => panic!("it is to be left to sleep"),
        () = std::future::ready(()) => {}
    }
    heartbeat.lead(true);
    heartbeat.asked(1).await;
    heartbeat.asked(2).await;
    let before = heartbeat.oldest();
    heartbeat.lead(false);
    assert_eq!(heartbeat.oldest(), before, "those that were asked owe an answer");
}

#[test]
fn what_a_main_thread_did_is_over_with_its_end_and_untold_once_handed_over() {
    let (pulse, heartbeat) = both_ends(1);
    let worker = process::id();
    assert!(!pulse.main_waits(worker));
    heartbeat.main_waits(true);
    assert!(pulse.main_waits(worker) && !pulse.main_waits(worker + 1));
    pulse.of_the_dead();
    assert!(!pulse.main_waits(worker));
    heartbeat.hand_over();
    heartbeat.main_waits(true);
    assert!(!pulse.main_waits(worker));
}

#[test]
fn whoever_has_handed_over_leaves_the_beat_to_another() {
    let (pulse, before) = both_ends(1);
    before.hand_over();
    pulse.0.get(0).store(1, Ordering::Relaxed);
    before.beat(0);
    before.carries(7);
    assert_eq!((pulse.0.get(0).load(Ordering::Relaxed), pulse.0.get(1).load(Ordering::Relaxed)), (1, 0));
}

#[test]
fn the_dead_have_not_beaten_in_the_future() {
    let array = array();
    let pulse = Pulse::map(&array).unwrap();
    pulse.0.get(0).store(u64::MAX, Ordering::Relaxed);
    Heartbeat::map(&array, 1).unwrap().carries(7);
    let carried = Carried::map(&array).unwrap();
    assert_eq!(carried.connections(), 7);
    pulse.0.get(0).store(u64::MAX, Ordering::Relaxed);
    pulse.of_the_dead();
    assert_eq!(carried.connections(), 0, "the dead carry nothing");
    assert!(pulse.0.get(0).load(Ordering::Relaxed) <= monotonic_now());
    pulse.0.get(0).store(1, Ordering::Relaxed);
    pulse.of_the_dead();
    assert_eq!(pulse.0.get(0).load(Ordering::Relaxed), 1, "an old beat stays old");
}
