//! Reads the Prometheus text format, as far as it takes to see what moved.

use super::{http, pod::Pod};
use anyhow::Result;
use std::collections::BTreeMap;

/// One scrape: the samples by name and labels, as they were written.
#[derive(Default)]
pub(crate) struct Metrics {
    samples: BTreeMap<String, f64>,
}

impl Metrics {
    /// Asks a sidecar's metrics endpoint.
    pub(crate) fn scrape(pod: &Pod, port: u16) -> Result<Self> {
        Ok(Self::parse(&http::get(pod, port, "/metrics")?))
    }

    pub(crate) fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            // Label values may hold spaces; the value is what follows the last one.
            let (series, value) = line.rsplit_once(' ')?;
            Some((series.to_owned(), value.parse().ok()?))
        });
        Self { samples: samples.collect() }
    }

    /// The sum over all series of a family that carry these labels.
    pub(crate) fn sum(&self, family: &str, labels: &[(&str, &str)]) -> f64 {
        let wanted = |series: &str| {
            let (name, rest) = series.split_once('{').unwrap_or((series, ""));
            name == family && labels.iter().all(|(label, value)| has(rest, &format!("{label}=\"{value}\"")))
        };
        self.samples.iter().filter(|(series, _)| wanted(series)).map(|(_, value)| value).sum()
    }

    /// The series whose name satisfies the closure and whose value has changed since: (series, before, after).
    pub(crate) fn moved<'a>(
        &'a self,
        before: &'a Self,
        of: impl Fn(&str) -> bool + 'a,
    ) -> impl Iterator<Item = (&'a str, f64, f64)> + 'a {
        self.samples.iter().filter(move |(series, _)| of(series)).filter_map(|(series, after)| {
            let before = before.samples.get(series).copied().unwrap_or(0.0);
            (*after != before).then_some((series.as_str(), before, *after))
        })
    }
}

/// Whether this label stands in the list: at its beginning or after a comma, so that `a` is not found in `dst_a`.
fn has(labels: &str, label: &str) -> bool {
    labels.match_indices(label).any(|(at, _)| at == 0 || labels[..at].ends_with(','))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP a_total x\n# TYPE a_total counter\na_total{hook=\"connect\",verdict=\"capture\"} 3\n\
                        a_total{hook=\"connect\",verdict=\"bypass\"} 4\nb 1.5\n";

    #[test]
    fn sums_the_series_that_carry_the_labels() {
        let metrics = Metrics::parse(TEXT);
        assert_eq!(metrics.sum("a_total", &[]), 7.0);
        assert_eq!(metrics.sum("a_total", &[("verdict", "capture")]), 3.0);
        assert_eq!(metrics.sum("a_total", &[("ook", "connect")]), 0.0);
        assert_eq!(metrics.sum("b", &[]), 1.5);
    }

    #[test]
    fn names_only_what_moved() {
        let (before, after) = (Metrics::parse("b 1\nc 2\n"), Metrics::parse("b 1\nc 3\nd 1\n"));
        let moved: Vec<_> = after.moved(&before, |_| true).collect();
        assert_eq!(moved, [("c", 2.0, 3.0), ("d", 0.0, 1.0)]);
    }
}
