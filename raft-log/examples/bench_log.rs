//! Measures the log for `cargo xtask bench log`: 64 groups, sync on, bytes that do not compress.
//!
//! `bench_log write DIR SUBMITTERS BATCH PAYLOAD_BYTES SECONDS`: each submitter appends a batch to
//! one of its groups, and the next in the callback that says that it is durable. One submitter drives
//! the lane inline.
//! `bench_log write-blocking ...`: each submitter is a thread that waits in `LaneThread::append`.
//! Groups are compacted as they go, so that segments are recycled.
//! `bench_log fill DIR BYTES PAYLOAD_BYTES` fills a log; `bench_log open DIR` opens and reads it.
#![expect(
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "prints figures"
)]

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use raft_log::vfs::StdVfs;
use raft_log::{Lane, LaneOptions, LaneThread, Progress, Submission};
use raft_proto::{BatchBuilder, EntryKind, GroupId, Index, ReplicaId, Term, Time};

const GROUPS: u64 = 64;
/// Bytes a group keeps.
const KEEP_BYTES: u64 = 256 << 10;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        [
            form @ ("write" | "write-blocking"),
            dir,
            submitters,
            batch,
            payload,
            seconds,
        ] => {
            let shape = Shape {
                submitters: submitters.parse()?,
                batch: batch.parse()?,
                payload: payload.parse()?,
            };
            let span = Duration::from_secs_f64(seconds.parse()?);
            write(dir, shape, span, form == "write-blocking")
        }
        ["fill", dir, bytes, payload] => fill(dir, bytes.parse()?, payload.parse()?),
        ["open", dir] => open(dir),
        _ => Err("usage: bench_log write|fill|open DIR ...".into()),
    }
}

#[derive(Clone, Copy)]
struct Shape {
    submitters: u64,
    batch: u64,
    payload: usize,
}

/// One group's entries, made anew for each append: only the indexes differ.
struct Source {
    group: GroupId,
    replica: ReplicaId,
    next: u64,
    kept: u64,
    appended: u64,
}

impl Source {
    fn new(group: u64, shape: Shape) -> Outcome<Self> {
        let frame = 32 + u64::try_from(shape.payload)?;
        Ok(Self {
            group: GroupId::new(group).ok_or("a group is not 0")?,
            replica: ReplicaId::new(1).ok_or("a replica is not 0")?,
            next: 1,
            kept: (KEEP_BYTES / frame).max(shape.batch),
            appended: 0,
        })
    }

    fn draw(&mut self, shape: Shape, payloads: &[Vec<u8>]) -> Outcome<Submission> {
        let count = usize::try_from(shape.batch)?;
        let bytes = count * BatchBuilder::frame_bytes(shape.payload, false);
        let first = Index::new(self.next);
        let mut builder = BatchBuilder::new(self.group, Term::new(1), first, bytes);
        for payload in payloads {
            builder.push(EntryKind::Command, 1, None, payload);
        }
        let batch = builder.finish().ok_or("a batch is not empty")?;
        self.next += shape.batch;
        self.appended += shape.batch;
        let mut submission = Submission::new(self.group, self.replica, self.next);
        submission.entries.push(batch);
        if self.appended > self.kept {
            self.appended = 0;
            submission.compact_before =
                Some(Index::new(self.next.saturating_sub(self.kept).max(1)));
        }
        Ok(submission)
    }
}

fn write(dir: &str, shape: Shape, span: Duration, is_blocking: bool) -> Outcome<()> {
    let vfs = Arc::new(StdVfs::new());
    let options = LaneOptions::default();
    let counted = Counted::default();
    let (micros, syncs) = if shape.submitters == 1 && !is_blocking {
        let (lane, _) = Lane::open(vfs, Path::new(dir), options)?;
        inline(lane, shape, span, &counted)?
    } else {
        let (lane, _) = LaneThread::open(vfs, Path::new(dir), options)?;
        threads(lane, shape, span, &counted, is_blocking)?
    };
    let mut micros = micros;
    micros.sort_unstable();
    let at = |percent: usize| {
        let at = micros.len() * percent / 100;
        micros.get(at).copied().unwrap_or_default()
    };
    let entries = micros.len() as f64 * shape.batch as f64;
    let seconds = span.as_secs_f64();
    let cpu_us = counted.cpu_us.load(Ordering::Relaxed) as f64;
    println!(
        "{{\"entries_per_s\":{:.0},\"syncs_per_s\":{:.0},\"p50_us\":{},\"p99_us\":{},\"cpu_us_per_entry\":{:.3}}}",
        entries / seconds,
        syncs as f64 / seconds,
        at(50),
        at(99),
        cpu_us / entries.max(1.0),
    );
    Ok(())
}

