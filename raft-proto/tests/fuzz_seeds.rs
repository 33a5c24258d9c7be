//! The fuzz targets on any compiler, with bytes drawn from seeds: arbitrary ones, and encodings of
//! what is valid, changed here and there. `fuzz/` holds the bodies.
#![allow(missing_docs, reason = "a test, not an interface")]

#[path = "../fuzz/bodies.rs"]
mod bodies;
#[path = "support/report.rs"]
mod report;
#[path = "support/rng.rs"]
mod rng;

use std::fs;
use std::path::Path;

use rng::Rng;

const CASES: u64 = 60_000;
const LIVES: u64 = 30_000;

/// The encodings of the golden files whose names begin with one of `prefixes`.
fn golden(prefixes: &[&str]) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden");
    let listed = fs::read_dir(directory).expect("the directory is part of the crate");
    let mut paths: Vec<_> = listed
        .map(|entry| entry.expect("it lists").path())
        .collect();
    paths.sort();
    let named = paths.iter().filter(|path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)))
    });
    let read = named.map(|path| {
        let text = fs::read_to_string(path).expect("a text");
        let words = text.split_ascii_whitespace();
        words
            .map(|word| u8::from_str_radix(word, 16).expect("two digits"))
            .collect()
    });
    read.collect()
}

/// Some bytes: drawn, or one of `seeds` after a few changes.
fn bytes(rng: &mut Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    if rng.chance(15) {
        let length = rng.below(200);
        return (0..length).map(|_| byte(rng)).collect();
    }
    let mut bytes = seeds[rng.index(seeds.len())].clone();
    for _ in 0..rng.below(4) {
        mutate(rng, &mut bytes, seeds);
    }
    bytes
}

fn byte(rng: &mut Rng) -> u8 {
    u8::try_from(rng.below(256)).expect("it is below 256")
}

fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>, seeds: &[Vec<u8>]) {
    let at = rng.index(bytes.len() + 1);
    let end = at + rng.index(bytes.len() - at + 1).min(24);
    match rng.below(7) {
        0 => bytes.truncate(at),
        1 => drop(bytes.drain(at..end)),
        2 => {
            let again: Vec<u8> = bytes[at..end].to_vec();
            bytes.splice(at..at, again);
        }
        3 => {
            let other = &seeds[rng.index(seeds.len())];
            let from = rng.index(other.len() + 1);
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
        4 => {
            // A whole word at its end.
            let word = rng
                .pick(&[0, 1, 1 << 63, u64::MAX - 2, u64::MAX])
                .to_le_bytes();
            if let Some(place) = bytes.get_mut(at / 8 * 8..at / 8 * 8 + 8) {
                place.copy_from_slice(&word);
            }
        }
        5 => {
            if let Some(place) = bytes.get_mut(at) {
                *place ^= 1 << rng.below(8);
            }
        }
        _ => {
            let drawn = byte(rng);
            if let Some(place) = bytes.get_mut(at) {
                *place = drawn;
            }
        }
    }
}

/// Gives `run` `CASES` inputs made of `seeds` and reports them; how many were taken for valid.
fn cases(suite: &str, seeds: &[Vec<u8>], run: fn(&[u8]) -> bool) -> u64 {
    assert!(seeds.len() >= 3, "{suite} has something to begin with");
    let mut rng = Rng::new(1);
    let mut valid = 0;
    for _ in 0..CASES {
        let mut data = vec![seeds_flag(&mut rng)];
        data.extend(bytes(&mut rng, seeds));
        valid += u64::from(run(&data));
    }
    report::record(&serde_json::json!({"suite": suite, "cases": CASES}));
    valid
}

/// What the first byte of an input chooses: the golden group, and good checksums in most cases.
fn seeds_flag(rng: &mut Rng) -> u8 {
    u8::from(rng.chance(70)) | (byte(rng) & 0xFE)
}

#[test]
fn fuzz_message_decodes_or_refuses() {
    let valid = cases(
        "proto fuzz message",
        &golden(&["message-"]),
        bodies::message::run,
    );
    // Else nothing but the first checks was tried.
    assert!((CASES / 8..CASES).contains(&valid), "{valid} of {CASES}");
}

#[test]
fn fuzz_frame_decodes_or_refuses() {
    let valid = cases("proto fuzz frame", &golden(&["entr"]), bodies::frame::run);
    assert!((CASES / 8..CASES).contains(&valid), "{valid} of {CASES}");
}

#[test]
fn fuzz_step_survives_every_life() {
    let mut total = [0_u64; 5];
    for seed in 0..LIVES {
        let mut rng = Rng::new(seed);
        let length = rng.range(20, 600);
        let mut life: Vec<u8> = (0..length).map(|_| byte(&mut rng)).collect();
        if rng.chance(50) {
            // One that is elected first: without pre-votes it stands, and is voted for.
            let flags = byte(&mut rng) & !1;
            let (campaign, persist) = ([14, 2], [7, 3]);
            let votes = [[0, 4, 1, 1, 0, 0], [0, 4, 1, 2, 0, 0]];
            let elected = [
                &[flags],
                &campaign[..],
                &persist,
                votes.as_flattened(),
                &persist,
            ];
            // Then it may commit for a while, whether its state machine moves or stands still.
            let propose = [12, 1, 0, 63, 7, 3];
            let acks = [[0, 10, 2, 1, 1, 0, 0], [0, 10, 2, 1, 2, 0, 0]];
            let round = [&propose[..], &persist, acks.as_flattened()].concat();
            let rounds = if rng.chance(3) { 600 } else { 0 };
            life.splice(0..0, [elected.concat(), round.repeat(rounds)].concat());
        }
        let reached = bodies::step::run(&life);
        for (total, reached) in total.iter_mut().zip([
            u64::from(reached.is_leader),
            reached.commit,
            u64::from(reached.has_installed),
            u64::from(reached.has_fetched),
            reached.violations,
        ]) {
            *total += reached;
        }
    }
    report::record(&serde_json::json!({
        "suite": "proto fuzz step", "cases": LIVES,
    }));
    // Lives in which nothing happened prove nothing.
    for reached in total {
        assert!(reached > LIVES / 100, "{total:?}");
    }
}
