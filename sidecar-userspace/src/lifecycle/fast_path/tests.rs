use super::*;

#[test]
fn how_it_stands_is_read_as_it_was_written() {
    let board = Board::new().unwrap();
    let reader = BoardReader::map(&board).unwrap();
    assert_eq!(Phase::read(&reader), Phase::Off);
    let present = |sprung: &[&str], on: bool| Phase::Present {
        report: Report {
            redirects: true,
            sprung: sprung.iter().map(|name| (*name).to_owned()).collect(),
            untried: sprung.iter().skip(1).map(|_| "peek".to_owned()).collect(),
            took: Duration::ZERO,
        },
        both: on.then(|| Both {
            report: Report {
                redirects: true,
                sprung: vec!["splice".to_owned()],
                untried: vec!["peek".to_owned()],
                took: Duration::ZERO,
            },
            loses_unread: !sprung.is_empty(),
        }),
        on,
        by_hand: !on,
        connections: 3,
        failing: sprung.contains(&"urgent_in").then(|| "no descriptor is left".to_owned()),
    };
    for phase in [
        Phase::Starting,
        present(&["fionread", "blocking_receive"], true),
        present(&["urgent_in"], false),
        present(&[], false),
        Phase::Absent("the kernel says no \u{2013} for 7 reasons".to_owned()),
        Phase::Absent("no".to_owned()),
    ] {
        phase.write(&board);
        assert_eq!(Phase::read(&reader), phase);
    }
    let long = "x".repeat(5000);
    Phase::Absent(long.clone()).write(&board);
    let Phase::Absent(cut) = Phase::read(&reader) else { panic!("absent") };
    assert!(long.starts_with(&cut) && cut.len() > 500, "{cut}");
}

#[test]
fn what_would_be_seen_is_switched_on_by_force_alone() {
    let present = |sprung: Vec<String>| Phase::Present {
        report: Report { redirects: true, sprung, ..Report::default() },
        both: None,
        on: false,
        by_hand: false,
        connections: 0,
        failing: None,
    };
    let (seen, clean) = (present(vec!["fionread".to_owned()]), present(Vec::new()));
    assert!(seen.allows(Acceleration::Auto).unwrap_err().contains("fionread"));
    let mut untried = clean.clone();
    if let Phase::Present { report, .. } = &mut untried {
        report.untried = vec!["splice".to_owned()];
    }
    assert!(untried.allows(Acceleration::Auto).unwrap_err().contains("not tried"));
    assert!(untried.why().ends_with("in time: splice") && untried.allows(Acceleration::Force).is_ok());
    assert!(seen.allows(Acceleration::Force).is_ok() && clean.allows(Acceleration::Auto).is_ok());
    let failing = |on| Phase::Present {
        report: Report::default(),
        both: None,
        on,
        by_hand: true,
        connections: 0,
        failing: Some("no descriptor is left".to_owned()),
    };
    assert!(failing(false).has_become(true).unwrap_err().ends_with("no descriptor is left"));
    assert!(failing(true).has_become(false).unwrap_err().contains("stays on"));
    assert!(failing(false).has_become(false).is_ok() && Phase::Starting.has_become(true).is_ok());
    assert!(clean.has_become(true).unwrap_err().contains("stays off") && clean.has_become(false).is_ok());
    assert!(Phase::Off.allows(Acceleration::Off).unwrap_err().contains("acceleration: auto"));
}

#[test]
fn both_directions_are_told_by_what_they_show_and_never_as_what_carries_traffic() {
    let both = |redirects, sprung: &[&str], untried: &[&str], loses_unread| {
        let [sprung, untried] = [sprung, untried].map(|names| names.iter().map(|&name| name.to_owned()).collect());
        Both { report: Report { redirects, sprung, untried, took: Duration::ZERO }, loses_unread }
    };
    for (both, clean, words) in [
        (both(true, &["splice", "peek"], &[], false), false, "a difference in 2 of 19 traps: splice, peek; never used"),
        (
            both(true, &[], &[], true),
            false,
            "a difference in none of 19 traps; what is unread is lost when it is switched off; never used",
        ),
        (both(true, &[], &["order"], false), false, "a difference in none of 19 traps; not tried: order; never used"),
        (both(true, &[], &[], false), true, "a difference in none of 19 traps; not implemented for traffic"),
        (both(false, &[], &[], false), false, "never used; this kernel does not redirect so"),
    ] {
        assert_eq!((both.is_clean(), both.verdict().as_str()), (clean, words));
    }
}
