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

#[cfg(not(loom))]
mod counter {
    use std::sync::atomic::{AtomicU32, Ordering};

    use rustix::thread::futex::{self, Flags};

    /// As many as a call of the system wakes at most.
    const ALL: u32 = i32::MAX.unsigned_abs();

    /// A counter that threads wait at until it changes.
    #[derive(Debug, Default)]
    pub(crate) struct Counter(AtomicU32);

    impl Counter {
        pub(crate) fn now(&self) -> u32 {
            self.0.load(Ordering::Acquire)
        }

        /// Waits while it is what was `seen`; may return before, too.
        pub(crate) fn wait(&self, seen: u32) {
            // Whatever it says, interrupted too: the caller looks again.
            futex::wait(&self.0, Flags::PRIVATE, seen, None).ok();
        }

        /// Counts, and wakes all who wait, in one call of the system.
        pub(crate) fn advance(&self) {
            self.0.fetch_add(1, Ordering::Release);
            futex::wake(&self.0, Flags::PRIVATE, ALL).ok();
        }
    }
}

#[cfg(loom)]
mod counter {
    use loom::sync::atomic::{AtomicU32, Ordering};
    use loom::sync::{Condvar, Mutex};

    /// The same, with the system's part of it: it compares under a lock of its own, under which it
    /// looks for whom to wake too.
    #[derive(Debug, Default)]
    pub(crate) struct Counter {
        count: AtomicU32,
        sleepers: Mutex<()>,
        changed: Condvar,
    }

    impl Counter {
        pub(crate) fn now(&self) -> u32 {
            self.count.load(Ordering::Acquire)
        }

        pub(crate) fn wait(&self, seen: u32) {
            let sleepers = self.sleepers.lock().expect("no panic");
            if self.count.load(Ordering::Relaxed) == seen {
                drop(self.changed.wait(sleepers).expect("no panic"));
            }
        }

        pub(crate) fn advance(&self) {
            self.count.fetch_add(1, Ordering::Release);
            let sleepers = self.sleepers.lock().expect("no panic");
            self.changed.notify_all();
            drop(sleepers);
        }
    }
}
