//! §3.4 (elections), §3.6.1 (the election restriction), §3.6.3 (leader completeness), §3.10
//! (handing over), §4.2.3 (disruptive servers), §6.2 (a leader without a quorum), §9.6 (pre-vote).

use std::collections::BTreeSet;

use crate::net::voters;
use crate::net::{Net, append, batch, entry_id, follower, group, index, message, plain, replica};
use crate::{accepted, drain, granted, heartbeat, lead, led_group, tell, term, vote};
use raft_proto::{
    Body, Config, DropReason, EntryId, Index, ProposeError, Raft, Refused, Restored, Role,
};

#[test]
fn thesis_3_4_replicas_start_as_followers_and_stay_so_while_they_hear_a_leader() {
    let mut raft = follower(2, 1, &[1], 0);
    for tick in 1..200 {
        assert_eq!(raft.role(), Role::Follower);
        tell(&mut raft, message(1, 2, 1, heartbeat(0)));
        raft.advance_to(tick);
    }
    assert_eq!((raft.leader(), raft.term()), (Some(replica(1)), term(1)));
}

#[test]
fn thesis_3_4_without_a_leader_it_stands_votes_for_itself_and_asks_all_others() {
    let mut raft = follower(2, 1, &[1], 0);
    drain(&mut raft);
    raft.advance_to(raft.config().election_timeout_ticks_max);
    assert_eq!((raft.role(), raft.term()), (Role::Candidate, term(2)));
    assert_eq!(raft.hard_state().vote, Some(replica(2)));
    let asked: Vec<u64> = drain(&mut raft)
        .iter()
        .filter(|message| message.body == vote(entry_id(1, 1)) && message.term == term(2))
        .map(|message| message.to.get())
        .collect();
    assert_eq!(asked, [1, 3]);
}

#[test]
fn thesis_3_4_a_majority_of_all_wins_and_nothing_less() {
    for size in [1_u64, 2, 3, 4, 5, 6, 7] {
        for yes in 0..size {
            let ids: Vec<u64> = (1..=size).collect();
            let mut net = Net::new(&ids, plain);
            net.raft(1).campaign().expect("it may stand");
            net.pump(1);
            for from in 2..=size {
                let is_rejected = from > 1 + yes;
                let answer = message(from, 1, 1, Body::VoteResponse { is_rejected });
                net.deliver(answer);
            }
            let wins = 2 * (yes + 1) > size;
            assert_eq!(
                net.raft(1).role() == Role::Leader,
                wins,
                "{yes} others of {size}"
            );
        }
    }
}

#[test]
fn thesis_3_4_a_vote_goes_to_the_first_who_asks() {
    for (first, second) in [(1, 3), (3, 1)] {
        let mut raft = follower(2, 1, &[1], 0);
        let request = |from| message(from, 2, 2, vote(entry_id(1, 1)));
        assert!(granted(&tell(&mut raft, request(first))));
        assert!(!granted(&tell(&mut raft, request(second))));
    }
}

#[test]
fn thesis_3_4_a_candidate_that_hears_the_leader_of_its_term_follows_it() {
    for leader_term in [2, 3] {
        let mut raft = follower(1, 1, &[1], 0);
        raft.campaign().expect("it may stand");
        drain(&mut raft);
        let entries = vec![batch(leader_term, 2, &["a"])];
        let said = tell(
            &mut raft,
            message(2, 1, leader_term, append(entry_id(1, 1), 0, entries)),
        );
        assert_eq!(
            (raft.role(), raft.leader()),
            (Role::Follower, Some(replica(2)))
        );
        assert_eq!(said.last().map(|said| &said.body), Some(&accepted(2)));
    }
}

#[test]
fn thesis_3_4_a_candidate_keeps_on_in_spite_of_a_leader_of_an_older_term() {
    let mut raft = follower(1, 1, &[1], 0);
    raft.campaign().expect("it may stand");
    drain(&mut raft);
    tell(&mut raft, message(2, 1, 1, heartbeat(0)));
    assert_eq!((raft.role(), raft.leader()), (Role::Candidate, None));
}

#[test]
fn thesis_3_4_after_a_split_vote_it_stands_again_in_a_later_term() {
    let mut raft = follower(1, 1, &[1], 0);
    raft.campaign().expect("it may stand");
    drain(&mut raft);
    let max = raft.config().election_timeout_ticks_max;
    raft.advance_to(max);
    assert_eq!((raft.role(), raft.term()), (Role::Candidate, term(3)));
}

