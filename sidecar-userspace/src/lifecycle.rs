//! Start, readiness and stop.

pub mod readiness;
