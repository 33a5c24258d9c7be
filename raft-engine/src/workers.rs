//! The workers as values: driven by threads in production, poll by poll under simulation.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use raft_log::{LaneStats, ScrubStatus};
use raft_proto::Time;

use crate::apply::{ApplyWorker, panic_text};
use crate::inbox::{Inbox, Wake};
use crate::jobs::{JobQueue, JobWorker};
use crate::lane::LaneWorker;
use crate::outbound::{Event, Events};
use crate::step::{StepInput, StepWorker};

/// A thread without a deadline looks around this often, whatever happens.
const PARK_MAX: Duration = Duration::from_millis(500);

/// What a poll leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Work was done and more may be there: poll again.
    More,
    /// Nothing to do before `until`, or before something arrives.
    Idle {
        /// The next deadline.
        until: Option<Time>,
    },
}

impl From<raft_log::Progress> for Progress {
    fn from(progress: raft_log::Progress) -> Self {
        match progress {
            raft_log::Progress::More => Self::More,
            raft_log::Progress::Idle { until } => Self::Idle { until },
        }
    }
}

/// Names one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WorkerId {
    /// A step worker.
    Step(usize),
    /// The lane worker.
    Lane,
    /// An apply worker.
    Apply(usize),
    /// A job worker.
    Job(usize),
}

/// All workers of an engine, not yet running.
pub struct Workers {
    steps: Vec<(StepWorker, Arc<Wake>)>,
    lane: (LaneWorker, Arc<Wake>),
    applies: Vec<(ApplyWorker, Arc<Wake>)>,
    jobs: Vec<JobWorker>,
    job_queue: Arc<JobQueue>,
    alarm: Alarm,
}

/// Who hears that a worker is gone.
#[derive(Clone)]
pub(crate) struct Alarm {
    pub(crate) steps: Vec<Arc<Inbox<StepInput>>>,
    pub(crate) events: Arc<dyn Events>,
}

impl Alarm {
    /// Runs a worker to its end and returns whether it came to it. A panic outside of what is done
    /// for one group is our own bug, or the caller's logger's; without this worker nothing of the
    /// host can be relied on, so the host fails, aloud.
    fn watch(&self, name: &str, work: impl FnOnce()) -> bool {
        let Err(panic) = catch_unwind(AssertUnwindSafe(work)) else {
            return true;
        };
        let reason = format!("{name} panicked: {}", panic_text(&*panic));
        for step in &self.steps {
            step.notice(StepInput::HostFailed {
                reason: reason.clone(),
            });
        }
        // The step workers say so as well, if one is left.
        self.events.event(Event::HostFailed { reason });
        false
    }
}

/// What an engine has done since it opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct EngineStats {
    /// The log lane's counters.
    pub lane: LaneStats,
    /// How far verifying what the log holds has come.
    pub scrub: ScrubStatus,
}

impl Workers {
    pub(crate) fn new(
        steps: Vec<(StepWorker, Arc<Wake>)>,
        lane: (LaneWorker, Arc<Wake>),
        applies: Vec<(ApplyWorker, Arc<Wake>)>,
        jobs: Vec<JobWorker>,
        job_queue: Arc<JobQueue>,
        alarm: Alarm,
    ) -> Self {
        Self {
            steps,
            lane,
            applies,
            jobs,
            job_queue,
            alarm,
        }
    }

    /// The workers' names, in a fixed order.
    #[must_use]
    pub fn ids(&self) -> Vec<WorkerId> {
        let steps = (0..self.steps.len()).map(WorkerId::Step);
        let applies = (0..self.applies.len()).map(WorkerId::Apply);
        let jobs = (0..self.jobs.len()).map(WorkerId::Job);
        steps
            .chain([WorkerId::Lane])
            .chain(applies)
            .chain(jobs)
            .collect()
    }

    /// Lets one worker do the work at hand at `now`. Never waits for more, save that the lane
    /// worker waits for a real disk.
    ///
    /// # Panics
    ///
    /// If there is no such worker.
    pub fn poll(&mut self, worker: WorkerId, now: Time) -> Progress {
        self.poll_by(worker, || now)
    }

    /// The same by a clock, which a step worker reads when it has taken in its inbox.
    ///
    /// # Panics
    ///
    /// If there is no such worker.
    pub fn poll_by(&mut self, worker: WorkerId, clock: impl FnOnce() -> Time) -> Progress {
        match worker {
            WorkerId::Step(at) => self.steps[at].0.poll(clock),
            WorkerId::Lane => self.lane.0.poll(clock()),
            WorkerId::Apply(at) => self.applies[at].0.poll(),
            WorkerId::Job(at) => self.jobs[at].poll(),
        }
    }

