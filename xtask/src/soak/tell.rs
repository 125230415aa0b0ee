//! What became of the requests, by kind of fault.

use super::{Args, Made, Soak, fault::Fault, millis, seconds};
use crate::load::steady::{BROKEN, Kind, Outcome, WRONG};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// After requests are answered again a fault still counts for so long, in microseconds: for what has its outcome late.
const AFTER: u64 = 500_000;

/// Counts of one kind of fault, of the time between faults, or of everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Row {
    times: usize,
    requests: usize,
    served: usize,
    /// The longest time without an answered request, in microseconds.
    gap: u64,
    /// The slowest answer, in microseconds.
    slowest: u64,
    exchanges: usize,
    exchanges_served: usize,
    broken: usize,
    wrong: usize,
    /// Microseconds until everything was as before, of each time.
    back: Vec<u64>,
    /// How often each fault of a request or a stream.
    faults: BTreeMap<String, usize>,
}

/// The whole table.
pub(super) struct Summary {
    by_fault: BTreeMap<Fault, Row>,
    between: Row,
    all: Row,
    /// Requests that failed although nothing was going on, and what had: for whoever looks for the reason.
    stray: Vec<String>,
    rate: u64,
}

impl Summary {
    /// Of everything that was due until `end`.
    pub(super) fn of(soak: &Soak, rate: u64, end: u64) -> Self {
        let mut summary =
            Self { by_fault: BTreeMap::new(), between: Row::default(), all: Row::default(), stray: Vec::new(), rate };
        for made in &soak.made {
            for row in [summary.by_fault.entry(made.fault).or_default(), &mut summary.all] {
                row.times += 1;
                row.back.push(made.back - made.begin);
            }
        }
        let counted = |outcome: &&Outcome| outcome.due <= end;
        for outcome in soak.ledger.outcomes.iter().filter(counted) {
            summary.row(soak.made.iter().find(|made| made.has(outcome))).add(outcome);
            summary.all.add(outcome);
        }
        summary.stray =
            soak.ledger.outcomes.iter().filter(counted).filter_map(|outcome| stray(soak, outcome)).collect();
        summary.gaps(soak, end);
        summary.nothing_is_missing(soak, rate, end);
        summary
    }

    /// The row of this fault, or of the time between faults.
    fn row(&mut self, made: Option<&Made>) -> &mut Row {
        match made {
            Some(made) => self.by_fault.entry(made.fault).or_default(),
            None => &mut self.between,
        }
    }

    /// A gap belongs to what was going on in its middle.
    fn gaps(&mut self, soak: &Soak, end: u64) {
        let answered = |outcome: &&Outcome| outcome.kind == Kind::Request && outcome.served();
        let mut ends: Vec<_> = soak.ledger.outcomes.iter().filter(answered).map(|outcome| outcome.end).collect();
        ends.retain(|at| *at <= end);
        ends.push(end);
        ends.sort_unstable();
        for pair in ends.windows(2) {
            let gap = pair[1] - pair[0];
            let row = self.row(soak.made.iter().find(|made| made.lasts(pair[0] + gap / 2)));
            row.gap = row.gap.max(gap);
            self.all.gap = self.all.gap.max(gap);
        }
    }

    /// A request without an outcome would be one that nobody counts.
    fn nothing_is_missing(&mut self, soak: &Soak, rate: u64, end: u64) {
        let requests = soak.ledger.outcomes.iter().filter(|outcome| outcome.kind == Kind::Request);
        let Some(first) = requests.map(|outcome| outcome.due).min() else { return };
        let due = ((end - first) * rate / 1_000_000) as usize + 1;
        // The clocks' rounding may make one of the last.
        let missing = due.saturating_sub(self.all.requests + 1);
        if missing > 0 {
            self.all.requests += missing;
            self.all.faults.insert("no outcome".to_owned(), missing);
        }
    }

    /// Exchanges that got other bytes back than were sent.
    pub(super) fn wrong(&self) -> usize {
        self.all.wrong
    }

    /// The share served of an hour in which each kind that `counts` happens once, in per cent.
    fn hour(&self, counts: impl Fn(Fault) -> bool) -> f64 {
        let lost = |row: &Row| if row.times == 0 { 0.0 } else { (row.requests - row.served) as f64 / row.times as f64 };
        let kinds = self.by_fault.iter().filter(|(fault, _)| counts(**fault));
        100.0 - kinds.map(|(_, row)| lost(row)).sum::<f64>() * 100.0 / (self.rate * 3600) as f64
    }

