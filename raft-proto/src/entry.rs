//! The entry frame: the bytes the leader encodes once, every log stores and every wire carries.
//!
//! ```text
//!  0        4       8              16             24                  30    31    32
//!  +--------+-------+--------------+--------------+-------------------+-----+-----+---------+
//!  | length | crc   | index        | term         | leader time in ms | kind|flags| session?| command
//!  | u32    | u32   | u64          | u64          | 48 bits           | u8  | u8  | 16 bytes|
//!  +--------+-------+--------------+--------------+-------------------+-----+-----+---------+
//! ```
//!
//! Little-endian. `length` counts the whole frame. `crc` is the CRC-32C of the group id (8 bytes),
//! the length field, and everything from byte 8 on. A frame of another group never validates.

use core::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use crate::checksum::crc32c_append;
use crate::types::{EntryId, GroupId, Index, Term};

/// The bytes of a frame before session fields and command.
pub const ENTRY_HEADER_BYTES: usize = 32;
const SESSION_BYTES: usize = 16;
const FLAG_SESSION: u8 = 1;
/// The command was left out: this copy was made for a witness.
const FLAG_WITHOUT_COMMAND: u8 = 2;
const FLAGS_KNOWN: u8 = FLAG_SESSION | FLAG_WITHOUT_COMMAND;
const LEADER_TIME_MS_MAX: u64 = (1 << 48) - 1;

/// What an entry asks of the replicas that apply it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntryKind {
    /// A command for the state machine. An empty one only fills its place (a leader's first entry).
    Command,
    /// One membership change of the simple form (thesis §4.1; etcd's `EntryConfChange`).
    MembershipSimple,
    /// A membership change of the general form, joint if need be (thesis §4.3;
    /// etcd's `EntryConfChangeV2`).
    Membership,
}

impl EntryKind {
    pub(crate) const fn to_byte(self) -> u8 {
        match self {
            Self::Command => 0,
            Self::MembershipSimple => 1,
            Self::Membership => 2,
        }
    }

    pub(crate) const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Command),
            1 => Some(Self::MembershipSimple),
            2 => Some(Self::Membership),
            _ => None,
        }
    }

    /// Whether the entry changes the membership.
    #[must_use]
    pub const fn is_membership(self) -> bool {
        matches!(self, Self::MembershipSimple | Self::Membership)
    }
}

/// Whose command it is and which of theirs, so that a retry is applied once. Source: thesis §6.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Session {
    /// The client.
    pub client: u64,
    /// The client's number for this command.
    pub serial: u64,
}

/// Why bytes are no run of entry frames. The bytes are refused whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The bytes end before the frame does.
    #[error("frame at byte {offset} is cut short")]
    Truncated {
        /// Where the frame starts.
        offset: usize,
    },
    /// The length field is below the header's size.
    #[error("frame at byte {offset} claims {length} bytes, fewer than its header")]
    Length {
        /// Where the frame starts.
        offset: usize,
        /// What it claims.
        length: u32,
    },
    /// The checksum does not match: damage, or a frame of another group.
    #[error("frame at byte {offset} fails its checksum")]
    Checksum {
        /// Where the frame starts.
        offset: usize,
    },
    /// A kind or flag of a later version.
    #[error("frame at byte {offset} has kind {kind} and flags {flags:#x}, unknown to this version")]
    Unknown {
        /// Where the frame starts.
        offset: usize,
        /// The kind byte.
        kind: u8,
        /// The flags byte.
        flags: u8,
    },
    /// The index does not follow the one before, the term falls, or either is out of range.
    #[error("frame at byte {offset} carries {found}, which does not follow the entry before it")]
    Order {
        /// Where the frame starts.
        offset: usize,
        /// What it carries.
        found: EntryId,
    },
    /// There is no frame at all.
    #[error("no frame")]
    Empty,
}

/// One entry inside a [`Batch`], checked when the batch was made.
#[derive(Clone, Copy)]
pub struct EntryRef<'a> {
    frame: &'a [u8],
}

impl<'a> EntryRef<'a> {
    /// The index.
    #[must_use]
    pub fn index(self) -> Index {
        Index::new(read_u64(self.frame, 8))
    }

