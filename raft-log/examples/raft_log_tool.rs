//! Looks into the log of a host that is stopped; changes nothing.
//!
//! ```text
//! raft_log_tool stat   DATA_DIR
//! raft_log_tool dump   DATA_DIR --group 7 [--replica 1] [--from 1] [--to 99]
//! raft_log_tool check  DATA_DIR
//! raft_log_tool scrub  DATA_DIR
//! raft_log_tool export DATA_DIR --group 7 --out FILE
//! ```
//!
//! Each takes `--json` and `--lane`; without a lane, `stat`, `check` and `scrub` take all. Ends with
//! 0, with 1 if it cannot be done, and with 2 if `check` or `scrub` found something durable lost.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line program"
)]

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};
use raft_log::tools::{Checked, LogStat, StoppedLane, lanes};
use raft_log::vfs::{StdVfs, Vfs};
use raft_proto::{EntryRef, GroupId, Index, ReplicaId};
use serde_json::{Value, json};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Looks into the log of a host that is stopped; changes nothing.
#[derive(Parser)]
struct Tool {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Segments and replicas.
    Stat(Place),
    /// Entries of a replica.
    Dump {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        which: Which,
    },
    /// What the next open would report.
    Check(Place),
    /// The same, every payload verified.
    Scrub(Place),
    /// Entries of a replica, as they are, into a file.
    Export {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        which: Which,
        /// The file; it must not be there yet.
        #[arg(long)]
        out: PathBuf,
    },
}

#[derive(Args)]
struct Place {
    /// The directory above `log`.
    data_dir: PathBuf,
    /// The lane; without it, all lanes, or the one there is.
    #[arg(long)]
    lane: Option<u16>,
    /// Answers in JSON, an object a line.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Which {
    /// The group.
    #[arg(long)]
    group: u64,
    /// The replica; without it, the only one there is.
    #[arg(long)]
    replica: Option<u64>,
    /// The first index; without it, the first held.
    #[arg(long)]
    from: Option<u64>,
    /// The last index; without it, the last held.
    #[arg(long)]
    to: Option<u64>,
}

/// Does what the arguments say.
pub fn main() -> ExitCode {
    let tool = Tool::parse();
    match tool.run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Tool {
    fn run(self) -> Outcome<ExitCode> {
        let mut code = ExitCode::SUCCESS;
        match self.verb {
            Verb::Stat(place) => {
                for (number, lane) in place.lanes()? {
                    let stat = lane.stat()?;
                    place.say(number, &stat_json(&stat), || say_stat(&stat));
                }
            }
            Verb::Check(place) => {
                for (number, lane) in place.lanes()? {
                    code = place.say_checked(number, &lane.check()?, code);
                }
            }
            Verb::Scrub(place) => {
                for (number, lane) in place.lanes()? {
                    code = place.say_checked(number, &lane.scrub()?, code);
                }
            }
            Verb::Dump { place, which } => {
                let (lane, of, range) = which.find(&place)?;
                let mut out = BufWriter::new(std::io::stdout().lock());
                let mut said = Ok(());
                lane.dump(of, range, |entry| {
                    if said.is_ok() {
                        said = say_entry(&mut out, entry, place.json);
                    }
                })?;
                said?;
                out.flush()?;
            }
            Verb::Export { place, which, out } => {
                let (lane, of, range) = which.find(&place)?;
                let mut file = BufWriter::new(File::create_new(&out)?);
                let exported = lane.export(of, range, &mut file)?;
                file.into_inner()?.sync_all()?;
                let json = json!({ "entries": exported.entries, "bytes": exported.bytes });
                place.say(None, &json, || {
                    println!("{} entries, {} bytes", exported.entries, exported.bytes);
                });
            }
        }
        Ok(code)
    }
}

impl Place {
    /// The lanes asked for, once it is sure that no host runs on them.
    fn lanes(&self) -> Outcome<Vec<(Option<u16>, StoppedLane)>> {
        refuse_if_in_use(&self.data_dir)?;
        let vfs: Arc<dyn Vfs> = Arc::new(StdVfs::read_only());
        let numbers = match self.lane {
            Some(lane) => vec![lane],
            None => lanes(vfs.as_ref(), &self.data_dir)?,
        };
        if numbers.is_empty() {
            return Err(format!("there is no log below {}", self.data_dir.display()).into());
        }
        let lane = |number| StoppedLane::new(Arc::clone(&vfs), &self.data_dir, number);
        Ok(numbers
            .into_iter()
            .map(|number| (Some(number), lane(number)))
            .collect())
    }

    fn say(&self, lane: Option<u16>, json: &Value, in_words: impl FnOnce()) {
        if self.json {
            println!("{json}");
        } else {
            if let Some(lane) = lane {
                println!("lane {lane}");
            }
            in_words();
        }
    }

    fn say_checked(&self, lane: Option<u16>, checked: &Checked, code: ExitCode) -> ExitCode {
        self.say(lane, &checked_json(lane, checked), || {
            say_checked(checked);
        });
        if checked.is_sound() {
            code
        } else {
            ExitCode::from(2)
        }
    }
}

/// A host holds the file `LOCK` of its data directory for as long as it runs.
fn refuse_if_in_use(data_dir: &Path) -> Outcome<()> {
    let Ok(lock) = File::open(data_dir.join("LOCK")) else {
        return Ok(());
    };
    let free = rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockShared);
    free.map_err(|_| "a host runs on this directory: stop it first")?;
    Ok(())
}

