//! Reading a part of a batch: where its first entry lies is found by the lengths of those before
//! it, and what is given out is checked by its own frames, it alone.
//!
//! A length that is wrong leads to bytes that are no frame, or not of the index that is wanted.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use raft_proto::{Batch, ENTRY_HEADER_BYTES, Index};

use crate::vfs::{FileId, Vfs, VfsError};

/// How much is looked at in one go for the lengths of entries.
const LOOK_BYTES: usize = 64 << 10;
/// Batches of which it is known where a read ended.
const ENDS_MAX: usize = 64;

/// A batch in a segment, to be read in part.
pub(crate) struct Piece<'a> {
    pub(crate) vfs: &'a dyn Vfs,
    pub(crate) file: FileId,
    pub(crate) offset: u64,
    pub(crate) len: usize,
    /// The first of its entries that counts: mostly its first.
    pub(crate) first: Index,
    /// The last that counts.
    pub(crate) last: Index,
}

impl Piece<'_> {
    /// What ought to be the frames from `from` to `to`, at most `bytes_max` of them and at least
    /// one; nothing is checked, and behind them there may be more. Returns where they end, too.
    /// `known` says where the frame of another entry begins, not behind `from`.
    pub(crate) fn read(
        &self,
        (from, to): (Index, Index),
        bytes_max: usize,
        known: Option<(Index, usize)>,
    ) -> Result<(Bytes, usize), VfsError> {
        let (index, at) = known.unwrap_or((self.first, 0));
        let is_known = index == from;
        let mut start = match is_known {
            true => at,
            false => self.find(from, at)?,
        };
        let mut bytes = self.frames(start, (from, to), bytes_max)?;
        if is_known && Batch::peek(&bytes).is_none_or(|(_, found)| found != from) {
            // What lies before the first that counts was compacted, say.
            start = self.find(from, 0)?;
            bytes = self.frames(start, (from, to), bytes_max)?;
        }
        let end = start + bytes.len();
        Ok((bytes, end))
    }

    /// Where the frame of `index` ought to begin, at `at` or behind.
    fn find(&self, index: Index, mut at: usize) -> Result<usize, VfsError> {
        loop {
            let window = self.bytes(at, LOOK_BYTES)?;
            let start = at;
            while let Some((length, found)) = window.get(at - start..).and_then(Batch::peek) {
                if found >= index {
                    return Ok(at);
                }
                at += length;
            }
            if at == start || at >= self.len {
                return Ok(at.min(self.len));
            }
        }
    }

    fn frames(
        &self,
        start: usize,
        (from, to): (Index, Index),
        bytes_max: usize,
    ) -> Result<Bytes, VfsError> {
        let rest = self.len.saturating_sub(start);
        let most = rest.min(bytes_max.max(ENTRY_HEADER_BYTES));
        if to >= self.last && most == rest {
            return self.bytes(start, rest);
        }
        let count = to.get().saturating_sub(from.get()).saturating_add(1);
        let mut look = match to >= self.last {
            true => most,
            false => most.min(LOOK_BYTES),
        };
        loop {
            let bytes = self.bytes(start, look)?;
            let (end, is_all) = whole_frames(&bytes, count);
            let claimed = bytes.get(end..).and_then(Batch::peek);
            let next = claimed.map_or(ENTRY_HEADER_BYTES, |(length, _)| length);
            if is_all || bytes.len() < look {
                return Ok(bytes.slice(..end));
            }
            if look == most {
                return match end {
                    // The first is longer than what is asked for.
                    0 => self.bytes(start, next),
                    end => Ok(bytes.slice(..end)),
                };
            }
            look = (2 * look).max(end.saturating_add(next)).min(most);
        }
    }

    fn bytes(&self, at: usize, len: usize) -> Result<Bytes, VfsError> {
        let len = len.min(self.len.saturating_sub(at));
        let at = u64::try_from(at).expect("a segment fits in memory");
        self.vfs.read_shared(self.file, self.offset + at, len)
    }
}

/// Where the first `count` frames end, as far as they are in `bytes`, and whether that is all of
/// them.
fn whole_frames(bytes: &[u8], count: u64) -> (usize, bool) {
    let mut end = 0;
    for _ in 0..count {
        let claimed = Batch::peek(&bytes[end..]);
        let next = claimed.and_then(|(length, _)| end.checked_add(length));
        match next.filter(|next| *next <= bytes.len()) {
            Some(next) => end = next,
            None => return (end, false),
        }
    }
    (end, true)
}

