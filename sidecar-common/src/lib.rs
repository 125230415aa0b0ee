//! What the kernel side and the user side of sidecar share: the layout of every map and the decisions taken in the
//! kernel, as pure functions that also run in plain tests.
#![cfg_attr(not(test), no_std)]

pub mod addr;
pub mod capture;
pub mod counter;
pub mod fastpath;
pub mod flow;
pub mod layout;
pub mod mesh;
#[cfg(feature = "user")]
mod pod;
pub mod rules;
pub mod sockopt;
pub mod steer;
