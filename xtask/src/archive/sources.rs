//! The Debian mirrors that the machine's apt sources name.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// One `deb` entry: where, and which suites and components.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
}

/// Base addresses of the mirrors that serve this release of Debian itself, in the order apt's sources give them.
pub(super) fn mirrors() -> Result<Vec<String>> {
    let release = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).unwrap_or("stable");
    let mut entries = Vec::new();
    for file in source_files()? {
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        entries.extend(if file.extension().is_some_and(|e| e == "sources") { deb822(&text) } else { one_line(&text) });
    }
    let mirrors = of_release(&entries, codename.trim_matches('"'));
    if mirrors.is_empty() {
        bail!("no apt source names a mirror of Debian {codename}: add one to /etc/apt/sources.list.d");
    }
    Ok(mirrors)
}

fn source_files() -> Result<Vec<PathBuf>> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(folder) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(folder.flatten().map(|entry| entry.path()));
    }
    files.retain(|file| file.is_file() && file.extension().is_some_and(|e| e == "list" || e == "sources"));
    files.sort();
    Ok(files)
}

/// The mirrors of entries that carry `main` of the release's own suite: other vendors' sources and the security
/// archive have other suites, and a foreign one that does not is refused by the signature later.
fn of_release(entries: &[Entry], codename: &str) -> Vec<String> {
    let mut mirrors: Vec<String> = Vec::new();
    let ours = |entry: &&Entry| {
        let suite = entry.suites.iter().any(|suite| suite == codename || suite == "stable");
        suite && entry.components.iter().any(|component| component == "main")
    };
    for uri in entries.iter().filter(ours).flat_map(|entry| &entry.uris).flat_map(|uri| expand(uri)) {
        let uri = uri.trim_end_matches('/').to_owned();
        if !mirrors.contains(&uri) {
            mirrors.push(uri);
        }
    }
    mirrors
}

/// Cloud images name a file that lists the mirrors.
fn expand(uri: &str) -> Vec<String> {
    let Some(list) = uri.strip_prefix("mirror+file:") else { return vec![uri.to_owned()] };
    let text = fs::read_to_string(Path::new(list)).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|word| !word.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

/// The format of `*.sources`: stanzas of `Key: values`, with continuation lines.
fn deb822(text: &str) -> Vec<Entry> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    lines.split(|line| line.trim().is_empty()).filter_map(stanza).collect()
}

fn stanza(lines: &[&str]) -> Option<Entry> {
    let words = |key: &str| -> Vec<String> {
        let is_key = |line: &&&str| line.split_once(':').is_some_and(|(k, _)| k.eq_ignore_ascii_case(key));
        let Some(start) = lines.iter().position(|line| is_key(&line)) else { return Vec::new() };
        let first = lines[start].split_once(':').map_or("", |(_, value)| value);
        let more = lines[start + 1..].iter().take_while(|line| line.starts_with([' ', '\t'])).copied();
        std::iter::once(first).chain(more).flat_map(str::split_whitespace).map(str::to_owned).collect()
    };
    let enabled = !words("Enabled").iter().any(|word| word.eq_ignore_ascii_case("no"));
    let binary = words("Types").iter().any(|word| word == "deb");
    (enabled && binary).then(|| Entry { uris: words("URIs"), suites: words("Suites"), components: words("Components") })
}

/// The format of `*.list`: `deb [options] uri suite components`.
fn one_line(text: &str) -> Vec<Entry> {
    text.lines().filter_map(one_entry).collect()
}

fn one_entry(line: &str) -> Option<Entry> {
    let rest = line.split('#').next()?.trim().strip_prefix("deb")?;
    let rest = rest.strip_prefix([' ', '\t'])?.trim_start();
    let rest = match rest.strip_prefix('[') {
        Some(options) => options.split_once(']')?.1,
        None => rest,
    };
    let mut words = rest.split_whitespace().map(str::to_owned);
    Some(Entry { uris: vec![words.next()?], suites: vec![words.next()?], components: words.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_releases_own_mirror_in_both_formats() {
        let modern = "Types: deb\n# snapshot\nURIs: mirror://a/debian/\nSuites: bookworm bookworm-updates\nComponents: main\n\n\
                      Types: deb\nURIs: mirror://a/security\nSuites: bookworm-security\nComponents: main\n\n\
                      Types: deb\nEnabled: no\nURIs: mirror://off\nSuites: bookworm\nComponents: main\n";
        assert_eq!(of_release(&deb822(modern), "bookworm"), ["mirror://a/debian"]);
        let classic = "# deb mirror://no bookworm main\ndeb-src mirror://src bookworm main\n\
                       deb [arch=amd64 signed-by=/k.gpg] mirror://b/debian bookworm main contrib # note\n\
                       deb mirror://vendor bookworm stable\n";
        assert_eq!(of_release(&one_line(classic), "bookworm"), ["mirror://b/debian"]);
    }

    #[test]
    fn reads_values_that_continue_on_the_next_line() {
        let text = "Types: deb\nURIs:\n mirror://a\n mirror://b\nSuites: stable\nComponents: main\n";
        assert_eq!(of_release(&deb822(text), "trixie"), ["mirror://a", "mirror://b"]);
    }
}
