//! The clients: a window of operations for each group, each replaced as soon as it is done.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use raft_host::{Bytes, GroupHandle, NodeHost};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::usage;

/// Not counted: connections grow their windows, files their first segments.
const WARM_UP: Duration = Duration::from_secs(3);
/// Latencies beyond are counted as this.
const LATENCY_US_MAX: u64 = 60_000_000;
/// An operation that failed is tried again after this: a leader may have changed.
const PAUSE: Duration = Duration::from_millis(1);

/// What the clients do.
pub(crate) struct Load {
    pub(crate) payload_bytes: usize,
    pub(crate) outstanding: usize,
    pub(crate) read_percent: u8,
    pub(crate) seconds: u64,
}

/// Which part of the run it is.
const WARMING_UP: u8 = 0;
const COUNTING: u8 = 1;
const ENDING: u8 = 2;

/// Runs the clients and returns the result line.
pub(crate) async fn measure(
    host: &NodeHost,
    groups: &[GroupHandle],
    load: &Load,
) -> Result<serde_json::Value> {
    let phase = Arc::new(AtomicU8::new(WARMING_UP));
    let command = Bytes::from(vec![0x5A; load.payload_bytes]);
    let mut running = JoinSet::new();
    for (place, group) in groups.iter().enumerate() {
        // Differences of running shares, so that the windows come to the whole.
        let share = |place: usize| load.outstanding * place / groups.len();
        let window = share(place + 1) - share(place);
        if window > 0 {
            running.spawn(
                Client {
                    group: group.clone(),
                    command: command.clone(),
                    read_percent: load.read_percent,
                    phase: Arc::clone(&phase),
                    begun: 0,
                    under_way: VecDeque::with_capacity(window),
                }
                .run(window),
            );
        }
    }
    sleep(WARM_UP).await;
    let (cpu, log, begin) = (usage::cpu_us()?, host.stats().log, Instant::now());
    phase.store(COUNTING, Ordering::Relaxed);
    sleep(Duration::from_secs(load.seconds)).await;
    phase.store(ENDING, Ordering::Relaxed);
    let seconds = begin.elapsed().as_secs_f64();
    let (cpu, rss) = (usage::cpu_us()? - cpu, usage::rss_bytes()?);
    let after = host.stats().log;

    let mut total = Counts::new()?;
    while let Some(counts) = running.join_next().await {
        total.add(&counts.context("a client panicked")??)?;
    }
    Ok(serde_json::json!({
        "event": "result",
        "writes": total.writes,
        "reads": total.reads,
        "failed": total.failed,
        "seconds": seconds,
        "latency_us_histogram": total
            .latencies_us
            .iter_recorded()
            .map(|bucket| (bucket.value_iterated_to(), bucket.count_at_value()))
            .collect::<Vec<_>>(),
        "cpu_us": cpu,
        "fdatasyncs": after.fdatasyncs - log.fdatasyncs,
        "written_bytes": after.written_bytes - log.written_bytes,
        "rss_bytes": rss,
    }))
}

/// What was counted.
struct Counts {
    writes: u64,
    reads: u64,
    failed: u64,
    latencies_us: Histogram<u64>,
}

impl Counts {
    fn new() -> Result<Self> {
        Ok(Self {
            writes: 0,
            reads: 0,
            failed: 0,
            latencies_us: Histogram::new_with_bounds(1, LATENCY_US_MAX, 3)?,
        })
    }

    fn add(&mut self, other: &Self) -> Result<()> {
        self.writes += other.writes;
        self.reads += other.reads;
        self.failed += other.failed;
        self.latencies_us.add(&other.latencies_us)?;
        Ok(())
    }
}

/// An operation that was submitted; whether it succeeded.
type Operation = Pin<Box<dyn Future<Output = bool> + Send>>;

struct UnderWay {
    operation: Operation,
    is_read: bool,
    begun_at: Instant,
}

/// The clients of one group. Its operations are done in the order in which they were submitted, so
/// the oldest is waited for and those behind it are then found done.
struct Client {
    group: GroupHandle,
    command: Bytes,
    read_percent: u8,
    phase: Arc<AtomicU8>,
    begun: u64,
    under_way: VecDeque<UnderWay>,
}

impl Client {
    async fn run(mut self, window: usize) -> Result<Counts> {
        let mut counts = Counts::new()?;
        for _ in 0..window {
            self.begin();
        }
        while let Some(oldest) = self.under_way.pop_front() {
            let succeeded = oldest.operation.await;
            let phase = self.phase.load(Ordering::Relaxed);
            if phase == COUNTING {
                let latency =
                    u64::try_from(oldest.begun_at.elapsed().as_micros()).unwrap_or(LATENCY_US_MAX);
                if !succeeded {
                    counts.failed += 1;
                } else {
                    counts
                        .latencies_us
                        .saturating_record(latency.clamp(1, LATENCY_US_MAX));
                    if oldest.is_read {
                        counts.reads += 1;
                    } else {
                        counts.writes += 1;
                    }
                }
            }
            if !succeeded {
                sleep(PAUSE).await;
            }
            if phase != ENDING {
                self.begin();
            }
        }
        Ok(counts)
    }

    fn begin(&mut self) {
        self.begun += 1;
        let is_read =
            self.begun * u64::from(self.read_percent) % 100 < u64::from(self.read_percent);
        let operation: Operation = if is_read {
            let answer = self.group.read(Bytes::new());
            Box::pin(async move { answer.await.is_ok() })
        } else {
            let outcome = self.group.propose(self.command.clone());
            Box::pin(async move { outcome.await.is_ok() })
        };
        self.under_way.push_back(UnderWay {
            operation,
            is_read,
            begun_at: Instant::now(),
        });
    }
}
