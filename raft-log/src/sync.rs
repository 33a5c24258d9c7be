//! What threads share, exchanged for loom's where every interleaving is gone through:
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p raft-log --release --lib
//! ```

#[cfg(loom)]
pub(crate) use loom::sync::{Arc, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
#[cfg(not(loom))]
pub(crate) use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
