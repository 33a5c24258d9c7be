//! Room beside groups that keep a window of their log, and compact as they go.

use raft_log::{LaneOptions, LaneStats};
use raft_proto::Index;

use crate::space::one;
use crate::workload::{Driven, disk, options};

/// What a group appends, and how much of it it keeps.
#[derive(Clone, Copy)]
struct Load {
    /// Of each entry.
    bytes: usize,
    /// How many rounds pass between two entries.
    every: u64,
    keeps: Keeps,
}

#[derive(Clone, Copy)]
enum Keeps {
    All,
    /// So many entries.
    Newest(u64),
    /// So many, and up to twice as many before it compacts.
    Saw(u64),
    /// So many until the hundredth round, and all from then on.
    NewestAtFirst(u64),
}

/// How far a group has come.
#[derive(Clone, Copy, Default)]
struct Group {
    last: u64,
    compacted: u64,
}

impl Load {
    const fn new(bytes: usize, every: u64, keeps: Keeps) -> Self {
        Self {
            bytes,
            every,
            keeps,
        }
    }

    /// How many of its first entries it gives up, if it does now.
    fn compacts(&self, group: &Group, round: u64) -> Option<u64> {
        let held = group.last - group.compacted;
        let kept = match self.keeps {
            Keeps::Newest(count) => count,
            Keeps::Saw(count) if held >= 2 * count => count,
            Keeps::NewestAtFirst(count) if round < 100 => count,
            Keeps::All | Keeps::Saw(_) | Keeps::NewestAtFirst(_) => return None,
        };
        (held > kept).then(|| group.last - kept)
    }

    /// How many entries it keeps at most, if it compacts as it goes.
    const fn window(&self) -> u64 {
        match self.keeps {
            Keeps::Newest(count) => count,
            Keeps::Saw(count) => 2 * count,
            Keeps::All | Keeps::NewestAtFirst(_) => 0,
        }
    }
}

/// What is kept in all.
struct Kept {
    bytes: u64,
    batches: u64,
    /// By those that compact as they go, at most.
    in_windows: u64,
}

fn kept(loads: &[Load], groups: &[Group]) -> Kept {
    let mut kept = Kept {
        bytes: 0,
        batches: 0,
        in_windows: 0,
    };
    for (load, group) in loads.iter().zip(groups) {
        let held = group.last - group.compacted;
        let bytes = load.bytes as u64 + 40;
        kept.bytes += held * bytes;
        kept.batches += held;
        kept.in_windows += load.window() * bytes;
    }
    kept
}

/// A load that never rests; each round is looked at. Returns what the lane says in the end.
fn rounds(
    (loads, options): (&[Load], &LaneOptions),
    count: u64,
    mut look: impl FnMut(u64, &Kept, &LaneStats),
) -> LaneStats {
    let disk = disk(17);
    let (mut driven, _) = Driven::open(&disk, options);
    let mut groups = vec![Group::default(); loads.len()];
    for round in 1..=count {
        for (number, (load, group)) in (1..).zip(loads.iter().zip(&mut groups)) {
            if round % load.every != 0 {
                continue;
            }
            group.last += 1;
            let mut submission = one(number, group.last, load.bytes);
            if let Some(compacted) = load.compacts(group, round) {
                group.compacted = compacted;
                submission.compact_before = Some(Index::new(compacted + 1));
            }
            driven.lane.submit(submission).expect("taken");
        }
        while driven.lane.pending_bytes() > 8_000 {
            driven.step();
        }
        for done in driven.lane.take_completions() {
            done.result.expect("it is durable");
        }
        look(round, &kept(loads, &groups), &driven.lane.stats());
    }
    driven.lane.stats()
}

fn quarter_mebibyte() -> LaneOptions {
    LaneOptions {
        segment_size_bytes: 256 << 10,
        record_bytes_max: 64 << 10,
        ..options()
    }
}

/// What is kept, what lies beside it (in a segment, watermarks and the end that was too small for the
/// next entry), and two segments: the one appended to, and what others left to die.
fn bound(kept: &Kept, stats: &LaneStats) -> u64 {
    let beside = 256 * kept.batches + stats.live_segments * (9 << 10);
    kept.bytes + beside + 2 * (256 << 10)
}

/// A group that keeps all it writes lies beside others that keep windows of few or many segments. It
/// pins its own bytes and a segment, however much it has; beside the others there is no more garbage
/// than they keep. One segment more is there when it is moved.
#[test]
fn groups_that_keep_windows_do_not_let_a_group_that_never_compacts_pin_more() {
    use Keeps::{All, Newest, Saw};
    let all = Load::new(3_000, 1, All);
    let none = Load::new(5_000, 1, Newest(0));
    let window = |count| Load::new(5_000, 1, Newest(count));
    for (what, loads, moved_of_written) in [
        ("few", vec![all, none, window(10), window(30)], 1.0),
        ("many", vec![all, none, window(100), window(300)], 0.7),
        (
            "an entry in each segment",
            vec![
                all,
                Load::new(20_000, 1, Newest(0)),
                Load::new(3_000, 10, Newest(100)),
            ],
            0.75,
        ),
        (
            "saws",
            vec![
                Load::new(2_000, 1, All),
                Load::new(5_000, 1, Saw(50)),
                Load::new(5_000, 1, Saw(100)),
                Load::new(3_000, 1, Saw(200)),
            ],
            0.75,
        ),
    ] {
        const ROUNDS: u64 = 2_500;
        let mut above = 0;
        let look = |round, kept: &Kept, stats: &LaneStats| {
            let most = bound(kept, stats) + kept.in_windows;
            let pinned = stats.live_segment_bytes;
            assert!(
                pinned <= most + (256 << 10),
                "{what}, {round}: {most}, {stats:?}"
            );
            above += u64::from(pinned > most);
        };
        let stats = rounds((&loads, &quarter_mebibyte()), ROUNDS, look);
        assert!(above < ROUNDS / 10, "{what}: {above} of {ROUNDS}");
        let for_load = stats.written_bytes - stats.moved_bytes;
        let share = stats.moved_bytes as f64 / for_load as f64;
        assert!(share < moved_of_written, "{what}: {share}");
    }
}

/// Windows that end one after the other: what leaves by itself is not moved, once it is known that
/// it does.
#[test]
fn what_groups_give_up_by_themselves_soon_is_not_moved() {
    let window = |count| Load::new(4_000, 1, Keeps::Newest(count));
    let loads = [window(150), window(200), window(250), window(300)];
    let mut moved_bytes = 0;
    let stats = rounds((&loads, &quarter_mebibyte()), 2_000, |round, _, stats| {
        if round <= 400 {
            moved_bytes = stats.moved_bytes;
        }
    });
    assert_eq!(stats.moved_bytes, moved_bytes, "{stats:?}");
}

/// A group that kept a window once, and compacts no more, is one that never does.
#[test]
fn a_group_that_compacts_no_more_pins_its_own_bytes_and_one_segment() {
    const WINDOW: u64 = 600;
    let loads = [
        Load::new(3_000, 1, Keeps::NewestAtFirst(50)),
        Load::new(2_000, 1, Keeps::Newest(0)),
        Load::new(3_000, 1, Keeps::Newest(WINDOW)),
    ];
    let look = |round, kept: &Kept, stats: &LaneStats| {
        // What lies beside the window is not its doing.
        let others = WINDOW * 2_040;
        let most = bound(kept, stats) + others + (256 << 10);
        let pinned = stats.live_segment_bytes;
        assert!(pinned <= most, "{round}: {most}, {stats:?}");
    };
    rounds((&loads, &quarter_mebibyte()), 2_000, look);
}
