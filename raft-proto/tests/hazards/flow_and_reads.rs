//! Flow control, other lives, reads, snapshots: hazards 33 to 39.

use crate::net::{
    Net, append, batch, entry_id, group, index, message, read_dropped, replica, voters,
};
use crate::{follower, plain};
use bytes::BytesMut;
use raft_proto::{
    Body, DropReason, EntryId, Envelope, GroupId, Message, PeerState, Refused, Role, SnapshotMeta,
    ViolationKind,
};

#[test]
fn hazard_33_a_window_whose_messages_were_all_lost_opens_again() {
    let mut net = Net::new(&[1, 2, 3], |config| config.inflight_messages_max = 2);
    net.elect(1);
    net.settle();
    net.cut.insert((1, 3));
    for data in ["a", "b", "c", "d"] {
        net.propose(1, data).expect("it leads");
        net.settle();
    }
    let three = |net: &mut Net| net.raft(1).peer_statuses().nth(2).expect("three");
    assert_eq!(
        three(&mut net).state,
        PeerState::Replicate {
            inflight: 2,
            is_full: true
        }
    );
    net.heal();
    // A heartbeat's answer is enough.
    net.tick(1, 1);
    net.settle();
    assert_eq!(net.raft(3).last_index(), net.raft(1).last_index());
    assert!(!three(&mut net).is_paused);
}

#[test]
fn hazard_33_bytes_in_flight_are_bounded_and_flow_on_acknowledgement() {
    let mut net = Net::new(&[1, 2, 3], |config| config.inflight_bytes_max = 100);
    net.elect(1);
    let text = "x".repeat(60);
    for _ in 0..4 {
        net.propose(1, &text).expect("it leads");
    }
    net.pump(1);
    let in_flight = net
        .mail
        .iter()
        .filter(|message| {
            message.to == replica(2)
                && matches!(&message.body, Body::Append { entries, .. } if !entries.is_empty())
        })
        .count();
    assert_eq!(in_flight, 2, "the second one fills the window");
    net.settle();
    net.tick_all(1);
    assert_eq!(net.node(2).texts().len(), 4);
}

#[test]
fn hazard_33_a_snapshot_ends_by_the_followers_own_word() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    net.cut_off(3);
    for data in ["a", "b", "c"] {
        net.propose(1, data).expect("it leads");
    }
    net.settle();
    net.snapshot(1);
    net.heal();
    net.tick(1, 1);
    net.settle();
    // No report was made at all: the follower's acknowledgement moved the leader on.
    let three = net.raft(1).peer_statuses().nth(2).expect("three");
    assert!(
        matches!(three.state, PeerState::Replicate { .. }),
        "{three}"
    );
    assert_eq!(net.raft(3).commit(), net.raft(1).commit());
    net.propose(1, "d").expect("it leads");
    net.settle();
    assert_eq!(net.raft(3).last_index(), net.raft(1).last_index());
}

#[test]
fn hazard_33_no_snapshot_for_one_that_is_not_there() {
    let mut net = Net::new(&[1, 2, 3], |config| {
        config.check_quorum = true;
        config.pre_vote = true;
    });
    net.elect(1);
    net.cut_off(3);
    net.propose(1, "a").expect("it leads");
    net.settle();
    net.tick_all(25);
    net.snapshot(1);
    net.raft(1).report_unreachable(replica(3));
    net.mail.clear();
    net.propose(1, "b").expect("it leads");
    net.pump(1);
    let is_sent = |net: &Net, id| net.mail.iter().any(|message| message.to == replica(id));
    assert!(is_sent(&net, 2), "what can be sent is");
    net.tick(1, 5);
    assert!(
        !net.mail
            .iter()
            .any(|message| matches!(message.body, Body::Snapshot { .. }))
    );
    net.heal();
    net.tick_all(3);
    assert_eq!(net.raft(3).commit(), net.raft(1).commit());
    assert_eq!(
        net.raft(3).first_index(),
        net.raft(1).first_index(),
        "by a snapshot"
    );
}