/// What is counted between two moments.
#[derive(Default)]
struct Counted {
    cpu_us: AtomicU64,
}

impl Counted {
    fn begin(&self) -> Outcome<()> {
        self.cpu_us.store(cpu_us()?, Ordering::Relaxed);
        Ok(())
    }

    fn end(&self) -> Outcome<()> {
        let begin = self.cpu_us.load(Ordering::Relaxed);
        self.cpu_us
            .store(cpu_us()?.saturating_sub(begin), Ordering::Relaxed);
        Ok(())
    }
}

/// Microseconds of processor time that the threads alive now have used.
fn cpu_us() -> Outcome<u64> {
    let mut nanos = 0;
    for task in std::fs::read_dir("/proc/self/task")? {
        let stat = std::fs::read_to_string(task?.path().join("schedstat"))?;
        let on_cpu = stat.split_whitespace().next().ok_or("no fields")?;
        nanos += on_cpu.parse::<u64>()?;
    }
    Ok(nanos / 1_000)
}

fn inline(
    mut lane: Lane,
    shape: Shape,
    span: Duration,
    counted: &Counted,
) -> Outcome<(Vec<u64>, u64)> {
    let mut sources: Vec<Source> = (1..=GROUPS)
        .map(|group| Source::new(group, shape))
        .collect::<Outcome<_>>()?;
    let payloads = payloads(shape);
    let mut micros = Vec::with_capacity(1 << 20);
    let mut syncs = None;
    let origin = Instant::now();
    let clock = || Time(u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX));
    loop {
        for source in &mut sources {
            let begin = Instant::now();
            let since = begin - origin;
            if since >= span / 2 && syncs.is_none() {
                syncs = Some(lane.stats().fdatasyncs);
                counted.begin()?;
            }
            if since >= span / 2 + span {
                counted.end()?;
                let syncs = lane.stats().fdatasyncs - syncs.unwrap_or_default();
                lane.close()?;
                return Ok((micros, syncs));
            }
            lane.submit(source.draw(shape, &payloads)?)?;
            let mut done = 0;
            while done == 0 {
                if lane.poll(clock()) != Progress::More {
                    std::thread::yield_now();
                }
                for completion in lane.take_completions() {
                    completion.result?;
                    done += 1;
                }
            }
            if syncs.is_some() {
                micros.push(u64::try_from(begin.elapsed().as_micros())?);
            }
        }
    }
}

/// What the submitters of a run have in common.
struct Run {
    lane: LaneThread,
    shape: Shape,
    is_counting: AtomicBool,
    is_over: AtomicBool,
}

fn threads(
    lane: LaneThread,
    shape: Shape,
    span: Duration,
    counted: &Counted,
    is_blocking: bool,
) -> Outcome<(Vec<u64>, u64)> {
    let run = Arc::new(Run {
        lane,
        shape,
        is_counting: AtomicBool::new(false),
        is_over: AtomicBool::new(false),
    });
    let (sender, micros) = channel();
    for at in 0..shape.submitters {
        let submitter = Submitter {
            run: Arc::clone(&run),
            sources: sources(shape, at)?,
            payloads: payloads(shape),
            micros: Vec::new(),
            sender: sender.clone(),
        };
        if is_blocking {
            std::thread::spawn(move || submitter.wait_for_each());
        } else {
            submitter.submit();
        }
    }
    drop(sender);
    std::thread::sleep(span / 2);
    let syncs = run.lane.stats().fdatasyncs;
    counted.begin()?;
    run.is_counting.store(true, Ordering::Relaxed);
    std::thread::sleep(span);
    run.is_counting.store(false, Ordering::Relaxed);
    let syncs = run.lane.stats().fdatasyncs - syncs;
    counted.end()?;
    run.is_over.store(true, Ordering::Relaxed);
    let mut all = Vec::new();
    for of_one in micros {
        all.extend(of_one?);
    }
    Ok((all, syncs))
}

/// The groups of one submitter.
fn sources(shape: Shape, submitter: u64) -> Outcome<Vec<Source>> {
    (1..=GROUPS)
        .filter(|group| group % shape.submitters == submitter)
        .map(|group| Source::new(group, shape))
        .collect()
}

/// Appends to its own groups in turn, each batch when the one before is durable, and sends each
/// append's microseconds at the end.
struct Submitter {
    run: Arc<Run>,
    sources: Vec<Source>,
    payloads: Vec<Vec<u8>>,
    micros: Vec<u64>,
    sender: Sender<Outcome<Vec<u64>>>,
}

