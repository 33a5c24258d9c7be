//! Replication and commitment: hazards 22 to 28.

use crate::net::{Net, append, batch, change, entry_id, index, message, replica, voters};
use crate::{follower, plain, stale};
use raft_proto::{
    Body, ChangeKind, EntryId, Index, Membership, Message, Raft, Refused, ReplicaId, Role,
    SnapshotMeta, Term, ViolationKind,
};

/// Thesis Figure 3.7 (the paper's Figure 8).
#[test]
fn hazard_22_an_entry_of_an_old_term_is_not_committed_by_counting() {
    let mut net = Net::new(&[1, 2, 3, 4, 5], plain);
    net.elect(1);
    // (a) One leads term 1 and gets an entry to two only.
    for id in [3, 4, 5] {
        net.cut_off(id);
    }
    net.propose(1, "old").expect("it leads");
    net.settle();
    // (b) Five leads a later term with the votes of three and four, and has an entry of its own.
    net.heal();
    for id in [1, 2] {
        net.cut_off(id);
    }
    net.elect_unheard(5);
    for id in [3, 4] {
        net.cut_off(id);
    }
    net.propose(5, "other").expect("it leads");
    net.settle();
    // (c) One leads again and brings its old entry to a majority.
    net.heal();
    for id in [4, 5] {
        net.cut_off(id);
    }
    net.restart(1);
    let old = entry_id(1, 2);
    net.raft(1).campaign().ok();
    net.settle();
    net.elect(1);
    let term = net.raft(1).term();
    assert!(term > Term::new(2));
    assert_eq!(net.raft(3).term_at(old.index), Some(old.term));
    assert!(
        net.raft(1).commit() > old.index,
        "its own entry commits both"
    );
    // The same with the own entry held back: three has the old one, and it is not committed.
    let mut raft = follower(1, 4, &[1, 2], 0);
    raft.campaign().expect("it may stand");
    let ready = raft.poll_ready().expect("it stands");
    raft.persisted(ready.submission.expect("a vote"));
    let yes = Body::VoteResponse { is_rejected: false };
    raft.handle_message(message(2, 1, 5, yes))
        .expect("it counts");
    assert_eq!(raft.role(), Role::Leader);
    let ready = raft.poll_ready().expect("it leads");
    raft.persisted(ready.submission.expect("an empty entry"));
    let ack = |at: u64| Body::AppendResponse {
        index: index(at),
        rejected: None,
    };
    for from in [2, 3] {
        raft.handle_message(message(from, 1, 5, ack(2)))
            .expect("it counts");
    }
    assert_eq!(
        raft.commit(),
        Index::ZERO,
        "all hold it, and it may be lost"
    );
    raft.handle_message(message(2, 1, 5, ack(3)))
        .expect("it counts");
    assert_eq!(raft.commit(), index(3));
}

#[test]
fn hazard_23_quorums_of_up_to_five_voters_are_what_they_should_be() {
    let mut cases = 0_u64;
    for incoming in 0..=5_u64 {
        for outgoing in 0..=3_u64 {
            let membership = Membership {
                voters: (1..=incoming).map(replica).collect(),
                // Two of the outgoing ones are none of the incoming.
                voters_outgoing: (4..4 + outgoing).map(replica).collect(),
                ..Membership::default()
            };
            for code in 0..3_u64.pow(6) {
                let acked = |id: ReplicaId| (code / 3_u64.pow(exponent(id))) % 3;
                let found = membership.committed(|id| Some(index(acked(id))));
                let majority = |set: &std::collections::BTreeSet<ReplicaId>, at: u64| {
                    let count = set.iter().filter(|&&id| acked(id) >= at).count();
                    set.is_empty() || count > set.len() / 2
                };
                let holds = |at: u64| {
                    majority(&membership.voters, at) && majority(&membership.voters_outgoing, at)
                };
                let naive = (0..=2).rev().find(|&at| holds(at)).expect("zero always");
                if incoming + outgoing > 0 {
                    assert_eq!(found, index(naive), "{membership:?} {code}");
                }
                cases += 1;
            }
        }
    }
    assert_eq!(cases, 6 * 4 * 729);

    fn exponent(id: ReplicaId) -> u32 {
        u32::try_from(id.get() - 1).expect("small")
    }
}

