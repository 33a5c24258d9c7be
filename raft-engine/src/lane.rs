//! The lane worker: drives the log lane and tells the step workers what is durable.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use raft_log::{AtDisk, DamageReport, FromDisk, Lane, LogError, ScrubStatus, Submission};
use raft_proto::{GroupId, ReplicaId, Time};

use crate::group::life_of;
use crate::inbox::{Inbox, Wake};
use crate::step::{LaneDone, StepInput};
use crate::workers::EngineStats;
use crate::{Progress, route};

const PANICKED: &str = "a worker panicked within the log";

/// What the lane worker is told.
pub(crate) enum LaneInput {
    /// To be made durable, in this order.
    Submit(Vec<Submission>),
    /// Verify everything durable.
    Scrub,
}

/// Where the step workers and the lane worker meet: the lane worker's inbox, and the lane itself.
pub(crate) struct LaneDesk {
    inbox: Inbox<LaneInput>,
    /// Nobody waits for the disk with it. `None`: the lane worker has ended.
    core: Mutex<Option<Core>>,
    /// The lane worker waits for the disk.
    is_at_disk: AtomicBool,
}

/// The lane, and what was submitted to it.
struct Core {
    lane: Lane,
    drained: Vec<LaneInput>,
    /// Whose submission was refused, and in which life of the replica: what follows in that life is
    /// dropped, as it builds on what is not there.
    refused: BTreeMap<(GroupId, ReplicaId), u64>,
    /// Of whom the step workers are to hear, and why.
    failed: Vec<(GroupId, ReplicaId, String)>,
    /// The lane takes nothing any more, and why.
    failure: Option<String>,
    scrub: ScrubStatus,
}

impl LaneDesk {
    pub(crate) fn new(lane: Lane, wake: Arc<Wake>) -> Self {
        let core = Core {
            scrub: lane.scrub_status(),
            lane,
            drained: Vec::new(),
            refused: BTreeMap::new(),
            failed: Vec::new(),
            failure: None,
        };
        Self {
            inbox: Inbox::new(usize::MAX, wake),
            core: Mutex::new(Some(core)),
            is_at_disk: AtomicBool::new(false),
        }
    }

    /// Leaves something for the lane worker.
    pub(crate) fn notice(&self, input: LaneInput) {
        self.inbox.notice(input);
    }

    /// While the lane worker waits for the disk, what was left for it is encoded for the next
    /// record by the step worker that calls this, unless another is at it.
    pub(crate) fn encode_meanwhile(&self) {
        if self.is_at_disk.load(Ordering::Acquire)
            && let Ok(mut core) = self.core.try_lock()
            && let Some(core) = core.as_mut()
        {
            core.take_in(&self.inbox);
        }
    }

    fn core(&self) -> MutexGuard<'_, Option<Core>> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Core {
    /// Submits what has gathered.
    fn take_in(&mut self, inbox: &Inbox<LaneInput>) {
        inbox.drain(&mut self.drained);
        let mut drained = std::mem::take(&mut self.drained);
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
    }

    /// Submits, where there is no room too: an entry that has an index stays.
    fn submit(&mut self, submission: Submission) {
        if self.failure.is_some() {
            return;
        }
        let (group, replica, number) =
            (submission.group, submission.replica, submission.submission);
        match self.refused.get(&(group, replica)) {
            Some(&life) if life == life_of(number) => {
                return self.end_in_turn(Submission::new(group, replica, number));
            }
            _ => {}
        }
        match self.lane.submit_admitted(submission) {
            Ok(()) => {}
            // It means nothing any more, of a replica that is gone.
            Err(LogError::Gone { .. }) => {
                self.end_in_turn(Submission::new(group, replica, number));
            }
            Err(error) if is_of_one_replica(&error) => {
                let reason = format!(
                    "the log refused what the replica submitted, and holds nothing of it: {error}; \
                     stop the group and start it again, to go on from what is durable"
                );
                self.failed.push((group, replica, reason));
                self.refused.insert((group, replica), life_of(number));
                self.end_in_turn(Submission::new(group, replica, number));
            }
            Err(error) => self.failure = Some(error.to_string()),
        }
    }

