//! Verifying what is durable while the lane runs: every record of every segment is read again, a
//! little at a time, so that damage is found before a reader or a restart needs what it hit.
//!
//! ```text
//! open, or Lane::scrub ──▶ segments ──▶ records ──▶ checksums ──▶ whole: on
//!                                                       └──▶ not: each live batch there by its
//!                                                            own frames ──▶ damage of its replica
//! ```
//!
//! A step reads 128 KiB at most, in the lane's own poll and at its own time: there is no
//! thread, and the same polls verify the same bytes. Appends go first.

use bytes::Bytes;
use raft_proto::crc32c_append;

use crate::index::SegmentInfo;
use crate::record::{
    Place, RECORD_ALIGN, RECORD_HEADER_BYTES, RECORD_MAGIC, RecordHeader, RecordKind,
};
use crate::segment::{HeaderFound, SEGMENT_HEADER_BYTES, SegmentHeader, TRAILER_BYTES, Trailer};
use crate::vfs::{FileId, Vfs, VfsError};

/// What one step reads, about: some 10 us while the page cache is warm, 100 us while it is not.
const STEP_BYTES: u64 = 128 << 10;

/// Going through one segment.
#[derive(Debug)]
pub(crate) struct Walk {
    pub(crate) number: u64,
    pub(crate) incarnation: u64,
    pub(crate) file: FileId,
    pub(crate) len: u64,
    /// Nothing is appended any more, and a trailer is expected.
    is_sealed: bool,
    /// Read on from here.
    pub(crate) offset: u64,
    /// No record reaches past this.
    end: u64,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// The segment's own header comes.
    Head,
    /// A record's header comes.
    Record,
    /// A part of a record: its table, or its data and padding.
    Part {
        header: RecordHeader,
        /// Where the record begins.
        at: u64,
        crc: u32,
        /// Bytes still to come.
        left: u64,
        is_data: bool,
    },
    /// No record where one was expected: the next one is looked for.
    Lost { from: u64 },
    /// The trailer, which is to name the footer at this offset; or, if the records ended before
    /// one, is to be none.
    Trailer { at: u64, has_footer: bool },
}

/// What a step came to.
#[derive(Debug)]
pub(crate) enum Event {
    /// There is more of this segment.
    More,
    /// All of this segment is verified.
    Ended,
    /// Something between `from` and `to` does not hold.
    Bad {
        from: u64,
        to: u64,
        reason: &'static str,
        /// Whether it is damage even if no live entry is hit.
        is_certain: bool,
        /// Whether nothing more of this segment can be verified.
        is_end: bool,
    },
}

impl Walk {
    /// Begins a segment. `appended_to`: where the durable records of the active one end.
    pub(crate) fn new(number: u64, info: &SegmentInfo, appended_to: Option<u64>) -> Self {
        let trailer_at = info.len.saturating_sub(to_u64(TRAILER_BYTES));
        let end = appended_to.unwrap_or(trailer_at);
        Self {
            number,
            incarnation: info.incarnation,
            file: info.file,
            len: info.len,
            is_sealed: appended_to.is_none(),
            offset: to_u64(SEGMENT_HEADER_BYTES).min(end),
            end,
            stage: Stage::Head,
        }
    }

    pub(crate) const fn place(&self, offset: u64) -> Place {
        Place {
            incarnation: self.incarnation,
            offset,
        }
    }

    /// Reads and verifies the next piece. Returns the bytes read.
    pub(crate) fn advance(&mut self, vfs: &dyn Vfs) -> Result<(u64, Event), VfsError> {
        let (from, end) = match self.stage {
            Stage::Head => (0, to_u64(SEGMENT_HEADER_BYTES)),
            Stage::Trailer { .. } => (self.len - to_u64(TRAILER_BYTES), self.len),
            _ => (self.offset, self.end),
        };
        let len = to_usize(STEP_BYTES.min(end.saturating_sub(from)));
        let window = vfs.read_shared(self.file, from, len)?;
        if window.len() < len && vfs.len(self.file)? < end {
            let event = Event::Bad {
                from: from + to_u64(window.len()),
                to: end,
                reason: "the file was cut short",
                is_certain: true,
                is_end: true,
            };
            return Ok((to_u64(window.len()), event));
        }
        if window.len() < len {
            // A short read of a file that is long enough: once more, later.
            return Ok((STEP_BYTES, Event::More));
        }
        let event = match self.stage {
            Stage::Head => self.head(&window),
            Stage::Trailer { at, has_footer } => self.trailer(&window, at, has_footer),
            _ => self.records(&window),
        };
        Ok((to_u64(len), event))
    }

    fn head(&mut self, window: &[u8]) -> Event {
        self.stage = Stage::Record;
        let is_ours = |header: &SegmentHeader| {
            header.number == self.number && header.incarnation == self.incarnation
        };
        let reason = match SegmentHeader::decode(window) {
            HeaderFound::Whole(header) if is_ours(&header) => return Event::More,
            HeaderFound::Half(header) if is_ours(&header) => "one copy of the header is unreadable",
            _ => "the header and its copy are unreadable",
        };
        Event::Bad {
            from: 0,
            to: to_u64(SEGMENT_HEADER_BYTES),
            reason,
            is_certain: true,
            is_end: false,
        }
    }