#[test]
fn hazard_24_stale_append_does_not_truncate() {
    let mut raft = follower(2, 1, &[], 0);
    let entries = || batch(1, 1, &["a", "b", "c", "d"]);
    let short = || batch(1, 1, &["a", "b"]);
    raft.handle_message(message(1, 2, 1, append(EntryId::ZERO, 0, vec![entries()])))
        .expect("appended");
    let ready = raft.poll_ready().expect("there are entries");
    raft.persisted(ready.submission.expect("entries"));
    // Delayed, duplicated, reordered: what is shorter than the log is no reason to cut it.
    for body in [
        append(EntryId::ZERO, 0, vec![short()]),
        append(EntryId::ZERO, 0, vec![]),
        append(entry_id(1, 1), 0, vec![batch(1, 2, &["b"])]),
        append(entry_id(1, 2), 4, vec![]),
        append(EntryId::ZERO, 0, vec![entries()]),
    ] {
        raft.handle_message(message(1, 2, 1, body)).expect("taken");
        assert_eq!(raft.last_index(), index(4));
    }
    // An empty append vouches only for what it names, whatever commit index it carries.
    assert_eq!(raft.commit(), index(2));
    // Of an older term: nothing, whatever it holds.
    let mut later = follower(2, 3, &[1, 3], 1);
    let old = append(entry_id(1, 1), 1, vec![batch(2, 2, &["x"])]);
    assert_eq!(
        later.handle_message(message(1, 2, 2, old)),
        Err(stale(2, 3))
    );
    assert_eq!(later.term_at(index(2)), Some(Term::new(3)));
}

#[test]
fn hazard_24_an_append_behind_a_purged_entry_does_not_delete_the_log() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    net.propose(1, "a").expect("it leads");
    net.pump(1);
    let delayed = net.take(|message| message.to == replica(2));
    for message in delayed.clone() {
        net.deliver(message);
    }
    net.propose(1, "b").expect("it leads");
    net.settle();
    net.tick_all(1);
    let meta = net.snapshot(2);
    assert_eq!(net.raft(2).first_index(), meta.id.index.next());
    let (first, last) = (net.raft(2).first_index(), net.raft(2).last_index());
    for message in delayed {
        net.deliver(message);
        net.pump(2);
        let answers = net.take(|message| message.from == replica(2));
        assert!(answers.iter().all(|answer| matches!(
            answer.body,
            Body::AppendResponse { index, rejected: None } if index == last
        )));
    }
    assert_eq!(
        (net.raft(2).first_index(), net.raft(2).last_index()),
        (first, last)
    );
}

#[test]
fn hazard_24_a_conflict_below_the_commit_index_is_fatal_and_changes_nothing() {
    let mut raft = follower(2, 2, &[1, 1, 2], 2);
    for body in [
        append(entry_id(2, 2), 2, vec![]),
        append(entry_id(1, 1), 2, vec![batch(2, 2, &["x", "y"])]),
    ] {
        let refused = raft.handle_message(message(1, 2, 3, body));
        let Err(Refused::Violation { kind, .. }) = refused else {
            panic!("{refused:?}");
        };
        assert!(kind.is_fatal());
        assert_eq!(raft.term(), Term::new(2));
        assert_eq!(raft.last_index(), index(3));
    }
}

