//! What the supervisor takes, told to the worker, which may not look at it and shows it with its own.

use crate::{
    lifecycle::board::{Board, Figure},
    telemetry::process::Usage,
};

/// Looks at this process and writes what it takes on the board. A look takes some hundred microseconds.
pub(super) fn show(board: &Board) {
    let Usage { cpu, resident, anonymous, threads, descriptors } = Usage::now();
    for (figure, value) in [
        (Figure::SupervisorCpu, cpu.map(|seconds| seconds * 1e6)),
        (Figure::SupervisorResident, resident),
        (Figure::SupervisorAnonymous, anonymous),
        (Figure::SupervisorThreads, threads),
        (Figure::SupervisorDescriptors, descriptors),
    ] {
        if let Some(value) = value {
            board.set(figure, value as u64);
        }
    }
}
