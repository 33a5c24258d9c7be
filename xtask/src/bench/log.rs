//! `cargo xtask bench log`: the log against TiKV's `raft-engine` crate and the bare device, on one
//! file system, each in a program of its own.
//!
//! For each point the programs run one after the other, the whole round several times, each round
//! beginning with another one; the medians are printed. 64 groups, incompressible bytes, sync on. Of ours, several submitters are chains of
//! callbacks, and beside that threads that wait, as they are with `raft-engine`, whose call waits.
//! The device's program writes and syncs
//! what all submitters together have in flight, in one piece: what perfect group commit would do.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::programs::{build_peers, median, number, words};
use crate::cluster::RunDir;
use crate::programs::{BuildProfile, example};
use crate::report::Step;

const SUBMITTERS: [u64; 3] = [1, 4, 64];
const BATCHES: [u64; 3] = [1, 16, 256];
const PAYLOADS: [u64; 3] = [16, 128, 1_024];
const GIB: u64 = 1 << 30;

#[derive(clap::Args)]
pub(crate) struct LogBench {
    /// Measured seconds of each run.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Rounds over the programs of a point.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=99))]
    runs: u16,
    /// Where the logs are written; default: below the target folder.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Prints the outcome as JSON.
    #[arg(long)]
    json: bool,
}

/// What our program prints of one run.
#[derive(Debug, Deserialize)]
struct Ours {
    entries_per_s: f64,
    syncs_per_s: f64,
    p50_us: f64,
    p99_us: f64,
    cpu_us_per_entry: f64,
}

/// What our program prints of an opened log of 1 GiB.
#[derive(Debug, Deserialize)]
struct OursOpened {
    open_ms: f64,
    warm_read_gb_per_s: f64,
    index_bytes_per_entry: f64,
    anon_rss_bytes: f64,
}

#[derive(Debug, Serialize)]
struct Point {
    submitters: u64,
    batch: u64,
    payload_bytes: u64,
    ours_entries_per_s: f64,
    /// The same submitters as threads that wait; with one, the lane on its thread.
    ours_blocking_entries_per_s: f64,
    raft_engine_entries_per_s: f64,
    raft_engine_recycle_entries_per_s: f64,
    device_bytes_per_s: f64,
    device_syncs_per_s: f64,
    ours_syncs_per_s: f64,
    ours_p50_us: f64,
    ours_p99_us: f64,
    raft_engine_p99_us: f64,
    ours_cpu_us_per_entry: f64,
}

#[derive(Debug, Serialize)]
struct Outcome {
    points: Vec<Point>,
    open_1gib_ms: f64,
    raft_engine_open_1gib_ms: f64,
    warm_read_gb_per_s: f64,
    index_bytes_per_entry: f64,
    anon_rss_bytes: f64,
}

/// What runs at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    Ours,
    Blocking,
    RaftEngine,
    Recycling,
    Device,
}

impl Program {
    const ALL: [Self; 5] = [
        Self::Ours,
        Self::Blocking,
        Self::RaftEngine,
        Self::Recycling,
        Self::Device,
    ];

    /// All of them, each round beginning with the next: what a program leaves the device to do
    /// falls to another one each time.
    fn in_order(round: usize) -> impl Iterator<Item = Self> {
        let count = Self::ALL.len();
        let all = Self::ALL.into_iter().cycle();
        all.skip(round % count).take(count)
    }
}

struct Programs {
    ours: PathBuf,
    raft_engine: PathBuf,
    device: PathBuf,
    dir: PathBuf,
}

