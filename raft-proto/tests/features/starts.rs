//! What a replica is started from: a disk that contradicts itself starts none.

use crate::net::{entry_id, follower, index, voters};
use raft_proto::{
    HardState, Index, Raft, Restored, RestoredError, SnapshotMeta, StartError, Term, TermRun,
};

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

fn covered(term: u64, last: u64, membership: u64) -> Option<SnapshotMeta> {
    let mut membership_then = voters(&[1, 2, 3]);
    membership_then.index = index(membership);
    Some(SnapshotMeta {
        id: entry_id(term, last),
        membership: membership_then,
    })
}

#[test]
fn the_newest_snapshot_is_one_of_this_log_and_all_in_it_is_committed() {
    let with = |snapshot| Restored {
        snapshot,
        ..sound()
    };
    for (term, last, commit) in [(1, 3, 7), (2, 4, 7), (2, 6, 7), (3, 7, 7), (3, 8, 8)] {
        let raft = start(with(covered(term, last, 0))).expect("it is sound");
        assert_eq!(raft.commit(), index(commit));
    }
    let refuse = |restored: Restored, error: RestoredError| {
        let refused = start(restored).err();
        assert_eq!(refused, Some(StartError::Restored(error)));
    };
    let (snapshot, last) = (entry_id(3, 9), index(8));
    let error = RestoredError::SnapshotPastEnd { snapshot, last };
    refuse(with(covered(3, 9, 0)), error);
    for (term, last, of) in [(3, 4, 0), (3, 6, 0), (2, 7, 0), (2, 6, 7)] {
        let (snapshot, membership) = (entry_id(term, last), index(of));
        let error = RestoredError::SnapshotOfAnother {
            snapshot,
            membership,
        };
        refuse(with(covered(term, last, of)), error);
    }
}

#[test]
fn indexes_of_membership_entries_ascend() {
    for indexes in [[7, 7], [8, 7]] {
        let restored = Restored {
            membership_entries: indexes.map(Index::new).into(),
            ..sound()
        };
        let error = StartError::Restored(RestoredError::MembershipEntries);
        assert_eq!(start(restored).err(), Some(error));
    }
}
