//! Tables with right checksums that lie: about segments apart, live ones, released ones, numbers and
//! limits. Whoever wrote them, an open judges them.
//!
//! What a lie may cost, at most: who has something in a segment that is said to be dead, or told of
//! wrongly, may be damaged; so may be those in the very record or footer that lies, and all if it is
//! the checkpoint by which all the rest is known and makes no sense. Others lose nothing, nobody reads
//! anything else than was acknowledged, and whoever is hurt is reported. A file that is not said to be
//! dead stays. What is written on is there in the next life, whatever the lie: save that copies which
//! were not ready, and are said to count, may be released in place of those that do.

#[path = "lies_told.rs"]
mod told;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use raft_log::tools::{SegmentPurpose, SegmentStat, StoppedLane};
use raft_log::vfs::{SimVfs, Vfs};
use raft_log::{Health, LaneOptions, LogError, Submission};
use raft_proto::{HardState, Index, Term, Time};

use super::Used;
use crate::damage::{content, segments};
use crate::record;
use crate::rewrite::{
    APART, CHECKPOINT, ENTRIES, FOOTER, Item, LIMITS, RELEASED, RUNS, Record, SEGMENTS, SUCCESSOR,
    WATERMARK, put, records,
};
use crate::workload::{
    DATA, Driven, Key, Model, ModelReplica, Rng, batch, key, open, options, seen,
};

/// No segment has a higher one.
const NUMBER_MAX: u64 = u64::MAX / 2;
/// Who compacts all the time.
const YOUNG: u64 = 9;
/// A new one that writes on.
const NEW: u64 = 8;

/// A segment of a log that is whole.
struct Segment {
    path: PathBuf,
    number: u64,
    incarnation: u64,
    is_apart: bool,
    records: Vec<Record>,
}

