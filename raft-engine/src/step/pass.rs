//! A group's part in a pass: time, what was asked, then whatever the core wants done.

use raft_log::Submission;
use raft_proto::{
    Batch, Body, Dropped, EntryId, Envelope, GroupId, Index, MembershipChange, Message, Ready,
    Underway,
};

use super::StepShared;
use super::out::Out;
use super::requests::{self, propose, settle_transfer, start_round};
use super::saves;
use crate::apply::Task;
use crate::group::{Group, OnDurable, Outstanding};
use crate::jobs::Job;
use crate::outbound::Event;
use crate::request::{RequestError, SnapshotOutcome};

/// Steps one group.
pub(super) fn step_pass(shared: &StepShared, out: &mut Out, group: &mut Group, wall_ms: u64) {
    group.raft.set_leader_time_ms(wall_ms);
    if shared.space.is_full() {
        requests::meet_full_storage(group);
    } else {
        group.is_handed_over_as_full = false;
        let bound = shared.record_bytes_max.min(shared.config.message_bytes_max);
        propose(group, bound);
    }
    requests::give_up_rounds(group, out.tick);
    let patience_ticks = shared.config.election_timeout_ticks_max * 2;
    start_round(group, out.tick + patience_ticks);
    // Last: what has come in holds timers back.
    group.raft.advance_to(out.tick);
    saves::ask_for_lost(shared, out, group);
    let mut ready = std::mem::take(&mut out.ready);
    while group.raft.poll_ready_into(&mut ready) {
        process(shared, out, group, &mut ready);
    }
    out.ready = ready;
    saves::save_wanted(shared, out, group);
    settle_transfer(group);
}

/// Does what one `Ready` asks. Each field is named: one that the core gains is not passed over.
fn process(shared: &StepShared, out: &mut Out, group: &mut Group, ready: &mut Ready) {
    let Ready {
        submission,
        // What is durable is held against the core's own word.
        hard_state: _,
        must_sync: _,
        entries,
        snapshot,
        messages,
        messages_after_sync,
        committed,
        fetch,
        reads,
        dropped,
        soft_state,
        snapshot_offered,
        snapshot_wanted,
    } = ready;
    if snapshot_offered.take().is_some() {
        saves::on_offer(shared, out, group);
    }
    if let Some(soft) = soft_state {
        let event = Event::LeaderChanged {
            group: group.id,
            term: group.raft.term(),
            leader: soft.leader,
        };
        out.events.push((group.id, event));
    }
    // The core may have switched ahead of the state machine, and speak to new members.
    group.learn_hosts_of_switch();
    for message in messages.drain(..) {
        dispatch(shared, out, group, message);
    }
    if let Some(submission) = *submission {
        let hard_state = group.raft.hard_state();
        let is_vote_news =
            (hard_state.term, hard_state.vote) != (group.hard_state.term, group.hard_state.vote);
        let install = snapshot.take();
        let must_write = is_vote_news || !entries.is_empty() || install.is_some();
        let sequence = must_write.then(|| {
            let hard_state_news = (hard_state != group.hard_state).then_some(hard_state);
            group.hard_state = hard_state;
            let mut written = Submission {
                hard_state: hard_state_news,
                entries: std::mem::take(entries),
                ..group.next_submission()
            };
            if let Some(meta) = &install {
                group.retain_with(meta.clone(), shared.config.snapshot_retention);
                written.snapshots = Some(group.snapshots_record());
                written.restart_after = Some(meta.id);
            }
            out.submit(group, written)
        });
        let outstanding = Outstanding {
            sequence,
            submission: Some(submission),
            release: std::mem::take(messages_after_sync),
            then: install.map(|meta| OnDurable::Installed { meta }),
        };
        if shared.config.test_ack_before_sync
            || (outstanding.sequence.is_none() && group.outstanding.is_empty())
        {
            complete(shared, out, group, outstanding);
        } else {
            group.outstanding.push_back(outstanding);
        }
    }
    if !committed.is_empty() {
        hand_to_apply(shared, out, group, std::mem::take(committed));
    }
    if snapshot_wanted.is_some() {
        group.snapshot_wanted = *snapshot_wanted;
    }
    for fetch in fetch.drain(..) {
        let job = Job::Fetch {
            group: group.id,
            replica: group.replica,
            first: fetch.first,
            last: fetch.last,
            bytes_max: fetch.bytes_max,
        };
        out.jobs.push((group.id, job));
    }
    for read in reads.drain(..) {
        if let Some((_, reads)) = group.rounds.remove(&read.user) {
            let at = read.index;
            out.tasks.push((group.id, Task::Read { at, reads }));
            if is_removed(group) {
                out.tasks.push((group.id, Task::DropReads));
            }
        }
    }
    for Dropped { what, reason } in dropped.drain(..) {
        tracing::debug!(group = group.id.get(), ?what, %reason, "dropped");
        // What else is dropped is asked for again, or its end is seen by itself.
        if let Underway::Read { user } = what
            && let Some((_, reads)) = group.rounds.remove(&user)
        {
            for read in reads {
                read.responder.respond(Err(RequestError::ReadDropped));
            }
        }
    }
}

