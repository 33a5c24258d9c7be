//! Bytes as an envelope: refused, or read as what is written, and then taken by a follower, a
//! candidate and a leader of its group, whatever it says.

use bytes::{Bytes, BytesMut};
use raft_proto::{
    Body, Config, ENVELOPE_HEADER_BYTES, EntryId, Envelope, GroupId, HardState, Index, Membership,
    Message, Raft, Refused, ReplicaId, Restored, Role, Term, TermRun,
};

use super::frame::repair;
use super::replica::{drain, state};

/// The first byte chooses whether checksums are put right before; whether the rest were an
/// envelope.
pub(crate) fn run(data: &[u8]) -> bool {
    let Some((&how, rest)) = data.split_first() else {
        return false;
    };
    let mut bytes = rest.to_vec();
    if how & 1 == 1 {
        repair_entries(&mut bytes);
    }
    let bytes = Bytes::from(bytes);
    let Ok(envelope) = Envelope::decode(bytes.clone()) else {
        return false;
    };
    let mut again = BytesMut::new();
    envelope.encode_into(&mut again);
    assert_eq!(again.len(), envelope.encoded_bytes(), "its size is told");
    let read = Envelope::decode(again.clone().freeze());
    assert_eq!(
        read.as_ref(),
        Ok(&envelope),
        "written and read again it is the same"
    );
    // What is reserved is not looked at, and sets may be written in another order.
    let has_set = matches!(
        envelope.message.body,
        Body::Snapshot { .. } | Body::SnapshotOffer { .. }
    );
    if bytes[2..8] == [0; 6] && !has_set {
        assert_eq!(again, bytes, "there is one way to write it");
    }
    for role in [Role::Follower, Role::Candidate, Role::Leader] {
        receive(role, &envelope, bytes.len());
    }
    true
}

/// Where the entries of an append lie.
const ENTRIES_AT: usize = ENVELOPE_HEADER_BYTES + 24;

fn repair_entries(bytes: &mut [u8]) {
    if bytes.len() > ENTRIES_AT {
        let (head, entries) = bytes.split_at_mut(ENTRIES_AT);
        let group = u64::from_le_bytes(head[8..16].try_into().expect("eight bytes"));
        if let Some(group) = GroupId::new(group) {
            repair(group, entries);
        }
    }
}

fn receive(role: Role, envelope: &Envelope, size: usize) {
    let mut raft = replica(role, envelope);
    let (before, term, commit) = (state(&raft), raft.term(), raft.commit());
    let handled = raft.handle_envelope(envelope.clone());
    if let Err(Refused::Violation { kind, .. }) = handled {
        assert_eq!(state(&raft), before, "a violation changes nothing");
        if kind.is_fatal() {
            return;
        }
    }
    drain(&mut raft);
    raft.advance_to(1_000);
    drain(&mut raft);
    assert!(raft.term() >= term, "terms rise");
    assert!(raft.commit() >= commit, "commits stay");
    let bound = (64 << 10) + 4 * size;
    assert!(raft.memory_bytes() <= bound, "{}", raft.memory_bytes());
}

/// The replica the envelope is for, in term 2, with three entries, two of them committed.
fn replica(role: Role, envelope: &Envelope) -> Raft {
    let (from, to) = (envelope.message.from, envelope.message.to);
    let small = (1..).filter_map(ReplicaId::new);
    let mut others = small.filter(|&id| id != from && id != to);
    let other = others.next().expect("there are more than three");
    let third = if from == to {
        others.next().expect("there are more than three")
    } else {
        from
    };
    let config = Config {
        epoch: envelope.epoch,
        pre_vote: false,
        ..Config::new(envelope.group, to, 1)
    };
    let restored = Restored {
        hard_state: HardState {
            term: Term::new(2),
            vote: None,
            commit: Index::new(2),
        },
        last: EntryId::new(Term::new(2), Index::new(3)),
        terms: vec![
            TermRun {
                first: Index::ZERO,
                term: Term::ZERO,
            },
            TermRun {
                first: Index::new(1),
                term: Term::new(2),
            },
        ],
        applied: Index::new(2),
        membership: Membership {
            voters: [to, other, third].into(),
            ..Membership::default()
        },
        ..Restored::default()
    };
    let mut raft = Raft::new(config, restored, 0).expect("the settings are sound");
    if role != Role::Follower {
        raft.campaign().expect("it may stand");
        drain(&mut raft);
    }
    if role == Role::Leader {
        let vote = Message {
            from: other,
            to,
            term: raft.term(),
            body: Body::VoteResponse { is_rejected: false },
        };
        raft.handle_message(vote).expect("it was asked for");
        drain(&mut raft);
    }
    assert_eq!(raft.role(), role);
    raft
}
