//! What one pass yields, held back until the pass is over.

use raft_log::Submission;
use raft_proto::{Envelope, GroupId, HostId, Ready};

use super::StepShared;
use crate::apply::{ApplyInput, Task};
use crate::group::Group;
use crate::jobs::Job;
use crate::lane::LaneInput;
use crate::outbound::{Event, SnapshotTransfer};
use crate::route;

/// Everything leaves at the end of a pass, so that what a group put out before it panicked can be
/// taken back.
#[derive(Default)]
pub(super) struct Out {
    /// The tick at which the pass began.
    pub(super) tick: u64,
    submissions: Vec<Submission>,
    /// By host, ascending.
    messages: Vec<(HostId, Vec<Envelope>)>,
    pub(super) tasks: Vec<(GroupId, Task)>,
    /// The tasks by apply worker, on their way.
    inputs: Vec<Vec<ApplyInput>>,
    pub(super) jobs: Vec<(GroupId, Job)>,
    pub(super) transfers: Vec<(HostId, SnapshotTransfer)>,
    pub(super) events: Vec<(GroupId, Event)>,
    /// Used again by every group of every pass.
    pub(super) ready: Ready,
}

impl Out {
    pub(super) fn message(&mut self, to: HostId, envelope: Envelope) {
        match self.messages.binary_search_by_key(&to, |(host, _)| *host) {
            Ok(at) => self.messages[at].1.push(envelope),
            Err(at) => self.messages.insert(at, (to, vec![envelope])),
        }
    }

    /// Gives a group's next submission to the lane, and returns its number.
    pub(super) fn submit(&mut self, group: &mut Group, submission: Submission) -> u64 {
        group.sequence = submission.submission;
        self.submissions.push(submission);
        group.sequence
    }

    /// Takes back all that the group put out in this pass. Who waits for some of it is answered by
    /// what is dropped here.
    pub(super) fn take_back(&mut self, group: &mut Group) {
        let id = group.id;
        let mut taken_back = 0;
        self.submissions.retain(|submission| {
            let is_kept = submission.group != id;
            taken_back += u64::from(!is_kept);
            is_kept
        });
        // The lane will never see them, nor end them.
        group.sequence -= taken_back;
        for (_, messages) in &mut self.messages {
            messages.retain(|envelope| envelope.group != id);
        }
        self.tasks.retain(|(group, _)| *group != id);
        self.jobs.retain(|(group, _)| *group != id);
        self.transfers.retain(|(_, transfer)| transfer.group != id);
        self.events.retain(|(group, _)| *group != id);
    }

    /// Lets everything go. The disk first: it takes longest.
    pub(super) fn hand_on(&mut self, shared: &StepShared) {
        let has_submissions = !self.submissions.is_empty();
        if has_submissions {
            let submissions = std::mem::take(&mut self.submissions);
            shared.lane.notice(LaneInput::Submit(submissions));
        }
        for (host, messages) in &mut self.messages {
            if !messages.is_empty() {
                shared.outbound.send(*host, std::mem::take(messages));
            }
        }
        let workers = shared.applies.len();
        self.inputs.resize_with(workers, Vec::new);
        for (group, task) in self.tasks.drain(..) {
            self.inputs[route(group, workers)].push(ApplyInput::Task { group, task });
        }
        for (inputs, apply) in self.inputs.iter_mut().zip(&shared.applies) {
            apply.notices(inputs);
        }
        for (_, job) in self.jobs.drain(..) {
            shared.jobs.push(job);
        }
        for (host, transfer) in self.transfers.drain(..) {
            shared.outbound.send_snapshot(host, transfer);
        }
        for (_, event) in self.events.drain(..) {
            shared.events.event(event);
        }
        if has_submissions {
            shared.lane.encode_meanwhile();
        }
    }
}
