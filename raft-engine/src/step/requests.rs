//! What callers ask of a group: proposals, reads, membership, leadership.

use std::cmp::Reverse;

use raft_proto::{
    BatchBuilder, EntryId, EntryKind, MembershipChange, PeerStatus, Proposal as CoreProposal,
    ProposeError, ReplicaId, Role,
};

use super::StepShared;
use crate::apply::Waiter;
use crate::group::{Group, Proposal};
use crate::request::{Applied, RequestError, Responder, SnapshotOutcome};

/// Proposes what has gathered, in batches of at most `batch_bytes_max`, or of one command: a batch
/// must fit a record of the log, which takes none over its bound.
pub(super) fn propose(group: &mut Group, batch_bytes_max: usize) {
    let mut proposals = std::mem::take(&mut group.proposals);
    let mut rest = proposals.drain(..).peekable();
    let mut chunk = Vec::new();
    while rest.peek().is_some() {
        let mut bytes = 0;
        let frame_bytes = |proposal: &Proposal| {
            BatchBuilder::frame_bytes(proposal.command.len(), proposal.session.is_some())
        };
        while let Some(proposal) =
            rest.next_if(|next| chunk.is_empty() || bytes + frame_bytes(next) <= batch_bytes_max)
        {
            bytes += frame_bytes(&proposal);
            chunk.push(proposal);
        }
        let proposed = group
            .raft
            .propose(chunk.iter().map(|proposal: &Proposal| CoreProposal {
                kind: EntryKind::Command,
                session: proposal.session,
                payload: &proposal.command,
            }));
        match proposed {
            Ok(proposed) => {
                let mut index = proposed.first;
                for proposal in chunk.drain(..) {
                    let id = EntryId::new(proposed.term, index);
                    add_waiter(
                        group,
                        Waiter {
                            id,
                            responder: proposal.responder,
                        },
                    );
                    index = index.next();
                }
            }
            Err(error) => {
                let error = propose_error(group, &error);
                for proposal in chunk.drain(..) {
                    proposal.responder.respond(Err(error.clone()));
                }
            }
        }
    }
    drop(rest);
    // Keeps the allocation for the next pass.
    group.proposals = proposals;
}

/// There is no room for entries: says so, and hands the leadership, once, to a voter that may have
/// some. Reads go on, and proposals too as soon as there is room.
pub(super) fn meet_full_storage(group: &mut Group) {
    for proposal in group.proposals.drain(..) {
        proposal.responder.respond(Err(RequestError::StorageFull));
    }
    if group.raft.role() != Role::Leader || group.is_handed_over_as_full {
        return;
    }
    group.is_handed_over_as_full = true;
    hand_on_leadership(group);
}

/// Hands the leadership to a voter: to one that has the most of the log, for a laggard cannot take
/// over; of several to the next one by id, so that the groups of a host do not all go to the same.
pub(super) fn hand_on_leadership(group: &mut Group) {
    let voters = &group.raft.membership().voters;
    let others = group
        .raft
        .peer_statuses()
        .filter(|peer| voters.contains(&peer.id));
    let others = others.filter(|peer| peer.id != group.replica);
    let distance = |peer: &PeerStatus| (peer.id < group.replica, peer.id);
    let next = others.max_by_key(|peer| (peer.matched, Reverse(distance(peer))));
    if let Some(to) = next.map(|peer| peer.id)
        && let Err(error) = group.raft.transfer_leader(to)
    {
        tracing::debug!(group = group.id.get(), %error, "the leadership stays");
    }
}

/// Adds a waiter behind the others. Waiters at or past its index were superseded: a leader of a
/// later term, which may be this replica again, has overwritten their entries.
fn add_waiter(group: &mut Group, waiter: Waiter) {
    while let Some(last) = group.waiters.back()
        && last.id.index >= waiter.id.index
    {
        let superseded = group.waiters.pop_back().expect("it was just seen");
        superseded.responder.respond(Err(RequestError::Superseded));
    }
    group.waiters.push_back(waiter);
}

fn propose_error(group: &Group, error: &ProposeError) -> RequestError {
    match error {
        ProposeError::NotLeader { leader } => RequestError::NotLeader {
            group: group.id,
            leader: leader.map(|leader| (leader, group.hosts.get(&leader).copied())),
        },
        ProposeError::TransferInProgress => RequestError::Busy {
            queue: "leadership transfer",
        },
        ProposeError::ChangePending => RequestError::Busy {
            queue: "membership change",
        },
        ProposeError::UncommittedFull => RequestError::Busy {
            queue: "uncommitted entries",
        },
        other => RequestError::MembershipRefused {
            reason: other.to_string(),
        },
    }
}

