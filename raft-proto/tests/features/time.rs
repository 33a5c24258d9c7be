//! Time: what the driver tells of it, and that after a gap each timer fires once.

use crate::net::{
    Net, change, follower, group, index, message, plain, read_dropped, replica, voters,
};
use crate::{holding, status};
use raft_proto::{
    Body, ChangeKind, Config, DropReason, EntryId, Fetched, Membership, Message, Raft, ReadState,
    Ready, Restored, Role, Term,
};

/// Far past every deadline.
const GAP: u64 = 100_000;

fn heartbeat(commit: u64) -> Body {
    Body::Heartbeat {
        commit: index(commit),
        round: 0,
    }
}

/// Everything that the replica wants done, made durable.
fn drain(raft: &mut Raft) -> Ready {
    let mut all = Ready::default();
    while let Some(ready) = raft.poll_ready() {
        all.messages.extend(ready.messages);
        if let Some(submission) = ready.submission {
            let durable = raft.persisted(submission);
            let held = ready.messages_after_sync.into_iter();
            all.messages.extend(held.map(|held| held.release(durable)));
        }
        all.fetch.extend(ready.fetch);
        all.reads.extend(ready.reads);
        all.dropped.extend(ready.dropped);
    }
    all
}

/// What a replica says when its clock is found to have gone on, and that saying it once more, or
/// a tick later, says nothing new.
fn after_the_gap(raft: &mut Raft, tick: u64) -> Ready {
    raft.advance_to(tick);
    let said = drain(raft);
    for again in [tick, tick - 1, tick] {
        raft.advance_to(again);
        let more = drain(raft);
        assert!(more.messages.is_empty(), "{:?}", more.messages);
        assert!(more.fetch.is_empty() && more.dropped.is_empty());
    }
    if let Some(due) = raft.next_deadline() {
        assert!(due > tick, "{due} is due still");
    }
    said
}

fn kinds(said: &[Message], of: fn(&Body) -> bool) -> Vec<u64> {
    said.iter()
        .filter(|message| of(&message.body))
        .map(|message| message.to.get())
        .collect()
}

fn checked(config: &mut Config) {
    config.check_quorum = true;
}

#[test]
fn after_a_gap_an_election_begins_once() {
    let mut raft = follower(2, 1, &[1], 0);
    drain(&mut raft);
    let said = after_the_gap(&mut raft, GAP).messages;
    assert_eq!(
        kinds(&said, |body| matches!(body, Body::Vote { .. })),
        [1, 3]
    );
    assert_eq!((raft.role(), raft.term()), (Role::Candidate, Term::new(2)));
}

#[test]
fn after_a_gap_one_round_is_left_to_higher_priorities() {
    let mut membership = voters(&[1, 2]);
    membership.priorities.insert(replica(2), 9);
    let mut net = Net::with_membership(&[1], &membership, plain);
    let raft = net.raft(1);
    assert!(after_the_gap(raft, GAP).messages.is_empty());
    assert_eq!(raft.role(), Role::Follower);
    after_the_gap(raft, 2 * GAP);
    assert_eq!(raft.role(), Role::Candidate, "two timeouts for one step");
}

#[test]
fn after_a_gap_a_leader_sends_one_heartbeat() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    let said = after_the_gap(net.raft(1), GAP).messages;
    let is_beat = |body: &Body| matches!(body, Body::Heartbeat { .. });
    assert_eq!(kinds(&said, is_beat), [2, 3]);
}

#[test]
fn after_a_gap_the_quorum_is_checked_once() {
    let mut net = Net::new(&[1, 2, 3], checked);
    net.elect(1);
    after_the_gap(net.raft(1), GAP);
    assert_eq!(net.raft(1).role(), Role::Leader, "both were heard before");
    assert!(!status(&mut net, 1, 2).is_recent_active);
    after_the_gap(net.raft(1), 2 * GAP);
    assert_eq!(net.raft(1).role(), Role::Follower, "nobody was heard since");
}

#[test]
fn after_a_gap_a_transfer_is_given_up_once() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    net.cut_off(3);
    net.propose(1, "a").expect("it leads");
    net.settle();
    net.raft(1).transfer_leader(replica(3)).expect("it leads");
    after_the_gap(net.raft(1), GAP);
    assert_eq!(net.raft(1).transferee(), None);
    // One that is begun in the pass after the gap has all its time.
    let raft = net.raft(1);
    raft.set_tick(2 * GAP);
    raft.transfer_leader(replica(3)).expect("it leads");
    raft.advance_to(2 * GAP);
    assert_eq!(raft.transferee(), Some(replica(3)));
    raft.advance_to(2 * GAP + raft.config().election_timeout_ticks_min);
    assert_eq!(raft.transferee(), None);
}