    /// What has been done so far.
    #[must_use]
    pub fn stats(&self) -> EngineStats {
        self.lane.0.stats()
    }

    /// Gives each worker a thread.
    ///
    /// # Panics
    ///
    /// If the system refuses a thread.
    #[must_use]
    pub fn spawn(self) -> RunningWorkers {
        let origin = Instant::now();
        let clock = move || Time(u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX));
        let stop = Arc::new(AtomicBool::new(false));
        let stats = Arc::new(Mutex::new(self.lane.0.stats()));
        let mut threads = Vec::new();
        let mut wakes = Vec::new();
        for (at, (mut worker, wake)) in self.steps.into_iter().enumerate() {
            let stop = Arc::clone(&stop);
            wakes.push(Arc::clone(&wake));
            threads.push(watched(format!("raft-step-{at}"), &self.alarm, move || {
                drive(&wake, &stop, clock, || worker.poll(clock));
            }));
        }
        for (at, (mut worker, wake)) in self.applies.into_iter().enumerate() {
            let stop = Arc::clone(&stop);
            wakes.push(Arc::clone(&wake));
            threads.push(watched(
                format!("raft-apply-{at}"),
                &self.alarm,
                move || {
                    drive(&wake, &stop, clock, || worker.poll());
                },
            ));
        }
        for (at, mut worker) in self.jobs.into_iter().enumerate() {
            let stop = Arc::clone(&stop);
            let queue = Arc::clone(&self.job_queue);
            threads.push(watched(format!("raft-job-{at}"), &self.alarm, move || {
                while !stop.load(Ordering::Acquire) {
                    if worker.poll() != Progress::More {
                        queue.wait(PARK_MAX);
                    }
                }
            }));
        }
        let (mut lane, lane_wake) = self.lane;
        let lane_stop = Arc::new(AtomicBool::new(false));
        let lane_thread = {
            let (stop, wake) = (Arc::clone(&lane_stop), Arc::clone(&lane_wake));
            let stats = Arc::clone(&stats);
            let alarm = self.alarm;
            start("raft-lane".to_owned(), move || {
                let has_ended = alarm.watch("raft-lane", || {
                    drive(&wake, &stop, clock, || {
                        let progress = lane.poll(clock());
                        *stats.lock().unwrap_or_else(PoisonError::into_inner) = lane.stats();
                        progress
                    });
                });
                if has_ended && let Err(error) = lane.close() {
                    tracing::warn!(%error, "the log did not close cleanly");
                }
            })
        };
        RunningWorkers {
            stop,
            lane_stop,
            wakes,
            lane_wake,
            job_queue: self.job_queue,
            threads,
            lane_thread: Some(lane_thread),
            stats,
        }
    }
}

/// The workers' threads. Dropped, it stops them and waits for them: what was submitted to the log
/// is synced first.
pub struct RunningWorkers {
    stop: Arc<AtomicBool>,
    lane_stop: Arc<AtomicBool>,
    wakes: Vec<Arc<Wake>>,
    lane_wake: Arc<Wake>,
    job_queue: Arc<JobQueue>,
    threads: Vec<JoinHandle<()>>,
    lane_thread: Option<JoinHandle<()>>,
    stats: Arc<Mutex<EngineStats>>,
}

impl RunningWorkers {
    /// What has been done so far.
    #[must_use]
    pub fn stats(&self) -> EngineStats {
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for RunningWorkers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for wake in &self.wakes {
            wake.set();
        }
        self.job_queue.wake_all();
        for thread in self.threads.drain(..) {
            // A worker that panicked has failed the host; there is nothing to add here.
            drop(thread.join());
        }
        self.lane_stop.store(true, Ordering::Release);
        self.lane_wake.set();
        if let Some(thread) = self.lane_thread.take() {
            drop(thread.join());
        }
    }
}

/// A thread whose panic fails the host. What the worker held is dropped with it.
fn watched(name: String, alarm: &Alarm, work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    let alarm = alarm.clone();
    start(name.clone(), move || {
        alarm.watch(&name, work);
    })
}

fn start(name: String, body: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    std::thread::Builder::new()
        .name(name)
        .spawn(body)
        .expect("the system starts a thread")
}

fn drive(
    wake: &Wake,
    stop: &AtomicBool,
    clock: impl Fn() -> Time,
    mut poll: impl FnMut() -> Progress,
) {
    wake.attach();
    loop {
        // First, so that a stop that comes with this wake-up is seen.
        wake.take();
        if stop.load(Ordering::Acquire) {
            return;
        }
        if let Progress::Idle { until } = poll() {
            let timeout = until
                .map_or(PARK_MAX, |until| Duration::from_nanos(until.since(clock())))
                .min(PARK_MAX);
            if !timeout.is_zero() {
                wake.wait(timeout);
            }
        }
    }
}