/// Acts on what has become durable.
pub(super) fn complete(shared: &StepShared, out: &mut Out, group: &mut Group, done: Outstanding) {
    if let Some(submission) = done.submission {
        let durable = group.raft.persisted(submission);
        for held in done.release {
            dispatch(shared, out, group, held.release(durable));
        }
    }
    match done.then {
        None => {}
        Some(OnDurable::Founded { responder }) => responder.respond(Ok(())),
        Some(OnDurable::Recorded { index }) => {
            let id = group.id;
            out.jobs.push((id, recorded(group, index)));
            let event = Event::SnapshotSaved { group: id, index };
            out.events.push((id, event));
            if let Some(saving) = group.saving.take_if(|saving| saving.index == index)
                && let Some(responder) = saving.responder
            {
                responder.respond(Ok(SnapshotOutcome::Completed(index)));
            }
        }
        Some(OnDurable::Installed { meta }) => {
            let (id, index) = (group.id, meta.id.index);
            // Before anything is cleared away: newer ones may have come already.
            let restore = group.restore_task(index, false);
            group.awaits = None;
            out.jobs.push((id, recorded(group, index)));
            let event = Event::SnapshotInstalled { group: id, index };
            out.events.push((id, event));
            group.is_installed_from_stream = true;
            group.handed = meta.id;
            group.membership = meta.membership;
            group.learn_hosts();
            // Whether it was theirs that got committed under the snapshot, nobody here can tell.
            let covered = group
                .waiters
                .partition_point(|waiter| waiter.id.index <= index);
            for waiter in group.waiters.drain(..covered) {
                let error = RequestError::OutcomeUnknown {
                    reason: format!("a snapshot of group {id} covers the entry"),
                };
                waiter.responder.respond(Err(error));
            }
            out.tasks.push((id, restore));
        }
        Some(OnDurable::Filled { meta }) => {
            let (id, index) = (group.id, meta.id.index);
            let restore = group.restore_task(index, true);
            out.jobs.push((id, recorded(group, index)));
            let event = Event::SnapshotInstalled { group: id, index };
            out.events.push((id, event));
            group.is_installed_from_stream = true;
            out.tasks.push((id, restore));
        }
    }
}

fn recorded(group: &Group, index: Index) -> Job {
    let recorded = group.snapshots.iter().map(|meta| meta.id.index);
    let retained = recorded.chain(group.restoring.iter().copied()).collect();
    Job::Recorded {
        env: group.env.clone(),
        index,
        retained,
    }
}

/// Passes committed entries on, and saves a snapshot where the group's plan has one: exactly
/// there, so that replicas agree on the index.
fn hand_to_apply(shared: &StepShared, out: &mut Out, group: &mut Group, batches: Vec<Batch>) {
    let mut rest = batches;
    let every = shared.config.snapshot_every_entries;
    while every > 0
        && let Some(last) = rest.last().map(|batch| batch.last().index)
        && let planned = next_planned(group.id, group.handed.index, every)
        && planned <= last
    {
        let (head, tail) = split(rest, planned);
        hand_piece(out, group, head);
        saves::save_unasked(shared, out, group);
        rest = tail;
    }
    if !rest.is_empty() {
        hand_piece(out, group, rest);
    }
}

