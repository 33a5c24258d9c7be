//! The lane worker: drives the log lane and tells the step workers what is durable.

use std::sync::Arc;

use raft_log::{Lane, Submission};
use raft_proto::Time;

use crate::inbox::Inbox;
use crate::step::{LaneDone, StepInput};
use crate::{Progress, route};

/// Owns the lane: the only place where an append waits for the disk.
pub(crate) struct LaneWorker {
    lane: Lane,
    inbox: Arc<Inbox<Vec<Submission>>>,
    steps: Vec<Arc<Inbox<StepInput>>>,
    drained: Vec<Vec<Submission>>,
    done: Vec<Vec<LaneDone>>,
    has_failed: bool,
}

impl LaneWorker {
    pub(crate) fn new(
        lane: Lane,
        inbox: Arc<Inbox<Vec<Submission>>>,
        steps: Vec<Arc<Inbox<StepInput>>>,
    ) -> Self {
        let done = steps.iter().map(|_| Vec::new()).collect();
        Self {
            lane,
            inbox,
            steps,
            drained: Vec::new(),
            done,
            has_failed: false,
        }
    }

    pub(crate) const fn lane(&self) -> &Lane {
        &self.lane
    }

    pub(crate) fn into_lane(self) -> Lane {
        self.lane
    }

    /// Submits what has gathered, drives the lane, and passes completions on.
    pub(crate) fn poll(&mut self, now: Time) -> Progress {
        self.inbox.drain(&mut self.drained);
        for submission in self.drained.drain(..).flatten() {
            if self.has_failed {
                continue;
            }
            if let Err(error) = self.lane.submit(submission) {
                fail(&mut self.has_failed, &self.steps, &error.to_string());
            }
        }
        if self.has_failed {
            return Progress::Idle { until: None };
        }
        let progress = self.lane.poll(now);
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
        for (done, step) in self.done.iter_mut().zip(&self.steps) {
            if !done.is_empty() {
                step.notice(StepInput::Persisted(std::mem::take(done)));
            }
        }
        progress.into()
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
