//! Every bit of a whole log directory, flipped: what says something is found, what says nothing
//! concerns nobody, and no replica that is sound holds anything but what it held.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use raft_log::vfs::{SimVfs, Vfs};
use raft_log::{RecoveryReport, Submission};
use raft_proto::{BatchBuilder, EntryKind};

use crate::damage::{Closed, HALF_B, content, is_found_strictly, look, nowhere, records};
use crate::workload::{DATA, Driven, Workload, disk, key, open, options};

const SECTOR: usize = 512;
/// Data of a record that is longer is flipped by the sector, and of its bits some alone.
const LARGE: usize = 16 << 10;

/// A closed log of three segments: small records, two that fill the segment, and a footer; a checkpoint
/// and the last records; one that was made ahead.
fn complete() -> Closed {
    let disk = disk(1);
    let (mut driven, _) = Driven::open(&disk, &options());
    let mut workload = Workload::new(1, 3, 40);
    for _ in 0..6 {
        driven.write(workload.draw());
    }
    let (group, replica) = key(1);
    for number in 0..2 {
        let before = &workload.model.replicas[&(group, replica)];
        let (term, from) = (before.hard_state.term, before.last.index.next());
        let mut large = Submission::new(group, replica, 1_000 + number);
        let mut builder = BatchBuilder::new(group, term, from, 0);
        builder.push(EntryKind::Command, 0, None, &[0x5A; 29_000]);
        large.entries.extend(builder.finish());
        workload.model.apply(&large);
        driven.write(large);
    }
    while driven.lane.stats().sealed_segments == 0 {
        driven.write(workload.draw());
    }
    driven.write(workload.draw());
    driven.pass(2_000_000_000);
    assert_eq!(driven.lane.stats().moved_bytes, 0, "each is in use");
    driven.lane.close().expect("it closes");
    disk.set_now(raft_proto::Time(0));
    let closed = Closed::new(&disk, workload.model);
    let paths = closed.segments.iter();
    let kinds: Vec<Vec<u8>> = paths.map(|path| kinds(&content(&disk, path))).collect();
    assert_eq!(kinds.len(), 3, "{kinds:?}");
    assert!(kinds[0].ends_with(&[4]) && kinds[1].starts_with(&[2]));
    assert!(kinds[1].ends_with(&[3, 3]) && kinds[2].is_empty());
    closed
}

fn kinds(content: &[u8]) -> Vec<u8> {
    records(content).iter().map(|record| record.1).collect()
}

/// What a part of a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// It says something, of several perhaps.
    Telling,
    /// Entries: of one replica each.
    Entries,
    /// Entries, of one batch that is long.
    Large,
    /// The watermark of the close: replicas have nothing in it.
    Last,
    /// What fills up the page behind a watermark.
    Filler,
    /// A vote slot, used or not, or the vote file's header.
    Votes,
    /// The header of a segment that was made ahead.
    Ahead,
    /// Nothing.
    Nowhere,
}

impl Part {
    /// There is much of it, and one byte is like the other.
    const fn is_sparse(self) -> bool {
        matches!(self, Self::Large | Self::Filler | Self::Nowhere)
    }
}

/// What each byte of a file is.
fn parts(closed: &Closed, path: &Path) -> Vec<Part> {
    let whole = content(&closed.disk, path);
    let mut parts = vec![Part::Telling; whole.len()];
    if *path == closed.votes {
        parts.fill(Part::Votes);
    }
    let records = records(&whole);
    if *path != closed.votes && records.is_empty() {
        parts.fill(Part::Ahead);
    }
    if let [.., first, last] = records[..]
        && (first.1, last.1) == (3, 3)
    {
        parts[first.0..].fill(Part::Last);
    }
    for (at, kind, table, data) in records {
        let data_at = at + 64 + table;
        if kind == 1 {
            let is_large = data > LARGE;
            let part = if is_large { Part::Large } else { Part::Entries };
            parts[data_at..data_at + data].fill(part);
        } else if kind == 3 {
            parts[data_at..data_at + data].fill(Part::Filler);
        }
    }
    parts[nowhere(closed, path)].fill(Part::Nowhere);
    parts
}

/// Bits of one part that are flipped together.
struct Flip {
    part: Part,
    bytes: Vec<usize>,
    bit: u8,
}

/// Every bit of a file: each alone, but for what is large and for what says nothing, where a bit of all
/// bytes of a sector goes together, and some go alone.
fn flips(parts: &[Part], used: impl Fn(usize) -> bool) -> Vec<Flip> {
    let mut flips = Vec::new();
    for (sector, of_sector) in parts.chunks(SECTOR).enumerate() {
        let at = |byte: usize| sector * SECTOR + byte;
        for (byte, &part) in of_sector.iter().enumerate() {
            let is_sparse = part.is_sparse() || !used(at(byte));
            let bits = match is_sparse {
                true if at(byte) % 23 == 0 => 3..4,
                true => continue,
                false => 0..8,
            };
            let bytes = vec![at(byte)];
            flips.extend(bits.map(|bit| Flip {
                part,
                bytes: bytes.clone(),
                bit,
            }));
        }
        for part in [
            Part::Large,
            Part::Filler,
            Part::Nowhere,
            Part::Votes,
            Part::Ahead,
        ] {
            let ours = (0..of_sector.len()).filter(|&byte| of_sector[byte] == part);
            let sparse = ours.map(at).filter(|&byte| part.is_sparse() || !used(byte));
            let bytes: Vec<usize> = sparse.collect();
            if !bytes.is_empty() {
                flips.extend((0..8).map(|bit| Flip {
                    part,
                    bytes: bytes.clone(),
                    bit,
                }));
            }
        }
    }
    flips
}

