//! What no correct replica says, and bytes that say nothing: refused with a typed reason, with the
//! state as it was.

use std::collections::BTreeSet;

use bytes::{Bytes, BytesMut};

use crate::every_message::whole;
use crate::holding;
use crate::net::{
    Net, append, batch, change, changes, entry_id, group, index, message, plain, replica, voters,
};
use raft_proto::{
    Batch, BatchBuilder, Body, ChangeKind, DecodeError, EntryId, EntryKind, Envelope,
    MEMBERSHIP_REPLICAS_MAX, Membership, MembershipChange, MembershipDecodeError, MembershipError,
    Message, ProposeError, Raft, Refused, ReplicaId, SnapshotMeta, Term, ViolationKind,
};

/// The message is a violation, said of its sender; nothing is changed by it and nothing said.
fn violates(raft: &mut Raft, message: Message, kind: ViolationKind) {
    let from = message.from;
    let before = whole(raft);
    let refused = raft.handle_message(message.clone());
    assert_eq!(
        refused,
        Err(Refused::Violation { kind, from }),
        "{message:?}"
    );
    assert!(whole(raft) == before, "changed by {message:?}");
    assert!(raft.poll_ready().is_none(), "{message:?}");
}

fn leader() -> Net {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    net.propose(1, "a").expect("it leads");
    net.settle();
    net.tick_all(1);
    net
}

fn snapshot_of(term: u64, at: u64, membership: Membership) -> Body {
    let meta = SnapshotMeta {
        id: entry_id(term, at),
        membership,
    };
    let meta = meta.into();
    Body::Snapshot { meta }
}

const FAR: u64 = u64::MAX - 1;
/// The first that is out of range.
const LIMIT: u64 = 1 << 63;

#[test]
fn in_its_own_name() {
    let mut net = leader();
    let body = Body::Heartbeat {
        commit: index(0),
        round: 0,
    };
    violates(net.raft(2), message(2, 2, 1, body), ViolationKind::OwnName);
}

#[test]
fn of_term_zero_or_past_all_terms() {
    let bodies = || {
        [
            Body::Heartbeat {
                commit: index(0),
                round: 0,
            },
            append(EntryId::ZERO, 0, vec![]),
            Body::Vote {
                last: EntryId::ZERO,
                is_transfer: true,
            },
            Body::PreVote {
                last: EntryId::ZERO,
            },
            Body::TimeoutNow,
            Body::Quiesce {
                last: EntryId::ZERO,
            },
        ]
    };
    for term in [0, FAR, u64::MAX] {
        let mut raft = holding(2, 1, &[1], 1);
        for body in bodies() {
            let bad = message(1, 2, term, body);
            violates(&mut raft, bad, ViolationKind::OutOfRange);
        }
    }
}

#[test]
fn a_second_leader_of_the_term_whatever_it_says() {
    let mut net = leader();
    let bodies = || {
        [
            Body::Heartbeat {
                commit: index(1),
                round: 0,
            },
            append(entry_id(1, 2), 2, vec![]),
            snapshot_of(1, 9, voters(&[1, 2, 3])),
            Body::Quiesce {
                last: entry_id(1, 2),
            },
            Body::TimeoutNow,
        ]
    };
    let kind = ViolationKind::SecondLeader {
        term: Term::new(1),
        leader: replica(1),
    };
    assert!(kind.is_fatal());
    for body in bodies() {
        violates(net.raft(2), message(3, 2, 1, body.clone()), kind);
        violates(net.raft(1), message(3, 1, 1, body), kind);
    }
}

#[test]
fn commit_indexes_past_the_log() {
    let mut raft = holding(2, 1, &[1, 1], 1);
    for commit in [3, 9, LIMIT - 1] {
        let body = Body::Heartbeat {
            commit: index(commit),
            round: 0,
        };
        let kind = ViolationKind::CommitPastEnd {
            commit: index(commit),
            last: index(2),
        };
        violates(&mut raft, message(1, 2, 1, body), kind);
    }
}

