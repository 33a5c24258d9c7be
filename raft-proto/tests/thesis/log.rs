//! §3.5 (log replication, log matching), §3.6.2 (entries of earlier terms).

use crate::net::{Net, append, batch, entry_id, follower, index, message, plain, replica, voters};
use crate::{accepted, drain, lead, led_group, tell, term};
use raft_proto::{Batch, Body, EntryId, HardState, Index, Message, ProposeError, Role};

/// The batches of a log whose entries have these terms, named after their places.
fn log_of(terms: &[u64]) -> Vec<Batch> {
    let place = |at: usize| u64::try_from(at).expect("few") + 1;
    terms
        .iter()
        .enumerate()
        .map(|(at, &term)| batch(term, place(at), &[&format!("{term}.{}", place(at))]))
        .collect()
}

fn set_log(net: &mut Net, id: u64, hard_term: u64, terms: &[u64]) {
    let node = net.node(id);
    node.disk.log = log_of(terms);
    node.disk.hard = HardState {
        term: term(hard_term),
        vote: None,
        commit: Index::ZERO,
    };
    net.restart(id);
}

fn ids_of(net: &mut Net, id: u64) -> Vec<EntryId> {
    let log = &net.node(id).disk.log;
    log.iter()
        .flat_map(Batch::iter)
        .map(|entry| entry.id())
        .collect()
}

#[test]
fn thesis_3_5_a_command_is_appended_sent_to_all_and_committed_by_a_majority() {
    let mut raft = follower(1, 1, &[], 0);
    lead(&mut raft);
    tell(&mut raft, message(2, 1, 2, accepted(1)));
    tell(&mut raft, message(3, 1, 2, accepted(1)));
    raft.propose([raft_proto::Proposal::command(b"a")])
        .expect("it leads");
    let said = drain(&mut raft);
    let sent: Vec<(u64, Body)> = said
        .into_iter()
        .map(|message| (message.to.get(), message.body))
        .collect();
    let body = append(entry_id(2, 1), 1, vec![batch(2, 2, &["a"])]);
    assert_eq!(sent, [(2, body.clone()), (3, body)]);
    assert_eq!(raft.commit(), index(1));
    tell(&mut raft, message(3, 1, 2, accepted(2)));
    assert_eq!(raft.commit(), index(2), "two of three hold it");
}

#[test]
fn thesis_3_5_followers_learn_of_the_commit_index_and_apply_in_order() {
    let mut net = led_group();
    for data in ["a", "b", "c"] {
        net.propose(1, data).expect("it leads");
    }
    net.settle();
    for id in [1, 2, 3] {
        assert_eq!(net.node(id).texts(), ["a", "b", "c"]);
    }
}

#[test]
fn thesis_3_5_only_a_leader_takes_commands() {
    let mut net = led_group();
    let leader = Some(replica(1));
    assert_eq!(net.propose(2, "a"), Err(ProposeError::NotLeader { leader }));
}

#[test]
fn thesis_3_5_an_append_is_taken_only_where_the_entry_before_it_matches() {
    // Figure 3.1, AppendEntries, receiver implementation 2.
    for (prev, is_taken) in [
        (entry_id(1, 1), true),
        (entry_id(2, 2), true),
        (entry_id(1, 2), false),
        (entry_id(3, 3), false),
        (EntryId::ZERO, true),
    ] {
        let mut raft = follower(2, 3, &[1, 2], 0);
        let entries = vec![batch(3, prev.index.get() + 1, &["new"])];
        let said = tell(&mut raft, message(1, 2, 3, append(prev, 0, entries)));
        let [
            Message {
                body: Body::AppendResponse { index, rejected },
                ..
            },
        ] = &said[..]
        else {
            panic!("{said:?}");
        };
        assert_eq!(rejected.is_none(), is_taken, "after {prev}");
        if is_taken {
            assert_eq!(*index, prev.index.next());
            assert_eq!(raft.term_at(prev.index.next()), Some(term(3)));
        } else {
            assert_eq!(*index, prev.index);
            assert_eq!(raft.last_index().get(), 2, "nothing changed");
        }
    }
}