    /// The term.
    #[must_use]
    pub fn term(self) -> Term {
        Term::new(read_u64(self.frame, 16))
    }

    /// Index and term.
    #[must_use]
    pub fn id(self) -> EntryId {
        EntryId::new(self.term(), self.index())
    }

    /// The leader's time when it appended the entry, in milliseconds; never falls within a group.
    #[must_use]
    pub fn leader_time_ms(self) -> u64 {
        read_u64(self.frame, 24) & LEADER_TIME_MS_MAX
    }

    /// The kind.
    #[must_use]
    #[inline]
    pub fn kind(self) -> EntryKind {
        EntryKind::from_byte(self.frame[30]).expect("the kind was checked when the batch was made")
    }

    /// The client session, if the entry carries one.
    #[must_use]
    pub fn session(self) -> Option<Session> {
        (self.frame[31] & FLAG_SESSION != 0).then(|| Session {
            client: read_u64(self.frame, ENTRY_HEADER_BYTES),
            serial: read_u64(self.frame, ENTRY_HEADER_BYTES + 8),
        })
    }

    /// Whether the command was left out, because this copy was made for a witness.
    #[must_use]
    pub const fn is_without_command(self) -> bool {
        self.frame[31] & FLAG_WITHOUT_COMMAND != 0
    }

    /// The command, or the encoded membership change.
    #[must_use]
    #[inline]
    pub fn payload(self) -> &'a [u8] {
        &self.frame[payload_start(self.frame[31])..]
    }

    /// The whole frame.
    #[must_use]
    pub const fn frame(self) -> &'a [u8] {
        self.frame
    }
}

impl fmt::Debug for EntryRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {:?} {} bytes",
            self.id(),
            self.kind(),
            self.payload().len()
        )
    }
}

/// A run of entries of one group with consecutive indexes: one buffer, shared, never copied.
///
/// Invariant: at least one frame; every frame complete and checked; indexes rise by one; terms
/// never fall.
#[derive(Clone)]
pub struct Batch {
    bytes: Bytes,
    first: EntryId,
    last_term: Term,
    count: u32,
    /// Of the frames, or of those of the batch that this is a part of.
    marks: Marks,
}

/// Of which group frames are, all but one bit of their [`FrameSeed`], and in that whether they may
/// hold a change of the membership; a whole word, so that a batch moves in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Marks(u32);

impl Marks {
    fn new(seed: FrameSeed, may_hold_membership: bool) -> Self {
        Self(seed.0 & !1 | u32::from(may_hold_membership))
    }
}

const _: () = assert!(size_of::<Batch>() == 64 && size_of::<Option<Batch>>() == 64);

/// Two batches are the same if their frames are.
impl PartialEq for Batch {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Batch {}

impl Batch {
    /// Checks `bytes` as frames of `group` and takes them, without a copy.
    ///
    /// # Errors
    ///
    /// [`FrameError`] says what is wrong, and where.
    pub fn decode(group: GroupId, bytes: Bytes) -> Result<Self, FrameError> {
        let seed = FrameSeed::new(group);
        let mut offset = 0;
        let mut first = None;
        let mut last: Option<EntryId> = None;
        let mut may_hold_membership = false;
        while offset < bytes.len() {
            let frame = check_frame(seed, &bytes, offset)?;
            let entry = EntryRef { frame };
            may_hold_membership |= entry.kind().is_membership();
            let id = entry.id();
            let follows = match last {
                None => id.index > Index::ZERO && id.term > Term::ZERO,
                Some(last) => id.index == last.index.next() && id.term >= last.term,
            };
            if !follows || id.index.get() >= u64::MAX - 1 || id.term.get() >= u64::MAX - 1 {
                return Err(FrameError::Order { offset, found: id });
            }
            first = first.or(Some(id));
            last = Some(id);
            offset += frame.len();
        }
        let marks = Marks::new(seed, may_hold_membership);
        match (first, last) {
            (Some(first), Some(last)) => {
                Self::of(bytes, first, last, marks).ok_or(FrameError::Order {
                    offset: 0,
                    found: last,
                })
            }
            _ => Err(FrameError::Empty),
        }
    }

