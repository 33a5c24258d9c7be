//! Mending after an analysis: cut, zero, write again, sync; then the lane can go on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raft_proto::{HardState, Term};

use super::{Analysis, Cut, RecoveryReport, SegmentFile, VotesFound};
use crate::config::LaneOptions;
use crate::error::LogError;
use crate::hard_state::{VoteFile, VotesWanted, vote_path};
use crate::index::Tables;
use crate::item::Key;
use crate::lane::Active;
use crate::pool::{DEAD_MAX, Dead, Pool, Spare};
use crate::read::lane_dir;
use crate::record::Place;
use crate::segment::{TRAILER_BYTES, Trailer, UNFINISHED_SUFFIX, incarnation, segment_path};
use crate::staging::VoteChange;
use crate::state::Health;
use crate::vfs::{FileId, Vfs, read_through, unfinished_path};

pub(crate) const CUT_SUFFIX: &str = ".cut";
pub(crate) const DAMAGED_SUFFIX: &str = ".damaged";
/// Of the vote file of another lane or data directory.
const FOREIGN_SUFFIX: &str = ".foreign";
/// So many of them are kept: an operator is to look at them before there are more.
const FOREIGN_VOTES_MAX: u64 = 8;
/// Cut tails kept aside; the oldest go first.
const CUTS_MAX: usize = 8;
const WINDOW_BYTES: usize = 1 << 20;

/// What a lane goes on from.
pub(crate) struct Recovered {
    pub(crate) tables: Tables,
    pub(crate) active: Active,
    pub(crate) pool: Pool,
    pub(crate) votes: VoteFile,
    pub(crate) last_lsn: u64,
    pub(crate) report: RecoveryReport,
    pub(crate) opening: Opening,
}

/// What the first record of a new life says.
#[derive(Debug, Default)]
pub(crate) struct Opening {
    /// Votes that the log did not have.
    pub(crate) hard_states: Vec<(Key, HardState)>,
    pub(crate) healths: Vec<(Key, Health)>,
    /// Segment, offset and bytes that were cut.
    pub(crate) cut: (u64, u64, u64),
}

/// Makes what was analysed ready to be appended to. Done twice, it changes nothing the second
/// time; interrupted anywhere, it is done again.
pub(crate) fn mend(
    vfs: &Arc<dyn Vfs>,
    data_dir: &Path,
    options: &LaneOptions,
    analysis: Analysis,
) -> Result<Recovered, LogError> {
    let dir = lane_dir(data_dir, options.lane);
    let Analysis {
        mut files,
        tables,
        active,
        cut,
        torn_first,
        unproven_at,
        is_closed,
        footer,
        newest,
        successor,
        numbers_end,
        last_lsn,
        dead,
        aside,
        votes: votes_found,
        mut report,
        healths,
        voted,
    } = analysis;
    let mut opening = Opening::default();
    let foreign_votes = match votes_found.is_foreign {
        true => Some(foreign_votes_aside(vfs.as_ref(), data_dir, options)?),
        false => None,
    };
    remove_unfinished(vfs.as_ref(), &dir, &vote_path(data_dir, options.lane))?;
    if let Some(active) = &active {
        if !active.is_sealed || footer.is_some() {
            write_again(vfs.as_ref(), active.file, unproven_at, active.offset)?;
        }
        if let Some((offset, lsn)) = footer {
            write_trailer(vfs.as_ref(), active, offset, lsn)?;
        }
        vfs.sync(active.file)?;
    }
    // Before anything is cut that makes votes suspect: what is unknown now must stay so.
    if let Some(aside) = foreign_votes {
        vfs.replace(&vote_path(data_dir, options.lane), &aside)?;
        vfs.sync_dir(data_dir)?;
    }
    let wanted = votes_wanted(&tables, &votes_found, &voted);
    let ids = (options.lane, options.log_identity());
    let votes = VoteFile::open(vfs, data_dir, ids, &votes_found, &wanted)?;
    if let Some(active) = &active
        && !active.is_sealed
    {
        let from = (active.number, active.file);
        let kept = keep_aside(vfs.as_ref(), &dir, from, cut, last_lsn)?;
        name_kept(&mut report, (active.number, cut), kept);
        clear_tail(vfs.as_ref(), active, cut)?;
        opening.cut = (active.number, cut.offset, cut.bytes);
    }
    let reusable = bury(vfs.as_ref(), &dir, options, &files, &dead)?;
    for number in aside {
        // Nothing in it counts, and nothing of it is thrown away.
        files.close(number);
        let path = segment_path(&dir, number);
        let mut name = path.clone().into_os_string();
        name.push(DAMAGED_SUFFIX);
        vfs.replace(&path, Path::new(&name))?;
        vfs.sync_dir(&dir)?;
    }
    if let Some((number, cut)) = torn_first
        && let Some(torn) = files.get(&number)
    {
        // It gets a new life below: what is in it counts for nothing.
        let from = (number, torn.file);
        let kept = keep_aside(vfs.as_ref(), &dir, from, cut, last_lsn)?;
        name_kept(&mut report, (number, cut), kept);
        opening.cut = (number, cut.offset, cut.bytes);
    }
    let next = Next {
        newest,
        successor,
        is_untouched: is_closed,
    };
    let spares = spares(vfs.as_ref(), &dir, options, (&files, &tables, &dead), next)?;
    files.hand_over(&tables);
    for key in voted {
        let hard_state = tables.replicas[&key].state.hard_state;
        opening.hard_states.push((key, hard_state));
    }
    for key in healths {
        let health = tables.replicas[&key].state.health.clone();
        opening.healths.push((key, health));
    }
    let made = spares.back().map_or(0, |spare| spare.number + 1);
    let next = made.max(numbers_end);
    let ahead = (spares, reusable);
    let pool = Pool::new(Arc::clone(vfs), dir, options, next, ahead, last_lsn);
    let active = active.unwrap_or_else(|| Active::none(newest));
    Ok(Recovered {
        tables,
        active,
        pool,
        votes,
        last_lsn,
        report,
        opening,
    })
}

