//! Snapshots as the step worker sees them: asked for, saved, received, recorded.

use raft_log::Submission;
use raft_proto::{Body, Index, Message, Role, SnapshotMeta, SnapshotStatus};

use super::out::Out;
use super::{StepShared, requests};
use crate::apply::Task;
use crate::engine::ReceivedSnapshot;
use crate::group::{Awaited, BOOTSTRAP_INDEX, Group, OnDurable, Outstanding, Saving};
use crate::jobs::{Abort, Job, SaveEnd, SaveJob};
use crate::outbound::{Event, SnapshotReport, SnapshotTransfer};
use crate::request::{Responder, SnapshotOutcome, SnapshotRejected, SnapshotRequest};
use crate::route;
use crate::state_machine::SaveCursor;

/// The pause after a failed save before one is begun unasked, doubled each time.
const BACKOFF_MS_MIN: u64 = 1_000;
const BACKOFF_MS_MAX: u64 = 60_000;
/// Election timeouts until the leader is asked again that has not answered.
const ASK_AGAIN_TIMEOUTS: u64 = 4;
/// How long a snapshot that was offered may be on its way before it is asked for again.
const STREAM_PATIENCE_MS: u64 = 10_000;

/// Asks for a save: refused here, or put behind the entries handed to the apply worker so far.
pub(super) fn request_snapshot(
    shared: &StepShared,
    out: &mut Out,
    group: &mut Group,
    request: SnapshotRequest,
    responder: Option<Responder<SnapshotOutcome>>,
) {
    if !has_state(group) {
        if let Some(responder) = responder {
            let reason = "the replica waits for a snapshot itself".to_owned();
            responder.respond(Ok(SnapshotOutcome::Failed(reason)));
        }
        return;
    }
    let is_export = request.export.is_some();
    let is_old = group.handed.index <= newest_index(group) && !is_export;
    let rejected = match &group.saving {
        Some(saving) if !is_export && !saving.is_export && saving.index == group.handed.index => {
            Some(SnapshotRejected::NothingNew)
        }
        Some(_) => Some(SnapshotRejected::AlreadySaving),
        None => is_old.then_some(SnapshotRejected::NothingNew),
    };
    if let Some(rejected) = rejected {
        if let Some(responder) = responder {
            responder.respond(Ok(SnapshotOutcome::Rejected(rejected)));
        }
        return;
    }
    let abort = Abort::default();
    group.saves_begun += 1;
    group.saving = Some(Saving {
        number: group.saves_begun,
        index: group.handed.index,
        responder,
        overhead: request
            .compaction_overhead
            .unwrap_or(shared.config.compaction_overhead),
        is_export,
        is_recording: false,
        abort: abort.clone(),
    });
    let job = SaveJob {
        group: group.id,
        number: group.saves_begun,
        epoch: group.epoch,
        meta: SnapshotMeta {
            id: group.handed,
            membership: group.membership.clone(),
        },
        env: group.env.clone(),
        export: request.export,
        abort,
        machine: None,
        cursor: SaveCursor::default(),
        writer: None,
        buffer: bytes::BytesMut::new(),
    };
    out.tasks.push((group.id, Task::Save(Box::new(job))));
}

/// Begins a save that nobody asked for, unless one is under way or the last one has just failed.
pub(super) fn save_unasked(shared: &StepShared, out: &mut Out, group: &mut Group) {
    if group.saving.is_none() && out.tick >= group.save_not_before {
        request_snapshot(shared, out, group, SnapshotRequest::default(), None);
    }
}

/// Saves the snapshot that the core wants for a follower, as soon as so much is applied; recorded,
/// it is the core's to send. A wish that is met, or was a leader's who leads no more, is forgotten.
pub(super) fn save_wanted(shared: &StepShared, out: &mut Out, group: &mut Group) {
    let (leads, newest) = (group.raft.role() == Role::Leader, newest_index(group));
    group
        .snapshot_wanted
        .take_if(|wanted| !leads || newest >= *wanted);
    if wants_save(group) {
        save_unasked(shared, out, group);
    }
}

/// The tick at which a wanted save is tried again that has failed.
pub(super) fn retry_tick(group: &Group) -> Option<u64> {
    wants_save(group).then_some(group.save_not_before)
}

/// Whether the core waits for a save, none is under way, and so much is applied.
fn wants_save(group: &Group) -> bool {
    let is_reached = |wanted| wanted <= group.handed.index;
    group.saving.is_none() && has_state(group) && group.snapshot_wanted.is_some_and(is_reached)
}

/// Whether the machine holds just what was handed to it: not while a lost snapshot is awaited, nor
/// while the one that came is ahead of what was handed.
const fn has_state(group: &Group) -> bool {
    group.awaits.is_none() && group.filled.is_none()
}

/// The place of the newest snapshot.
fn newest_index(group: &Group) -> Index {
    group
        .snapshots
        .last()
        .map_or(BOOTSTRAP_INDEX, |meta| meta.id.index)
}