/// A log with segments apart, and what is known of it.
struct World {
    disk: SimVfs,
    model: Model,
    segments: Vec<Segment>,
    /// The newest in turn: its checkpoint and its records tell of all others.
    base: u64,
    /// Who has something that counts in each of the segments before.
    holders: BTreeMap<u64, BTreeSet<Key>>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut used = Used::new(seed);
        let mut rng = Rng(seed);
        for laggard in 1..=4 {
            used.lag(laggard, 60, &mut rng);
        }
        if seed.is_multiple_of(2) {
            // Segments apart that hold nothing any more are released, and recycled.
            for laggard in [1, 2] {
                used.compact(laggard);
            }
            used.lag(3, 40, &mut rng);
        }
        used.fill_until_named();
        match seed % 4 {
            0 => {}
            1 => used.lag(4, 32, &mut rng),
            2 => used.compact(3),
            _ => used.lag(2, 3, &mut rng),
        }
        used.settle();
        let Used {
            disk,
            driven,
            model,
            ..
        } = used;
        if seed.is_multiple_of(3) {
            driven.lane.close().expect("it closes");
        } else {
            drop(driven);
            disk.crash();
        }
        disk.set_now(Time(0));
        Self::of(&disk, model)
    }

    fn of(disk: &SimVfs, model: Model) -> Self {
        let of_path = |path: &PathBuf| {
            let content = content(disk, path);
            let word = |at: usize| u64::from_le_bytes(content[at..at + 8].try_into().expect("8"));
            Segment {
                path: path.clone(),
                number: word(24),
                incarnation: word(32),
                is_apart: content[14] & 2 != 0,
                records: records(&content),
            }
        };
        let segments: Vec<Segment> = segments(disk).iter().map(of_path).collect();
        let has_checkpoint = |it: &&Segment| {
            let first = it.records.first();
            first.is_some_and(|first| first.kind() == CHECKPOINT)
        };
        let newest = segments.iter().filter(has_checkpoint).map(|it| it.number);
        let mut world = Self {
            disk: disk.fork(),
            model,
            base: newest.max().expect("there is one"),
            segments,
            holders: BTreeMap::new(),
        };
        for segment in &world.segments {
            let disk = Arc::new(world.disk.fork());
            disk.misplace(&segment.path, None);
            if segment.number != world.base {
                let found = Found::new(&world, &disk, &options(), "without it");
                world.holders.insert(segment.number, found.hurt());
            }
        }
        world
    }

    fn base(&self) -> &Segment {
        let mut all = self.segments.iter();
        all.find(|it| it.number == self.base).expect("it is there")
    }

    /// Who has something in a segment by its footer, whether it still counts or not; by its records, if
    /// it has no footer.
    fn lists(&self, number: u64) -> BTreeSet<Key> {
        let mut all = self.segments.iter();
        let found = all.find(|it| it.number == number);
        let records = found.map_or(&[][..], |it| &it.records);
        let from = match records.last() {
            Some(footer) if footer.kind() == FOOTER => records.len() - 1,
            _ => 0,
        };
        let items = records[from..].iter().flat_map(|record| &record.items);
        let listed = items.filter(|item| matches!(item.kind, ENTRIES | RUNS));
        listed.map(|item| self.key(item)).collect()
    }

    /// Whether a crash left it while it was filled: nothing had named it.
    fn is_unfinished(&self, number: u64) -> bool {
        let mut all = self.segments.iter();
        let found = all.find(|it| it.number == number && it.is_apart);
        let last = found.and_then(|it| it.records.last());
        last.is_some_and(|last| last.kind() != FOOTER)
    }

    fn key(&self, item: &Item) -> Key {
        let mut all = self.model.replicas.keys();
        let found = all.find(|key| (key.0.get(), key.1.get()) == item.owner);
        *found.expect("it is known")
    }

    /// A number that some segment has, or none.
    fn number(&self, rng: &mut Rng) -> u64 {
        const EDGES: [u64; 8] = [
            0,
            1,
            NUMBER_MAX,
            NUMBER_MAX + 1,
            u64::MAX,
            u64::MAX - 1,
            1 << 62,
            1 << 20,
        ];
        match rng.below(8) {
            0..=3 => self.some(rng).number,
            4 => self.base,
            5 => EDGES[usize::try_from(rng.below(8)).expect("small")],
            6 => self.base.saturating_sub(3) + rng.below(7),
            _ => self.base + rng.below(80),
        }
    }

    fn some(&self, rng: &mut Rng) -> &Segment {
        let at = rng.below(u64::try_from(self.segments.len()).expect("small"));
        &self.segments[usize::try_from(at).expect("small")]
    }

    /// Number and incarnation as they are, or not.
    fn life(&self, rng: &mut Rng) -> [u64; 2] {
        let segment = self.some(rng);
        match rng.below(4) {
            0 => [self.number(rng), segment.incarnation],
            _ => [segment.number, segment.incarnation],
        }
    }
}

impl Used {
    /// One group keeps what it writes, and overwrites some of it; the young one keeps nothing.
    fn lag(&mut self, laggard: u64, rounds: u64, rng: &mut Rng) {
        for round in 0..rounds {
            let last = self.last(YOUNG);
            let mut young = self.entries(YOUNG, 1, last.next(), 4_000);
            young.compact_before = Some(last.next());
            self.submit(young);
            let replica = self.model.replicas.get(&key(laggard));
            let (first, last, term) = replica.map_or((1, 0, 1), |replica| {
                let (first, last) = (replica.first.get(), replica.last.index.get());
                (first, last, replica.hard_state.term.get())
            });
            let back = if rng.one_in(6) {
                rng.below(1 + (last + 1 - first).min(4))
            } else {
                0
            };
            let term = term + u64::from(back > 0);
            if round % 2 == 0 {
                let from = Index::new(last + 1 - back);
                let entries = self.entries(laggard, term, from, 4_500);
                self.submit(entries);
            }
            if rng.one_in(2) {
                self.settle();
            } else {
                self.step(rng.below(12));
            }
        }
    }
}

/// What an open said.
struct Found {
    driven: Option<Driven>,
    is_reported: bool,
    torn: bool,
    /// Of each replica, what is wrong with it; `None`: it is sound, and all there.
    replicas: BTreeMap<Key, Option<Wrong>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Wrong {
    Unknown,
    Stopped(Health),
    /// Whoever reads its entries is told.
    Unreadable,
    /// It lacks what was in the last record, which was cut.
    Cut,
}

impl Found {
    fn new(world: &World, disk: &Arc<SimVfs>, options: &LaneOptions, what: &str) -> Self {
        Self::with(&world.model, disk, options, what)
    }

