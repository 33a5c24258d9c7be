//! Elections and terms: hazards 12 to 19.

use crate::net::{Net, entry_id, group, index, message, replica};
use crate::{follower, plain, restarted};
use raft_proto::{
    AfterSync, Body, Config, Durable, EntryId, HardState, Index, Message, ProposeError, Refused,
    Role, Term, ViolationKind,
};

#[test]
fn hazard_12_no_vote_leaves_before_it_is_durable() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.node(2).is_disk_slow = true;
    net.raft(1).campaign().expect("it may stand");
    net.pump(1);
    net.cut.insert((1, 3));
    while net.deliver_one() {}
    net.pump(2);
    assert_eq!(net.raft(2).hard_state().vote, Some(replica(1)));
    assert!(net.mail.is_empty(), "two says nothing yet");
    // The power goes before the sync: two has forgotten, and nobody heard of the vote.
    net.restart(2);
    assert_eq!(net.raft(2).hard_state().vote, None);
    assert_eq!(net.raft(1).role(), Role::Candidate);
    net.node(2).is_disk_slow = false;
    net.heal();
    net.elect(3);
    assert_eq!(net.leaders(), [3]);
}

#[test]
#[should_panic(expected = "no more than SubmissionId(1) is durable")]
fn hazard_12_the_word_of_an_earlier_sync_releases_no_vote() {
    let mut raft = follower(2, 1, &[1], 1);
    let asked = |from, term| {
        let last = entry_id(1, 1);
        let is_transfer = false;
        message(from, 2, term, Body::Vote { last, is_transfer })
    };
    raft.handle_message(asked(1, 2)).expect("a vote is free");
    let first = raft.poll_ready().expect("a vote");
    raft.handle_message(asked(3, 3)).expect("a vote is free");
    let second = raft.poll_ready().expect("another");
    let durable = raft.persisted(first.submission.expect("a vote"));
    for held in first.messages_after_sync {
        held.release(durable);
    }
    for held in second.messages_after_sync {
        held.release(durable);
    }
}

#[test]
fn hazard_12_the_word_of_another_replica_or_life_releases_no_vote() {
    let voted = |id, life| {
        let config = Config {
            life,
            ..Config::new(group(), replica(id), id)
        };
        let mut raft = restarted(config, 1, &[1], 1);
        let last = entry_id(1, 1);
        let is_transfer = false;
        let asked = message(1, id, 2, Body::Vote { last, is_transfer });
        raft.handle_message(asked).expect("a vote is free");
        let ready = raft.poll_ready().expect("a vote");
        let durable = raft.persisted(ready.submission.expect("a vote"));
        (ready.messages_after_sync, durable)
    };
    let release = |(held, _): (Vec<AfterSync<Message>>, Durable), durable: Durable| {
        let release =
            || -> Vec<Message> { held.into_iter().map(|held| held.release(durable)).collect() };
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(release))
    };
    // Each of them has the same number for its submission.
    let released = release(voted(2, 1), voted(2, 1).1).expect("its own");
    assert_eq!(released.len(), 1);
    assert!(release(voted(2, 1), voted(3, 1).1).is_err());
    assert!(release(voted(2, 1), voted(2, 2).1).is_err());
}

#[test]
fn hazard_12_a_candidate_that_crashes_before_its_first_sync_cannot_lead_the_same_term_twice() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.node(1).is_disk_slow = true;
    net.raft(1).campaign().expect("it may stand");
    net.pump(1);
    // Neither its term nor its vote is durable: nobody has heard of its candidacy.
    assert!(net.mail.is_empty());
    assert_eq!(net.raft(1).term(), Term::new(1));
    net.restart(1);
    assert_eq!(net.raft(1).term(), Term::ZERO);
    // Once it is durable the requests leave, and after a crash it stands in a later term.
    net.raft(1).campaign().expect("it may stand");
    net.pump(1);
    net.sync(1);
    assert_eq!(
        net.take(|message| matches!(message.body, Body::Vote { .. }))
            .len(),
        2
    );
    net.restart(1);
    net.raft(1).campaign().expect("it may stand");
    assert_eq!(net.raft(1).term(), Term::new(2));
}

#[test]
fn hazard_12_nothing_but_a_pre_vote_names_a_term_that_is_not_durable() {
    let mut net = Net::new(&[1, 2, 3], |config| config.pre_vote = true);
    net.node(2).is_disk_slow = true;
    let heartbeat = message(
        1,
        2,
        5,
        Body::Heartbeat {
            commit: Index::ZERO,
            round: 3,
        },
    );
    net.deliver(heartbeat.clone());
    net.pump(2);
    assert!(net.mail.is_empty(), "the answer would name term 5");
    net.sync(2);
    assert_eq!(net.mail.len(), 1);
    net.mail.clear();
    // Now that the term is durable, answers leave at once.
    net.deliver(heartbeat);
    net.pump(2);
    assert_eq!(net.mail.len(), 1);
}