    /// What was dropped ends as one that is `empty` does, behind all that was submitted before it:
    /// whoever stops the group waits for that.
    fn end_in_turn(&mut self, empty: Submission) {
        if let Err(error) = self.lane.submit(empty) {
            self.failure = Some(error.to_string());
        }
    }
}

/// Whether a refusal is for what one replica submitted, and concerns nobody else.
const fn is_of_one_replica(error: &LogError) -> bool {
    matches!(
        error,
        LogError::Contradiction { .. } | LogError::TooLarge { .. } | LogError::NumberTooHigh { .. }
    )
}

/// Drives the lane: the only place where an append waits for the disk.
pub(crate) struct LaneWorker {
    desk: Arc<LaneDesk>,
    steps: Vec<Arc<Inbox<StepInput>>>,
    done: Vec<Vec<LaneDone>>,
    has_failed: bool,
}

impl LaneWorker {
    pub(crate) fn new(desk: Arc<LaneDesk>, steps: Vec<Arc<Inbox<StepInput>>>) -> Self {
        let done = steps.iter().map(|_| Vec::new()).collect();
        Self {
            desk,
            steps,
            done,
            has_failed: false,
        }
    }

    pub(crate) fn stats(&self) -> EngineStats {
        let core = self.desk.core();
        let core = core.as_ref().expect("its worker is there");
        EngineStats {
            lane: core.lane.stats(),
            scrub: core.scrub,
        }
    }

    /// Closes the lane: what was submitted is synced first.
    pub(crate) fn close(self) -> Result<(), LogError> {
        if self.desk.core.is_poisoned() {
            // What was being submitted then is half there: none of it is written.
            return Err(LogError::Latched(PANICKED.to_owned()));
        }
        let core = self.desk.core().take();
        core.map_or(Ok(()), |core| core.lane.close())
    }

    /// Submits what has gathered, drives the lane, and passes completions on.
    pub(crate) fn poll(&mut self, now: Time) -> Progress {
        match self.begin(now) {
            Some(at_disk) => self.end(at_disk.wait()),
            None => Progress::Idle { until: None },
        }
    }

    /// Submits what has gathered, and begins to write it. `None`: the lane has failed.
    fn begin(&mut self, now: Time) -> Option<AtDisk> {
        let desk = Arc::clone(&self.desk);
        let Ok(mut core) = desk.core.lock() else {
            // Its own alarm says more.
            self.fail(PANICKED);
            return None;
        };
        let core = core.as_mut().expect("its worker is there");
        core.take_in(&desk.inbox);
        if let Some(reason) = &core.failure {
            self.fail(reason);
            return None;
        }
        let at_disk = core.lane.poll_begin(now);
        desk.is_at_disk.store(true, Ordering::Release);
        Some(at_disk)
    }

    /// The disk has answered.
    fn end(&mut self, from_disk: FromDisk) -> Progress {
        let desk = Arc::clone(&self.desk);
        desk.is_at_disk.store(false, Ordering::Release);
        let (progress, completions, damage, failed) = {
            let mut core = desk.core();
            let core = core.as_mut().expect("its worker is there");
            let progress = core.lane.poll_end(from_disk);
            if core.scrub.is_running {
                core.scrub = core.lane.scrub_status();
            }
            let completions = core.lane.take_completions();
            let failed = std::mem::take(&mut core.failed);
            (progress, completions, core.lane.take_damage(), failed)
        };
        // Before it hears that what was refused has ended.
        for (group, replica, reason) in failed {
            self.fail_replica(group, replica, reason);
        }
        for completion in completions {
            match completion.result {
                Ok(()) => {
                    let worker = route(completion.group, self.steps.len());
                    self.done[worker].push(LaneDone {
                        group: completion.group,
                        replica: completion.replica,
                        sequence: completion.submission,
                    });
                }
                Err(error) => self.fail(&error.to_string()),
            }
        }
        self.tell_damage(damage);
        for (done, step) in self.done.iter_mut().zip(&self.steps) {
            if !done.is_empty() {
                step.notice(StepInput::Persisted(std::mem::take(done)));
            }
        }
        progress.into()
    }