#[test]
fn acknowledgements_of_what_was_never_sent() {
    let mut net = leader();
    for (acked, rejected) in [
        (3, None),
        (1_000, None),
        (LIMIT - 1, None),
        (3, Some(entry_id(1, 2))),
    ] {
        let body = Body::AppendResponse {
            index: index(acked),
            rejected,
        };
        let kind = ViolationKind::AckPastEnd {
            acked: index(acked),
            last: index(2),
        };
        violates(net.raft(1), message(2, 1, 1, body), kind);
    }
    for round in [1, 99] {
        let body = Body::HeartbeatResponse { round };
        let kind = ViolationKind::RoundNeverBegun { round };
        violates(net.raft(1), message(2, 1, 1, body), kind);
    }
}

#[test]
fn rejections_with_impossible_hints_move_nothing_back() {
    let mut net = leader();
    let before: Vec<_> = net.raft(1).peer_statuses().collect();
    for (at, hint) in [
        (1, entry_id(1, 1)),
        (2, entry_id(9, FAR - 2)),
        (0, entry_id(0, 0)),
        (FAR - 2, entry_id(1, FAR - 2)),
    ] {
        let body = Body::AppendResponse {
            index: index(at),
            rejected: Some(hint),
        };
        net.raft(1).handle_message(message(2, 1, 1, body)).ok();
        let two = net.raft(1).peer_statuses().nth(1).expect("two");
        assert_eq!(two.matched, before[1].matched);
        assert!(two.next > two.matched && two.next <= index(3));
    }
    net.settle();
    net.tick_all(2);
    assert_eq!(net.raft(1).peer_statuses().collect::<Vec<_>>(), before);
}

#[test]
fn positions_out_of_range() {
    let mut raft = holding(2, 3, &[1, 2], 1);
    let bad = [
        append(entry_id(1, FAR - 1), 0, vec![]),
        append(entry_id(1, 1), FAR - 1, vec![]),
        // The entry before is of a later term than the leader's, or of a term and no index.
        append(entry_id(4, 2), 0, vec![]),
        append(entry_id(1, 0), 0, vec![]),
        Body::Heartbeat {
            commit: index(LIMIT),
            round: 0,
        },
        Body::Quiesce {
            last: entry_id(4, 2),
        },
        Body::SnapshotRequest {
            index: index(LIMIT),
            request: 1,
        },
        Body::AppendResponse {
            index: index(2),
            rejected: Some(entry_id(4, 2)),
        },
    ];
    for body in bad {
        violates(&mut raft, message(1, 2, 3, body), ViolationKind::OutOfRange);
    }
}

#[test]
fn candidates_whose_entries_are_of_later_terms_than_their_own() {
    let mut raft = holding(2, 3, &[1, 2], 1);
    for last in [entry_id(6, 9), entry_id(5, 0), entry_id(2, LIMIT)] {
        let is_transfer = true;
        for body in [Body::PreVote { last }, Body::Vote { last, is_transfer }] {
            violates(&mut raft, message(1, 2, 5, body), ViolationKind::OutOfRange);
        }
    }
}

#[test]
fn terms_where_there_are_none() {
    // A later one would depose the leader by a mere wish.
    let mut net = leader();
    let entries = || {
        vec![raft_proto::Forwarded::from(raft_proto::Proposal::command(
            b"x",
        ))]
    };
    for term in [1, 9] {
        let wishes = [
            Body::Propose { entries: entries() },
            Body::ReadIndex { life: 1, id: 1 },
        ];
        for body in wishes {
            let wish = message(2, 1, term, body);
            violates(net.raft(1), wish, ViolationKind::OutOfRange);
        }
    }
}

#[test]
fn entries_out_of_order() {
    let mut raft = holding(2, 3, &[1, 2], 1);
    let cases: [(EntryId, Vec<Batch>, EntryId); 7] = [
        // No entry is of no term.
        (EntryId::ZERO, vec![batch(0, 1, &["a"])], entry_id(0, 1)),
        // A gap behind the entry before, and a repetition of it.
        (entry_id(2, 2), vec![batch(3, 4, &["a"])], entry_id(3, 4)),
        (entry_id(2, 2), vec![batch(3, 2, &["a"])], entry_id(3, 2)),
        // A gap between two batches, and two in the wrong order.
        (
            entry_id(2, 2),
            vec![batch(3, 3, &["a"]), batch(3, 5, &["b"])],
            entry_id(3, 5),
        ),
        (
            entry_id(2, 2),
            vec![batch(3, 4, &["b"]), batch(3, 3, &["a"])],
            entry_id(3, 4),
        ),
        // Terms that fall, and a term that is not there yet.
        (entry_id(2, 2), vec![batch(1, 3, &["a"])], entry_id(1, 3)),
        (entry_id(2, 2), vec![batch(4, 3, &["a"])], entry_id(4, 3)),
    ];
    for (prev, entries, found) in cases {
        let body = append(prev, 0, entries);
        let kind = ViolationKind::EntryOrder { found };
        violates(&mut raft, message(1, 2, 3, body), kind);
    }
}