#[test]
fn hazard_37_messages_of_another_group_or_epoch_or_for_another_replica_are_refused() {
    let mut net = Net::new(&[1, 2, 3], |config| config.epoch = 4);
    let envelope = |group: GroupId, epoch: u64| Envelope {
        group,
        epoch,
        message: message(
            1,
            2,
            9,
            Body::Vote {
                last: entry_id(9, 9),
                is_transfer: false,
            },
        ),
    };
    let before = net.raft(2).hard_state();
    let other = GroupId::new(8).expect("a valid id");
    let dropped = |reason| Err(Refused::Dropped { reason });
    assert_eq!(
        net.raft(2).handle_envelope(envelope(other, 4)),
        dropped(DropReason::OtherGroup)
    );
    assert_eq!(
        net.raft(2).handle_envelope(envelope(group(), 3)),
        dropped(DropReason::OtherEpoch)
    );
    let mut misdirected = envelope(group(), 4);
    misdirected.message.to = replica(3);
    assert_eq!(
        net.raft(2).handle_envelope(misdirected),
        dropped(DropReason::NotForThisReplica)
    );
    assert_eq!(net.raft(2).hard_state(), before);
    net.raft(2)
        .handle_envelope(envelope(group(), 4))
        .expect("this one is ours");
    // Entries of another group do not even decode as ours.
    let mut bytes = BytesMut::new();
    let foreign = Envelope {
        group: group(),
        epoch: 4,
        message: message(1, 2, 1, append(EntryId::ZERO, 0, vec![batch(1, 1, &["x"])])),
    };
    foreign.encode_into(&mut bytes);
    let mut swapped = bytes.to_vec();
    swapped[8..16].copy_from_slice(&other.get().to_le_bytes());
    assert!(Envelope::decode(bytes.freeze()).is_ok());
    assert!(Envelope::decode(swapped.into()).is_err());
}

/// A message as it comes off the wire.
fn through_bytes(message: Message) -> Message {
    let envelope = Envelope {
        group: group(),
        epoch: 0,
        message,
    };
    let mut bytes = BytesMut::new();
    envelope.encode_into(&mut bytes);
    let decoded = Envelope::decode(bytes.freeze()).expect("it was encoded");
    decoded.message
}

#[test]
fn hazard_37_an_answer_to_an_earlier_life_is_known_by_its_frame() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    net.settle();
    net.raft(2).read_index(7).expect("there is a leader");
    let is_answer = |message: &Message| matches!(message.body, Body::ReadIndexResponse { .. });
    while !net.mail.iter().any(is_answer) {
        assert!(net.pump(1) | net.pump(2) | net.pump(3) | net.deliver_one());
    }
    let answers = net.take(is_answer);
    assert_eq!(answers.len(), 1);
    // It comes back, asks again, under the same numbers, and gets the answer to its earlier life.
    net.restart(2);
    net.tick_all(1);
    net.raft(2).read_index(7).expect("there is a leader");
    net.pump(2);
    for answer in answers {
        let refused = net.raft(2).handle_message(through_bytes(answer));
        let reason = DropReason::UnknownRead;
        assert_eq!(refused, Err(Refused::Dropped { reason }));
    }
    net.pump(2);
    assert!(net.node(2).reads.is_empty(), "nothing is served by it");
    let asked = net.take(|message| matches!(message.body, Body::ReadIndex { .. }));
    for message in asked {
        net.deliver(through_bytes(message));
    }
    net.settle();
    assert_eq!(net.node(2).reads.len(), 1, "its own answer serves");
}

#[test]
fn hazard_38_a_read_waits_for_the_first_commit_of_the_term() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    net.propose(1, "acknowledged").expect("it leads");
    net.settle();
    // Two has the entry, leads, and does not know that it is committed.
    net.node(1).is_down = true;
    let known = net.raft(2).commit();
    net.raft(2).campaign().expect("it may stand");
    net.pump(2);
    while net.raft(2).role() != Role::Leader {
        assert!(net.deliver_one());
        net.pump(2);
        net.pump(3);
    }
    net.raft(2).read_index(1).expect("it leads");
    net.pump(2);
    assert!(net.node(2).reads.is_empty());
    assert!(
        !net.mail
            .iter()
            .any(|message| matches!(message.body, Body::Heartbeat { .. })),
        "no round before the commit"
    );
    net.settle();
    let read = net.node(2).reads[0];
    assert_eq!(read.user, 1);
    assert!(read.index > known, "{read:?}");
    assert_eq!(read.index, net.raft(2).commit());
}

