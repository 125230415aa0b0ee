use std::sync::mpsc::{self, RecvTimeoutError};

use super::*;
use crate::{
    control::Channel,
    lifecycle::{board::Board, fast_path::Report},
};

/// Long enough for whatever a test waits for.
const PATIENCE: Duration = Duration::from_secs(60);

fn present(on: bool) -> Phase {
    let report = Report { redirects: true, ..Report::default() };
    Phase::Present { report, both: None, on, by_hand: false, connections: 0, failing: None }
}

#[test]
fn an_answer_is_to_a_question_of_the_same_worker_and_to_no_later_one() {
    let (worker, other) = (7_u64 << 32, 8_u64 << 32);
    for (number, last, answered) in [
        (worker + 1, 0, false),
        (worker + 1, worker + 1, true),
        (worker + 1, worker + 2, true),
        (worker + 2, worker + 1, false),
        (worker + 1, other + 9, false),
        (other + 1, worker + 9, false),
    ] {
        assert_eq!(is_answered(number, last), answered, "{number:x} {last:x}");
    }
}

/// One that took the other's answer for its own would find the fast path as it was before its own was done.
#[tokio::test]
async fn of_two_callers_at_once_each_waits_for_the_answer_to_its_own_question() {
    let board = Board::new().unwrap();
    present(false).write(&board);
    let (supervisor, worker) = Channel::pair().unwrap();
    let path = FastPath::new(Acceleration::Auto, BoardReader::map(&board).unwrap(), Orders::watch(worker).unwrap());
    let path = FastPath { patience: PATIENCE, ..path };
    let (done, over) = mpsc::channel();
    let callers = [None, Some(true)].map(|wanted| {
        let (path, done) = (path.clone(), done.clone());
        thread::spawn(move || {
            let became = match wanted {
                Some(on) => path.switch(on),
                None => path.ask(None).then_some(()).ok_or_else(|| "late".to_owned()),
            };
            done.send((wanted, became)).unwrap();
        })
    });
    let heard = || match supervisor.wait::<control::Report>().unwrap().0 {
        control::Report::FastPath { wanted, number } => (wanted, number),
        other => panic!("{other:?}"),
    };
    for ((wanted, number), is_last) in [(heard(), false), (heard(), true)] {
        if wanted.is_some() {
            present(true).write(&board);
        }
        board.set(Figure::FastPathAnswered, number);
        assert_eq!(over.recv_timeout(PATIENCE), Ok((wanted, Ok(()))));
        // The other one, if it is wrong, is as fast.
        let early = over.recv_timeout(Duration::from_millis(50));
        assert!(is_last || early == Err(RecvTimeoutError::Timeout), "{early:?}");
    }
    callers.into_iter().for_each(|caller| caller.join().unwrap());
}
