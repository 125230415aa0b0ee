//! Which module of the sidecar may import which.
//!
//! The arrows go one way, from the stories of a connection down to addresses, so that each module can be read, tested
//! and replaced knowing only what is below it.

use super::{
    Violation,
    files::{Source, Tree},
};

const SOURCES: &str = "sidecar-userspace/src/";

/// Plain values that everything may name.
const GROUND: &[&str] = &["addr", "id", "io", "config", "proxy_protocol", "control"];

/// State that outlives a connection.
const STATE: &[&str] = &["identity", "telemetry", "lifecycle"];

/// What happens to a connection; none of these knows another.
const STAGES: &[&str] = &["redirect", "detect", "tls", "policy", "relay", "net"];

/// What protects a connection: made of stages, and none of these knows another.
const PROTECTION: &[&str] = &["mtls", "native"];

/// What a whole process is made of; none of the stories knows another.
const STORIES: &[&str] = &["inbound", "outbound", "dns", "admin", "ca"];

/// Tunnels, which are served beside the stories, and which a story may send connections through.
const TUNNELS: &[&str] = &["hbone"];

/// Module → groups it may import. A module that is not here is a violation: give it its place.
const MAY_IMPORT: &[(&str, &[&[&str]])] = &[
    ("addr", &[]),
    ("id", &[]),
    ("io", &[]),
    ("config", &[&["addr", "id", "io"]]),
    ("proxy_protocol", &[]),
    // The language of supervisor and worker: it knows neither.
    ("control", &[]),
    // What is given up, told in values.
    ("sandbox", &[&["config"]]),
    ("identity", &[GROUND]),
    ("telemetry", &[GROUND]),
    ("lifecycle", &[GROUND]),
    // Programs are attached to a pod; what the fast path changes about sockets is tried on sockets.
    ("redirect", &[GROUND, STATE, &["pod", "net"]]),
    ("detect", &[GROUND, STATE]),
    ("tls", &[GROUND, STATE]),
    ("policy", &[GROUND, STATE]),
    // The relay knows streams, urgent data among them, but no drain type.
    ("relay", &[GROUND, &["telemetry", "net"]]),
    ("net", &[GROUND, STATE]),
    ("pod", &[GROUND, &["net"]]),
    ("mtls", &[GROUND, STATE, &["net", "tls"]]),
    ("native", &[GROUND, STATE, &["net", "tls"]]),
    ("serve", &[GROUND, STATE, STAGES, PROTECTION]),
    ("inbound", &[GROUND, STATE, STAGES, PROTECTION, &["serve"]]),
    ("outbound", &[GROUND, STATE, STAGES, PROTECTION, TUNNELS, &["serve"]]),
    ("dns", &[GROUND, STATE, STAGES, &["serve"]]),
    ("hbone", &[GROUND, STATE, STAGES, &["serve"]]),
    // The admin server is given closures: it knows no type of the proxy.
    ("admin", &[GROUND, STATE]),
    // The authority at work: files and certificates, no connections.
    ("ca", &[GROUND, STATE]),
    // It carries nothing; of the admin interface it binds the socket.
    ("supervisor", &[GROUND, STATE, &["redirect", "net", "pod", "admin"]]),
    // The worker process. It knows no aya, no pod and no supervisor: what it needs of them is lent.
    (
        "app",
        &[
            GROUND,
            STATE,
            &["detect", "tls", "policy", "relay", "net"],
            PROTECTION,
            STORIES,
            TUNNELS,
            &["serve", "sandbox"],
        ],
    ),
    ("cli", &[GROUND, STATE, STAGES, STORIES, TUNNELS, &["pod", "serve", "supervisor", "app"]]),
    ("main", &[GROUND, &["app", "cli", "supervisor", "lifecycle"]]),
];

/// Imports against the arrows, and modules that have no place yet.
pub(super) fn check(tree: &Tree) -> Vec<Violation> {
    tree.sources.iter().filter_map(|source| Some((source, module(&source.path)?))).flat_map(of_source).collect()
}

fn of_source((source, own): (&Source, &str)) -> Vec<Violation> {
    let Some((_, allowed)) = MAY_IMPORT.iter().find(|(module, _)| *module == own) else {
        return vec![Violation {
            file: source.path.clone(),
            line: 1,
            rule: format!("the module {own} has no place among the arrows"),
            fix: "name it, and what it may import, in xtask/src/tidy/arrows.rs".into(),
        }];
    };
    let against = |name: &str| {
        let is_module = MAY_IMPORT.iter().any(|(module, _)| *module == name);
        is_module && name != own && !allowed.iter().any(|group| group.contains(&name))
    };
    imports(source)
        .into_iter()
        .filter(|(_, name)| against(name))
        .map(|(line, name)| Violation {
            file: source.path.clone(),
            line,
            rule: format!("{own} imports {name}, against the arrows"),
            fix: format!("pass what it needs as a value or closure, or move it below {own}"),
        })
        .collect()
}