#[test]
fn hazard_38_a_single_voter_waits_too() {
    let mut net = Net::new(&[1], plain);
    net.node(1).is_disk_slow = true;
    net.raft(1).campaign().expect("it may stand");
    net.pump(1);
    net.sync(1);
    assert_eq!(net.raft(1).role(), Role::Leader);
    net.raft(1).read_index(5).expect("it leads");
    net.pump(1);
    assert!(net.node(1).reads.is_empty());
    net.sync(1);
    net.pump(1);
    assert_eq!(net.node(1).reads.len(), 1);
}

#[test]
fn hazard_39_acknowledgements_of_an_older_round_do_not_confirm_a_retry() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    net.raft(1).read_index(7).expect("it leads");
    net.pump(1);
    let first = net.take(|message| matches!(message.body, Body::Heartbeat { .. }));
    for message in first {
        net.deliver(message);
    }
    net.pump(2);
    net.pump(3);
    let old = net.take(|message| matches!(message.body, Body::HeartbeatResponse { .. }));
    // The caller asks again with the same number; a new round begins.
    net.raft(1).read_index(7).expect("it leads");
    net.pump(1);
    let second = net.take(|message| matches!(message.body, Body::Heartbeat { .. }));
    for answer in old {
        net.deliver(answer);
    }
    net.pump(1);
    assert_eq!(net.node(1).reads.len(), 1, "the first read and no other");
    for message in second {
        net.deliver(message);
    }
    net.settle();
    assert_eq!(net.node(1).reads.len(), 2);
}

#[test]
fn hazard_39_a_late_answer_does_not_serve_a_followers_retry() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    net.raft(2).read_index(7).expect("there is a leader");
    net.pump(2);
    for _ in 0..40 {
        if net
            .mail
            .iter()
            .any(|message| matches!(message.body, Body::ReadIndexResponse { .. }))
        {
            break;
        }
        net.deliver_one();
        for id in 1..=3 {
            net.pump(id);
        }
    }
    let late = net.take(|message| matches!(message.body, Body::ReadIndexResponse { .. }));
    assert_eq!(late.len(), 1);
    // The follower gives up, and asks again with the same number after another write.
    net.tick(2, 10);
    let given_up = read_dropped(7, DropReason::NoAnswer);
    assert_eq!(net.node(2).dropped, [given_up]);
    net.propose(1, "acknowledged in between").expect("it leads");
    net.settle();
    net.raft(2).read_index(7).expect("there is a leader");
    net.pump(2);
    for message in late {
        net.deliver(message);
    }
    net.pump(2);
    assert!(net.node(2).reads.is_empty(), "too old for this read");
    net.settle();
    let commit = net.raft(1).commit();
    assert_eq!(net.node(2).reads[0].index, commit);
}