/// Starts one ReadIndex round for all reads of the pass.
pub(super) fn start_round(group: &mut Group, give_up_tick: u64) {
    if group.reads.is_empty() {
        return;
    }
    let reads = std::mem::take(&mut group.reads);
    let round = group.next_round;
    group.next_round += 1;
    match group.raft.read_index(round) {
        Ok(()) => {
            group.rounds.insert(round, (give_up_tick, reads));
        }
        Err(_) => {
            let error = not_leader(group);
            for read in reads {
                read.responder.respond(Err(error.clone()));
            }
        }
    }
}

/// Gives up rounds that nobody answers: a leader of whose group this replica is no member any more
/// does not.
pub(super) fn give_up_rounds(group: &mut Group, tick: u64) {
    while let Some(oldest) = group.rounds.first_entry()
        && oldest.get().0 <= tick
    {
        for read in oldest.remove().1 {
            read.responder.respond(Err(RequestError::ReadDropped));
        }
    }
}

/// What a caller hears who should ask the leader.
fn not_leader(group: &Group) -> RequestError {
    let leader = group.raft.leader();
    RequestError::NotLeader {
        group: group.id,
        leader: leader.map(|leader| (leader, group.hosts.get(&leader).copied())),
    }
}

pub(super) fn change_membership(
    shared: &StepShared,
    group: &mut Group,
    change: MembershipChange,
    responder: Responder<Applied>,
) {
    if shared.space.is_full() {
        return responder.respond(Err(RequestError::StorageFull));
    }
    let size = BatchBuilder::frame_bytes(change.encode().len(), false);
    let bound = shared.record_bytes_max;
    if size > bound {
        let what = "membership change";
        return responder.respond(Err(RequestError::TooLarge { what, size, bound }));
    }
    if group.raft.role() != Role::Leader {
        return responder.respond(Err(not_leader(group)));
    }
    let members = group.raft.membership();
    for part in &change.changes {
        let is_known = members.hosts.contains_key(&part.replica);
        // A member without a host could never be reached, and its group would wait for it.
        if !is_known && part.host.is_none() {
            let reason = format!("replica {} is no member", part.replica);
            return responder.respond(Err(RequestError::MembershipRefused { reason }));
        }
    }
    match group.raft.propose_membership(change) {
        Ok(id) => add_waiter(group, Waiter { id, responder }),
        Err(error) => responder.respond(Err(propose_error(group, &error))),
    }
}

pub(super) fn transfer(group: &mut Group, to: ReplicaId, responder: Responder<()>) {
    if group.raft.role() != Role::Leader {
        return responder.respond(Err(not_leader(group)));
    }
    if to == group.replica {
        return responder.respond(Ok(()));
    }
    if group.transfer.is_some() {
        return responder.respond(Err(RequestError::Busy {
            queue: "leadership transfer",
        }));
    }
    if !group.raft.membership().voters.contains(&to) {
        let reason = format!("replica {to} is no voter of group {}", group.id);
        return responder.respond(Err(RequestError::Invalid { reason }));
    }
    match group.raft.transfer_leader(to) {
        Ok(()) => group.transfer = Some((to, responder)),
        Err(error) => {
            let reason = error.to_string();
            responder.respond(Err(RequestError::Invalid { reason }));
        }
    }
}

/// Answers a transfer once it is known who leads, or once the core gave it up.
pub(super) fn settle_transfer(group: &mut Group) {
    let Some((to, _)) = &group.transfer else {
        return;
    };
    let to = *to;
    let leader = group.raft.leader();
    let outcome = if leader == Some(to) {
        Ok(())
    } else if leader.is_some() && group.raft.transferee() != Some(to) {
        // Still this replica, or a third.
        Err(RequestError::TransferFailed {
            group: group.id,
            to,
        })
    } else {
        return;
    };
    if let Some((_, responder)) = group.transfer.take() {
        responder.respond(outcome);
    }
}

/// Answers everyone who waits for the group: it will not.
pub(super) fn refuse_waiting(group: &mut Group, error: &RequestError) {
    for proposal in group.proposals.drain(..) {
        proposal.responder.respond(Err(error.clone()));
    }
    for waiter in group.waiters.drain(..) {
        waiter.responder.respond(Err(error.of_what_was_taken()));
    }
    let rounds = std::mem::take(&mut group.rounds);
    for read in group
        .reads
        .drain(..)
        .chain(rounds.into_values().flat_map(|round| round.1))
    {
        read.responder.respond(Err(error.clone()));
    }
    if let Some((_, responder)) = group.transfer.take() {
        responder.respond(Err(error.clone()));
    }
    if let Some(saving) = group.saving.take() {
        saving.abort.set();
        if let Some(responder) = saving.responder {
            responder.respond(Err(error.clone()));
        }
    }
    group.refuse_founding(error);
}

/// Gives up the save under way, if there is one and its record is not on the way already.
pub(super) fn abort_save(group: &mut Group) {
    if let Some(saving) = group.saving.take_if(|saving| !saving.is_recording) {
        saving.abort.set();
        if let Some(responder) = saving.responder {
            responder.respond(Ok(SnapshotOutcome::Aborted));
        }
    }
}
