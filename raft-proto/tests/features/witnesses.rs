//! Witnesses: voters that hold the places of entries and no commands (thesis §11.7.2).

use crate::net::{Net, change, changes, entry_id, index, message, plain, replica, voters};
use crate::{dropped, status};
use raft_proto::{
    Body, ChangeKind, DropReason, MembershipError, PeerState, ProposeError, Role, Term, WhyNoLeader,
};

/// Voters 1, 2 and the witness 3; 1 leads.
fn led() -> Net {
    let mut membership = voters(&[1, 2, 3]);
    membership.witnesses.insert(replica(3));
    let mut net = Net::with_membership(&[1, 2, 3], &membership, plain);
    net.elect(1);
    net
}

#[test]
fn a_witness_gets_entries_without_commands_and_its_acknowledgement_counts() {
    let mut net = led();
    net.cut_off(2);
    for text in ["a", "b", "c"] {
        net.propose(1, text).expect("it leads");
    }
    net.settle();
    assert_eq!(net.raft(1).commit(), index(4), "one and the witness");
    let held = &net.node(3).disk.log;
    let entries: Vec<_> = held.iter().flat_map(raft_proto::Batch::iter).collect();
    assert_eq!(entries.len(), 4);
    assert!(entries.iter().all(|entry| entry.payload().is_empty()));
    assert!(entries[1..].iter().all(|entry| entry.is_without_command()));
    assert!(net.node(3).texts().is_empty());
    assert!(status(&mut net, 1, 3).is_witness);
    assert!(!status(&mut net, 1, 2).is_witness);
    // Two, which holds none of them, gets the whole ones.
    net.heal();
    net.tick_all(2);
    assert_eq!(net.node(2).texts(), ["a", "b", "c"]);
}

#[test]
fn a_witness_keeps_the_membership_changes_it_votes_by() {
    let mut net = led();
    net.raft(1)
        .propose_membership(change(ChangeKind::AddLearner, 4))
        .expect("nothing is pending");
    net.settle();
    net.tick_all(2);
    let learners = &net.raft(3).membership().learners;
    assert_eq!(learners.iter().map(|id| id.get()).collect::<Vec<_>>(), [4]);
    net.restart(3);
    assert_eq!(net.raft(3).membership().learners.len(), 1);
    assert!(net.raft(3).membership().is_witness(replica(3)));
}

#[test]
fn a_witness_votes_by_the_places_it_holds() {
    let mut net = led();
    net.cut_off(2);
    net.propose(1, "a").expect("it leads");
    net.settle();
    // Two lacks what the witness holds, so it cannot lead with its vote; one can.
    net.heal();
    net.cut_off(1);
    net.raft(2).campaign().expect("it may stand");
    net.settle();
    assert_eq!(net.raft(2).role(), Role::Candidate);
    net.heal();
    net.tick_all(60);
    let leaders = net.leaders();
    assert_eq!(leaders, [1], "the only one with the entry and a quorum");
    assert_eq!(net.node(2).texts(), ["a"]);
}

#[test]
fn a_witness_never_leads() {
    let mut net = led();
    assert_eq!(net.raft(3).campaign(), dropped(DropReason::NotPromotable));
    assert_eq!(
        net.raft(1).transfer_leader(replica(3)),
        dropped(DropReason::NotPromotable)
    );
    assert_eq!(net.raft(1).transferee(), None);
    let told = message(1, 3, 1, Body::TimeoutNow);
    assert_eq!(
        net.raft(3).handle_message(told),
        dropped(DropReason::NotPromotable)
    );
    assert_eq!(net.raft(3).next_deadline(), None, "no election timeout");
    net.tick(3, 500);
    let three = net.raft(3);
    assert_eq!((three.role(), three.term()), (Role::Follower, Term::new(1)));
}

#[test]
fn a_witness_is_fed_by_a_snapshot_of_metadata_where_the_log_is_gone() {
    let mut net = led();
    net.cut_off(3);
    for text in ["a", "b"] {
        net.propose(1, text).expect("it leads");
    }
    net.settle();
    let meta = net.snapshot(1);
    net.heal();
    net.raft(1).report_unreachable(replica(3));
    net.tick(1, 1);
    net.settle();
    // The message is metadata: index, term, membership. The leader marks it for a witness, so that
    // a driver sends nothing along.
    assert_eq!(net.node(3).disk.base, meta);
    assert_eq!(net.raft(3).commit(), meta.id.index);
    let three = status(&mut net, 1, 3);
    assert!(three.is_witness && matches!(three.state, PeerState::Replicate { .. }));
    net.propose(1, "c").expect("it leads");
    net.cut_off(2);
    net.settle();
    assert_eq!(net.raft(1).commit(), meta.id.index.next());
    assert!(net.node(3).texts().is_empty());
}

