//! Looking into the log of a host that is stopped: what is there, what it says, whether it holds.
//!
//! Nothing is changed: all of these only read, as an open does before it mends. Give them
//! [`StdVfs::read_only`](crate::vfs::StdVfs::read_only) and the file system vouches for it. A lane
//! that somebody has open is refused. Whatever a lane was made with that matters here, its
//! segments say.
//!
//! ```text
//! stat    what there is: segments, replicas
//! dump    a replica's entries, one by one
//! check   what the next open would report
//! scrub   the same, every payload verified
//! export  a replica's entries as they are, into a file
//! ```
//!
//! The example `raft_log_tool` is all of them on the command line, in words or in JSON.

use std::io::Write;
use std::ops::{ControlFlow, RangeInclusive};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raft_proto::{Batch, EntryRef, GroupId, Index, ReplicaId};

use crate::config::LaneOptions;
use crate::error::LogError;
use crate::identity;
use crate::read::{LogReader, Shared, lane_dir, lock_path};
use crate::recovery::{Files, RecoveryReport, analyse};
use crate::segment::segment_number;
use crate::state::ReplicaState;
use crate::vfs::{FileLock, Vfs};

/// What is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogStat {
    /// The lane.
    pub lane: u16,
    /// The identity of the whole log.
    pub identity: u64,
    /// The last record's number; 0 if there is none.
    pub last_lsn: u64,
    /// Whether it was closed: nothing has been written since.
    pub is_closed: bool,
    /// Its segments, the oldest first.
    pub segments: Vec<SegmentStat>,
    /// Its replicas, in order of group and replica.
    pub replicas: Vec<ReplicaStat>,
}

/// A segment file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentStat {
    /// Its number.
    pub number: u64,
    /// Its length in bytes.
    pub len: u64,
    /// Names this life of the file; 0 if its header cannot be read.
    pub incarnation: u64,
    /// What it is for.
    pub purpose: SegmentPurpose,
    /// Bytes of entries in it that still count, about.
    pub live_bytes: u64,
}

/// What a segment file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SegmentPurpose {
    /// Appended to.
    Active,
    /// Full, and still needed.
    Sealed,
    /// Sealed, and it holds what laggards keep, moved there by the log itself.
    Apart,
    /// Made ahead: nothing in it counts.
    Prepared,
    /// Nothing needs it: the next open removes it, or keeps it aside if it cannot be read.
    Dead,
}

impl std::fmt::Display for SegmentPurpose {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Active => "active",
            Self::Sealed => "sealed",
            Self::Apart => "apart",
            Self::Prepared => "prepared",
            Self::Dead => "dead",
        })
    }
}

/// A replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaStat {
    /// The group.
    pub group: GroupId,
    /// The replica.
    pub replica: ReplicaId,
    /// What its records and the vote file say.
    pub state: ReplicaState,
    /// Bytes of its entries, about.
    pub bytes: u64,
}

/// What [`StoppedLane::check`] and [`StoppedLane::scrub`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// What the next open would report.
    pub report: RecoveryReport,
    /// Replicas that are stopped for good, by what was found now or earlier.
    pub stopped: Vec<(GroupId, ReplicaId, crate::Health)>,
}

impl Checked {
    /// Whether nothing durable is lost. A torn tail is none of it: it was never acknowledged.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.report.damaged.is_empty()
            && self.report.missing.is_empty()
            && self.report.foreign.is_empty()
            && self.stopped.is_empty()
    }
}

/// What an export wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Entries.
    pub entries: u64,
    /// Bytes.
    pub bytes: u64,
}

/// The lanes below a data directory, ascending.
///
/// # Errors
///
/// [`LogError::Io`].
pub fn lanes(vfs: &dyn Vfs, data_dir: &Path) -> Result<Vec<u16>, LogError> {
    let entries = vfs.list(&data_dir.join("log"))?;
    let names = entries.iter().filter(|entry| entry.is_dir);
    let numbers = names.filter_map(|entry| {
        let number: u16 = entry.name.parse().ok()?;
        // "07" is none.
        (number.to_string() == entry.name).then_some(number)
    });
    let mut lanes: Vec<u16> = numbers.collect();
    lanes.sort_unstable();
    Ok(lanes)
}

