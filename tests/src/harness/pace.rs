//! Machines slower than those that the tests' limits and amounts were chosen for: emulated ones.

use std::{env, time::Duration};

/// How many times slower than usual this machine is.
const SLOWNESS: &str = "SIDECAR_TEST_SLOWNESS";

fn slowness() -> u32 {
    let value = env::var(SLOWNESS).unwrap_or_else(|_| "1".to_owned());
    let slowness = value.parse().ok().filter(|slowness| *slowness > 0);
    slowness.unwrap_or_else(|| panic!("{SLOWNESS}={value}: not a positive number"))
}

/// A time limit: longer on a slow machine.
pub fn patient(limit: Duration) -> Duration {
    limit * slowness()
}

/// An amount of work that proves more the larger it is: smaller on a slow machine.
pub fn work(amount: u32) -> u32 {
    amount.div_ceil(slowness())
}
