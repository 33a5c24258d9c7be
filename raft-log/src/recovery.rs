//! What an open does: find what is durable, tell a torn tail from damage, mend what may be mended.
//! See FORMAT.md, "Recovery".
//!
//! [`analyse`] only reads; [`mend()`] writes. The tools stop after the first.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use raft_proto::{GroupId, Index, ReplicaId};

use crate::config::LaneOptions;
use crate::error::LogError;
use crate::hard_state::{self, VotesFound};
use crate::index::Tables;
use crate::item::{ApartItem, Item, Key, Limits};
use crate::lane::Active;
use crate::owners::OwnerSet;
use crate::read::lane_dir;
use crate::record::RecordKind;
use crate::segment::{
    SEGMENT_HEADER_BYTES, SegmentHeader, UNFINISHED_SUFFIX, segment_number, segment_path,
};
use crate::state::{Damage, Health, ReplicaState};
use crate::vfs::Vfs;

mod behind;
mod files;
mod mend;
mod scan;
mod sealed;
mod segment_bytes;
mod take;
mod verify;

pub(crate) use files::{Files, SegmentFile};
pub(crate) use mend::{Opening, mend};
pub(crate) use segment_bytes::{Record, SegmentBytes};

/// What an open found.
#[derive(Clone, Debug, Default)]
pub struct Recovery {
    /// The replicas.
    pub replicas: BTreeMap<(GroupId, ReplicaId), ReplicaState>,
    /// What was amiss.
    pub report: RecoveryReport,
}

/// What was amiss. All empty after a clean close.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// What a crash interrupted, and was cut: never acknowledged.
    pub torn: Vec<TornReport>,
    /// Places where what had been durable is lost.
    pub damaged: Vec<DamageReport>,
    /// Records with a flipped bit, which is known and read as it was written: nothing is lost, and
    /// nobody is concerned. They are found at each open until their segment goes.
    pub mended: Vec<MendedReport>,
    /// Numbers of segments that are gone.
    pub missing: Vec<u64>,
    /// Files that bear a segment's name and are not that segment.
    pub foreign: Vec<String>,
    /// Files that are none of ours; they are left alone.
    pub ignored: Vec<String>,
}

/// A write that a crash interrupted: it was never acknowledged, and an open cuts it off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornReport {
    /// The segment.
    pub segment: u64,
    /// The byte in it where the write began, or where what is left of it does.
    pub offset: u64,
    /// Bytes cut, from there on.
    pub bytes: u64,
    /// The name of the file in the segment's directory that an open has put them in. `None`: they are
    /// gone, as the disk is full or as nothing of them had reached it; or nothing was cut yet, as the
    /// log was only looked at.
    pub kept: Option<String>,
}

/// A place where what had been durable is lost, and whom it concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamageReport {
    /// The segment; 0: the vote file, or it is not known.
    pub segment: u64,
    /// The byte in it.
    pub offset: u64,
    /// What is wrong.
    pub reason: &'static str,
    /// The replicas that lost something, and the entries lost, inclusive; 0 to 0 if it may be
    /// anything but entries.
    pub replicas: Vec<(GroupId, ReplicaId, Index, Index)>,
}

/// A record whose header or table has a flipped bit that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MendedReport {
    /// The segment.
    pub segment: u64,
    /// Where in it the record begins.
    pub offset: u64,
}

impl RecoveryReport {
    /// All bytes cut.
    #[must_use]
    pub fn torn_bytes(&self) -> u64 {
        self.torn.iter().map(|torn| torn.bytes).sum()
    }

    fn note_torn(&mut self, segment: u64, offset: u64, bytes: u64) {
        self.torn.push(TornReport {
            segment,
            offset,
            bytes,
            kept: None,
        });
    }

    /// Whether records were lost, or may have been: then a vote may be lost with them.
    pub(crate) fn is_suspect(&self) -> bool {
        !self.torn.is_empty()
            || !self.damaged.is_empty()
            || !self.missing.is_empty()
            || !self.foreign.is_empty()
    }
}

