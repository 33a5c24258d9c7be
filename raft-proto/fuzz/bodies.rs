//! What the fuzz targets do with their bytes. `tests/fuzz_seeds.rs` does the same with bytes drawn
//! from seeds, on any compiler.
#![allow(dead_code, reason = "each target uses one of them")]

#[path = "bodies/frame.rs"]
pub(crate) mod frame;
#[path = "bodies/message.rs"]
pub(crate) mod message;
#[path = "bodies/replica.rs"]
pub(crate) mod replica;
#[path = "bodies/step.rs"]
pub(crate) mod step;
