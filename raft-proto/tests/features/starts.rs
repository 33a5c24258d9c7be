//! What a replica is started from: a disk that contradicts itself starts none.

use crate::net::{entry_id, follower, index, voters};
use raft_proto::{HardState, Index, Raft, Restored, RestoredError, StartError, Term, TermRun};

const fn run(first: u64, term: u64) -> TermRun {
    TermRun {
        first: Index::new(first),
        term: Term::new(term),
    }
}

/// Entries 5 to 8, of terms 2, 2, 3 and 3, behind a snapshot at 4; 6 of them applied.
fn sound() -> Restored {
    Restored {
        hard_state: HardState {
            term: Term::new(4),
            vote: None,
            commit: index(7),
        },
        first: index(5),
        last: entry_id(3, 8),
        terms: vec![run(4, 2), run(7, 3)],
        applied: index(6),
        membership: voters(&[1, 2, 3]),
        ..Restored::default()
    }
}

fn start(restored: Restored) -> Result<Raft, StartError> {
    Raft::new(follower(1, 1, &[], 0).config().clone(), restored, 0)
}

#[test]
fn a_disk_that_contradicts_itself_is_refused_with_what_is_wrong() {
    let raft = start(sound()).expect("it is sound");
    assert_eq!((raft.commit(), raft.applied_index()), (index(7), index(6)));
    start(Restored::default()).expect("nothing at all is sound");
    let refuse = |change: &dyn Fn(&mut Restored), error: RestoredError| {
        let mut restored = sound();
        change(&mut restored);
        assert_eq!(restored.check(), Err(error));
        let refused = start(restored).err();
        assert_eq!(refused, Some(StartError::Restored(error)));
    };
    let (first, last) = (index(5), entry_id(3, 8));
    refuse(
        &|disk| disk.last = entry_id(2, 3),
        RestoredError::LogEndsBeforeItBegins {
            first,
            last: index(3),
        },
    );
    let terms: [&[TermRun]; 6] = [
        &[],
        &[run(5, 2), run(7, 3)],
        &[run(4, 2), run(9, 3)],
        &[run(4, 2), run(7, 4)],
        &[run(4, 3), run(6, 2), run(7, 3)],
        &[run(4, 2), run(7, 3), run(7, 3)],
    ];
    for terms in terms {
        let error = RestoredError::Terms { first, last };
        refuse(&|disk| disk.terms = terms.to_vec(), error);
    }
    let term = Term::new(2);
    let error = RestoredError::TermBehindLog { term, last };
    refuse(&|disk| disk.hard_state.term = term, error);
    let (commit, last) = (index(9), index(8));
    let error = RestoredError::CommitPastEnd { commit, last };
    refuse(&|disk| disk.hard_state.commit = commit, error);
    // Hazard 45: a state machine older than the log goes back, or newer than it.
    for applied in [index(3), index(9)] {
        let error = RestoredError::AppliedOutsideLog {
            applied,
            first,
            last,
        };
        refuse(&|disk| disk.applied = applied, error);
    }
    let membership = index(7);
    let applied = index(6);
    let error = RestoredError::MembershipAhead {
        membership,
        applied,
    };
    refuse(&|disk| disk.membership.index = membership, error);
}
