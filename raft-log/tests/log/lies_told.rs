//! Lies one by one.

use std::sync::Arc;

use raft_log::vfs::{SimVfs, Vfs};
use raft_log::{LaneOptions, RecoveryReport, Submission};
use raft_proto::{Index, Term, Time};

use super::{Found, Lie, NUMBER_MAX, Segment, World, Wrong, names, thrown_away, worlds, write_on};
use crate::apart::Used;
use crate::damage::{content, segments};
use crate::rewrite::{
    APART, CHECKPOINT, ENTRIES, Item, LIMITS, RELEASED, Record, SEGMENTS, put, records,
};
use crate::workload::{DATA, Key, Rng, batch, key, open, options};

/// A copy of a world's disk, the records of a segment as `tell` leaves them.
fn told(world: &World, segment: &Segment, tell: impl FnOnce(&mut [Record])) -> Arc<SimVfs> {
    let disk = Arc::new(world.disk.fork());
    let mut told = segment.records.clone();
    tell(&mut told);
    disk.damage(&segment.path, |content| {
        assert!(put(content, &segment.records, &told), "there is room");
    });
    disk
}

/// The items of a kind, in the checkpoint first.
fn all(records: &mut [Record], kind: u8) -> impl Iterator<Item = &mut Item> {
    let items = records.iter_mut().flat_map(|record| &mut record.items);
    items.filter(move |item| item.kind == kind)
}

fn report(disk: &SimVfs) -> RecoveryReport {
    let disk = Arc::new(disk.fork());
    open(&disk, &options()).expect("it opens").1.report
}

/// The numbers that the base's own records name, in order.
fn named(world: &World) -> Vec<u64> {
    let records = world.base().records.iter().skip(1);
    let mut numbers: Vec<u64> = Vec::new();
    for record in records {
        for number in names(&record.items).into_keys() {
            if !numbers.contains(&number) {
                numbers.push(number);
            }
        }
    }
    numbers
}

fn life(world: &World, number: u64) -> u64 {
    let mut all = world.segments.iter();
    let found = all.find(|it| it.number == number);
    found.map_or(7, |segment| segment.incarnation)
}

/// Nobody is hurt, now or in the next life.
fn hurts_nobody(world: &World, disk: &Arc<SimVfs>, what: &str) {
    let mut found = Found::new(world, disk, &options(), what);
    assert!(found.hurt().is_empty(), "{what}: {:?}", found.replicas);
    let mut model = world.model.clone();
    write_on(&mut found, &mut model, &mut Rng(1), 60);
    drop(found);
    disk.crash();
    disk.set_now(Time(0));
    let found = Found::with(&model, disk, &options(), what);
    assert!(found.hurt().is_empty(), "{what}: {:?}", found.replicas);
}

/// What is said to be free in a segment apart counts when it is weighed what to move.
#[test]
fn more_room_than_there_can_be_is_not_believed() {
    for world in worlds() {
        for free in [u64::MAX, u64::MAX - 1, 64 << 10] {
            let disk = told(world, world.base(), |records| {
                for item in all(records, APART) {
                    let mut words = item.words();
                    words.chunks_exact_mut(4).for_each(|of| of[3] = free);
                    item.set_words(&words);
                }
            });
            hurts_nobody(world, &disk, "all of it is free");
        }
    }
}

/// A checkpoint cannot know what follows its own segment: it is missed, and that it is named later on
/// is taken all the same.
#[test]
fn a_checkpoint_tells_of_nothing_that_follows_it() {
    let mut told_of = 0;
    for world in worlds() {
        for number in named(world) {
            if world.holders.get(&number).is_none_or(|it| it.is_empty()) {
                continue;
            }
            let disk = told(world, world.base(), |records| {
                let mut segments = all(records, SEGMENTS);
                let item = segments.next().expect("a checkpoint has them");
                let mut words = item.words();
                words.extend([number, life(world, number)]);
                item.set_words(&words);
            });
            let thrown = thrown_away(world, &disk, &Lie::default());
            assert!(thrown.is_empty(), "{thrown:?}");
            let report = report(&disk);
            assert_eq!(report.missing.contains(&number), number > world.base);
            hurts_nobody(world, &disk, "what follows");
            told_of += 1;
        }
    }
    assert!(told_of > 4, "{told_of}");
}