#[test]
fn entries_against_what_is_committed() {
    let mut raft = holding(2, 3, &[1, 2, 2], 2);
    let cases = [
        append(entry_id(3, 2), 2, vec![]),
        append(entry_id(1, 1), 2, vec![batch(3, 2, &["x"])]),
    ];
    let kind = ViolationKind::CommittedConflict {
        claimed: entry_id(3, 2),
        committed: Term::new(2),
    };
    assert!(kind.is_fatal());
    for body in cases {
        violates(&mut raft, message(1, 2, 3, body), kind);
    }
}

#[test]
fn snapshots_that_cannot_be() {
    let mut raft = holding(2, 3, &[1, 2, 2], 2);
    let all = || voters(&[1, 2, 3]);
    let later = Membership {
        index: index(10),
        ..all()
    };
    let cases = [
        (snapshot_of(2, 0, all()), ViolationKind::OutOfRange),
        (snapshot_of(0, 9, all()), ViolationKind::OutOfRange),
        (snapshot_of(4, 9, all()), ViolationKind::OutOfRange),
        (snapshot_of(2, FAR - 1, all()), ViolationKind::OutOfRange),
        (snapshot_of(2, 9, voters(&[])), ViolationKind::Membership),
        (snapshot_of(2, 9, later), ViolationKind::Membership),
        (
            snapshot_of(3, 2, all()),
            ViolationKind::CommittedConflict {
                claimed: entry_id(3, 2),
                committed: Term::new(2),
            },
        ),
    ];
    for (body, kind) in cases {
        violates(&mut raft, message(1, 2, 3, body), kind);
    }
}

#[test]
fn each_violation_is_a_sentence_about_its_sender() {
    let refused = Refused::Violation {
        kind: ViolationKind::AckPastEnd {
            acked: index(9),
            last: index(4),
        },
        from: replica(2),
    };
    assert_eq!(
        refused.to_string(),
        "violation by replica 2: it acknowledges 9, past our last entry 4"
    );
}

/// Sets that no membership has.
fn unsound() -> Vec<Membership> {
    let ids = |ids: &[u64]| -> BTreeSet<ReplicaId> { ids.iter().map(|&id| replica(id)).collect() };
    let sound = voters(&[1, 2, 3]);
    let with = |change: &dyn Fn(&mut Membership)| {
        let mut membership = sound.clone();
        change(&mut membership);
        membership
    };
    vec![
        // A voter and a learner at once, in either half.
        with(&|membership| membership.learners = ids(&[3])),
        with(&|membership| {
            membership.voters_outgoing = ids(&[4]);
            membership.learners = ids(&[4]);
        }),
        // A learner to be that is no outgoing voter.
        with(&|membership| membership.learners_next = ids(&[2])),
        // One that stays a voter.
        with(&|membership| {
            membership.voters_outgoing = ids(&[1, 2, 3]);
            membership.learners_next = ids(&[3]);
        }),
        // It leaves by itself what is not joint.
        with(&|membership| membership.auto_leave = true),
        // A witness that is no member, or no voter, and too many of them.
        with(&|membership| {
            membership.learners = ids(&[4]);
            membership.witnesses = ids(&[4]);
        }),
        with(&|membership| membership.witnesses = ids(&[9])),
        with(&|membership| membership.witnesses = ids(&[1, 2])),
        // More members than there may be.
        with(&|membership| {
            membership.learners = (10..).take(MEMBERSHIP_REPLICAS_MAX).map(replica).collect();
        }),
    ]
}

