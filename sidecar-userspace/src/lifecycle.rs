//! Start, readiness and stop, and what supervisor and worker tell each other through memory.

pub mod beats;
pub mod board;
pub mod counters;
pub mod fast_path;
pub mod mixed;
pub(crate) mod predecessor;
pub mod readiness;
pub mod startup;
pub mod together;
pub(crate) mod words;