/// How far ahead of the newest segment a record may say that numbers were given out: no log gives out
/// so many beside one segment, and it has so many lies to go before there is none left.
const NUMBERS_AHEAD_MAX: u64 = 1 << 32;

/// What is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) offset: u64,
    /// Bytes that were written there, about: 0 if there is nothing to keep aside.
    pub(crate) bytes: u64,
    /// Whether the rest must be zeroed.
    pub(crate) is_dirty: bool,
}

/// What the files say.
#[derive(Debug)]
pub(crate) struct Analysis {
    pub(crate) files: Files,
    pub(crate) tables: Tables,
    /// The segment appended to last; `None` if there is none, or none that may be appended to.
    pub(crate) active: Option<Active>,
    pub(crate) cut: Cut,
    /// A first write that was torn, in a segment behind the active one: whose, and what of it.
    pub(crate) torn_first: Option<(u64, Cut)>,
    /// From here on the active segment is written again before it is trusted.
    pub(crate) unproven_at: u64,
    /// The last record is that of a clean close.
    pub(crate) is_closed: bool,
    /// The active segment's footer, if it ends with one: offset and lsn.
    pub(crate) footer: Option<(u64, u64)>,
    /// The last segment that holds records.
    pub(crate) newest: u64,
    /// The one that follows it, if it is sealed and says so.
    pub(crate) successor: Option<u64>,
    /// All numbers that were given out, to files that are foreign or gone too, lie before.
    pub(crate) numbers_end: u64,
    pub(crate) last_lsn: u64,
    /// Files that nothing needs: removed by an open.
    pub(crate) dead: Vec<u64>,
    /// Files that were in use, or may have been, and are of no use any more: kept aside by an open.
    pub(crate) aside: Vec<u64>,
    pub(crate) votes: VotesFound,
    pub(crate) report: RecoveryReport,
    /// Replicas whose health is new, and to be recorded.
    pub(crate) healths: BTreeSet<Key>,
    /// Replicas whose vote comes from the vote file.
    pub(crate) voted: BTreeSet<Key>,
}

/// The state while the records are gone through.
struct Walk<'a> {
    vfs: &'a dyn Vfs,
    options: &'a LaneOptions,
    tables: Tables,
    report: RecoveryReport,
    healths: BTreeSet<Key>,
    voted: BTreeSet<Key>,
    /// Segments whose file bears another segment's header.
    misnamed: BTreeSet<u64>,
    aside: BTreeSet<u64>,
    /// Those of all files, whatever they hold.
    numbers: BTreeSet<u64>,
    /// What the last record that says so says.
    limits: Limits,
    /// Something lies behind the last record that may have been a write, or stale.
    may_be_cut: bool,
    /// Segments named by a checkpoint; those released since are gone.
    named: BTreeMap<u64, Named>,
    released: BTreeSet<u64>,
    /// What the base's checkpoint takes.
    checkpoint_len: u64,
    /// Records whose table is lost.
    lost_tables: Vec<LostTable>,
    /// What does not hold in segments that were taken by their footers.
    lost: Vec<verify::Lost>,
    /// Records of a segment without a footer are lost, or may be: what they overwrote would count.
    may_count_overwritten: bool,
}

/// What a checkpoint says of a segment.
#[derive(Clone, Copy, Debug)]
struct Named {
    incarnation: u64,
    /// It lies apart, and counts as if it lay just before this one.
    before: Option<u64>,
    /// What it has room for still, if it lies apart.
    free_bytes: u64,
}

impl Named {
    const fn in_turn(incarnation: u64) -> Self {
        Self {
            incarnation,
            before: None,
            free_bytes: 0,
        }
    }

    const fn apart(item: &ApartItem, before: u64) -> Self {
        Self {
            incarnation: item.incarnation,
            before: Some(before),
            free_bytes: item.free_bytes,
        }
    }
}

/// A record whose table is lost, or many.
struct LostTable {
    segment: u64,
    offset: u64,
    /// Who may have been in it; `None`: anybody.
    owners: Option<OwnerSet>,
}

