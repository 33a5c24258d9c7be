//! Sealing a segment: its footer lists each replica's runs.

use bytes::{Bytes, BytesMut};
use raft_proto::Index;

use crate::error::LogError;
use crate::index::{At, AtSeal, LIST_RUN_BYTES, ListRun, Span};
use crate::item::{EntriesItem, ITEM_HEADER_BYTES, Item, Key, RunsItem};
use crate::lane::{Active, FlightKind, Lane};
use crate::record::{Place, RECORD_ALIGN, RECORD_HEADER_BYTES, RecordKind};
use crate::segment::{TRAILER_BYTES, Trailer};
use crate::staging::Staging;
use crate::vfs::{FileId, Op};

/// An item of a footer's table.
pub(crate) const RUNS_ITEM_BYTES: usize = ITEM_HEADER_BYTES + 44;

/// The item that names the next segment.
pub(crate) const SUCCESSOR_ITEM_BYTES: usize = ITEM_HEADER_BYTES + 8;

/// What readers use of a replica once its segment is sealed.
#[derive(Debug)]
pub(super) struct SealedReplica {
    pub(super) key: Key,
    pub(super) spans: Vec<Span>,
}

/// Consecutive batches of one replica.
pub(super) struct Range {
    pub(super) key: Key,
    pub(super) overwrites_from: Option<Index>,
    pub(super) bytes: u64,
    pub(super) runs: Vec<ListRun>,
}

impl Range {
    /// Whether a run continues it.
    pub(super) fn is_followed_by(&self, key: Key, first: Index) -> bool {
        self.key == key && self.last().next() == first
    }

    fn last(&self) -> Index {
        let last = self.runs.last().expect("a range has runs");
        last.first.plus(u64::from(last.count) - 1)
    }
}

impl Active {
    /// An upper bound of what sealing writes if `more` batches come, the trailer included.
    pub(crate) fn footer_bytes(&self, more: usize) -> u64 {
        let (runs, items) = (
            self.runs + more,
            self.touched.len() + self.moved_runs + more,
        );
        let footer = RECORD_HEADER_BYTES
            + SUCCESSOR_ITEM_BYTES
            + items * RUNS_ITEM_BYTES
            + runs * LIST_RUN_BYTES;
        to_u64(footer.next_multiple_of(RECORD_ALIGN) + TRAILER_BYTES)
    }

    /// Remembers what the footer must say of a batch.
    pub(crate) fn note(&mut self, key: Key, item: &EntriesItem) {
        let lowest = self.touched.entry(key).or_default();
        self.runs += 1;
        if item.is_moved {
            self.moved_runs += 1;
        } else {
            let first = item.first.index;
            *lowest = Some(lowest.map_or(first, |lowest| lowest.min(first)));
        }
    }
}

impl Lane {
    /// Begins to write the footer.
    pub(super) fn begin_seal(&mut self) {
        let (writes, sealed) = self.footer();
        let mut ops: Vec<_> = writes
            .into_iter()
            .map(|(file, offset, buffers)| {
                self.vfs.submit(Op::Write {
                    file,
                    offset,
                    buffers,
                })
            })
            .collect();
        let file = self.active.file;
        ops.push(self.vfs.submit(Op::Sync { file }));
        self.fly(ops, 1, FlightKind::Seal(sealed));
    }

    /// Writes the footer and waits until it is durable.
    pub(super) fn seal_now(&mut self) -> Result<Vec<SealedReplica>, LogError> {
        let (writes, sealed) = self.footer();
        for (file, mut offset, buffers) in writes {
            for buffer in buffers {
                self.vfs.write(file, offset, &buffer)?;
                offset += u64::try_from(buffer.len()).expect("a length fits");
            }
        }
        self.vfs.sync(self.active.file)?;
        self.stats.fdatasyncs += 1;
        self.synced_lsn = self.lsn;
        Ok(sealed)
    }

    #[expect(clippy::type_complexity, reason = "writes: file, offset, buffers")]
    fn footer(&mut self) -> (Vec<(FileId, u64, Vec<Bytes>)>, Vec<SealedReplica>) {
        let ranges = self.ranges();
        let table_len = SUCCESSOR_ITEM_BYTES + ranges.len() * RUNS_ITEM_BYTES;
        let data_at = self.active.offset + to_u64(RECORD_HEADER_BYTES + table_len);
        let mut staging = Staging::default();
        let successor = self
            .pool
            .first()
            .expect("it was made before this one is sealed");
        staging.item(None, &Item::Successor(successor));
        let place = Place {
            incarnation: self.active.incarnation,
            offset: data_at,
        };
        let sealed = list(&mut staging, ranges, self.active.number, place);
        let (file, offset) = (self.active.file, self.active.offset);
        let (buffers, found_at) = self.frame(RecordKind::Footer, &mut staging);
        assert_eq!(
            found_at, data_at,
            "a footer's table is as long as its items"
        );
        let trailer_at = self.active.len - to_u64(TRAILER_BYTES);
        assert!(self.active.offset <= trailer_at, "the trailer has room");
        let place = Place {
            incarnation: self.active.incarnation,
            offset: trailer_at,
        };
        let trailer = Trailer {
            footer_offset: offset,
            footer_lsn: self.lsn,
        };
        let writes = vec![
            (file, offset, buffers),
            (file, trailer_at, vec![trailer.encode(place)]),
        ];
        (writes, sealed)
    }

