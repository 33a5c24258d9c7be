//! A worker's one inbox: bounded in bytes, drained in one go.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::Duration;

/// Wakes the thread that drives a worker. Without a thread (under simulation) it only remembers.
#[derive(Debug, Default)]
pub(crate) struct Wake {
    is_set: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Wake {
    /// Names the calling thread as the one to wake.
    pub(crate) fn attach(&self) {
        self.thread.get_or_init(std::thread::current);
    }

    pub(crate) fn set(&self) {
        if !self.is_set.swap(true, Ordering::AcqRel)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }

    /// Whether it was set since the last call.
    pub(crate) fn take(&self) -> bool {
        self.is_set.swap(false, Ordering::AcqRel)
    }

    /// Parks until it is set or `timeout` has passed.
    pub(crate) fn wait(&self, timeout: Duration) {
        if !self.is_set.load(Ordering::Acquire) {
            std::thread::park_timeout(timeout);
        }
    }
}

/// A bound in bytes on what has been asked for and not been answered.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes: Arc<AtomicUsize>,
    bytes_max: usize,
}

impl Budget {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            bytes: Arc::default(),
            bytes_max,
        }
    }

    /// Takes room for `bytes`, unless the bound is met.
    pub(crate) fn take(&self, bytes: usize) -> Option<Room> {
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let room = Room {
            of: Arc::clone(&self.bytes),
            bytes,
        };
        // Dropped, it gives back what was taken too much.
        (before.saturating_add(bytes) <= self.bytes_max).then_some(room)
    }
}

/// A part of a [`Budget`], given back when dropped.
#[derive(Debug)]
pub(crate) struct Room {
    of: Arc<AtomicUsize>,
    bytes: usize,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.of.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The inbox was full and took nothing.
#[derive(Debug)]
pub(crate) struct Full<T>(pub(crate) T);

/// Many senders, one owner. What callers and peers send is bounded; notices of our own workers,
/// whose room was reserved with the work they answer, are always taken.
#[derive(Debug)]
pub(crate) struct Inbox<T> {
    items: Mutex<Vec<T>>,
    /// Its owner is gone.
    is_closed: AtomicBool,
    /// Bytes of bounded items that lie in `items`.
    bytes: AtomicUsize,
    bytes_max: usize,
    wake: Arc<Wake>,
}

impl<T> Inbox<T> {
    pub(crate) fn new(bytes_max: usize, wake: Arc<Wake>) -> Self {
        Self {
            items: Mutex::new(Vec::new()),
            is_closed: AtomicBool::new(false),
            bytes: AtomicUsize::new(0),
            bytes_max,
            wake,
        }
    }

    /// Takes an item of `bytes`, unless the bound is met.
    pub(crate) fn push(&self, item: T, bytes: usize) -> Result<(), Full<T>> {
        if !self.reserve(bytes) {
            return Err(Full(item));
        }
        self.notice(item);
        Ok(())
    }

    /// Counts `bytes` for an item that follows, unless the bound is met.
    pub(crate) fn reserve(&self, bytes: usize) -> bool {
        if self.bytes.load(Ordering::Relaxed).saturating_add(bytes) > self.bytes_max {
            return false;
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        true
    }

    /// Takes a notice, always. Without an owner it is dropped: whoever waits for its answer hears
    /// of its end.
    pub(crate) fn notice(&self, item: T) {
        let mut items = self.lock();
        if self.is_closed.load(Ordering::Relaxed) {
            drop(items);
            return drop(item);
        }
        items.push(item);
        drop(items);
        self.wake.set();
    }

    /// Takes notices as [`Inbox::notice`] does, all in one go; `items` is left empty.
    pub(crate) fn notices(&self, items: &mut Vec<T>) {
        if items.is_empty() {
            return;
        }
        let mut waiting = self.lock();
        if self.is_closed.load(Ordering::Relaxed) {
            drop(waiting);
            return items.clear();
        }
        waiting.append(items);
        drop(waiting);
        self.wake.set();
    }

    /// Drops what lies here and what comes, because nobody will drain it any more.
    pub(crate) fn close(&self) {
        let items = {
            let mut items = self.lock();
            self.is_closed.store(true, Ordering::Relaxed);
            std::mem::take(&mut *items)
        };
        drop(items);
    }

    /// Swaps all that lies here for the empty `drained`.
    pub(crate) fn drain(&self, drained: &mut Vec<T>) {
        debug_assert!(drained.is_empty());
        let mut items = self.lock();
        std::mem::swap(&mut *items, drained);
        self.bytes.store(0, Ordering::Relaxed);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<T>> {
        // A push or swap cannot leave the vector half changed.
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_gives_back_what_is_answered_and_what_was_too_much() {
        let budget = Budget::new(10);
        let first = budget.take(6).expect("there is room");
        assert!(budget.take(6).is_none());
        let second = budget.take(4).expect("the refusal took nothing");
        assert!(budget.take(1).is_none());
        drop(first);
        assert!(budget.take(6).is_some());
        drop(second);
        assert!(budget.take(10).is_some());
    }

    #[test]
    fn bounded_items_are_refused_at_the_bound_and_notices_never() {
        let inbox = Inbox::new(10, Arc::default());
        assert!(inbox.push('a', 6).is_ok());
        assert!(inbox.push('b', 6).is_err());
        inbox.notice('n');
        let mut more = vec!['o', 'p'];
        inbox.notices(&mut more);
        assert_eq!(more, []);
        let mut drained = Vec::new();
        inbox.drain(&mut drained);
        assert_eq!(drained, ['a', 'n', 'o', 'p']);
        assert!(inbox.push('c', 10).is_ok());
    }

    #[test]
    fn an_inbox_without_an_owner_holds_nothing() {
        let inbox = Inbox::new(10, Arc::default());
        let item = Arc::new(());
        inbox.notice(Arc::clone(&item));
        inbox.close();
        inbox.notice(Arc::clone(&item));
        inbox.notices(&mut vec![Arc::clone(&item)]);
        assert!(inbox.push(Arc::clone(&item), 1).is_ok());
        assert_eq!(Arc::strong_count(&item), 1);
    }
}
