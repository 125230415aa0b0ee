//! What a CONNECT request says of where it leads, for whom, and on what occasion. What is read is written as it was meant.
#![no_main]
#![allow(dead_code, reason = "the sidecar uses the rest")]

use libfuzzer_sys::fuzz_target;

#[path = "../../../sidecar-userspace/src/addr.rs"]
mod addr;

#[path = "../../../sidecar-userspace/src/hbone"]
mod hbone {
    pub(crate) mod authority;
    pub(crate) mod baggage;
    pub(crate) mod forwarded;
}

use hbone::{authority::Authority, baggage::Baggage, forwarded};

fuzz_target!(|text: &str| {
    if let Ok(authority) = Authority::parse(text) {
        let again = authority.to_string();
        assert_eq!(Authority::parse(&again), Ok(authority), "{again}");
    }
    let _ = forwarded::client(text);
    let _ = Baggage::parse(text);
});