/// Removes segments that nothing needs, save those that can become others: their room is made.
fn bury(
    vfs: &dyn Vfs,
    dir: &Path,
    options: &LaneOptions,
    files: &BTreeMap<u64, SegmentFile>,
    dead: &[u64],
) -> Result<Vec<Dead>, LogError> {
    let mut reusable = Vec::new();
    let mut is_changed = false;
    for number in dead {
        let file = &files[number];
        let path = segment_path(dir, *number);
        // Whoever read from it in an earlier life of this process keeps what it read.
        let is_held = vfs.retire(file.file);
        let header = file.header.filter(|header| {
            header.number == *number
                && !is_held
                && !file.is_short
                && file.len == options.segment_size_bytes
                && reusable.len() < DEAD_MAX
        });
        if let Some(header) = header {
            reusable.push(Dead {
                path,
                len: file.len,
                incarnation: header.incarnation,
            });
        } else {
            vfs.remove_file(&path)?;
            is_changed = true;
        }
    }
    if is_changed {
        vfs.sync_dir(dir)?;
    }
    Ok(reusable)
}

/// Files that were to become segments, or the vote file, and did not: they take room.
fn remove_unfinished(vfs: &dyn Vfs, dir: &Path, votes: &Path) -> Result<(), LogError> {
    for entry in vfs.list(dir)? {
        if entry.is_file && entry.name.ends_with(UNFINISHED_SUFFIX) {
            vfs.remove_file(&dir.join(&entry.name))?;
        }
    }
    let unfinished = unfinished_path(votes);
    let (Some(data_dir), Some(name)) = (unfinished.parent(), unfinished.file_name()) else {
        return Ok(());
    };
    let mut others = vfs.list(data_dir)?.into_iter();
    if others.any(|other| other.is_file && name == other.name.as_str()) {
        vfs.remove_file(&unfinished)?;
    }
    Ok(())
}

/// The report says under which name a cut is kept.
fn name_kept(report: &mut RecoveryReport, (segment, cut): (u64, Cut), kept: Option<String>) {
    let mut torn = report.torn.iter_mut();
    let found = torn.find(|torn| (torn.segment, torn.offset) == (segment, cut.offset));
    if let Some(torn) = found {
        torn.kept = kept;
    }
}