#[test]
fn thesis_3_5_what_conflicts_is_dropped_with_all_behind_it_and_nothing_else() {
    // Figure 3.1, AppendEntries, receiver implementation 3 and 4.
    for (own, prev, entries, left) in [
        (&[1, 1, 1][..], entry_id(1, 1), vec![(2, 2)], &[1, 2][..]),
        (&[1, 1, 1], entry_id(1, 1), vec![(1, 2)], &[1, 1, 1]),
        (&[1, 1, 1], entry_id(1, 1), vec![(1, 2), (2, 3)], &[1, 1, 2]),
        (&[1, 1, 1], entry_id(1, 3), vec![(2, 4)], &[1, 1, 1, 2]),
        (&[1, 1, 1], entry_id(1, 2), vec![], &[1, 1, 1]),
    ] {
        let mut raft = follower(2, 3, own, 0);
        let entries: Vec<Batch> = entries
            .iter()
            .map(|&(term, index)| batch(term, index, &["x"]))
            .collect();
        tell(&mut raft, message(1, 2, 3, append(prev, 0, entries)));
        let terms: Vec<u64> = (1..=raft.last_index().get())
            .filter_map(|at| raft.term_at(index(at)))
            .map(|term| term.get())
            .collect();
        assert_eq!(terms, left);
    }
}

#[test]
fn thesis_3_5_a_follower_commits_no_further_than_what_it_knows_to_match() {
    // Figure 3.1, AppendEntries, receiver implementation 5. What lies behind the append's last
    // entry may still be replaced.
    for (commands, leader_commit, commit) in [
        (&["a"][..], 9, 3),
        (&["a", "b"], 3, 3),
        (&["a", "b"], 9, 4),
        (&[], 9, 2),
        (&[], 1, 1),
    ] {
        let mut raft = follower(2, 1, &[1, 1, 1, 1, 1], 0);
        let entries = if commands.is_empty() {
            Vec::new()
        } else {
            vec![batch(1, 3, commands)]
        };
        let body = append(entry_id(1, 2), leader_commit, entries);
        tell(&mut raft, message(1, 2, 1, body));
        assert_eq!(raft.commit(), index(commit));
        assert_eq!(raft.last_index(), index(5), "and nothing is dropped");
    }
}

/// Thesis Figure 3.6: a leader and six followers whose logs differ in every way they may.
#[test]
fn thesis_3_5_a_leader_brings_every_log_to_its_own() {
    let leader = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6];
    let followers: [(u64, &[u64]); 6] = [
        (6, &[1, 1, 1, 4, 4, 5, 5, 6, 6]),
        (4, &[1, 1, 1, 4]),
        (6, &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6]),
        (7, &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7]),
        (4, &[1, 1, 1, 4, 4, 4, 4]),
        (3, &[1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3]),
    ];
    let mut net = Net::new(&[1, 2, 3, 4, 5, 6, 7], plain);
    set_log(&mut net, 1, 7, &leader);
    for (at, (hard_term, terms)) in (2..).zip(followers) {
        set_log(&mut net, at, hard_term, terms);
    }
    net.elect(1);
    assert_eq!(net.raft(1).term(), term(8));
    net.tick_all(3);
    let wanted = ids_of(&mut net, 1);
    assert_eq!(
        wanted[..10]
            .iter()
            .map(|id| id.term.get())
            .collect::<Vec<_>>(),
        leader
    );
    assert_eq!(
        wanted[10..],
        [entry_id(8, 11)],
        "its own log it never changed"
    );
    for id in 2..=7 {
        assert_eq!(ids_of(&mut net, id), wanted, "replica {id}");
        assert_eq!(net.raft(id).commit(), index(11));
    }
}

