//! Reports about followers, and snapshots that followers ask for.

use crate::net::{Net, append, batch, follower, index, message, plain, replica, voters};
use crate::{dropped, status};
use raft_proto::{Body, DropReason, EntryId, PeerState, SnapshotStatus};

fn states(net: &mut Net) -> Vec<PeerState> {
    net.raft(1).peer_statuses().map(|peer| peer.state).collect()
}

#[test]
fn an_unreachable_report_moves_the_peer_it_names_and_no_other() {
    let mut net = Net::new(&[1, 2, 3, 4], plain);
    net.elect(1);
    net.settle();
    let before = states(&mut net);
    net.raft(1).report_unreachable(replica(3));
    let after = states(&mut net);
    assert_eq!(after[2], PeerState::Probe);
    assert_eq!(
        [after[0], after[1], after[3]],
        [before[0], before[1], before[3]]
    );
    // Of one that is no member, and by one that does not lead: nothing.
    net.raft(1).report_unreachable(replica(9));
    assert_eq!(states(&mut net), after);
    net.raft(2).report_unreachable(replica(1));
    assert_eq!(net.raft(2).peer_statuses().count(), 0);
    // What was lost on the way is sent again, to that peer only.
    net.propose(1, "a").expect("it leads");
    net.settle();
    net.tick_all(1);
    assert!((1..=4).all(|id| net.raft(id).last_index() == index(2)));
}

/// One leads, and the learners 3 and 4 wait for a snapshot that is lost on the way.
fn waiting_for_snapshots() -> Net {
    let mut membership = voters(&[1, 2]);
    membership.learners = [replica(3), replica(4)].into();
    let mut net = Net::with_membership(&[1, 2, 3, 4], &membership, plain);
    net.elect(1);
    net.cut_off(3);
    net.cut_off(4);
    for text in ["a", "b"] {
        net.propose(1, text).expect("it leads");
    }
    net.settle();
    net.snapshot(1);
    net.heal();
    net.raft(1).report_unreachable(replica(3));
    net.raft(1).report_unreachable(replica(4));
    net.tick(1, 1);
    while net
        .mail
        .iter()
        .any(|message| !matches!(message.body, Body::Snapshot { .. }))
    {
        let others = net.take(|message| !matches!(message.body, Body::Snapshot { .. }));
        for message in others {
            net.deliver(message);
        }
        for id in 1..=4 {
            net.pump(id);
        }
    }
    let lost = net.take(|_| true);
    assert_eq!(lost.len(), 2, "a snapshot for each");
    net
}

#[test]
fn a_snapshot_report_moves_the_peer_it_names_and_no_other() {
    let mut net = waiting_for_snapshots();
    let pending = PeerState::Snapshot { pending: index(3) };
    assert_eq!(states(&mut net)[2..], [pending, pending]);
    net.raft(1)
        .report_snapshot(replica(4), SnapshotStatus::Failed);
    assert_eq!(states(&mut net)[2..], [pending, PeerState::Probe]);
    // It failed: the next entry is still the one that was missing, and is sent after a heartbeat.
    let four = status(&mut net, 1, 4);
    assert!(four.is_paused && four.next <= index(3));
    net.raft(1)
        .report_snapshot(replica(3), SnapshotStatus::Finished);
    let three = status(&mut net, 1, 3);
    assert_eq!((three.state, three.next), (PeerState::Probe, index(4)));
    assert!(three.is_paused, "the follower's own word comes first");
    // Of one that waits for none, is no member, or by one that does not lead: nothing.
    let before = states(&mut net);
    for of in [1, 2, 9] {
        net.raft(1)
            .report_snapshot(replica(of), SnapshotStatus::Failed);
    }
    net.raft(2)
        .report_snapshot(replica(3), SnapshotStatus::Failed);
    assert_eq!(states(&mut net), before);
    // Both get what they need, whatever was said.
    net.settle();
    net.tick_all(5);
    for id in [3, 4] {
        assert_eq!(net.raft(id).commit(), index(3), "replica {id}");
    }
}

