//! §10.2.1 (writing to the leader's disk in parallel), §10.2.2 (batching and pipelining).

use crate::net::{Net, batch, entry_id, index, message};
use crate::{accepted, led_group, tell};
use raft_proto::{Batch, Body, PeerState};

#[test]
fn thesis_10_2_1_the_leader_sends_before_its_own_disk_is_done() {
    let mut net = led_group();
    net.node(1).is_disk_slow = true;
    net.propose(1, "a").expect("it leads");
    net.pump(1);
    let appends = net
        .mail
        .iter()
        .filter(|said| matches!(&said.body, Body::Append { entries, .. } if !entries.is_empty()));
    assert_eq!(appends.count(), 2);
}

#[test]
fn thesis_10_2_1_followers_may_commit_what_the_leaders_disk_does_not_hold_yet() {
    let mut net = led_group();
    net.node(1).is_disk_slow = true;
    net.propose(1, "a").expect("it leads");
    net.settle();
    assert_eq!(net.raft(1).commit(), index(2), "two of three hold it");
    assert_eq!(net.node(2).texts(), ["a"]);
    assert!(net.node(1).texts().is_empty(), "here it waits for the disk");
    net.sync(1);
    net.settle();
    assert_eq!(net.node(1).texts(), ["a"]);
}

#[test]
fn thesis_10_2_1_the_leader_counts_itself_only_when_its_disk_is_done() {
    let mut net = led_group();
    net.node(1).is_disk_slow = true;
    net.cut_off(3);
    net.node(2).is_disk_slow = true;
    net.propose(1, "a").expect("it leads");
    net.settle();
    assert_eq!(net.raft(1).commit(), index(1), "nobody holds it");
    net.sync(1);
    net.settle();
    assert_eq!(net.raft(1).commit(), index(1), "one of three");
    net.sync(2);
    net.settle();
    assert_eq!(net.raft(1).commit(), index(2));
}

#[test]
fn thesis_10_2_2_commands_that_wait_travel_in_one_append() {
    let mut net = Net::new(&[1, 2, 3], |config| config.inflight_messages_max = 1);
    net.elect(1);
    net.settle();
    for data in ["a", "b", "c", "d"] {
        net.propose(1, data).expect("it leads");
    }
    net.pump(1);
    let lengths = |net: &Net| -> Vec<usize> {
        let to_two = net.mail.iter().filter(|said| said.to.get() == 2);
        to_two
            .filter_map(|said| match &said.body {
                Body::Append { entries, .. } => Some(entries.iter().map(Batch::len).sum()),
                _ => None,
            })
            .collect()
    };
    assert_eq!(lengths(&net), [1], "the window is full");
    // The answer opens it for all that has gathered.
    let two = net.take(|said| said.to.get() == 2);
    net.mail.clear();
    two.into_iter().for_each(|said| net.deliver(said));
    net.pump(2);
    net.deliver_one();
    net.pump(1);
    assert_eq!(lengths(&net), [3]);
}

#[test]
fn thesis_10_2_2_the_next_append_does_not_wait_for_the_last_ones_answer() {
    let mut net = led_group();
    net.settle();
    for data in ["a", "b", "c"] {
        net.propose(1, data).expect("it leads");
        net.pump(1);
    }
    let two = net.raft(1).peer_statuses().nth(1).expect("two");
    assert_eq!((two.matched, two.next), (index(1), index(5)));
    assert!(
        matches!(two.state, PeerState::Replicate { inflight: 3, .. }),
        "{two}"
    );
    net.settle();
    assert_eq!(net.node(2).texts(), ["a", "b", "c"]);
}

#[test]
fn thesis_10_2_2_appends_that_overtake_each_other_or_are_lost_leave_no_gap() {
    for lost in [None, Some(0), Some(1), Some(2)] {
        let mut net = led_group();
        net.settle();
        for data in ["a", "b", "c"] {
            net.propose(1, data).expect("it leads");
            net.pump(1);
        }
        let mut to_two = net.take(|said| said.to.get() == 2);
        if let Some(lost) = lost {
            to_two.remove(lost);
        }
        to_two.reverse();
        for said in to_two {
            net.deliver(said);
            net.pump(2);
        }
        net.settle();
        net.tick_all(2);
        assert_eq!(net.node(2).texts(), ["a", "b", "c"], "lost {lost:?}");
    }
}

#[test]
fn thesis_10_2_2_a_rejection_ends_the_streaming_until_the_match_is_found() {
    let mut net = led_group();
    net.settle();
    for data in ["a", "b", "c"] {
        net.propose(1, data).expect("it leads");
        net.pump(1);
    }
    let rejection = Body::AppendResponse {
        index: index(3),
        rejected: Some(entry_id(1, 1)),
    };
    let said = tell(net.raft(1), message(2, 1, 1, rejection));
    let two = net.raft(1).peer_statuses().nth(1).expect("two");
    assert_eq!((two.state, two.matched), (PeerState::Probe, index(1)));
    let again = said
        .iter()
        .find(|said| said.to.get() == 2)
        .expect("from the match on");
    let Body::Append { prev, entries, .. } = &again.body else {
        panic!("{again:?}");
    };
    assert_eq!(prev.index, index(1));
    assert_eq!(
        entries.first().map(|sent| sent.first()),
        Some(batch(1, 2, &["a"]).first())
    );
    tell(net.raft(1), message(2, 1, 1, accepted(4)));
    let two = net.raft(1).peer_statuses().nth(1).expect("two");
    assert!(matches!(two.state, PeerState::Replicate { .. }));
}