#[test]
fn thesis_3_5_the_leader_skips_a_whole_term_at_each_rejection() {
    let mut net = Net::new(&[1, 2, 3], plain);
    let leader: Vec<u64> = [vec![1; 2], vec![5; 60]].concat();
    let other: Vec<u64> = [vec![1; 2], vec![2; 20], vec![3; 20], vec![4; 20]].concat();
    set_log(&mut net, 1, 5, &leader);
    set_log(&mut net, 2, 5, &leader);
    set_log(&mut net, 3, 5, &other);
    net.cut_off(3);
    net.elect(1);
    net.heal();
    net.tick(1, 1);
    let mut rejections = 0;
    for _ in 0..200 {
        for id in [1, 3] {
            net.pump(id);
        }
        rejections += net
            .take(|said| {
                let is_rejection = matches!(
                    &said.body,
                    Body::AppendResponse {
                        rejected: Some(_),
                        ..
                    }
                );
                let is_other = said.to == replica(2) || said.from == replica(2);
                // Counted and delivered below.
                is_rejection && !is_other
            })
            .into_iter()
            .map(|said| net.deliver(said))
            .count();
        net.deliver_one();
    }
    net.tick_all(2);
    assert!(ids_of(&mut net, 3).ends_with(&[entry_id(6, 63)]));
    assert!(
        (1..=4).contains(&rejections),
        "{rejections} rejections for three terms of 20 entries"
    );
}

#[test]
fn thesis_3_5_two_logs_with_the_same_last_entry_are_the_same() {
    // A command is bound to index and term once: another leader gives the place another term.
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    net.cut_off(1);
    net.propose(1, "lost").expect("it still leads");
    net.pump(1);
    net.elect(2);
    net.propose(2, "kept").expect("it leads");
    net.settle();
    net.heal();
    net.tick_all(3);
    let wanted = net.node(2).disk.log.clone();
    let bytes = |log: &[Batch]| -> Vec<u8> {
        log.iter()
            .flat_map(|batch| batch.bytes().to_vec())
            .collect()
    };
    for id in [1, 3] {
        assert_eq!(bytes(&net.node(id).disk.log), bytes(&wanted));
    }
    assert_eq!(net.node(1).texts(), ["kept"]);
}

#[test]
fn thesis_3_5_a_slow_follower_holds_nobody_up() {
    let mut net = led_group();
    net.node(3).is_down = true;
    for _ in 0..10 {
        net.propose(1, "a").expect("it leads");
        net.settle();
    }
    assert_eq!(net.raft(1).commit(), net.raft(1).last_index());
    assert_eq!(net.node(2).texts().len(), 10);
}

#[test]
fn thesis_3_6_2_entries_of_an_earlier_term_are_committed_only_with_one_of_the_own() {
    let mut raft = follower(1, 2, &[1, 2], 0);
    lead(&mut raft);
    assert_eq!((raft.term(), raft.last_index()), (term(3), index(3)));
    for from in [2, 3] {
        tell(&mut raft, message(from, 1, 3, accepted(2)));
    }
    assert_eq!(raft.commit(), Index::ZERO, "all three hold 2, of term 2");
    tell(&mut raft, message(2, 1, 3, accepted(3)));
    assert_eq!(
        raft.commit(),
        index(3),
        "and with 3, of term 3, all before it"
    );
}

#[test]
fn thesis_3_5_a_leader_never_changes_its_own_log() {
    let mut raft = follower(1, 1, &[1, 1], 0);
    lead(&mut raft);
    let before: Vec<_> = (1..=3).map(|at| raft.term_at(index(at))).collect();
    let rejected = |at: u64, hint| Body::AppendResponse {
        index: index(at),
        rejected: Some(hint),
    };
    for body in [
        rejected(2, EntryId::ZERO),
        rejected(3, entry_id(9, 2)),
        accepted(1),
        Body::VoteResponse { is_rejected: true },
    ] {
        tell(&mut raft, message(3, 1, 2, body));
        assert_eq!(raft.role(), Role::Leader);
        let after: Vec<_> = (1..=3).map(|at| raft.term_at(index(at))).collect();
        assert_eq!((after, raft.last_index()), (before.clone(), index(3)));
    }
    assert!(raft.membership() == &voters(&[1, 2, 3]));
}