/// Writes what is about to be cut into a file beside the segments, and returns its name; none if a
/// full disk has no room for it: the log opens all the same.
fn keep_aside(
    vfs: &dyn Vfs,
    dir: &Path,
    (number, from): (u64, FileId),
    cut: Cut,
    last_lsn: u64,
) -> Result<Option<String>, LogError> {
    if cut.bytes == 0 {
        return Ok(None);
    }
    let name = format!(
        "{number:016x}-{:08x}-{last_lsn:016x}{CUT_SUFFIX}",
        cut.offset
    );
    let path = dir.join(&name);
    match write_aside(vfs, &path, from, cut) {
        Err(LogError::Io(error)) if error.is_storage_full() => {
            // A part of it says less than it takes from those who need room.
            drop(vfs.remove_file(&path));
            return Ok(None);
        }
        written => written?,
    }
    let mut cuts: Vec<String> = vfs
        .list(dir)?
        .into_iter()
        .map(|entry| entry.name)
        .filter(|name| name.ends_with(CUT_SUFFIX))
        .collect();
    cuts.sort_unstable();
    let excess = cuts.len().saturating_sub(CUTS_MAX);
    for old in &cuts[..excess] {
        vfs.remove_file(&dir.join(old))?;
    }
    vfs.sync_dir(dir)?;
    Ok(Some(name))
}

fn write_aside(vfs: &dyn Vfs, path: &Path, from: FileId, cut: Cut) -> Result<(), LogError> {
    let file = vfs.create(path)?;
    let copied = copy(vfs, from, cut, file).and_then(|()| Ok(vfs.sync(file)?));
    vfs.close(file);
    copied
}

fn copy(vfs: &dyn Vfs, from: FileId, cut: Cut, to: FileId) -> Result<(), LogError> {
    let mut at = 0;
    while at < cut.bytes {
        let len = usize::try_from(cut.bytes - at)
            .unwrap_or(WINDOW_BYTES)
            .min(WINDOW_BYTES);
        let (bytes, _) = read_through(vfs, from, cut.offset + at, len)?;
        vfs.write(to, at, &bytes)?;
        at += to_u64(len);
    }
    Ok(())
}

/// Zeroes the segment from the cut to its end, so that nothing there can ever follow what is
/// appended next.
fn clear_tail(vfs: &dyn Vfs, active: &Active, cut: Cut) -> Result<(), LogError> {
    if !cut.is_dirty {
        return Ok(());
    }
    let zeroes = vec![0; WINDOW_BYTES];
    let mut at = cut.offset;
    while at < active.len {
        let len = usize::try_from(active.len - at)
            .unwrap_or(WINDOW_BYTES)
            .min(WINDOW_BYTES);
        let (window, _) = read_through(vfs, active.file, at, len)?;
        if window.iter().any(|&byte| byte != 0) {
            vfs.write(active.file, at, &zeroes[..len])?;
        }
        at += to_u64(len);
    }
    // Before anything is written in its place.
    vfs.sync(active.file)?;
    Ok(())
}

/// A process that died, or a sync that failed, may have left pages that the system calls clean and
/// the disk never saw.
fn write_again(vfs: &dyn Vfs, file: FileId, from: u64, to: u64) -> Result<(), LogError> {
    let mut at = from;
    while at < to {
        let len = usize::try_from(to - at)
            .unwrap_or(WINDOW_BYTES)
            .min(WINDOW_BYTES);
        let bytes = vfs.read(file, at, len)?;
        vfs.write(file, at, &bytes)?;
        at += to_u64(len);
    }
    Ok(())
}

fn write_trailer(vfs: &dyn Vfs, active: &Active, offset: u64, lsn: u64) -> Result<(), LogError> {
    let trailer_at = active.len - to_u64(TRAILER_BYTES);
    let place = Place {
        incarnation: active.incarnation,
        offset: trailer_at,
    };
    let trailer = Trailer {
        footer_offset: offset,
        footer_lsn: lsn,
    };
    vfs.write(active.file, trailer_at, &trailer.encode(place))?;
    Ok(())
}