/// Entries that were overwritten are not read in place of those that count, however the order of the
/// segments is told.
#[test]
fn copies_said_to_count_later_than_they_do_are_not_read() {
    let mut used = Used::new(3);
    used.put_both((1, 2), 150);
    used.compact(2);
    used.driven.pass(2_000_000_000);
    assert!(used.counts().0 > 0, "what the first has is moved");
    used.put_both((3, 4), 40);
    let submission = used.entries(1, 2, Index::new(135), 300);
    used.submit(submission);
    used.settle();
    // Segments in which all counts stay where they are.
    used.put_both((3, 4), 60);
    let Used {
        disk,
        driven,
        model,
        ..
    } = used;
    drop(driven);
    disk.crash();
    disk.set_now(Time(0));
    let world = World::of(&disk, model);
    let named = names(&world.base().records[0].items).into_iter();
    let apart = named.filter(|(_, lives)| lives[0].1.is_some());
    let orders = apart.flat_map(|(number, _)| (1..world.base).map(move |before| (number, before)));
    let mut hurt = [0, 0];
    for (number, before) in orders {
        let disk = told(&world, world.base(), |records| {
            for item in all(&mut records[..1], APART) {
                let mut words = item.words();
                let mut segments = words.chunks_exact_mut(4);
                let found = segments.find(|of| of[0] == number);
                found.expect("it is named")[2] = before;
                item.set_words(&words);
            }
        });
        let what = format!("{number} before {before}");
        let found = Found::new(&world, &disk, &options(), &what);
        hurt[0] += u64::from(found.replicas[&key(1)] == Some(Wrong::Unreadable));
        let strictly = LaneOptions {
            verify_all: true,
            ..options()
        };
        let found = Found::new(&world, &Arc::new(disk.fork()), &strictly, &what);
        hurt[1] += u64::from(matches!(found.replicas[&key(1)], Some(Wrong::Stopped(_))));
    }
    assert!(
        hurt[0] > 0 && hurt[0] == hurt[1],
        "the order counts: {hurt:?}"
    );
}

/// What of a record makes no sense: it is all there, and no write was torn.
#[test]
fn a_whole_record_that_makes_no_sense_is_damage_and_never_cut() {
    let mut cases = 0;
    for world in worlds() {
        let base = world.base();
        let spare = world.segments.last().expect("there are some").number + 9;
        let mut senseless = vec![
            (RELEASED, vec![world.base]),
            (LIMITS, vec![1, NUMBER_MAX + 2]),
            (APART, vec![spare, 7, 1, 0]),
        ];
        let spares = world.segments.iter().filter(|it| !it.is_apart);
        let spares = spares.filter(|it| it.number > world.base);
        senseless.extend(spares.map(|it| (RELEASED, vec![it.number])));
        let old = names(&base.records[0].items);
        let counts = |number| world.holders.get(number).is_some_and(|it| !it.is_empty());
        let mut old = old.iter().filter(|(number, _)| counts(*number));
        let known = old.find(|(_, lives)| lives[0].1.is_some());
        if let Some((number, lives)) = known {
            senseless.push((APART, vec![*number, lives[0].0 ^ 1, 0, 0]));
        }
        senseless.push((APART, vec![world.base, base.incarnation, 0, 0]));
        for (kind, words) in senseless {
            let mut owners: Vec<Key> = Vec::new();
            let disk = told(world, base, |records| {
                let last = records.last_mut().expect("there are some");
                let own = last.items.iter().filter(|item| item.owner != (0, 0));
                owners.extend(own.map(|item| world.key(item)));
                last.items.push(Item::of_lane(kind, &words));
            });
            let what = format!("base {}: {kind} {words:?}", world.base);
            let report = report(&disk);
            assert!(report.torn.is_empty(), "{what}: {report:?}");
            assert!(!report.damaged.is_empty(), "{what}: {report:?}");
            let found = Found::new(world, &disk, &options(), &what);
            for key in found.hurt() {
                assert!(owners.contains(&key), "{what}: {key:?}");
            }
            for key in &owners {
                assert!(found.hurt().contains(key), "{what}: {key:?}");
            }
            cases += 1;
        }
    }
    assert!(cases > 50, "{cases}");
}

/// The record that names a segment apart is written twice: one of the two that is wrong costs nothing.
#[test]
fn of_two_that_name_a_segment_one_may_be_wrong() {
    let mut cases = 0;
    for world in worlds() {
        for number in named(world) {
            let says = |record: &&Record| names(&record.items).contains_key(&number);
            let count = world.base().records.iter().filter(says).count();
            for wrong in 0..count.min(2) {
                let disk = told(world, world.base(), |records| {
                    let mut said = all(records, APART).filter(|it| it.words()[0] == number);
                    let item = said.nth(wrong);
                    if let Some(item) = item {
                        item.set_word(1, life(world, number) ^ 4);
                    }
                });
                let thrown = thrown_away(world, &disk, &Lie::default());
                assert!(thrown.is_empty(), "{thrown:?}");
                hurts_nobody(world, &disk, "one of two");
                cases += 1;
            }
        }
    }
    assert!(cases > 8, "{cases}");
}

