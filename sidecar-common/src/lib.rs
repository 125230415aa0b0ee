//! What the kernel side and the user side of sidecar share: the layout of every map and the decisions taken in the
//! kernel, as pure functions that also run in plain tests.
#![no_std]

pub mod addr;
pub mod sockopt;