#[test]
fn hazard_25_a_heartbeat_carries_no_more_commit_than_the_follower_holds() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    net.cut_off(3);
    net.propose(1, "a").expect("it leads");
    net.propose(1, "b").expect("it leads");
    net.settle();
    let held = net.raft(3).last_index();
    assert!(net.raft(1).commit() > held);
    net.mail.clear();
    net.tick(1, 1);
    let commit = net.mail.iter().find_map(|message| match message.body {
        Body::Heartbeat { commit, .. } if message.to == replica(3) => Some(commit),
        _ => None,
    });
    assert_eq!(commit, Some(held));
    // And one that does carry more is refused, with nothing changed by it.
    let more = Body::Heartbeat {
        commit: held.plus(5),
        round: 0,
    };
    let before = net.raft(3).hard_state();
    assert_eq!(
        net.raft(3).handle_message(message(1, 3, 1, more)),
        Err(Refused::Violation {
            kind: ViolationKind::CommitPastEnd {
                commit: held.plus(5),
                last: held
            },
            from: replica(1),
        })
    );
    assert_eq!(net.raft(3).hard_state(), before);
}

#[test]
fn hazard_27_acknowledgements_of_an_earlier_leadership_do_not_count() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    net.propose(1, "a").expect("it leads");
    net.pump(1);
    let appends = net.take(|message| matches!(message.body, Body::Append { .. }));
    for message in appends {
        net.deliver(message);
    }
    net.pump(2);
    net.pump(3);
    let old = net.take(|message| matches!(message.body, Body::AppendResponse { .. }));
    assert!(!old.is_empty());
    // Two leads, then one again: the old answers arrive now.
    net.elect(2);
    net.elect(1);
    let progress = |net: &mut Net| -> Vec<_> { net.raft(1).peer_statuses().collect() };
    let before = progress(&mut net);
    let current = net.raft(1).term().get();
    for answer in old {
        let to = answer.to;
        let refused = net.raft(to.get()).handle_message(answer);
        assert_eq!(refused, Err(stale(1, current)));
    }
    assert_eq!(progress(&mut net), before);
}

#[test]
fn hazard_26_a_follower_that_forgot_what_it_acknowledged_is_not_asked_without_pause() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    net.propose(1, "a").expect("it leads");
    net.settle();
    // A probe, refused at the very index that was acknowledged: no answer can find a lower one.
    net.raft(1).report_unreachable(replica(2));
    net.propose(1, "b").expect("it leads");
    let matched = net.raft(1).peer_statuses().nth(1).expect("two").matched;
    let term = net.raft(1).term().get();
    for _ in 0..3 {
        net.pump(1);
        net.mail.clear();
        let refusal = Body::AppendResponse {
            index: matched,
            rejected: Some(entry_id(0, 0)),
        };
        net.raft(1)
            .handle_message(message(2, 1, term, refusal))
            .ok();
    }
    net.pump(1);
    let again = net.take(|message| message.to == replica(2));
    assert_eq!(again, [], "the next heartbeat's answer asks again");
}

#[test]
fn hazard_27_repeated_and_reordered_acknowledgements_never_move_a_match_back() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    for data in ["a", "b", "c"] {
        net.propose(1, data).expect("it leads");
    }
    net.settle();
    let matched = |net: &mut Net| {
        let peers: Vec<_> = net.raft(1).peer_statuses().collect();
        assert!(peers.iter().all(|peer| peer.matched < peer.next));
        peers[1].matched
    };
    let last = matched(&mut net);
    for at in [1, 4, 2, 4, 3] {
        let ack = Body::AppendResponse {
            index: index(at),
            rejected: None,
        };
        net.raft(1).handle_message(message(2, 1, 1, ack)).ok();
        assert_eq!(matched(&mut net), last);
        let rejected = Body::AppendResponse {
            index: index(at),
            rejected: Some(entry_id(1, at - 1)),
        };
        net.raft(1).handle_message(message(2, 1, 1, rejected)).ok();
        assert_eq!(matched(&mut net), last);
    }
    let past = Body::AppendResponse {
        index: index(99),
        rejected: None,
    };
    assert!(matches!(
        net.raft(1).handle_message(message(2, 1, 1, past)),
        Err(Refused::Violation {
            kind: ViolationKind::AckPastEnd { .. },
            ..
        })
    ));
}

