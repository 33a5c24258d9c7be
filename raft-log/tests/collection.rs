//! What the log moves by itself is paid for by what was appended.

use std::path::Path;
use std::sync::Arc;

use raft_log::vfs::{SimVfs, Vfs};
use raft_log::{Lane, LaneOptions, Progress, Submission};
use raft_proto::{BatchBuilder, EntryKind, GroupId, Index, ReplicaId, Term, Time};

const GROUPS: u64 = 16;

/// One small entry at a time, each in a record of its own, a pause behind each, nothing compacted:
/// headers and footers outweigh the entries, and there is nothing to be won but those, once.
#[test]
fn small_records_that_stay_are_not_moved_again_and_again() {
    let vfs = Arc::new(SimVfs::new(1));
    vfs.create_dir_all("/data".as_ref()).expect("it is made");
    vfs.sync_dir("/".as_ref()).expect("it syncs");
    let options = LaneOptions {
        segment_size_bytes: 64 << 10,
        record_bytes_max: 16 << 10,
        ..LaneOptions::default()
    };
    let shared: Arc<dyn Vfs> = Arc::<SimVfs>::clone(&vfs);
    let (mut lane, _) = Lane::open(shared, Path::new("/data"), options).expect("it opens");
    let mut now = Time(0);
    for n in 0..6_000 {
        let submission = append(n % GROUPS + 1, n / GROUPS + 1);
        lane.submit(submission).expect("it is taken");
        // Longer than a burst lasts.
        let end = now.plus_nanos(200_000_000);
        while now < end {
            if let Progress::Idle { until } = lane.poll(now) {
                let next = [until, vfs.next_completion_time(), Some(end)];
                let next = next.into_iter().flatten().min().unwrap_or(end);
                now = Time(now.0 + 1).max(next).min(end);
                vfs.set_now(now);
            }
        }
        for done in lane.take_completions() {
            done.result.expect("it is durable");
        }
    }
    let stats = lane.stats();
    let (moved, written) = (stats.moved_bytes, stats.written_bytes);
    assert!(moved > 0, "the headers of old segments are won back");
    assert!(2 * moved <= written, "{moved} of {written} bytes moved");
}

fn append(group: u64, index: u64) -> Submission {
    let id = GroupId::new(group).expect("not 0");
    let mut submission = Submission::new(id, ReplicaId::new(1).expect("not 0"), index);
    let mut batch = BatchBuilder::new(id, Term::new(1), Index::new(index), 0);
    batch.push(EntryKind::Command, 1, None, &[7; 40]);
    submission.entries = vec![batch.finish().expect("one entry")];
    submission
}