/// The save under way has ended.
pub(super) fn saved(shared: &StepShared, out: &mut Out, group: &mut Group, end: SaveEnd) {
    let saving = group.saving.as_mut().expect("the caller looked");
    let is_overtaken = |meta: &SnapshotMeta| {
        let newest = group.snapshots.last();
        newest.is_some_and(|newest| newest.id >= meta.id)
    };
    let outcome = match end {
        SaveEnd::Saved(meta) if saving.is_export => SnapshotOutcome::Completed(meta.id.index),
        SaveEnd::Saved(meta) if is_overtaken(&meta) => {
            // A streamed snapshot came between.
            discard(out, group, meta.id.index);
            SnapshotOutcome::Rejected(SnapshotRejected::OutOfDate)
        }
        SaveEnd::Saved(meta) => {
            let overhead = saving.overhead;
            saving.is_recording = true;
            group.save_backoff_ticks = 0;
            return record(shared, out, group, *meta, overhead);
        }
        SaveEnd::OutOfDate => {
            // Whatever lies there lies there a moment from now, too.
            back_off(shared, out, group);
            SnapshotOutcome::Rejected(SnapshotRejected::OutOfDate)
        }
        SaveEnd::Aborted => SnapshotOutcome::Aborted,
        SaveEnd::Failed(reason) => {
            tracing::warn!(group = group.id.get(), %reason, "snapshot failed");
            back_off(shared, out, group);
            SnapshotOutcome::Failed(reason)
        }
    };
    if let Some(responder) = group.saving.take().and_then(|saving| saving.responder) {
        responder.respond(Ok(outcome));
    }
}

/// Records a saved snapshot, and with it what the log may drop.
fn record(
    shared: &StepShared,
    out: &mut Out,
    group: &mut Group,
    meta: SnapshotMeta,
    overhead: u64,
) {
    let index = meta.id.index;
    let keep_from = Index::new(index.get().saturating_sub(overhead).max(1)).next();
    group.retain_with(meta.clone(), shared.config.snapshot_retention);
    let first = compact_to(shared, group, keep_from);
    group.raft.snapshot_stored(meta);
    if first > group.raft.first_index() {
        group.raft.compacted(first);
    }
    let submission = Submission {
        snapshots: Some(group.snapshots_record()),
        compact_before: Some(group.raft.first_index()),
        ..group.next_submission()
    };
    let sequence = out.submit(group, submission);
    group.outstanding.push_back(Outstanding {
        sequence: Some(sequence),
        submission: None,
        release: Vec::new(),
        then: Some(OnDurable::Recorded { index }),
    });
}

/// Where the log may begin: not past what a follower in reach still needs, unless it holds back
/// more than the bound; not past the oldest retained snapshot, where that is to be a fallback.
fn compact_to(shared: &StepShared, group: &Group, mut first: Index) -> Index {
    let config = &shared.config;
    let held_bytes = shared.reader.log_bytes(group.id, group.replica);
    if held_bytes <= config.follower_log_bytes_max
        && let Some(needed) = group.raft.lowest_needed_by_followers()
    {
        first = first.min(needed);
    }
    if config.local_fallback
        && let Some(oldest) = group.snapshots.first()
    {
        first = first.min(oldest.id.index.next());
    }
    first
}

pub(super) fn back_off(shared: &StepShared, out: &Out, group: &mut Group) {
    let tick_ms = shared.config.tick_ms;
    let (least, most) = (
        BACKOFF_MS_MIN.div_ceil(tick_ms),
        BACKOFF_MS_MAX.div_ceil(tick_ms),
    );
    group.save_backoff_ticks = (group.save_backoff_ticks * 2).clamp(least, most);
    group.save_not_before = out.tick.saturating_add(group.save_backoff_ticks);
}

/// A snapshot was saved for nobody: no log will name it.
pub(super) fn discard_unrecorded(out: &mut Out, group: &Group, end: &SaveEnd) {
    if let SaveEnd::Saved(meta) = end {
        discard(out, group, meta.id.index);
    }
}

fn discard(out: &mut Out, group: &Group, index: Index) {
    let env = group.env.clone();
    out.jobs.push((group.id, Job::Discard { env, index }));
}

/// Asks the leader, and hands on a leadership that came to the replica itself: it could not serve.
pub(super) fn ask_for_lost(shared: &StepShared, out: &Out, group: &mut Group) {
    let Some(awaited) = &mut group.awaits else {
        return;
    };
    if group.raft.role() == Role::Leader {
        if group.raft.transferee().is_none() {
            requests::hand_on_leadership(group);
        }
    } else if group.raft.leader().is_some() && out.tick >= awaited.ask_at {
        let timeouts = shared.config.election_timeout_ticks_max * ASK_AGAIN_TIMEOUTS;
        awaited.ask_at = out.tick.saturating_add(timeouts);
        if let Err(error) = group.raft.request_snapshot(awaited.index) {
            tracing::debug!(group = group.id.get(), %error, "the leader was not asked");
        }
    }
}

