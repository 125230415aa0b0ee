//! Machines slower than those that the tests' limits and amounts were chosen for: emulated ones.

use std::{env, time::Duration};

/// How many times slower than usual this machine is.
const SLOWNESS: &str = "SIDECAR_TEST_SLOWNESS";
/// How many times more is done than usual, for whoever has the time.
const MORE: &str = "SIDECAR_TEST_MORE";

fn slowness() -> u32 {
    positive(SLOWNESS)
}

fn positive(name: &str) -> u32 {
    let value = env::var(name).unwrap_or_else(|_| "1".to_owned());
    let number = value.parse().ok().filter(|number| *number > 0);
    number.unwrap_or_else(|| panic!("{name}={value}: not a positive number"))
}

/// A time limit: longer on a slow machine.
pub fn patient(limit: Duration) -> Duration {
    limit * slowness()
}

/// An amount of work that proves more the larger it is: smaller on a slow machine, larger where more is asked for.
pub fn work(amount: u32) -> u32 {
    (amount * positive(MORE)).div_ceil(slowness())
}
