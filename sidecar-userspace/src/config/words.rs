//! Words in messages: what was given, what is allowed, what was probably meant.

/// How alike two words must be, from 0 to 1, for a suggestion: `on_fail` and `on_failure` are, `port` and `pod` are not.
const ALIKE: f64 = 0.8;

/// Characters of a given value that a message repeats.
const SHOWN: usize = 60;

/// The candidate most like `word`, if any is like it.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(&word, &candidate.to_lowercase()), candidate))
        .filter(|(alike, _)| *alike >= ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// `; did you mean …?` when a candidate is like `word`, else nothing.
pub(super) fn did_you_mean<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, candidates).map_or_else(String::new, |meant| format!("; did you mean `{meant}`?"))
}

/// The words quoted, separated by commas.
pub(super) fn quoted<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    words.into_iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

/// A given text as a message repeats it: quoted, on one line, cut where it would hide the message.
pub(super) fn given(text: &str) -> String {
    let mut shown = one_line(&text.chars().take(SHOWN).collect::<String>());
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    format!("`{shown}`")
}

/// The text without control characters, so that every fault keeps to its line.
pub(super) fn one_line(text: &str) -> String {
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escape).collect()
}

/// Whether a YAML file can hold the text as it is, so that what is shown can be read again. It may hold no control
/// character and neither of the two that are no characters.
pub(super) fn is_printable(text: &str) -> bool {
    !text.contains(|c: char| c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}'))
}
