//! The load, and what it moves in the metrics.

use super::{nginx, stage::Stage, story::Story};
use crate::{
    load::http::Outcome,
    world::{
        SERVER,
        metrics::Metrics,
        pod::{Place, Pod},
        process::Process,
        sidecar::{self, INBOUND, OUTBOUND, VERDICTS},
        wait,
    },
};
use anyhow::{Context, Result};
use std::time::Duration;

/// How long the load runs for the metrics.
const SPAN: Duration = Duration::from_secs(2);

/// How many clients ask at the same time. That many requests may be under way, uncounted, when the load is ended.
const CLIENTS: usize = 4;

/// Whether a counter fits what the load says: at least `least` requests, at most `most` and those that were under way.
pub(super) fn matches(counter: f64, least: usize, most: usize) -> bool {
    (least as f64..=(most + CLIENTS) as f64).contains(&counter)
}

/// Clients that keep asking until this is dropped.
pub(super) struct Load {
    process: Process,
}

impl Load {
    /// Clients in the client pod, a connection for each request.
    pub(super) fn start(stage: &Stage<'_>, name: &str) -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program's own file")?.display().to_string();
        let to = format!("{SERVER}:{}", nginx::PORT);
        let clients = CLIENTS.to_string();
        let line =
            [&program, "load", "http", "--to", &to, "--clients", &clients, "--pause", "4", "--expect", nginx::BODY];
        let process = Process::start(&stage.world.client, Place::App, &stage.world.folder, name, &line)?;
        Ok(Self { process })
    }

    /// How every request so far went.
    pub(super) fn outcomes(&mut self) -> Result<Vec<Outcome>> {
        self.process.check()?;
        Ok(self.process.output()?.split_inclusive('\n').filter_map(Outcome::parse).collect())
    }

    /// Ends it and tells how every request went.
    pub(super) fn stop(mut self) -> Result<Vec<Outcome>> {
        let outcomes = self.outcomes();
        drop(self);
        outcomes
    }
}

/// What a short load moves in the metrics of both sidecars.
pub(super) fn measured(stage: &mut Stage<'_>, story: &mut Story) -> Result<()> {
    story.chapter("A load, and the metrics that it moves");
    let pods = [(&stage.world.client, OUTBOUND, "source"), (&stage.world.server, INBOUND, "destination")];
    let before = [sidecar::metrics(pods[0].0)?, sidecar::metrics(pods[1].0)?];
    let load = Load::start(stage, "load-metrics")?;
    wait::pause(SPAN)?;
    let outcomes = load.stop()?;
    let failed = outcomes.iter().filter(|outcome| outcome.fault.is_some()).count();
    story.check(
        !outcomes.is_empty() && failed == 0,
        format!("{} requests in {SPAN:?}, each on a connection of its own: {failed} failed", outcomes.len()),
    );
    for ((pod, captured, reporter), before) in pods.into_iter().zip(&before) {
        moved(story, pod, before, outcomes.len(), &captured, reporter)?;
    }
    Ok(())
}

fn moved(
    story: &mut Story,
    pod: &Pod,
    before: &Metrics,
    requests: usize,
    captured: &[(&str, &str)],
    reporter: &str,
) -> Result<()> {
    let after = sidecar::metrics(pod)?;
    story.say(format!("GET :15020/metrics in the {} pod, what moved:", pod.name));
    let told = |series: &str| series.starts_with(VERDICTS) || series.starts_with("istio_tcp_");
    for (series, before, after) in after.moved(before, told) {
        story.show(&format!("{} {before} → {after}", without_unknown(series)));
    }
    let grown = |family, labels: &[(&str, &str)]| after.sum(family, labels) - before.sum(family, labels);
    let verdicts = grown(VERDICTS, captured);
    let opened = grown("istio_tcp_connections_opened_total", &[("reporter", reporter)]);
    story.check(
        matches(verdicts, requests, requests) && matches(opened, requests, requests),
        format!("the {} pod's sidecar captured {verdicts} and carried {opened} of {requests} connections", pod.name),
    );
    Ok(())
}

/// Istio's families have two dozen labels; those with nothing to say are left out.
fn without_unknown(series: &str) -> String {
    let Some((name, labels)) = series.trim_end_matches('}').split_once('{') else { return series.to_owned() };
    let labels: Vec<_> = labels.split(',').filter(|label| !label.ends_with("\"unknown\"")).collect();
    format!("{name}{{{}}}", labels.join(","))
}
