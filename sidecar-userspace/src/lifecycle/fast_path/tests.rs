use super::*;

#[test]
fn how_it_stands_is_read_as_it_was_written() {
    let board = Board::new().unwrap();
    let reader = BoardReader::map(&board).unwrap();
    assert_eq!(Phase::read(&reader), Phase::Off);
    let present = |sprung: &[&str], on| Phase::Present {
        report: Report {
            redirects: true,
            sprung: sprung.iter().map(|name| (*name).to_owned()).collect(),
            untried: sprung.iter().skip(1).map(|_| "peek".to_owned()).collect(),
            took: Duration::ZERO,
        },
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
    assert!(untried.why().ends_with("enrolled: splice") && untried.allows(Acceleration::Force).is_ok());
    assert!(seen.allows(Acceleration::Force).is_ok() && clean.allows(Acceleration::Auto).is_ok());
    let failing = |on| Phase::Present {
        report: Report::default(),
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
