//! What the process has used, as the system counts it.

use std::fs;

use anyhow::{Context, Result};

/// Microseconds in a tick of `/proc/self/stat`, of which Linux shows programs a hundred a second.
const TICK_US: u64 = 10_000;

/// Processor time of all threads, in microseconds.
pub(crate) fn cpu_us() -> Result<u64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The second field is the program's name in brackets, which may hold anything.
    let (_, behind) = stat
        .rsplit_once(')')
        .context("no name in /proc/self/stat")?;
    let mut fields = behind.split_ascii_whitespace().skip(11);
    let mut ticks = || {
        fields
            .next()
            .and_then(|field| field.parse::<u64>().ok())
            .context("no processor time in /proc/self/stat")
    };
    Ok((ticks()? + ticks()?) * TICK_US)
}

/// Memory of the process that is in use, in bytes.
pub(crate) fn rss_bytes() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let kilobytes: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"))
        .and_then(|text| text.trim().parse().ok())
        .context("no VmRSS in /proc/self/status")?;
    Ok(kilobytes << 10)
}