type Found = (
    StoppedLane,
    (GroupId, ReplicaId),
    Option<RangeInclusive<Index>>,
);

impl Which {
    /// The lane that has the replica, and what of it is meant.
    fn find(&self, place: &Place) -> Outcome<Found> {
        let group = GroupId::new(self.group).ok_or("no group has this id")?;
        let mut found = Vec::new();
        for (_, lane) in place.lanes()? {
            for replica in lane.stat()?.replicas {
                let is_meant = self.replica.is_none_or(|id| id == replica.replica.get());
                if replica.group == group && is_meant {
                    found.push((lane.clone(), replica));
                }
            }
        }
        let (lane, replica) = match found.len() {
            0 => return Err(format!("the log knows no such replica of group {group}").into()),
            1 => found.remove(0),
            more => {
                return Err(format!("group {group} has {more} replicas here: name one").into());
            }
        };
        let range = (self.from.is_some() || self.to.is_some()).then(|| {
            let first = self.from.map_or(replica.state.first, Index::new);
            let last = self.to.map_or(replica.state.last.index, Index::new);
            first..=last
        });
        Ok((lane, (group, replica.replica), range))
    }
}

fn stat_json(stat: &LogStat) -> Value {
    let segments = stat.segments.iter().map(|segment| {
        json!({
            "number": segment.number,
            "bytes": segment.len,
            "incarnation": format!("{:016x}", segment.incarnation),
            "purpose": segment.purpose.to_string(),
            "live_bytes": segment.live_bytes,
        })
    });
    let replicas = stat.replicas.iter().map(|replica| {
        let state = &replica.state;
        let snapshots = state.snapshots.iter();
        json!({
            "group": replica.group.get(),
            "replica": replica.replica.get(),
            "term": state.hard_state.term.get(),
            "vote": state.hard_state.vote.map(ReplicaId::get),
            "commit": state.hard_state.commit.get(),
            "first": state.first.get(),
            "last": state.last.index.get(),
            "last_term": state.last.term.get(),
            "snapshots": snapshots.map(|record| record.id.index.get()).collect::<Vec<_>>(),
            "health": state.health.to_string(),
            "bytes": replica.bytes,
        })
    });
    json!({
        "lane": stat.lane,
        "identity": format!("{:016x}", stat.identity),
        "last_lsn": stat.last_lsn,
        "is_closed": stat.is_closed,
        "segments": segments.collect::<Vec<_>>(),
        "replicas": replicas.collect::<Vec<_>>(),
    })
}

