//! What the lane's thread takes from its inbox.

use std::collections::{BTreeMap, VecDeque};

use super::desk::Ended;
use super::inbox::OnDone;
use crate::error::LogError;
use crate::lane::Lane;
use crate::state::Submission;

/// What the lane's thread has taken and not completed.
#[derive(Default)]
pub(super) struct Intake {
    /// Number of the last submission that the lane took.
    ticket: u64,
    /// Of what the lane took: bytes and who is told.
    told_later: ToldLater,
    /// What never will be taken, its bytes, and why: told by the lane's thread.
    refused: Vec<(usize, OnDone, LogError)>,
}

impl Intake {
    /// Submits what is new. What was let in while there was room is not refused for want of it: that
    /// would leave a gap before those behind.
    pub(super) fn take(
        &mut self,
        lane: &mut Lane,
        new: impl Iterator<Item = (Submission, OnDone)>,
    ) {
        for (submission, on_done) in new {
            let bytes = submission.bytes();
            let numbered = Submission {
                submission: self.ticket + 1,
                ..submission
            };
            match lane.submit_admitted(numbered) {
                Ok(()) => {
                    self.ticket += 1;
                    self.told_later.push(self.ticket, bytes, on_done);
                }
                Err(error) => self.refused.push((bytes, on_done, error)),
            }
        }
    }

    /// Adds what has ended to `ended`, each with who is told of it. Returns the bytes of it all.
    pub(super) fn take_ended(&mut self, lane: &mut Lane, ended: &mut Vec<Ended>) -> usize {
        let mut sum = 0;
        for completion in lane.take_completions() {
            let told = self.told_later.take(completion.submission);
            let (bytes, on_done) = told.expect("what the lane took ends once");
            sum += bytes;
            ended.push((on_done, completion.result));
        }
        for (bytes, on_done, error) in self.refused.drain(..) {
            sum += bytes;
            ended.push((on_done, Err(error)));
        }
        sum
    }

    /// Takes all who were not told yet.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = OnDone> {
        std::mem::take(&mut self.told_later).into_all()
    }
}

/// Who is told of what the lane took, by the number of the submission: what a full disk keeps
/// waiting is passed by others, so that completions do not come in the order of submission.
#[derive(Default)]
struct ToldLater {
    /// In order, with their bytes.
    next: VecDeque<(u64, usize, OnDone)>,
    /// Those that others have passed.
    passed: BTreeMap<u64, (usize, OnDone)>,
}

impl ToldLater {
    fn push(&mut self, number: u64, bytes: usize, on_done: OnDone) {
        self.next.push_back((number, bytes, on_done));
    }

    /// Takes the one who is told of submission `number`, and its bytes.
    fn take(&mut self, number: u64) -> Option<(usize, OnDone)> {
        while self.next.front().is_some_and(|next| next.0 <= number) {
            let (front, bytes, on_done) = self.next.pop_front()?;
            if front == number {
                return Some((bytes, on_done));
            }
            self.passed.insert(front, (bytes, on_done));
        }
        self.passed.remove(&number)
    }

    /// All who were not told, in the order of submission.
    fn into_all(self) -> impl Iterator<Item = OnDone> {
        let passed = self.passed.into_values().map(|(_, on_done)| on_done);
        passed.chain(self.next.into_iter().map(|(_, _, on_done)| on_done))
    }
}

#[cfg(all(test, feature = "sim", not(loom)))]
mod tests {
    use super::*;
    use std::path::Path;
    use std::sync::Arc;

    use crate::config::LaneOptions;
    use crate::thread::inbox::Caller;
    use crate::vfs::{SimVfs, Vfs};
    use raft_proto::{BatchBuilder, EntryKind, GroupId, HardState, Index, ReplicaId, Term, Time};

    fn submission(group: u64, first: u64, size: usize) -> Submission {
        let group = GroupId::new(group).expect("not 0");
        let mut batch = BatchBuilder::new(group, Term::new(1), Index::new(first), 0);
        batch.push(EntryKind::Command, 0, None, &vec![1; size]);
        let replica = ReplicaId::new(1).expect("not 0");
        let mut submission = Submission::new(group, replica, 0);
        submission.entries.extend(batch.finish());
        submission
    }

