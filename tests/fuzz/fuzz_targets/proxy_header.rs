//! PROXY protocol headers. What is read is written again as it was meant, and is read the same.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../../sidecar-userspace/src/proxy_protocol.rs"]
#[allow(dead_code, reason = "the sidecar uses the rest")]
mod proxy_protocol;

use proxy_protocol::Header;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(Some((header, length))) = Header::parse(bytes) {
        assert!(length <= bytes.len());
        let again = header.encode();
        assert_eq!(Header::parse(&again), Ok(Some((header, again.len()))));
    }
});
