//! A reader beside the lane, in every interleaving of their locks: what it sees is durable, and
//! what it reads is what was written, whatever becomes of the segment meanwhile.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p raft-log --release --lib
//! ```

use std::path::Path;
use std::sync::Arc;

use raft_proto::{Batch, BatchBuilder, EntryKind, GroupId, Index, ReplicaId, Term, Time};

use super::{Lane, Progress};
use crate::config::LaneOptions;
use crate::error::LogError;
use crate::read::LogReader;
use crate::state::Submission;
use crate::vfs::{SimVfs, Vfs};

const DATA: &str = "/data";

fn key() -> (GroupId, ReplicaId) {
    let (group, replica) = (GroupId::new(1), ReplicaId::new(1));
    (group.expect("not 0"), replica.expect("not 0"))
}

fn options() -> LaneOptions {
    LaneOptions {
        segment_size_bytes: 64 << 10,
        record_bytes_max: 32 << 10,
        tail_cache_bytes_max: 0,
        ..LaneOptions::default()
    }
}

fn entry(index: u64, bytes: usize) -> Batch {
    let mut builder = BatchBuilder::new(key().0, Term::new(1), Index::new(index), bytes);
    builder.push(EntryKind::Command, 0, None, &vec![7; bytes]);
    builder.finish().expect("one entry")
}

fn append(index: u64, bytes: usize) -> Submission {
    let mut submission = Submission::new(key().0, key().1, index);
    submission.entries = vec![entry(index, bytes)];
    submission
}

struct Driven {
    vfs: Arc<SimVfs>,
    lane: Lane,
    now: Time,
}

impl Driven {
    fn open(vfs: &Arc<SimVfs>) -> Self {
        let shared: Arc<dyn Vfs> = Arc::<SimVfs>::clone(vfs);
        let (lane, _) = Lane::open(shared, Path::new(DATA), options()).expect("it opens");
        Self {
            vfs: Arc::clone(vfs),
            lane,
            now: Time(0),
        }
    }

    fn pass(&mut self, nanos: u64) {
        let end = self.now.plus_nanos(nanos);
        while self.now < end {
            if let Progress::Idle { until } = self.lane.poll(self.now) {
                let next = [until, self.vfs.next_completion_time(), Some(end)];
                let next = next.into_iter().flatten().min().unwrap_or(end);
                self.now = Time(self.now.0 + 1).max(next).min(end);
                self.vfs.set_now(self.now);
            }
        }
    }

    fn write(&mut self, submission: Submission) {
        self.lane.submit(submission).expect("it is taken");
        self.pass(1_000_000);
        let done = self.lane.take_completions().pop().expect("it is done");
        done.result.expect("it is durable");
    }
}

fn disk() -> Arc<SimVfs> {
    let vfs = SimVfs::new(1);
    vfs.create_dir_all(DATA.as_ref()).expect("an empty disk");
    vfs.sync_dir("/".as_ref()).expect("it syncs");
    Arc::new(vfs)
}

fn read(reader: &LogReader, index: u64) -> Result<Batch, LogError> {
    let at = Index::new(index);
    let mut batches = reader.entries(key().0, key().1, at, at, usize::MAX)?;
    Ok(batches.remove(0))
}

fn model(preemptions: usize, body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 100_000;
    builder.check(body);
}

#[test]
fn a_reader_sees_only_what_is_durable() {
    model(3, || {
        let vfs = disk();
        let mut driven = Driven::open(&vfs);
        let reader = driven.lane.reader();
        let beside = loom::thread::spawn(move || {
            if read(&reader, 1).is_err() {
                return;
            }
            // Seen: then it survives the loss of all that is not synced.
            let after = Arc::new(vfs.fork());
            after.crash_keeping(|_| false);
            let again = Driven::open(&after);
            let found = read(&again.lane.reader(), 1).expect("it is durable");
            assert_eq!(found.bytes(), entry(1, 100).bytes());
        });
        driven.write(append(1, 100));
        beside.join().expect("no panic");
    });
}

#[test]
fn a_reader_beside_release_and_recycling_reads_the_old_or_nothing() {
    model(2, || {
        let vfs = disk();
        let mut driven = Driven::open(&vfs);
        for index in 1..=3 {
            driven.write(append(index, 25_000));
        }
        let reader = driven.lane.reader();
        let beside = loom::thread::spawn(move || match read(&reader, 1) {
            Ok(found) => assert_eq!(found.bytes(), entry(1, 25_000).bytes()),
            Err(LogError::NotFound { .. }) => {}
            Err(error) => panic!("{error}"),
        });
        let mut submission = Submission::new(key().0, key().1, 4);
        submission.compact_before = Some(Index::new(4));
        driven.write(submission);
        // The burst ends: the first segment is released and gets its second life.
        driven.pass(300_000_000);
        beside.join().expect("no panic");
        assert_eq!(driven.lane.stats().live_segments, 1);
    });
}
