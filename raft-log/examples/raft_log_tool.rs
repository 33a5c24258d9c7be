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
//! Whoever reads its output may stop reading: that is no error.
#![expect(clippy::print_stderr, reason = "a command-line program")]

use std::error::Error;
use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Stdout, Write};
use std::ops::{ControlFlow, RangeInclusive};
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
    let mut out = Output::default();
    match tool
        .run(&mut out)
        .and_then(|code| Ok(out.flush().map(|()| code)?))
    {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The standard output, until nobody reads it any more.
struct Output {
    inner: BufWriter<Stdout>,
    is_closed: bool,
}

impl Default for Output {
    fn default() -> Self {
        Self {
            inner: BufWriter::new(io::stdout()),
            is_closed: false,
        }
    }
}

impl Output {
    fn unless_closed<T>(&mut self, done: io::Result<T>, otherwise: T) -> io::Result<T> {
        match done {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.is_closed = true;
                Ok(otherwise)
            }
            done => done,
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_closed {
            return Ok(bytes.len());
        }
        let written = self.inner.write(bytes);
        self.unless_closed(written, bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.is_closed {
            return Ok(());
        }
        let flushed = self.inner.flush();
        self.unless_closed(flushed, ())
    }
}

impl Tool {
    fn run(self, out: &mut Output) -> Outcome<ExitCode> {
        let mut code = ExitCode::SUCCESS;
        match self.verb {
            Verb::Stat(place) => {
                for (number, lane) in place.lanes()? {
                    let stat = lane.stat()?;
                    place.say(out, number, &stat_json(&stat), |out| say_stat(out, &stat))?;
                }
            }
            Verb::Check(place) => {
                for (number, lane) in place.lanes()? {
                    code = place.say_checked(out, number, &lane.check()?, code)?;
                }
            }
            Verb::Scrub(place) => {
                for (number, lane) in place.lanes()? {
                    code = place.say_checked(out, number, &lane.scrub()?, code)?;
                }
            }
            Verb::Dump { place, which } => {
                let (lane, of, range) = which.find(&place)?;
                let mut said = Ok(());
                lane.dump(of, range, |entry| {
                    said = say_entry(out, entry, place.json);
                    match said.is_err() || out.is_closed {
                        true => ControlFlow::Break(()),
                        false => ControlFlow::Continue(()),
                    }
                })?;
                said?;
            }
            Verb::Export {
                place,
                which,
                out: path,
            } => {
                let (lane, of, range) = which.find(&place)?;
                refuse_within(&place.data_dir, &path)?;
                let mut file = BufWriter::new(File::create_new(&path)?);
                let exported = lane.export(of, range, &mut file).map_err(|error| {
                    let path = path.display();
                    format!("{error}; {path} holds what comes before")
                })?;
                file.into_inner()?.sync_all()?;
                let json = json!({ "entries": exported.entries, "bytes": exported.bytes });
                place.say(out, None, &json, |out| {
                    writeln!(
                        out,
                        "{} entries, {} bytes",
                        exported.entries, exported.bytes
                    )
                })?;
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

    fn say(
        &self,
        out: &mut Output,
        lane: Option<u16>,
        json: &Value,
        in_words: impl FnOnce(&mut Output) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.json {
            return writeln!(out, "{json}");
        }
        if let Some(lane) = lane {
            writeln!(out, "lane {lane}")?;
        }
        in_words(out)
    }

    fn say_checked(
        &self,
        out: &mut Output,
        lane: Option<u16>,
        checked: &Checked,
        code: ExitCode,
    ) -> io::Result<ExitCode> {
        self.say(out, lane, &checked_json(lane, checked), |out| {
            say_checked(out, checked)
        })?;
        Ok(match checked.is_sound() {
            true => code,
            false => ExitCode::from(2),
        })
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

/// The directory looked into is left as it is.
fn refuse_within(data_dir: &Path, path: &Path) -> Outcome<()> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    if folder.canonicalize()?.starts_with(data_dir.canonicalize()?) {
        return Err("an export goes elsewhere: nothing is written below the data directory".into());
    }
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
        let state = &replica.state;
        let first = self.from.map_or(state.first, Index::new);
        let last = self.to.map_or(state.last.index, Index::new);
        let is_asked = self.from.is_some() || self.to.is_some();
        if is_asked && first > last {
            let held = format!("the log has {} to {}", state.first, state.last.index);
            return Err(format!("there is nothing from {first} to {last}: {held}").into());
        }
        let range = is_asked.then_some(first..=last);
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

fn say_stat(out: &mut Output, stat: &LogStat) -> io::Result<()> {
    let closed = if stat.is_closed { "" } else { ", not closed" };
    writeln!(
        out,
        "identity {:016x}, record {}{closed}",
        stat.identity, stat.last_lsn
    )?;
    for segment in &stat.segments {
        writeln!(
            out,
            "segment {:6} {:8} {:>12} bytes, {:>12} live",
            segment.number, segment.purpose, segment.len, segment.live_bytes
        )?;
    }
    for replica in &stat.replicas {
        let state = &replica.state;
        let vote = state.hard_state.vote.map_or(0, ReplicaId::get);
        writeln!(
            out,
            "group {} replica {}: entries {} to {}, term {}, vote {vote}, commit {}, {} bytes, {}",
            replica.group,
            replica.replica,
            state.first,
            state.last.index,
            state.hard_state.term,
            state.hard_state.commit,
            replica.bytes,
            state.health
        )?;
    }
    Ok(())
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
    let torn = report
        .torn
        .iter()
        .map(|torn| json!({ "segment": torn.segment, "offset": torn.offset, "bytes": torn.bytes }));
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
        "torn_bytes": report.torn_bytes(),
        "torn": torn.collect::<Vec<_>>(),
        "damaged": damaged.collect::<Vec<_>>(),
        "mended": mended.collect::<Vec<_>>(),
        "missing": report.missing,
        "foreign": report.foreign,
        "ignored": report.ignored,
        "stopped": stopped.collect::<Vec<_>>(),
    })
}

fn say_checked(out: &mut Output, checked: &Checked) -> io::Result<()> {
    let report = &checked.report;
    for torn in &report.torn {
        writeln!(
            out,
            "torn: segment {} at byte {}: {} bytes of a write that was never acknowledged, which the \
             next open cuts off and keeps aside",
            torn.segment, torn.offset, torn.bytes
        )?;
    }
    for damage in &report.damaged {
        writeln!(
            out,
            "damaged: segment {} at byte {}: {}",
            damage.segment, damage.offset, damage.reason
        )?;
        for (group, replica, first, last) in &damage.replicas {
            writeln!(
                out,
                "  group {group} replica {replica}: entries {first} to {last}"
            )?;
        }
    }
    for found in &report.mended {
        writeln!(
            out,
            "mended: segment {}, the record at byte {} has a flipped bit that is known",
            found.segment, found.offset
        )?;
    }
    for number in &report.missing {
        writeln!(out, "missing: segment {number}")?;
    }
    for name in &report.foreign {
        writeln!(out, "foreign: {name}")?;
    }
    for name in &report.ignored {
        writeln!(out, "ignored: {name}")?;
    }
    for (group, replica, health) in &checked.stopped {
        writeln!(out, "stopped: group {group} replica {replica}: {health}")?;
    }
    if checked.is_sound() {
        writeln!(out, "sound")?;
    }
    Ok(())
}

fn say_entry(out: &mut Output, entry: EntryRef<'_>, json: bool) -> io::Result<()> {
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
