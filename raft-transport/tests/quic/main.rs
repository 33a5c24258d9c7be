//! The transport over real QUIC on the loopback interface, with certificates made on the spot.

mod common;
mod loopback;
mod messages;
mod refusals;
mod snapshots;