/// The segments prepared ahead, each made sure to hold nothing that could be taken for a record.
fn spares(
    vfs: &dyn Vfs,
    dir: &Path,
    options: &LaneOptions,
    (files, tables, dead): (&BTreeMap<u64, SegmentFile>, &Tables, &[u64]),
    next: Next,
) -> Result<VecDeque<Spare>, LogError> {
    let newest = next.newest;
    let mut spares = VecDeque::new();
    let mut excess = Vec::new();
    for (number, file) in files.range(newest + 1..) {
        if tables.segments.contains_key(number) || dead.contains(number) {
            // It lies apart, and counts; or it did, and was released.
            continue;
        }
        let is_misnamed = file.header.is_some_and(|header| header.number != *number);
        if is_misnamed {
            continue;
        }
        let is_next = next.successor == Some(*number);
        let follows = next.successor.is_none_or(|successor| *number >= successor);
        let is_whole = file.header.is_some() && !file.is_short;
        let is_of_size = file.len >= options.segment_size_bytes || is_next;
        if !follows || !is_whole || !is_of_size {
            excess.push(*number);
            continue;
        }
        spares.push_back(renew(vfs, options, file, next.is_untouched)?);
    }
    // From the end, each durable: a number that is there says that those before it were made.
    for number in excess.into_iter().rev() {
        vfs.remove_file(&segment_path(dir, number))?;
        vfs.sync_dir(dir)?;
    }
    Ok(spares)
}

/// What is known of the segments behind the newest.
#[derive(Clone, Copy)]
struct Next {
    newest: u64,
    /// The newest is sealed: its successor is there, and stays.
    successor: Option<u64>,
    /// The lane was closed: no write was on its way to one of them.
    is_untouched: bool,
}

/// A new incarnation, unless nothing can have been written behind the header: what was moved to it
/// counts for nothing.
fn renew(
    vfs: &dyn Vfs,
    options: &LaneOptions,
    file: &SegmentFile,
    is_untouched: bool,
) -> Result<Spare, LogError> {
    let mut header = file.header.expect("the caller has seen it");
    if !is_untouched || header.is_apart {
        (header.is_recycled, header.is_apart) = (true, false);
        header.incarnation = incarnation(
            options.log_identity(),
            options.lane,
            header.number,
            header.incarnation,
        );
        vfs.write(file.file, 0, &header.encode())?;
        vfs.sync(file.file)?;
    }
    Ok(Spare {
        number: header.number,
        len: file.len,
        incarnation: header.incarnation,
    })
}

/// What the vote file is to say: of whom the log says otherwise, and of whom it says nothing.
fn votes_wanted(tables: &Tables, found: &VotesFound, voted: &BTreeSet<Key>) -> VotesWanted {
    let gone = tables.tombstones();
    let mut changes = Vec::new();
    for key in tables.keys() {
        let state = &tables.replicas[&key].state;
        let hard_state = state.hard_state;
        let change = VoteChange {
            key,
            term: hard_state.term,
            vote: hard_state.vote,
            is_fenced: state.health == Health::VoteUnknown,
        };
        let is_told = found.replicas.get(&key).is_some_and(|vote| {
            let slot = vote.newest;
            (slot.term, slot.vote, slot.is_fenced) == (change.term, change.vote, change.is_fenced)
        });
        let says_something = change.term > Term::ZERO || change.is_fenced;
        if !is_told && says_something && !gone.contains(&key) {
            changes.push(change);
        }
    }
    for (key, vote) in &found.replicas {
        // The first record of a replica was cut, and its slot was not: it never was.
        if !tables.replicas.contains_key(key) && vote.newest.term > Term::ZERO {
            changes.push(VoteChange {
                key: *key,
                term: Term::ZERO,
                vote: None,
                is_fenced: false,
            });
        }
    }
    VotesWanted {
        changes,
        ahead: voted.clone(),
        gone,
    }
}

/// Where the vote file of another lane or data directory is kept, if one is there. Nothing that lies
/// there already is written over.
fn foreign_votes_aside(
    vfs: &dyn Vfs,
    data_dir: &Path,
    options: &LaneOptions,
) -> Result<PathBuf, LogError> {
    let path = vote_path(data_dir, options.lane);
    let taken: BTreeSet<String> = vfs.list(data_dir)?.into_iter().map(|e| e.name).collect();
    let base = path.file_name().unwrap_or_default().to_string_lossy();
    let names = (1..=FOREIGN_VOTES_MAX).map(|number| match number {
        1 => format!("{base}{FOREIGN_SUFFIX}"),
        number => format!("{base}{FOREIGN_SUFFIX}.{number}"),
    });
    let names: Vec<String> = names.collect();
    match names.iter().find(|name| !taken.contains(*name)) {
        Some(free) => Ok(data_dir.join(free)),
        None => Err(LogError::Foreign {
            path: data_dir.to_owned(),
            files: names,
        }),
    }
}

fn to_u64(len: usize) -> u64 {
    u64::try_from(len).expect("a length fits")
}
