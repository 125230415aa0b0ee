//! Input that nobody wrote in good faith, or that a crash left behind.

use std::{fmt::Write as _, time::Instant};

use proptest::prelude::*;

use super::*;

#[test]
fn documents_that_would_exhaust_memory_or_stack_give_one_fault() {
    let mut bomb = "a0: &a0 [x, x]\n".to_owned();
    for level in 1..40 {
        writeln!(bomb, "a{level}: &a{level} [*a{0}, *a{0}, *a{0}]", level - 1).unwrap();
    }
    let deep = (0..100).fold(String::new(), |text, depth| format!("{text}{:1$}a:\n", "", 2 * depth));
    for (name, content) in [
        ("flow lists", "[".repeat(100_000)),
        ("flow mappings", "{a: ".repeat(100_000)),
        ("block lists", "- ".repeat(100_000)),
        ("block mappings", deep),
        ("aliases", bomb),
        ("an alias of itself", "a: &a [*a]\n".into()),
        ("values", format!("capture: {{ outbound: {{ exclude_ports: [{}] }} }}", "1,".repeat(100_000))),
        ("bytes", "#".repeat(5 << 20)),
    ] {
        let started = Instant::now();
        let faults = faults_of(content);
        assert_eq!(faults.len(), 1, "{name}: {faults:?}");
        assert!(faults[0].len() < 200, "{name}: {faults:?}");
        assert!(started.elapsed() < Duration::from_secs(10), "{name}");
    }
}

#[test]
fn a_huge_value_is_cut_in_the_message() {
    let faults = faults_of(format!("capture:\n  on_failure: {}\n", "x".repeat(100_000)));
    assert_eq!(
        faults,
        [format!("f:2:15: capture.on_failure: `{}…` is not allowed; expected one of `open`, `closed`", "x".repeat(60))]
    );
}

#[test]
fn a_character_that_yaml_cannot_hold_is_refused_and_any_other_survives_being_shown() {
    for (character, taken) in [
        ('\0', false),
        ('\n', false),
        ('\u{7f}', false),
        ('\u{85}', false),
        ('\u{9f}', false),
        ('\u{fffe}', false),
        ('\u{ffff}', false),
        ('"', true),
        ('\\', true),
        ('#', true),
        ('\u{a0}', true),
        ('\u{2028}', true),
        ('\u{feff}', true),
        ('\u{fffd}', true),
        ('\u{1f600}', true),
        ('\u{10ffff}', true),
    ] {
        for given in ["pod.workload=a", "pod.cgroup=/a", "telemetry.log_level=[a"] {
            let closing = if given.ends_with("[a") { "]=debug" } else { "b" };
            let overrides = vec![format!("{given}{character}{closing}")];
            let Ok(loaded) = load(&Sources { overrides, ..Sources::default() }) else {
                assert!(!taken || given.ends_with("[a"), "{given}{character:?}");
                continue;
            };
            assert!(taken, "{given}{character:?}");
            for shown in [loaded.to_yaml(), loaded.to_json().to_string()] {
                assert_eq!(load_file(&shown).unwrap().config, loaded.config, "{given}{character:?}");
            }
        }
    }
}

/// Either a configuration or faults of a line each; never a panic.
fn judge(content: &[u8]) -> Result<(), TestCaseError> {
    if let Err(faults) = load_file(content) {
        prop_assert!(faults.iter().count() > 0);
        prop_assert_eq!(faults.to_string().lines().count(), faults.iter().count(), "{}", faults);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(content in prop::collection::vec(any::<u8>(), 0..300)) {
        judge(&content)?;
    }

    #[test]
    fn random_yaml_never_panics(content in "([ \n]{0,3}(capture|proxy|pod|workload|on_failure|a|0|1.5|~|true)?[-:,?\\[\\]{}&*!|>'\"%@`#<\t \n]{0,3}){0,30}") {
        judge(content.as_bytes())?;
    }

    #[test]
    fn any_value_of_any_key_is_taken_or_refused(index in 0..KEYS.len(), value in ".{0,20}|[0-9.:/\\[\\]{}, a-z]{0,20}") {
        let overrides = vec![format!("{}={value}", KEYS[index].path)];
        let Ok(loaded) = load(&Sources { overrides, ..Sources::default() }) else { return Ok(()) };
        for shown in [loaded.to_yaml(), loaded.to_yaml_with_origins(), loaded.to_json().to_string()] {
            let again = load_file(&shown).map_err(|faults| TestCaseError::fail(format!("{faults}\n{shown}")))?;
            prop_assert_eq!(without_places(&again.config), without_places(&loaded.config));
        }
    }

    #[test]
    fn any_name_survives_being_shown(name in ".{1,40}|[ -~]{1,40}") {
        let overrides = vec![format!("pod.workload={name}")];
        let Ok(loaded) = load(&Sources { overrides, ..Sources::default() }) else { return Ok(()) };
        let shown = loaded.to_yaml();
        let again = load_file(&shown).map_err(|faults| TestCaseError::fail(format!("{faults}\n{shown}")))?;
        prop_assert_eq!(again.config, loaded.config);
    }
}
