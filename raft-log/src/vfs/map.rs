//! Read-only maps of segment files, and the optional SIGBUS handler: the only unsafe code of the
//! workspace.
//!
//! Source: mmap(2), madvise(2) `MADV_POPULATE_READ`.
#![expect(
    unsafe_code,
    reason = "maps files for reading without a copy; installs a signal handler on request"
)]

use std::fs::File;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use memmap2::{Advice, Mmap, MmapOptions};

/// A read-only map of a whole file.
#[derive(Debug)]
pub(super) struct Map {
    map: Mmap,
}

/// A part of a map that outlives whoever reads it: keeps the map alive.
struct Slice {
    map: Arc<Map>,
    start: usize,
    end: usize,
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        // Only this range is ever borrowed, never the whole map: bytes outside of it may be
        // written at the same time.
        &self.map.map[self.start..self.end]
    }
}

impl Map {
    pub(super) fn new(file: &File, len: usize) -> io::Result<Self> {
        // SAFETY: the map is read-only, and its bytes are borrowed by range only (see `Slice`).
        // The ranges asked for lie below the durable watermark: the log never writes them again
        // before the file is retired, and reuses a retired file only when no slice of it is left.
        // Another process that writes or truncates the file could break this; the data directory's
        // lock keeps our own kind out, and bytes are checked before they are believed.
        // Guarded by the tests `slices_stay_valid_when_the_file_is_unlinked` and
        // `a_shared_file_is_not_recycled`.
        let map = unsafe { MmapOptions::new().len(len).map(file) }?;
        Ok(Self { map })
    }

    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    /// The bytes `start..end`, their pages faulted in: a device error is an error here and no
    /// signal later.
    ///
    /// Invariant: `start < end <= len`.
    pub(super) fn slice(self: &Arc<Self>, start: usize, end: usize) -> io::Result<Bytes> {
        assert!(start < end && end <= self.map.len(), "a part of the map");
        let page = start - start % PAGE_BYTES;
        self.map
            .advise_range(Advice::PopulateRead, page, end - page)?;
        Ok(Bytes::from_owner(Slice {
            map: Arc::clone(self),
            start,
            end,
        }))
    }
}

/// The least page size of the systems supported; a start rounded down to it is rounded further
/// down by the map itself where pages are larger.
const PAGE_BYTES: usize = 4096;
