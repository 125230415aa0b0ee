//! Rules about Cargo.toml files.

use super::{
    Violation,
    files::{Manifest, Tree},
};

/// The crates outside the workspace, which cannot inherit and have to state their lints.
const OUTSIDE: [&str; 2] = ["sidecar-ebpf/Cargo.toml", "tests/fuzz/Cargo.toml"];

/// A lint table that no crate inherits protects nothing.
pub(super) fn lints(tree: &Tree) -> Vec<Violation> {
    let mut violations = Vec::new();
    for manifest in tree.manifests.iter().filter(|manifest| manifest.entries("package").next().is_some()) {
        let inherits = manifest.entries("lints").any(|(_, entry)| without_spaces(entry) == "workspace=true");
        let states = manifest.entries("lints.clippy").any(|(_, entry)| entry.starts_with("undocumented_unsafe_blocks"));
        let outside = OUTSIDE.contains(&manifest.path.as_str());
        if !(inherits || outside && states) {
            violations.push(Violation {
                file: manifest.path.clone(),
                line: 1,
                rule: "the crate does not take part in the workspace's lints".into(),
                fix: if outside {
                    "copy the root's [workspace.lints.*] tables into its [lints.*]".into()
                } else {
                    "add `[lints]` with `workspace = true`".into()
                },
            });
        }
    }
    violations
}

/// xtask has to work before our crates build.
pub(super) fn xtask_stands_alone(tree: &Tree) -> Vec<Violation> {
    let ours: Vec<&str> = tree.manifests.iter().filter_map(Manifest::package).collect();
    let xtask = tree.manifests.iter().filter(|manifest| manifest.path == "xtask/Cargo.toml");
    let sections = ["dependencies", "dev-dependencies", "build-dependencies"];
    xtask
        .flat_map(|manifest| sections.iter().flat_map(|section| manifest.entries(section)))
        .filter_map(|(line, entry)| Some((line, ours.iter().find(|name| **name == dependency(entry))?)))
        .map(|(line, name)| Violation {
            file: "xtask/Cargo.toml".into(),
            line,
            rule: format!("xtask links {name}"),
            fix: "run the built program instead".into(),
        })
        .collect()
}

impl Manifest {
    /// The `key = value` lines of a section, numbered from 1.
    fn entries<'a>(&'a self, section: &'a str) -> impl Iterator<Item = (usize, &'a str)> {
        let mut inside = false;
        self.text.lines().enumerate().filter_map(move |(index, line)| {
            let line = line.trim();
            if line.starts_with('[') {
                inside = line.trim_matches(['[', ']']) == section;
                return None;
            }
            (inside && !line.is_empty() && !line.starts_with('#')).then_some((index + 1, line))
        })
    }

    fn package(&self) -> Option<&str> {
        let (_, entry) = self.entries("package").find(|(_, entry)| without_spaces(entry).starts_with("name="))?;
        Some(entry.split_once('=')?.1.trim().trim_matches('"'))
    }
}

/// `sidecar-common.workspace = true` and `sidecar-common = { … }` name the same crate.
fn dependency(entry: &str) -> &str {
    entry.split(['=', '.', ' ']).next().unwrap_or(entry)
}

fn without_spaces(entry: &str) -> String {
    entry.replace(' ', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(manifests: &[(&str, &str)]) -> Tree {
        let mut tree = Tree::default();
        manifests.iter().for_each(|(path, text)| tree.add(path, (*text).to_owned()));
        tree
    }

    #[test]
    fn a_manifest_without_the_lints_is_found() {
        let package = "[package]\nname = \"a\"\n";
        assert_eq!(lints(&tree(&[("a/Cargo.toml", package)])).len(), 1);
        let other = format!("{package}[features]\nworkspace = true\n[lints]\n# workspace = true\n");
        assert_eq!(lints(&tree(&[("a/Cargo.toml", &other)])).len(), 1);
        assert_eq!(lints(&tree(&[("a/Cargo.toml", &format!("{package}[lints]\nworkspace = true\n"))])), []);
        assert_eq!(lints(&tree(&[("Cargo.toml", "[workspace]\nmembers = []\n")])), []);
    }

    #[test]
    fn the_crate_outside_the_workspace_states_its_lints() {
        let package = "[package]\nname = \"sidecar-ebpf\"\n";
        assert_eq!(lints(&tree(&[(OUTSIDE[0], package)])).len(), 1);
        let stated = format!("{package}[lints.clippy]\nundocumented_unsafe_blocks = \"deny\"\n");
        assert_eq!(lints(&tree(&[(OUTSIDE[1], &stated)])), []);
        assert_eq!(lints(&tree(&[("a/Cargo.toml", &stated)])).len(), 1, "members inherit");
    }

    #[test]
    fn xtask_linking_a_crate_of_ours_is_found() {
        let common = ("sidecar-common/Cargo.toml", "[package]\nname = \"sidecar-common\"\n");
        for entry in ["sidecar-common.workspace = true", "sidecar-common = { path = \"x\" }"] {
            let xtask = format!("[package]\nname = \"xtask\"\n[dependencies]\nanyhow = \"1\"\n{entry}\n");
            let found = xtask_stands_alone(&tree(&[common, ("xtask/Cargo.toml", &xtask)]));
            assert_eq!(found.first().map(|v| v.line), Some(5), "{entry}");
        }
        let alone = "[package]\nname = \"xtask\"\n[dependencies]\nanyhow = \"1\"\n";
        assert_eq!(xtask_stands_alone(&tree(&[common, ("xtask/Cargo.toml", alone)])), []);
    }
}
