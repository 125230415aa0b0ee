//! What the applications of the tests are made of.

mod edges;
pub mod pattern;
pub mod puppet;
mod rush;
mod seen;
mod storm;
mod stream;
pub mod sys;
mod toil;

use seen::outcome;
pub use seen::{Event, Observation, Seen};
