//! The core allocates almost nothing for an entry when batches repeat: what the benchmark measures,
//! held in a test. It stands alone: a counting allocator sees the whole process. With the feature
//! `trace` there is nothing to hold: every transition is then kept as a value of its own.
#![cfg(not(feature = "trace"))]
#![allow(missing_docs, reason = "a test, not an interface")]

#[allow(
    dead_code,
    unused_attributes,
    clippy::print_stdout,
    reason = "the benchmark is a program too"
)]
#[path = "../examples/bench_proto.rs"]
mod bench_proto;

use std::error::Error;

use bench_proto::{Bench, allocations};

/// Enough for every buffer and queue to have the size that it keeps.
const WARM_UP_ENTRIES: u64 = 20_000;
const ENTRIES: u64 = 20_000;

#[test]
fn an_entry_of_a_batch_costs_less_than_a_tenth_of_an_allocation() -> Result<(), Box<dyn Error>> {
    for in_bytes in [false, true] {
        for payload_bytes in [16, 1_024] {
            for batch in [16, 256] {
                let mut bench = Bench::new(in_bytes, payload_bytes, batch)?;
                while bench.proposals < WARM_UP_ENTRIES {
                    bench.round()?;
                }
                let (before, first) = (allocations(), bench.proposals);
                while bench.proposals < first + ENTRIES {
                    bench.round()?;
                }
                let allocations = u64::try_from(allocations() - before)?;
                let entries = bench.proposals - first;
                bench.check()?;
                assert!(
                    10 * allocations < entries,
                    "{allocations} allocations for {entries} entries of {payload_bytes} bytes, \
                     {batch} at once, in bytes: {in_bytes}"
                );
            }
        }
    }
    Ok(())
}