    /// A scrub found that a replica lost what it had: it stops, everybody else goes on.
    fn tell_damage(&self, damage: Vec<DamageReport>) {
        for report in damage {
            for (group, replica, first, last) in report.replicas {
                let reason = format!(
                    "damaged in segment {} at byte {}, entries {first} to {last}: {}; remove this \
                     replica and add one with a new id",
                    report.segment, report.offset, report.reason
                );
                self.fail_replica(group, replica, reason);
            }
        }
    }

    /// A replica stops, and everybody else goes on.
    fn fail_replica(&self, group: GroupId, replica: ReplicaId, reason: String) {
        let step = &self.steps[route(group, self.steps.len())];
        step.notice(StepInput::ReplicaFailed {
            group,
            replica,
            reason,
        });
    }

    fn fail(&mut self, reason: &str) {
        if !std::mem::replace(&mut self.has_failed, true) {
            for step in &self.steps {
                step.notice(StepInput::HostFailed {
                    reason: reason.to_owned(),
                });
            }
        }
    }
}

impl Drop for LaneWorker {
    fn drop(&mut self) {
        // The lane and its lock go with its worker, whoever may still hold the desk.
        let core = self.desk.core().take();
        drop(core);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use raft_log::vfs::{SimVfs, Vfs};
    use raft_log::{LaneOptions, LogReader, SnapshotRecord, SnapshotsRecord};
    use raft_proto::{
        BatchBuilder, EntryId, EntryKind, GroupId, HardState, Index, ReplicaId, Term,
    };

    use super::*;

    fn submission(group: u64) -> Submission {
        let id = GroupId::new(group).expect("not 0");
        let mut submission = Submission::new(id, ReplicaId::new(1).expect("not 0"), group);
        submission.hard_state = Some(HardState {
            term: Term::new(1),
            ..HardState::default()
        });
        submission
    }

    fn of_term(group: u64, number: u64, term: u64) -> Submission {
        let mut submission = submission(group);
        submission.submission = number;
        submission.hard_state = Some(HardState {
            term: Term::new(term),
            ..HardState::default()
        });
        submission
    }

    /// A lane on an empty disk, and its worker.
    struct Opened {
        disk: Arc<SimVfs>,
        desk: Arc<LaneDesk>,
        step: Arc<Inbox<StepInput>>,
        worker: LaneWorker,
        reader: LogReader,
    }

    fn opened(options: LaneOptions) -> Opened {
        let disk = Arc::new(SimVfs::new(1));
        let path = Path::new("/data");
        disk.create_dir_all(path).expect("an empty disk");
        let vfs: Arc<dyn Vfs> = Arc::<SimVfs>::clone(&disk);
        let (lane, _) = Lane::open(vfs, path, options).expect("it opens");
        let reader = lane.reader();
        let desk = Arc::new(LaneDesk::new(lane, Arc::default()));
        let step = Arc::new(Inbox::new(usize::MAX, Arc::default()));
        Opened {
            disk,
            worker: LaneWorker::new(Arc::clone(&desk), vec![Arc::clone(&step)]),
            desk,
            step,
            reader,
        }
    }

    #[test]
    fn a_refused_submission_fails_its_group_and_nobody_else() {
        let Opened {
            desk,
            step,
            mut worker,
            reader,
            ..
        } = opened(LaneOptions::default());
        let mut now = Time(0);
        let mut settle = |submissions: Vec<Submission>| {
            let expected = submissions.len();
            desk.notice(LaneInput::Submit(submissions));
            let (mut done, mut failed) = (Vec::new(), Vec::new());
            while done.len() < expected {
                now = now.plus_nanos(1_000_000);
                worker.poll(now);
                let mut told = Vec::new();
                step.drain(&mut told);
                for input in told {
                    match input {
                        StepInput::Persisted(persisted) => {
                            done.extend(persisted.iter().map(|it| (it.group.get(), it.sequence)));
                        }
                        StepInput::ReplicaFailed { group, reason, .. } => {
                            failed.push((group.get(), done.len(), reason));
                        }
                        StepInput::HostFailed { reason } => panic!("the host failed: {reason}"),
                        _ => {}
                    }
                }
            }
            (done, failed)
        };
        let next_life = (1 << crate::group::SEQUENCE_BITS) + 1;
        let (done, failed) = settle(vec![
            of_term(1, 1, 5),
            of_term(2, 1, 1),
            // Its term falls; what follows counts on it.
            of_term(1, 2, 4),
            of_term(1, 3, 9),
            of_term(2, 2, 2),
        ]);
        // All have ended, those that were dropped behind what was taken before them.
        let of = |group| done.iter().filter(move |done| done.0 == group);
        assert!(of(1).map(|done| done.1).eq(1..=3), "{done:?}");
        assert!(of(2).map(|done| done.1).eq(1..=2), "{done:?}");
        let [(1, 0, reason)] = &failed[..] else {
            panic!("{failed:?}");
        };
        assert!(reason.contains("start it again"), "{reason}");
        let term = |group: u64| {
            let found = reader.replicas_of(GroupId::new(group).expect("not 0"));
            found[0].1.hard_state.term.get()
        };
        assert_eq!((term(1), term(2)), (5, 2));
        // Stopped and started again, it goes on.
        let (_, failed) = settle(vec![of_term(1, next_life, 6)]);
        assert_eq!((failed, term(1)), (Vec::new(), 6));
    }

    #[test]
    fn what_a_replica_says_that_is_gone_ends_in_its_turn() {
        let Opened {
            desk,
            step,
            mut worker,
            ..
        } = opened(LaneOptions::default());
        let mut removal = of_term(1, 2, 1);
        removal.tombstone = true;
        let submissions = vec![of_term(1, 1, 1), removal, of_term(1, 3, 2)];
        desk.notice(LaneInput::Submit(submissions));
        for millis in 1..10 {
            worker.poll(Time(millis * 1_000_000));
        }
        let mut told = Vec::new();
        step.drain(&mut told);
        let mut ended = Vec::new();
        for input in told {
            match input {
                StepInput::Persisted(done) => ended.extend(done.iter().map(|done| done.sequence)),
                _ => panic!("nobody has failed"),
            }
        }
        assert_eq!(ended, [1, 2, 3]);
    }

    #[test]
    fn while_the_disk_works_step_workers_encode_the_next_batch() {
        let Opened {
            desk,
            step,
            mut worker,
            ..
        } = opened(LaneOptions {
            segment_size_bytes: 1 << 20,
            ..LaneOptions::default()
        });
        let before = worker.stats().lane;
        let submit = |group| {
            desk.notice(LaneInput::Submit(vec![submission(group)]));
            desk.encode_meanwhile();
        };
        submit(1);
        assert_eq!(worker.stats().lane.encoded, before.encoded, "the lane's");
        let at_disk = worker.begin(Time(0)).expect("it works");
        assert_eq!(worker.stats().lane.encoded, before.encoded + 1);
        // Write and sync of the first are not done yet.
        submit(2);
        submit(3);
        assert_eq!(worker.stats().lane.encoded, before.encoded + 3);
        worker.end(at_disk.wait());
        let mut now = Time(0);
        let mut done = Vec::new();
        while done.len() < 3 {
            now = now.plus_nanos(1_000_000);
            worker.poll(now);
            let mut told = Vec::new();
            step.drain(&mut told);
            for input in told {
                if let StepInput::Persisted(persisted) = input {
                    done.extend(persisted.iter().map(|done| done.sequence));
                }
            }
        }
        assert_eq!(done, [1, 2, 3]);
        let records = worker.stats().lane.records - before.records;
        assert_eq!(records, 2, "one record a batch");
    }

    fn append(group: u64, index: u64, bytes: usize) -> Submission {
        let mut submission = submission(group);
        let next = Index::new(index);
        let mut batch = BatchBuilder::new(submission.group, Term::new(1), next, bytes);
        batch.push(EntryKind::Command, 0, None, &vec![1; bytes]);
        submission.hard_state = None;
        submission.entries.extend(batch.finish());
        submission
    }

    /// A worker whose lane is full.
    struct Full {
        lane: Opened,
        now: Time,
    }

    impl Full {
        fn new() -> Self {
            let options = LaneOptions {
                segment_size_bytes: 256 << 10,
                ..LaneOptions::default()
            };
            let room = 2 * options.segment_size_bytes;
            let lane = opened(options);
            lane.disk.set_capacity(Some(lane.disk.used_bytes() + room));
            let mut full = Self { lane, now: Time(0) };
            full.submit([submission(1), submission(2)]);
            for next in 1..1_000 {
                full.submit([append(1, next, 10_000)]);
                if full.lane.reader.space().is_full() {
                    return full;
                }
            }
            panic!("it fills up");
        }

        fn submit(&mut self, submissions: impl Into<Vec<Submission>>) {
            self.lane.desk.notice(LaneInput::Submit(submissions.into()));
            self.run(10);
        }

        fn run(&mut self, millis: u64) {
            for _ in 0..millis {
                self.now = self.now.plus_nanos(1_000_000);
                self.lane.disk.set_now(self.now);
                self.lane.worker.poll(self.now);
            }
        }

        /// The first and the last durable entry.
        fn range(&self, group: u64) -> (u64, u64) {
            let (group, replica) = (submission(group).group, submission(group).replica);
            let range = self.lane.reader.range(group, replica);
            range.map_or((1, 0), |(first, last)| (first.get(), last.get()))
        }

        fn term(&self, group: u64) -> Term {
            let found = self.lane.reader.replicas_of(submission(group).group);
            found[0].1.hard_state.term
        }

        /// Appends to a group what has got its index when there was room still, until some waits.
        fn append_until_some_waits(&mut self, group: u64, bytes: usize) -> u64 {
            let mut next = self.range(group).1 + 1;
            while self.range(group).1 + 1 == next {
                self.submit([append(group, next, bytes)]);
                next += 1;
            }
            next
        }
    }

    #[test]
    fn entries_without_room_do_not_hold_up_the_compaction_that_makes_it() {
        let mut full = Full::new();
        let next = full.append_until_some_waits(1, 12_000);
        let last = next - 2;
        full.submit([append(1, next, 100_000)]);
        let mut compaction = submission(1);
        compaction.hard_state = None;
        compaction.compact_before = Some(Index::new(last));
        compaction.snapshots = Some(SnapshotsRecord {
            retained: vec![SnapshotRecord {
                id: EntryId::new(Term::new(1), Index::new(last)),
                membership: vec![7; 100].into(),
            }],
        });
        full.submit([compaction]);
        full.run(5_000);
        assert!(!full.lane.reader.space().is_full(), "it resumes by itself");
        assert_eq!(full.range(1), (last, next));
    }

    #[test]
    fn few_entries_without_room_do_not_hold_up_their_groups_vote() {
        let mut full = Full::new();
        full.append_until_some_waits(1, 12_000);
        let next = full.append_until_some_waits(2, 2_000);
        let mut vote = submission(2);
        vote.hard_state = Some(HardState {
            term: Term::new(2),
            ..HardState::default()
        });
        full.submit([vote]);
        full.run(1_000);
        assert_eq!(full.term(2), Term::new(2));
        assert_eq!(full.range(2).1, next - 1);
        assert!(full.lane.reader.space().is_full());
    }
}
