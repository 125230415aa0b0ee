//! Times and sizes with their units: `500ms`, `1h`, `256KiB`.

use std::time::Duration;

use serde_json::{Value as Json, json};

use super::{
    kind::Kind,
    words::{given, quoted},
};

/// A unit and how many of the smallest unit it is, smallest first.
type Units = &'static [(&'static str, u64)];

/// A year has 365 days.
const TIME: Units =
    &[("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000), ("y", 365 * 86_400_000)];
const SIZE: Units = &[("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

/// Reads `NUMBER UNIT` as a count of the smallest unit; `None` if it is anything else.
fn parse(text: &str, units: Units) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let number: u64 = number.parse().ok()?;
    if number == 0 && unit.is_empty() {
        return Some(0);
    }
    let (_, scale) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.checked_mul(*scale)
}

/// The shortest way to write `count`: the largest unit that leaves no fraction. Nothing is `0`, without a unit.
fn show(count: u64, units: Units) -> String {
    if count == 0 {
        return "0".into();
    }
    let exact = units.iter().rev().find(|(_, scale)| count.is_multiple_of(*scale));
    exact.map_or_else(|| count.to_string(), |(unit, scale)| format!("{}{unit}", count / scale))
}

/// Reads a time of any length; `None` if it is none.
pub fn time(text: &str) -> Option<Duration> {
    parse(text, TIME).map(Duration::from_millis)
}

/// Reads a count between `min` and `max`, or says what is allowed.
fn within(text: &str, units: Units, min: u64, max: u64, what: &str) -> Result<u64, String> {
    parse(text, units).filter(|count| (min..=max).contains(count)).ok_or_else(|| {
        let names = quoted(units.iter().map(|(name, _)| *name));
        let (min, max) = (show(min, units), show(max, units));
        format!("{} is not allowed; expected {what} from {min} to {max} with its unit ({names})", given(text))
    })
}

fn schema(units: Units) -> Json {
    let names = units.iter().map(|(name, _)| *name).collect::<Vec<_>>().join("|");
    json!({ "anyOf": [{ "type": "string", "pattern": format!("^(0|[0-9]+ *({names}))$") }, { "const": 0 }] })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A time between `min` and `max`.
pub(super) struct Time {
    pub(super) min: Duration,
    pub(super) max: Duration,
}

impl Kind for Time {
    type Value = Duration;

    fn parse(&self, text: &str) -> Result<Duration, String> {
        within(text, TIME, millis(self.min), millis(self.max), "a time").map(Duration::from_millis)
    }

    fn show(&self, value: &Duration) -> Json {
        json!(show(millis(*value), TIME))
    }

    fn schema(&self) -> Json {
        schema(TIME)
    }
}

/// A time limit that `0` switches off.
pub(super) struct Limit(pub(super) Time);

impl Kind for Limit {
    type Value = Option<Duration>;

    fn parse(&self, text: &str) -> Result<Option<Duration>, String> {
        if parse(text, TIME) == Some(0) {
            return Ok(None);
        }
        self.0.parse(text).map(Some).map_err(|reason| format!("{reason}, or 0 for no limit"))
    }

    fn show(&self, value: &Option<Duration>) -> Json {
        self.0.show(&value.unwrap_or_default())
    }

    fn schema(&self) -> Json {
        self.0.schema()
    }
}

/// A number of bytes between `min` and `max`.
pub(super) struct Size {
    pub(super) min: usize,
    pub(super) max: usize,
}

impl Kind for Size {
    type Value = usize;

    fn parse(&self, text: &str) -> Result<usize, String> {
        // Both bounds are `usize`, so that whatever lies between them fits.
        within(text, SIZE, self.min as u64, self.max as u64, "a size").map(|bytes| bytes as usize)
    }

    fn show(&self, value: &usize) -> Json {
        json!(show(*value as u64, SIZE))
    }

    fn schema(&self) -> Json {
        schema(SIZE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_with_a_unit_is_read_and_shown_in_its_largest_unit() {
        for (text, units, count, shown) in [
            ("500ms", TIME, 500, "500ms"),
            ("1500ms", TIME, 1500, "1500ms"),
            ("10s", TIME, 10_000, "10s"),
            ("10 s", TIME, 10_000, "10s"),
            ("60s", TIME, 60_000, "1m"),
            ("90m", TIME, 5_400_000, "90m"),
            ("24h", TIME, 86_400_000, "1d"),
            ("90d", TIME, 7_776_000_000, "90d"),
            ("10y", TIME, 315_360_000_000, "10y"),
            ("0", TIME, 0, "0"),
            ("0s", TIME, 0, "0"),
            ("256KiB", SIZE, 262_144, "256KiB"),
            ("262144B", SIZE, 262_144, "256KiB"),
            ("1000B", SIZE, 1000, "1000B"),
        ] {
            assert_eq!(parse(text, units), Some(count), "{text}");
            assert_eq!(show(count, units), shown, "{text}");
        }
    }

    #[test]
    fn anything_else_is_no_time() {
        for text in ["", "s", "10", "-1s", "+1s", "1.5s", "1h30m", "10sec", "1S", "1µs", "99999999999999999999h", "١s"]
        {
            assert_eq!(parse(text, TIME), None, "{text}");
        }
    }
}