#[test]
fn hazard_28_a_completion_does_not_vouch_for_what_overwrote_its_entries() {
    let mut raft = follower(2, 1, &[], 0);
    let config_commit = |raft: &mut Raft, commit: u64, prev: EntryId, term: u64| {
        raft.handle_message(message(1, 2, term, append(prev, commit, vec![])))
            .ok();
    };
    // A: entries of term 1; B: the same places in term 2; C: those of term 1 again, in term 3.
    let write = |raft: &mut Raft, leader: u64, term: u64, entries| {
        raft.handle_message(message(
            leader,
            2,
            term,
            append(EntryId::ZERO, 0, vec![entries]),
        ))
        .expect("appended");
        let ready = raft.poll_ready().expect("there are entries");
        (ready.submission.expect("entries"), ready.entries)
    };
    let (a, _) = write(&mut raft, 1, 1, batch(1, 1, &["a", "a"]));
    let (b, _) = write(&mut raft, 3, 2, batch(2, 1, &["b"]));
    let (c, rewritten) = write(&mut raft, 1, 3, batch(1, 1, &["a", "a"]));
    assert_eq!(
        rewritten[0].first(),
        entry_id(1, 1),
        "written a second time"
    );
    config_commit(&mut raft, 2, entry_id(1, 2), 3);
    assert_eq!(raft.commit(), index(2));
    let handed = |raft: &mut Raft| {
        raft.poll_ready()
            .is_some_and(|ready| !ready.committed.is_empty())
    };
    // After A the disk holds them, and B will still overwrite them.
    raft.persisted(a);
    assert!(!handed(&mut raft), "after A");
    raft.persisted(b);
    assert!(!handed(&mut raft), "after B");
    raft.persisted(c);
    assert!(handed(&mut raft), "after C");
}

#[test]
fn hazard_28_acknowledgements_wait_for_the_last_submission_that_touched_them() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    net.node(2).is_disk_slow = true;
    net.propose(1, "a").expect("it leads");
    net.pump(1);
    for message in net.take(|message| message.to == replica(2)) {
        net.deliver(message);
    }
    net.pump(2);
    // The same append once more: acknowledged with what the first one waits for.
    net.deliver(message(
        1,
        2,
        1,
        append(entry_id(1, 1), 1, vec![batch(1, 2, &["a"])]),
    ));
    net.pump(2);
    assert!(net.mail.iter().all(|message| message.from != replica(2)));
    net.sync_one(2);
    assert_eq!(
        net.take(|message| message.from == replica(2)).len(),
        1,
        "the first write releases the first answer"
    );
    net.sync(2);
    assert!(!net.take(|message| message.from == replica(2)).is_empty());
}

#[test]
fn hazard_28_a_second_snapshot_is_not_durable_with_the_first() {
    let mut raft = follower(2, 2, &[1, 1, 2], 2);
    let snapshot = |at| {
        let meta = Box::new(SnapshotMeta {
            id: entry_id(2, at),
            membership: voters(&[1, 2, 3]),
        });
        message(1, 2, 2, Body::Snapshot { meta })
    };
    raft.handle_message(snapshot(9)).expect("it is newer");
    let first = raft.poll_ready().expect("there is a snapshot");
    assert_eq!(first.snapshot.map(|meta| meta.id.index), Some(index(9)));
    // Another comes before the first is on the disk, and was not handed out when it is.
    raft.handle_message(snapshot(12)).expect("it is newer");
    raft.persisted(first.submission.expect("it is to be durable"));
    assert!(raft.is_installing(index(12)), "only the first is durable");
    let entries = vec![batch(2, 13, &["behind it"])];
    raft.handle_message(message(1, 2, 2, append(entry_id(2, 12), 13, entries)))
        .expect("it follows");
    let second = raft.poll_ready().expect("there is another");
    assert_eq!(second.snapshot.map(|meta| meta.id.index), Some(index(12)));
    assert!(second.committed.is_empty(), "nothing is durable under it");
    assert!(raft.campaign().is_err(), "a log with a hole does not lead");
    raft.persisted(second.submission.expect("it is to be durable"));
    assert!(!raft.is_installing(index(12)));
    raft.applied(index(12));
    let third = raft.poll_ready().expect("what lies behind it");
    assert_eq!(third.committed[0].first().index, index(13));
}

