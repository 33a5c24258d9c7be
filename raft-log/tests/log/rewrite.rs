//! The records of a segment, taken apart and put together again with other words in their tables and
//! checksums that hold.

use raft_proto::crc32c_append;

const START: usize = 1024;
const HEADER: usize = 64;
const ALIGN: usize = 64;
const TRAILER: usize = 64;
const ITEM_HEADER: usize = 24;
const LIST_RUN: usize = 24;

pub const ENTRIES: u8 = 1;
pub const SEGMENTS: u8 = 9;
pub const RELEASED: u8 = 10;
pub const RUNS: u8 = 12;
pub const LIMITS: u8 = 14;
pub const SUCCESSOR: u8 = 15;
pub const APART: u8 = 16;

pub const CHECKPOINT: u8 = 2;
pub const WATERMARK: u8 = 3;
pub const FOOTER: u8 = 4;

/// An item of a table: what it is, whose, and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub kind: u8,
    pub flags: u8,
    pub owner: (u64, u64),
    pub body: Vec<u8>,
}

impl Item {
    /// One of the lane.
    pub fn of_lane(kind: u8, words: &[u64]) -> Self {
        let mut item = Self {
            kind,
            flags: 0,
            owner: (0, 0),
            body: Vec::new(),
        };
        item.set_words(words);
        item
    }

    pub fn words(&self) -> Vec<u64> {
        let words = self.body.chunks_exact(8);
        words.map(|word| number(word, 0, 8)).collect()
    }

    pub fn set_words(&mut self, words: &[u64]) {
        self.body = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    }

    pub fn set_word(&mut self, at: usize, word: u64) {
        self.body[8 * at..8 * at + 8].copy_from_slice(&word.to_le_bytes());
    }

    fn len(&self) -> usize {
        ITEM_HEADER + self.body.len()
    }
}

/// A record, as it lies in a segment.
#[derive(Clone, Debug)]
pub struct Record {
    pub at: usize,
    header: [u8; HEADER],
    pub items: Vec<Item>,
    data: Vec<u8>,
}

impl Record {
    pub const fn kind(&self) -> u8 {
        self.header[5]
    }

    fn table_len(&self) -> usize {
        self.items.iter().map(Item::len).sum()
    }

    fn len(&self) -> usize {
        (HEADER + self.table_len() + self.data.len()).next_multiple_of(ALIGN)
    }

    const fn is_footer(&self) -> bool {
        self.kind() == FOOTER
    }
}

fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    let mut word = [0; 8];
    word[..len].copy_from_slice(&bytes[at..at + len]);
    u64::from_le_bytes(word)
}

fn size(bytes: &[u8], at: usize) -> usize {
    usize::try_from(number(bytes, at, 4)).expect("small")
}

fn items(mut table: &[u8]) -> Vec<Item> {
    let mut found = Vec::new();
    while !table.is_empty() {
        let end = ITEM_HEADER + size(table, 4);
        found.push(Item {
            kind: table[0],
            flags: table[1],
            owner: (number(table, 8, 8), number(table, 16, 8)),
            body: table[ITEM_HEADER..end].to_vec(),
        });
        table = &table[end..];
    }
    found
}

/// All records of a segment, which is whole.
pub fn records(content: &[u8]) -> Vec<Record> {
    let mut found = Vec::new();
    let mut at = START;
    let mut lsn = None;
    while at + HEADER <= content.len() && content[at..].starts_with(b"FRL1") {
        let header: [u8; HEADER] = content[at..at + HEADER].try_into().expect("as long");
        let place = (content, at);
        let is_next = lsn.is_none_or(|lsn: u64| number(&header, 8, 8) == lsn + 1);
        if number(&header, 60, 4) != u64::from(checksum(place, &header[..60])) || !is_next {
            // Of an earlier life.
            break;
        }
        lsn = Some(number(&header, 8, 8));
        let data_at = at + HEADER + size(&header, 24);
        let record = Record {
            at,
            header,
            items: items(&content[at + HEADER..data_at]),
            data: content[data_at..data_at + size(&header, 28)].to_vec(),
        };
        at += record.len();
        found.push(record);
    }
    found
}

/// Of bytes at a place of the segment that `content` is.
fn checksum((content, at): (&[u8], usize), bytes: &[u8]) -> u32 {
    let crc = crc32c_append(crc32c_append(0, bytes), &content[32..40]);
    crc32c_append(crc, &u64::try_from(at).expect("small").to_le_bytes())
}

/// Puts other records in place of those that are there, which are `old`, each with checksums that hold.
/// `false`: they do not fit, or what is sealed would have to move.
pub fn put(content: &mut [u8], old: &[Record], new: &[Record]) -> bool {
    let mut new = new.to_vec();
    let is_sealed = old.last().is_some_and(Record::is_footer);
    let end = |records: &[Record]| records.last().map_or(START, |last| last.at + last.len());
    let mut at = START;
    for (record, before) in new.iter_mut().zip(old) {
        record.at = at;
        let more = record.table_len().saturating_sub(before.table_len());
        if record.kind() == WATERMARK && record.data.len() > more {
            // Its data are zeroes that fill a page.
            record.data.truncate(record.data.len() - more);
            let less = before.len().saturating_sub(record.len());
            record.data.resize(record.data.len() + less, 0);
        }
        at += record.len();
        let must_stay = is_sealed && !record.is_footer();
        if must_stay && record.table_len() != before.table_len() {
            return false;
        }
    }
    if at > content.len() - TRAILER {
        return false;
    }
    content[START..end(old).max(at)].fill(0);
    for (record, before) in new.iter_mut().zip(old) {
        write(content, record, before);
    }
    true
}

fn write(content: &mut [u8], record: &mut Record, before: &Record) {
    let at = record.at;
    let (old_at, data_at) = (
        before.at + HEADER + before.table_len(),
        at + HEADER + record.table_len(),
    );
    for item in record.items.iter_mut().filter(|item| item.kind == RUNS) {
        // A list is sealed with its place.
        let (from, count) = (size(&item.body, 32), size(&item.body, 36));
        let len = count.saturating_mul(LIST_RUN);
        let Some(list) = record.data.get(from..from.saturating_add(len)) else {
            continue;
        };
        let crc = |data_at: usize| checksum((content, data_at + from), list).to_le_bytes();
        if item.body[40..44] == crc(old_at) {
            item.body[40..44].copy_from_slice(&crc(data_at));
        }
    }
    let mut table = Vec::new();
    for item in &record.items {
        table.extend_from_slice(&[item.kind, item.flags, 0, 0]);
        table.extend_from_slice(&four(item.body.len()));
        table.extend_from_slice(&item.owner.0.to_le_bytes());
        table.extend_from_slice(&item.owner.1.to_le_bytes());
        table.extend_from_slice(&item.body);
    }
    let end = at + record.len();
    content[at + HEADER..data_at].copy_from_slice(&table);
    content[data_at..data_at + record.data.len()].copy_from_slice(&record.data);
    let header = &mut record.header;
    header[24..28].copy_from_slice(&four(table.len()));
    header[28..32].copy_from_slice(&four(record.data.len()));
    let crc = checksum((content, at), &table).to_le_bytes();
    header[32..36].copy_from_slice(&crc);
    let crc = checksum((content, at), &content[data_at..end]).to_le_bytes();
    header[36..40].copy_from_slice(&crc);
    let crc = checksum((content, at), &header[..60]).to_le_bytes();
    header[60..].copy_from_slice(&crc);
    content[at..at + HEADER].copy_from_slice(header);
}

fn four(len: usize) -> [u8; 4] {
    u32::try_from(len).expect("small").to_le_bytes()
}