impl LogBench {
    pub(crate) fn run(self) -> Result<()> {
        let step = Step::begin("build", 2);
        let ours = example("raft-log", "bench_log", BuildProfile::Release)?;
        step.add(1);
        let peers = build_peers()?;
        step.end("bench_log of raft-log, raft_engine and device of the peers");
        let run_dir = RunDir::new("bench-log")?;
        let dir = self
            .dir
            .clone()
            .unwrap_or_else(|| run_dir.path().to_owned());
        let programs = Programs {
            ours,
            raft_engine: peers.join("raft_engine"),
            device: peers.join("device"),
            dir,
        };

        let total = SUBMITTERS.len() * BATCHES.len() * PAYLOADS.len();
        let step = Step::begin("append", u64::try_from(total)?);
        let mut points = Vec::new();
        for submitters in SUBMITTERS {
            for batch in BATCHES {
                for payload_bytes in PAYLOADS {
                    points.push(self.point(&programs, submitters, batch, payload_bytes)?);
                    step.add(1);
                }
            }
        }
        step.end(&format!("{total} points, {} rounds each", self.runs));
        let step = Step::begin("open and read 1 GiB", 1);
        let outcome = self.opened(&programs, points)?;
        step.end("done");
        run_dir.remove()?;
        if self.json {
            println!("{}", serde_json::to_string(&outcome)?);
        } else {
            println!("{}", table(&outcome.points));
            println!(
                "open 1 GiB: {:.1} ms, raft-engine {:.1} ms; warm reads {:.1} GB/s; index {:.3} bytes an entry; anonymous memory {:.0} bytes",
                outcome.open_1gib_ms,
                outcome.raft_engine_open_1gib_ms,
                outcome.warm_read_gb_per_s,
                outcome.index_bytes_per_entry,
                outcome.anon_rss_bytes
            );
        }
        Ok(())
    }

    fn point(
        &self,
        programs: &Programs,
        submitters: u64,
        batch: u64,
        payload_bytes: u64,
    ) -> Result<Point> {
        let shape = [submitters, batch, payload_bytes].map(|number| number.to_string());
        let seconds = self.seconds.to_string();
        let (mut ours, mut blocking) = (Vec::new(), Vec::new());
        let (mut theirs, mut theirs_p99, mut recycled, mut device) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for run in 0..self.runs {
            for program in Program::in_order(usize::from(run)) {
                match program {
                    Program::Ours => ours.push(programs.ours_write("write", &shape, &seconds)?),
                    Program::Blocking => {
                        let waiting = programs.ours_write("write-blocking", &shape, &seconds)?;
                        blocking.push(waiting.entries_per_s);
                    }
                    Program::RaftEngine => {
                        let printed = programs.raft_engine_write("default", &shape, &seconds)?;
                        theirs.push(number(&printed, 0)?);
                        theirs_p99.push(number(&printed, 2)?);
                    }
                    Program::Recycling => {
                        let printed = programs.raft_engine_write("recycle", &shape, &seconds)?;
                        recycled.push(number(&printed, 0)?);
                    }
                    Program::Device => {
                        let bytes = submitters * batch * payload_bytes;
                        device.push(programs.device_syncs(bytes, &seconds)?);
                    }
                }
            }
        }
        let device_syncs_per_s = median(device);
        let of = |field: fn(&Ours) -> f64| median(ours.iter().map(field).collect());
        Ok(Point {
            submitters,
            batch,
            payload_bytes,
            ours_entries_per_s: of(|run| run.entries_per_s),
            ours_blocking_entries_per_s: median(blocking),
            raft_engine_entries_per_s: median(theirs),
            raft_engine_recycle_entries_per_s: median(recycled),
            device_bytes_per_s: device_syncs_per_s * (submitters * batch * payload_bytes) as f64,
            device_syncs_per_s,
            ours_syncs_per_s: of(|run| run.syncs_per_s),
            ours_p50_us: of(|run| run.p50_us),
            ours_p99_us: of(|run| run.p99_us),
            raft_engine_p99_us: median(theirs_p99),
            ours_cpu_us_per_entry: of(|run| run.cpu_us_per_entry),
        })
    }

