//! What each target does with its bytes; the tests run the same with bytes drawn from seeds.
//!
//! All go through the front door: a whole log on a simulated disk, some of whose bytes are the
//! input. Whatever they are, opening says what it found and panics never, what it calls sound can
//! be read or is refused with an error, and a second open works as the first did.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use raft_log::vfs::{SimVfs, Vfs};
use raft_log::{Lane, LaneOptions, LogError, Submission};
use raft_proto::{
    BatchBuilder, EntryKind, GroupId, HardState, Index, ReplicaId, Term, Time, crc32c_append,
};

const DATA: &str = "/data";
const RECORD_HEADER: usize = 64;

/// A log with a sealed segment and one in use.
struct Log {
    disk: SimVfs,
    sealed: PathBuf,
    active: PathBuf,
}

fn options() -> LaneOptions {
    LaneOptions {
        segment_size_bytes: 64 << 10,
        record_bytes_max: 32 << 10,
        tail_cache_bytes_max: 0,
        identity: Some(7),
        ..LaneOptions::default()
    }
}

fn log() -> &'static Log {
    static LOG: OnceLock<Log> = OnceLock::new();
    LOG.get_or_init(|| {
        let disk = Arc::new(SimVfs::new(1));
        disk.create_dir_all(DATA.as_ref()).expect("an empty disk");
        disk.sync_dir("/".as_ref()).expect("it syncs");
        let vfs: Arc<dyn Vfs> = Arc::<SimVfs>::clone(&disk);
        let (mut lane, _) = Lane::open(vfs, Path::new(DATA), options()).expect("it opens");
        let replica = ReplicaId::new(1).expect("not 0");
        let mut now = Time(0);
        for number in 1..=30 {
            let group = GroupId::new(1 + number % 2).expect("not 0");
            let index = number.div_ceil(2);
            let mut submission = Submission::new(group, replica, index);
            let term = Term::new(1);
            let mut builder = BatchBuilder::new(group, term, Index::new(index), 0);
            builder.push(EntryKind::Command, 1, None, &[7; 3_000]);
            submission
                .entries
                .push(builder.finish().expect("one entry"));
            submission.hard_state = Some(HardState {
                term,
                vote: None,
                commit: Index::new(index - 1),
            });
            lane.submit(submission).expect("there is room");
            while lane.take_completions().is_empty() {
                lane.poll(now);
                now = now.plus_nanos(1_000_000);
                disk.set_now(now);
            }
        }
        drop(lane);
        disk.crash();
        let dir = Path::new(DATA).join("log/0");
        Log {
            sealed: dir.join("0000000000000001.seg"),
            active: dir.join("0000000000000002.seg"),
            disk: disk.fork(),
        }
    })
}

fn number(content: &[u8], at: usize) -> usize {
    let bytes = content[at..at + 4].try_into().expect("four bytes");
    usize::try_from(u32::from_le_bytes(bytes)).expect("usize has at least 32 bits")
}

/// The checksum of bytes that lie in `content` at `place`.
fn sealed(content: &[u8], place: usize, bytes: &[u8]) -> [u8; 4] {
    let crc = crc32c_append(crc32c_append(0, bytes), &content[32..40]);
    let place = u64::try_from(place).expect("small").to_le_bytes();
    crc32c_append(crc, &place).to_le_bytes()
}

/// Makes the checksums of the record at `at` hold, as far as its lengths lie within the file.
fn seal(content: &mut [u8], at: usize) {
    let (table, data) = (number(content, at + 24), number(content, at + 28));
    let data_at = at.saturating_add(RECORD_HEADER).saturating_add(table);
    let end = data_at.saturating_add(data).checked_next_multiple_of(64);
    if let Some(end) = end.filter(|&end| end <= content.len()) {
        let crc = sealed(content, at, &content[at + RECORD_HEADER..data_at]);
        content[at + 32..at + 36].copy_from_slice(&crc);
        let crc = sealed(content, at, &content[data_at..end]);
        content[at + 36..at + 40].copy_from_slice(&crc);
    }
    let crc = sealed(content, at, &content[at..at + 60]);
    content[at + 60..at + 64].copy_from_slice(&crc);
}

