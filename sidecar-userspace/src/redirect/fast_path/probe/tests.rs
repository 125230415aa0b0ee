use super::*;

type Play = fn(Ends) -> Seen;

#[test]
fn a_report_is_kept_and_found_again() {
    for report in [
        Report { redirects: true, ..Report::default() },
        Report { sprung: vec!["fionread".into(), "order".into()], ..Report::default() },
    ] {
        assert_eq!(Report::from_json(&report.to_json()), Some(report));
    }
}

#[test]
fn what_is_no_report_is_none() {
    for text in [
        "{}",
        "[]",
        "null",
        r#"{"redirects": true}"#,
        r#"{"redirects": 1, "sprung": []}"#,
        r#"{"redirects": true, "sprung": ["a trap of another version"]}"#,
    ] {
        assert_eq!(Report::from_json(&serde_json::from_str(text).unwrap()), None, "{text}");
    }
}

#[test]
fn only_a_kernel_that_redirects_and_shows_nothing_is_clean() {
    let report = |redirects, sprung: &[&str], untried: &[&str]| {
        let [sprung, untried] = [sprung, untried].map(|names| names.iter().map(|&name| name.to_owned()).collect());
        Report { redirects, sprung, untried, took: Duration::ZERO }
    };
    assert!(report(true, &[], &[]).is_clean());
    for (unclean, words) in [
        (report(false, &[], &[]), "this kernel does not redirect"),
        (report(true, &["fionread"], &[]), "an application would see a difference: fionread"),
        (
            report(true, &[], &["peek", "order"]),
            "not tried, for their connections could not be enrolled or they did not end in time: peek, order",
        ),
        (report(true, &["fionread"], &["peek"]), "difference: fionread; not tried"),
        (report(false, &[], &lifecycle::fast_path::TRAPS), "none of the probe's connections could be enrolled"),
        (report(true, &[], &lifecycle::fast_path::TRAPS), "or they did not end in time: fionread"),
    ] {
        assert!(!unclean.is_clean() && unclean.verdict().contains(words), "{}", unclean.verdict());
    }
}

/// A machine that is slow for a second is no kernel that loses something, and the report of it is not kept.
#[test]
fn a_trap_that_does_not_end_in_time_has_shown_nothing() {
    let late = || io::Error::from(io::ErrorKind::TimedOut);
    let meeting = Rendezvous::open().unwrap();
    let plays: [(Play, Seen, Shown); 6] = [
        (|_| Ok(vec![1]), Ok(vec![1]), Shown::Same),
        (|_| Ok(vec![1]), Ok(vec![2]), Shown::Difference),
        (|_| Err(io::Error::from_raw_os_error(libc::ETIMEDOUT)), Ok(vec![1]), Shown::Difference),
        (|Ends { app, .. }| app.await_bytes(1).map(|_| vec![1]), Ok(vec![1]), Shown::Nothing),
        (|_| Ok(vec![1]), Err(late()), Shown::Nothing),
        (|_| Err(io::ErrorKind::TimedOut.into()), Err(late()), Shown::Nothing),
    ];
    for (at, (play, expected, shown)) in plays.into_iter().enumerate() {
        let trap = Trap { name: "one of a test", end: End::Willing, play };
        assert_eq!(compare(&trap, connect(&meeting, End::Willing).unwrap(), expected).unwrap(), shown, "{at}");
    }
}

#[test]
fn every_trap_has_a_name_of_its_own_and_shows_the_same_twice_by_tcp() {
    let meeting = Rendezvous::open().unwrap();
    let mut names = std::collections::HashSet::new();
    assert!(TRAPS.iter().map(|trap| trap.name).eq(lifecycle::fast_path::TRAPS));
    for trap in TRAPS {
        assert!(names.insert(trap.name), "{}", trap.name);
        let play = || (trap.play)(connect(&meeting, trap.end).unwrap()).unwrap();
        assert_eq!(play(), play(), "{}", trap.name);
    }
}