#[test]
fn memberships_that_do_not_parse() {
    let malformed = Err(MembershipDecodeError::Malformed);
    let membership = voters(&[1, 2, 3]);
    let bytes = membership.encode();
    assert_eq!(Membership::decode(&bytes), Ok(membership.clone()));
    for end in 0..bytes.len() {
        assert_eq!(Membership::decode(&bytes[..end]), malformed, "cut at {end}");
    }
    assert_eq!(Membership::decode(&[&bytes[..], b"\0"].concat()), malformed);
    for version in [0, 3, 255] {
        let mut other = bytes.clone();
        other[0] = version;
        let error = MembershipDecodeError::Version(version);
        assert_eq!(Membership::decode(&other), Err(error));
    }
    for membership in unsound() {
        let bytes = membership.encode();
        assert_eq!(Membership::decode(&bytes), malformed, "{membership:?}");
    }
    // Lengths that lie are no reason to reserve memory.
    assert_eq!(
        Membership::decode(&[1, 0, 255, 255, 255, 255, 15]),
        malformed
    );
}

#[test]
fn membership_changes_that_do_not_parse() {
    let malformed = Err(MembershipDecodeError::Malformed);
    let change = changes(&[(ChangeKind::AddVoter, 4), (ChangeKind::Remove, 1)]);
    let bytes = change.encode();
    assert_eq!(MembershipChange::decode(&bytes), Ok(change));
    for end in 0..bytes.len() {
        let cut = MembershipChange::decode(&bytes[..end]);
        assert_eq!(cut, malformed, "cut at {end}");
    }
    let long = [&bytes[..], b"\0"].concat();
    assert_eq!(MembershipChange::decode(&long), malformed);
    let mut other = bytes;
    other[0] = 9;
    let error = Err(MembershipDecodeError::Version(9));
    assert_eq!(MembershipChange::decode(&other), error);
    let many: Vec<(ChangeKind, u64)> = (1..=u64::try_from(MEMBERSHIP_REPLICAS_MAX).expect("small")
        + 1)
        .map(|id| (ChangeKind::AddLearner, id))
        .collect();
    let many = changes(&many).encode();
    assert_eq!(MembershipChange::decode(&many), malformed);
}

#[test]
fn messages_whose_membership_does_not_parse_are_no_messages() {
    let mut bytes = BytesMut::new();
    let envelope = |membership| Envelope {
        group: group(),
        epoch: 0,
        message: message(1, 2, 1, snapshot_of(1, 9, membership)),
    };
    envelope(voters(&[1, 2, 3])).encode_into(&mut bytes);
    let sound = bytes.split().freeze();
    assert!(Envelope::decode(sound.clone()).is_ok());
    for membership in unsound() {
        envelope(membership).encode_into(&mut bytes);
        let error = DecodeError::Membership(MembershipDecodeError::Malformed);
        assert_eq!(Envelope::decode(bytes.split().freeze()), Err(error));
    }
    let cut = sound.slice(..sound.len() - 1);
    assert!(Envelope::decode(cut).is_err());
}

#[test]
fn entries_whose_change_does_not_parse() {
    // Among sound ones, of either kind, in a follower's log and in a witness's.
    let witness = Membership {
        witnesses: [replica(2)].into(),
        ..voters(&[1, 2, 3])
    };
    for membership in [voters(&[1, 2, 3]), witness, Membership::default()] {
        let mut net = Net::with_membership(&[2], &membership, plain);
        for kind in [EntryKind::Membership, EntryKind::MembershipSimple] {
            for payload in [&b"\xFFnonsense"[..], b"", b"\x01"] {
                let mut builder = BatchBuilder::new(group(), Term::new(1), index(1), 64);
                builder.push(EntryKind::Command, 0, None, b"");
                let sound = change(ChangeKind::AddVoter, 4).encode();
                builder.push(EntryKind::Membership, 0, None, &sound);
                builder.push(kind, 0, None, payload);
                let entries = vec![builder.finish().expect("entries")];
                let body = append(EntryId::ZERO, 0, entries);
                let found = entry_id(1, 3);
                let violation = ViolationKind::Change { found };
                violates(net.raft(2), message(1, 2, 1, body), violation);
            }
        }
    }
    // No leader comes to hold one: it takes them from nobody, neither as a command nor passed on.
    let mut net = leader();
    let kind = EntryKind::Membership;
    let proposal = raft_proto::Proposal {
        kind,
        ..raft_proto::Proposal::command(b"\xFFnonsense")
    };
    let refused = Err(ProposeError::MembershipKind);
    assert_eq!(net.raft(1).propose([proposal]), refused);
    let before = whole(net.raft(1));
    assert_eq!(net.raft(1).propose([proposal]), refused);
    assert!(whole(net.raft(1)) == before, "changed by {refused:?}");
    let entries = vec![raft_proto::Forwarded::from(proposal)];
    net.raft(2).forward(entries).expect("it knows its leader");
    net.settle();
    let kinds: Vec<EntryKind> = net
        .node(3)
        .disk
        .log
        .iter()
        .flat_map(Batch::iter)
        .map(|entry| entry.kind())
        .collect();
    assert_eq!(
        kinds,
        [EntryKind::Command; 3],
        "an empty command in its place"
    );
}