/// A lane of a host that is stopped. Each tool reads it anew.
#[derive(Clone, Debug)]
pub struct StoppedLane {
    vfs: Arc<dyn Vfs>,
    data_dir: PathBuf,
    lane: u16,
}

impl StoppedLane {
    /// Names it; nothing is read yet. `data_dir` is the directory above `log`.
    #[must_use]
    pub fn new(vfs: Arc<dyn Vfs>, data_dir: &Path, lane: u16) -> Self {
        Self {
            vfs,
            data_dir: data_dir.to_owned(),
            lane,
        }
    }

    /// What is there.
    ///
    /// # Errors
    ///
    /// [`LogError::NoLog`], [`LogError::InUse`], [`LogError::Io`], [`LogError::NeedsVersion`].
    pub fn stat(&self) -> Result<LogStat, LogError> {
        Ok(self.look(false)?.stat.clone())
    }

    /// Gives `each` the entries of a replica, in order, until it breaks off. Without a range, all
    /// that there are.
    ///
    /// # Errors
    ///
    /// Those of [`StoppedLane::stat`]; [`LogError::NotFound`] for what is not held,
    /// [`LogError::Damaged`] for what does not hold: the entries before were given.
    pub fn dump(
        &self,
        of: (GroupId, ReplicaId),
        range: Option<RangeInclusive<Index>>,
        mut each: impl FnMut(EntryRef<'_>) -> ControlFlow<()>,
    ) -> Result<(), LogError> {
        self.look(false)?
            .batches(of, range, |batch| Ok(batch.iter().try_for_each(&mut each)))
    }

    /// What the next open would report: headers, checkpoints, footers and the active segment hold,
    /// and nothing is missing. Payloads of sealed segments are not read.
    ///
    /// # Errors
    ///
    /// Those of [`StoppedLane::stat`]; damage is none.
    pub fn check(&self) -> Result<Checked, LogError> {
        Ok(self.look(false)?.checked())
    }

    /// As [`StoppedLane::check`], and every payload is verified.
    ///
    /// # Errors
    ///
    /// Those of [`StoppedLane::stat`]; damage is none.
    pub fn scrub(&self) -> Result<Checked, LogError> {
        Ok(self.look(true)?.checked())
    }

    /// Writes a replica's entries to `out` as they lie in the log: frames, one after the other,
    /// which [`Batch::decode`] reads back. Without a range, all that there are.
    ///
    /// # Errors
    ///
    /// Those of [`StoppedLane::dump`], and [`LogError::Export`] from `out`.
    pub fn export(
        &self,
        of: (GroupId, ReplicaId),
        range: Option<RangeInclusive<Index>>,
        out: &mut dyn Write,
    ) -> Result<Exported, LogError> {
        let mut exported = Exported::default();
        self.look(false)?.batches(of, range, |batch| {
            out.write_all(batch.bytes()).map_err(LogError::Export)?;
            exported.entries += to_u64(batch.len());
            exported.bytes += to_u64(batch.size_bytes());
            Ok(ControlFlow::Continue(()))
        })?;
        out.flush().map_err(LogError::Export)?;
        Ok(exported)
    }

    fn look(&self, verify_all: bool) -> Result<Looked, LogError> {
        Looked::at(&self.vfs, &self.data_dir, self.lane, verify_all)
    }
}

fn has_segments(vfs: &dyn Vfs, data_dir: &Path, lane: u16) -> Result<bool, LogError> {
    let entries = vfs.list(&lane_dir(data_dir, lane))?;
    let mut files = entries.iter().filter(|entry| entry.is_file);
    Ok(files.any(|entry| segment_number(&entry.name).is_some()))
}

/// A lane, analysed and not mended.
struct Looked {
    stat: LogStat,
    report: RecoveryReport,
    reader: LogReader,
    _files: Files,
    _lock: FileLock,
}

impl Looked {
    fn at(
        vfs: &Arc<dyn Vfs>,
        data_dir: &Path,
        lane: u16,
        verify_all: bool,
    ) -> Result<Self, LogError> {
        let lock_path = lock_path(data_dir, lane);
        let lock = vfs.lock(&lock_path, true)?;
        let lock = lock.ok_or(LogError::InUse { path: lock_path })?;
        let identity = match identity::of_files(vfs.as_ref(), data_dir, lane)? {
            Some(identity) => identity,
            // Not one header can be read: that is damage, and to be told.
            None if has_segments(vfs.as_ref(), data_dir, lane)? => 0,
            None => {
                return Err(LogError::NoLog {
                    path: data_dir.to_owned(),
                    lane,
                });
            }
        };
        let options = LaneOptions {
            lane,
            identity: Some(identity),
            verify_all,
            ..LaneOptions::default()
        };
        let analysis = analyse(vfs, data_dir, &options)?;
        let active = analysis.active.as_ref();
        let active = active.filter(|active| !active.is_sealed);
        let active = active.map(|active| active.number);
        let tables = &analysis.tables;
        let segments = analysis.files.values().map(|file| {
            let info = tables.segments.get(&file.number);
            let purpose = match info {
                Some(_) if active == Some(file.number) => SegmentPurpose::Active,
                Some(info) if info.before.is_some() => SegmentPurpose::Apart,
                Some(_) => SegmentPurpose::Sealed,
                None if file.number > analysis.newest => SegmentPurpose::Prepared,
                None => SegmentPurpose::Dead,
            };
            SegmentStat {
                number: file.number,
                len: file.len,
                incarnation: file.header.map_or(0, |header| header.incarnation),
                purpose,
                live_bytes: info.map_or(0, |info| info.live_bytes),
            }
        });
        let replicas = tables.keys().into_iter().map(|key| {
            let replica = &tables.replicas[&key];
            ReplicaStat {
                group: key.0,
                replica: key.1,
                state: replica.state.clone(),
                bytes: replica.spans.iter().map(|span| span.bytes).sum(),
            }
        });
        let stat = LogStat {
            lane,
            identity,
            last_lsn: analysis.last_lsn,
            is_closed: analysis.is_closed,
            segments: segments.collect(),
            replicas: replicas.collect(),
        };
        let shared = Shared::new(Arc::clone(vfs), &options, analysis.tables);
        Ok(Self {
            stat,
            report: analysis.report,
            reader: LogReader::new(Arc::new(shared)),
            _files: analysis.files,
            _lock: lock,
        })
    }

