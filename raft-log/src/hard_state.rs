//! The vote file: each replica's term and vote in two slots. See FORMAT.md, "Votes".

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use raft_proto::{GroupId, ReplicaId, Term, crc32c_append};
use rustc_hash::FxHashMap;

use crate::error::LogError;
use crate::item::Key;
use crate::record::is_zero;
use crate::segment::SECTOR_BYTES;
use crate::staging::VoteChange;
use crate::vfs::{FileId, OwnedFile, Vfs, read_through, unfinished_path};

pub(crate) const SLOT_BYTES: usize = 64;
pub(crate) const HALVES_AT: usize = 4096;
const HEADER_BYTES: usize = 512;
const HEADER_MAGIC: u64 = 0x3153_4554_4F56_5446;
const SLOT_MAGIC: u32 = 0x544F_4C53;
const VERSION: u32 = 1;
const CAPACITY_MIN: usize = 1024;
const CAPACITY_MAX: usize = 1 << 24;
const FLAG_FENCED: u32 = 1;
const SLOTS_PER_SECTOR: usize = SECTOR_BYTES / SLOT_BYTES;
/// Slots to be written that lie no further apart than this go with one write.
const GAP_SLOTS_MAX: usize = 64;

/// What one slot says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) sequence: u64,
    pub(crate) key: Key,
    pub(crate) term: Term,
    pub(crate) vote: Option<ReplicaId>,
    /// The replica never votes again.
    pub(crate) is_fenced: bool,
}

/// The two halves, in the order they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    A,
    B,
}

impl Slot {
    fn encode(&self, half: Half, slot: usize) -> [u8; SLOT_BYTES] {
        let mut out = [0; SLOT_BYTES];
        let mut fields = &mut out[..];
        fields.put_u32_le(SLOT_MAGIC);
        fields.put_u32_le(if self.is_fenced { FLAG_FENCED } else { 0 });
        fields.put_u64_le(self.sequence);
        fields.put_u64_le(self.key.0.get());
        fields.put_u64_le(self.key.1.get());
        fields.put_u64_le(self.term.get());
        fields.put_u64_le(self.vote.map_or(0, ReplicaId::get));
        let crc = checksum(&out[..SLOT_BYTES - 4], half, slot);
        out[SLOT_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8], half: Half, slot: usize) -> Option<Self> {
        let (covered, mut crc) = bytes.split_at(SLOT_BYTES - 4);
        let mut fields = covered;
        if crc.get_u32_le() != checksum(covered, half, slot) || fields.get_u32_le() != SLOT_MAGIC {
            return None;
        }
        let flags = fields.get_u32_le();
        let sequence = fields.get_u64_le();
        let group = GroupId::new(fields.get_u64_le())?;
        let replica = ReplicaId::new(fields.get_u64_le())?;
        let term = Term::new(fields.get_u64_le());
        let vote = match fields.get_u64_le() {
            0 => None,
            vote => Some(ReplicaId::new(vote)?),
        };
        (flags & !FLAG_FENCED == 0).then_some(Self {
            sequence,
            key: (group, replica),
            term,
            vote,
            is_fenced: flags & FLAG_FENCED != 0,
        })
    }
}

/// Covers where the slot lies, so that one that was copied elsewhere says nothing.
fn checksum(bytes: &[u8], half: Half, slot: usize) -> u32 {
    let slot = u32::try_from(slot).unwrap_or(u32::MAX).to_le_bytes();
    let half = [match half {
        Half::A => 0,
        Half::B => 1,
    }];
    crc32c_append(crc32c_append(crc32c_append(0, bytes), &slot), &half)
}