    /// The same without those faults in which nobody is served, with a sidecar or without.
    fn hour_with_network(&self) -> f64 {
        self.hour(|fault| !fault.takes_the_network())
    }

    pub(super) fn print(&self) {
        println!(
            "{:16} {:>5} {:>8} {:>9} {:>10} {:>11} {:>13} {:>9} {:>7} {:>14}",
            "",
            "times",
            "requests",
            "served, %",
            "worst gap",
            "slowest, ms",
            "exchanges",
            "served, %",
            "broken",
            "back after, ms"
        );
        let rows = self.by_fault.iter().map(|(fault, row)| (fault.to_string(), row));
        for (name, row) in rows.chain([("between faults".to_owned(), &self.between), ("all".to_owned(), &self.all)]) {
            row.print(&name);
        }
        let mut faults: Vec<_> = self.all.faults.iter().collect();
        faults.sort_by_key(|(_, times)| std::cmp::Reverse(**times));
        faults.iter().take(8).for_each(|(fault, times)| println!("{times:8} times {fault}"));
        self.stray.iter().take(20).for_each(|stray| println!("between faults, {stray}"));
        if self.stray.len() > 20 {
            println!("and {} more", self.stray.len() - 20);
        }
        println!(
            "served: {:.3} % of {} requests; worst gap {:.0} ms; {} streams broken; wrong bytes in {} exchanges",
            percent(self.all.served, self.all.requests),
            self.all.requests,
            millis(self.all.gap),
            self.all.broken,
            self.all.wrong
        );
        println!(
            "of an hour in which each of these happens once: {:.4} %; without those that take the network away: {:.4} %",
            self.hour(|_| true),
            self.hour_with_network()
        );
    }

    /// The same, and each fault that was made.
    pub(super) fn to_json(&self, soak: &Soak, args: &Args, seed: u64) -> Value {
        let made = soak.made.iter().map(|made| {
            json!({
                "fault": made.fault.to_string(), "detail": made.detail,
                "at_s": seconds(made.begin - soak.begin), "back_ms": millis(made.back - made.begin),
            })
        });
        let rows: BTreeMap<_, _> =
            self.by_fault.iter().map(|(fault, row)| (fault.to_string(), row.to_json())).collect();
        json!({
            "seed": seed, "minutes": args.minutes, "requests_per_second": args.rate, "streams": args.streams,
            "served_percent_of_an_hour_with_each_once": self.hour(|_| true),
            "served_percent_of_an_hour_with_network": self.hour_with_network(), "ended_early": soak.lost, "all": self.all.to_json(), "between_faults": self.between.to_json(),
            "failed_between_faults": self.stray,
            "by_fault": rows, "faults": made.collect::<Vec<_>>(),
        })
    }
}

impl Made {
    /// Whether what happens at this moment belongs to it.
    fn lasts(&self, at: u64) -> bool {
        (self.begin..=self.back + AFTER).contains(&at)
    }

    /// Whether it was due meanwhile, or on its way when this began, and failed.
    fn has(&self, outcome: &Outcome) -> bool {
        self.lasts(outcome.due) || outcome.fault.is_some() && self.lasts(outcome.end)
    }
}

/// How a request failed that belongs to no fault.
fn stray(soak: &Soak, outcome: &Outcome) -> Option<String> {
    let (at, what) = (outcome.due, outcome.fault.as_ref()?);
    if outcome.kind != Kind::Request || soak.made.iter().any(|made| made.has(outcome)) {
        return None;
    }
    let after = soak.made.iter().rfind(|made| made.begin <= at).map_or_else(
        || "before the first fault".to_owned(),
        |made| {
            format!(
                "{:.0} ms after requests were answered again: {} ({})",
                millis(at - made.back),
                made.fault,
                made.detail
            )
        },
    );
    let (due, took) = (seconds(at.saturating_sub(soak.begin)), millis(outcome.end.saturating_sub(at)));
    Some(format!("{due:.1} s: {what} after {took:.0} ms, {after}"))
}

impl Row {
    fn add(&mut self, outcome: &Outcome) {
        let served = usize::from(outcome.served());
        if outcome.kind == Kind::Request {
            self.requests += 1;
            self.served += served;
        } else {
            self.exchanges += 1;
            self.exchanges_served += served;
        }
        if outcome.kind == Kind::Request && outcome.served() {
            self.slowest = self.slowest.max(outcome.end.saturating_sub(outcome.due));
        }
        self.broken += usize::from(outcome.is(BROKEN));
        self.wrong += usize::from(outcome.is(WRONG));
        if let Some(fault) = &outcome.fault {
            *self.faults.entry(fault.clone()).or_default() += 1;
        }
    }