#[test]
fn a_requested_snapshot_is_answered_once() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    net.propose(1, "a").expect("it leads");
    net.settle();
    net.tick_all(1);
    net.raft(3).request_snapshot(index(2)).expect("it follows");
    net.settle();
    assert_eq!(net.node(1).wanted, [index(2)], "the leader has none yet");
    assert!(net.node(3).offered.is_empty());
    let meta = net.snapshot(1);
    net.pump(1);
    let offers = net.take(|message| matches!(message.body, Body::SnapshotOffer { .. }));
    assert_eq!(offers.len(), 1);
    assert_eq!(offers[0].to, replica(3), "to who asked");
    let log = (net.raft(3).first_index(), net.raft(3).last_index());
    for offer in [offers[0].clone(), offers[0].clone()] {
        net.deliver(offer);
        net.pump(3);
    }
    assert_eq!(net.node(3).offered, [meta], "the repeated one is dropped");
    assert_eq!(net.node(3).refused.len(), 1);
    assert_eq!(
        (net.raft(3).first_index(), net.raft(3).last_index()),
        log,
        "the log stays"
    );
    // Further snapshots are no answer to anything.
    net.propose(1, "b").expect("it leads");
    net.settle();
    net.tick_all(1);
    net.snapshot(1);
    net.settle();
    assert_eq!(net.node(3).offered.len(), 1);
}

#[test]
fn a_snapshot_that_is_there_is_offered_at_once_if_it_is_new_enough() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    net.propose(1, "a").expect("it leads");
    net.settle();
    net.tick_all(1);
    let meta = net.snapshot(1);
    for (at, is_offered) in [(1, true), (2, true), (3, false)] {
        net.raft(3).request_snapshot(index(at)).expect("it follows");
        net.settle();
        let offered = std::mem::take(&mut net.node(3).offered);
        assert_eq!(offered == [meta.clone()], is_offered, "at {at}");
    }
    assert_eq!(net.node(1).wanted, [index(3)]);
}

#[test]
fn of_two_requests_only_the_later_is_answered_and_none_by_another_leader() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    net.settle();
    net.raft(3).request_snapshot(index(1)).expect("it follows");
    net.raft(3).request_snapshot(index(1)).expect("it follows");
    net.settle();
    net.snapshot(1);
    net.settle();
    assert_eq!(net.node(3).offered.len(), 1);
    net.raft(3).request_snapshot(index(2)).expect("it follows");
    net.settle();
    net.elect(2);
    let meta = net.snapshot(2);
    net.settle();
    assert_eq!(net.node(3).offered.len(), 1, "ask the new leader");
    assert_eq!(net.raft(1).request_snapshot(index(1)), Ok(()));
    net.settle();
    assert_eq!(net.node(1).offered, [meta]);
}

#[test]
fn who_may_ask_and_who_is_asked() {
    let mut net = Net::new(&[1, 2, 3], plain);
    assert_eq!(
        net.raft(1).request_snapshot(index(1)),
        dropped(DropReason::NoLeader)
    );
    net.elect(1);
    assert_eq!(
        net.raft(1).request_snapshot(index(1)),
        dropped(DropReason::NotForThisRole)
    );
    net.settle();
    assert_eq!(
        net.raft(2).request_snapshot(index(3)),
        dropped(DropReason::PastEnd)
    );
    let far = Body::SnapshotRequest {
        index: index(3),
        request: 4,
    };
    assert_eq!(
        net.raft(1).handle_message(message(2, 1, 1, far)),
        dropped(DropReason::PastEnd)
    );
    assert!(net.node(1).wanted.is_empty());
    let ask = Body::SnapshotRequest {
        index: index(1),
        request: 4,
    };
    assert_eq!(
        net.raft(2).handle_message(message(3, 2, 1, ask.clone())),
        dropped(DropReason::NotLeader)
    );
    assert_eq!(
        net.raft(1).handle_message(message(9, 1, 1, ask)),
        dropped(DropReason::UnknownPeer)
    );
}

#[test]
fn memory_in_use_counts_what_is_in_flight() {
    // The same entries, which two followers do not acknowledge; only the windows differ.
    let held = |window: usize| {
        let mut net = Net::new(&[1, 2, 3], |config| config.inflight_messages_max = window);
        net.elect(1);
        net.settle();
        for _ in 0..200 {
            net.propose(1, "a").expect("it leads");
            net.pump(1);
            net.mail.clear();
        }
        net.raft(1).memory_bytes()
    };
    let sends = 2 * 199;
    assert!(held(256) >= held(1) + sends * size_of::<(u64, usize)>());
}

#[test]
fn what_was_fetched_is_let_go_when_all_readers_are_past_it() {
    let mut net = Net::new(&[1, 2, 3], |config| config.cache_bytes_max = 0);
    net.elect(1);
    net.tick_all(1);
    net.node(3).is_down = true;
    let long = "x".repeat(300_000);
    for _ in 0..12 {
        net.propose(1, &long).expect("it leads");
        net.settle();
    }
    net.node(3).is_down = false;
    net.tick_all(5);
    assert_eq!(net.node(3).texts().len(), 12);
    let held = net.raft(1).memory_bytes();
    assert!(held < 300_000, "{held} bytes");
}