/// If what named one is gone, its number is a spare's again, and the segment in turn under it has a
/// lower one than those apart that its checkpoint names.
#[test]
fn segments_apart_with_higher_numbers_than_the_active_one_are_found() {
    let mut higher = 0;
    for times in [60, 80, 100, 120] {
        let world = nearly_full(&moved_at_once(times));
        let counts = |number: &u64| world.holders.get(number).is_some_and(|it| !it.is_empty());
        let numbers: Vec<u64> = named(&world).into_iter().filter(counts).collect();
        let [first, .., _] = &numbers[..] else {
            continue;
        };
        let disk = told(&world, world.base(), |records| {
            for record in records.iter_mut().skip(1) {
                let is_first = |item: &Item| item.kind == APART && item.words()[0] == *first;
                record.items.retain(|item| !is_first(item));
            }
        });
        let mut model = world.model.clone();
        for life in 0..8 {
            let found = Found::with(&model, &disk, &options(), "it is not named");
            let hurt = found.hurt();
            let is_theirs = |key: &Key| life == 0 && world.lists(*first).contains(key);
            assert!(hurt.iter().all(is_theirs), "life {life}: {hurt:?}");
            model.replicas.retain(|key, _| !hurt.contains(key));
            drop(found);
            disk.crash();
            higher += u64::from(names_a_higher_one(&disk));
        }
    }
    assert!(higher > 0, "{higher}");
}

/// One in which several segments apart were named beside the same active one.
fn moved_at_once(times: u64) -> World {
    let mut used = Used::new(times);
    used.put_both((1, 2), times);
    used.compact(2);
    used.driven.pass(2_000_000_000);
    let Used {
        disk,
        driven,
        model,
        ..
    } = used;
    drop(driven);
    disk.crash();
    disk.set_now(Time(0));
    World::of(&disk, model)
}

/// The same world, when its active segment has no room for the record of an open.
fn nearly_full(world: &World) -> World {
    let disk = Arc::new(world.disk.fork());
    let mut found = Found::new(world, &disk, &options(), "whole");
    let driven = found.driven.as_mut().expect("it is open");
    let mut model = world.model.clone();
    loop {
        let before = (disk.fork(), model.clone());
        let last = model.replicas.get(&key(7)).map(|it| it.last.index);
        let from = last.unwrap_or_default().next();
        let mut submission = Submission::new(key(7).0, key(7).1, from.get());
        let mut rng = Rng(from.get());
        submission.entries = vec![batch(&mut rng, key(7).0, Term::new(1), from, 1, 1_500)];
        model.apply(&submission);
        driven.write(submission);
        if driven.lane.stats().sealed_segments > 0 {
            before.0.crash();
            before.0.set_now(Time(0));
            return World::of(&before.0, before.1);
        }
    }
}

/// Whether the newest checkpoint names a segment apart with a higher number than its own.
fn names_a_higher_one(disk: &SimVfs) -> bool {
    let contents = segments(disk).into_iter().map(|path| content(disk, &path));
    let of_checkpoint = |content: Vec<u8>| {
        let first = records(&content).into_iter().next();
        let number = u64::from_le_bytes(content[24..32].try_into().expect("8"));
        let first = first.filter(|first| first.kind() == CHECKPOINT);
        first.map(|first| (number, names(&first.items)))
    };
    let newest = contents.filter_map(of_checkpoint).last();
    newest.is_some_and(|(own, names)| names.keys().any(|number| *number > own))
}

/// A segment in turn is none that lies apart, whoever says so: it is not there then, and goes on.
#[test]
fn a_segment_in_turn_is_not_taken_for_one_apart() {
    let mut cases = 0;
    for world in worlds() {
        let spares = world.segments.iter().filter(|it| !it.is_apart);
        for spare in spares.filter(|it| it.number > world.base) {
            let disk = told(world, world.base(), |records| {
                let last = records.last_mut().expect("there are some");
                let words = [spare.number, spare.incarnation, 0, 0];
                last.items.push(Item::of_lane(APART, &words));
            });
            let report = report(&disk);
            assert_eq!(report.missing, [spare.number]);
            assert_eq!(report.damaged, []);
            hurts_nobody(world, &disk, "a spare");
            cases += 1;
        }
    }
    assert!(cases > 8, "{cases}");
}

