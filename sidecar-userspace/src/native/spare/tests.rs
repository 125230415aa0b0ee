use super::*;

const MOST: usize = 8;

fn destination() -> SocketAddr {
    "192.0.2.1:80".parse().unwrap()
}

/// A destination that was used at `then`, with so many wanted and so many on their way.
fn spares(then: Instant, wanted: usize, opening: usize) -> Spares {
    let mut spares = Spares::default();
    let one = Destination { ready: Vec::new(), opening, wanted, used: then, due: false };
    spares.destinations.insert(destination(), one);
    spares
}

#[test]
fn the_first_connection_wants_none_and_each_miss_twice_as_many() {
    let (mut spares, to, now) = (Spares::default(), destination(), Instant::now());
    assert_eq!(spares.used(to, false, MOST, now), Refill::Not);
    for wanted in [1, 2, 4, 8, 8] {
        assert_eq!(spares.used(to, false, MOST, now), Refill::Now);
        assert_eq!(spares.missing(to, usize::MAX), wanted);
        (0..wanted).for_each(|_| spares.opened(to, None));
        // What could not be opened is not wanted; here it is.
        spares.destinations.get_mut(&to).unwrap().wanted = wanted;
    }
}

#[test]
fn the_last_one_that_goes_in_a_burst_is_too_few_and_one_in_peace_is_enough() {
    let (then, to) = (Instant::now(), destination());
    for (since, wanted) in [(PEACE / 2, 2), (PEACE * 2, 1)] {
        let mut spares = spares(then, 1, 0);
        assert_eq!(spares.used(to, true, MOST, then + since), Refill::Now);
        assert_eq!(spares.destinations[&to].wanted, wanted, "{since:?}");
    }
}

#[test]
fn while_a_quarter_is_left_they_are_opened_in_peace_and_by_one_task() {
    let (then, to) = (Instant::now(), destination());
    for (there, refill) in [(2, Refill::Now), (3, Refill::InPeace), (8, Refill::Not)] {
        assert_eq!(spares(then, 8, there).used(to, true, MOST, then + PEACE), refill, "{there}");
    }
    let mut spares = spares(then, 8, 5);
    assert_eq!(spares.used(to, true, MOST, then + PEACE), Refill::InPeace);
    assert_eq!(spares.used(to, true, MOST, then + PEACE), Refill::Not);
    assert_eq!(spares.until_peace(to, then + PEACE * 3 / 2), Some(PEACE / 2));
    assert_eq!(spares.until_peace(to, then + PEACE * 2), None);
    assert_eq!(spares.missing(to, usize::MAX), 3);
    assert_eq!(spares.used(to, true, MOST, then + PEACE * 3), Refill::Not, "they are on their way");
}

#[test]
fn no_more_are_opened_than_the_thread_may_keep() {
    let (then, to) = (Instant::now(), destination());
    assert_eq!(spares(then, 8, 1).missing(to, 4), 3);
    assert_eq!(spares(then, 8, 5).missing(to, 4), 0);
}
