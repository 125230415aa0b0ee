//! What the project has set itself, beside what was measured. For the reader: a noisy machine fails no run.

use super::{
    figure::Figure,
    mode::{Mode, Pair},
    samples::{Samples, Summary},
};

/// Upper bounds in the figure's own unit.
const LIMITS: [(Figure, f64); 2] = [(Figure::Start, 100.0), (Figure::IdleAnonymous, 12.0)];

/// What the sidecar adds to these must be no more than what Envoy adds; half of it is aimed at.
const ADDED: [Figure; 4] =
    [Figure::RoundTrip1P50, Figure::RoundTrip64P50, Figure::RoundTrip1000P50, Figure::ConnectP50];

/// These must be no more than Envoy's; half is aimed at.
const COMPARED: [Figure; 6] = [
    Figure::RoundTrip1Cpu,
    Figure::RoundTrip64Cpu,
    Figure::RoundTrip1000Cpu,
    Figure::ConnectCpu,
    Figure::BulkUpCpu,
    Figure::BulkDownCpu,
];

/// One line for each goal of which everything was measured.
pub(super) fn lines(samples: &Samples) -> Vec<String> {
    let limits = LIMITS.iter().filter_map(|(figure, limit)| {
        let value = samples.summary(*figure, Mode::Sidecar)?.median;
        let unit = figure.unit();
        Some(format!("{} {}: {value:.1} {unit}, at most {limit} {unit}", mark(value <= *limit), figure.label()))
    });
    let added = ADDED.iter().filter_map(|figure| {
        let ratio = samples.added(*figure, Pair::PLAINTEXT)?;
        Some(format!("{} {}: adds {ratio:.2} of what Envoy adds, {AIM}", mark(ratio <= 1.0), figure.label()))
    });
    let compared = COMPARED.iter().filter_map(|figure| {
        let ratio = samples.ratio(*figure, Mode::Sidecar, Mode::Envoy)?;
        Some(format!("{} {}: {ratio:.2} of Envoy's, {AIM}", mark(ratio <= 1.0), figure.label()))
    });
    limits.chain(added).chain(compared).chain(mtls(samples)).chain(fast_path(samples)).collect()
}

/// With mutual TLS, against Envoy with mutual TLS.
fn mtls(samples: &Samples) -> Vec<String> {
    let added = [Figure::RoundTrip1P50, Figure::RoundTrip64P50].into_iter().filter_map(|figure| {
        let ratio = samples.added(figure, Pair::MTLS)?;
        let mark = mark(ratio <= 0.75);
        Some(format!("{mark} mTLS, {}: adds {ratio:.2} of what Envoy adds, at most 0.75", figure.label()))
    });
    let connects = [Mode::SidecarMtls, Mode::SidecarMtlsCold]
        .into_iter()
        .flat_map(|mode| [Figure::ConnectP50, Figure::ConnectCpu].map(|figure| (mode, figure)));
    let connects = connects.filter_map(|(mode, figure)| {
        let ratio = samples.ratio(figure, mode, Mode::EnvoyMtls)?;
        let (mark, name) = (mark(ratio <= 0.5), mode.name());
        Some(format!("{mark} {name}, {}: {ratio:.2} of Envoy's, at most 0.5", figure.label()))
    });
    let bulk = [Figure::BulkUp, Figure::BulkDown].into_iter().filter_map(|figure| {
        let ratio = samples.ratio(figure, Mode::SidecarMtls, Mode::EnvoyMtls)?;
        Some(format!("{} mTLS, {}: {ratio:.2} of Envoy's, at least 1.5", mark(ratio >= 1.5), figure.label()))
    });
    let hybrid = samples.ratio(Figure::ConnectCpu, Mode::SidecarMtlsHybrid, Mode::SidecarMtlsCold);
    let hybrid =
        hybrid.map(|ratio| format!("  X25519MLKEM768 makes a connection's CPU {ratio:.2} of what it is without"));
    added.chain(connects).chain(bulk).chain(hybrid).collect()
}

/// Each exchange and stream with the fast path, against the same without it just before or after.
fn fast_path(samples: &Samples) -> Vec<String> {
    /// What was to gain, by so much; everything else must not lose. A stream is left on TCP, for the reasons in the README, and misses it.
    const GAINS: [(Figure, f64); 6] = [
        (Figure::Event65536x1P50, 0.8),
        (Figure::Event65536x1CpuAll, 0.8),
        (Figure::Event65536x64P50, 0.8),
        (Figure::Event65536x64CpuAll, 0.8),
        (Figure::EventBulk, 1.5),
        (Figure::EventBulkDown, 1.5),
    ];
    const NO_WORSE: [Figure; 14] = [
        Figure::Event64x1P50,
        Figure::Event64x1CpuAll,
        Figure::Event4096x1P50,
        Figure::Event4096x1CpuAll,
        Figure::Event1024x64P50,
        Figure::Event1024x64CpuAll,
        Figure::Event1024x1000P50,
        Figure::Event1024x1000CpuAll,
        Figure::Turned64P50,
        Figure::Turned64CpuAll,
        Figure::Turned4096P50,
        Figure::Turned4096CpuAll,
        Figure::EventBulkCpuAll,
        Figure::EventBulkDownCpuAll,
    ];
    /// What two runs of the same differ by at the least.
    const ALIKE: f64 = 0.01;
    let line = |figure: Figure, wanted: f64, slack: f64| {
        let Summary { median, min, max } = samples.paired(figure, Mode::SidecarFast, Mode::Sidecar)?;
        let (reached, bound) =
            if wanted > 1.0 { (median >= wanted, "at least") } else { (median <= wanted + slack, "at most") };
        let name = figure.label();
        let of = format!("{median:.3} [{min:.2}–{max:.2}] of what it is without");
        Some(format!("{} fast path, {name}: {of}, {bound} {}", mark(reached), wanted + slack))
    };
    let gains = GAINS.into_iter().filter_map(|(figure, wanted)| line(figure, wanted, 0.0));
    gains.chain(NO_WORSE.into_iter().filter_map(|figure| line(figure, 1.0, ALIKE))).collect()
}

const AIM: &str = "at most 1, aim 0.5";

fn mark(reached: bool) -> char {
    if reached { '✓' } else { '✗' }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_what_is_reached_and_leaves_out_what_was_not_measured() {
        let mut samples = Samples::default();
        samples.add(Figure::Start, Mode::Sidecar, 120.0);
        for (mode, value) in [(Mode::Direct, 10.0), (Mode::Envoy, 50.0), (Mode::Sidecar, 30.0)] {
            samples.add(Figure::ConnectP50, mode, value);
        }
        for (mode, value) in [(Mode::EnvoyMtls, 60.0), (Mode::SidecarMtls, 29.0), (Mode::SidecarMtlsCold, 31.0)] {
            samples.add(Figure::ConnectP50, mode, value);
        }
        let marks: Vec<_> = lines(&samples).iter().map(|line| line.chars().next()).collect();
        assert_eq!(marks, [Some('✗'), Some('✓'), Some('✓'), Some('✗')]);
    }
}
