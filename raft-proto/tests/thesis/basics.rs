//! §3.3 (terms), §3.7 (crashes and retries), §3.8 (persisted state), §3.9 (timing).

use crate::net::{Net, append, batch, entry_id, follower, group, index, message, plain, replica};
use crate::{accepted, drain, granted, heartbeat, lead, led_group, tell, term, vote};
use raft_proto::{Body, Config, EntryId, HardState, Index, Raft, Restored, Role};

#[test]
fn thesis_3_3_a_later_term_makes_a_follower_of_every_role() {
    let mut candidate = follower(1, 1, &[1], 0);
    candidate.campaign().expect("it may stand");
    let mut leader = follower(1, 1, &[1], 0);
    lead(&mut leader);
    for mut raft in [follower(1, 2, &[1], 0), candidate, leader] {
        assert_eq!(raft.term(), term(2));
        drain(&mut raft);
        tell(&mut raft, message(3, 1, 9, accepted(1)));
        assert_eq!((raft.role(), raft.term()), (Role::Follower, term(9)));
        assert_eq!(raft.hard_state().vote, None);
    }
}

#[test]
fn thesis_3_3_what_is_of_an_older_term_changes_nothing() {
    let bodies = [
        append(entry_id(1, 1), 1, vec![batch(1, 2, &["old"])]),
        heartbeat(1),
        vote(entry_id(8, 8)),
        Body::VoteResponse { is_rejected: false },
        accepted(1),
        Body::TimeoutNow,
    ];
    for body in bodies {
        let mut raft = follower(1, 5, &[1], 0);
        drain(&mut raft);
        let refused = raft.handle_message(message(2, 1, 4, body.clone()));
        assert!(refused.is_err(), "{body:?}");
        assert_eq!(raft.term(), term(5));
        assert_eq!((raft.last_index(), raft.commit()), (index(1), Index::ZERO));
        assert_eq!(
            (raft.role(), raft.hard_state().vote),
            (Role::Follower, None)
        );
    }
}

#[test]
fn thesis_3_7_a_repeated_append_does_and_says_the_same() {
    let mut raft = follower(2, 1, &[1], 1);
    let request = || {
        let entries = vec![batch(1, 2, &["a", "b"])];
        message(1, 2, 1, append(entry_id(1, 1), 1, entries))
    };
    let first = tell(&mut raft, request());
    let (last, commit) = (raft.last_index(), raft.commit());
    assert_eq!((last, commit), (index(3), index(1)));
    let again = tell(&mut raft, request());
    assert_eq!(first, again);
    assert_eq!((raft.last_index(), raft.commit()), (last, commit));
}

#[test]
fn thesis_3_7_a_repeated_vote_request_gets_the_same_answer() {
    let mut raft = follower(2, 1, &[1], 0);
    let request = |from| message(from, 2, 2, vote(entry_id(1, 1)));
    assert!(granted(&tell(&mut raft, request(1))));
    assert!(granted(&tell(&mut raft, request(1))), "the answer was lost");
    assert!(!granted(&tell(&mut raft, request(3))));
    assert!(granted(&tell(&mut raft, request(1))));
}

#[test]
fn thesis_3_7_a_follower_that_comes_back_is_brought_up_again() {
    let mut net = led_group();
    net.node(3).is_down = true;
    for data in ["a", "b"] {
        net.propose(1, data).expect("it leads");
        net.settle();
    }
    net.restart(3);
    // The leader retries without end, at its heartbeats.
    net.tick_all(2);
    assert_eq!(net.node(3).texts(), ["a", "b"]);
}

#[test]
fn thesis_3_8_term_and_vote_survive_a_crash() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.raft(2)
        .handle_message(message(1, 2, 4, vote(EntryId::ZERO)))
        .expect("it is answered");
    net.pump(2);
    net.restart(2);
    let voted = HardState {
        term: term(4),
        vote: Some(replica(1)),
        commit: Index::ZERO,
    };
    assert_eq!(net.raft(2).hard_state(), voted);
    let other = tell(net.raft(2), message(3, 2, 4, vote(EntryId::ZERO)));
    assert!(!granted(&other), "one vote a term, over a crash");
}

#[test]
fn thesis_3_8_nothing_is_said_before_it_is_durable() {
    let mut raft = follower(2, 1, &[1], 0);
    let entries = vec![batch(2, 2, &["a"])];
    raft.handle_message(message(1, 2, 2, append(entry_id(1, 1), 0, entries)))
        .expect("it is taken");
    let ready = raft.poll_ready().expect("there is something to write");
    assert!(ready.messages.is_empty());
    assert_eq!(ready.messages_after_sync.len(), 1);
    assert_eq!(ready.hard_state.map(|hard| hard.term), Some(term(2)));
    assert_eq!(ready.entries, [batch(2, 2, &["a"])]);
    assert!(ready.must_sync && ready.submission.is_some());
}

#[test]
fn thesis_3_8_a_lost_commit_index_is_found_again_where_no_change_was_committed() {
    let mut net = led_group();
    net.propose(1, "a").expect("it leads");
    net.settle();
    let commit = net.raft(1).commit();
    for id in [1, 2, 3] {
        let node = net.node(id);
        node.disk.hard.commit = Index::ZERO;
        node.disk.applied.id = EntryId::ZERO;
        net.restart(id);
        assert_eq!(net.raft(id).commit(), Index::ZERO);
    }
    net.elect(2);
    assert!(net.raft(2).commit() > commit);
    net.tick_all(2);
    for id in [1, 2, 3] {
        assert_eq!(net.node(id).texts(), ["a"], "applied again from the start");
    }
}

#[test]
fn thesis_3_9_an_election_timeout_is_longer_than_the_time_between_heartbeats() {
    for (timeout, heartbeat, is_taken) in [(5, 5, false), (4, 5, false), (6, 5, true)] {
        let config = Config {
            election_timeout_ticks_min: timeout,
            election_timeout_ticks_max: 2 * timeout,
            heartbeat_ticks: heartbeat,
            ..Config::new(group(), replica(1), 1)
        };
        let made = Raft::new(config, Restored::default(), 0);
        assert_eq!(made.is_ok(), is_taken, "{timeout} and {heartbeat}");
    }
}
