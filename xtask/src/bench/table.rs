//! The figures as a table.

use super::{
    conditions::Conditions,
    figure::Figure,
    goals,
    mode::{Mode, Pair},
    samples::Samples,
};

/// Modes, conditions, figures, and what could not be measured.
pub(super) fn render(samples: &Samples, modes: &[Mode], conditions: &Conditions) -> String {
    let mut text = format!("\n{}\n", conditions.date);
    for (name, value) in &conditions.facts {
        text += &format!("  {name}: {value}\n");
    }
    text += "\n";
    for mode in modes {
        text += &format!("  {:19} {}\n", mode.name(), mode.is());
    }
    text += "\nMedian of all values [lowest–highest]. added: what the sidecar adds to the direct way, as a multiple of \
             what Envoy adds.\n\n";
    for (title, pair) in [("Plaintext", Pair::PLAINTEXT), ("Mutual TLS", Pair::MTLS)] {
        let modes = pair.modes(modes);
        if modes.iter().any(|mode| *mode != Mode::Direct) {
            text += &format!("{title}\n{}\n", align(&rows(samples, &modes, pair)));
        }
    }
    let goals = goals::lines(samples);
    if !goals.is_empty() {
        text += &format!("Goals of the sidecar with one worker:\n  {}\n", goals.join("\n  "));
    }
    for mode in modes {
        for fault in samples.faults(*mode) {
            text += &format!("\n{}: not measured: {fault}\n", mode.name());
        }
    }
    text
}

fn rows(samples: &Samples, modes: &[Mode], pair: Pair) -> Vec<Vec<String>> {
    let names = modes.iter().map(|mode| mode.name().to_owned());
    let ratios = ["sidecar/direct", "sidecar/envoy", "added"].map(str::to_owned);
    let head = ["".to_owned(), "unit".to_owned()].into_iter().chain(names).chain(ratios).collect();
    let measured = |figure: &&Figure| modes.iter().any(|mode| samples.summary(**figure, *mode).is_some());
    let lines = Figure::ALL.iter().filter(measured).map(|figure| row(samples, *figure, modes, pair));
    std::iter::once(head).chain(lines).collect()
}

fn row(samples: &Samples, figure: Figure, modes: &[Mode], pair: Pair) -> Vec<String> {
    let cells = modes.iter().map(|mode| {
        samples.summary(figure, *mode).map_or_else(
            || "–".to_owned(),
            |summary| format!("{} [{}–{}]", digits(summary.median), digits(summary.min), digits(summary.max)),
        )
    });
    let ratios = [
        samples.ratio(figure, pair.sidecar, Mode::Direct),
        samples.ratio(figure, pair.sidecar, pair.envoy),
        samples.added(figure, pair),
    ]
    .map(|ratio| ratio.map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}")));
    let names = [figure.label().to_owned(), figure.unit().to_owned()];
    names.into_iter().chain(cells).chain(ratios).collect()
}

/// About three significant digits.
fn digits(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Pads columns to their widest cell; numbers to the right.
fn align(rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..rows[0].len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
            0 | 1 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ") + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_a_dash_where_nothing_was_measured() {
        let mut samples = Samples::default();
        samples.add(Figure::Start, Mode::Envoy, 123.4);
        let cells = row(&samples, Figure::Start, &[Mode::Direct, Mode::Envoy], Pair::PLAINTEXT);
        assert_eq!(cells[2..], ["–", "123 [123–123]", "–", "–", "–"]);
    }

    #[test]
    fn keeps_three_digits() {
        assert_eq!([1234.5, 12.345, 1.2345].map(digits), ["1234", "12.3", "1.23"]);
    }
}
