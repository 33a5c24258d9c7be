//! Chapter 5 (log compaction), as far as it concerns the core.

use crate::net::{Net, append, batch, entry_id, follower, index, message, voters};
use crate::{accepted, drain, led_group, tell, term};
use raft_proto::{Body, Index, SnapshotMeta};

fn compacted_group() -> Net {
    let mut net = led_group();
    net.cut_off(3);
    for data in ["a", "b", "c"] {
        net.propose(1, data).expect("it leads");
    }
    net.settle();
    net.snapshot(1);
    net.heal();
    net
}

#[test]
fn thesis_5_one_that_needs_what_the_log_has_no_more_is_sent_a_snapshot() {
    let mut net = compacted_group();
    assert_eq!(net.raft(1).first_index(), index(5));
    net.tick_all(2);
    assert_eq!(net.raft(3).first_index(), index(5), "by a snapshot");
    assert_eq!(net.node(3).disk.base.id, entry_id(1, 4));
    net.propose(1, "d").expect("it leads");
    net.settle();
    assert_eq!(net.node(3).texts(), ["d"], "and the log goes on behind it");
}

#[test]
fn thesis_5_the_entry_that_a_snapshot_ends_with_still_counts_in_the_check_of_an_append() {
    let mut net = compacted_group();
    net.tick_all(2);
    // Its term is known, the entry itself is gone: the first one behind it matches or does not.
    let three = net.raft(3);
    assert_eq!(three.term_at(index(4)), Some(term(1)));
    assert_eq!(three.term_at(index(3)), None);
    let said = tell(
        three,
        message(
            1,
            3,
            1,
            append(entry_id(1, 4), 4, vec![batch(1, 5, &["x"])]),
        ),
    );
    assert_eq!(said[0].body, accepted(5));
}

#[test]
fn thesis_5_a_snapshot_of_what_the_log_holds_drops_nothing_behind_it() {
    let mut raft = follower(2, 1, &[1, 1, 1, 1], 1);
    let meta = |term, at| SnapshotMeta {
        id: entry_id(term, at),
        membership: voters(&[1, 2, 3]),
    };
    let snapshot = |term, meta| {
        let meta = Box::new(meta);
        message(1, 2, term, Body::Snapshot { meta })
    };
    let said = tell(&mut raft, snapshot(1, meta(1, 3)));
    assert_eq!((raft.last_index(), raft.commit()), (index(4), index(3)));
    assert_eq!(said[0].body, accepted(3));
    // One that the log contradicts takes its place whole.
    raft.handle_message(snapshot(2, meta(2, 4)))
        .expect("it is taken");
    assert_eq!(
        (raft.first_index(), raft.last_index()),
        (index(5), index(4))
    );
    let ready = raft.poll_ready().expect("it is to be installed");
    assert_eq!(ready.snapshot, Some(meta(2, 4)));
    assert!(
        ready.committed.is_empty(),
        "what it covers is not applied again"
    );
}

#[test]
fn thesis_5_a_snapshot_is_acknowledged_only_when_it_is_durable() {
    let mut raft = follower(2, 1, &[1], 0);
    let meta = SnapshotMeta {
        id: entry_id(1, 9),
        membership: voters(&[1, 2, 3]),
    };
    let body = Body::Snapshot {
        meta: Box::new(meta),
    };
    raft.handle_message(message(1, 2, 1, body))
        .expect("it is taken");
    let ready = raft.poll_ready().expect("it is to be installed");
    assert!(ready.messages.is_empty() && ready.must_sync);
    assert_eq!(ready.messages_after_sync[0].held().body, accepted(9));
    raft.campaign().expect_err("nor does it stand before that");
}

#[test]
fn thesis_5_a_server_restarts_from_its_snapshot_and_the_log_behind_it() {
    let mut net = compacted_group();
    net.propose(1, "d").expect("it leads");
    net.settle();
    let membership = net.raft(1).membership().clone();
    net.restart(1);
    assert_eq!(net.raft(1).first_index(), index(5));
    assert_eq!(net.raft(1).membership(), &membership);
    net.elect(1);
    net.tick_all(2);
    assert_eq!(net.raft(3).commit(), net.raft(1).commit());
    assert_eq!(net.raft(1).term(), term(2));
}

#[test]
fn thesis_5_an_older_snapshot_changes_nothing() {
    let mut raft = follower(2, 1, &[1, 1, 1], 3);
    drain(&mut raft);
    let body = Body::Snapshot {
        meta: Box::new(SnapshotMeta {
            id: entry_id(1, 2),
            membership: voters(&[1, 2, 3]),
        }),
    };
    let said = tell(&mut raft, message(1, 2, 1, body));
    assert_eq!(
        (raft.first_index(), raft.last_index()),
        (index(1), index(3))
    );
    assert_eq!(said[0].body, accepted(3), "where it stands");
    assert_ne!(raft.commit(), Index::ZERO);
}
