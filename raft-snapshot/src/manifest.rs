//! What a snapshot consists of: whose it is, of what place, and its table of blocks.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use raft_proto::{EntryId, GroupId, Index, MEMBERSHIP_BYTES_MAX, Membership, Term, crc32c_append};

use crate::dir_name::valid_index;
use crate::error::SnapshotError;
use crate::layout::HEADER_BYTES;

/// The bytes of a block, where nothing else was asked for.
pub const BLOCK_BYTES: usize = 1 << 20;

/// The least a block may be asked to be. The last block of a snapshot is shorter.
pub const BLOCK_BYTES_MIN: usize = 512;

/// The most a block may be asked to be, and the most that is ever read in one go.
pub const BLOCK_BYTES_MAX: usize = 8 << 20;

/// The most that a manifest takes, encoded: room for some 290,000 blocks, 280 GiB at a MiB each.
pub const MANIFEST_BYTES_MAX: usize = 15 << 20;

/// Whose snapshot it is, and of what place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFileMeta {
    /// The group.
    pub group: GroupId,
    /// The group's epoch.
    pub epoch: u64,
    /// The last entry covered. Its index is not 0 and below 2^64-2.
    pub id: EntryId,
    /// The membership as of that entry, as [`Membership::encode`] writes it; at most
    /// [`MEMBERSHIP_BYTES_MAX`] and its version byte.
    pub membership: Bytes,
}

/// One block in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockEntry {
    /// Where it lies in the file.
    pub offset: u64,
    /// Its length, 1 to [`BLOCK_BYTES_MAX`].
    pub len: u32,
    /// The CRC-32C of its bytes.
    pub crc: u32,
    /// The BLAKE3 hash of its bytes.
    pub hash: [u8; 32],
}

impl BlockEntry {
    /// The entry of `block`, which lies at `offset`.
    pub(crate) fn of(offset: u64, block: &[u8]) -> Self {
        Self {
            offset,
            len: u32::try_from(block.len()).expect("a block is bounded"),
            crc: crc32c_append(0, block),
            hash: *blake3::hash(block).as_bytes(),
        }
    }

    /// The length, as memory counts.
    pub(crate) fn len_bytes(&self) -> usize {
        usize::try_from(self.len).expect("a block is bounded")
    }

    /// Where the next block lies.
    pub(crate) const fn end(&self) -> Option<u64> {
        self.offset.checked_add(self.len as u64)
    }
}

/// A snapshot's table of contents. Two snapshots with equal manifests have equal bytes.
///
/// It is what a sender offers and what a receiver holds every block against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Whose, and of what place.
    pub meta: SnapshotFileMeta,
    /// The blocks, in order and without gaps, from the file's header on.
    pub blocks: Vec<BlockEntry>,
}

impl Manifest {
    /// Its bytes, as the file's footer and an offer carry them; see `FORMAT.md`.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::TooLarge`]: more than [`MANIFEST_BYTES_MAX`], or a membership out of
    /// bounds.
    pub(crate) fn try_encode(&self) -> Result<Bytes, SnapshotError> {
        let bounds = [
            (
                "membership",
                self.meta.membership.len(),
                MEMBERSHIP_BYTES_MAX + 1,
            ),
            ("manifest", self.encoded_bytes(), MANIFEST_BYTES_MAX),
        ];
        for (what, size, bound) in bounds {
            if size > bound {
                return Err(SnapshotError::TooLarge {
                    what,
                    size: u64::try_from(size).unwrap_or(u64::MAX),
                    bound: u64::try_from(bound).unwrap_or(u64::MAX),
                });
            }
        }
        Ok(self.encode())
    }