    /// Logs of 1 GiB in entries of 1 KiB, opened and read while the page cache is warm.
    fn opened(&self, programs: &Programs, points: Vec<Point>) -> Result<Outcome> {
        let (bytes, payload) = (GIB.to_string(), "1024".to_owned());
        let ours_dir = programs.fresh("ours")?;
        words(
            &programs.ours,
            &[
                "fill".to_owned(),
                path(&ours_dir),
                bytes.clone(),
                payload.clone(),
            ],
        )?;
        let theirs_dir = programs.fresh("raft-engine")?;
        let theirs = |verb: &str, more: &[String]| {
            let mut arguments = vec![verb.to_owned(), path(&theirs_dir), "default".to_owned()];
            arguments.extend_from_slice(more);
            words(&programs.raft_engine, &arguments)
        };
        theirs("fill", &[bytes, payload])?;
        let mut ours: Vec<OursOpened> = Vec::new();
        let mut their_ms = Vec::new();
        for _ in 0..self.runs {
            let printed = words(&programs.ours, &["open".to_owned(), path(&ours_dir)])?;
            ours.push(serde_json::from_str(&printed.concat())?);
            their_ms.push(number(&theirs("open", &[])?, 0)?);
        }
        std::fs::remove_dir_all(&ours_dir)?;
        std::fs::remove_dir_all(&theirs_dir)?;
        let of = |field: fn(&OursOpened) -> f64| median(ours.iter().map(field).collect());
        Ok(Outcome {
            points,
            open_1gib_ms: of(|run| run.open_ms),
            raft_engine_open_1gib_ms: median(their_ms),
            warm_read_gb_per_s: of(|run| run.warm_read_gb_per_s),
            index_bytes_per_entry: of(|run| run.index_bytes_per_entry),
            anon_rss_bytes: of(|run| run.anon_rss_bytes),
        })
    }
}

impl Programs {
    /// An empty folder that is not there yet.
    fn fresh(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        if dir.exists() {
            std::fs::remove_dir_all(&dir)?;
        }
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    fn ours_write(&self, verb: &str, shape: &[String], seconds: &str) -> Result<Ours> {
        let dir = self.fresh("ours")?;
        let mut arguments = vec![verb.to_owned(), path(&dir)];
        arguments.extend_from_slice(shape);
        arguments.push(seconds.to_owned());
        let printed = words(&self.ours, &arguments)?;
        std::fs::remove_dir_all(&dir)?;
        serde_json::from_str(&printed.concat()).context("bench_log printed something else")
    }

    fn raft_engine_write(
        &self,
        mode: &str,
        shape: &[String],
        seconds: &str,
    ) -> Result<Vec<String>> {
        let dir = self.fresh("raft-engine")?;
        let mut arguments = vec!["write".to_owned(), path(&dir), mode.to_owned()];
        arguments.extend_from_slice(shape);
        arguments.push(seconds.to_owned());
        let printed = words(&self.raft_engine, &arguments)?;
        std::fs::remove_dir_all(&dir)?;
        Ok(printed)
    }

    fn device_syncs(&self, bytes: u64, seconds: &str) -> Result<f64> {
        let file = self.dir.join("device");
        let arguments = [path(&file), bytes.to_string(), seconds.to_owned()];
        let printed = words(&self.device, &arguments)?;
        std::fs::remove_file(&file)?;
        number(&printed, 0)
    }
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

fn table(points: &[Point]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_header([
        "submitters",
        "batch",
        "bytes",
        "ours/s",
        "ours blocking/s",
        "raft-engine/s",
        "recycling/s",
        "ratio",
        "blocking ratio",
        "syncs/s",
        "device syncs/s",
        "p99 us",
        "raft-engine p99 us",
    ]);
    for point in points {
        let ratio = point.ours_entries_per_s / point.raft_engine_entries_per_s;
        let blocking = point.ours_blocking_entries_per_s / point.raft_engine_entries_per_s;
        table.add_row([
            point.submitters.to_string(),
            point.batch.to_string(),
            point.payload_bytes.to_string(),
            format!("{:.0}", point.ours_entries_per_s),
            format!("{:.0}", point.ours_blocking_entries_per_s),
            format!("{:.0}", point.raft_engine_entries_per_s),
            format!("{:.0}", point.raft_engine_recycle_entries_per_s),
            format!("{ratio:.2}"),
            format!("{blocking:.2}"),
            format!("{:.0}", point.ours_syncs_per_s),
            format!("{:.0}", point.device_syncs_per_s),
            format!("{:.0}", point.ours_p99_us),
            format!("{:.0}", point.raft_engine_p99_us),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_round_begins_with_the_next_program_and_runs_all() {
        for round in 0..12 {
            let order: Vec<Program> = Program::in_order(round).collect();
            let before: Vec<Program> = Program::in_order(round + 4).collect();
            assert_eq!(order[0], before[1]);
            assert!(Program::ALL.iter().all(|program| order.contains(program)));
        }
    }
}