#[test]
fn hazard_13_a_higher_term_is_no_vote_and_a_term_has_one() {
    let mut raft = follower(1, 3, &[1, 3], 1);
    // A higher term seen in an append answer: adopted, and nothing is granted by it.
    let answer = Body::AppendResponse {
        index: index(9),
        rejected: None,
    };
    raft.handle_message(message(2, 1, 4, answer)).ok();
    assert_eq!(
        raft.hard_state(),
        HardState {
            term: Term::new(4),
            vote: None,
            commit: index(1)
        }
    );
    // An outdated candidate of a higher term: its term is adopted, its request refused.
    let vote = |last: EntryId| Body::Vote {
        last,
        is_transfer: false,
    };
    raft.handle_message(message(3, 1, 5, vote(entry_id(1, 9))))
        .expect("it is answered");
    assert_eq!(raft.hard_state().vote, None);
    raft.handle_message(message(2, 1, 5, vote(entry_id(3, 2))))
        .expect("it is answered");
    assert_eq!(raft.hard_state().vote, Some(replica(2)));
    raft.handle_message(message(4, 1, 5, vote(entry_id(4, 9))))
        .expect("it is answered");
    assert_eq!(raft.hard_state().vote, Some(replica(2)), "one vote a term");
    let ready = raft.poll_ready().expect("there are answers");
    let answers: Vec<(u64, bool)> = ready
        .messages_after_sync
        .iter()
        .filter_map(|held| match held.held().body {
            Body::VoteResponse { is_rejected } => Some((held.held().to.get(), is_rejected)),
            _ => None,
        })
        .collect();
    assert_eq!(answers, [(3, true), (2, false), (4, true)]);
}

#[test]
fn hazard_14_a_stuck_higher_term_and_a_leader_that_ignores_it_find_together() {
    let mut net = Net::new(&[1, 2, 3], |config| config.check_quorum = true);
    net.elect(1);
    // Three is alone for long and, without pre-votes, far ahead in terms.
    net.cut_off(3);
    net.tick(3, 100);
    assert!(net.raft(3).term() > Term::new(3));
    net.tick_all(1);
    net.heal();
    net.tick_all(60);
    assert_eq!(net.leaders().len(), 1);
    let leader = net.leaders()[0];
    assert_eq!(net.raft(3).leader(), Some(replica(leader)));
    net.propose(leader, "x").expect("it leads");
    net.tick_all(2);
    assert_eq!(net.node(3).texts(), ["x"]);
}

#[test]
fn hazard_14_a_group_that_begins_to_use_pre_votes_one_by_one_is_not_stuck() {
    // Three stood alone before it learned of pre-votes; its term is higher, its log shorter.
    let mut net = Net::new(&[1, 2, 3], |config| {
        config.pre_vote = config.id != replica(3);
    });
    net.elect(1);
    net.cut_off(3);
    net.propose(1, "x").expect("it leads");
    net.settle();
    net.tick(3, 60);
    net.node(1).is_down = true;
    net.heal();
    net.tick_all(120);
    assert_eq!(net.leaders(), [2], "three's log is behind");
    assert_eq!(net.raft(3).leader(), Some(replica(2)));
}

#[test]
fn hazard_17_a_transfer_ends_by_itself() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    net.node(3).is_down = true;
    net.raft(1).transfer_leader(replica(3)).expect("a voter");
    assert_eq!(net.propose(1, "x"), Err(ProposeError::TransferInProgress));
    net.tick_all(10);
    assert_eq!(net.raft(1).transferee(), None);
    net.propose(1, "x").expect("the transfer was given up");
    net.settle();
    assert_eq!(net.node(2).texts(), ["x"]);
}

#[test]
fn hazard_17_a_lagging_target_is_caught_up_first() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    net.cut_off(3);
    net.propose(1, "x").expect("it leads");
    net.settle();
    net.heal();
    net.raft(1).transfer_leader(replica(3)).expect("a voter");
    net.pump(1);
    assert!(
        !net.mail
            .iter()
            .any(|message| message.body == Body::TimeoutNow),
        "not before its log is whole"
    );
    net.tick(1, 1);
    net.settle();
    assert_eq!(net.leaders(), [3]);
    assert_eq!(net.node(3).texts(), ["x"]);
}

#[test]
fn hazard_17_a_transfer_passes_stickiness_and_ends_the_lease() {
    let mut net = Net::new(&[1, 2, 3], |config| {
        config.check_quorum = true;
        config.pre_vote = true;
        config.lease_ticks = 8;
    });
    net.elect(1);
    net.tick_all(2);
    assert!(net.raft(1).has_lease());
    net.raft(1).transfer_leader(replica(2)).expect("a voter");
    assert!(
        !net.raft(1).has_lease(),
        "whoever was told may win at any time"
    );
    // The message is lost, the transfer is given up, and the lease stays gone all the same.
    net.pump(1);
    let told = net.take(|message| message.body == Body::TimeoutNow);
    net.tick_all(12);
    assert_eq!(net.raft(1).transferee(), None);
    assert!(!net.raft(1).has_lease());
    // Late as it is, it elects the target although the leader is heard of.
    for message in told {
        net.deliver(message);
    }
    net.settle();
    assert_eq!(net.leaders(), [2]);
}

#[test]
fn hazard_19_a_second_leader_of_a_term_is_fatal() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    let before = net.raft(2).hard_state();
    let heartbeat = Body::Heartbeat {
        commit: Index::ZERO,
        round: 0,
    };
    for to in [1, 2] {
        let refused = net
            .raft(to)
            .handle_message(message(3, to, 1, heartbeat.clone()));
        let Err(Refused::Violation { kind, from }) = refused else {
            panic!("{refused:?}");
        };
        assert!(kind.is_fatal());
        assert_eq!(from, replica(3));
        assert_eq!(
            kind,
            ViolationKind::SecondLeader {
                term: Term::new(1),
                leader: replica(1)
            }
        );
    }
    assert_eq!(net.raft(2).hard_state(), before);
    assert_eq!(net.raft(2).leader(), Some(replica(1)));
}