impl Submitter {
    fn draw(&mut self) -> Outcome<Submission> {
        self.sources.rotate_left(1);
        self.sources[0].draw(self.run.shape, &self.payloads)
    }

    /// Counts an append. `false`: it was the last.
    fn count(&mut self, begin: Instant) -> bool {
        if self.run.is_counting.load(Ordering::Relaxed) {
            let micros = u64::try_from(begin.elapsed().as_micros());
            self.micros.push(micros.unwrap_or(u64::MAX));
        }
        !self.run.is_over.load(Ordering::Relaxed)
    }

    fn end(self, error: Option<Box<dyn Error + Send + Sync>>) {
        drop(self.sender.send(error.map_or(Ok(self.micros), Err)));
    }

    /// As a thread that waits.
    fn wait_for_each(mut self) {
        loop {
            let begin = Instant::now();
            let submission = self.draw();
            let appended =
                submission.and_then(|submission| Ok(self.run.lane.append(submission)?));
            if let Err(error) = appended {
                return self.end(Some(error));
            }
            if !self.count(begin) {
                return self.end(None);
            }
        }
    }

    /// As a chain of callbacks.
    fn submit(mut self) {
        let begin = Instant::now();
        let submission = match self.draw() {
            Ok(submission) => submission,
            Err(error) => return self.end(Some(error)),
        };
        let (run, sender) = (Arc::clone(&self.run), self.sender.clone());
        let submitted = run.lane.submit(submission, move |result| {
            if let Err(error) = result {
                self.end(Some(error.into()));
            } else if self.count(begin) {
                self.submit();
            } else {
                self.end(None);
            }
        });
        if let Err(error) = submitted {
            drop(sender.send(Err(error.into())));
        }
    }
}

fn payloads(shape: Shape) -> Vec<Vec<u8>> {
    (0..shape.batch)
        .map(|at| random(at, shape.payload))
        .collect()
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

fn fill(dir: &str, bytes: u64, payload: usize) -> Outcome<()> {
    let shape = Shape {
        submitters: 1,
        batch: 256,
        payload,
    };
    let (mut lane, _) = Lane::open(
        Arc::new(StdVfs::new()),
        Path::new(dir),
        LaneOptions::default(),
    )?;
    let mut sources: Vec<Source> = (1..=GROUPS)
        .map(|group| Source::new(group, shape))
        .collect::<Outcome<_>>()?;
    let payloads = payloads(shape);
    let per_group = bytes / GROUPS / u64::try_from(payload)?;
    let origin = Instant::now();
    let clock = || Time(u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX));
    while sources[0].next < per_group {
        for source in &mut sources {
            source.kept = u64::MAX;
            lane.submit(source.draw(shape, &payloads)?)?;
        }
        while lane.pending_bytes() > 0 {
            lane.poll(clock());
        }
    }
    lane.close()?;
    Ok(())
}

fn open(dir: &str) -> Outcome<()> {
    let before = anon_rss()?;
    let begin = Instant::now();
    let (lane, recovery) = Lane::open(
        Arc::new(StdVfs::new()),
        Path::new(dir),
        LaneOptions::default(),
    )?;
    let open_ms = begin.elapsed().as_secs_f64() * 1e3;
    let index_bytes = anon_rss()?.saturating_sub(before);
    let reader = lane.reader();
    let mut entries = 0;
    let mut read = || -> Outcome<usize> {
        let mut bytes = 0;
        entries = 0;
        for ((group, replica), state) in &recovery.replicas {
            let mut next = state.first;
            while next <= state.last.index {
                for batch in reader.entries(*group, *replica, next, state.last.index, 1 << 20)? {
                    next = batch.last().index.next();
                    bytes += batch.size_bytes();
                    entries += batch.len();
                }
            }
        }
        Ok(bytes)
    };
    read()?;
    let begin = Instant::now();
    let bytes = read()?;
    let warm = bytes as f64 / begin.elapsed().as_secs_f64() / 1e9;
    println!(
        "{{\"open_ms\":{open_ms:.2},\"warm_read_gb_per_s\":{warm:.2},\"index_bytes_per_entry\":{:.3},\"anon_rss_bytes\":{}}}",
        index_bytes as f64 / entries.max(1) as f64,
        anon_rss()?,
    );
    lane.close()?;
    Ok(())
}

/// Anonymous memory of this process.
fn anon_rss() -> Outcome<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(kib.ok_or("no RssAnon")?.parse::<u64>()? * 1024)
}