    fn with(model: &Model, disk: &Arc<SimVfs>, options: &LaneOptions, what: &str) -> Self {
        let (lane, recovery) = match open(disk, options) {
            Ok(opened) => opened,
            Err(error) => panic!("{what}: {error}"),
        };
        let report = &recovery.report;
        let mut found = Self {
            is_reported: !report.torn.is_empty()
                || !report.damaged.is_empty()
                || !report.missing.is_empty()
                || !report.foreign.is_empty(),
            torn: !report.torn.is_empty(),
            driven: None,
            replicas: BTreeMap::new(),
        };
        let reader = lane.reader();
        for (key, model) in &model.replicas {
            let wrong = match recovery.replicas.get(key) {
                None => Some(Wrong::Unknown),
                Some(state) if state.health != Health::Sound => {
                    Some(Wrong::Stopped(state.health.clone()))
                }
                Some(state) => match seen(&reader, *key, state) {
                    Ok(seen) if &seen == model => None,
                    Ok(seen) => {
                        assert!(found.torn, "{what}: {key:?}: {seen:?}\nis not {model:?}");
                        Some(Wrong::Cut)
                    }
                    Err(LogError::Damaged { .. }) => Some(Wrong::Unreadable),
                    Err(error) => panic!("{what}: {key:?}: {error}"),
                },
            };
            found.replicas.insert(*key, wrong);
        }
        found.driven = Some(Driven {
            vfs: Arc::clone(disk),
            lane,
            now: Time(0),
        });
        found
    }

