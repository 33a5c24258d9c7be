//! Submissions that take more than one record.

use raft_log::Submission;
use raft_proto::{HardState, Index, Term};

use crate::workload::{Driven, Rng, batch, disk, key, open, options};

fn append(rng: &mut Rng, group: u64, number: u64, first: u64, commit: u64) -> Submission {
    let mut submission = Submission::new(key(group).0, key(group).1, number);
    submission.entries = vec![batch(
        rng,
        key(group).0,
        Term::new(1),
        Index::new(first),
        60,
        20,
    )];
    submission.hard_state = Some(HardState {
        term: Term::new(1),
        vote: None,
        commit: Index::new(commit),
    });
    submission
}

/// A crash between the records of a large submission, behind one that was acknowledged.
#[test]
fn a_commit_index_that_was_acknowledged_does_not_fall_back_with_a_large_submission() {
    let disk = disk(1);
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut rng = Rng(1);
    driven.write(append(&mut rng, 1, 1, 1, 40));
    // While another's is on its way, two gather: the second takes several records.
    driven
        .lane
        .submit(append(&mut rng, 2, 1, 1, 0))
        .expect("taken");
    driven.lane.poll(driven.now);
    let mut small = Submission::new(key(1).0, key(1).1, 2);
    small.hard_state = Some(HardState {
        term: Term::new(1),
        vote: None,
        commit: Index::new(50),
    });
    driven.lane.submit(small).expect("taken");
    let mut large = append(&mut rng, 1, 3, 61, 60);
    let mut builder = raft_proto::BatchBuilder::new(key(1).0, Term::new(1), Index::new(121), 0);
    builder.push(raft_proto::EntryKind::Command, 0, None, &[7; 20_000]);
    large.entries.extend(builder.finish());
    let mut builder = raft_proto::BatchBuilder::new(key(1).0, Term::new(1), Index::new(122), 0);
    builder.push(raft_proto::EntryKind::Command, 0, None, &[8; 20_000]);
    large.entries.extend(builder.finish());
    driven.lane.submit(large).expect("taken");
    let (mut done, mut between) = (Vec::new(), 0);
    while done.len() < 3 {
        driven.step();
        for ended in driven.lane.take_completions() {
            ended.result.expect("it is durable");
            done.push((ended.group.get(), ended.submission));
        }
        let acknowledged = match done.last() {
            None | Some((2, _)) => 40,
            Some((_, 2)) => 50,
            Some(_) => 60,
        };
        let crashed = std::sync::Arc::new(disk.fork());
        crashed.crash();
        let (_, recovery) = open(&crashed, &options()).expect("it opens");
        assert_eq!(recovery.report.damaged, []);
        let state = &recovery.replicas[&key(1)];
        let commit = state.hard_state.commit.get();
        assert!(commit >= acknowledged, "{commit} of {acknowledged}");
        between += u64::from(commit == 50 && state.last.index > Index::new(60));
    }
    assert!(between > 0, "a crash between the large one's records");
}
