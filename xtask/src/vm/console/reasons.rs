//! What failed tests said: the part of a console that tells a reader without the console why they failed.

/// Lines of one test: its error comes first, then what its sidecars logged.
const LINES: usize = 40;

/// Tests of one machine: where more fail, the first tell enough.
const TESTS: usize = 25;

/// What failed tests said, in lines with their headings. Bounded, however much they say.
#[derive(Debug, Default)]
pub(in super::super) struct Reasons {
    tests: Vec<Reason>,
    /// Tests that failed after the last of those.
    more: usize,
    place: Place,
}

/// What one test said.
#[derive(Debug)]
struct Reason {
    lines: Vec<String>,
    /// Lines on top of those.
    left_out: usize,
}

/// Where the last line was.
#[derive(Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Elsewhere,
    /// After the first heading "failures:", that of the outputs. The second one, that of the names, ends it.
    Outputs,
}

impl Reasons {
    /// Takes in one line of a console. libtest and libtest-mimic print the same, but for " stdout" in a test's heading.
    pub(super) fn line(&mut self, line: &str) {
        // A machine's next binary, or a kernel that gave up: the second heading need not have come.
        if line == "failures:" || line.starts_with("vm-tests: ") || line.starts_with("test result: ") {
            let first = line == "failures:" && self.place == Place::Elsewhere;
            self.place = if first { Place::Outputs } else { Place::Elsewhere };
        } else if self.place == Place::Outputs {
            self.said(line);
        }
    }

    fn said(&mut self, line: &str) {
        let heading = line.starts_with("---- ") && line.ends_with(" ----");
        if heading && self.tests.len() == TESTS {
            self.more += 1;
        } else if heading {
            self.tests.push(Reason { lines: vec![line.to_owned()], left_out: 0 });
        } else if self.more == 0
            && !line.is_empty()
            && let Some(test) = self.tests.last_mut()
        {
            if test.lines.len() > LINES { test.left_out += 1 } else { test.lines.push(line.to_owned()) }
        }
    }

    /// All of it, for a reader.
    pub(in super::super) fn lines(&self) -> impl Iterator<Item = String> {
        let tests = self.tests.iter().flat_map(|test| {
            let rest = (test.left_out > 0).then(|| format!("({} more lines)", test.left_out));
            test.lines.iter().cloned().chain(rest)
        });
        tests.chain((self.more > 0).then(|| format!("({} more failed tests)", self.more)))
    }
}

#[cfg(test)]
mod tests {
    use super::{LINES, Reasons, TESTS};

    fn read<'a>(lines: impl IntoIterator<Item = &'a str>) -> Vec<String> {
        let mut reasons = Reasons::default();
        lines.into_iter().for_each(|line| reasons.line(line));
        reasons.lines().collect()
    }

    #[test]
    fn what_failed_tests_of_both_harnesses_said_is_kept_and_nothing_else() {
        let said = read([
            "test a ... FAILED",
            "successes:",
            "---- fine stdout ----",
            "SKIP fine: nothing of interest",
            "failures:",
            "",
            "---- a stdout ----",
            "Error: the counters grew by 2",
            "",
            "time=2026 level=error",
            "",
            "failures:",
            "    a",
            "",
            "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "vm-tests: a: exit 101 after 1.0 s",
            "vm-tests: running b",
            "failures:",
            "",
            "---- case::both ----",
            "case both: no answer",
            "vm-tests: b: Signaled(Pid(9), SIGSEGV, true) after 1.0 s",
            "vm-tests: running c",
            "not of b",
            "failures:",
            "---- c stdout ----",
            "last",
        ]);
        let expected = [
            "---- a stdout ----",
            "Error: the counters grew by 2",
            "time=2026 level=error",
            "---- case::both ----",
            "case both: no answer",
            "---- c stdout ----",
            "last",
        ];
        assert_eq!(said, expected);
    }

    #[test]
    fn a_test_that_says_much_and_many_that_fail_do_not_flood_the_reader() {
        let (heading, line) = ("---- a stdout ----", "words");
        let one = read(["failures:", heading].into_iter().chain([line; LINES + 7]));
        assert_eq!((one.len(), one.last().map(String::as_str)), (LINES + 2, Some("(7 more lines)")));
        let many = read(["failures:"].into_iter().chain([heading, line].repeat(TESTS + 3)));
        assert_eq!((many.len(), many.last().map(String::as_str)), (TESTS * 2 + 1, Some("(3 more failed tests)")));
    }
}
