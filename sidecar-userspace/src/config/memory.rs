//! Memory that a bound leaves out.

use super::{Acceleration, Config};

impl Config {
    /// That the fast path's queues are not bounded by `proxy.socket_buffer`, where both are asked for; for people.
    pub fn past_socket_buffer(&self) -> Option<&'static str> {
        let both = self.capture.acceleration != Acceleration::Off && self.proxy.socket_buffer.is_some();
        both.then_some(
            "proxy.socket_buffer is set and acceleration is not `off`: each connection on the fast path whose receiver is slow \
             holds up to 544 KiB that socket_buffer does not bound; add them to the memory limit (docs/operations.md, \"A memory \
             limit\"), allow fewer with capture.maps.accelerated, or set acceleration to `off`",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fast_path_and_a_bound_on_socket_buffers_together_are_told() {
        for (acceleration, buffer, told) in [
            (Acceleration::Off, None, false),
            (Acceleration::Off, Some(65_536), false),
            (Acceleration::Auto, None, false),
            (Acceleration::Auto, Some(65_536), true),
            (Acceleration::Force, Some(65_536), true),
        ] {
            let mut config = Config::default();
            (config.capture.acceleration, config.proxy.socket_buffer) = (acceleration, buffer);
            assert_eq!(config.past_socket_buffer().is_some(), told, "{acceleration:?} {buffer:?}");
        }
    }
}
