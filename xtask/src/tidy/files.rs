//! The tree that the checks read, and the rules about files as such.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{Violation, lexer};

/// Lines of code in one file above which it is worth a thought.
const LONG_FILE: usize = 450;

/// Folders that hold no source of ours.
const NOT_OURS: &[&str] = &["target", "node_modules"];

/// Every Rust file and manifest of the project.
#[derive(Default)]
pub(super) struct Tree {
    pub(super) sources: Vec<Source>,
    pub(super) manifests: Vec<Manifest>,
}

/// One Rust file.
pub(super) struct Source {
    /// Relative to the project's root.
    pub(super) path: String,
    /// Its lines, with comments and literals blanked.
    pub(super) code: Vec<String>,
    /// For each line, whether it belongs to tests.
    pub(super) is_test: Vec<bool>,
}

/// One Cargo.toml.
pub(super) struct Manifest {
    /// Relative to the project's root.
    pub(super) path: String,
    /// Its text.
    pub(super) text: String,
}

impl Tree {
    /// Reads the tree below `root`.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let mut tree = Self::default();
        for file in list(root)? {
            let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            tree.add(&file.strip_prefix(root).unwrap_or(&file).to_string_lossy(), text);
        }
        Ok(tree)
    }

    /// Adds one file.
    pub(super) fn add(&mut self, path: &str, text: String) {
        if path.ends_with(".rs") {
            self.sources.push(Source::new(path, &text));
        } else {
            self.manifests.push(Manifest { path: path.to_owned(), text });
        }
    }
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let code: Vec<String> = lexer::code(text).lines().map(str::to_owned).collect();
        let whole = path.split('/').any(|part| part == "tests" || part == "tests.rs" || part == "vm-tests");
        let is_test = if whole { vec![true; code.len()] } else { test_lines(&code) };
        Self { path: path.to_owned(), code, is_test }
    }

    /// The lines of the product itself, numbered from 1.
    pub(super) fn product(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.code.iter().zip(&self.is_test).enumerate();
        lines.filter(|(_, (_, is_test))| !**is_test).map(|(index, (line, _))| (index + 1, line.as_str()))
    }
}

/// The lines of inline modules under `#[cfg(test)]`.
fn test_lines(code: &[String]) -> Vec<bool> {
    let mut is_test = vec![false; code.len()];
    let mut index = 0;
    while index < code.len() {
        let opens = code[index].contains("#[cfg(test)]") || code[index].contains("#[cfg(all(test");
        let end = if opens { end_of_item(code, index) } else { index };
        if opens {
            is_test[index..=end].fill(true);
        }
        index = end + 1;
    }
    is_test
}

/// The line on which the item that starts at `start` ends: at its closing brace, or a semicolon before any brace.
fn end_of_item(code: &[String], start: usize) -> usize {
    let mut depth = 0_usize;
    for (index, line) in code.iter().enumerate().skip(start) {
        for c in line.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth <= 1 => return index,
                '}' => depth -= 1,
                ';' if depth == 0 => return index,
                _ => {}
            }
        }
    }
    code.len().saturating_sub(1)
}

fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let kind = entry.file_type().with_context(|| format!("cannot stat {}", path.display()))?;
        if kind.is_dir() && !name.starts_with('.') && !NOT_OURS.contains(&name.as_str()) {
            files.extend(list(&path)?);
        } else if kind.is_file() && (name.ends_with(".rs") || name == "Cargo.toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// A test that does not run proves nothing; what a kernel lacks is listed in vm-tests/kernels.toml.
pub(super) fn no_ignored_tests(tree: &Tree) -> Vec<Violation> {
    let mut violations = Vec::new();
    for source in &tree.sources {
        for (index, line) in source.code.iter().enumerate() {
            let line = line.replace(' ', "");
            if line.contains("#[ignore") || (line.contains("cfg_attr(") && line.contains(",ignore")) {
                violations.push(Violation {
                    file: source.path.clone(),
                    line: index + 1,
                    rule: "a test is ignored".into(),
                    fix: "let it run, remove it, or list the case with its reason in vm-tests/kernels.toml".into(),
                });
            }
        }
    }
    violations
}

/// One style of module files.
pub(super) fn no_mod_rs(tree: &Tree) -> Vec<Violation> {
    let named = tree.sources.iter().filter_map(|source| Some((source, source.path.strip_suffix("/mod.rs")?)));
    named
        .map(|(source, module)| Violation {
            file: source.path.clone(),
            line: 1,
            rule: "a module's file is called mod.rs".into(),
            fix: format!("move it to {module}.rs"),
        })
        .collect()
}

/// A guide, not a rule: files whose code outside tests is long.
pub(super) fn long_files(tree: &Tree) -> Vec<String> {
    let lengths = tree.sources.iter().map(|source| (&source.path, source.product().count()));
    lengths
        .filter(|(_, length)| *length > LONG_FILE)
        .map(|(path, length)| format!("{path}:1: {length} lines outside tests, the guide is {LONG_FILE}; split it"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(path: &str, text: &str) -> Tree {
        let mut tree = Tree::default();
        tree.add(path, text.to_owned());
        tree
    }

    #[test]
    fn an_ignored_test_is_found_and_a_mention_of_one_is_not() {
        for text in ["\n#[ignore]\nfn x() {}", "\n#[ignore = \"slow\"]", "\n#[cfg_attr(miri, ignore)]"] {
            let found = no_ignored_tests(&tree("tests/src/a.rs", text));
            assert_eq!(found.first().map(|v| (v.file.as_str(), v.line)), Some(("tests/src/a.rs", 2)), "{text}");
        }
        assert_eq!(no_ignored_tests(&tree("a.rs", "// #[ignore]\nlet x = \"#[ignore]\";")), []);
    }

    #[test]
    fn a_mod_rs_is_found() {
        assert_eq!(no_mod_rs(&tree("a/src/b/mod.rs", "")).len(), 1);
        assert_eq!(no_mod_rs(&tree("a/src/b.rs", "")), []);
    }

    #[test]
    fn only_lines_outside_tests_make_a_file_long() {
        let lines = "fn a() {}\n".repeat(LONG_FILE);
        let tested = format!("{lines}#[cfg(test)]\nmod tests {{\n{lines}}}\n");
        assert_eq!(long_files(&tree("a.rs", &tested)), Vec::<String>::new());
        assert_eq!(long_files(&tree("a.rs", &format!("{tested}fn after() {{}}\n"))).len(), 1);
    }
}
