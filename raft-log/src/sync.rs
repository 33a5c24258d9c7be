//! What threads share, exchanged for loom's where every interleaving is gone through:
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p raft-log --release --lib
//! ```

#[cfg(loom)]
pub(crate) use loom::sync::{
    Arc, Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
};
#[cfg(not(loom))]
pub(crate) use std::sync::{
    Arc, Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
};

pub(crate) use counter::Counter;

mod counter {
    #[cfg(loom)]
    use loom::sync::atomic::{AtomicU32, Ordering};
    #[cfg(not(loom))]
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::system::Sleepers;

    /// A counter that threads wait at until it changes.
    #[derive(Debug, Default)]
    pub(crate) struct Counter {
        count: AtomicU32,
        sleepers: Sleepers,
    }

    impl Counter {
        pub(crate) fn now(&self) -> u32 {
            self.count.load(Ordering::Acquire)
        }

        /// Waits while it is what was `seen`; may return before, too.
        pub(crate) fn wait(&self, seen: u32) {
            self.sleepers.wait(&self.count, seen);
        }

        /// Counts, and wakes all who wait, in one call of the system.
        pub(crate) fn advance(&self) {
            self.count.fetch_add(1, Ordering::Release);
            self.sleepers.wake(&self.count);
        }
    }
}

/// Who waits at a counter: the system knows.
#[cfg(not(loom))]
mod system {
    use std::sync::atomic::AtomicU32;

    use rustix::thread::futex::{self, Flags};

    /// As many as a call of the system wakes at most.
    const ALL: u32 = i32::MAX.unsigned_abs();

    #[derive(Debug, Default)]
    pub(super) struct Sleepers;

    #[expect(clippy::unused_self, reason = "loom's has what the system has here")]
    impl Sleepers {
        pub(super) fn wait(&self, count: &AtomicU32, seen: u32) {
            // Whatever it says, interrupted too: the caller looks again.
            futex::wait(count, Flags::PRIVATE, seen, None).ok();
        }

        pub(super) fn wake(&self, count: &AtomicU32) {
            futex::wake(count, Flags::PRIVATE, ALL).ok();
        }
    }
}

/// The system's part of it: it compares under a lock of its own, under which it looks for whom to
/// wake, too.
#[cfg(loom)]
mod system {
    use loom::sync::atomic::{AtomicU32, Ordering};
    use loom::sync::{Condvar, Mutex};

    #[derive(Debug, Default)]
    pub(super) struct Sleepers {
        lock: Mutex<()>,
        changed: Condvar,
    }

    impl Sleepers {
        pub(super) fn wait(&self, count: &AtomicU32, seen: u32) {
            let lock = self.lock.lock().expect("no panic");
            if count.load(Ordering::Relaxed) == seen {
                drop(self.changed.wait(lock).expect("no panic"));
            }
        }

        pub(super) fn wake(&self, _: &AtomicU32) {
            let lock = self.lock.lock().expect("no panic");
            self.changed.notify_all();
            drop(lock);
        }
    }
}
