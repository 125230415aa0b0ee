//! What a virtual machine says on its serial console: the init's lines, libtest's, and the kernel's last words.

mod reasons;

use reasons::Reasons;
use std::collections::BTreeMap;

/// How the lines of the init in vm-tests start.
const INIT: &str = "vm-tests: ";

/// What the kernel prints when it will not get as far as the init's verdict.
const LAST_WORDS: &[&str] = &["Kernel panic - not syncing", "soft lockup", "rcu: INFO: ", "blocked for more than"];

/// Everything of interest so far.
#[derive(Debug, Default)]
pub(super) struct Console {
    /// The kernel's release, once the init is about to run the suite.
    pub(super) ready: Option<String>,
    pub(super) passed: usize,
    pub(super) failed: usize,
    /// Names of failed tests.
    pub(super) failures: Vec<String>,
    /// What failed tests said.
    pub(super) reasons: Reasons,
    /// Skipped cases with the reasons they gave.
    pub(super) skips: Vec<(String, String)>,
    /// The init's last word.
    pub(super) success: Option<bool>,
    /// Faults that no failed test tells of.
    pub(super) faults: Vec<String>,
    /// The kernel has said that it is in trouble; it may not come back.
    pub(super) lost: bool,
    /// Failed tests when the binary that runs now was started.
    failed_before: usize,
    /// The lines that come are libtest's list of failed tests.
    in_failures: bool,
}

impl Console {
    /// Takes in one line.
    pub(super) fn line(&mut self, line: &str) {
        self.reasons.line(line);
        if self.in_failures {
            self.in_failures = self.failure(line);
        }
        if line == "failures:" {
            self.in_failures = true;
        } else if let Some(init) = line.strip_prefix(INIT) {
            self.init(init);
        } else if let Some((_, result)) = line.split_once("test result: ") {
            self.result(result);
        } else if let Some(skip) = line.rsplit("... ").next().and_then(|rest| rest.strip_prefix("SKIP ")) {
            let (case, reason) = skip.split_once(": ").unwrap_or((skip, ""));
            self.skips.push((case.trim().to_owned(), reason.trim().to_owned()));
        } else if !self.lost && LAST_WORDS.iter().any(|words| line.contains(words)) {
            self.faults.push(format!("the kernel is in trouble: {}", line.trim()));
            self.lost = true;
        }
    }

    /// Takes a line after "failures:" that names a test; false if it does not. There are two such headings: an empty
    /// line and the tests' output come after the first, the names after the second.
    fn failure(&mut self, line: &str) -> bool {
        let name = line.strip_prefix("    ").filter(|name| !name.starts_with(' '));
        self.failures.extend(name.map(str::to_owned));
        name.is_some()
    }

    fn init(&mut self, line: &str) {
        match line {
            "success" => self.success = Some(true),
            "failure" => self.success = Some(false),
            _ if line.starts_with("kernel fault: ") || line.starts_with("cannot ") => self.faults.push(line.to_owned()),
            _ if line.starts_with("running ") => self.failed_before = self.failed,
            _ => match line.split_once("ready on ") {
                Some((_, release)) => self.ready = Some(release.to_owned()),
                None => self.ended(line),
            },
        }
    }

    /// `name: exit 0 after 1.0 s`, or the signal. A failed test explains itself; anything else is a fault.
    fn ended(&mut self, line: &str) {
        let well = line.contains(": exit 0 ");
        let explained = line.contains(": exit 101 ") && self.failed > self.failed_before;
        if !well && !explained {
            self.faults.push(line.to_owned());
        }
    }

    /// `ok. 3 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out; finished in 0.01s`.
    fn result(&mut self, line: &str) {
        let counts = line.split_once(". ").map_or("", |(_, counts)| counts).split("; ");
        let count = |count: &str| Some((count.split_once(' ')?.1.to_owned(), count.split_once(' ')?.0.parse().ok()?));
        let counts: BTreeMap<String, usize> = counts.filter_map(count).collect();
        let of = |name: &str| counts.get(name).copied().unwrap_or(0);
        self.passed += of("passed");
        self.failed += of("failed");
        if of("ignored") > 0 {
            self.faults.push(format!("{} ignored tests: announce a skip with its reason instead", of("ignored")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Console;

    fn read(lines: &[&str]) -> Console {
        let mut console = Console::default();
        lines.iter().for_each(|line| console.line(line));
        console
    }

    #[test]
    fn results_of_all_binaries_add_up() {
        let console = read(&[
            "vm-tests: ready on 6.1.0-56-amd64",
            "vm-tests: running a",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out; finished in 0.01s",
            "vm-tests: a: exit 0 after 1.0 s",
            "vm-tests: running b",
            "failures:",
            "",
            "---- b::x stdout ----",
            "    indented output",
            "failures:",
            "    b::x",
            "",
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "vm-tests: b: exit 101 after 1.0 s",
            "vm-tests: failure",
        ]);
        assert_eq!((console.passed, console.failed, console.success), (5, 1, Some(false)));
        assert_eq!(console.ready.as_deref(), Some("6.1.0-56-amd64"));
        assert_eq!(console.failures, ["b::x"]);
        assert_eq!(console.reasons.lines().collect::<Vec<_>>(), ["---- b::x stdout ----", "    indented output"]);
        assert!(console.faults.is_empty(), "{:?}", console.faults);
    }

    #[test]
    fn a_skip_is_found_with_and_without_captured_output() {
        let console = read(&["SKIP a: no veth", "test x::b ... SKIP x::b: old kernel: 5.15", "not a SKIP c: in prose"]);
        let expected = [("a", "no veth"), ("x::b", "old kernel: 5.15")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(console.skips, expected);
    }

    #[test]
    fn whatever_no_failed_test_explains_is_a_fault() {
        let table = [
            "vm-tests: a: exit 101 after 1.0 s",
            "vm-tests: a: Signaled(Pid(9), SIGSEGV, true) after 1.0 s",
            "vm-tests: kernel fault: BUG: something",
            "vm-tests: cannot run the suite: mount",
            "[   12.1] Kernel panic - not syncing: Attempted to kill init!",
            "test result: ok. 1 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s",
        ];
        for line in table {
            assert_eq!(read(&["vm-tests: running a", line]).faults.len(), 1, "{line}");
        }
    }
}