/// The offset of the last record of `kind`, by the lengths.
fn last_record(content: &[u8], kind: u8) -> Option<usize> {
    let (mut at, mut found) = (1024, None);
    while at + RECORD_HEADER <= content.len() && content[at..].starts_with(b"FRL1") {
        if content[at + 5] == kind {
            found = Some(at);
        }
        at = at + RECORD_HEADER + number(content, at + 24) + number(content, at + 28);
        at = at.next_multiple_of(64);
    }
    found
}

/// Opens twice, and reads all that is said to be there.
fn open_and_read(disk: SimVfs) {
    let disk = Arc::new(disk);
    for _ in 0..2 {
        let vfs: Arc<dyn Vfs> = Arc::<SimVfs>::clone(&disk);
        let (lane, recovery) = match Lane::open(vfs, Path::new(DATA), options()) {
            Ok(opened) => opened,
            Err(LogError::NeedsVersion { .. }) => return,
            Err(error) => panic!("damage is reported, and the log opens: {error}"),
        };
        let reader = lane.reader();
        for (key, state) in &recovery.replicas {
            let mut next = state.first;
            // What is claimed may be any number of entries; what is there is bounded by the files.
            while next <= state.last.index {
                match reader.entries(key.0, key.1, next, state.last.index, usize::MAX) {
                    Ok(batches) => {
                        let last = batches.last().expect("at least one");
                        assert!(last.last().index >= next, "reading goes on");
                        next = last.last().index.next();
                    }
                    Err(LogError::NotFound { .. } | LogError::Damaged { .. }) => break,
                    Err(error) => panic!("{key:?}: {error}"),
                }
            }
        }
        drop(lane);
        disk.crash();
    }
}

/// The first byte says whether checksums and lengths are made to hold; the others lie over a record
/// of `kind`, behind its header or its magic.
fn over_record(path: &Path, kind: u8, input: &[u8]) {
    let Some((&flags, bytes)) = input.split_first() else {
        return;
    };
    let disk = log().disk.fork();
    disk.damage(path, |content| {
        let at = last_record(content, kind).expect("the log has one");
        // Behind the header alone, or over it.
        let from = if flags & 2 == 0 {
            at + RECORD_HEADER
        } else {
            at + 4
        };
        let len = bytes.len().min(content.len() - from);
        content[from..from + len].copy_from_slice(&bytes[..len]);
        if flags & 6 == 0 {
            // All of it is the table.
            let table = u32::try_from(len).expect("small").to_le_bytes();
            content[at + 24..at + 28].copy_from_slice(&table);
        }
        if flags & 8 == 0 {
            content[at + 28..at + 32].fill(0);
        }
        if flags & 1 == 0 {
            seal(content, at);
        }
    });
    open_and_read(disk);
}

/// A record of the segment in use is anything.
pub fn record(input: &[u8]) {
    over_record(&log().active, 1, input);
}

/// The checkpoint of the segment in use is anything.
pub fn checkpoint(input: &[u8]) {
    over_record(&log().active, 2, input);
}

/// The footer of a sealed segment is anything.
pub fn footer(input: &[u8]) {
    over_record(&log().sealed, 4, input);
}

/// A whole segment is anything: its name, and with the first byte's lowest bit its header, are
/// left.
pub fn segment(input: &[u8]) {
    let Some((&flags, bytes)) = input.split_first() else {
        return;
    };
    let log = log();
    let disk = log.disk.fork();
    let path = if flags & 2 == 0 {
        &log.active
    } else {
        &log.sealed
    };
    disk.damage(path, |content| {
        let keep = if flags & 1 == 0 { 1024 } else { 0 };
        content.truncate(keep);
        content.extend_from_slice(&bytes[..bytes.len().min(64 << 10)]);
        if flags & 4 == 0 {
            content.resize(64 << 10, 0);
        }
        if flags & 8 == 0 && keep > 0 && content.len() >= keep + RECORD_HEADER {
            content[keep..keep + 4].copy_from_slice(b"FRL1");
            seal(content, keep);
        }
    });
    open_and_read(disk);
}