fn header(lane: u16, identity: u64, capacity: usize) -> [u8; HEADER_BYTES] {
    let mut out = [0; HEADER_BYTES];
    let mut fields = &mut out[..];
    fields.put_u64_le(HEADER_MAGIC);
    fields.put_u32_le(VERSION);
    fields.put_u16_le(lane);
    fields.put_u16_le(0);
    fields.put_u64_le(identity);
    fields.put_u64_le(u64::try_from(capacity).expect("bounded"));
    let crc = crc32c_append(0, &out[..HEADER_BYTES - 4]);
    out[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    out
}

fn offset(capacity: usize, half: Half, slot: usize) -> u64 {
    let base = match half {
        Half::A => 0,
        Half::B => capacity,
    };
    u64::try_from(HALVES_AT + (base + slot) * SLOT_BYTES).expect("bounded")
}

fn file_bytes(capacity: usize) -> u64 {
    offset(capacity, Half::B, capacity)
}

/// What an open found of one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VoteFound {
    pub(crate) newest: Slot,
    /// What half B says: it was written only after the log had it.
    pub(crate) second: Option<Slot>,
    /// One of the two slots is not whole.
    pub(crate) is_half_bad: bool,
}

/// What an open found.
#[derive(Clone, Debug, Default)]
pub(crate) struct VotesFound {
    pub(crate) replicas: BTreeMap<Key, VoteFound>,
    /// Slots that nobody can be read from, or a file that is not whole or not there: any replica
    /// may have had its vote in them.
    pub(crate) has_lost_slots: bool,
    /// A part of the file cannot be read: it is made anew, if there is room.
    is_unreadable: bool,
    /// The file is another lane's, or another data directory's.
    pub(crate) is_foreign: bool,
    /// What of the file is lost: where, and what.
    pub(crate) damage: Vec<(u64, &'static str)>,
    /// What a crash may have left, but not in a log that was closed.
    pub(crate) torn: Vec<(u64, &'static str)>,
    /// There was a file.
    pub(crate) exists: bool,
    places: BTreeMap<Key, usize>,
    /// Places that hold something, and nobody knows whose it was.
    lost: BTreeSet<usize>,
    /// 0: there is no file, or none that is ours and whole.
    capacity: usize,
}

/// The open vote file. The lane writes and syncs it together with its own records.
#[derive(Debug)]
pub(crate) struct VoteFile {
    path: PathBuf,
    /// `None` until it is open.
    file: Option<OwnedFile>,
    lane: u16,
    identity: u64,
    capacity: usize,
    /// By place.
    slots: Vec<Option<Slot>>,
    by_key: FxHashMap<Key, usize>,
    /// Empty places before the last slot.
    free: BTreeSet<usize>,
    /// The same that hold something nobody knows the owner of, until the open is done: taken last.
    lost: BTreeSet<usize>,
    /// Slots whose half B is older than half A.
    behind: BTreeSet<usize>,
}

/// A write to the vote file.
pub(crate) struct VoteWrite {
    pub(crate) offset: u64,
    pub(crate) data: Bytes,
}

pub(crate) fn vote_path(data_dir: &Path, lane: u16) -> PathBuf {
    match lane {
        0 => data_dir.join("votes"),
        lane => data_dir.join(format!("votes.{lane}")),
    }
}

/// Reads the vote file without changing anything.
pub(crate) fn load(
    vfs: &dyn Vfs,
    data_dir: &Path,
    lane: u16,
    identity: u64,
) -> Result<VotesFound, LogError> {
    let path = vote_path(data_dir, lane);
    let name = path.file_name().and_then(|name| name.to_str());
    let mut found = VotesFound::default();
    if !vfs
        .list(data_dir)?
        .iter()
        .any(|entry| Some(entry.name.as_str()) == name)
    {
        return Ok(found);
    }
    found.exists = true;
    let file = vfs.open(&path, false)?;
    let result = load_slots(vfs, file, &path, lane, identity, &mut found);
    vfs.close(file);
    result.map(|()| found)
}

/// The identity that the vote file bears, if there is one whose header can be read.
pub(crate) fn identity(vfs: &dyn Vfs, data_dir: &Path, lane: u16) -> Result<Option<u64>, LogError> {
    let path = vote_path(data_dir, lane);
    let file = match vfs.open(&path, false) {
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let head = read_through(vfs, file, 0, HEADER_BYTES);
    vfs.close(file);
    let bears = read_header(&head?.0, &path)?;
    Ok(bears
        .filter(|bears| bears.lane == lane)
        .map(|bears| bears.identity))
}

fn load_slots(
    vfs: &dyn Vfs,
    file: FileId,
    path: &Path,
    lane: u16,
    identity: u64,
    found: &mut VotesFound,
) -> Result<(), LogError> {
    let mut read = |offset, len| -> Result<Bytes, LogError> {
        let (bytes, unreadable) = read_through(vfs, file, offset, len)?;
        if !unreadable.is_empty() && !found.is_unreadable {
            found.is_unreadable = true;
            let reason = "a part of the vote file cannot be read";
            found.damage.push((offset, reason));
        }
        Ok(bytes)
    };
    let head = read(0, HEADER_BYTES)?;
    let len = vfs.len(file)?;
    let header = read_header(&head, path)?;
    let is_ours = |header: &FileHeader| header.lane == lane && header.identity == identity;
    let Some(FileHeader { capacity, .. }) = header.filter(is_ours) else {
        found.has_lost_slots = true;
        found.is_foreign = header.is_some();
        if !found.is_foreign {
            found.damage.push((0, "the vote file's header is lost"));
        }
        return Ok(());
    };
    // The length bounds what is read, whatever the header says.
    if capacity > CAPACITY_MAX || len < file_bytes(capacity) {
        found.has_lost_slots = true;
        found.damage.push((len, "the vote file is cut short"));
        return Ok(());
    }
    let a = read(offset(capacity, Half::A, 0), capacity * SLOT_BYTES)?;
    let b = read(offset(capacity, Half::B, 0), capacity * SLOT_BYTES)?;
    found.capacity = capacity;
    let pairs = a.chunks_exact(SLOT_BYTES).zip(b.chunks_exact(SLOT_BYTES));
    for (at, (a, b)) in pairs.enumerate() {
        let read = |bytes: &[u8], half| {
            let is_used = !is_zero(bytes);
            let slot = is_used.then(|| Slot::decode(bytes, half, at));
            (is_used, slot.flatten())
        };
        let ((a_used, a), (b_used, b)) = (read(a, Half::A), read(b, Half::B));
        found.judge(capacity, at, (a_used, a), (b_used, b));
        let (first, is_half_bad) = match (a, b) {
            (Some(a), Some(b)) if a.key == b.key => {
                // Half A is written first: if it is older, it has fallen back.
                let is_behind = b.sequence > a.sequence;
                (if is_behind { b } else { a }, is_behind)
            }
            // Half B has nothing yet: the first vote of a replica.
            (Some(a), None) => (a, b_used),
            // Half A is written first: it is lost.
            (None, Some(b)) => (b, true),
            (Some(_), Some(_)) => {
                found.lose(at);
                continue;
            }
            (None, None) => {
                if a_used || b_used {
                    found.lose(at);
                }
                continue;
            }
        };
        if let Some(other) = found.replicas.get(&first.key) {
            // Older content in one of the two: what is newer was put where it lies for good.
            found.damage.push((
                offset(capacity, Half::A, at),
                "a replica has two places in the vote file",
            ));
            let (other, place) = (other.newest, found.places[&first.key]);
            let is_older = (first.term, first.is_fenced) < (other.term, other.is_fenced);
            found.lose(if is_older { at } else { place });
            if is_older {
                continue;
            }
        }
        found.places.insert(first.key, at);
        let vote = VoteFound {
            newest: first,
            second: b,
            is_half_bad,
        };
        found.replicas.insert(first.key, vote);
    }
    Ok(())
}

impl VotesFound {
    /// There is a file and nothing in it can be told: its header is lost, or its end.
    const fn is_worthless(&self) -> bool {
        self.exists && !self.is_foreign && self.capacity == 0
    }

    /// Nobody knows whose the slot at `at` was.
    fn lose(&mut self, at: usize) {
        self.has_lost_slots = true;
        self.lost.insert(at);
    }

    /// Notes what is lost of the slot at `at`. Half A is written and synced before half B: a crash
    /// leaves one half torn at most, beside the other as it was, and B never without A.
    fn judge(
        &mut self,
        capacity: usize,
        at: usize,
        (a_used, a): (bool, Option<Slot>),
        (b_used, b): (bool, Option<Slot>),
    ) {
        let (is_a_bad, is_b_bad) = (a_used && a.is_none(), b_used && b.is_none());
        let (half, reason) = match (a, b) {
            (Some(a), Some(b)) if a.key == b.key && b.sequence <= a.sequence => return,
            (Some(_), Some(_)) => (Half::A, "a vote slot is older than its copy, or another's"),
            _ if is_a_bad && is_b_bad => (Half::A, "both vote slots of a replica are lost"),
            _ if b_used && !a_used => (Half::A, "the first of a replica's vote slots is empty"),
            _ if is_a_bad => (Half::A, TORN),
            _ if is_b_bad => (Half::B, TORN),
            _ => return,
        };
        let list = if reason == TORN {
            &mut self.torn
        } else {
            &mut self.damage
        };
        list.push((offset(capacity, half, at), reason));
    }
}

const TORN: &str = "one of a replica's two vote slots is lost";

/// A slot as it lies in the file: zeroes, if nobody's.
fn encoded(slot: Option<&Slot>, half: Half, at: usize) -> [u8; SLOT_BYTES] {
    slot.map_or([0; SLOT_BYTES], |slot| slot.encode(half, at))
}

fn sync_parent(vfs: &dyn Vfs, path: &Path) -> Result<(), LogError> {
    match path.parent() {
        Some(parent) => Ok(vfs.sync_dir(parent)?),
        None => Ok(()),
    }
}

/// What the beginning of the file says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileHeader {
    lane: u16,
    identity: u64,
    /// In slots.
    capacity: usize,
}

/// Reads the header; `None` if it is lost.
fn read_header(bytes: &[u8], path: &Path) -> Result<Option<FileHeader>, LogError> {
    let Some((covered, mut crc)) = bytes.split_at_checked(HEADER_BYTES - 4) else {
        return Ok(None);
    };
    let mut fields = covered;
    if crc.len() != 4
        || crc.get_u32_le() != crc32c_append(0, covered)
        || fields.get_u64_le() != HEADER_MAGIC
    {
        return Ok(None);
    }
    let version = fields.get_u32_le();
    if version != VERSION {
        let path = path.to_owned();
        return Err(LogError::NeedsVersion {
            path,
            offset: 0,
            version,
        });
    }
    let lane = fields.get_u16_le();
    fields.advance(2);
    Ok(Some(FileHeader {
        lane,
        identity: fields.get_u64_le(),
        capacity: usize::try_from(fields.get_u64_le()).unwrap_or(usize::MAX),
    }))
}

/// What the slots are to say when a file is open.
#[derive(Debug, Default)]
pub(crate) struct VotesWanted {
    /// What the file does not say yet.
    pub(crate) changes: Vec<VoteChange>,
    /// Whose vote the log does not have yet.
    pub(crate) ahead: BTreeSet<Key>,
    /// Who needs no slot any more.
    pub(crate) gone: BTreeSet<Key>,
}

impl VoteFile {
    /// Opens the file for writing, or makes it. Everything is durable in both halves on return, one
    /// half after the other; of those who are ahead of the log, in half A alone.
    ///
    /// A full disk needs no other file: the one that is there stays as it is, with the slots of
    /// those who are gone, or leaves its room to another if nothing in it can be told.
    pub(crate) fn open(
        vfs: &Arc<dyn Vfs>,
        data_dir: &Path,
        (lane, identity): (u16, u64),
        found: &VotesFound,
        wanted: &VotesWanted,
    ) -> Result<Self, LogError> {
        let mut this = Self::of_found(vote_path(data_dir, lane), (lane, identity), found);
        for change in &wanted.changes {
            this.set(*change);
        }
        let place = |key: &Key| this.by_key.get(key).copied();
        this.behind = wanted.ahead.iter().filter_map(place).collect();
        let has_places = found.capacity > 0 && this.slots.len() <= found.capacity;
        let is_fine = has_places
            && !found.is_unreadable
            && !wanted.gone.iter().any(|key| this.has_slot(*key));
        if !is_fine {
            match this.rewritten(vfs, &wanted.gone, &wanted.ahead, found.capacity) {
                Err(LogError::Io(error)) if error.is_storage_full() => {
                    if found.is_worthless() {
                        vfs.remove_file(&this.path)?;
                        sync_parent(vfs.as_ref(), &this.path)?;
                        return this.rewritten(vfs, &wanted.gone, &wanted.ahead, 0);
                    }
                    if !has_places {
                        return Err(error.into());
                    }
                }
                rewritten => return rewritten,
            }
        }
        this.file = Some(OwnedFile::new(vfs, vfs.open(&this.path, false)?));
        this.write_in_place(vfs.as_ref(), found)?;
        Ok(this)
    }

    /// The file as it was found.
    fn of_found(path: PathBuf, (lane, identity): (u16, u64), found: &VotesFound) -> Self {
        let places = found.places.values().chain(&found.lost);
        let end = places.max().map_or(0, |last| last + 1);
        let mut slots = vec![None; end];
        for (key, at) in &found.places {
            slots[*at] = Some(found.replicas[key].newest);
        }
        let is_free = |at: &usize| slots[*at].is_none() && !found.lost.contains(at);
        Self {
            path,
            file: None,
            lane,
            identity,
            capacity: found.capacity,
            free: (0..end).filter(is_free).collect(),
            lost: found.lost.clone(),
            by_key: found.places.iter().map(|(key, at)| (*key, *at)).collect(),
            slots,
            behind: BTreeSet::new(),
        }
    }

    /// Writes every slot where it is, and nothing where nobody's is. What is new comes first, where
    /// it hides nothing: until then, what is lost must tell so again after a crash.
    fn write_in_place(&mut self, vfs: &dyn Vfs, found: &VotesFound) -> Result<(), LogError> {
        let file = self.file();
        let is_new = |at: &usize| {
            let slot = self.slots[*at].filter(|_| !found.lost.contains(at));
            slot.is_some_and(|slot| !found.places.contains_key(&slot.key))
        };
        let new: Vec<usize> = (0..self.slots.len()).filter(is_new).collect();
        if !new.is_empty() {
            for write in self.clusters(&new, Half::A, |before, slot| slot == before + 1) {
                vfs.write(file, write.offset, &write.data)?;
            }
            vfs.sync(file)?;
        }
        for half in [Half::A, Half::B] {
            let image = self.image(half, found);
            vfs.write(file, offset(self.capacity, half, 0), &image)?;
            vfs.sync(file)?;
        }
        self.free.append(&mut self.lost);
        Ok(())
    }

    /// All slots of a half, in whole sectors; those in half B that are behind as they were.
    fn image(&self, half: Half, found: &VotesFound) -> Vec<u8> {
        let places = self.slots.len().next_multiple_of(SLOTS_PER_SECTOR);
        let mut out = Vec::with_capacity(places * SLOT_BYTES);
        for (at, slot) in self.slots.iter().enumerate() {
            let is_behind = half == Half::B && self.behind.contains(&at);
            let said = || found.replicas.get(&slot.as_ref()?.key)?.second;
            let slot = if is_behind { said() } else { *slot };
            out.extend_from_slice(&encoded(slot.as_ref(), half, at));
        }
        out.resize(places.min(self.capacity) * SLOT_BYTES, 0);
        out
    }

    /// Takes changes; returns the slots concerned.
    pub(crate) fn set_all(&mut self, changes: &[VoteChange]) -> Vec<usize> {
        let mut slots: Vec<usize> = changes.iter().map(|change| self.set(*change)).collect();
        slots.sort_unstable();
        slots.dedup();
        slots
    }

    fn set(&mut self, change: VoteChange) -> usize {
        let at = match self.by_key.get(&change.key) {
            Some(at) => *at,
            None => self.new_place(),
        };
        self.by_key.insert(change.key, at);
        let before = self.slots[at];
        self.slots[at] = Some(Slot {
            sequence: before.map_or(0, |slot| slot.sequence) + 1,
            key: change.key,
            term: change.term,
            vote: change.vote,
            // Whoever is fenced stays so, whatever is said of its term.
            is_fenced: change.is_fenced || before.is_some_and(|slot| slot.is_fenced),
        });
        at
    }

    fn new_place(&mut self) -> usize {
        if let Some(at) = self.free.pop_first() {
            return at;
        }
        let is_full = self.slots.len() >= self.capacity;
        if is_full && let Some(at) = self.lost.pop_first() {
            return at;
        }
        self.slots.push(None);
        self.slots.len() - 1
    }

    /// Whether `changes` would say anything new.
    pub(crate) fn is_news(&self, change: &VoteChange) -> bool {
        let at = self.by_key.get(&change.key);
        match at.and_then(|&at| self.slots[at]) {
            Some(slot) => {
                (slot.term, slot.vote) != (change.term, change.vote)
                    || (change.is_fenced && !slot.is_fenced)
            }
            None => change.term > Term::ZERO || change.is_fenced,
        }
    }

    pub(crate) fn has_slot(&self, key: Key) -> bool {
        self.by_key.contains_key(&key)
    }

    /// Whether there is a place for so many new replicas.
    pub(crate) fn has_room(&self, more: usize) -> bool {
        self.by_key.len() + more <= self.capacity
    }

    /// Whether so few places are left that a larger file should be made ahead.
    pub(crate) fn is_low(&self) -> bool {
        !self.has_room(self.capacity / 8)
    }

    /// Whether the file must grow before `changes`: of replicas that have a place it need not.
    pub(crate) fn is_short(&self, changes: &[VoteChange]) -> bool {
        let is_new = |key: &Key| !self.by_key.contains_key(key);
        let new = changes.iter().map(|change| change.key).filter(is_new);
        !self.has_room(new.collect::<BTreeSet<_>>().len())
    }

    /// Makes a file that has room for `changes` in place of this one, without the slots of those who
    /// are `gone`; durable on return. Half B says nothing of those who are `ahead` of the log.
    pub(crate) fn grow(
        &mut self,
        vfs: &Arc<dyn Vfs>,
        changes: &[VoteChange],
        gone: &BTreeSet<Key>,
        ahead: &BTreeSet<Key>,
    ) -> Result<(), LogError> {
        // Room for as many again, so that this is rare.
        let capacity = 2 * (self.all_but(gone).count() + changes.len());
        *self = self.rewritten(vfs, gone, ahead, capacity)?;
        Ok(())
    }

    fn all_but(&self, gone: &BTreeSet<Key>) -> impl Iterator<Item = &Slot> {
        let all = self.slots.iter().flatten();
        all.filter(|slot| !gone.contains(&slot.key))
    }

    /// A new file beside this one, put in its place: with all slots but those of who is `gone`, in
    /// half B without those of who is `ahead`, and with room for `capacity` at least.
    fn rewritten(
        &self,
        vfs: &Arc<dyn Vfs>,
        gone: &BTreeSet<Key>,
        ahead: &BTreeSet<Key>,
        capacity: usize,
    ) -> Result<Self, LogError> {
        let slots: Vec<Option<Slot>> = self.all_but(gone).copied().map(Some).collect();
        let by_key: FxHashMap<Key, usize> = (0..)
            .zip(slots.iter().flatten())
            .map(|(at, slot)| (slot.key, at))
            .collect();
        let capacity = capacity.max(self.capacity).max(slots.len());
        let mut new = Self {
            path: self.path.clone(),
            file: None,
            lane: self.lane,
            identity: self.identity,
            capacity: capacity.next_power_of_two().max(CAPACITY_MIN),
            behind: ahead
                .iter()
                .filter_map(|key| by_key.get(key).copied())
                .collect(),
            slots,
            by_key,
            free: BTreeSet::new(),
            lost: BTreeSet::new(),
        };
        let temporary = unfinished_path(&new.path);
        let file = OwnedFile::new(vfs, vfs.create(&temporary)?);
        if let Err(error) = new.fill(vfs.as_ref(), file.id(), &temporary) {
            drop(file);
            // It takes room that somebody needs; if it cannot go, the next one is made over it.
            drop(vfs.remove_file(&temporary));
            return Err(error);
        }
        new.file = Some(file);
        Ok(new)
    }

    /// Writes a new file and puts it in the place of the old one.
    fn fill(&self, vfs: &dyn Vfs, file: FileId, temporary: &Path) -> Result<(), LogError> {
        vfs.prepare(file, file_bytes(self.capacity))?;
        vfs.write(file, 0, &header(self.lane, self.identity, self.capacity))?;
        for half in [Half::A, Half::B] {
            let is_written = |at: &usize| half == Half::A || !self.behind.contains(at);
            let all: Vec<usize> = (0..self.slots.len()).filter(is_written).collect();
            let apart: Vec<usize> = self.behind.iter().copied().collect();
            for write in self.writes(&all, half, &apart) {
                vfs.write(file, write.offset, &write.data)?;
            }
        }
        vfs.sync(file)?;
        vfs.replace(temporary, &self.path)?;
        sync_parent(vfs, &self.path)
    }

    pub(crate) fn file(&self) -> FileId {
        self.file.as_ref().expect("an open has opened it").id()
    }

    /// The writes that put `slots`, ascending, into a half: one for each cluster. What lies between
    /// them says what it says in half A, and in half B too but for those that are `apart`,
    /// ascending: half A does not have them yet.
    pub(crate) fn writes(&self, slots: &[usize], half: Half, apart: &[usize]) -> Vec<VoteWrite> {
        let is_apart = |before: usize, slot: usize| {
            let behind = apart.partition_point(|&at| at <= before);
            half == Half::B && apart.get(behind).is_some_and(|&at| at < slot)
        };
        self.clusters(slots, half, |before, slot| {
            slot - before <= GAP_SLOTS_MAX && !is_apart(before, slot)
        })
    }

    /// The writes that put `slots`, ascending, into a half: one for all that join, with what lies
    /// between.
    fn clusters(
        &self,
        slots: &[usize],
        half: Half,
        joins: impl Fn(usize, usize) -> bool,
    ) -> Vec<VoteWrite> {
        let mut writes = Vec::new();
        let mut rest = slots;
        while let Some(&first) = rest.first() {
            let mut taken = 1;
            while rest
                .get(taken)
                .is_some_and(|&slot| joins(rest[taken - 1], slot))
            {
                taken += 1;
            }
            let last = rest[taken - 1];
            rest = &rest[taken..];
            let mut data = BytesMut::with_capacity((last + 1 - first) * SLOT_BYTES);
            for at in first..=last {
                data.put_slice(&encoded(self.slots[at].as_ref(), half, at));
            }
            writes.push(VoteWrite {
                offset: offset(self.capacity, half, first),
                data: data.freeze(),
            });
        }
        writes
    }

    /// Half A of `slots` is durable.
    pub(crate) fn first_half_done(&mut self, slots: &[usize]) {
        self.behind.extend(slots);
    }

    /// Half B of `slots` is durable.
    pub(crate) fn second_half_done(&mut self, slots: &[usize]) {
        for slot in slots {
            self.behind.remove(slot);
        }
    }

    /// Whose half B is older than half A.
    pub(crate) fn keys_behind(&self) -> BTreeSet<Key> {
        let slots = self.behind.iter().filter_map(|&at| self.slots[at]);
        slots.map(|slot| slot.key).collect()
    }

    pub(crate) fn has_behind(&self) -> bool {
        !self.behind.is_empty()
    }

    /// The slots whose half B is to be written, those aside whose half A is written at the same
    /// time: never both halves of a slot between two syncs.
    pub(crate) fn behind_except(&self, first_half: &[usize]) -> Vec<usize> {
        let is_free = |slot: &&usize| first_half.binary_search(slot).is_err();
        self.behind.iter().filter(is_free).copied().collect()
    }
}