#[test]
fn thesis_3_4_election_timeouts_are_drawn_from_the_whole_of_their_range() {
    let mut drawn = BTreeSet::new();
    for seed in 0..1_000 {
        let config = Config {
            election_timeout_ticks_min: 10,
            election_timeout_ticks_max: 20,
            heartbeat_ticks: 1,
            pre_vote: false,
            ..Config::new(group(), replica(1), seed)
        };
        let restored = Restored {
            membership: voters(&[1, 2, 3]),
            ..Restored::default()
        };
        let mut raft = Raft::new(config, restored, 0).expect("valid settings");
        let stood = (1..=20).find(|&tick| {
            raft.advance_to(tick);
            raft.role() == Role::Candidate
        });
        drawn.insert(stood.expect("it stands within its timeout"));
    }
    assert_eq!(drawn, (10..=20).collect());
}

#[test]
fn thesis_3_4_random_timeouts_end_split_votes() {
    for seed in 0..50 {
        let mut net = Net::new(&[1, 2, 3, 4, 5], |config| {
            config.seed = seed * 100 + config.id.get();
        });
        let elected = (1..=200).find(|_| {
            net.tick_all(1);
            !net.leaders().is_empty()
        });
        assert!(elected.is_some(), "seed {seed}: no leader in ten timeouts");
    }
}

#[test]
fn thesis_3_4_a_new_leader_tells_all_at_once_and_then_at_each_heartbeat() {
    let mut raft = follower(1, 1, &[1], 0);
    raft.campaign().expect("it may stand");
    drain(&mut raft);
    let yes = message(2, 1, 2, Body::VoteResponse { is_rejected: false });
    let to = |said: &[raft_proto::Message]| -> Vec<u64> {
        said.iter().map(|message| message.to.get()).collect()
    };
    let said = tell(&mut raft, yes);
    assert_eq!(to(&said), [2, 3]);
    assert!(
        said.iter()
            .all(|said| matches!(said.body, Body::Append { .. }))
    );
    let every = raft.config().heartbeat_ticks;
    for beat in 1..4 {
        raft.advance_to(beat * every - 1);
        assert!(drain(&mut raft).is_empty());
        raft.advance_to(beat * every);
        let said = drain(&mut raft);
        assert_eq!(to(&said), [2, 3]);
        assert!(
            said.iter()
                .all(|said| matches!(said.body, Body::Heartbeat { .. }))
        );
    }
}

#[test]
fn thesis_3_6_1_only_a_log_as_new_as_the_voters_gets_its_vote() {
    // The later last term wins; of equal last terms the longer log.
    for (own, asking, is_granted) in [
        (&[1, 1][..], entry_id(1, 2), true),
        (&[1, 1], entry_id(1, 3), true),
        (&[1, 1], entry_id(1, 1), false),
        (&[1, 1], entry_id(2, 1), true),
        (&[1, 2], entry_id(1, 9), false),
        (&[1, 2], entry_id(2, 2), true),
        (&[1, 2], entry_id(2, 1), false),
        (&[], EntryId::ZERO, true),
    ] {
        let mut raft = follower(2, 2, own, 0);
        let said = tell(&mut raft, message(1, 2, 3, vote(asking)));
        assert_eq!(granted(&said), is_granted, "{own:?} asked by {asking}");
    }
}

#[test]
fn thesis_3_6_3_who_lacks_a_committed_entry_never_leads() {
    let mut net = led_group();
    net.cut_off(3);
    net.propose(1, "kept").expect("it leads");
    net.settle();
    assert_eq!(net.raft(1).commit(), index(2));
    // Without one, only two can lead: three asks two as often as it likes.
    net.heal();
    net.node(1).is_down = true;
    for _ in 0..3 {
        net.raft(3).campaign().expect("it may stand");
        net.settle();
        assert_eq!(net.raft(3).role(), Role::Candidate);
    }
    net.elect(2);
    assert_eq!(net.node(3).texts(), ["kept"]);
}

#[test]
fn thesis_3_10_a_leader_hands_over_to_one_that_is_caught_up_first() {
    let mut net = led_group();
    net.cut_off(2);
    net.propose(1, "a").expect("it leads");
    net.settle();
    net.heal();
    net.raft(1).transfer_leader(replica(2)).expect("it leads");
    net.pump(1);
    assert!(
        !net.mail.iter().any(|said| said.body == Body::TimeoutNow),
        "first the log"
    );
    net.settle();
    assert_eq!(net.leaders(), [2]);
    assert_eq!(net.raft(2).term(), term(2));
    assert_eq!(net.node(2).texts(), ["a"]);
}