    fn hurt(&self) -> BTreeSet<Key> {
        let hurt = self.replicas.iter().filter(|(_, wrong)| wrong.is_some());
        hurt.map(|(key, _)| *key).collect()
    }
}

/// What a lie is about.
#[derive(Debug, Default)]
struct Lie {
    /// The segments of which something else is said than before.
    about: BTreeSet<u64>,
    /// Those that are said to be dead, or no longer said to live.
    dead: BTreeSet<u64>,
    /// The replicas in the record that lies.
    owners: BTreeSet<Key>,
    /// The checkpoint makes no sense.
    is_of_all: bool,
}

impl Lie {
    fn may_hurt(&self, world: &World, key: &Key) -> bool {
        let is_base = self.about.contains(&world.base);
        let is_listed = |number: &u64| world.lists(*number).contains(key);
        self.is_of_all || is_base || self.owners.contains(key) || self.about.iter().any(is_listed)
    }
}

impl Lie {
    /// Whether it gives copies for those that count that were not ready yet: where they lie, in what
    /// order they came, only their footer would have said.
    fn has_copies(&self, world: &World, key: &Key) -> bool {
        let is_early = |number: &u64| world.is_unfinished(*number);
        let mut early = self.about.iter().filter(|number| is_early(number));
        early.any(|number| world.lists(*number).contains(key))
    }
}

/// What is said of segments: number, incarnation, and before which one it counts if it lies apart.
type Names = BTreeMap<u64, Vec<(u64, Option<u64>)>>;

fn names(items: &[Item]) -> Names {
    let mut names = Names::new();
    for item in items {
        let words = item.words();
        match item.kind {
            SEGMENTS => words.chunks_exact(2).for_each(|pair| {
                names.entry(pair[0]).or_default().push((pair[1], None));
            }),
            APART => words.chunks_exact(4).for_each(|of| {
                names.entry(of[0]).or_default().push((of[1], Some(of[2])));
            }),
            _ => {}
        }
    }
    for lives in names.values_mut() {
        lives.sort_unstable();
        lives.dedup();
    }
    names
}

fn released(items: &[Item]) -> BTreeSet<u64> {
    let released = items.iter().filter(|item| item.kind == RELEASED);
    released.flat_map(Item::words).collect()
}

fn makes_sense(item: &Item) -> bool {
    let words = item.words();
    match item.kind {
        LIMITS => words[0] <= 1 << 30 && words[1] <= NUMBER_MAX + 1,
        SUCCESSOR => (1..=NUMBER_MAX).contains(&words[0]),
        _ => true,
    }
}

/// Draws what is said instead in one table.
fn change(world: &World, items: &mut Vec<Item>, kind: u8, rng: &mut Rng) {
    let is_of_lane = |item: &Item| {
        matches!(
            item.kind,
            SEGMENTS | RELEASED | LIMITS | SUCCESSOR | APART | RUNS
        )
    };
    let mut at: Vec<usize> = (0..items.len())
        .filter(|at| is_of_lane(&items[*at]))
        .collect();
    // What is said of those apart goes first.
    at.sort_by_key(|at| items[*at].kind != APART);
    let some = |rng: &mut Rng, at: &[usize]| {
        let len = u64::try_from(at.len()).expect("small");
        let drawn = rng.below(len).min(rng.below(len));
        at[usize::try_from(drawn).expect("small")]
    };
    let what = if at.is_empty() { 9 } else { rng.below(10) };
    match what {
        0..=6 => {
            let at = some(rng, &at);
            change_item(world, &mut items[at], rng);
        }
        7 => drop(items.remove(some(rng, &at))),
        8 => {
            let at = some(rng, &at);
            items.insert(at, items[at].clone());
        }
        _ => {
            let mut kinds = vec![APART, APART, RELEASED, LIMITS, SEGMENTS, SUCCESSOR];
            if kind == CHECKPOINT {
                // Anything else makes no sense at all there.
                kinds.retain(|kind| matches!(*kind, APART | LIMITS | SEGMENTS));
            }
            let drawn = rng.below(u64::try_from(kinds.len()).expect("small"));
            let kind = kinds[usize::try_from(drawn).expect("small")];
            items.push(Item::of_lane(kind, &said(world, kind, rng)));
        }
    }
}

/// What an item of a kind may say, once.
fn said(world: &World, kind: u8, rng: &mut Rng) -> Vec<u64> {
    let [number, incarnation] = world.life(rng);
    match kind {
        SEGMENTS => vec![number, incarnation],
        APART => vec![number, incarnation, before(world, rng), free(rng)],
        LIMITS => vec![rng.below(1 << 20), world.number(rng)],
        _ => vec![world.number(rng)],
    }
}

fn before(world: &World, rng: &mut Rng) -> u64 {
    match rng.below(3) {
        0 => 0,
        _ => world.number(rng),
    }
}

fn free(rng: &mut Rng) -> u64 {
    match rng.below(4) {
        0 => u64::MAX - rng.below(2),
        1 => 64 << 10,
        2 => 1 + (64 << 10),
        _ => rng.next() >> rng.below(64),
    }
}

fn change_item(world: &World, item: &mut Item, rng: &mut Rng) {
    let size = match item.kind {
        SEGMENTS => 2,
        APART => 4,
        RELEASED => 1,
        LIMITS => {
            let word = rng.below(2);
            let said = match word {
                0 => rng.next() >> rng.below(64),
                _ => world.number(rng),
            };
            return item.set_word(usize::try_from(word).expect("small"), said);
        }
        SUCCESSOR => return item.set_word(0, world.number(rng)),
        _ => {
            let at = rng.below(6);
            let word = item.words()[usize::try_from(at).expect("small").min(4)];
            let said = match rng.below(4) {
                0 => word.wrapping_add(rng.below(3)).wrapping_sub(1),
                1 => rng.below(40),
                2 => rng.next() >> rng.below(64),
                _ => word ^ 1 << rng.below(64),
            };
            return item.set_word(usize::try_from(at).expect("small").min(4), said);
        }
    };
    let mut words = item.words();
    let count = words.len() / size;
    let drawn = rng.below(u64::try_from(count).expect("small").max(1));
    let at = size * usize::try_from(drawn).expect("small");
    match rng.below(8) {
        0 | 1 => words.extend(said(world, item.kind, rng)),
        _ if count == 0 => words.extend(said(world, item.kind, rng)),
        2 => drop(words.drain(at..at + size)),
        3 => words.extend_from_within(at..at + size),
        4 => {
            let [number, incarnation] = world.life(rng);
            words[at] = number;
            if size > 1 {
                words[at + 1] = incarnation;
            }
        }
        _ => {
            let of = rng.below(u64::try_from(size).expect("small"));
            words[at + usize::try_from(of).expect("small")] = match of {
                0 => world.number(rng),
                1 if rng.one_in(2) => world.some(rng).incarnation,
                1 => words[at + 1] ^ 1 << rng.below(64),
                2 => before(world, rng),
                _ => free(rng),
            };
        }
    }
    item.set_words(&words);
}

/// Draws a record of a world, or two that say the same, and what they say instead; `None` if it does
/// not fit.
fn lie(world: &World, disk: &SimVfs, rng: &mut Rng) -> Option<(Lie, String)> {
    let base = world.base();
    let (segment, first) = match rng.below(16) {
        0..=5 => (base, 0),
        6..=10 => {
            let of_lane = |record: &&Record| {
                let mut kinds = record.items.iter().map(|item| item.kind);
                kinds.any(|kind| matches!(kind, APART | RELEASED | LIMITS))
            };
            let told = base.records.iter().skip(1).filter(of_lane).count();
            let drawn = rng.below(u64::try_from(told).expect("small").max(1));
            let drawn = usize::try_from(drawn).expect("small");
            let all = base.records.iter().enumerate().skip(1);
            let mut told = all.filter(|(_, record)| of_lane(record));
            (base, told.nth(drawn)?.0)
        }
        11..=13 => {
            let segment = world.some(rng);
            (segment, segment.records.len().checked_sub(1)?)
        }
        _ => {
            let segment = world.some(rng);
            let len = u64::try_from(segment.records.len()).expect("small");
            if len == 0 {
                return None;
            }
            (segment, usize::try_from(rng.below(len)).expect("small"))
        }
    };
    let mut told = segment.records.clone();
    let is_twice = told[first].kind() == WATERMARK && rng.one_in(2);
    let at: Vec<usize> = [first, first + 1]
        .into_iter()
        .take(if is_twice { 2 } else { 1 })
        .filter(|at| {
            told.get(*at)
                .is_some_and(|it| *at == first || it.kind() == WATERMARK)
        })
        .collect();
    let times = 1 + rng.below(2);
    for at in &at {
        let kind = told[*at].kind();
        let mut same = rng.clone();
        for _ in 0..times {
            change(world, &mut told[*at].items, kind, &mut same);
        }
    }
    let mut is_put = false;
    disk.damage(&segment.path, |content| {
        is_put = put(content, &segment.records, &told);
    });
    let is_changed = at
        .iter()
        .any(|at| told[*at].items != segment.records[*at].items);
    (is_put && is_changed).then(|| {
        let shown = at.iter().map(|at| {
            let (was, is) = (&segment.records[*at].items, &told[*at].items);
            let of_lane = |items: &[Item]| -> Vec<(u8, Vec<u64>)> {
                let kept = items.iter().filter(|item| !matches!(item.kind, 1..=8));
                kept.map(|item| (item.kind, item.words())).collect()
            };
            format!(
                "record {at}: {:?}\ninstead of {:?}",
                of_lane(is),
                of_lane(was)
            )
        });
        let shown: Vec<String> = shown.collect();
        let what = format!(
            "segment {} (base {}) {}",
            segment.number,
            world.base,
            shown.join("\n")
        );
        (about(world, segment, &told, &at), what)
    })
}

/// What may come of it.
fn about(world: &World, segment: &Segment, told: &[Record], at: &[usize]) -> Lie {
    let mut lie = Lie::default();
    for at in at {
        let (was, is) = (&segment.records[*at].items, &told[*at].items);
        if told[*at].kind() == FOOTER {
            lie.about.insert(segment.number);
            lie.dead.insert(segment.number);
            let owners = was.iter().chain(is).filter(|item| item.owner != (0, 0));
            lie.owners.extend(owners.map(|item| world.key(item)));
            continue;
        }
        if segment.number != world.base {
            // Its footer counts.
            continue;
        }
        let owners = is.iter().filter(|item| item.owner != (0, 0));
        if told[*at].kind() == CHECKPOINT {
            lie.is_of_all |= !is.iter().all(makes_sense);
        } else {
            lie.owners.extend(owners.map(|item| world.key(item)));
        }
        let (was, is) = (names(was), names(is));
        let both: BTreeSet<u64> = was.keys().chain(is.keys()).copied().collect();
        for number in both {
            if was.get(&number) != is.get(&number) {
                lie.about.insert(number);
            }
        }
        let others = segment.records.iter().enumerate();
        let others = others
            .filter(|(other, _)| *other > 0 && told[*other].items == segment.records[*other].items);
        let again: Names = others.flat_map(|(_, it)| names(&it.items)).collect();
        if told[*at].kind() == CHECKPOINT {
            let dropped = was.keys().filter(|number| !is.contains_key(number));
            lie.dead.extend(dropped);
        } else {
            // The record may make no sense then.
            let lost = was.keys().filter(|number| !again.contains_key(number));
            let lost: Vec<u64> = lost.copied().collect();
            lie.about.extend(&lost);
            lie.dead.extend(&lost);
        }
        let (was, is) = (
            released(&segment.records[*at].items),
            released(&told[*at].items),
        );
        let new: Vec<u64> = is.difference(&was).copied().collect();
        lie.about.extend(&new);
        lie.dead.extend(&new);
    }
    lie
}

/// Writes for whoever is sound, and for one that is new, and holds the model against it.
fn write_on(found: &mut Found, model: &mut Model, rng: &mut Rng, rounds: u64) {
    let driven = found.driven.as_mut().expect("it is open");
    for round in 0..rounds {
        let young = model.replicas.get(&key(NEW));
        let last = young.map_or(Index::ZERO, |young| young.last.index);
        let mut submissions = vec![(key(NEW), last.next())];
        if round % 4 == 0 {
            let sound = found.replicas.iter().filter(|(_, wrong)| wrong.is_none());
            submissions.extend(sound.map(|(key, _)| (*key, model.replicas[key].last.index.next())));
        }
        for (key, from) in submissions {
            let replica = model.replicas.get(&key);
            let blank = ModelReplica::blank();
            let hard_state = replica.unwrap_or(&blank).hard_state;
            let term = hard_state.term.max(Term::new(1));
            let mut submission = Submission::new(key.0, key.1, 1_000_000 + round);
            submission.entries = vec![batch(rng, key.0, term, from, 1, 3_500)];
            submission.hard_state = Some(HardState { term, ..hard_state });
            submission.compact_before = (key.0.get() == NEW).then_some(from);
            model.apply(&submission);
            driven.lane.submit(submission).expect("it is taken");
        }
        for done in driven.settle() {
            done.result.expect("it is durable");
        }
    }
}

fn judge(world: &World, seed: u64) -> bool {
    let mut rng = Rng(seed);
    let disk = Arc::new(world.disk.fork());
    let Some((lie, told)) = lie(world, &disk, &mut rng) else {
        return false;
    };
    let what = format!("seed {seed}: {told}\n{lie:?}");
    let thrown = thrown_away(world, &disk, &lie);
    assert!(thrown.is_empty(), "{what}: {thrown:?} thrown away");
    let options = LaneOptions {
        verify_all: rng.one_in(3),
        ..options()
    };
    let mut found = Found::new(world, &disk, &options, &what);
    let hurt = found.hurt();
    for key in &hurt {
        let wrong = &found.replicas[key];
        let is_cut = *wrong != Some(Wrong::Cut) || lie.owners.contains(key);
        assert!(
            lie.may_hurt(world, key) && is_cut,
            "{what}: {key:?} {wrong:?}"
        );
    }
    let is_silent = hurt.iter().any(|key| {
        let wrong = &found.replicas[key];
        *wrong != Some(Wrong::Unreadable)
    });
    assert!(found.is_reported || !is_silent, "{what}: silent");
    if rng.one_in(2) {
        // Again, as it was left.
        drop(found);
        disk.crash();
        let again = Found::new(world, &disk, &options, &what);
        assert_eq!(again.hurt(), hurt, "{what}: the second time");
        found = again;
    }
    let mut model = world.model.clone();
    model.replicas.retain(|key, _| !hurt.contains(key));
    let rounds = if rng.one_in(6) { 60 } else { 3 };
    write_on(&mut found, &mut model, &mut rng, rounds);
    let driven = found.driven.take().expect("it is open");
    if rng.one_in(2) {
        driven.lane.close().expect("it closes");
    } else {
        drop(driven);
        disk.crash();
    }
    disk.set_now(Time(0));
    let options = LaneOptions {
        verify_all: rng.one_in(3),
        ..options
    };
    let last = Found::with(&model, &disk, &options, &what);
    let is_apart = |key: &Key| lie.has_copies(world, key);
    let hurt: Vec<Key> = last.hurt().into_iter().filter(|it| !is_apart(it)).collect();
    assert!(hurt.is_empty(), "{what}: {hurt:?} in the end");
    true
}

/// Segments that count, that nothing says are dead, and whose files the next open would take for dead
/// or for made ahead. Those that it names as other ones, it leaves alone.
fn thrown_away(world: &World, disk: &Arc<SimVfs>, lie: &Lie) -> Vec<u64> {
    let vfs: Arc<dyn Vfs> = Arc::<SimVfs>::clone(disk);
    let lane = StoppedLane::new(vfs, DATA.as_ref(), 0);
    let report = lane.check().expect("it reads").report;
    let is_aside = |number: u64| {
        let mut damaged = report.damaged.iter();
        damaged.any(|it| it.segment == number && it.reason.contains("kept aside"))
    };
    let is_lost = |stat: &SegmentStat| {
        let holders = world.holders.get(&stat.number);
        let counts = holders.is_some_and(|holders| !holders.is_empty());
        let is_unneeded = matches!(
            stat.purpose,
            SegmentPurpose::Dead | SegmentPurpose::Prepared
        );
        let name = format!("{:016x}.seg", stat.number);
        let is_kept = report.foreign.contains(&name) || is_aside(stat.number);
        counts && is_unneeded && !is_kept && !lie.dead.contains(&stat.number)
    };
    let found = lane.stat().expect("it reads").segments.into_iter();
    found.filter(is_lost).map(|stat| stat.number).collect()
}

fn worlds() -> &'static [World] {
    static WORLDS: OnceLock<Vec<World>> = OnceLock::new();
    WORLDS.get_or_init(|| (0..12).map(World::new).collect())
}

