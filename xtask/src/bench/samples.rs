//! What was measured.

use super::{
    figure::Figure,
    mode::{Mode, Pair},
};
use anyhow::Error;
use std::collections::BTreeMap;

/// All values of one run.
#[derive(Default)]
pub(super) struct Samples {
    values: BTreeMap<(Figure, Mode), Vec<f64>>,
    /// Why a mode, or something of it, could not be measured; each reason once.
    faults: BTreeMap<Mode, Vec<String>>,
}

/// The middle and the ends of the values of all rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Summary {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Summary {
    /// `None` of nothing.
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_unstable_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let (below, above) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Self { median: f64::midpoint(below, above), min, max })
    }
}

impl Samples {
    /// Adds a value of one round.
    pub(super) fn add(&mut self, figure: Figure, mode: Mode, value: f64) {
        self.values.entry((figure, mode)).or_default().push(value);
    }

    /// Something could not be measured.
    pub(super) fn fail(&mut self, mode: Mode, error: &Error) {
        let (reasons, reason) = (self.faults.entry(mode).or_default(), format!("{error:#}"));
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }

    /// Whether something could not be measured.
    pub(super) fn has_faults(&self) -> bool {
        !self.faults.is_empty()
    }

    /// The values of all rounds.
    pub(super) fn values(&self, figure: Figure, mode: Mode) -> &[f64] {
        self.values.get(&(figure, mode)).map_or(&[], Vec::as_slice)
    }

    /// Why something of a mode could not be measured.
    pub(super) fn faults(&self, mode: Mode) -> &[String] {
        self.faults.get(&mode).map_or(&[], Vec::as_slice)
    }

    /// Sums the rounds up; `None` when it was never measured.
    pub(super) fn summary(&self, figure: Figure, mode: Mode) -> Option<Summary> {
        Summary::of(self.values(figure, mode).to_vec())
    }

    /// One mode's values as multiples of another's that were measured just before or after them, where every value has its counterpart.
    pub(super) fn paired(&self, figure: Figure, of: Mode, to: Mode) -> Option<Summary> {
        let (of, to) = (self.values(figure, of), self.values(figure, to));
        if of.len() != to.len() {
            return None;
        }
        Summary::of(of.iter().zip(to).map(|(of, to)| of / to).collect())
    }

    /// What the sidecar adds to a latency as a multiple of what Envoy adds.
    pub(super) fn added(&self, figure: Figure, pair: Pair) -> Option<f64> {
        figure.is_latency().then(|| self.added_ratio(figure, pair.sidecar, pair.envoy)).flatten()
    }

    /// One mode's median as a multiple of another's.
    pub(super) fn ratio(&self, figure: Figure, of: Mode, to: Mode) -> Option<f64> {
        let (of, to) = (self.summary(figure, of)?.median, self.summary(figure, to)?.median);
        (to > 0.0).then(|| of / to)
    }

    /// What one mode adds to the direct way as a multiple of what another adds.
    fn added_ratio(&self, figure: Figure, of: Mode, to: Mode) -> Option<f64> {
        let direct = self.summary(figure, Mode::Direct)?.median;
        let (of, to) = (self.summary(figure, of)?.median - direct, self.summary(figure, to)?.median - direct);
        (to > 0.0).then(|| of / to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_middle_of_an_odd_and_of_an_even_number_of_rounds() {
        let mut samples = Samples::default();
        for value in [3.0, 1.0, 2.0] {
            samples.add(Figure::Start, Mode::Envoy, value);
        }
        let summary = |samples: &Samples| samples.summary(Figure::Start, Mode::Envoy);
        assert_eq!(summary(&samples), Some(Summary { median: 2.0, min: 1.0, max: 3.0 }));
        samples.add(Figure::Start, Mode::Envoy, 4.0);
        assert_eq!(summary(&samples), Some(Summary { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(samples.summary(Figure::Start, Mode::Direct), None);
    }

    #[test]
    fn compares_what_was_measured_one_after_the_other() {
        let mut samples = Samples::default();
        // The machine became four times slower.
        for (slow, fast) in [(10.0, 9.0), (40.0, 32.0), (40.0, 44.0)] {
            samples.add(Figure::Event64x1P50, Mode::Sidecar, slow);
            samples.add(Figure::Event64x1P50, Mode::SidecarFast, fast);
        }
        let paired = |samples: &Samples| samples.paired(Figure::Event64x1P50, Mode::SidecarFast, Mode::Sidecar);
        assert_eq!(paired(&samples), Some(Summary { median: 0.9, min: 0.8, max: 1.1 }));
        samples.add(Figure::Event64x1P50, Mode::Sidecar, 10.0);
        assert_eq!(paired(&samples), None);
    }

    #[test]
    fn compares_what_is_added_to_the_direct_way() {
        let mut samples = Samples::default();
        for (mode, value) in [(Mode::Direct, 100.0), (Mode::Envoy, 300.0), (Mode::Sidecar, 200.0)] {
            samples.add(Figure::ConnectP50, mode, value);
        }
        assert_eq!(samples.added_ratio(Figure::ConnectP50, Mode::Sidecar, Mode::Envoy), Some(0.5));
        assert_eq!(samples.ratio(Figure::ConnectP50, Mode::Sidecar, Mode::Direct), Some(2.0));
    }
}
