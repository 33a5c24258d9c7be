//! Many lives of one log against a map: random operations, crashes and errors.

use std::io::ErrorKind;

use raft_log::vfs::Fault;
use raft_log::{LaneOptions, LogError};

use crate::record;
use crate::workload::{Driven, Model, Rng, Workload, agrees, disk, open, options, seen_all};

#[test]
fn fault_29_many_lives_lose_nothing_acknowledged() {
    const SEEDS: u64 = 300;
    let (mut lives, mut moved_bytes) = (0, 0);
    for seed in 0..SEEDS {
        let (own, moved) = live(seed);
        lives += own;
        moved_bytes += moved;
    }
    assert!(
        moved_bytes > 100_000,
        "laggards are moved: {moved_bytes} bytes"
    );
    record("log lives against a map", "seeds", SEEDS);
    assert!(lives > SEEDS * 4, "{lives} lives");
}

/// The lives of one log: how many there were, and how many bytes of laggards were moved in them.
fn live(seed: u64) -> (u64, u64) {
    let mut rng = Rng(seed);
    let options = LaneOptions {
        collect_bytes_max: 4 << 10,
        spare_segments: 1 + usize::try_from(seed % 3).expect("small"),
        verify_all: seed.is_multiple_of(2),
        tail_cache_bytes_max: [0, 16 << 10, 1 << 20][usize::try_from(seed / 3 % 3).expect("small")],
        ..options()
    };
    let disk = disk(seed);
    let mut model = Model::default();
    let (mut lives, mut moved_bytes) = (0, 0);
    let has_laggard = seed % 4 == 1;
    for life in 0..8 {
        let what = format!("seed {seed} life {life}");
        let Some((mut driven, recovery)) = opened(&disk, &options, &mut rng) else {
            // An open that failed is done again.
            disk.crash();
            continue;
        };
        lives += 1;
        assert!(recovery.report.damaged.is_empty(), "{what}: {recovery:?}");
        let found = seen_all(&driven.lane, &recovery).expect("it reads");
        assert!(agrees(&found, &model), "{what}: {found:#?}\nnot {model:#?}");
        let payload_max = [30, 500, 5_000][usize::try_from(rng.below(3)).expect("small")];
        let payload_max = if has_laggard { 5_000 } else { payload_max };
        let mut workload = Workload::new(rng.next(), 4, payload_max);
        workload.has_laggard = has_laggard;
        workload.resume(found);
        let mut models = vec![workload.model.clone()];
        let mut acknowledged = 0;
        if rng.one_in(3) {
            let call = disk.calls() + 1 + rng.below(150);
            disk.fault_at(call, Fault::Error(ErrorKind::Other));
        }
        let mut count = 0;
        let rounds = if has_laggard { 90 } else { 40 };
        'life: for _ in 0..rng.below(rounds) {
            for _ in 0..1 + rng.below(3) {
                let submission = workload.draw();
                models.push(workload.model.clone());
                match driven.lane.submit(submission) {
                    Ok(()) => {}
                    Err(LogError::Latched(_)) => break 'life,
                    Err(error) => panic!("{what}: {error}"),
                }
            }
            for _ in 0..rng.below(12) {
                driven.step();
                for done in driven.lane.take_completions() {
                    count += usize::from(done.result.is_ok());
                }
            }
            // Completions come in the order of submission, over all replicas.
            acknowledged = count;
            if rng.one_in(8) {
                count += driven
                    .settle()
                    .iter()
                    .filter(|done| done.result.is_ok())
                    .count();
                acknowledged = count;
                if count == models.len() - 1 {
                    check_live(&driven, &models[count], &what);
                }
            }
        }
        moved_bytes += driven.lane.stats().moved_bytes;
        let is_clean = rng.one_in(4);
        if is_clean && driven.lane.close().is_ok() {
            acknowledged = models.len() - 1;
        }
        disk.fault_at(u64::MAX, Fault::Short);
        disk.crash();
        let (lane, recovery) = open(&disk, &options).expect("it opens");
        let found = seen_all(&lane, &recovery).expect("it reads");
        let at = (acknowledged..models.len()).find(|&at| agrees(&found, &models[at]));
        let at = at.unwrap_or_else(|| panic!("{what}: {acknowledged} acknowledged: {found:#?}"));
        model = models[at].clone();
        drop(lane);
        disk.crash();
    }
    (lives, moved_bytes)
}

/// What is durable is read as it was written, from the cache of the tail or from the disk.
fn check_live(driven: &Driven, model: &Model, what: &str) {
    let reader = driven.lane.reader();
    for (key, replica) in &model.replicas {
        let mut found = Vec::new();
        let ends = replica
            .entries
            .keys()
            .next()
            .zip(replica.entries.keys().next_back());
        if let Some((&first, &last)) = ends {
            let mut next = first;
            while next <= last {
                let batches = reader.entries(key.0, key.1, next, last, 3_000);
                let batches = match batches {
                    // The call that was to fail.
                    Err(LogError::Io(_)) => return,
                    batches => batches.unwrap_or_else(|error| panic!("{what}: {error}")),
                };
                for entry in batches.iter().flatten() {
                    found.push((entry.index(), entry.term(), entry.payload().to_vec()));
                    next = entry.index().next();
                }
            }
        }
        let want = replica.entries.iter();
        let want = want.map(|(index, (term, payload))| (*index, *term, payload.to_vec()));
        assert!(found == want.collect::<Vec<_>>(), "{what}: {key:?}");
    }
}

fn opened(
    disk: &std::sync::Arc<raft_log::vfs::SimVfs>,
    options: &LaneOptions,
    rng: &mut Rng,
) -> Option<(Driven, raft_log::Recovery)> {
    if rng.one_in(4) {
        let call = disk.calls() + 1 + rng.below(30);
        disk.fault_at(call, Fault::Error(ErrorKind::Other));
    }
    let opened = open(disk, options).ok();
    disk.fault_at(u64::MAX, Fault::Short);
    let (lane, recovery) = opened?;
    let driven = Driven {
        vfs: std::sync::Arc::clone(disk),
        lane,
        now: raft_proto::Time(0),
    };
    Some((driven, recovery))
}