#[test]
fn thesis_3_10_no_proposals_while_it_hands_over_and_again_when_that_took_too_long() {
    let mut net = led_group();
    net.cut_off(2);
    net.raft(1).transfer_leader(replica(2)).expect("it leads");
    assert_eq!(net.propose(1, "a"), Err(ProposeError::TransferInProgress));
    net.tick_all(9);
    assert_eq!(net.propose(1, "a"), Err(ProposeError::TransferInProgress));
    net.tick_all(1);
    assert_eq!(net.raft(1).transferee(), None);
    net.propose(1, "a").expect("an election timeout has passed");
}

#[test]
fn thesis_4_2_3_who_hears_a_leader_neither_votes_nor_adopts_the_term() {
    let mut net = Net::new(&[1, 2, 3], |config| config.check_quorum = true);
    net.elect(1);
    let request = |is_transfer| {
        let last = entry_id(6, 9);
        message(3, 2, 7, Body::Vote { last, is_transfer })
    };
    let refused = net.raft(2).handle_message(request(false));
    let reason = DropReason::LeaderAlive;
    assert_eq!(refused, Err(Refused::Dropped { reason }));
    assert_eq!(net.raft(2).term(), term(1));
    // The leader's own wish passes (§3.10), and so does time.
    let said = tell(net.raft(2), request(true));
    assert!(granted(&said));
    let mut net = Net::new(&[1, 2, 3], |config| config.check_quorum = true);
    net.elect(1);
    net.tick(2, 10);
    let said = tell(net.raft(2), request(false));
    assert!(granted(&said));
}

#[test]
fn thesis_6_2_a_leader_that_hears_of_no_quorum_steps_down() {
    let mut net = Net::new(&[1, 2, 3], |config| config.check_quorum = true);
    net.elect(1);
    net.cut_off(3);
    net.tick_all(40);
    assert_eq!(net.leaders(), [1], "two of three are a quorum");
    net.cut_off(1);
    net.tick_all(20);
    assert_eq!(net.raft(1).role(), Role::Follower);
}

#[test]
fn thesis_9_6_a_pre_vote_changes_nobody() {
    let mut raft = follower(2, 1, &[1], 0);
    let before = raft.hard_state();
    let ask = |last| message(1, 2, 2, Body::PreVote { last });
    assert!(granted(&tell(&mut raft, ask(entry_id(1, 1)))));
    assert!(!granted(&tell(&mut raft, ask(EntryId::ZERO))), "an old log");
    assert_eq!(raft.hard_state(), before);
    assert!(granted(&tell(
        &mut raft,
        message(3, 2, 2, vote(entry_id(1, 1)))
    )));
}

#[test]
fn thesis_9_6_no_election_begins_without_a_majority_of_pre_votes() {
    let mut net = Net::new(&[1, 2, 3], |config| config.pre_vote = true);
    net.raft(1).campaign().expect("it may ask");
    net.pump(1);
    assert_eq!(
        (net.raft(1).role(), net.raft(1).term()),
        (Role::PreCandidate, term(0))
    );
    net.mail.clear();
    net.deliver(message(
        2,
        1,
        1,
        Body::PreVoteResponse { is_rejected: false },
    ));
    assert_eq!(
        (net.raft(1).role(), net.raft(1).term()),
        (Role::Candidate, term(1))
    );
}

#[test]
fn thesis_9_6_one_that_was_cut_off_disturbs_nobody_when_it_comes_back() {
    let mut net = Net::new(&[1, 2, 3], |config| {
        config.pre_vote = true;
        config.check_quorum = true;
    });
    net.elect(1);
    let before = net.raft(1).term();
    net.cut_off(3);
    net.tick_all(200);
    assert_eq!(net.raft(3).term(), before, "it only asked");
    net.heal();
    net.tick_all(30);
    assert_eq!(net.leaders(), [1]);
    assert_eq!(net.raft(1).term(), before);
    assert_eq!(net.raft(3).leader(), Some(replica(1)));
}

#[test]
fn thesis_9_6_a_leader_that_is_heard_of_is_not_pre_voted_away() {
    let mut net = Net::new(&[1, 2, 3], |config| {
        config.pre_vote = true;
        config.check_quorum = true;
    });
    net.elect(1);
    let last = net.raft(3).last_index();
    assert!(last > Index::ZERO);
    net.raft(3).campaign().expect("it may ask");
    net.settle();
    assert_eq!(net.leaders(), [1]);
    assert_eq!(net.raft(1).term(), term(1));
    // And one that leads knows it by itself.
    let mut raft = follower(1, 1, &[1], 0);
    lead(&mut raft);
    let ask = message(
        3,
        1,
        3,
        Body::PreVote {
            last: entry_id(9, 9),
        },
    );
    tell(&mut raft, ask);
    assert_eq!((raft.role(), raft.term()), (Role::Leader, term(2)));
}