    /// What the footer lists: by replica, in order of indexes.
    fn ranges(&self) -> Vec<Range> {
        let tables = self.tables();
        let mut keys: Vec<Key> = self.active.touched.keys().copied().collect();
        keys.sort_unstable();
        let mut ranges: Vec<Range> = Vec::new();
        for key in keys {
            let Some(replica) = tables.replicas.get(&key) else {
                continue;
            };
            let mut overwrites_from = self.active.touched[&key];
            for span in &replica.spans {
                let At::Batch { offset, len } = span.at else {
                    continue;
                };
                if span.segment != self.active.number {
                    continue;
                }
                let run = ListRun {
                    first: span.first,
                    offset,
                    count: u32::try_from(span.last.distance_from(span.first) + 1)
                        .expect("a batch holds fewer than 2^32 entries"),
                    len: to_u32(len),
                };
                let follows = ranges
                    .last()
                    .is_some_and(|range| range.is_followed_by(key, span.first));
                if follows {
                    let range = ranges.last_mut().expect("it was just seen");
                    range.bytes += span.bytes;
                    range.runs.push(run);
                } else {
                    ranges.push(Range {
                        key,
                        overwrites_from: overwrites_from.take(),
                        bytes: span.bytes,
                        runs: vec![run],
                    });
                }
            }
        }
        ranges
    }

    /// The footer is durable: readers go by it.
    pub(super) fn sealed(&mut self, sealed: &[SealedReplica]) {
        let number = self.active.number;
        let mut tables = self.shared.write();
        let (mut live_bytes, mut batches) = (0, 0);
        for replica in sealed {
            tables.seal(replica.key, number, &replica.spans);
            for span in &replica.spans {
                live_bytes += span.bytes;
                if let At::List { count, .. } = span.at {
                    batches += u64::from(count);
                }
            }
        }
        if let Some(info) = tables.segments.get_mut(&number) {
            info.is_sealed = true;
            info.at_seal = AtSeal::new(
                self.active.offset - self.checkpoint_len,
                live_bytes,
                batches,
            );
        }
        drop(tables);
        self.active.is_sealed = true;
        self.stats.sealed_segments += 1;
    }
}

/// Stages what a footer says, whose data begins at `data_at`. Returns what readers go by then.
pub(super) fn list(
    staging: &mut Staging,
    ranges: Vec<Range>,
    segment: u64,
    data_at: Place,
) -> Vec<SealedReplica> {
    let mut sealed: Vec<SealedReplica> = Vec::new();
    let mut lists = BytesMut::new();
    for range in ranges {
        let list_at = lists.len();
        range.runs.iter().for_each(|run| run.encode(&mut lists));
        let place = Place {
            offset: data_at.offset + to_u64(list_at),
            ..data_at
        };
        let crc = place.checksum(&lists[list_at..]);
        let count = to_u32(range.runs.len());
        let (first, last) = (range.runs[0].first, range.last());
        let item = Item::Runs(RunsItem {
            overwrites_from: range.overwrites_from,
            first,
            last,
            bytes: range.bytes,
            list_at: to_u32(list_at),
            list_count: count,
            list_crc: crc,
        });
        staging.item(Some(range.key), &item);
        let span = Span {
            first,
            last,
            segment,
            bytes: range.bytes,
            at: At::List {
                offset: place.offset,
                count,
                crc,
            },
        };
        match sealed.last_mut().filter(|last| last.key == range.key) {
            Some(same) => same.spans.push(span),
            None => sealed.push(SealedReplica {
                key: range.key,
                spans: vec![span],
            }),
        }
    }
    staging.data(lists.freeze());
    sealed
}

fn to_u64(len: usize) -> u64 {
    u64::try_from(len).expect("a length fits")
}

fn to_u32(len: usize) -> u32 {
    u32::try_from(len).expect("a segment holds less than 4 GiB of lists")
}

const _: () = assert!(LIST_RUN_BYTES == 24);