    /// The length in bytes and the index that the frame at the start of `bytes` claims, unchecked:
    /// to find a frame without checking those before it. `None` if there is no header, or the
    /// length is below its size.
    #[must_use]
    pub fn peek(bytes: &[u8]) -> Option<(usize, Index)> {
        if bytes.len() < ENTRY_HEADER_BYTES {
            return None;
        }
        let length = length_at(bytes, 0);
        (length >= ENTRY_HEADER_BYTES).then(|| (length, Index::new(read_u64(bytes, 8))))
    }

    /// The frames from `first` to `last`, unless they are more than can be counted.
    fn of(bytes: Bytes, first: EntryId, last: EntryId, marks: Marks) -> Option<Self> {
        Some(Self {
            bytes,
            first,
            last_term: last.term,
            count: u32::try_from(last.index.distance_from(first.index) + 1).ok()?,
            marks,
        })
    }

    /// The frames from `first` to `last` of this batch, which are `bytes`.
    fn part(&self, bytes: Bytes, first: EntryId, last: EntryId) -> Self {
        Self::of(bytes, first, last, self.marks).expect("a part is no longer than the whole")
    }

    /// The first entry.
    #[must_use]
    #[inline]
    pub const fn first(&self) -> EntryId {
        self.first
    }

    /// The last entry.
    #[must_use]
    #[inline]
    pub const fn last(&self) -> EntryId {
        EntryId::new(self.last_term, self.last_index())
    }

    #[inline]
    const fn last_index(&self) -> Index {
        Index::new(self.first.index.get() + self.count as u64 - 1)
    }

    /// The number of entries; never 0.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a batch is never empty")]
    pub fn len(&self) -> usize {
        usize::try_from(self.count).expect("usize has at least 32 bits")
    }

    /// The frames, one after the other.
    #[must_use]
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The size of all frames.
    #[must_use]
    pub const fn size_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The entries, in order.
    #[inline]
    pub fn iter(&self) -> Iter<'_> {
        Iter { rest: &self.bytes }
    }

    /// The payload of `entry`, an entry of this batch, sharing the batch's buffer.
    ///
    /// # Panics
    ///
    /// If `entry` is not of this batch.
    #[must_use]
    pub fn payload_bytes(&self, entry: EntryRef<'_>) -> Bytes {
        self.bytes.slice_ref(entry.payload())
    }

    /// The part from `index` on, or `None` if it is empty.
    #[must_use]
    pub fn from_index(&self, index: Index) -> Option<Self> {
        if index <= self.first.index {
            return Some(self.clone());
        }
        if index > self.last_index() {
            return None;
        }
        let (offset, entry) = self.find(index);
        Some(self.part(self.bytes.slice(offset..), entry.id(), self.last()))
    }

    /// The part up to and with `index`, or `None` if it is empty.
    #[must_use]
    pub fn up_to_index(&self, index: Index) -> Option<Self> {
        if index >= self.last_index() {
            return Some(self.clone());
        }
        if index < self.first.index {
            return None;
        }
        let (offset, entry) = self.find(index);
        let bytes = self.bytes.slice(..offset + entry.frame.len());
        Some(self.part(bytes, self.first, entry.id()))
    }

    /// The part from `from` to `to`, or `None` if it is empty.
    pub(crate) fn within(&self, from: Index, to: Index) -> Option<Self> {
        if from <= self.first.index {
            return self.up_to_index(to);
        }
        self.from_index(from)?.up_to_index(to)
    }

    /// The longest part from the start that takes at most `size_bytes_max`, but at least one entry.
    #[must_use]
    pub fn up_to_size(&self, size_bytes_max: usize) -> Self {
        if self.bytes.len() <= size_bytes_max {
            return self.clone();
        }
        let mut end = 0;
        let mut last = self.first;
        for entry in self.iter() {
            if end > 0 && end + entry.frame.len() > size_bytes_max {
                break;
            }
            end += entry.frame.len();
            last = entry.id();
        }
        self.part(self.bytes.slice(..end), self.first, last)
    }

    /// Whether its frames are those of `group`: of another one's, one in 2^31 seems to be.
    #[must_use]
    pub fn is_of(&self, group: GroupId) -> bool {
        self.marks.0 >> 1 == FrameSeed::new(group).0 >> 1
    }

