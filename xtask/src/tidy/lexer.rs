//! Rust source with everything that is not code blanked out.

/// The text with comments, strings and character literals replaced by spaces; every line keeps its number and length.
pub(super) fn code(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    let mut before = ' ';
    while let Some(first) = rest.chars().next() {
        let (taken, is_code) = match not_code(rest, before) {
            Some(length) => (length, false),
            None => (first.len_utf8(), true),
        };
        let (token, after) = rest.split_at(taken);
        code.extend(token.chars().map(|c| if is_code || c == '\n' { c } else { ' ' }));
        before = token.chars().next_back().unwrap_or(' ');
        rest = after;
    }
    code
}

/// How many bytes at the start of `rest` are a comment or a literal.
fn not_code(rest: &str, before: char) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return Some(block_comment(rest));
    }
    if let Some(body) = rest.strip_prefix('"') {
        return Some(1 + closing_quote(body, '"'));
    }
    if rest.starts_with('\'') {
        return character(rest);
    }
    // `r` ends many names; a raw string's stands alone.
    let raw = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r'))?;
    let hashes = raw.len() - raw.trim_start_matches('#').len();
    if before.is_alphanumeric() || before == '_' || !raw[hashes..].starts_with('"') {
        return None;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    let body = rest.len() - raw.len() + hashes + 1;
    Some(rest[body..].find(&end).map_or(rest.len(), |at| body + at + end.len()))
}

/// Block comments nest.
fn block_comment(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        let here = &rest.as_bytes()[at..];
        if here.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if here.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// Bytes up to and with the closing quote.
fn closing_quote(body: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in body.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    body.len()
}

/// A character literal, not a lifetime: one character or an escape, then a quote.
fn character(rest: &str) -> Option<usize> {
    let body = &rest[1..];
    if body.starts_with('\\') {
        return Some(1 + closing_quote(body, '\''));
    }
    let first = body.chars().next()?;
    body[first.len_utf8()..].starts_with('\'').then(|| first.len_utf8() + 2)
}

#[cfg(test)]
mod tests {
    use super::code;

    #[test]
    fn only_code_is_left() {
        let cases = [
            ("let a = 1; // aya::x", "let a = 1;"),
            ("a /* b /* c */ d */ e", "a e"),
            (r#"f("aya\" // x", 'x', '\'', '"') + g"#, "f( , , , ) + g"),
            (r##"r#"a " b"# + br"c" + r"d""##, "+ +"),
            ("fn f<'a>(x: &'a str) {}", "fn f<'a>(x: &'a str) {}"),
            ("let var\"x\" = 1", "let var = 1"),
        ];
        for (text, left) in cases {
            let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert_eq!(words(&code(text)), words(left), "{text}");
            assert_eq!(code(text).len(), text.len(), "{text}");
        }
    }

    #[test]
    fn lines_keep_their_numbers() {
        assert_eq!(code("\"a\nb\"\nc").lines().nth(2), Some("c"));
    }
}
