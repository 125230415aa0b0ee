//! Skips, which are announced: the runner of the kernels accepts only those its list names.

use std::io::{Write, stdout};

/// Says that `case` cannot run here. Written past the test runner's capture, so that it is always seen.
pub fn skip(case: &str, reason: &str) {
    // Nothing to do if standard output is closed.
    let _ = writeln!(stdout(), "SKIP {case}: {reason}");
}