    fn trailer(&self, window: &[u8], at: u64, has_footer: bool) -> Event {
        let trailer_at = self.len - to_u64(TRAILER_BYTES);
        let trailer = Trailer::decode(window, self.place(trailer_at));
        if !has_footer {
            // Without a footer the segment was sealed by a recovery, and has no trailer; what lies
            // behind the last record may be anything.
            return lost(at, self.end, trailer.is_some(), true);
        }
        match trailer {
            Some(trailer) if trailer.footer_offset == at => Event::Ended,
            _ => Event::Bad {
                from: trailer_at,
                to: self.len,
                reason: "the trailer fails its checksum",
                is_certain: true,
                is_end: true,
            },
        }
    }

    /// Goes through what the window holds of records.
    fn records(&mut self, window: &Bytes) -> Event {
        let start = self.offset;
        loop {
            let rest = &window[to_usize(self.offset - start)..];
            match &mut self.stage {
                Stage::Record => {
                    if self.end - self.offset < to_u64(RECORD_HEADER_BYTES) {
                        if !self.is_sealed {
                            return Event::Ended;
                        }
                        return self.without_footer(self.offset);
                    }
                    if rest.len() < RECORD_HEADER_BYTES {
                        return Event::More;
                    }
                    self.begin_record(rest);
                }
                Stage::Part { crc, left, .. } => {
                    let here = to_u64(rest.len()).min(*left);
                    *crc = crc32c_append(*crc, &rest[..to_usize(here)]);
                    *left -= here;
                    self.offset += here;
                    if *left > 0 {
                        return Event::More;
                    }
                    if let Some(event) = self.end_part() {
                        return event;
                    }
                }
                Stage::Lost { from } => {
                    let from = *from;
                    if self.find_record(rest) {
                        self.stage = Stage::Record;
                        return lost(from, self.offset, true, false);
                    }
                    if self.end - self.offset < to_u64(RECORD_HEADER_BYTES) {
                        if !self.is_sealed {
                            return lost(from, self.end, true, true);
                        }
                        return self.without_footer(from);
                    }
                    return Event::More;
                }
                Stage::Head | Stage::Trailer { .. } => return Event::More,
            }
        }
    }

    /// There is no record any more, and none was a footer: the trailer says whether there was one.
    fn without_footer(&mut self, at: u64) -> Event {
        if self.len < to_u64(SEGMENT_HEADER_BYTES + TRAILER_BYTES) {
            return Event::Ended;
        }
        self.stage = Stage::Trailer {
            at,
            has_footer: false,
        };
        Event::More
    }

    fn begin_record(&mut self, bytes: &[u8]) {
        let at = self.offset;
        let header = RecordHeader::decode(bytes, self.place(at))
            .ok()
            .filter(|header| at + to_u64(header.total()) <= self.end);
        let Some(header) = header else {
            self.stage = Stage::Lost { from: at };
            self.offset += to_u64(RECORD_ALIGN);
            return;
        };
        self.offset += to_u64(RECORD_HEADER_BYTES);
        self.stage = Stage::Part {
            header,
            at,
            crc: 0,
            left: to_u64(header.table_len),
            is_data: false,
        };
    }

    /// A table or a data part is read. `None`: go on.
    fn end_part(&mut self) -> Option<Event> {
        let Stage::Part {
            header,
            at,
            crc,
            is_data,
            ..
        } = self.stage
        else {
            return None;
        };
        let sealed = self.place(at).seal(crc);
        let data_at = at + to_u64(RECORD_HEADER_BYTES + header.table_len);
        let end = at + to_u64(header.total());
        let (is_whole, from, to, reason) = if is_data {
            self.stage = if header.kind == RecordKind::Footer {
                Stage::Trailer {
                    at,
                    has_footer: true,
                }
            } else {
                Stage::Record
            };
            let is_whole = sealed == header.data_crc;
            (is_whole, data_at, end, "a record's data fails its checksum")
        } else {
            self.stage = Stage::Part {
                header,
                at,
                crc: 0,
                left: end - data_at,
                is_data: true,
            };
            let is_whole = sealed == header.table_crc;
            (is_whole, at, data_at, "a record's table fails its checksum")
        };
        if is_whole {
            // A footer is followed by free space, and the trailer lies elsewhere.
            return matches!(self.stage, Stage::Trailer { .. }).then_some(Event::More);
        }
        Some(Event::Bad {
            from,
            to,
            reason,
            is_certain: true,
            is_end: false,
        })
    }

    /// Looks for a whole header; `offset` moves to it, or behind what was looked at.
    fn find_record(&mut self, rest: &[u8]) -> bool {
        let magic = RECORD_MAGIC.to_le_bytes();
        for chunk in rest.chunks_exact(RECORD_ALIGN) {
            if chunk.starts_with(&magic)
                && RecordHeader::decode(chunk, self.place(self.offset)).is_ok()
            {
                return true;
            }
            self.offset += to_u64(RECORD_ALIGN);
        }
        false
    }
}

fn lost(from: u64, to: u64, is_certain: bool, is_end: bool) -> Event {
    Event::Bad {
        from,
        to,
        reason: "a record's header is lost",
        is_certain,
        is_end,
    }
}

fn to_u64(len: usize) -> u64 {
    u64::try_from(len).expect("a length fits")
}

fn to_usize(len: u64) -> usize {
    usize::try_from(len).expect("a segment fits in memory")
}