    fn nobody() -> OnDone {
        OnDone::Call(Caller::new(Box::new(|_| ())))
    }

    /// A lane on a disk that has become full, driven in simulated time.
    struct Full {
        disk: Arc<SimVfs>,
        lane: Lane,
        intake: Intake,
        now: Time,
        /// The entry of group 1 that has no room.
        first: u64,
    }

    impl Full {
        fn new() -> Self {
            let disk = Arc::new(SimVfs::new(1));
            let path = Path::new("/data");
            disk.create_dir_all(path).expect("an empty disk");
            let options = LaneOptions {
                segment_size_bytes: 64 << 10,
                record_bytes_max: 32 << 10,
                ..LaneOptions::default()
            };
            let room = 2 * options.segment_size_bytes;
            let vfs: Arc<dyn Vfs> = Arc::<SimVfs>::clone(&disk);
            let (lane, _) = Lane::open(vfs, path, options).expect("it opens");
            disk.set_capacity(Some(disk.used_bytes() + room));
            let mut full = Self {
                intake: Intake::default(),
                disk,
                lane,
                now: Time(0),
                first: 0,
            };
            let mut number = 0;
            loop {
                full.first += 1;
                number += 1;
                assert!(number < 1_000, "it fills up");
                let append = Submission {
                    submission: number,
                    ..submission(1, full.first, 6_000)
                };
                match full.lane.submit(append) {
                    Ok(()) => full.run(10),
                    Err(LogError::StorageFull) => break,
                    Err(error) => panic!("{error}"),
                }
            }
            full.run(1_000);
            full.lane.take_completions();
            full
        }

        fn take(&mut self, new: impl IntoIterator<Item = Submission>) {
            let new = new.into_iter().map(|new| (new, nobody()));
            self.intake.take(&mut self.lane, new);
            assert!(self.intake.refused.is_empty());
        }

        fn run(&mut self, millis: u64) {
            for _ in 0..millis {
                self.now = self.now.plus_nanos(1_000_000);
                self.disk.set_now(self.now);
                self.lane.poll(self.now);
            }
        }

        /// Whose submissions have become durable since.
        fn done(&mut self) -> Vec<u64> {
            let done = self.lane.take_completions().into_iter();
            let groups = done.map(|done| {
                done.result.expect("it is durable");
                done.group.get()
            });
            let mut groups: Vec<u64> = groups.collect();
            groups.sort_unstable();
            groups
        }
    }

    fn vote(group: u64) -> Submission {
        let mut vote = submission(group, 1, 1);
        vote.entries.clear();
        vote.hard_state = Some(HardState {
            term: Term::new(2),
            ..HardState::default()
        });
        vote
    }

    #[test]
    fn what_was_let_in_before_the_disk_was_full_waits_and_holds_up_no_vote() {
        let mut full = Full::new();
        let first = full.first;
        let large = submission(1, first, 6_000);
        let next = submission(1, first + 1, 10);
        full.take([large, next, vote(1), vote(2), submission(3, 1, 10), vote(3)]);
        full.run(5_000);
        assert_eq!(full.done(), [2, 3, 3], "with few entries, or without");
        full.disk.set_capacity(None);
        full.run(5_000);
        assert_eq!(full.done(), [1, 1, 1]);
    }

    /// It is what makes room for what waits.
    #[test]
    fn a_compaction_behind_what_was_let_in_before_the_disk_was_full_goes_on() {
        let mut full = Full::new();
        let first = full.first;
        let mut compact = vote(1);
        compact.hard_state = None;
        compact.compact_before = Some(Index::new(first));
        full.take([submission(1, first, 6_000), compact]);
        full.run(5_000);
        assert_eq!(full.done(), [1, 1]);
        let (group, replica) = (submission(1, 1, 1).group, submission(1, 1, 1).replica);
        let range = full.lane.reader().range(group, replica);
        assert_eq!(range, Some((Index::new(first), Index::new(first))));
        assert!(!full.lane.stats().is_full, "it resumes by itself");
    }
}