impl LostTable {
    /// Nobody can say what was there.
    const fn of_anybody(segment: u64, offset: u64) -> Self {
        Self {
            segment,
            offset,
            owners: None,
        }
    }
}

/// Reads everything and changes nothing.
pub(crate) fn analyse(
    vfs: &Arc<dyn Vfs>,
    data_dir: &Path,
    options: &LaneOptions,
) -> Result<Analysis, LogError> {
    let dir = lane_dir(data_dir, options.lane);
    let mut files = Files::new(Arc::clone(vfs));
    let vfs = vfs.as_ref();
    let votes = hard_state::load(vfs, data_dir, options.lane, options.log_identity())?;
    let mut walk = Walk {
        vfs,
        options,
        tables: Tables::default(),
        report: RecoveryReport::default(),
        healths: BTreeSet::new(),
        voted: BTreeSet::new(),
        misnamed: BTreeSet::new(),
        aside: BTreeSet::new(),
        numbers: BTreeSet::new(),
        limits: Limits::default(),
        may_be_cut: false,
        named: BTreeMap::new(),
        released: BTreeSet::new(),
        checkpoint_len: 0,
        lost_tables: Vec::new(),
        lost: Vec::new(),
        may_count_overwritten: false,
    };
    walk.find_files(&dir, &mut files)?;
    if files.is_empty() && !walk.report.foreign.is_empty() {
        return Err(LogError::Foreign {
            path: dir,
            files: walk.report.foreign,
        });
    }
    let base = walk.base(&dir, &files)?;
    walk.sealed_before(&dir, &files, base)?;
    let end = walk.records_from(&dir, &files, base)?;
    walk.settle_files(&dir, &files, base, &end)?;
    walk.settle_spares(&dir, &files, &end)?;
    walk.settle_unnamed(&dir, &files, base, &end)?;
    walk.settle(&votes);
    if options.verify_all || walk.may_count_overwritten {
        walk.verify_entries(&dir, &files, base.unwrap_or(0))?;
    }
    walk.report_votes(&votes, end.is_closed);
    let is_dead = |number: &u64| {
        (*number <= end.newest || walk.released.contains(number))
            && !walk.tables.segments.contains_key(number)
            && !walk.misnamed.contains(number)
            && !walk.aside.contains(number)
    };
    let numbers_end = walk.numbers_end(&end);
    if votes.is_foreign {
        let path = hard_state::vote_path(data_dir, options.lane);
        let name = path.file_name().and_then(|name| name.to_str());
        walk.report.foreign.extend(name.map(str::to_owned));
    }
    let dead = files.keys().copied().filter(is_dead).collect();
    Ok(Analysis {
        files,
        tables: walk.tables,
        active: end.active,
        cut: end.cut,
        torn_first: end.torn_first,
        unproven_at: end.unproven_at,
        is_closed: end.is_closed,
        footer: end.footer,
        newest: end.newest,
        successor: end.successor,
        numbers_end,
        last_lsn: end.last_lsn,
        dead,
        aside: walk.aside.into_iter().collect(),
        votes,
        report: walk.report,
        healths: walk.healths,
        voted: walk.voted,
    })
}

