//! The segment files of a lane, open for as long as an open of the log works on them.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use crate::error::LogError;
use crate::index::Tables;
use crate::segment::{HeaderFound, SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::vfs::{FileId, Vfs, read_through};

/// A segment file that is there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SegmentFile {
    pub(crate) number: u64,
    pub(crate) file: FileId,
    /// As its header says, or the file itself if that is shorter or there is no header.
    pub(crate) len: u64,
    /// The file is shorter than its header says: somebody cut it.
    pub(crate) is_short: bool,
    /// It is longer: what lies behind is none of ours.
    pub(crate) is_long: bool,
    /// `None` if the header cannot be read.
    pub(crate) header: Option<SegmentHeader>,
    /// Only one of the header and its copy can be read.
    pub(crate) is_half: bool,
}

impl SegmentFile {
    /// Whether its header says that it is none of those that are appended to in turn.
    pub(super) fn is_apart(&self) -> bool {
        self.header.is_some_and(|header| header.is_apart)
    }
}

/// The segment files that are there, by number: closed with this, whatever becomes of the open.
#[derive(Debug)]
pub(crate) struct Files {
    vfs: Arc<dyn Vfs>,
    by_number: BTreeMap<u64, SegmentFile>,
}

impl Deref for Files {
    type Target = BTreeMap<u64, SegmentFile>;

    fn deref(&self) -> &Self::Target {
        &self.by_number
    }
}

impl Files {
    pub(super) const fn new(vfs: Arc<dyn Vfs>) -> Self {
        Self {
            vfs,
            by_number: BTreeMap::new(),
        }
    }

    /// Opens a file and reads its header.
    pub(super) fn open(&mut self, number: u64, path: &Path) -> Result<SegmentFile, LogError> {
        let file = self.vfs.open(path, false)?;
        let found = read_header(self.vfs.as_ref(), (number, file), path);
        match found {
            Ok(found) => drop(self.by_number.insert(number, found)),
            Err(_) => self.vfs.close(file),
        }
        found
    }

    /// Closes one: it is not there any more.
    pub(super) fn close(&mut self, number: u64) {
        if let Some(found) = self.by_number.remove(&number) {
            self.vfs.close(found.file);
        }
    }

    /// Closes all but those that the tables name: they are the tables' from now on.
    pub(super) fn hand_over(mut self, tables: &Tables) {
        self.by_number
            .retain(|number, _| !tables.segments.contains_key(number));
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for found in self.by_number.values() {
            self.vfs.close(found.file);
        }
    }
}

fn read_header(
    vfs: &dyn Vfs,
    (number, file): (u64, FileId),
    path: &Path,
) -> Result<SegmentFile, LogError> {
    let found_len = vfs.len(file)?;
    let (head, _) = read_through(vfs, file, 0, SEGMENT_HEADER_BYTES)?;
    let (header, is_half) = match SegmentHeader::decode(&head) {
        HeaderFound::Whole(header) => (Some(header), false),
        HeaderFound::Half(header) => (Some(header), true),
        HeaderFound::Unreadable => (None, false),
        HeaderFound::Newer(version) => {
            return Err(LogError::NeedsVersion {
                path: path.to_owned(),
                offset: 0,
                version,
            });
        }
    };
    let len = header.map_or(found_len, |header| header.len);
    Ok(SegmentFile {
        number,
        file,
        len: found_len.min(len),
        is_short: found_len < len,
        is_long: found_len > len,
        header,
        is_half,
    })
}
