//! The lane worker: drives the log lane and tells the step workers what is durable.

use std::collections::VecDeque;
use std::sync::Arc;

use raft_log::{Lane, LaneSpace, LogError, ScrubStatus, Submission};
use raft_proto::Time;

use crate::inbox::Inbox;
use crate::step::{LaneDone, StepInput};
use crate::workers::EngineStats;
use crate::{Progress, route};

/// What the lane worker is told.
pub(crate) enum LaneInput {
    /// To be made durable, in this order.
    Submit(Vec<Submission>),
    /// Verify everything durable.
    Scrub,
}

/// Owns the lane: the only place where an append waits for the disk.
pub(crate) struct LaneWorker {
    lane: Lane,
    space: LaneSpace,
    inbox: Arc<Inbox<LaneInput>>,
    steps: Vec<Arc<Inbox<StepInput>>>,
    drained: Vec<LaneInput>,
    /// What found no room, in order: entries that had got an index when the disk became full, and
    /// whatever their groups submitted after them.
    held: VecDeque<Submission>,
    done: Vec<Vec<LaneDone>>,
    has_failed: bool,
    scrub: ScrubStatus,
}

impl LaneWorker {
    pub(crate) fn new(
        lane: Lane,
        inbox: Arc<Inbox<LaneInput>>,
        steps: Vec<Arc<Inbox<StepInput>>>,
    ) -> Self {
        let done = steps.iter().map(|_| Vec::new()).collect();
        Self {
            space: lane.reader().space(),
            scrub: lane.scrub_status(),
            lane,
            inbox,
            steps,
            drained: Vec::new(),
            held: VecDeque::new(),
            done,
            has_failed: false,
        }
    }

    pub(crate) fn stats(&self) -> EngineStats {
        EngineStats {
            lane: self.lane.stats(),
            scrub: self.scrub,
        }
    }

    pub(crate) fn into_lane(self) -> Lane {
        self.lane
    }

    /// Submits what has gathered, drives the lane, and passes completions on.
    pub(crate) fn poll(&mut self, now: Time) -> Progress {
        self.inbox.drain(&mut self.drained);
        let mut drained = std::mem::take(&mut self.drained);
        for submission in std::mem::take(&mut self.held) {
            self.submit(submission);
        }
        for input in drained.drain(..) {
            match input {
                LaneInput::Submit(submissions) => {
                    for submission in submissions {
                        self.submit(submission);
                    }
                }
                LaneInput::Scrub => {
                    self.lane.scrub();
                    self.scrub = self.lane.scrub_status();
                }
            }
        }
        self.drained = drained;
        if self.has_failed {
            return Progress::Idle { until: None };
        }
        let progress = self.lane.poll(now);
        if self.scrub.is_running {
            self.scrub = self.lane.scrub_status();
        }
        for completion in self.lane.take_completions() {
            match completion.result {
                Ok(()) => {
                    let worker = route(completion.group, self.steps.len());
                    self.done[worker].push(LaneDone {
                        group: completion.group,
                        replica: completion.replica,
                        sequence: completion.submission,
                    });
                }
                Err(error) => fail(&mut self.has_failed, &self.steps, &error.to_string()),
            }
        }
        self.tell_damage();
        for (done, step) in self.done.iter_mut().zip(&self.steps) {
            if !done.is_empty() {
                step.notice(StepInput::Persisted(std::mem::take(done)));
            }
        }
        progress.into()
    }
}

impl LaneWorker {
    /// A scrub found that a replica lost what it had: it stops, everybody else goes on.
    fn tell_damage(&mut self) {
        for report in self.lane.take_damage() {
            for (group, replica, first, last) in report.replicas {
                let reason = format!(
                    "damaged in segment {} at byte {}, entries {first} to {last}: {}; remove this \
                     replica and add one with a new id",
                    report.segment, report.offset, report.reason
                );
                let step = &self.steps[route(group, self.steps.len())];
                step.notice(StepInput::ReplicaDamaged {
                    group,
                    replica,
                    reason,
                });
            }
        }
    }

    /// Submits, or holds back what there is no room for: an entry that has an index stays.
    fn submit(&mut self, submission: Submission) {
        if self.has_failed {
            return;
        }
        let group = submission.group;
        if self.held.iter().any(|held| held.group == group) {
            return self.held.push_back(submission);
        }
        // Only a full lane refuses, and whether it is full changes in its own poll alone.
        let spare = self.space.is_full().then(|| submission.clone());
        match (self.lane.submit(submission), spare) {
            (Ok(()), _) => {}
            (Err(LogError::StorageFull), Some(spare)) => self.held.push_back(spare),
            (Err(error), _) => fail(&mut self.has_failed, &self.steps, &error.to_string()),
        }
    }
}

fn fail(has_failed: &mut bool, steps: &[Arc<Inbox<StepInput>>], reason: &str) {
    if !std::mem::replace(has_failed, true) {
        for step in steps {
            step.notice(StepInput::HostFailed {
                reason: reason.to_owned(),
            });
        }
    }
}