/// Where the last reads ended within batches, so that those who go on need not look for it.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    inner: Mutex<VecDeque<End>>,
}

#[derive(Debug)]
struct End {
    /// Segment and offset: these never mean two things while the segment lives.
    batch: (u64, u64),
    /// The next entry.
    index: Index,
    /// Where in the batch it begins.
    at: usize,
}

impl Ends {
    /// An entry of the batch that is not behind `index`, and where its frame begins.
    pub(crate) fn before(&self, batch: (u64, u64), index: Index) -> Option<(Index, usize)> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = inner.iter();
        let end = known.find(|end| end.batch == batch && end.index <= index);
        end.map(|end| (end.index, end.at))
    }

    pub(crate) fn note(&self, batch: (u64, u64), index: Index, at: usize) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.retain(|end| end.batch != batch);
        if inner.len() == ENDS_MAX {
            inner.pop_front();
        }
        inner.push_back(End { batch, index, at });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use raft_proto::{BatchBuilder, EntryKind, GroupId, Term};

    use super::*;
    use crate::vfs::SimVfs;

    const FIRST: u64 = 10;
    const COUNT: u64 = 40;

    fn group() -> GroupId {
        GroupId::new(1).expect("not 0")
    }

    fn batch() -> Batch {
        let mut builder = BatchBuilder::new(group(), Term::new(1), Index::new(FIRST), 0);
        for n in 0..COUNT {
            let len = usize::try_from(n * 37 % 500).expect("small");
            builder.push(EntryKind::Command, 0, None, &vec![7; len]);
        }
        builder.finish().expect("some")
    }

    fn file(bytes: &[u8]) -> (Arc<SimVfs>, FileId) {
        let disk = Arc::new(SimVfs::new(1));
        let file = disk.create("/file".as_ref()).expect("made");
        disk.prepare(file, 16 << 10).expect("there is room");
        disk.write(file, 64, bytes).expect("written");
        (disk, file)
    }

    fn piece(disk: &SimVfs, file: FileId, len: usize) -> Piece<'_> {
        Piece {
            vfs: disk,
            file,
            offset: 64,
            len,
            first: Index::new(FIRST),
            last: Index::new(FIRST + COUNT - 1),
        }
    }

    #[test]
    fn every_part_is_what_it_is_of_the_whole() {
        let whole = batch();
        let (disk, file) = file(whole.bytes());
        let piece = piece(&disk, file, whole.size_bytes());
        let at_of = |index: u64| {
            let before = Index::new(index - 1);
            whole
                .up_to_index(before)
                .map_or(0, |part| part.size_bytes())
        };
        for from in FIRST..FIRST + COUNT {
            for to in from..FIRST + COUNT {
                for bytes_max in [0, 100, 600, 5_000, usize::MAX] {
                    for known in [None, Some(from), Some(FIRST.midpoint(from))] {
                        let known = known.map(|known| (Index::new(known), at_of(known)));
                        let range = (Index::new(from), Index::new(to));
                        let (bytes, end) = piece.read(range, bytes_max, known).expect("it reads");
                        let part = whole
                            .from_index(range.0)
                            .and_then(|all| all.up_to_index(range.1));
                        let wanted = part.expect("it is held").up_to_size(bytes_max);
                        assert_eq!(bytes, wanted.bytes(), "{from} to {to}, {bytes_max}");
                        assert_eq!(end, at_of(from) + bytes.len());
                    }
                }
            }
        }
    }

    /// Whatever a bit makes of lengths and indexes, what is read decodes to what was written, or
    /// not at all.
    #[test]
    fn a_flipped_bit_gives_other_entries_to_nobody() {
        let whole = batch();
        let mut given = 0;
        for bit in 0..whole.size_bytes() * 8 {
            let mut bytes = whole.bytes().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let (disk, file) = file(&bytes);
            let piece = piece(&disk, file, bytes.len());
            let from = Index::new(FIRST + 30);
            let (bytes, _) = piece.read((from, from), 1_000, None).expect("it reads");
            let found = Batch::decode(group(), bytes).ok();
            if let Some(found) = found.filter(|found| found.first().index == from) {
                assert_eq!(found.len(), 1);
                assert!(
                    whole
                        .bytes()
                        .windows(found.size_bytes())
                        .any(|part| part == found.bytes())
                );
                given += 1;
            }
        }
        assert!(given > whole.size_bytes(), "most bits are not in the way");
    }
}