#[test]
fn after_a_gap_a_failed_fetch_is_asked_once_and_time_is_wanted_for_it() {
    // A learner has no election timeout: nothing else would ask for its time.
    let membership = Membership {
        voters: [replica(1)].into(),
        learners: [replica(2)].into(),
        ..Membership::default()
    };
    let restored = Restored {
        membership,
        ..restored_of(&[1, 1], 2)
    };
    let config = Config::new(group(), replica(2), 2);
    let mut raft = Raft::new(config, restored, 0).expect("valid settings");
    let fetch = drain(&mut raft).fetch;
    assert_eq!(fetch.len(), 1);
    let first = fetch[0].first;
    raft.entries_fetched(Fetched::Failed { first });
    assert!(drain(&mut raft).fetch.is_empty(), "not in a circle");
    assert_eq!(raft.next_deadline(), Some(1));
    assert_eq!(after_the_gap(&mut raft, GAP).fetch, fetch);
    assert_eq!(raft.next_deadline(), None);
}

#[test]
fn a_leader_asks_again_for_what_a_follower_needs() {
    let mut net = Net::new(&[1, 2, 3], |config| config.cache_bytes_max = 0);
    net.elect(1);
    net.cut_off(3);
    for _ in 0..3 {
        net.propose(1, "a").expect("it leads");
        net.settle();
    }
    net.heal();
    let raft = net.raft(1);
    raft.advance_to(1);
    drain(raft);
    raft.report_unreachable(replica(3));
    raft.handle_message(message(3, 1, 1, Body::HeartbeatResponse { round: 0 }))
        .expect("a member's");
    let fetch = drain(raft).fetch;
    assert_eq!(fetch.len(), 1, "the entries are no longer in memory");
    let first = fetch[0].first;
    raft.entries_fetched(Fetched::Failed { first });
    assert!(drain(raft).fetch.is_empty());
    assert_eq!(after_the_gap(raft, GAP).fetch, fetch);
}

#[test]
fn after_a_gap_a_read_is_given_up_once_but_not_one_that_is_answered() {
    let mut raft = holding(2, 1, &[1], 1);
    raft.handle_message(message(1, 2, 1, heartbeat(1)))
        .expect("the leader's");
    drain(&mut raft);
    raft.read_index(7).expect("there is a leader");
    drain(&mut raft);
    // The answer lies in the inbox.
    raft.set_tick(GAP);
    let answer = Body::ReadIndexResponse {
        life: raft.config().life,
        id: 1,
        index: index(1),
    };
    raft.handle_message(message(1, 2, 1, heartbeat(1)))
        .expect("the leader's");
    raft.handle_message(message(1, 2, 1, answer))
        .expect("it is waited for");
    let said = after_the_gap(&mut raft, GAP);
    let state = ReadState {
        user: 7,
        index: index(1),
    };
    assert_eq!((said.reads, said.dropped), (vec![state], Vec::new()));
    // Nothing does.
    raft.read_index(8).expect("there is a leader");
    drain(&mut raft);
    raft.advance_to(2 * GAP);
    let given_up = read_dropped(8, DropReason::NoAnswer);
    assert_eq!(drain(&mut raft).dropped, [given_up]);
}

#[test]
fn after_a_gap_a_leader_falls_quiet_once_and_not_with_work_in_its_inbox() {
    let quiet = |config: &mut Config| config.quiesce_timeouts = 2;
    let is_quiesce = |body: &Body| matches!(body, Body::Quiesce { .. });
    let mut net = Net::new(&[1, 2, 3], quiet);
    net.elect(1);
    let said = after_the_gap(net.raft(1), GAP).messages;
    assert_eq!(kinds(&said, is_quiesce), [2, 3]);
    assert!(net.raft(1).is_quiet());

    let mut net = Net::new(&[1, 2, 3], quiet);
    net.elect(1);
    net.raft(1).set_tick(GAP);
    net.propose(1, "work").expect("it leads");
    let said = after_the_gap(net.raft(1), GAP).messages;
    assert!(kinds(&said, is_quiesce).is_empty() && !net.raft(1).is_quiet());
}