#[test]
fn a_state_machine_that_stands_still_holds_no_entries_in_memory() {
    let mut net = Net::new(&[1, 2, 3], |config| {
        config.cache_bytes_max = 20_000;
        config.committed_bytes_per_ready_max = 10_000;
        config.uncommitted_bytes_max = 5_000;
    });
    net.elect(1);
    net.settle();
    for id in [1, 2] {
        net.node(id).is_apply_slow = true;
    }
    let long = "x".repeat(1_000);
    for _ in 0..300 {
        net.propose(1, &long)
            .expect("what is committed takes no room");
        net.settle();
    }
    for id in 1..=3 {
        let held = net.raft(id).memory_bytes();
        assert!(held < 60_000, "replica {id}: {held} bytes");
    }
    // It goes on, and what is no longer in memory is read back.
    for id in [1, 2] {
        assert!(net.node(id).texts().len() < 15);
        net.node(id).is_apply_slow = false;
        let handed = net.node(id).handed;
        net.raft(id).applied(handed);
    }
    net.settle();
    for id in 1..=3 {
        assert_eq!(net.node(id).texts().len(), 300);
        let held = net.raft(id).memory_bytes();
        assert!(held < 60_000, "replica {id}: {held} bytes");
    }
}

#[test]
fn what_never_commits_is_held_up_to_a_bound() {
    // A leader that keeps to no bound of its own, whose entries no majority takes.
    let mut raft = follower(1, 1, &[], 0);
    let config = raft.config();
    let most = config.cache_bytes_max + config.uncommitted_bytes_max;
    let long = "x".repeat(1 << 20);
    let (mut sent, mut prev) = (0, EntryId::ZERO);
    while sent < 2 * most {
        let entries = batch(1, prev.index.next().get(), &[&long]);
        let last = entries.last();
        sent += entries.size_bytes();
        let body = append(prev, 0, vec![entries]);
        raft.handle_message(message(2, 1, 1, body))
            .expect("it follows");
        while let Some(ready) = raft.poll_ready() {
            ready.submission.map(|id| raft.persisted(id));
        }
        prev = last;
    }
    let held = raft.memory_bytes();
    assert!(held < most + (4 << 20), "{held} bytes, of {most} at most");
}

#[test]
fn hazard_34_a_snapshot_from_before_the_log_is_not_sent_but_a_newer_one_wanted() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    net.settle();
    net.cut_off(3);
    for _ in 0..10 {
        net.propose(1, "a").expect("it leads");
        net.settle();
    }
    net.snapshot(1);
    net.propose(1, "b").expect("it leads");
    net.settle();
    // The log is cut behind the state machine, not behind the snapshot.
    let applied = net.node(1).handed;
    net.raft(1).compacted(applied.next());
    net.heal();
    net.tick_all(5);
    assert_eq!(net.node(1).wanted.last(), Some(&applied));
    assert_eq!(net.raft(3).first_index(), index(1), "it got none");
    net.snapshot(1);
    net.propose(1, "c").expect("it leads");
    net.tick_all(5);
    assert_eq!(net.raft(3).commit(), net.raft(1).commit());
    assert_eq!(net.raft(3).first_index(), applied.next());
}

#[test]
fn handing_over_to_itself_ends_the_transfer_under_way() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    net.cut_off(2);
    net.raft(1).transfer_leader(replica(2)).expect("it leads");
    assert_eq!(
        net.raft(1).transfer_leader(replica(1)),
        dropped(DropReason::NotForThisRole)
    );
    assert_eq!(net.raft(1).transferee(), None);
}

#[test]
fn a_snapshot_offered_past_the_commit_index_but_within_the_log_is_an_answer() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    net.tick_all(1);
    net.propose(1, "a").expect("it leads");
    net.pump(1);
    for id in [2, 3] {
        net.deliver_one();
        net.pump(id);
    }
    // Three holds the entry, and does not hear that it is committed.
    net.cut.insert((1, 3));
    net.settle();
    let meta = net.snapshot(1);
    net.heal();
    assert_eq!((meta.id.index, net.raft(3).commit()), (index(2), index(1)));
    net.raft(3).request_snapshot(index(2)).expect("it follows");
    net.settle();
    assert_eq!(net.node(3).offered, [meta]);
    assert_eq!(net.raft(3).commit(), index(2));
}
