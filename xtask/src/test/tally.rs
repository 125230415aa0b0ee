//! The sum of every verdict line.

use std::fmt;

use anyhow::Result;

use crate::Reported;

/// How many tests passed, failed and were skipped, over all steps.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl Tally {
    /// Counts one line of a program's output, if it is a verdict line as libtest writes it:
    /// `test result: ok. 3 passed; 0 failed; …`.
    pub(crate) fn count(&mut self, line: &str) {
        let Some(counts) = line.trim_start().strip_prefix("test result: ") else { return };
        for part in counts.split([';', '.']) {
            let mut words = part.split_whitespace();
            let (Some(number), Some(what)) = (words.next(), words.next()) else { continue };
            let Ok(number) = number.parse::<u32>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" | "skipped" => self.skipped += number,
                _ => {}
            }
        }
    }

    /// Counts one check that is not a test.
    pub(crate) fn check(&mut self, held: bool) {
        if held {
            self.passed += 1;
        } else {
            self.failed += 1;
        }
    }

    /// Runs a step that counts its own tests. A failure that no test of it accounts for counts as one.
    pub(crate) fn step(&mut self, name: &str, step: impl FnOnce(&mut Self) -> Result<()>) {
        println!("== {name}");
        let before = self.failed;
        if let Err(error) = step(self) {
            eprintln!("error: {name}: {error:#}");
            if self.failed == before {
                self.failed += 1;
            }
        }
    }

    /// Runs something the steps need, which counts only when it fails.
    pub(crate) fn require<T>(&mut self, name: &str, step: impl FnOnce() -> Result<T>) -> Option<T> {
        let result = step();
        if let Err(error) = &result {
            eprintln!("error: {name}: {error:#}");
            self.failed += 1;
        }
        result.ok()
    }

    /// Prints the summary, which is the last line.
    ///
    /// # Errors
    /// When something failed, or nothing ran.
    pub(crate) fn conclude(&self) -> Result<()> {
        println!("{self}");
        if self.failed > 0 || self.passed == 0 {
            return Err(Reported.into());
        }
        Ok(())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_verdict_lines_and_nothing_else() {
        let lines = [
            (
                "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.02s",
                "12 passed, 0 failed, 1 skipped",
            ),
            ("test result: FAILED. 3 passed; 2 failed; 0 ignored", "3 passed, 2 failed"),
            (
                "test result: ok. kernel 6.1.0-44-amd64; boot 12.5 s; 40 passed; 0 failed; 2 skipped; finished in 90.1 s",
                "40 passed, 0 failed, 2 skipped",
            ),
            ("test tests::says_test_result: 3 passed ... ok", "0 passed, 0 failed"),
            ("9 passed, 9 failed", "0 passed, 0 failed"),
        ];
        for (line, sum) in lines {
            let mut tally = Tally::default();
            tally.count(line);
            assert_eq!(tally.to_string(), sum, "{line}");
        }
    }

    #[test]
    fn a_failed_step_counts_once_and_fails_the_whole() {
        let mut tally = Tally::default();
        tally.step("unaccounted", |_| anyhow::bail!("did not compile"));
        tally.step("accounted", |tally| {
            tally.count("test result: FAILED. 5 passed; 2 failed");
            anyhow::bail!("exit 101")
        });
        tally.step("good", |tally| {
            tally.check(true);
            Ok(())
        });
        assert_eq!(tally.to_string(), "6 passed, 3 failed");
        assert!(tally.conclude().is_err());
    }

    #[test]
    fn nothing_run_is_a_failure() {
        assert!(Tally::default().conclude().is_err());
    }
}