#[test]
fn a_heartbeat_in_the_inbox_after_a_gap_holds_the_campaign_back() {
    let mut raft = follower(2, 1, &[1], 0);
    drain(&mut raft);
    raft.set_tick(GAP);
    assert_eq!(raft.role(), Role::Follower, "nothing fires yet");
    raft.handle_message(message(1, 2, 1, heartbeat(0)))
        .expect("the leader's");
    raft.advance_to(GAP);
    assert_eq!((raft.role(), raft.term()), (Role::Follower, Term::new(1)));
    // It was heard of now, not when the clock was last looked at.
    let min = raft.config().election_timeout_ticks_min;
    raft.advance_to(GAP + min - 1);
    assert_eq!(raft.role(), Role::Follower);
    raft.advance_to(GAP + raft.config().election_timeout_ticks_max);
    assert_eq!(raft.role(), Role::Candidate);
}

#[test]
fn answers_in_the_inbox_after_a_gap_keep_a_leader() {
    let mut net = Net::new(&[1, 2, 3], checked);
    net.elect(1);
    net.raft(1).advance_to(GAP);
    let raft = net.raft(1);
    drain(raft);
    raft.set_tick(2 * GAP);
    raft.handle_message(message(2, 1, 1, Body::HeartbeatResponse { round: 0 }))
        .expect("a member's");
    raft.advance_to(2 * GAP);
    assert_eq!(raft.role(), Role::Leader);
}

#[test]
fn a_quiet_replica_that_is_woken_after_a_gap_does_not_stand_at_once() {
    let mut net = Net::new(&[1, 2, 3], |config| config.quiesce_timeouts = 2);
    net.elect(1);
    net.tick_all(25);
    assert!(net.raft(2).is_quiet());
    let raft = net.raft(2);
    raft.set_tick(GAP);
    raft.read_index(1).expect("there is a leader");
    assert!(!raft.is_quiet());
    raft.advance_to(GAP);
    assert_eq!(raft.role(), Role::Follower);
}

#[test]
fn a_promoted_learner_stands_when_its_timeout_is_over_and_once() {
    let membership = Membership {
        voters: [replica(1)].into(),
        learners: [replica(2)].into(),
        ..Membership::default()
    };
    let mut net = Net::with_membership(&[2], &membership, plain);
    let raft = net.raft(2);
    raft.advance_to(GAP);
    assert_eq!(raft.role(), Role::Follower);
    raft.apply_membership(index(0), &change(ChangeKind::AddVoter, 2))
        .expect("it is a member");
    after_the_gap(raft, GAP);
    assert_eq!(raft.term(), Term::new(1));
}

#[test]
fn time_counts_from_the_tick_that_a_replica_is_made_at() {
    let config = Config {
        check_quorum: true,
        lease_ticks: 8,
        election_timeout_ticks_min: 10,
        election_timeout_ticks_max: 20,
        ..Config::new(group(), replica(2), 2)
    };
    let mut raft = Raft::new(config.clone(), restored_of(&[1], 1), GAP).expect("valid settings");
    raft.advance_to(GAP);
    assert_eq!(raft.role(), Role::Follower);
    assert!(raft.next_deadline() >= Some(GAP + config.election_timeout_ticks_min));
    let ask = || {
        let last = crate::net::entry_id(1, 1);
        let is_transfer = false;
        message(3, 2, 2, Body::Vote { last, is_transfer })
    };
    raft.advance_to(GAP + 7);
    assert!(raft.handle_message(ask()).is_err(), "a lease may still run");
    raft.advance_to(GAP + 8);
    raft.handle_message(ask()).expect("the lease is over");
    // The clock does not go back.
    raft.set_tick(5);
    raft.advance_to(5);
    assert!(raft.next_deadline() > Some(GAP));
}

fn restored_of(terms: &[u64], commit: u64) -> Restored {
    let last = u64::try_from(terms.len()).expect("few");
    Restored {
        hard_state: raft_proto::HardState {
            term: Term::new(1),
            vote: None,
            commit: index(commit),
        },
        last: EntryId::new(Term::new(1), index(last)),
        terms: vec![
            raft_proto::TermRun {
                first: index(0),
                term: Term::ZERO,
            },
            raft_proto::TermRun {
                first: index(1),
                term: Term::new(1),
            },
        ],
        membership: voters(&[1, 2, 3]),
        ..Restored::default()
    }
}
