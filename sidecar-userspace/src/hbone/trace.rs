//! The trace that a tunnel belongs to: the header `traceparent` (W3C Trace Context §3.2).

use http::HeaderValue;
use rustls::crypto::{GetRandomFailed, aws_lc_rs};

/// One that begins here, of version 00 and not sampled: `00-<32 hexadecimal digits>-<16>-00`.
///
/// # Errors
/// The machine has no randomness.
pub(super) fn begin() -> Result<HeaderValue, GetRandomFailed> {
    let mut random = [0; 24];
    loop {
        aws_lc_rs::default_provider().secure_random.fill(&mut random)?;
        let (trace, parent) = random.split_at(16);
        // §3.2.2: all zeros is no identifier.
        if trace.iter().any(|byte| *byte != 0) && parent.iter().any(|byte| *byte != 0) {
            let text = format!("00-{}-{}-00", hex(trace), hex(parent));
            return HeaderValue::try_from(text).map_err(|_| GetRandomFailed);
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_trace_is_another_and_in_the_form_of_the_standard() {
        let (one, other) = (begin().unwrap(), begin().unwrap());
        assert_ne!(one, other);
        let parts: Vec<&str> = one.to_str().unwrap().split('-').collect();
        assert_eq!((parts[0], parts[1].len(), parts[2].len(), parts[3]), ("00", 32, 16, "00"));
        let lower = |text: &str| text.chars().all(|digit| matches!(digit, '0'..='9' | 'a'..='f'));
        assert!(lower(parts[1]) && lower(parts[2]), "{one:?}");
    }
}
