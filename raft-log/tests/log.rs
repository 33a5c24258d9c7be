//! The log over a simulated disk: crashes, damage, failing operations, a model.
#![allow(missing_docs, unreachable_pub, reason = "a test, not an interface")]

#[path = "log/apart.rs"]
mod apart;
#[path = "log/collection.rs"]
mod collection;
#[path = "log/confined.rs"]
mod confined;
#[path = "log/crash.rs"]
mod crash;
#[path = "log/damage.rs"]
mod damage;
#[path = "log/dense.rs"]
mod dense;
#[path = "log/every_bit.rs"]
mod every_bit;
#[path = "log/failure.rs"]
mod failure;
#[path = "log/faults.rs"]
mod faults;
#[path = "log/fits.rs"]
mod fits;
#[path = "log/full.rs"]
mod full;
#[path = "log/fuzz.rs"]
mod fuzz;
#[path = "log/golden.rs"]
mod golden;
#[path = "log/gone.rs"]
mod gone;
#[path = "log/held.rs"]
mod held;
#[path = "log/lanes.rs"]
mod lanes;
#[path = "log/large.rs"]
mod large;
#[path = "log/leftovers.rs"]
mod leftovers;
#[path = "log/model.rs"]
mod model;
#[path = "log/no_segment.rs"]
mod no_segment;
#[path = "log/numbers.rs"]
mod numbers;
#[path = "log/opening.rs"]
mod opening;
#[path = "log/opens.rs"]
mod opens;
#[path = "log/report.rs"]
mod report;
#[path = "log/rewrite.rs"]
mod rewrite;
#[path = "log/space.rs"]
mod space;
#[path = "log/split.rs"]
mod split;
#[path = "log/strict.rs"]
mod strict;
#[path = "log/tail.rs"]
mod tail;
#[path = "log/tally.rs"]
mod tally;
#[path = "log/tracked.rs"]
mod tracked;
#[path = "log/votes.rs"]
mod votes;
#[path = "log/votes_full.rs"]
mod votes_full;
#[path = "log/windows.rs"]
mod windows;
#[path = "log/workload.rs"]
mod workload;

use report::record;