    /// Its bytes, as the file's footer and an offer carry them; see `FORMAT.md`.
    ///
    /// # Panics
    ///
    /// If the membership or the table breaks a bound, which no manifest does that was decoded or
    /// came out of a [`SnapshotWriter`](crate::SnapshotWriter).
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.encoded_bytes());
        out.put_u64_le(MAGIC);
        out.put_u64_le(self.meta.group.get());
        out.put_u64_le(self.meta.epoch);
        out.put_u64_le(self.meta.id.term.get());
        out.put_u64_le(self.meta.id.index.get());
        out.put_u32_le(u32::try_from(self.meta.membership.len()).expect("a membership is bounded"));
        out.put_slice(&self.meta.membership);
        out.put_u32_le(u32::try_from(self.blocks.len()).expect("a table is bounded"));
        // External files, of which this version writes none.
        out.put_u32_le(0);
        for block in &self.blocks {
            out.put_u64_le(block.offset);
            // The length as stored and as saved: they are one without compression.
            out.put_u32_le(block.len);
            out.put_u32_le(block.len);
            out.put_u32_le(block.crc);
            out.put_u32_le(CODEC_NONE);
            out.put_slice(&block.hash);
        }
        out.freeze()
    }

    /// Reads what [`Self::encode`] wrote, wherever it comes from. `None` if it breaks any rule of
    /// the format: nothing is allocated for a count that the bytes do not bear out.
    #[must_use]
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        if bytes.len() > MANIFEST_BYTES_MAX || bytes.try_get_u64_le().ok()? != MAGIC {
            return None;
        }
        let group = GroupId::new(bytes.try_get_u64_le().ok()?)?;
        let epoch = bytes.try_get_u64_le().ok()?;
        let term = bytes
            .try_get_u64_le()
            .ok()
            .filter(|&term| term < u64::MAX)?;
        let index = valid_index(bytes.try_get_u64_le().ok()?)?;
        let len = usize::try_from(bytes.try_get_u32_le().ok()?).ok()?;
        if len > MEMBERSHIP_BYTES_MAX + 1 {
            return None;
        }
        let membership = Bytes::copy_from_slice(bytes.get(..len)?);
        Membership::decode(&membership).ok()?;
        bytes.advance(len);
        let count = usize::try_from(bytes.try_get_u32_le().ok()?).ok()?;
        let external_files = bytes.try_get_u32_le().ok()?;
        if external_files != 0 || bytes.len() != count.checked_mul(BLOCK_ENTRY_BYTES)? {
            return None;
        }
        let blocks = blocks(bytes, count)?;
        Some(Self {
            meta: SnapshotFileMeta {
                group,
                epoch,
                id: EntryId::new(Term::new(term), index),
                membership,
            },
            blocks,
        })
    }

    /// The sum of the blocks, in bytes: what the state takes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.blocks.iter().map(|block| u64::from(block.len)).sum()
    }

    /// The BLAKE3 hash of the encoded manifest, which names the snapshot's content.
    ///
    /// # Panics
    ///
    /// As [`Self::encode`].
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        *blake3::hash(&self.encode()).as_bytes()
    }

    /// The index, for short.
    pub(crate) const fn index(&self) -> Index {
        self.meta.id.index
    }

    fn encoded_bytes(&self) -> usize {
        FIXED_BYTES + self.meta.membership.len() + self.blocks.len() * BLOCK_ENTRY_BYTES
    }

    /// Where the blocks end and the footer begins.
    pub(crate) fn blocks_end(&self) -> u64 {
        self.blocks
            .last()
            .and_then(BlockEntry::end)
            .unwrap_or(HEADER_BYTES)
    }
}

/// Reads the table; `bytes` has exactly `count` entries.
fn blocks(mut bytes: &[u8], count: usize) -> Option<Vec<BlockEntry>> {
    let mut blocks = Vec::with_capacity(count);
    let mut offset = HEADER_BYTES;
    for _ in 0..count {
        let at = bytes.get_u64_le();
        let [len, plain_len, crc, codec] = std::array::from_fn(|_| bytes.get_u32_le());
        let mut hash = [0; 32];
        bytes.copy_to_slice(&mut hash);
        let is_bounded = (1..=BLOCK_BYTES_MAX).contains(&usize::try_from(len).ok()?);
        if at != offset || !is_bounded || plain_len != len || codec != CODEC_NONE {
            return None;
        }
        let block = BlockEntry {
            offset,
            len,
            crc,
            hash,
        };
        offset = block.end()?;
        blocks.push(block);
    }
    Some(blocks)
}

/// "FTMANI01", little-endian.
const MAGIC: u64 = 0x3130_494e_414d_5446;
/// The block is stored as it was saved.
const CODEC_NONE: u32 = 0;
const FIXED_BYTES: usize = 5 * 8 + 3 * 4;
pub(crate) const BLOCK_ENTRY_BYTES: usize = 56;

#[cfg(test)]
mod tests;
