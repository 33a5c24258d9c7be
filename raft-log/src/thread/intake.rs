//! What the lane's thread takes from its inbox, and what it must hold back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::desk::Ended;
use super::inbox::OnDone;
use crate::error::LogError;
use crate::lane::Lane;
use crate::read::LaneSpace;
use crate::state::Submission;

/// What the lane's thread has taken and not completed.
pub(super) struct Intake {
    space: LaneSpace,
    /// Number of the last submission that the lane took.
    ticket: u64,
    /// Of what the lane took: bytes and who is told.
    told_later: ToldLater,
    /// What found no room, in order: entries taken while there was some, and whatever their groups
    /// submitted after them. To refuse them would leave a gap before those behind.
    held: VecDeque<(Submission, OnDone)>,
    /// What never will be taken, its bytes, and why: told by the lane's thread.
    refused: Vec<(usize, OnDone, LogError)>,
}

impl Intake {
    pub(super) fn new(lane: &Lane) -> Self {
        Self {
            space: lane.reader().space(),
            ticket: 0,
            told_later: ToldLater::default(),
            held: VecDeque::new(),
            refused: Vec::new(),
        }
    }

    /// Submits what was held back, then what is new.
    pub(super) fn take(
        &mut self,
        lane: &mut Lane,
        new: impl Iterator<Item = (Submission, OnDone)>,
    ) {
        let held = std::mem::take(&mut self.held);
        let mut held_groups = BTreeSet::new();
        for (submission, on_done) in held.into_iter().chain(new) {
            let group = submission.group;
            if held_groups.contains(&group) {
                self.held.push_back((submission, on_done));
                continue;
            }
            let bytes = submission.bytes();
            // Only a full lane refuses for lack of room, and whether it is full changes in its own
            // poll alone.
            let spare = self.space.is_full().then(|| submission.clone());
            let numbered = Submission {
                submission: self.ticket + 1,
                ..submission
            };
            match (lane.submit(numbered), spare) {
                (Ok(()), _) => {
                    self.ticket += 1;
                    self.told_later.push(self.ticket, bytes, on_done);
                }
                (Err(LogError::StorageFull), Some(spare)) => {
                    held_groups.insert(group);
                    self.held.push_back((spare, on_done));
                }
                (Err(error), _) => self.refused.push((bytes, on_done, error)),
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
        let told_later = std::mem::take(&mut self.told_later).into_all();
        let held = std::mem::take(&mut self.held).into_iter();
        told_later.chain(held.map(|(_, on_done)| on_done))
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
        OnDone::Call(Caller::new(Box::new(|result| {
            result.expect("nothing is refused");
        })))
    }

    #[test]
    fn what_finds_no_room_is_held_with_all_that_its_group_submitted_behind_it() {
        let disk = Arc::new(SimVfs::new(1));
        let path = Path::new("/data");
        disk.create_dir_all(path).expect("an empty disk");
        let options = LaneOptions {
            segment_size_bytes: 64 << 10,
            record_bytes_max: 32 << 10,
            ..LaneOptions::default()
        };
        let vfs: Arc<dyn Vfs> = Arc::<SimVfs>::clone(&disk);
        let (mut lane, _) = Lane::open(vfs, path, options).expect("it opens");
        let mut intake = Intake::new(&lane);
        let mut now = Time(0);
        let mut run = |lane: &mut Lane, span: u64| {
            for _ in 0..100 {
                now = now.plus_nanos(span / 100);
                disk.set_now(now);
                lane.poll(now);
            }
        };
        disk.set_capacity(Some(disk.used_bytes()));
        let mut first = 1;
        while intake.held.is_empty() {
            assert!(first < 1_000, "it fills up");
            let new = (submission(1, first, 6_000), nobody());
            intake.take(&mut lane, std::iter::once(new));
            run(&mut lane, 10_000_000);
            first += 1;
        }
        let taken = intake.ticket;
        let mut vote = submission(1, 1, 1);
        vote.entries.clear();
        vote.hard_state = Some(HardState::default());
        let other = Submission {
            group: GroupId::new(2).expect("not 0"),
            ..vote.clone()
        };
        let small = submission(1, first, 1);
        let new = [small, vote, other].map(|new| (new, nobody()));
        intake.take(&mut lane, new.into_iter());
        assert_eq!(intake.held.len(), 3, "all of group 1, in order");
        assert_eq!(intake.ticket, taken + 1, "the other group goes on");
        disk.set_capacity(None);
        run(&mut lane, 5_000_000_000);
        assert!(!intake.space.is_full());
        intake.take(&mut lane, std::iter::empty());
        assert!(intake.refused.is_empty());
        assert!(intake.held.is_empty());
        run(&mut lane, 1_000_000_000);
        let done = lane.take_completions();
        assert_eq!(u64::try_from(done.len()), Ok(intake.ticket));
        assert!(done.iter().all(|done| done.result.is_ok()));
        let (group, replica) = (done[0].group, done[0].replica);
        let range = lane.reader().range(group, replica);
        assert_eq!(range, Some((Index::new(1), Index::new(first))));
    }
}
