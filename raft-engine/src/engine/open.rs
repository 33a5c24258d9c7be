//! Opens an engine: the log, then the workers and what they share.

use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use raft_log::vfs::Vfs;
use raft_log::{Lane, LaneOptions, LogError};

use super::{Engine, EngineShared};
use crate::apply::{ApplyInput, ApplyWorker};
use crate::config::{ConfigError, EngineConfig};
use crate::inbox::{Budget, Inbox, Wake};
use crate::jobs::{JobQueue, JobWorker};
use crate::lane::{LaneDesk, LaneWorker};
use crate::outbound::{Events, Outbound};
use crate::step::{StepShared, StepWorker};
use crate::workers::{Alarm, Workers};

/// What an engine is made of.
pub struct Parts {
    /// The file system.
    pub vfs: Arc<dyn Vfs>,
    /// The data directory. `log/`, `votes` and `snapshots/` lie in it; it exists and is locked.
    pub data_dir: PathBuf,
    /// The log lane's settings.
    pub lane: LaneOptions,
    /// The way to other hosts.
    pub outbound: Arc<dyn Outbound>,
    /// Who hears of events.
    pub events: Arc<dyn Events>,
}

/// Why an engine did not open. Nothing runs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A setting is out of bounds: mend it.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The log did not open; its own words say what to do.
    #[error(transparent)]
    Log(#[from] LogError),
}

impl Engine {
    /// Opens the log and makes the workers, which the caller then drives: [`Workers::spawn`] in
    /// production, poll by poll under simulation.
    ///
    /// # Errors
    ///
    /// [`OpenError`]: a setting is out of bounds, or the log does not open.
    pub fn open(config: EngineConfig, parts: Parts) -> Result<(Self, Workers), OpenError> {
        config.check()?;
        let record_bytes_max = parts.lane.record_bytes_max;
        let (mut lane, recovery) = Lane::open(Arc::clone(&parts.vfs), &parts.data_dir, parts.lane)?;
        let wakes: Vec<Arc<Wake>> = (0..config.step_workers).map(|_| Arc::default()).collect();
        let steps: Vec<_> = wakes
            .iter()
            .map(|wake| Arc::new(Inbox::new(config.inbox_bytes_max, Arc::clone(wake))))
            .collect();
        let apply_wakes: Vec<Arc<Wake>> =
            (0..config.apply_workers).map(|_| Arc::default()).collect();
        let applies: Vec<Arc<Inbox<ApplyInput>>> = apply_wakes
            .iter()
            .map(|wake| Arc::new(Inbox::new(usize::MAX, Arc::clone(wake))))
            .collect();
        let lane_wake: Arc<Wake> = Arc::default();
        let wake = Arc::clone(&lane_wake);
        lane.wake_by(Arc::new(move || wake.set()));
        let reader = lane.reader();
        let desk = Arc::new(LaneDesk::new(lane, Arc::clone(&lane_wake)));
        let jobs = Arc::new(JobQueue::new(config.saves_max));
        let step_shared = Arc::new(StepShared {
            config: config.clone(),
            record_bytes_max,
            lane: Arc::clone(&desk),
            steps: steps.clone(),
            applies: applies.clone(),
            jobs: Arc::clone(&jobs),
            space: reader.space(),
            reader: reader.clone(),
            outbound: parts.outbound,
            events: parts.events,
        });
        let workers = Workers::new(
            steps
                .iter()
                .zip(wakes)
                .map(|(inbox, wake)| {
                    (
                        StepWorker::new(Arc::clone(&step_shared), Arc::clone(inbox)),
                        wake,
                    )
                })
                .collect(),
            (LaneWorker::new(desk, steps.clone()), lane_wake),
            applies
                .iter()
                .zip(apply_wakes)
                .map(|(inbox, wake)| {
                    let worker =
                        ApplyWorker::new(Arc::clone(inbox), steps.clone(), Arc::clone(&jobs));
                    (worker, wake)
                })
                .collect(),
            (0..config.job_workers)
                .map(|_| JobWorker {
                    jobs: Arc::clone(&jobs),
                    reader: reader.clone(),
                    steps: steps.clone(),
                    applies: applies.clone(),
                })
                .collect(),
            jobs,
            Alarm {
                steps: steps.clone(),
                events: Arc::clone(&step_shared.events),
            },
        );
        let shared = EngineShared {
            reads: Budget::new(config.reads_bytes_max),
            messages_dropped: AtomicU64::new(0),
            starts: AtomicU64::new(0),
            config,
            vfs: parts.vfs,
            snapshots_dir: parts.data_dir.join("snapshots"),
            steps,
            step_shared,
            recovered: Mutex::new(recovery.replicas),
            running: Mutex::default(),
            report: recovery.report,
        };
        Ok((
            Self {
                shared: Arc::new(shared),
            },
            workers,
        ))
    }
}