    fn worst_back(&self) -> u64 {
        self.back.iter().max().copied().unwrap_or(0)
    }

    fn print(&self, name: &str) {
        println!(
            "{name:16} {:>5} {:>8} {:>9.3} {:>7.0} ms {:>11.0} {:>13} {:>9.3} {:>7} {:>14.0}",
            self.times,
            self.requests,
            percent(self.served, self.requests),
            millis(self.gap),
            millis(self.slowest),
            self.exchanges,
            percent(self.exchanges_served, self.exchanges),
            self.broken,
            millis(self.worst_back())
        );
    }

    fn to_json(&self) -> Value {
        json!({
            "times": self.times, "requests": self.requests, "served": self.served,
            "served_percent": percent(self.served, self.requests), "worst_gap_ms": millis(self.gap),
            "slowest_ms": millis(self.slowest), "exchanges": self.exchanges,
            "exchanges_served": self.exchanges_served, "streams_broken": self.broken, "wrong": self.wrong,
            "back_after_ms": self.back.iter().map(|us| millis(*us)).collect::<Vec<_>>(), "faults": self.faults,
        })
    }
}

/// Nothing of nothing is everything.
fn percent(part: usize, of: usize) -> f64 {
    if of == 0 { 100.0 } else { part as f64 * 100.0 / of as f64 }
}

#[cfg(test)]
mod tests {
    use super::{super::ledger::Ledger, *};

    fn outcome(due: u64, end: u64, fault: Option<&str>) -> Outcome {
        Outcome { kind: Kind::Request, due, end, fault: fault.map(str::to_owned) }
    }

    #[test]
    fn a_request_counts_where_it_was_due_and_one_without_an_outcome_counts_as_not_served() {
        let second = 1_000_000;
        let mut ledger = Ledger::new("/nowhere".into());
        // One a second: served, failed within the fault, served after it; those of the seconds 3 and 4 are missing.
        ledger.outcomes = vec![
            outcome(0, 10, None),
            outcome(second, 2 * second, Some("connect: refused")),
            outcome(2 * second, 2 * second + 20, None),
        ];
        let made = Made { fault: Fault::Link, detail: String::new(), begin: second, back: second + 100 };
        let soak = Soak { ledger, made: vec![made], lost: None, begin: 0 };
        let summary = Summary::of(&soak, 1, 5 * second);
        let link = &summary.by_fault[&Fault::Link];
        assert_eq!((link.times, link.requests, link.served), (1, 1, 0));
        assert_eq!((summary.between.requests, summary.between.served), (2, 2));
        assert_eq!((summary.all.requests, summary.all.served, summary.wrong()), (5, 2, 0));
        assert_eq!(summary.stray, Vec::<String>::new(), "what failed belongs to the fault");
        assert!((summary.hour_with_network() - 100.0).abs() < 1e-9, "the link does not count");
        assert!((summary.hour(|_| true) - (100.0 - 100.0 / 3600.0)).abs() < 1e-9, "but where all do");
        assert_eq!(link.gap, 2 * second + 10);
        assert_eq!(summary.all.gap, 3 * second - 20, "nothing was answered after the second 2");
    }

    #[test]
    fn what_fails_between_faults_is_told_with_the_fault_before_it() {
        let second = 1_000_000;
        let mut ledger = Ledger::new("/nowhere".into());
        // The second was on its way when the third fault began.
        let refused = |due, end| outcome(due, end, Some("connect: refused"));
        ledger.outcomes = vec![refused(5 * second, 5 * second + 2000), refused(6 * second - 10, 6 * second + 10)];
        let made = |begin, detail: &str| Made { fault: Fault::Link, detail: detail.into(), begin, back: begin + 1000 };
        let made = vec![made(second, "first"), made(2 * second, "second"), made(6 * second, "third")];
        let soak = Soak { ledger, made, lost: None, begin: 0 };
        let summary = Summary::of(&soak, 1, 6 * second);
        assert_eq!((summary.between.requests, summary.by_fault[&Fault::Link].requests), (1, 1));
        let [told] = &summary.stray[..] else { panic!("one failed") };
        let expected = "5.0 s: connect: refused after 2 ms, 2999 ms after requests were answered again: link (second)";
        assert_eq!(told, expected);
    }
}
