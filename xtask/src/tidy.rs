//! `cargo xtask tidy`: the rules of the house as programs.
//!
//! Each check reads the tree and names the file, the line, the rule and the fix.

mod arrows;
mod cargo;
mod files;
mod lexer;
mod manifests;
mod owners;

use std::fmt;

use anyhow::Result;

use crate::{
    process,
    setup::{self, Group},
    test::Tally,
};

/// Arguments of `tidy`.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// A place that breaks a rule.
#[derive(Debug, PartialEq, Eq)]
struct Violation {
    file: String,
    line: usize,
    rule: String,
    fix: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, rule, fix } = self;
        write!(f, "{file}:{line}: {rule}; {fix}")
    }
}

/// One rule over the whole tree.
struct Check {
    name: &'static str,
    check: fn(&files::Tree) -> Vec<Violation>,
}

const CHECKS: &[Check] = &[
    Check { name: "modules import along the arrows", check: arrows::check },
    Check { name: "what has one owner is used there only", check: owners::check },
    Check { name: "every manifest inherits the lints", check: manifests::lints },
    Check { name: "xtask links no crate of ours", check: manifests::xtask_stands_alone },
    Check { name: "no test is ignored", check: files::no_ignored_tests },
    Check { name: "modules are foo.rs beside foo/", check: files::no_mod_rs },
];

/// Checks everything; fails when something does not hold.
pub(crate) fn run(_args: Args) -> Result<()> {
    let mut tally = Tally::default();
    all(&mut tally);
    tally.conclude()
}

/// Checks everything, counting each rule as one test.
pub(crate) fn all(tally: &mut Tally) {
    println!("== tidy");
    match files::Tree::read(process::root()) {
        Ok(tree) => {
            CHECKS.iter().for_each(|check| tally.check(holds(check, &tree)));
            files::long_files(&tree).iter().for_each(|warning| println!("warning: {warning}"));
        }
        Err(error) => {
            eprintln!("error: tidy: {error:#}");
            tally.check(false);
        }
    }
    if tally.require("setup", || setup::ensure(&[Group::Toolchain, Group::Lint])).is_some() {
        cargo::check(tally);
    }
}

fn holds(check: &Check, tree: &files::Tree) -> bool {
    let violations = (check.check)(tree);
    for violation in &violations {
        println!("{violation}");
    }
    println!("tidy: {} ... {}", check.name, if violations.is_empty() { "ok" } else { "FAILED" });
    violations.is_empty()
}