fn say_stat(stat: &LogStat) {
    let closed = if stat.is_closed { "" } else { ", not closed" };
    println!(
        "identity {:016x}, record {}{closed}",
        stat.identity, stat.last_lsn
    );
    for segment in &stat.segments {
        println!(
            "segment {:6} {:8} {:>12} bytes, {:>12} live",
            segment.number, segment.purpose, segment.len, segment.live_bytes
        );
    }
    for replica in &stat.replicas {
        let state = &replica.state;
        let vote = state.hard_state.vote.map_or(0, ReplicaId::get);
        println!(
            "group {} replica {}: entries {} to {}, term {}, vote {vote}, commit {}, {} bytes, {}",
            replica.group,
            replica.replica,
            state.first,
            state.last.index,
            state.hard_state.term,
            state.hard_state.commit,
            replica.bytes,
            state.health
        );
    }
}

fn checked_json(lane: Option<u16>, checked: &Checked) -> Value {
    let report = &checked.report;
    let damaged = report.damaged.iter().map(|damage| {
        let replicas = damage.replicas.iter().map(|(group, replica, first, last)| {
            json!({
                "group": group.get(),
                "replica": replica.get(),
                "first": first.get(),
                "last": last.get(),
            })
        });
        json!({
            "segment": damage.segment,
            "offset": damage.offset,
            "reason": damage.reason,
            "replicas": replicas.collect::<Vec<_>>(),
        })
    });
    let mended = report.mended.iter();
    let mended = mended.map(|found| json!({ "segment": found.segment, "offset": found.offset }));
    let stopped = checked.stopped.iter().map(|(group, replica, health)| {
        json!({
            "group": group.get(),
            "replica": replica.get(),
            "health": health.to_string(),
        })
    });
    json!({
        "lane": lane,
        "is_sound": checked.is_sound(),
        "torn_bytes": report.torn_bytes,
        "damaged": damaged.collect::<Vec<_>>(),
        "mended": mended.collect::<Vec<_>>(),
        "missing": report.missing,
        "foreign": report.foreign,
        "ignored": report.ignored,
        "stopped": stopped.collect::<Vec<_>>(),
    })
}

fn say_checked(checked: &Checked) {
    let report = &checked.report;
    if report.torn_bytes > 0 {
        println!(
            "torn: {} bytes of a write that was never acknowledged",
            report.torn_bytes
        );
    }
    for damage in &report.damaged {
        println!(
            "damaged: segment {} at byte {}: {}",
            damage.segment, damage.offset, damage.reason
        );
        for (group, replica, first, last) in &damage.replicas {
            println!("  group {group} replica {replica}: entries {first} to {last}");
        }
    }
    for found in &report.mended {
        println!(
            "mended: segment {}, the record at byte {} has a flipped bit that is known",
            found.segment, found.offset
        );
    }
    for number in &report.missing {
        println!("missing: segment {number}");
    }
    for name in &report.foreign {
        println!("foreign: {name}");
    }
    for name in &report.ignored {
        println!("ignored: {name}");
    }
    for (group, replica, health) in &checked.stopped {
        println!("stopped: group {group} replica {replica}: {health}");
    }
    if checked.is_sound() {
        println!("sound");
    }
}

fn say_entry(out: &mut dyn Write, entry: EntryRef<'_>, json: bool) -> std::io::Result<()> {
    let payload: String = entry
        .payload()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    if json {
        let json = json!({
            "index": entry.index().get(),
            "term": entry.term().get(),
            "kind": format!("{:?}", entry.kind()),
            "leader_time_ms": entry.leader_time_ms(),
            "session": entry.session().map(|session| [session.client, session.serial]),
            "payload_hex": payload,
        });
        return writeln!(out, "{json}");
    }
    writeln!(
        out,
        "{} term {} {:?} {payload}",
        entry.index(),
        entry.term(),
        entry.kind()
    )
}
