//! Hosts in one process, over real QUIC on the loopback interface and real files.

mod common;
mod membership;
mod replication;
