//! The fuzz targets' bodies with bytes drawn from seeds: on a stable compiler, in every run.

#[path = "../../fuzz/bodies.rs"]
mod bodies;

use crate::record;
use crate::workload::Rng;

/// Noise, runs, and numbers at the edges.
fn input(rng: &mut Rng, len_max: u64) -> Vec<u8> {
    let len = usize::try_from(rng.below(len_max)).expect("small");
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        match rng.below(8) {
            0..=2 => out.extend_from_slice(&rng.next().to_le_bytes()),
            3 => out.extend([0; 24]),
            4 => out.extend_from_slice(&u64::MAX.wrapping_sub(rng.below(4)).to_le_bytes()),
            5 => out.extend_from_slice(&rng.below(16).to_le_bytes()),
            // The header of an item: a kind that there is, a length that may be right.
            6 => {
                out.push(1 + rng.below(16).to_le_bytes()[0]);
                out.extend_from_slice(&[rng.below(2).to_le_bytes()[0], 0, 0]);
                out.extend_from_slice(&[rng.below(80).to_le_bytes()[0], 0, 0, 0]);
                out.extend_from_slice(&rng.below(3).to_le_bytes());
                out.extend_from_slice(&rng.below(3).to_le_bytes());
            }
            _ => out.push(rng.next().to_le_bytes()[0]),
        }
    }
    out
}

/// A number as it may be, or at an edge.
fn number(rng: &mut Rng) -> u64 {
    match rng.below(8) {
        0 => 0,
        1 => u64::MAX.wrapping_sub(rng.below(4)),
        2 => rng.next() >> rng.below(64),
        _ => rng.below(24),
    }
}

fn small(rng: &mut Rng) -> [u8; 4] {
    let number = if rng.one_in(16) {
        number(rng)
    } else {
        rng.below(3)
    };
    u32::try_from(number & 0xFFFF_FFFF)
        .expect("masked")
        .to_le_bytes()
}

/// A table whose items are of the right shape and say anything.
fn table(rng: &mut Rng, kinds: &[u8]) -> Vec<u8> {
    let mut out = vec![0];
    for _ in 0..1 + rng.below(5) {
        let kind = kinds[usize::try_from(rng.next() % 64).expect("small") % kinds.len()];
        let mut body = Vec::new();
        let numbers = match kind {
            1 | 10 => 4,
            2 | 11 => 3,
            4 | 14 => 2,
            5 | 15 => 1,
            7 => 6,
            8 => 5,
            9 => 2 * rng.below(3),
            12 => 4,
            16 => 4 * rng.below(3),
            _ => 0,
        };
        if kind == 8 {
            body.extend_from_slice(&rng.below(5).to_le_bytes());
        }
        for _ in 0..if kind == 8 { 4 } else { numbers } {
            body.extend_from_slice(&number(rng).to_le_bytes());
        }
        let list = |body: &mut Vec<u8>, rng: &mut Rng, words: u64| {
            let count = rng.below(3);
            body.extend_from_slice(&u32::try_from(count).expect("small").to_le_bytes());
            for _ in 0..count * words {
                body.extend_from_slice(&number(rng).to_le_bytes());
            }
        };
        match kind {
            1 => {
                body.extend_from_slice(&small(rng));
                list(&mut body, rng, 2);
                for _ in 0..rng.below(3) {
                    body.extend_from_slice(&number(rng).to_le_bytes());
                }
            }
            3 => body.extend_from_slice(&[0; 4]),
            7 => {
                list(&mut body, rng, 2);
                list(&mut body, rng, 1);
                body.extend_from_slice(&[0; 4]);
            }
            12 => (0..3).for_each(|_| body.extend_from_slice(&small(rng))),
            _ => {}
        }
        let is_lanes = matches!(kind, 9 | 10 | 11 | 13 | 14 | 15 | 16);
        out.push(kind);
        out.extend_from_slice(&[u8::from(rng.one_in(4)), 0, 0]);
        out.extend_from_slice(&u32::try_from(body.len()).expect("small").to_le_bytes());
        for _ in 0..2 {
            let of = if is_lanes { 0 } else { 1 + rng.below(2) };
            out.extend_from_slice(&of.to_le_bytes());
        }
        out.extend_from_slice(&body);
    }
    out
}

const DATA: &[u8] = &[1, 2, 3, 4, 5, 6, 8, 10, 11, 13, 14, 16];
const CHECKPOINT: &[u8] = &[7, 7, 8, 9, 14, 16];
const FOOTER: &[u8] = &[12, 12, 12, 15];

fn many(suite: &str, body: fn(&[u8]), kinds: &[u8], len_max: u64) {
    const CASES: u64 = 4_000;
    for seed in 0..CASES {
        let mut rng = Rng(seed);
        let bytes = if kinds.is_empty() || rng.one_in(4) {
            input(&mut rng, len_max)
        } else {
            table(&mut rng, kinds)
        };
        body(&bytes);
    }
    record(suite, "cases", CASES);
}

#[test]
fn any_bytes_in_a_record_are_judged_without_panic() {
    many("log records of any bytes", bodies::record, DATA, 400);
}

#[test]
fn any_bytes_in_a_checkpoint_are_judged_without_panic() {
    many(
        "log checkpoints of any bytes",
        bodies::checkpoint,
        CHECKPOINT,
        600,
    );
}

#[test]
fn any_bytes_in_a_footer_are_judged_without_panic() {
    many("log footers of any bytes", bodies::footer, FOOTER, 400);
}

#[test]
fn any_bytes_in_a_segment_are_judged_without_panic() {
    many("log segments of any bytes", bodies::segment, &[], 3_000);
}