    /// Whether some entry may change the membership. A part of a batch says yes if the whole did.
    #[must_use]
    pub const fn may_hold_membership(&self) -> bool {
        self.marks.0 & 1 == 1
    }

    /// The same frames, copied to the end of `buffer` and taken from it: they keep nothing else of
    /// what they lay in. With room for several, `buffer` is one allocation for all of them.
    #[must_use]
    pub fn copy_into(&self, buffer: &mut BytesMut) -> Self {
        buffer.put_slice(&self.bytes);
        Self {
            bytes: buffer.split().freeze(),
            ..*self
        }
    }

    /// The same places with the commands left out, as a witness holds them. Membership changes
    /// stay: a witness votes.
    pub(crate) fn without_commands(&self, group: GroupId) -> Self {
        let capacity = self.len() * ENTRY_HEADER_BYTES;
        let mut bytes = BytesMut::with_capacity(capacity);
        let seed = FrameSeed::new(group);
        for entry in self.iter() {
            if entry.kind().is_membership() {
                bytes.put_slice(entry.frame());
                continue;
            }
            put_frame(
                &mut bytes,
                seed,
                entry.id(),
                entry.leader_time_ms(),
                Head {
                    kind: entry.kind(),
                    flags: FLAG_WITHOUT_COMMAND,
                    session: None,
                },
                b"",
            );
        }
        Self {
            bytes: bytes.freeze(),
            ..*self
        }
    }

    /// The term of the entry at `index`, or `None` if it is not in this batch.
    #[must_use]
    pub fn term_at(&self, index: Index) -> Option<Term> {
        if index < self.first.index || index > self.last_index() {
            return None;
        }
        if self.first.term == self.last_term {
            return Some(self.first.term);
        }
        Some(self.find(index).1.term())
    }

    fn find(&self, index: Index) -> (usize, EntryRef<'_>) {
        let mut offset = 0;
        for entry in self.iter() {
            if entry.index() == index {
                return (offset, entry);
            }
            offset += entry.frame.len();
        }
        unreachable!("callers ask for an index within the batch");
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Batch({}..={}, {} bytes)",
            self.first,
            self.last(),
            self.bytes.len()
        )
    }
}

impl<'a> IntoIterator for &'a Batch {
    type Item = EntryRef<'a>;
    type IntoIter = Iter<'a>;

    #[inline]
    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

/// The entries of a [`Batch`].
#[derive(Clone, Debug)]
pub struct Iter<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Iter<'a> {
    type Item = EntryRef<'a>;

    #[inline]
    fn next(&mut self) -> Option<EntryRef<'a>> {
        if self.rest.is_empty() {
            return None;
        }
        let (frame, rest) = self.rest.split_at(length_at(self.rest, 0));
        self.rest = rest;
        Some(EntryRef { frame })
    }
}

/// Encodes entries into one buffer. The leader's side of the frame.
///
/// Indexes are given by the builder: the first entry gets `first`, each further one the next.
#[derive(Debug)]
pub struct BatchBuilder {
    seed: FrameSeed,
    bytes: BytesMut,
    term: Term,
    first: Index,
    next: Index,
    may_hold_membership: bool,
}

impl BatchBuilder {
    /// Starts a batch of `group` in `term` at index `first`, with room for `capacity_bytes`.
    #[must_use]
    pub fn new(group: GroupId, term: Term, first: Index, capacity_bytes: usize) -> Self {
        let bytes = BytesMut::with_capacity(capacity_bytes);
        Self::within(FrameSeed::new(group), term, first, bytes)
    }

    /// Starts a batch in what is left of a buffer.
    pub(crate) const fn within(seed: FrameSeed, term: Term, first: Index, bytes: BytesMut) -> Self {
        Self {
            seed,
            bytes,
            term,
            first,
            next: first,
            may_hold_membership: false,
        }
    }

    /// The size of the frame of a command of `payload_bytes`.
    #[must_use]
    pub const fn frame_bytes(payload_bytes: usize, has_session: bool) -> usize {
        ENTRY_HEADER_BYTES + payload_bytes + if has_session { SESSION_BYTES } else { 0 }
    }