impl Walk<'_> {
    /// The segment files of the lane, headers read.
    fn find_files(&mut self, dir: &Path, files: &mut Files) -> Result<(), LogError> {
        for entry in self.vfs.list(dir)? {
            let number = segment_number(&entry.name).filter(|_| entry.is_file);
            let aside = entry.name.strip_suffix(mend::DAMAGED_SUFFIX);
            // Its number names no other one, which might come to lie beside it.
            self.numbers.extend(aside.and_then(segment_number));
            let Some(number) = number else {
                let is_ours = [mend::CUT_SUFFIX, mend::DAMAGED_SUFFIX, UNFINISHED_SUFFIX]
                    .iter()
                    .any(|suffix| entry.is_file && entry.name.ends_with(suffix));
                if !is_ours {
                    self.report.ignored.push(entry.name);
                }
                continue;
            };
            self.numbers.insert(number);
            let found = files.open(number, &dir.join(&entry.name))?;
            let is_foreign = found.header.is_some_and(|header| {
                header.lane != self.options.lane || header.identity != self.options.log_identity()
            });
            if is_foreign {
                files.close(number);
                self.report.foreign.push(entry.name);
            } else if found.is_long {
                let behind = format!("{} behind byte {}", entry.name, found.len);
                self.report.ignored.push(behind);
            }
        }
        Ok(())
    }

    /// The newest segment with a whole checkpoint: everything before it is told by it and by
    /// footers, everything behind by records.
    fn base(
        &mut self,
        dir: &Path,
        files: &BTreeMap<u64, SegmentFile>,
    ) -> Result<Option<u64>, LogError> {
        for (number, file) in files.iter().rev() {
            let Some(header) = file.header.filter(|header| header.number == *number) else {
                continue;
            };
            let mut segment =
                SegmentBytes::open(self.vfs, dir, file, header.incarnation, self.options)?;
            segment.glimpse(true);
            let found = segment.durable(SEGMENT_HEADER_BYTES, None)?;
            let Some(record) = found else {
                continue;
            };
            if record.is_mended && !segment.proves(&record)? {
                continue;
            }
            if record.header.kind != RecordKind::Checkpoint || record.table.is_none() {
                continue;
            }
            if segment.data(&record)?.is_none() && !segment.proves(&record)? {
                // A first write that was torn.
                continue;
            }
            if self.take_checkpoint(*number, files, &record).is_some() {
                return Ok(Some(*number));
            }
        }
        Ok(None)
    }

    fn take_checkpoint(
        &mut self,
        own: u64,
        files: &BTreeMap<u64, SegmentFile>,
        record: &Record,
    ) -> Option<()> {
        let mut tables = Tables::default();
        let mut named = BTreeMap::new();
        // What follows this segment, or counts behind what it holds, cannot be told of in it.
        let mut absurd = BTreeSet::new();
        let mut limits = Limits::default();
        for item in crate::item::items(record.table.as_ref()?) {
            match item? {
                (None, Item::Segments(segments)) => {
                    for (number, incarnation) in segments {
                        if number <= own {
                            named.insert(number, Named::in_turn(incarnation));
                        } else {
                            absurd.insert(number);
                        }
                    }
                }
                (None, Item::Apart(segments)) => {
                    for segment in segments {
                        match segment.before {
                            Some(before) if before < own && segment.number != own => {
                                named.insert(segment.number, Named::apart(&segment, before));
                            }
                            _ => drop(absurd.insert(segment.number)),
                        }
                    }
                }
                (None, Item::Limits(found)) => limits = found,
                (Some(key), Item::State(state)) => {
                    tables.replicas.entry(key).or_default().state = *state;
                }
                (Some(key), Item::Tombstone | Item::Health(Health::Tombstone)) => {
                    tables.replicas.entry(key).or_default().state.bury();
                }
                (Some(key), Item::Health(health)) => {
                    tables.replicas.entry(key).or_default().state.health = health;
                }
                _ => return None,
            }
        }
        absurd.retain(|number| !named.contains_key(number));
        let is_old = |number: &&u64| **number < own && files.contains_key(number);
        self.misnamed.extend(absurd.iter().filter(is_old));
        self.report.missing.extend(absurd);
        self.tables = tables;
        self.named = named;
        self.limits = limits;
        self.checkpoint_len = u64::try_from(record.header.total()).unwrap_or_default();
        Some(())
    }

    /// Takes the segments that the checkpoint names, all but the one it lies in: by their footers,
    /// or record by record where there is none.
    fn sealed_before(
        &mut self,
        dir: &Path,
        files: &BTreeMap<u64, SegmentFile>,
        base: Option<u64>,
    ) -> Result<(), LogError> {
        let Some(base) = base else {
            return Ok(());
        };
        // One apart may have a higher number, if the one before it was never named.
        let named = self.named.iter().filter(|(number, _)| **number != base);
        let mut named: Vec<(u64, Named)> = named.map(|(n, named)| (*n, *named)).collect();
        named.sort_by_key(|(number, named)| match named.before {
            Some(before) => (before, false, *number),
            None => (*number, true, *number),
        });
        for (number, named) in named {
            self.take_sealed(dir, files, number, named)?;
        }
        Ok(())
    }

    /// From here on no number was given out.
    fn numbers_end(&self, end: &End) -> u64 {
        // A log without a record begins anew: those before its first segment would be missed.
        let is_new = end.newest == 0 && self.report.foreign.is_empty();
        let files = self.numbers.range(..=end.newest + 2 * NUMBERS_AHEAD_MAX);
        let of_files = files.last().copied().filter(|_| !is_new);
        // Of one that is told of nobody knows whether it was there.
        let told = self.named.keys().chain(&self.released).copied();
        let told = told
            .chain(end.successor)
            .map(|number| number.saturating_add(1));
        let told = told.chain([self.limits.numbers_end]);
        let told = told.map(|number| number.min(end.newest + NUMBERS_AHEAD_MAX));
        told.fold(of_files.unwrap_or(0).max(end.newest) + 1, u64::max)
    }

    fn damage(
        &mut self,
        segment: u64,
        offset: u64,
        reason: &'static str,
        replicas: &[(Key, Index, Index)],
    ) {
        for (key, first, last) in replicas {
            let damage = Damage {
                segment,
                offset,
                first: *first,
                last: *last,
            };
            self.hurt(*key, Health::Damaged(damage));
        }
        self.report.damaged.push(DamageReport {
            segment,
            offset,
            reason,
            replicas: replicas
                .iter()
                .map(|(key, first, last)| (key.0, key.1, *first, *last))
                .collect(),
        });
    }

    /// A replica is worse off than was recorded.
    fn hurt(&mut self, key: Key, health: Health) {
        let state = &mut self.tables.replicas.entry(key).or_default().state;
        if state.health == Health::Sound {
            state.health = health;
            self.healths.insert(key);
        }
    }

    /// Whether a replica is sound, or was until now: what more it lost is news.
    fn was_sound(&self, key: Key) -> bool {
        let replica = self.tables.replicas.get(&key);
        let is_sound = replica.is_some_and(|found| found.state.health == Health::Sound);
        is_sound || self.healths.contains(&key)
    }

    /// What the names of files say once it is known which segments were released.
    fn settle_files(
        &mut self,
        dir: &Path,
        files: &BTreeMap<u64, SegmentFile>,
        base: Option<u64>,
        end: &End,
    ) -> Result<(), LogError> {
        for number in &self.released {
            self.named.remove(number);
            self.misnamed.remove(number);
        }
        // Entries that nothing else holds any more are missing then.
        self.tables.forget(&self.released);
        self.report
            .missing
            .retain(|number| !self.released.contains(number));
        for (number, file) in files {
            if !self.tables.segments.contains_key(number) {
                continue;
            }
            if file.is_half {
                self.damage(*number, 0, "one copy of the header is unreadable", &[]);
            }
            if file.is_short {
                self.damage(*number, file.len, "the file is cut short", &[]);
            }
        }
        for (number, file) in files {
            let Some(header) = file.header.filter(|header| header.number != *number) else {
                continue;
            };
            let was_released = self.released.contains(number)
                || *number < base.unwrap_or(0) && !self.named.contains_key(number);
            if was_released && self.is_leftover(dir, file, header, files, end)? {
                continue;
            }
            self.misnamed.insert(*number);
            if header.number > end.newest {
                let lost = LostTable::of_anybody(header.number, 0);
                self.lost_tables.push(lost);
            }
        }
        for number in &self.misnamed {
            self.report.foreign.push(name_of(dir, *number));
            if self.named.contains_key(number) {
                self.report.missing.push(*number);
            }
        }
        if let Some(successor) = end.successor
            && !files.contains_key(&successor)
        {
            // A segment is sealed only when the next one is there.
            self.report.missing.push(successor);
            self.lost_tables.push(LostTable::of_anybody(successor, 0));
        }
        self.report.missing.sort_unstable();
        Ok(())
    }

    /// Whether a file that bears another segment's header was on its way to a second life and did
    /// not reach it: nothing was written behind that header, and no segment is missed for it.
    fn is_leftover(
        &self,
        dir: &Path,
        file: &SegmentFile,
        header: SegmentHeader,
        files: &BTreeMap<u64, SegmentFile>,
        end: &End,
    ) -> Result<bool, LogError> {
        let number = header.number;
        let is_there = |file: &SegmentFile| file.header.is_some_and(|own| own.number == number);
        let is_missed = (self.named.contains_key(&number) || end.successor == Some(number))
            && !files.get(&number).is_some_and(is_there);
        if is_missed || !header.is_recycled || number < file.number {
            return Ok(false);
        }
        let incarnation = header.incarnation;
        let mut segment = SegmentBytes::open(self.vfs, dir, file, incarnation, self.options)?;
        Ok(segment.next_record(SEGMENT_HEADER_BYTES)?.is_none())
    }

    /// A segment that was made ahead and cannot be read is of no use, and what is in it may be.
    fn settle_spares(
        &mut self,
        dir: &Path,
        files: &BTreeMap<u64, SegmentFile>,
        end: &End,
    ) -> Result<(), LogError> {
        for (number, file) in files.range(end.newest + 1..) {
            let segment = SegmentBytes::open(self.vfs, dir, file, 0, self.options)?;
            // One in the making holds zeroes alone.
            let is_used = || segment.last_used(SEGMENT_HEADER_BYTES, segment.len());
            let is_known = self.tables.segments.contains_key(number);
            if file.header.is_none() && !is_known && is_used()?.is_some() {
                self.aside.insert(*number);
                let reason = "the header and its copy are unreadable: the file is kept aside";
                self.damage(*number, 0, reason, &[]);
            }
        }
        Ok(())
    }

    /// What named a segment apart may be lost, and what it was copied from released since: one that
    /// nothing names is kept then.
    fn settle_unnamed(
        &mut self,
        dir: &Path,
        files: &BTreeMap<u64, SegmentFile>,
        base: Option<u64>,
        end: &End,
    ) -> Result<(), LogError> {
        // Without a checkpoint nothing was ever moved.
        let is_whole = !end.has_damage && self.lost_tables.is_empty() && base.is_some();
        if is_whole {
            return Ok(());
        }
        for (number, file) in files {
            let is_told = self.tables.segments.contains_key(number)
                || self.named.contains_key(number)
                || self.released.contains(number)
                || self.misnamed.contains(number)
                || end.successor == Some(*number);
            let Some(header) = file.header.filter(|header| header.is_apart && !is_told) else {
                continue;
            };
            let incarnation = header.incarnation;
            let mut segment = SegmentBytes::open(self.vfs, dir, file, incarnation, self.options)?;
            if segment.has_footer()? {
                self.aside.insert(*number);
                let reason = "nothing names this segment of moved entries: the file is kept aside";
                self.damage(*number, 0, reason, &[]);
            }
        }
        Ok(())
    }

    /// Holds what was found against itself: gaps, names of what is not there, votes.
    fn settle(&mut self, votes: &VotesFound) {
        let missing = self.report.missing.first().copied().unwrap_or_default();
        let mut lost = Vec::new();
        for key in self.tables.keys() {
            self.tables.clip(key);
            if !self.was_sound(key) {
                continue;
            }
            let state = &self.tables.replicas[&key].state;
            let last = state.last.index;
            let snapshot = state.snapshots.last().map_or(Index::ZERO, |s| s.id.index);
            let named = state.hard_state.commit.max(snapshot);
            let gaps = self.tables.gaps(key).into_iter();
            lost.extend(gaps.map(|(first, last)| (key, first, last)));
            if named > last {
                lost.push((key, last.next(), named));
            }
        }
        if !lost.is_empty() {
            self.damage(missing, 0, "entries are missing", &lost);
        }
        let lost_tables = std::mem::take(&mut self.lost_tables);
        for lost in &lost_tables {
            // All who may have been in it are stopped.
            let may_own = |key: &Key| lost.owners.is_none_or(|owners| owners.may_hold(*key));
            let all: Vec<(Key, Index, Index)> = self
                .tables
                .keys()
                .into_iter()
                .filter(|key| self.was_sound(*key))
                .filter(may_own)
                .map(|key| (key, Index::ZERO, Index::ZERO))
                .collect();
            let reason = "a record's table is lost";
            self.damage(lost.segment, lost.offset, reason, &all);
        }
        self.settle_votes(votes, &lost_tables);
    }

    /// What the log has of whom the vote file has lost is written again: nobody is concerned.
    fn report_votes(&mut self, votes: &VotesFound, is_closed: bool) {
        let torn = votes.torn.iter().filter(|_| is_closed);
        for (offset, reason) in votes.damage.iter().chain(torn) {
            self.damage(0, *offset, reason, &[]);
        }
    }

    fn settle_votes(&mut self, votes: &VotesFound, lost_tables: &[LostTable]) {
        let is_suspect = self.report.is_suspect() || self.may_be_cut;
        let has_lost_file = !votes.exists && self.tables.replicas.values().any(has_voted);
        for (key, found) in &votes.replicas {
            if self.tables.replicas.contains_key(key) {
                continue;
            }
            let has_term = |slot: hard_state::Slot| slot.term > raft_proto::Term::ZERO;
            // The second slot is written only when the log has the replica; the first is durable
            // together with its first record, which may be one that is lost.
            let was_logged = found.second.is_some_and(has_term);
            let may_own = |lost: &LostTable| lost.owners.is_none_or(|it| it.may_hold(*key));
            let may_be_lost = has_term(found.newest) && lost_tables.iter().any(may_own);
            if was_logged || may_be_lost {
                let lost = [(*key, Index::ZERO, Index::ZERO)];
                self.damage(0, 0, "the log lost a replica that the vote file has", &lost);
            }
        }
        for key in self.tables.keys() {
            let state = &self.tables.replicas[&key].state;
            if state.health == Health::Tombstone {
                continue;
            }
            let logged = (state.hard_state.term, state.hard_state.vote.is_some());
            let Some(found) = votes.replicas.get(&key) else {
                let may_have_voted = votes.has_lost_slots || has_lost_file;
                if may_have_voted && is_suspect {
                    self.hurt(key, Health::VoteUnknown);
                }
                continue;
            };
            if found.newest.is_fenced || (found.is_half_bad && is_suspect) {
                self.hurt(key, Health::VoteUnknown);
                continue;
            }
            let is_ahead = |slot: &hard_state::Slot| (slot.term, slot.vote.is_some()) > logged;
            if found.second.as_ref().is_some_and(is_ahead) {
                // The second slot is written only when the log has the vote: the log lost it.
                let lost = [(key, Index::ZERO, Index::ZERO)];
                self.damage(0, 0, "the log lost a vote that the vote file has", &lost);
            }
            if is_ahead(&found.newest) {
                let state = &mut self.tables.replicas.entry(key).or_default().state;
                state.hard_state.term = found.newest.term;
                state.hard_state.vote = found.newest.vote;
                self.voted.insert(key);
            }
        }
    }
}

fn has_voted(replica: &crate::index::Replica) -> bool {
    replica.state.hard_state.term > raft_proto::Term::ZERO
}

fn name_of(dir: &Path, number: u64) -> String {
    let path = segment_path(dir, number);
    let name = path.file_name().and_then(|name| name.to_str());
    name.unwrap_or_default().to_owned()
}

/// Where the records end.
struct End {
    active: Option<Active>,
    cut: Cut,
    torn_first: Option<(u64, Cut)>,
    unproven_at: u64,
    is_closed: bool,
    footer: Option<(u64, u64)>,
    newest: u64,
    /// What follows the newest segment by its footer, if that is the last thing in it.
    successor: Option<u64>,
    last_lsn: u64,
    /// Records are lost.
    has_damage: bool,
}