/// Copies that claim more entries than they have bytes, or more bytes than their record, are not gone
/// through one by one, which would take years: without their segment's footer they count for nothing.
#[test]
fn copies_of_more_entries_than_bytes_are_none() {
    let mut cases = 0;
    for world in worlds() {
        let named = names(&world.base().records[0].items);
        let apart = world.segments.iter().filter(|it| it.is_apart);
        for segment in apart.filter(|it| named.contains_key(&it.number)) {
            endless(world, segment, 1 << 50, None);
            endless(world, segment, (1 << 32) - 10, Some(u32::MAX));
            cases += 1;
        }
    }
    assert!(cases > 8, "{cases}");
}

/// Opens a log whose states and copies say that they end at `last`, in other terms.
fn endless(world: &World, segment: &Segment, last: u64, bytes: Option<u32>) {
    const STATE: u8 = 7;
    let disk = told(world, world.base(), |records| {
        // Term and index of the last entry.
        all(&mut records[..1], STATE).for_each(|item| {
            item.set_word(4, 1 << 40);
            item.set_word(5, last);
        });
    });
    let mut told = segment.records.clone();
    for item in all(&mut told, ENTRIES) {
        item.set_word(3, last);
        if let Some(bytes) = bytes {
            item.body[32..36].copy_from_slice(&bytes.to_le_bytes());
        }
    }
    disk.damage(&segment.path, |content| {
        assert!(put(content, &segment.records, &told));
        let footer = segment.records.last().expect("it is sealed");
        content[footer.at..].fill(0);
    });
    let found = Found::new(world, &disk, &options(), "entries without end");
    // Whoever has written since has said where he ends.
    assert!(!found.hurt().is_empty());
}

/// The number of a segment that is named or released is nobody's, whether there ever was one.
#[test]
fn numbers_that_are_told_of_are_not_given_out() {
    for world in worlds() {
        let number = world.base + 1_000;
        for (kind, words) in [(RELEASED, vec![number]), (APART, vec![number, 7, 0, 0])] {
            let disk = told(world, world.base(), |records| {
                let last = records.last_mut().expect("there are some");
                last.items.push(Item::of_lane(kind, &words));
            });
            let old = segments(&disk);
            hurts_nobody(world, &disk, "told of");
            let new = segments(&disk).into_iter().filter(|it| !old.contains(it));
            let name = format!("{number:016x}.seg");
            let names: Vec<_> = new
                .filter_map(|it| it.file_name().map(ToOwned::to_owned))
                .collect();
            assert!(!names.is_empty());
            assert!(
                names.iter().all(|it| *it.to_string_lossy() > *name),
                "{names:?}"
            );
        }
    }
}

/// No number is the last one, whatever is said of numbers and whatever files are called.
#[test]
fn numbers_do_not_end() {
    for world in worlds() {
        for end in [NUMBER_MAX + 1, NUMBER_MAX, 1 << 62, world.base + 1_000] {
            let disk = told(world, world.base(), |records| {
                all(records, LIMITS).for_each(|item| item.set_word(1, end));
            });
            let stray = DATA.to_owned() + &format!("/log/0/{:016x}.seg", end.min(NUMBER_MAX));
            let file = disk.open(stray.as_ref(), true).expect("it is made");
            disk.write(file, 0, b"not a segment")
                .expect("it is written");
            disk.sync(file).expect("it syncs");
            disk.close(file);
            for life in 0..2 {
                let disk = Arc::new(disk.fork());
                hurts_nobody(world, &disk, &format!("{end}, life {life}"));
            }
        }
    }
}

/// A checkpoint that makes no sense, or is lost, when all before it is gone: nobody can say what anybody
/// was, and nothing is thrown away.
#[test]
fn a_checkpoint_that_is_all_there_was_stops_everybody() {
    let mut cases = 0;
    for world in worlds() {
        let older = world
            .segments
            .iter()
            .filter(|it| it.number < world.base && !it.is_apart && !it.records.is_empty());
        let senseless = told(world, world.base(), |records| {
            all(&mut records[..1], LIMITS).for_each(|item| item.set_word(1, u64::MAX));
        });
        let lost = Arc::new(world.disk.fork());
        for segment in older {
            senseless.misplace(&segment.path, None);
            lost.misplace(&segment.path, None);
        }
        lost.damage(&world.base().path, |content| {
            content[1024 + 64 + 40] ^= 1;
            content[1024 + 64 + 50] ^= 9;
        });
        for disk in [senseless, lost] {
            let thrown = thrown_away(world, &disk, &Lie::default());
            assert!(thrown.is_empty(), "{thrown:?}");
            let found = Found::new(world, &disk, &options(), "without a checkpoint");
            assert_eq!(found.hurt().len(), world.model.replicas.len());
            assert!(found.is_reported);
            cases += 1;
        }
    }
    assert!(cases > 20, "{cases}");
}
