//! TiKV's `raft-engine` crate: a log of 64 groups, sync on.
//!
//! `raft_engine write DIR default|recycle SUBMITTERS BATCH PAYLOAD_BYTES SECONDS` prints
//! `ENTRIES_PER_S P50_US P99_US`; each submitter writes a batch of one group and waits for its sync.
//! `raft_engine fill DIR default|recycle BYTES PAYLOAD_BYTES` fills a log.
//! `raft_engine open DIR default|recycle` prints the milliseconds that opening it took.
//! Payloads are random: compression gains nothing.

use std::error::Error;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use raft::eraftpb::Entry;
use raft_engine::{Config, Engine, LogBatch, MessageExt, ReadableSize};

const GROUPS: u64 = 64;
/// What is prefilled, which the crate makes half as much again: more than a short run writes. At
/// its default it would fill 15 GiB before the first append.
const PREFILL_MIB: u64 = 384;

#[derive(Clone)]
struct Typed;

impl MessageExt for Typed {
    type Entry = Entry;

    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["write", dir, mode, submitters, batch, payload, seconds] => write(
            &open(dir, mode)?,
            submitters.parse()?,
            batch.parse()?,
            payload.parse()?,
            Duration::from_secs_f64(seconds.parse()?),
        ),
        ["fill", dir, mode, bytes, payload] => {
            fill(&open(dir, mode)?, bytes.parse()?, payload.parse()?)
        }
        ["open", dir, mode] => {
            let begin = Instant::now();
            let engine = open(dir, mode)?;
            let elapsed = begin.elapsed();
            assert!(engine.last_index(1).is_some(), "an empty log");
            println!("{:.3}", elapsed.as_secs_f64() * 1e3);
            Ok(())
        }
        _ => Err("usage: raft_engine write|fill|open DIR default|recycle ...".into()),
    }
}

fn open(dir: &str, mode: &str) -> Result<Engine, Box<dyn Error>> {
    let is_recycling = mode == "recycle";
    let config = Config {
        dir: Path::new(dir).display().to_string(),
        enable_log_recycle: is_recycling,
        prefill_for_recycle: is_recycling,
        prefill_limit: is_recycling.then(|| ReadableSize::mb(PREFILL_MIB)),
        ..Config::default()
    };
    Ok(Engine::open(config)?)
}

/// SplitMix64: bytes that do not compress.
fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bytes.extend_from_slice(&(z ^ (z >> 31)).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn entries(first: u64, count: u64, payload: usize) -> Vec<Entry> {
    (first..first + count)
        .map(|index| Entry {
            index,
            term: 1,
            data: random(index, payload).into(),
            ..Entry::default()
        })
        .collect()
}

fn write(
    engine: &Engine,
    submitters: u64,
    batch: u64,
    payload: usize,
    span: Duration,
) -> Result<(), Box<dyn Error>> {
    let is_counting = AtomicBool::new(false);
    let is_over = AtomicBool::new(false);
    let latencies = std::thread::scope(|scope| -> Result<Vec<u64>, String> {
        let threads: Vec<_> = (0..submitters)
            .map(|at| {
                let (is_counting, is_over) = (&is_counting, &is_over);
                scope.spawn(move || {
                    submit(engine, at, submitters, batch, payload, is_counting, is_over)
                })
            })
            .collect();
        std::thread::sleep(span / 2);
        is_counting.store(true, Ordering::Relaxed);
        std::thread::sleep(span);
        is_counting.store(false, Ordering::Relaxed);
        is_over.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for thread in threads {
            all.extend(thread.join().map_err(|_| "a submitter panicked")??);
        }
        Ok(all)
    })?;
    let mut micros = latencies;
    micros.sort_unstable();
    let at = |percent: usize| {
        micros
            .get(micros.len() * percent / 100)
            .copied()
            .unwrap_or(0)
    };
    let per_second = micros.len() as f64 * batch as f64 / span.as_secs_f64();
    println!("{per_second:.0} {} {}", at(50), at(99));
    Ok(())
}

/// Writes batches of its own groups in turn and returns each one's microseconds.
fn submit(
    engine: &Engine,
    at: u64,
    submitters: u64,
    batch: u64,
    payload: usize,
    is_counting: &AtomicBool,
    is_over: &AtomicBool,
) -> Result<Vec<u64>, String> {
    let groups: Vec<u64> = (1..=GROUPS)
        .filter(|group| group % submitters == at)
        .collect();
    let mut next = vec![1; groups.len()];
    let mut micros = Vec::new();
    // The bytes are made before the clock starts; only the indexes differ.
    let mut template = entries(1, batch, payload);
    let mut log_batch = LogBatch::default();
    while !is_over.load(Ordering::Relaxed) {
        for (group, next) in groups.iter().zip(&mut next) {
            for (entry, index) in template.iter_mut().zip(*next..) {
                entry.index = index;
            }
            *next += batch;
            let begin = Instant::now();
            log_batch
                .add_entries::<Typed>(*group, &template)
                .and_then(|()| engine.write(&mut log_batch, true).map(drop))
                .map_err(|error| error.to_string())?;
            if is_counting.load(Ordering::Relaxed) {
                micros.push(u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX));
            }
        }
    }
    Ok(micros)
}

fn fill(engine: &Engine, bytes: u64, payload: usize) -> Result<(), Box<dyn Error>> {
    let per_group = bytes / GROUPS / u64::try_from(payload)?;
    let mut next = 1;
    while next <= per_group {
        let mut log_batch = LogBatch::default();
        let count = 64.min(per_group + 1 - next);
        for group in 1..=GROUPS {
            log_batch.add_entries::<Typed>(group, &entries(next, count, payload))?;
        }
        engine.write(&mut log_batch, false)?;
        next += count;
    }
    engine.sync()?;
    Ok(())
}
