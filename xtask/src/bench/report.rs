//! The figures as a file.

use super::{
    conditions::Conditions,
    figure::Figure,
    mode::{Mode, Pair},
    samples::Samples,
};
use crate::process;
use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use std::{fs, path::PathBuf};

/// Writes `target/bench/<date>.json` and says where.
pub(super) fn write(samples: &Samples, modes: &[Mode], conditions: &Conditions) -> Result<PathBuf> {
    let folder = process::root().join("target/bench");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let path = folder.join(format!("{}.json", conditions.date));
    let text = serde_json::to_string_pretty(&report(samples, modes, conditions))?;
    fs::write(&path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

fn report(samples: &Samples, modes: &[Mode], conditions: &Conditions) -> Value {
    let figures: Map<_, _> =
        Figure::ALL.iter().map(|figure| (figure.key().to_owned(), entry(samples, *figure, modes))).collect();
    let described: Map<_, _> = modes
        .iter()
        .map(|mode| (mode.name().to_owned(), json!({ "is": mode.is(), "not_measured": samples.faults(*mode) })))
        .collect();
    json!({ "date": conditions.date, "conditions": conditions.facts, "modes": described, "figures": figures })
}

fn entry(samples: &Samples, figure: Figure, modes: &[Mode]) -> Value {
    let values: Map<_, _> = modes
        .iter()
        .filter_map(|mode| {
            let summary = samples.summary(figure, *mode)?;
            let rounds = samples.values(figure, *mode);
            let value = json!({ "median": summary.median, "min": summary.min, "max": summary.max, "rounds": rounds });
            Some((mode.name().to_owned(), value))
        })
        .collect();
    let mut entry = json!({ "label": figure.label(), "unit": figure.unit(), "modes": values });
    for (prefix, pair) in [("", Pair::PLAINTEXT), ("mtls_", Pair::MTLS)] {
        let ratio = |to| samples.ratio(figure, pair.sidecar, to);
        entry[format!("{prefix}sidecar_to_direct")] = json!(ratio(Mode::Direct));
        entry[format!("{prefix}sidecar_to_envoy")] = json!(ratio(pair.envoy));
        entry[format!("{prefix}added_sidecar_to_added_envoy")] = json!(samples.added(figure, pair));
    }
    entry
}
