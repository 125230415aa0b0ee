//! What the verifier says of a program that it refuses.

use aya::programs::ProgramError;

use super::chain;

/// Why the kernel refused a program, on one line: of the verifier's words those that say what it refused.
pub(in crate::redirect) fn refusal(error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => match decisive(&verifier_log.to_string()) {
            Some(words) => format!("{words} ({io_error})"),
            None => format!("{io_error}"),
        },
        other => chain(other),
    }
}

/// The last of the verifier's words: the instructions that led to what it refused.
pub(in crate::redirect) fn verifier_words(error: &ProgramError) -> String {
    /// Lines that are kept.
    const LAST: usize = 12;
    let ProgramError::LoadError { verifier_log, .. } = error else { return String::new() };
    let log = verifier_log.to_string();
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(LAST)..].join("\n")
}

/// The verifier speaks last of what it refused, but for statistics (kernel/bpf/verifier.c, `print_verification_stats`).
fn decisive(log: &str) -> Option<&str> {
    const STATISTICS: [&str; 4] = ["verification time ", "stack depth ", "processed ", "subprog "];
    let is_statistics = |line: &&str| STATISTICS.iter().any(|begin| line.starts_with(begin));
    log.lines().take_while(|line| !is_statistics(line)).map(str::trim).filter(|line| !line.is_empty()).last()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_verifier_refused_is_found_in_its_words() {
        const LOG: &str = "0: R1=ctx() R10=fp0\n155: (bc) w1 = w6\n156: (85) call unknown#9999\n";
        for (log, expected) in [
            (
                "invalid func unknown#9999\nverification time 547 usec\nstack depth 88+0\nprocessed 79 insns (limit 1000000)\n",
                "invalid func unknown#9999",
            ),
            // Linux 7.
            (
                "invalid func unknown#9999\nstack depth 88+0\nsubprog 0 (on_mesh) main insns_self 338 insns_total 338 stack 8\n\
                 subprog 1 (memmove) static insns_self 0 insns_total 0 stack 0\n",
                "invalid func unknown#9999",
            ),
            (
                "unknown func bpf_set_retval#187\nprocessed 79 insns (limit 1000000)\n\n",
                "unknown func bpf_set_retval#187",
            ),
        ] {
            assert_eq!(decisive(&format!("{LOG}{log}")), Some(expected), "{log}");
        }
        for silent in ["", "processed 0 insns (limit 1000000)\n"] {
            assert_eq!(decisive(silent), None, "{silent}");
        }
    }
}