#[test]
fn a_member_is_a_witness_for_life_or_not_at_all() {
    let mut net = led();
    for (kind, id) in [
        (ChangeKind::AddVoter, 3),
        (ChangeKind::AddLearner, 3),
        (ChangeKind::AddWitness, 2),
    ] {
        let refused = net.raft(1).propose_membership(change(kind, id));
        let error = MembershipError::WitnessForLife(replica(id));
        assert_eq!(refused, Err(ProposeError::Change(error)));
    }
    // Out and in again as another replica is the way.
    for (kind, id) in [
        (ChangeKind::Remove, 3),
        (ChangeKind::AddVoter, 4),
        (ChangeKind::AddWitness, 5),
    ] {
        net.raft(1)
            .propose_membership(change(kind, id))
            .expect("it is allowed");
        if id != 3 {
            net.add(id, voters(&[]), plain);
        }
        net.settle();
        net.tick_all(2);
    }
    let members = net.raft(1).membership().clone();
    assert_eq!(members.witnesses, [replica(5)].into());
    assert_eq!(members.voters, [1, 2, 4, 5].map(replica).into());
}

#[test]
fn witnesses_alone_are_no_quorum_in_either_half_of_a_joint_membership() {
    let mut net = led();
    let before = net.raft(1).membership().clone();
    let refused = net.raft(1).propose_membership(changes(&[
        (ChangeKind::Remove, 1),
        (ChangeKind::AddWitness, 4),
    ]));
    assert_eq!(
        refused,
        Err(ProposeError::Change(MembershipError::TooManyWitnesses))
    );
    assert_eq!(*net.raft(1).membership(), before);
    assert_eq!(net.raft(1).last_index(), entry_id(1, 1).index);
}

#[test]
fn one_that_was_a_witness_never_leads_with_a_log_without_commands() {
    was_a_witness(false);
}

#[test]
fn one_that_was_a_witness_remembers_it_by_its_log() {
    was_a_witness(true);
}

fn was_a_witness(restarts: bool) {
    let mut net = led();
    net.add(4, voters(&[1, 2]), plain);
    net.raft(1)
        .propose_membership(change(ChangeKind::AddVoter, 4))
        .expect("nothing is pending");
    net.settle();
    net.propose(1, "a").expect("it leads");
    net.settle();
    for kind in [ChangeKind::Remove, ChangeKind::AddVoter] {
        net.tick_all(2);
        net.raft(1)
            .propose_membership(change(kind, 3))
            .expect("it is no member in between");
        net.settle();
        if restarts {
            net.restart(3);
        }
    }
    net.tick_all(2);
    assert!(!net.raft(3).membership().is_witness(replica(3)));
    let refused = dropped(DropReason::NotPromotable);
    assert_eq!(net.raft(3).campaign(), refused);
    let told = message(1, 3, 1, Body::TimeoutNow);
    assert_eq!(net.raft(3).handle_message(told), refused);
    assert_eq!(net.raft(3).next_deadline(), None);
    // The leader is lost: it says why it does not stand, and the others go on.
    net.raft(3).forget_leader().expect("it follows");
    let last_bare = index(3);
    assert_eq!(
        net.raft(3).why_no_leader(),
        Some(WhyNoLeader::LogWithoutCommands { index: last_bare })
    );
    net.elect(2);
    // Nor does its state machine go on, or answer anybody.
    let texts = net.node(3).texts();
    net.propose(2, "c").expect("it leads");
    net.settle();
    net.tick_all(2);
    assert_eq!(net.node(2).texts(), ["a", "c"]);
    assert_eq!(net.node(3).texts(), texts);
    let refused = dropped(DropReason::LogWithoutCommands);
    assert_eq!(net.raft(3).read_index(1), refused);
    // Its word counts, and it goes along with changes.
    let change = change(ChangeKind::AddLearner, 5);
    net.raft(2).propose_membership(change).expect("taken");
    net.settle();
    let membership = net.raft(2).membership().clone();
    assert_eq!(net.raft(3).membership(), &membership);
    // A snapshot in place of its log brings all.
    net.cut_off(3);
    net.propose(2, "b").expect("it leads");
    net.settle();
    net.snapshot(2);
    net.heal();
    net.tick_all(3);
    net.elect(3);
}

#[test]
fn a_full_member_takes_no_entries_without_commands() {
    let mut net = led();
    net.propose(1, "a").expect("it leads");
    net.pump(1);
    let bare = net.take(|message| message.to == replica(3));
    net.mail.clear();
    for mut append in bare {
        append.to = replica(2);
        let refused = dropped(DropReason::WithoutCommand);
        assert_eq!(net.raft(2).handle_message(append), refused);
    }
    assert_eq!(net.raft(2).last_index(), index(1));
}

#[test]
fn nobody_is_removed_and_added_again_as_what_it_was_not() {
    let mut membership = voters(&[1, 2, 4, 5]);
    membership.witnesses.insert(replica(5));
    membership.learners.insert(replica(3));
    let mut net = Net::with_membership(&[1, 2, 3, 4, 5], &membership, plain);
    net.elect(1);
    for (id, kind) in [
        (3, ChangeKind::AddWitness),
        (4, ChangeKind::AddWitness),
        (5, ChangeKind::AddVoter),
        (5, ChangeKind::AddLearner),
    ] {
        let both = changes(&[(ChangeKind::Remove, id), (kind, id)]);
        let refused = net.raft(1).propose_membership(both);
        let error = MembershipError::WitnessForLife(replica(id));
        assert_eq!(refused, Err(ProposeError::Change(error)), "{id}");
    }
}