#[test]
fn fault_3_every_bit_of_a_whole_directory_is_found_or_belongs_to_nothing() {
    let closed = complete();
    let slots = 64 * closed.model.replicas.len();
    let (mut cases, mut bits, mut hurt) = (0_u64, 0_u64, 0);
    for path in closed.segments.iter().chain([&closed.votes]) {
        let is_votes = *path == closed.votes;
        let parts = parts(&closed, path);
        // Slots, and headers: of those that hold nothing there are many.
        let is_slot = |at: usize| {
            let of_half = |half: usize| (half..half + slots + 64).contains(&at);
            at < 512 || of_half(4_096) || of_half(HALF_B)
        };
        let is_used = |at: usize| match parts[at] {
            Part::Votes => is_slot(at),
            Part::Ahead => at < 1_024,
            _ => true,
        };
        let mut flipped = vec![0_u8; parts.len()];
        for flip in flips(&parts, is_used) {
            let disk = Arc::new(closed.disk.fork());
            for &byte in &flip.bytes {
                disk.flip_bit(path, byte, flip.bit);
                flipped[byte] |= 1 << flip.bit;
            }
            let (first, count) = (flip.bytes[0], flip.bytes.len());
            let what = format!(
                "{path:?} {:?} byte {first} and {} more, bit {}",
                flip.part,
                count - 1,
                flip.bit
            );
            let found = look(&disk, &closed, &what, cases % 64 == 0);
            let is_cut = found.torn_bytes > 0;
            let may_be_cut = matches!(flip.part, Part::Last | Part::Filler);
            assert!(!is_cut || may_be_cut, "{what}");
            match flip.part {
                Part::Telling | Part::Entries | Part::Large | Part::Filler => {
                    let is_found = found.is_reported || !found.hurt.is_empty();
                    assert!(is_found || is_found_strictly(&disk), "{what}: not found");
                    let is_entry = flip.part != Part::Telling;
                    assert!(
                        !is_entry || found.hurt.len() <= 1,
                        "{what}: {:?}",
                        found.hurt
                    );
                    hurt += found.hurt.len();
                }
                Part::Last | Part::Votes => {
                    assert!(found.hurt.is_empty() && found.is_reported, "{what}")
                }
                Part::Ahead | Part::Nowhere => assert_eq!(found.hurt, [], "{what}"),
            }
            cases += 1;
        }
        assert!(
            flipped.iter().all(|bits| *bits == 0xFF),
            "{path:?}: each bit"
        );
        assert!(!is_votes || flipped.len() > HALF_B);
        bits += 8 * flipped.len() as u64;
    }
    assert!(hurt > 1_000, "a flip in entries hurts its replica: {hurt}");
    crate::record("log bits of a whole directory flipped", "bits", bits);
    crate::record("log bits of a whole directory flipped", "cases", cases);
}

/// Files that an open keeps aside, or that are left of one that was interrupted: whatever is in them.
#[test]
fn fault_11_every_bit_of_what_is_kept_aside_or_left_over_concerns_nobody() {
    /// Whose bits are flipped alone; those of all behind them, in 512 bytes at a time.
    const ALONE: usize = 240;
    let closed = complete();
    let disk = &closed.disk;
    let data = Path::new(DATA);
    let dir = data.join("log/0");
    let names = [
        dir.join("0000000000000003-00000c40-0000000000000019.cut"),
        dir.join("0000000000000007.seg.damaged"),
        dir.join("0000000000000005.seg.new"),
        data.join("votes.foreign"),
        data.join("votes.foreign.2"),
        data.join("votes.new"),
    ];
    // A segment, or a vote file: as whole as any.
    let segment = content(disk, &closed.segments[0]);
    let votes = content(disk, &closed.votes);
    let bytes_of = |name: &PathBuf| match name.parent() == Some(data) {
        true => &votes[..],
        false => &segment[..],
    };
    for name in &names {
        let file = disk.open(name, true).expect("it is made");
        disk.write(file, 0, bytes_of(name)).expect("it is written");
        disk.sync(file).expect("it syncs");
        disk.close(file);
    }
    for dir in [data, &dir] {
        disk.sync_dir(dir).expect("it syncs");
    }
    // What an open does, call by call, and what it finds.
    let look = |disk: &Arc<SimVfs>| {
        let (lane, recovery) = open(disk, &options()).expect("it opens");
        drop(lane);
        (recovery.replicas, recovery.report, disk.trace_hash())
    };
    let whole = look(&Arc::new(disk.fork()));
    assert_eq!(whole.1, RecoveryReport::default());
    let (mut cases, mut bits) = (0_u64, 0);
    for name in &names {
        let len = bytes_of(name).len();
        let sectors = (ALONE..len).step_by(SECTOR);
        let sectors = sectors.map(|first| first..len.min(first + SECTOR));
        let alone = (0..ALONE).map(|byte| byte..byte + 1);
        for bytes in alone.chain(sectors) {
            for bit in 0..8 {
                let disk = Arc::new(disk.fork());
                for byte in bytes.clone() {
                    disk.flip_bit(name, byte, bit);
                }
                assert!(look(&disk) == whole, "{name:?} bytes {bytes:?} bit {bit}");
                cases += 1;
                bits += bytes.len() as u64;
            }
        }
    }
    crate::record("log bits of leftovers flipped", "cases", cases);
    crate::record("log bits of leftovers flipped", "bits", bits);
    // What was to be something else is removed, and what was kept aside stays.
    let disk = Arc::new(disk.fork());
    look(&disk);
    for name in &names {
        let is_unfinished = name.extension().is_some_and(|end| end == "new");
        let is_there = disk.open(name, false).is_ok();
        assert_eq!(is_there, !is_unfinished, "{name:?}");
        if is_there {
            assert!(content(&disk, name) == bytes_of(name), "{name:?}");
        }
    }
}