/// The first index past `after` at which the group is saved unasked: its id alone decides, so
/// that groups are spread.
fn next_planned(group: GroupId, after: Index, every: u64) -> Index {
    let offset = (group.get().wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) % every;
    let into = (after.get() % every + offset) % every;
    after.plus(every - into)
}

/// Cuts batches behind `last`.
fn split(batches: Vec<Batch>, last: Index) -> (Vec<Batch>, Vec<Batch>) {
    let (mut head, mut tail) = (Vec::new(), Vec::new());
    for batch in batches {
        head.extend(batch.up_to_index(last));
        tail.extend(batch.from_index(last.next()));
    }
    (head, tail)
}

/// Switches membership at once, behind no user code, and passes entries and proposers on.
fn hand_piece(out: &mut Out, group: &mut Group, batches: Vec<Batch>) {
    let mut has_changed = false;
    for batch in &batches {
        for entry in batch.iter().filter(|entry| entry.kind().is_membership()) {
            let changed = MembershipChange::decode(entry.payload())
                .map_err(|error| error.to_string())
                .and_then(|change| {
                    let applied = group.raft.apply_membership(entry.index(), &change);
                    applied.map_err(|error| error.to_string())
                });
            match changed {
                Ok(membership) => {
                    has_changed = true;
                    group.membership = membership;
                    group.learn_hosts();
                }
                Err(reason) => refuse_change(group, entry.id(), reason),
            }
        }
    }
    let last = batches.last().expect("the caller looked").last();
    assert!(
        last.index > group.handed.index,
        "committed entries come once, in order"
    );
    group.handed = last;
    let due = group
        .waiters
        .partition_point(|waiter| waiter.id.index <= last.index);
    let waiters = group.waiters.drain(..due).collect();
    let task = Task::Entries { batches, waiters };
    out.tasks.push((group.id, task));
    if has_changed && is_removed(group) {
        out.tasks.push((group.id, Task::DropReads));
    }
}

/// Whether the membership in force no longer names this replica.
fn is_removed(group: &Group) -> bool {
    let members = &group.membership;
    !members.voters.is_empty() && !members.replicas().contains(&group.replica)
}

/// A change that makes no sense any more is an entry without effect; its proposer hears so.
fn refuse_change(group: &mut Group, id: EntryId, reason: String) {
    tracing::warn!(group = group.id.get(), %reason, "membership unchanged");
    if let Ok(at) = group
        .waiters
        .binary_search_by_key(&id.index, |waiter| waiter.id.index)
        && let Some(waiter) = group.waiters.remove(at)
    {
        let error = if waiter.id == id {
            RequestError::MembershipRefused { reason }
        } else {
            RequestError::Superseded
        };
        waiter.responder.respond(Err(error));
    }
}

/// Sends a message on its way; a snapshot becomes a stream.
fn dispatch(shared: &StepShared, out: &mut Out, group: &mut Group, message: Message) {
    let Some(&host) = group.hosts.get(&message.to) else {
        tracing::debug!(
            group = group.id.get(),
            to = message.to.get(),
            "host unknown"
        );
        return;
    };
    match &message.body {
        Body::Snapshot { meta } => {
            return saves::send(shared, out, group, host, &message, meta);
        }
        // Who asked for it hears that it comes, and it comes.
        Body::SnapshotOffer { meta, .. } => saves::send(shared, out, group, host, &message, meta),
        _ => {}
    }
    let envelope = Envelope {
        group: group.id,
        epoch: group.epoch,
        message,
    };
    out.message(host, envelope);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planned_indexes_are_spread_over_groups_and_fall_every_so_many_entries() {
        let mut firsts = std::collections::BTreeSet::new();
        for id in 1..=50 {
            let group = GroupId::new(id).expect("not 0");
            let mut index = Index::ZERO;
            let mut planned = Vec::new();
            for _ in 0..5 {
                index = next_planned(group, index, 100);
                planned.push(index.get());
            }
            assert!((1..=100).contains(&planned[0]));
            assert!(planned.windows(2).all(|pair| pair[1] - pair[0] == 100));
            // Whoever looks from a place in between finds the same ones.
            let between = Index::new(planned[1] - 1);
            assert_eq!(next_planned(group, between, 100).get(), planned[1]);
            firsts.insert(planned[0]);
        }
        assert!(firsts.len() > 25, "{firsts:?}");
    }
}