/// A group whose replica 4 was removed in a term, with what it had acknowledged still on its way,
/// and is added again with an empty disk.
fn readmitted(kind: ChangeKind) -> (Net, Vec<Message>) {
    let mut net = Net::new(&[1, 2, 3, 4], plain);
    net.elect(1);
    for command in ["a", "b", "c"] {
        net.propose(1, command).expect("it leads");
    }
    let mut late = Vec::new();
    for _ in 0..20 {
        for id in 1..=4 {
            net.pump(id);
        }
        late.extend(
            net.mail
                .iter()
                .filter(|said| said.from == replica(4))
                .cloned(),
        );
        net.deliver_one();
    }
    net.settle();
    let removal = change(ChangeKind::Remove, 4);
    net.raft(1)
        .propose_membership(removal)
        .expect("nothing is pending");
    net.settle();
    net.nodes.remove(&4);
    net.raft(1)
        .propose_membership(change(kind, 4))
        .expect("nothing is pending");
    net.settle();
    net.mail.clear();
    net.add(4, voters(&[1, 2, 3, 4]), plain);
    late.retain(|said| matches!(said.body, Body::AppendResponse { rejected: None, .. }));
    assert!(late.len() > 2);
    (net, late)
}

#[test]
fn hazard_27_one_that_comes_back_empty_is_not_held_to_what_its_name_acknowledged() {
    for kind in [ChangeKind::AddLearner, ChangeKind::AddVoter] {
        let (mut net, late) = readmitted(kind);
        for said in late {
            net.deliver(said);
        }
        net.settle();
        net.tick_all(3);
        let last = net.raft(1).last_index();
        assert_eq!(net.raft(4).last_index(), last, "it got all from the start");
        let four = net.raft(1).peer_statuses().last().expect("four");
        assert_eq!(four.matched, last);
        assert_eq!(net.leaders(), [1]);
    }
}

#[test]
fn hazard_27_what_a_removed_replica_acknowledged_commits_nothing_for_its_successor() {
    let (mut net, late) = readmitted(ChangeKind::AddVoter);
    for id in 2..=4 {
        net.cut.insert((id, 1));
    }
    net.cut.remove(&(2, 1));
    let commit = net.raft(1).commit();
    net.propose(1, "of two of four").expect("it leads");
    net.settle();
    for said in late {
        net.raft(1).handle_message(said).ok();
        assert_eq!(net.raft(1).commit(), commit);
    }
    net.cut.clear();
    net.tick_all(3);
    assert!(net.raft(1).commit() > commit);
}

/// The successor is there, or its host is not yet up, and what a late word had the leader send is
/// lost.
#[test]
fn hazard_27_a_late_acknowledgement_and_a_lost_append_leave_nobody_behind() {
    for kind in [ChangeKind::AddLearner, ChangeKind::AddVoter] {
        for is_reported in [false, true] {
            let (mut net, mut late) = readmitted(kind);
            net.cut.insert((1, 4));
            net.deliver(late.pop().expect("some"));
            net.settle();
            for _ in 0..3 {
                if is_reported {
                    net.raft(1).report_unreachable(replica(4));
                }
                net.propose(1, "lost on the way to it").expect("it leads");
                net.settle();
            }
            net.cut.clear();
            net.tick_all(20);
            let last = net.raft(1).last_index();
            assert_eq!(net.raft(4).last_index(), last, "{kind:?}");
        }
    }
}