    /// Appends one entry and returns its index.
    ///
    /// # Panics
    ///
    /// If the frame would pass 4 GiB; proposals are bounded far below that.
    pub fn push(
        &mut self,
        kind: EntryKind,
        leader_time_ms: u64,
        session: Option<Session>,
        payload: &[u8],
    ) -> Index {
        let index = self.next;
        let flags = if session.is_some() { FLAG_SESSION } else { 0 };
        self.may_hold_membership |= kind.is_membership();
        put_frame(
            &mut self.bytes,
            self.seed,
            EntryId::new(self.term, index),
            leader_time_ms,
            Head {
                kind,
                flags,
                session,
            },
            payload,
        );
        self.next = self.next.next();
        index
    }

    /// The index the next entry will get.
    #[must_use]
    pub const fn next_index(&self) -> Index {
        self.next
    }

    /// Ends the batch; `None` if nothing was pushed.
    #[must_use]
    pub fn finish(self) -> Option<Batch> {
        self.finish_within().0
    }

    /// Ends the batch; returns what is left of the buffer too.
    pub(crate) fn finish_within(mut self) -> (Option<Batch>, BytesMut) {
        let count = u32::try_from(self.next.distance_from(self.first))
            .expect("fewer than 2^32 frames lie in memory");
        let batch = (count > 0).then(|| Batch {
            bytes: self.bytes.split().freeze(),
            first: EntryId::new(self.term, self.first),
            last_term: self.term,
            count,
            marks: Marks::new(self.seed, self.may_hold_membership),
        });
        (batch, self.bytes)
    }
}

/// What a frame says about its command.
struct Head {
    kind: EntryKind,
    flags: u8,
    session: Option<Session>,
}