#[test]
fn changes_that_make_no_sense_are_refused_before_anything_is_appended() {
    let mut net = leader();
    let refuse = |net: &mut Net, change: MembershipChange, error: MembershipError| {
        // That it was asked is work, which keeps a group awake; so it is asked twice.
        let refused = Err(ProposeError::Change(error));
        assert_eq!(net.raft(1).propose_membership(change.clone()), refused);
        let before = whole(net.raft(1));
        assert_eq!(net.raft(1).propose_membership(change), refused);
        assert!(whole(net.raft(1)) == before, "changed by {refused:?}");
        assert!(net.raft(1).poll_ready().is_none());
    };
    refuse(
        &mut net,
        MembershipChange::default(),
        MembershipError::NotJoint,
    );
    let all = [1, 2, 3].map(|id| (ChangeKind::Remove, id));
    refuse(&mut net, changes(&all), MembershipError::NoVoters);
    let many: Vec<(ChangeKind, u64)> = (10..10
        + u64::try_from(MEMBERSHIP_REPLICAS_MAX).expect("small"))
        .map(|id| (ChangeKind::AddLearner, id))
        .collect();
    refuse(&mut net, changes(&many), MembershipError::TooMany);
    let witness = change(ChangeKind::AddWitness, 2);
    let error = MembershipError::WitnessForLife(replica(2));
    refuse(&mut net, witness, error);
    let explicit = MembershipChange {
        transition: raft_proto::Transition::Explicit,
        ..change(ChangeKind::AddVoter, 4)
    };
    net.raft(1)
        .propose_membership(explicit)
        .expect("nothing is pending");
    net.settle();
    refuse(
        &mut net,
        change(ChangeKind::AddVoter, 5),
        MembershipError::SimpleInJoint,
    );
    let pair = changes(&[(ChangeKind::AddVoter, 5), (ChangeKind::AddVoter, 6)]);
    refuse(&mut net, pair, MembershipError::AlreadyJoint);
}

#[test]
fn proposals_are_refused_with_what_to_do_next() {
    let mut net = leader();
    let leader = Some(replica(1));
    assert_eq!(net.propose(2, "x"), Err(ProposeError::NotLeader { leader }));
    net.raft(1).transfer_leader(replica(2)).expect("it leads");
    let last = net.raft(1).last_index();
    assert_eq!(net.propose(1, "x"), Err(ProposeError::TransferInProgress));
    assert_eq!(net.raft(1).last_index(), last);
    let mut net = Net::new(&[1, 2, 3], |config| config.uncommitted_bytes_max = 10);
    net.elect(1);
    net.propose(1, "any size at first").expect("it leads");
    let last = net.raft(1).last_index();
    assert_eq!(net.propose(1, "x"), Err(ProposeError::UncommittedFull));
    assert_eq!(net.raft(1).last_index(), last);
    net.propose(1, "").expect("nothing at all is always taken");
}

#[test]
fn bytes_of_every_length_are_no_message_or_one() {
    let mut bytes = BytesMut::new();
    let envelope = Envelope {
        group: group(),
        epoch: 3,
        message: message(
            1,
            2,
            1,
            append(entry_id(1, 1), 1, vec![batch(1, 2, &["abc"])]),
        ),
    };
    envelope.encode_into(&mut bytes);
    let whole = bytes.freeze();
    for end in 0..whole.len() {
        let cut: Bytes = whole.slice(..end);
        if let Ok(decoded) = Envelope::decode(cut) {
            // Without its entries it is a message too: an empty append.
            assert!(
                matches!(decoded.message.body, Body::Append { entries, .. } if entries.is_empty())
            );
        }
    }
    assert_eq!(Envelope::decode(whole), Ok(envelope));
}
