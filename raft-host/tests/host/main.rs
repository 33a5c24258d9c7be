//! Hosts in one process, over real QUIC on the loopback interface and real files.

#[path = "../common/authority.rs"]
mod authority;
mod common;
mod failures;
mod identity;
mod membership;
mod replication;
mod starting;