/// The top-level module a file belongs to; `None` for lib.rs, which names them all, and for other crates.
fn module(path: &str) -> Option<&str> {
    let inside = path.strip_prefix(SOURCES)?;
    let first = inside.split('/').next()?;
    let name = first.strip_suffix(".rs").unwrap_or(first);
    (name != "lib").then_some(name)
}

/// Every top-level module named after the crate's root, with its line.
fn imports(source: &Source) -> Vec<(usize, String)> {
    let mut text = String::new();
    let mut lines = Vec::new();
    for (number, line) in source.product() {
        lines.push((text.len(), number));
        text.push_str(line);
        text.push('\n');
    }
    let roots = roots(&source.path);
    let mut found = Vec::new();
    for root in &roots {
        for (at, _) in text.match_indices(root.as_str()) {
            if text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            for (offset, name) in first_names(&text[at + root.len()..]) {
                let place = at + root.len() + offset;
                let line = lines.iter().rev().find(|(start, _)| *start <= place).map_or(1, |(_, number)| *number);
                found.push((line, name.to_owned()));
            }
        }
    }
    found.sort();
    found.dedup();
    found
}

/// How a file can name the crate's root: `crate::`, `sidecar::` in the binary, and `super::` once for each folder.
fn roots(path: &str) -> Vec<String> {
    let inside = path.strip_prefix(SOURCES).unwrap_or(path);
    if inside == "main.rs" {
        return vec!["sidecar::".into()];
    }
    let depth = inside.split('/').count();
    vec!["crate::".into(), "super::".repeat(depth)]
}

/// The names a path goes on with: one, or the first of each branch of `{a::x, b, c::{d}}`.
fn first_names(rest: &str) -> Vec<(usize, &str)> {
    let start = rest.len() - rest.trim_start().len();
    let Some(group) = rest[start..].strip_prefix('{') else { return name_at(rest, start).into_iter().collect() };
    let open = start + 1;
    let mut names = Vec::new();
    let (mut depth, mut fresh) = (0_usize, true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => fresh = true,
            c if fresh && !c.is_whitespace() => {
                names.extend(name_at(rest, open + at));
                fresh = false;
            }
            _ => {}
        }
    }
    names
}

fn name_at(text: &str, at: usize) -> Option<(usize, &str)> {
    let rest = &text[at..];
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    (end > 0).then(|| (at, &rest[..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violations(path: &str, text: &str) -> Vec<(usize, String)> {
        let mut tree = Tree::default();
        tree.add(&format!("{SOURCES}{path}"), text.to_owned());
        check(&tree).into_iter().map(|violation| (violation.line, violation.rule)).collect()
    }

    #[test]
    fn an_import_against_the_arrows_is_found_however_it_is_written() {
        let rule = |name: &str| format!("relay imports {name}, against the arrows");
        let cases = [
            ("use crate::lifecycle::Drain;", 1, "lifecycle"),
            ("use crate::{\n    addr::Ip,\n    telemetry::{a, b},\n    pod,\n};", 4, "pod"),
            ("fn f() -> crate::outbound::Out {}", 1, "outbound"),
            ("// first\nuse super::serve;", 2, "serve"),
            ("use super::{addr, app::X};", 1, "app"),
        ];
        for (text, line, name) in cases {
            assert_eq!(violations("relay.rs", text), [(line, rule(name))], "{text}");
        }
        assert_eq!(violations("relay/copy.rs", "use super::super::pod;"), [(1, rule("pod"))]);
    }

    #[test]
    fn imports_along_the_arrows_are_allowed() {
        for (path, text) in [
            ("relay.rs", "use crate::{addr::Ip, config, telemetry::Record};"),
            ("relay/copy.rs", "use super::pod;"),
            ("relay.rs", "// crate::pod\n#[cfg(test)]\nmod tests {\n    use crate::pod;\n}"),
            ("relay.rs", "use crate::relay::copy;\nuse std::pod::IpAddr;\nuse other_crate::pod::X;"),
            ("outbound.rs", "use crate::{serve, net, redirect, relay};"),
            ("main.rs", "use sidecar::{app, cli};"),
            ("lib.rs", "pub mod anything;\nuse crate::relay;"),
        ] {
            assert_eq!(violations(path, text), [], "{path}: {text}");
        }
    }

    #[test]
    fn siblings_do_not_import_each_other() {
        // The relay is about streams, and the fast path about sockets: see their rows.
        const EXCEPTIONS: [(&str, &str); 2] = [("relay", "net"), ("redirect", "net")];
        for group in [STORIES, PROTECTION, STAGES, STATE] {
            for (module, allowed) in MAY_IMPORT.iter().filter(|(module, _)| group.contains(module)) {
                let siblings = allowed.iter().copied().flatten().copied().filter(|name| group.contains(name));
                let found: Vec<&str> = siblings.filter(|name| !EXCEPTIONS.contains(&(*module, *name))).collect();
                assert!(found.is_empty(), "{module} may import {found:?}");
            }
        }
    }

    #[test]
    fn a_module_without_a_place_is_found() {
        let found = violations("manager/x.rs", "");
        assert_eq!(found, [(1, "the module manager has no place among the arrows".to_owned())]);
    }
}
