//! What a replica waits for, told to a person.

use crate::net::{Net, change, entry_id, index, message, plain, replica, voters};
use raft_proto::{Body, ChangeKind, Membership, SnapshotMeta, Term, WhyNoLeader};

#[test]
fn one_that_knows_its_leader_waits_for_nothing() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    net.settle();
    assert!((1..=3).all(|id| net.raft(id).why_no_leader().is_none()));
}

#[test]
fn no_membership_or_no_right_to_lead() {
    let mut membership = voters(&[1, 2, 3]);
    membership.witnesses.insert(replica(2));
    membership.learners.insert(replica(4));
    let mut net = Net::with_membership(&[1, 2, 3, 4], &membership, plain);
    net.add(5, Membership::default(), plain);
    assert_eq!(net.raft(5).why_no_leader(), Some(WhyNoLeader::NoMembership));
    for id in [2, 4] {
        assert_eq!(net.raft(id).why_no_leader(), Some(WhyNoLeader::MayNotLead));
    }
}

#[test]
fn waiting_for_its_timeout_counts_down() {
    let mut net = Net::new(&[1, 2, 3], |config| {
        config.election_timeout_ticks_max = config.election_timeout_ticks_min;
    });
    let waiting = |ticks| {
        Some(WhyNoLeader::Waiting {
            ticks,
            rounds_left_to_others: 0,
        })
    };
    assert_eq!(net.raft(1).why_no_leader(), waiting(10));
    net.tick(1, 4);
    assert_eq!(net.raft(1).why_no_leader(), waiting(6));
}

#[test]
fn asking_names_who_said_what() {
    for is_pre_vote in [true, false] {
        let ids = [1, 2, 3, 4, 5];
        let mut net = Net::new(&ids, |config| config.pre_vote = is_pre_vote);
        // 3 has a longer log and says no; 4 and 5 are not there.
        net.node(3).disk.log = vec![crate::net::batch(1, 1, &["a"])];
        net.node(3).disk.hard.term = Term::new(1);
        net.restart(3);
        net.node(1).disk.hard.term = Term::new(1);
        net.restart(1);
        net.node(4).is_down = true;
        net.node(5).is_down = true;
        net.raft(1).campaign().expect("it may stand");
        net.settle();
        let expected = WhyNoLeader::Asking {
            is_pre_vote,
            term: Term::new(2),
            granted: vec![replica(1), replica(2)],
            rejected: vec![replica(3)],
            missing: vec![replica(4), replica(5)],
        };
        assert_eq!(net.raft(1).why_no_leader(), Some(expected));
    }
}

#[test]
fn taking_in_a_snapshot_comes_first() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.node(2).is_disk_slow = true;
    let meta = SnapshotMeta {
        id: entry_id(1, 9),
        membership: voters(&[1, 2, 3]),
    };
    let meta = meta.into();
    net.raft(2)
        .handle_message(message(1, 2, 1, Body::Snapshot { meta }))
        .expect("it is news");
    net.pump(2);
    net.raft(2).forget_leader().expect("it follows");
    let why = Some(WhyNoLeader::InstallingSnapshot { index: index(9) });
    assert_eq!(net.raft(2).why_no_leader(), why);
    assert!(net.raft(2).campaign().is_err());
    net.sync(2);
    assert!(matches!(
        net.raft(2).why_no_leader(),
        Some(WhyNoLeader::Waiting { .. })
    ));
}

#[test]
fn a_change_that_is_committed_must_be_switched_to() {
    let mut net = Net::new(&[1, 2, 3], |config| config.change_done_when_applied = true);
    net.elect(1);
    net.node(2).is_apply_slow = true;
    net.raft(1)
        .propose_membership(change(ChangeKind::AddLearner, 4))
        .expect("nothing is pending");
    net.settle();
    net.tick_all(1);
    net.raft(2).forget_leader().expect("it follows");
    let why = Some(WhyNoLeader::ChangeNotApplied { index: index(2) });
    assert_eq!(net.raft(2).why_no_leader(), why);
    assert!(net.raft(2).campaign().is_err());
}

#[test]
fn each_of_them_is_a_sentence() {
    let some = [
        WhyNoLeader::NoMembership,
        WhyNoLeader::MayNotLead,
        WhyNoLeader::InstallingSnapshot { index: index(9) },
        WhyNoLeader::ChangeNotApplied { index: index(8) },
        WhyNoLeader::Quiet,
        WhyNoLeader::Waiting {
            ticks: 7,
            rounds_left_to_others: 2,
        },
        WhyNoLeader::Asking {
            is_pre_vote: true,
            term: Term::new(6),
            granted: vec![replica(1)],
            rejected: vec![],
            missing: vec![replica(2)],
        },
    ];
    let texts = some.map(|why| why.to_string());
    let expected = [
        "it has no membership; a leader has to find it",
        "it may not lead; the voters have to elect a leader",
        "it takes in the snapshot at 9 first",
        "it has to switch to the membership of entry 8 first",
        "the group is quiet; any request wakes it",
        "it stands in 7 ticks unless it hears of a leader, having left 2 rounds to others of \
         higher priority",
        "it asks whether it could win term 6: yes [1], no [], no answer [2]",
    ];
    assert_eq!(texts, expected);
}