    fn checked(&self) -> Checked {
        let stopped = self.stat.replicas.iter().filter(|replica| {
            !matches!(
                replica.state.health,
                crate::Health::Sound | crate::Health::Tombstone
            )
        });
        Checked {
            report: self.report.clone(),
            stopped: stopped
                .map(|found| (found.group, found.replica, found.state.health.clone()))
                .collect(),
        }
    }

    fn batches(
        &self,
        (group, replica): (GroupId, ReplicaId),
        range: Option<RangeInclusive<Index>>,
        mut each: impl FnMut(&Batch) -> Result<ControlFlow<()>, LogError>,
    ) -> Result<(), LogError> {
        let held = self.reader.range(group, replica);
        let (first, last) = match (&range, held) {
            (Some(range), _) => (*range.start(), *range.end()),
            (None, Some(held)) => held,
            (None, None) => {
                let mut known = self.reader.replicas_of(group).into_iter();
                let is_known = known.any(|(known, _)| known == replica);
                let from = Index::new(1);
                return if is_known {
                    Ok(())
                } else {
                    Err(LogError::NotFound { group, from })
                };
            }
        };
        let mut next = first;
        for batch in self.reader.batches(group, replica, first, last) {
            let batch = batch?;
            next = batch.last().index.next();
            if each(&batch)?.is_break() {
                return Ok(());
            }
        }
        if range.is_some() && next <= last {
            return Err(LogError::NotFound { group, from: next });
        }
        Ok(())
    }
}

fn to_u64(len: usize) -> u64 {
    u64::try_from(len).expect("a length fits")
}
