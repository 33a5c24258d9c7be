//! Hazards and faults by their numbers, on real engines over simulated disks, links and time.
#![allow(missing_docs, unreachable_pub, reason = "a test, not an interface")]

#[path = "hazards/disk.rs"]
mod disk;
#[path = "hazards/groups.rs"]
mod groups;
#[path = "cluster/ids.rs"]
mod ids;
#[path = "cluster/machine.rs"]
mod machine;
#[path = "cluster/oracle.rs"]
#[expect(dead_code, reason = "shared with the deterministic cluster")]
mod oracle;
#[path = "hazards/peers.rs"]
mod peers;
#[path = "hazards/power.rs"]
mod power;
#[path = "cluster/promises.rs"]
mod promises;
#[path = "hazards/quiet.rs"]
mod quiet;
#[path = "hazards/snapshots.rs"]
mod snapshots;
#[path = "hazards/time.rs"]
mod time;
#[path = "hazards/world.rs"]
mod world;