/// How many seeds are tried; more by hand, with `LIES=100000`.
fn seeds() -> u64 {
    let seeds = std::env::var("LIES").ok();
    seeds.and_then(|seeds| seeds.parse().ok()).unwrap_or(12_000)
}

#[test]
fn tables_that_lie_cost_no_more_than_they_speak_of() {
    const THREADS: u64 = 2;
    let worlds = worlds();
    let judge_from = |first: u64| {
        let seeds = (first..seeds()).step_by(usize::try_from(THREADS).expect("few"));
        let judged = seeds.filter(|seed| {
            let at = seed / THREADS % u64::try_from(worlds.len()).expect("few");
            judge(&worlds[usize::try_from(at).expect("few")], *seed)
        });
        judged.count()
    };
    let told = std::thread::scope(|scope| {
        let threads = (0..THREADS).map(|first| scope.spawn(move || judge_from(first)));
        let threads: Vec<_> = threads.collect();
        let told = threads
            .into_iter()
            .map(|it| it.join().expect("no lie is believed"));
        told.sum::<usize>()
    });
    let told = u64::try_from(told).expect("small");
    assert!(told > seeds() / 4 * 3, "{told}");
    record("log tables that lie", "seeds", told);
}

/// In the checkpoint and in records behind it, some still live and some released.
#[test]
fn the_worlds_have_segments_apart_of_every_kind() {
    let (mut by_checkpoint, mut by_record, mut is_released, mut unfinished) = (0, 0, 0, 0);
    for world in worlds() {
        let named = |records: &[Record]| -> usize {
            let names = records.iter().flat_map(|record| names(&record.items));
            let apart = names.filter(|(_, lives)| lives.iter().any(|life| life.1.is_some()));
            apart
                .map(|(number, _)| number)
                .collect::<BTreeSet<u64>>()
                .len()
        };
        let records = &world.base().records;
        by_checkpoint += named(&records[..1]);
        by_record += named(&records[1..]);
        let numbers = records.iter().flat_map(|record| released(&record.items));
        is_released += numbers.count();
        let apart = world
            .segments
            .iter()
            .filter(|it| world.is_unfinished(it.number));
        unfinished += apart.count();
    }
    let kinds = [by_checkpoint, by_record, is_released, unfinished];
    assert!(kinds.iter().all(|count| *count > 0), "{kinds:?}");
}
