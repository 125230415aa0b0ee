//! First bytes of connections. More bytes never take back what fewer have told.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../../sidecar-userspace/src/detect.rs"]
#[allow(dead_code, reason = "the sidecar uses the rest")]
mod detect;

use detect::{Opening, opening};

fuzz_target!(|bytes: &[u8]| {
    let whole = opening(bytes);
    let half = opening(&bytes[..bytes.len() / 2]);
    assert!(half == whole || half == Opening::Unclear);
});
