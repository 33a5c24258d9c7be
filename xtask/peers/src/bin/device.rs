//! The bare device: a plain write and `fdatasync` of the same bytes into a prepared file.
//!
//! `device FILE BYTES_PER_SYNC SECONDS` prints `SYNCS_PER_S P50_US P99_US`.

use std::error::Error;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// The file's size: zeroed and synced before the clock starts, then overwritten from its start.
const PREPARED_BYTES: usize = 64 << 20;

/// SplitMix64: bytes that do not compress.
fn random(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bytes.extend_from_slice(&(z ^ (z >> 31)).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, bytes, seconds] = &arguments[..] else {
        return Err("usage: device FILE BYTES_PER_SYNC SECONDS".into());
    };
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)?;
    file.write_all_at(&vec![0; PREPARED_BYTES], 0)?;
    file.sync_all()?;
    let block = random(bytes.parse()?);
    let span = Duration::from_secs_f64(seconds.parse()?);
    let begin = Instant::now();
    let mut micros: Vec<u128> = Vec::new();
    let mut at = 0;
    while begin.elapsed() < span {
        if at + block.len() > PREPARED_BYTES {
            at = 0;
        }
        let one = Instant::now();
        file.write_all_at(&block, u64::try_from(at)?)?;
        file.sync_data()?;
        micros.push(one.elapsed().as_micros());
        at += block.len();
    }
    let per_second = micros.len() as f64 / begin.elapsed().as_secs_f64();
    micros.sort_unstable();
    let at = |percent: usize| {
        micros
            .get(micros.len() * percent / 100)
            .copied()
            .unwrap_or(0)
    };
    println!("{per_second:.0} {} {}", at(50), at(99));
    Ok(())
}