#[test]
fn hazard_39_an_answer_meant_for_an_earlier_life_serves_no_read() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    net.raft(2).read_index(7).expect("there is a leader");
    net.pump(2);
    let asked = net.take(|message| matches!(message.body, Body::ReadIndex { .. }));
    for message in asked.clone() {
        net.deliver(message);
    }
    net.pump(1);
    while !net.mail.is_empty() {
        net.deliver_one();
        net.pump(1);
        net.pump(3);
        if net.mail.iter().any(|mail| mail.to == replica(2)) {
            net.pump(2);
        }
        if net.mail.front().is_some_and(is_read_answer) {
            break;
        }
    }
    let late = net.take(is_read_answer);
    assert_eq!(late.len(), 1);
    // The follower comes back in the same term, with the same seed, and asks with the same number
    // after another write.
    net.settle();
    net.restart(2);
    net.propose(1, "acknowledged in between").expect("it leads");
    net.tick_all(2);
    net.raft(2).read_index(7).expect("there is a leader");
    net.pump(2);
    let again = net.take(|message| matches!(message.body, Body::ReadIndex { .. }));
    let number = |message: &Message| match message.body {
        Body::ReadIndex { life, id } => (message.term, life, id),
        _ => panic!("{message:?}"),
    };
    let (first, second) = (number(&asked[0]), number(&again[0]));
    assert_eq!(
        (first.0, first.2),
        (second.0, second.2),
        "all else is the same"
    );
    assert_ne!(first.1, second.1);
    for message in late {
        net.deliver(message);
    }
    net.pump(2);
    assert!(
        net.node(2).reads.is_empty(),
        "it was not this read's answer"
    );
    let unknown = Refused::Dropped {
        reason: DropReason::UnknownRead,
    };
    assert_eq!(net.node(2).refused.last(), Some(&unknown));
    for message in again {
        net.deliver(message);
    }
    net.settle();
    let commit = net.raft(1).commit();
    assert_eq!(net.node(2).reads[0].index, commit);
}

#[test]
fn hazard_39_rounds_of_a_leaders_two_lives_never_match() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    net.raft(1).read_index(7).expect("it leads");
    net.pump(1);
    let is_answer = |message: &Message| matches!(message.body, Body::HeartbeatResponse { .. });
    while !net.mail.iter().any(is_answer) {
        net.deliver_one();
        net.pump(2);
        net.pump(3);
    }
    let old = net.take(is_answer);
    let round = |message: &Message| match message.body {
        Body::HeartbeatResponse { round } => (message.term, round),
        _ => panic!("{message:?}"),
    };
    net.restart(1);
    // It leads again, but never the same term.
    net.elect(1);
    net.raft(1).read_index(7).expect("it leads");
    net.pump(1);
    let heartbeats = net.take(|message| matches!(message.body, Body::Heartbeat { .. }));
    for message in &heartbeats {
        let Body::Heartbeat { round: again, .. } = message.body else {
            panic!("{message:?}");
        };
        let old = round(&old[0]);
        assert_eq!(again, old.1, "rounds are counted from one again");
        assert!(message.term > old.0, "but of another term");
    }
    for message in old {
        net.deliver(message);
    }
    net.pump(1);
    assert!(net.node(1).reads.is_empty(), "confirmed by nobody yet");
    for message in heartbeats {
        net.deliver(message);
    }
    net.settle();
    assert_eq!(net.node(1).reads.len(), 1);
}

fn is_read_answer(message: &Message) -> bool {
    matches!(message.body, Body::ReadIndexResponse { .. })
}

#[test]
fn a_snapshot_older_than_the_commit_or_without_us_is_refused() {
    let mut raft = follower(2, 2, &[1, 1, 2], 2);
    let snapshot = |term, at, membership| {
        message(
            1,
            2,
            2,
            Body::Snapshot {
                meta: Box::new(SnapshotMeta {
                    id: entry_id(term, at),
                    membership,
                }),
            },
        )
    };
    let dropped = |reason| Err(Refused::Dropped { reason });
    assert_eq!(
        raft.handle_message(snapshot(1, 2, voters(&[1, 2, 3]))),
        dropped(DropReason::SnapshotOutdated)
    );
    assert_eq!(
        raft.handle_message(snapshot(2, 9, voters(&[1, 3]))),
        dropped(DropReason::SnapshotWithoutUs)
    );
    assert!(matches!(
        raft.handle_message(snapshot(2, 9, voters(&[]))),
        Err(Refused::Violation {
            kind: ViolationKind::Membership,
            ..
        })
    ));
    assert!(matches!(
        raft.handle_message(snapshot(9, 9, voters(&[1, 2, 3]))),
        Err(Refused::Violation {
            kind: ViolationKind::OutOfRange,
            ..
        })
    ));
    assert_eq!((raft.commit(), raft.last_index()), (index(2), index(3)));
}