/// The tick at which the leader is asked for a lost snapshot.
pub(super) fn ask_tick(group: &Group) -> Option<u64> {
    let awaited = group.awaits.as_ref()?;
    let is_led = group.raft.leader().is_some() && group.raft.role() != Role::Leader;
    is_led.then_some(awaited.ask_at)
}

/// The leader holds what was asked for, and sends it: that may take a while.
pub(super) fn on_offer(shared: &StepShared, out: &Out, group: &mut Group) {
    if let Some(awaited) = &mut group.awaits {
        let patience = STREAM_PATIENCE_MS.div_ceil(shared.config.tick_ms);
        awaited.ask_at = out.tick.saturating_add(patience);
    }
}

/// Whether a received snapshot takes the lost one's place: its last entry stands in this very log,
/// and is committed, whether that is known here yet or not.
fn fills(group: &Group, meta: &SnapshotMeta) -> bool {
    let index = meta.id.index;
    let is_late_enough = |awaited: &Awaited| index >= awaited.index;
    group.awaits.as_ref().is_some_and(is_late_enough)
        && index <= group.raft.last_index()
        && group.raft.term_at(index) == Some(meta.id.term)
}

/// Records a snapshot in a lost one's place.
fn fill(shared: &StepShared, out: &mut Out, group: &mut Group, meta: SnapshotMeta) {
    group.awaits = None;
    group.filled = Some(meta.clone());
    group.retain_with(meta.clone(), shared.config.snapshot_retention);
    let submission = Submission {
        snapshots: Some(group.snapshots_record()),
        ..group.next_submission()
    };
    let sequence = out.submit(group, submission);
    group.outstanding.push_back(Outstanding {
        sequence: Some(sequence),
        submission: None,
        release: Vec::new(),
        then: Some(OnDurable::Filled { meta }),
    });
}

/// A received snapshot lies in its final directory: the core decides.
pub(super) fn received(
    shared: &StepShared,
    out: &mut Out,
    group: &mut Group,
    received: ReceivedSnapshot,
) {
    let ReceivedSnapshot {
        host,
        from,
        to,
        term,
        meta,
        ..
    } = received;
    if to != group.replica {
        // It lies with another replica, which runs no more; that one's next start removes it.
        return tracing::debug!(
            group = group.id.get(),
            to = to.get(),
            "snapshot is too late"
        );
    }
    let index = meta.id.index;
    if group.snapshots.iter().any(|known| known.id.index == index) {
        tracing::debug!(group = group.id.get(), "received snapshot is here already");
        return;
    }
    let is_newer = group
        .snapshots
        .last()
        .is_none_or(|last| last.id.index < index);
    let refused = if !group.lives_on(from, host) {
        let reason = format!("snapshot: replica {from} does not live on host {host}");
        let event = Event::Refused {
            group: group.id,
            reason: reason.clone(),
        };
        out.events.push((group.id, event));
        Some(reason)
    } else if fills(group, &meta) {
        return fill(shared, out, group, meta);
    } else if is_newer {
        let handled = group.raft.handle_message(Message {
            from,
            to,
            term,
            body: Body::Snapshot {
                meta: Box::new(meta),
            },
        });
        handled.err().map(|refused| refused.to_string())
    } else {
        Some("older than what is here".to_owned())
    };
    if refused.is_some() || !group.raft.is_installing(index) {
        tracing::debug!(
            group = group.id.get(),
            ?refused,
            "received snapshot not installed"
        );
        discard(out, group, index);
    }
}

/// Streams the stored snapshot that the core wants sent, or saves one that can be.
pub(super) fn send(
    shared: &StepShared,
    out: &mut Out,
    group: &mut Group,
    host: raft_proto::HostId,
    message: &Message,
    meta: &SnapshotMeta,
) {
    let stored = group
        .snapshots
        .iter()
        .rev()
        .find(|stored| stored.id == meta.id);
    let is_of_use = |stored: &SnapshotMeta| {
        stored.id.index > BOOTSTRAP_INDEX && stored.membership.replicas().contains(&message.to)
    };
    if !stored.is_some_and(is_of_use) {
        // Nothing lies in a directory yet, or it is older than the membership of its receiver,
        // who would refuse it: save one, and let the core try again.
        save_unasked(shared, out, group);
        let failed = SnapshotStatus::Failed;
        return group.raft.report_snapshot(message.to, failed);
    }
    let steps = &shared.steps;
    let transfer = SnapshotTransfer {
        group: group.id,
        epoch: group.epoch,
        from: message.from,
        to: message.to,
        term: message.term,
        meta: meta.clone(),
        env: group.env.clone(),
        report: SnapshotReport {
            group: group.id,
            to: message.to,
            inbox: Some(steps[route(group.id, steps.len())].clone()),
        },
    };
    out.transfers.push((host, transfer));
}
