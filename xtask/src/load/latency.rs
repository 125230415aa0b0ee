//! The report of a client that measures latencies.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What it prints.
#[derive(Serialize, Deserialize)]
pub(crate) struct Report {
    /// Requests answered within the span.
    pub(crate) operations: u64,
    /// Length of the span.
    pub(crate) seconds: f64,
    /// Half of the requests were answered within this many microseconds.
    pub(crate) p50_us: f64,
    /// 99 of 100 requests were answered within this many microseconds.
    pub(crate) p99_us: f64,
    /// CPU time of each cgroup asked for, in microseconds.
    pub(crate) cpu_us: Vec<u64>,
}

/// Latencies, in nanoseconds; a request that takes four seconds is as bad as one that takes longer.
#[derive(Default)]
pub(super) struct Latencies(Vec<u32>);

impl Latencies {
    /// Adds one.
    pub(super) fn add(&mut self, latency: Duration) {
        self.0.push(u32::try_from(latency.as_nanos()).unwrap_or(u32::MAX));
    }

    /// Adds those that another thread has measured.
    pub(super) fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    /// Sums up.
    pub(super) fn report(mut self, span: Duration, cpu_us: Vec<u64>) -> Report {
        self.0.sort_unstable();
        Report {
            operations: self.0.len() as u64,
            seconds: span.as_secs_f64(),
            p50_us: self.quantile_us(0.5),
            p99_us: self.quantile_us(0.99),
            cpu_us,
        }
    }

    fn quantile_us(&self, quantile: f64) -> f64 {
        let index = ((self.0.len() as f64 * quantile) as usize).min(self.0.len().saturating_sub(1));
        self.0.get(index).map_or(f64::NAN, |nanos| f64::from(*nanos) / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_quantiles_of_the_sorted_latencies() {
        let mut latencies = Latencies::default();
        (1..=100).rev().for_each(|us| latencies.add(Duration::from_micros(us)));
        let report = latencies.report(Duration::from_secs(1), Vec::new());
        assert_eq!((report.operations, report.p50_us, report.p99_us), (100, 51.0, 100.0));
    }
}