fn put_frame(
    bytes: &mut BytesMut,
    seed: FrameSeed,
    id: EntryId,
    leader_time_ms: u64,
    head: Head,
    payload: &[u8],
) {
    let size = BatchBuilder::frame_bytes(payload.len(), head.session.is_some());
    let length = u32::try_from(size).expect("a proposal is bounded far below 4 GiB");
    let time_kind_flags = leader_time_ms.min(LEADER_TIME_MS_MAX)
        | u64::from(head.kind.to_byte()) << 48
        | u64::from(head.flags) << 56;
    let start = bytes.len();
    let mut header = [0; ENTRY_HEADER_BYTES];
    header[..4].copy_from_slice(&length.to_le_bytes());
    // Where the sum comes: what it covers lies in one piece so.
    header[4..8].copy_from_slice(&length.to_le_bytes());
    header[8..16].copy_from_slice(&id.index.get().to_le_bytes());
    header[16..24].copy_from_slice(&id.term.get().to_le_bytes());
    header[24..].copy_from_slice(&time_kind_flags.to_le_bytes());
    bytes.reserve(size);
    bytes.put_slice(&header);
    if let Some(session) = head.session {
        bytes.put_u64_le(session.client);
        bytes.put_u64_le(session.serial);
    }
    bytes.put_slice(payload);
    let crc = crc32c_append(seed.0, &bytes[start + 4..]);
    bytes[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
}

fn check_frame(seed: FrameSeed, bytes: &[u8], offset: usize) -> Result<&[u8], FrameError> {
    let rest = &bytes[offset..];
    if rest.len() < ENTRY_HEADER_BYTES {
        return Err(FrameError::Truncated { offset });
    }
    let length = length_at(rest, 0);
    let (kind, flags) = (rest[30], rest[31]);
    if length < payload_start(flags) {
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        return Err(FrameError::Length { offset, length });
    }
    let Some(frame) = rest.get(..length) else {
        return Err(FrameError::Truncated { offset });
    };
    if read_u32(frame, 4) != seed.checksum(frame) {
        return Err(FrameError::Checksum { offset });
    }
    if EntryKind::from_byte(kind).is_none() || flags & !FLAGS_KNOWN != 0 {
        return Err(FrameError::Unknown {
            offset,
            kind,
            flags,
        });
    }
    Ok(frame)
}

/// The part of a frame's checksum that all frames of a group share: its number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameSeed(u32);

impl FrameSeed {
    pub(crate) fn new(group: GroupId) -> Self {
        Self(crc32c_append(0, &group.get().to_le_bytes()))
    }

    fn checksum(self, frame: &[u8]) -> u32 {
        crc32c_append(crc32c_append(self.0, &frame[..4]), &frame[8..])
    }
}

const fn payload_start(flags: u8) -> usize {
    if flags & FLAG_SESSION != 0 {
        ENTRY_HEADER_BYTES + SESSION_BYTES
    } else {
        ENTRY_HEADER_BYTES
    }
}

fn length_at(bytes: &[u8], offset: usize) -> usize {
    usize::try_from(read_u32(bytes, offset)).expect("usize has at least 32 bits")
}

fn read_u32(bytes: &[u8], offset: usize) -> u32 {
    let field = bytes[offset..offset + 4].try_into().expect("four bytes");
    u32::from_le_bytes(field)
}

pub(crate) fn read_u64(bytes: &[u8], offset: usize) -> u64 {
    let field = bytes[offset..offset + 8].try_into().expect("eight bytes");
    u64::from_le_bytes(field)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group() -> GroupId {
        GroupId::new(7).expect("valid")
    }

    fn batch() -> Batch {
        let mut builder = BatchBuilder::new(group(), Term::new(3), Index::new(5), 0);
        builder.push(EntryKind::Command, 1_000, None, b"");
        builder.push(
            EntryKind::Command,
            1_001,
            Some(Session {
                client: 9,
                serial: 4,
            }),
            b"abc",
        );
        builder.push(EntryKind::Membership, 1_002, None, b"change");
        builder.finish().expect("three entries")
    }

    #[test]
    fn frames_survive_the_round_trip() {
        let batch = batch();
        let again = Batch::decode(group(), batch.bytes().clone()).expect("valid");
        assert_eq!(batch, again);
        let entries: Vec<_> = again.iter().collect();
        assert_eq!(entries.len(), again.len());
        assert_eq!(entries[0].payload(), b"");
        assert_eq!(
            entries[1].session(),
            Some(Session {
                client: 9,
                serial: 4
            })
        );
        assert_eq!(entries[1].payload(), b"abc");
        assert_eq!(entries[1].leader_time_ms(), 1_001);
        assert_eq!(entries[2].kind(), EntryKind::Membership);
        assert_eq!(entries[2].id(), EntryId::new(Term::new(3), Index::new(7)));
    }

    #[test]
    fn any_flipped_bit_is_refused() {
        let bytes = batch().bytes().clone();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Batch::decode(group(), flipped.into()).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn any_cut_inside_a_frame_is_refused() {
        let batch = batch();
        let mut ends = vec![0];
        for entry in &batch {
            ends.push(ends[ends.len() - 1] + entry.frame().len());
        }
        for cut in 0..batch.size_bytes() {
            let result = Batch::decode(group(), batch.bytes().slice(..cut));
            assert_eq!(result.is_ok(), cut > 0 && ends.contains(&cut), "cut {cut}");
        }
    }

    #[test]
    fn frames_of_another_group_are_refused() {
        let other = GroupId::new(8).expect("valid");
        let result = Batch::decode(other, batch().bytes().clone());
        assert_eq!(result, Err(FrameError::Checksum { offset: 0 }));
    }

    #[test]
    fn slices_are_what_they_say() {
        let batch = batch();
        let tail = batch.from_index(Index::new(6)).expect("two entries");
        assert_eq!((tail.first().index, tail.len()), (Index::new(6), 2));
        let head = batch.up_to_index(Index::new(6)).expect("two entries");
        assert_eq!((head.last().index, head.len()), (Index::new(6), 2));
        assert_eq!(batch.from_index(Index::new(8)), None);
        assert_eq!(batch.up_to_index(Index::new(4)), None);
        assert_eq!(batch.up_to_size(1).len(), 1);
        assert_eq!(batch.up_to_size(90).len(), 2);
        assert_eq!(batch.term_at(Index::new(7)), Some(Term::new(3)));
        for part in [tail, head, batch.up_to_size(1)] {
            assert_eq!(Batch::decode(group(), part.bytes().clone()), Ok(part));
        }
    }
}
