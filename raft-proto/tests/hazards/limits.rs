//! Numbers at their ends, in every field of every message and in every role: what cannot be is
//! refused, and nothing a peer says makes this replica count past the end.

use raft_proto::{
    BatchBuilder, Body, Config, EntryId, EntryKind, Forwarded, Index, Message, Raft, Refused, Role,
    SnapshotMeta, Term, ViolationKind,
};

use crate::drain::{drain, state};
use crate::net::{group, message, replica, voters};
use crate::{follower, report};

const MAX: u64 = u64::MAX;
/// From here on no message may name a term or an index.
const LIMIT: u64 = 1 << 63;
const TERMS: [u64; 8] = [0, 1, 2, 3, LIMIT - 1, LIMIT, MAX - 1, MAX];
const NUMBERS: [u64; 7] = [0, 1, 3, LIMIT - 1, LIMIT, MAX - 1, MAX];

#[derive(Clone, Copy, Debug)]
enum Start {
    Follower,
    PreCandidate,
    Candidate,
    Leader,
}

/// Replica 1 of three in term 2, with three entries, two of them committed.
fn start(role: Start) -> Raft {
    let mut raft = follower(1, 2, &[1, 1, 2], 2);
    match role {
        Start::Follower => return raft,
        Start::PreCandidate => {
            let config = Config {
                pre_vote: true,
                ..raft.config().clone()
            };
            raft = crate::restarted(config, 2, &[1, 1, 2], 2);
            raft.campaign().expect("it may stand");
        }
        Start::Candidate | Start::Leader => raft.campaign().expect("it may stand"),
    }
    drain(&mut raft);
    if matches!(role, Start::Leader) {
        let vote = Body::VoteResponse { is_rejected: false };
        let vote = message(2, 1, raft.term().get(), vote);
        raft.handle_message(vote).expect("it was asked for");
        drain(&mut raft);
        assert_eq!(raft.role(), Role::Leader);
    }
    raft
}

/// Every message there is with these three numbers in its fields.
fn bodies(a: u64, b: u64, c: u64) -> Vec<Body> {
    let id = EntryId::new(Term::new(a), Index::new(b));
    let meta = SnapshotMeta {
        id,
        membership: voters(&[1, 2, 3]),
    };
    let mut bodies = vec![
        Body::PreVote { last: id },
        Body::Vote {
            last: id,
            is_transfer: c == 0,
        },
        Body::Append {
            prev: id,
            commit: Index::new(c),
            entries: raft_proto::Entries::new(),
        },
        Body::AppendResponse {
            index: Index::new(c),
            rejected: Some(id),
        },
        Body::Quiesce { last: id },
        Body::Snapshot {
            meta: Box::new(meta.clone()),
        },
        Body::SnapshotOffer {
            meta: Box::new(meta),
            request: c,
        },
    ];
    // An entry that follows `prev`, or does not.
    if a > 0 && c < MAX - 1 {
        let mut builder = BatchBuilder::new(group(), Term::new(a), Index::new(c + 1), 64);
        builder.push(EntryKind::Command, 0, None, b"x");
        bodies.push(Body::Append {
            prev: id,
            commit: Index::new(b),
            entries: builder.finish().into_iter().collect(),
        });
    }
    if a == 0 {
        bodies.extend([
            Body::Heartbeat {
                commit: Index::new(b),
                round: c,
            },
            Body::ReadIndex { life: b, id: c },
            Body::ReadIndexResponse {
                life: 1,
                id: b,
                index: Index::new(c),
            },
            Body::SnapshotRequest {
                index: Index::new(b),
                request: c,
            },
        ]);
    }
    if a == 0 && b == 0 {
        bodies.extend([
            Body::AppendResponse {
                index: Index::new(c),
                rejected: None,
            },
            Body::HeartbeatResponse { round: c },
            Body::PreVoteResponse {
                is_rejected: c == 0,
            },
            Body::VoteResponse {
                is_rejected: c == 0,
            },
            Body::TimeoutNow,
            Body::TransferLeader { to: replica(2) },
            Body::Propose {
                entries: vec![Forwarded {
                    kind: EntryKind::Command,
                    session: None,
                    payload: bytes::Bytes::from_static(b"x"),
                }],
            },
        ]);
    }
    bodies
}

/// Hands `message` over, and lets the replica live on for a while.
fn try_out(role: Start, message: Message) {
    let said = format!("{role:?} takes {message:?}");
    let mut raft = start(role);
    let (before, commit) = (state(&raft), raft.commit());
    let (from, term) = (message.from, message.term.get());
    let is_past = term >= LIMIT;
    let handled = raft.handle_message(message);
    if let Err(Refused::Violation { kind, from: by }) = handled {
        assert_eq!(state(&raft), before, "{said}");
        assert_eq!(by, from);
        if kind.is_fatal() {
            return;
        }
    } else {
        assert!(!is_past, "{said}: {handled:?}");
    }
    drain(&mut raft);
    for round in 1..=3 {
        raft.advance_to(round * 100);
        raft.campaign().ok();
        drain(&mut raft);
        let vote = Body::VoteResponse { is_rejected: false };
        let vote = crate::net::message(2, 1, raft.term().get(), vote);
        raft.handle_message(vote).ok();
        drain(&mut raft);
        raft.propose([raft_proto::Proposal::command(b"y")]).ok();
        raft.read_index(round).ok();
        drain(&mut raft);
    }
    assert!(raft.commit() >= commit, "{said}");
}

#[test]
fn numbers_at_their_ends_overflow_nothing() {
    let mut cases = 0_u64;
    for role in [
        Start::Follower,
        Start::PreCandidate,
        Start::Candidate,
        Start::Leader,
    ] {
        for a in NUMBERS {
            for b in NUMBERS {
                for c in NUMBERS {
                    for body in bodies(a, b, c) {
                        for term in TERMS {
                            cases += 1;
                            try_out(role, message(2, 1, term, body.clone()));
                        }
                    }
                }
            }
        }
    }
    report::record(&serde_json::json!({"suite": "proto numbers at their ends", "cases": cases}));
    assert!(cases > 80_000, "{cases}");
}

#[test]
fn what_lies_past_the_limit_is_refused_as_that() {
    let past = |body| {
        let mut raft = start(Start::Leader);
        let term = raft.term().get();
        raft.handle_message(message(2, 1, term, body))
    };
    let out_of_range = Err(Refused::Violation {
        kind: ViolationKind::OutOfRange,
        from: replica(2),
    });
    for number in [LIMIT, MAX - 1, MAX] {
        let index = Index::new(number);
        // A probe that is refused: the hint was counted on from.
        let refused = past(Body::AppendResponse {
            index: Index::new(3),
            rejected: Some(EntryId::new(Term::ZERO, index)),
        });
        assert_eq!(refused, out_of_range);
        let answered = past(Body::ReadIndexResponse {
            life: 1,
            id: 1,
            index,
        });
        assert_eq!(answered, out_of_range);
    }
}
