//! The window of appends that were sent and not yet acknowledged.
//!
//! Source: etcd `tracker/inflights.go`; thesis §10.2 (pipelining).

use alloc::collections::VecDeque;

use crate::types::Index;

/// What may be in flight to one follower at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InflightMax {
    /// Messages, at least 1.
    pub(crate) messages: usize,
    /// Bytes of entries, at least 1. One message may pass it.
    pub(crate) bytes: usize,
}

/// Appends in flight, oldest first.
///
/// Invariant: `bytes` is the sum of all; last indexes rise.
#[derive(Debug, Default)]
pub(crate) struct Inflight {
    sent: VecDeque<(Index, usize)>,
    bytes: usize,
}

impl Inflight {
    pub(crate) fn count(&self) -> usize {
        self.sent.len()
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.sent.len() * size_of::<(Index, usize)>()
    }

    pub(crate) fn is_full(&self, max: InflightMax) -> bool {
        self.sent.len() >= max.messages || self.bytes >= max.bytes
    }

    /// Notes an append of `bytes` whose last entry is `last`.
    pub(crate) fn add(&mut self, last: Index, bytes: usize) {
        debug_assert!(self.sent.back().is_none_or(|&(before, _)| before < last));
        self.sent.push_back((last, bytes));
        self.bytes += bytes;
    }

    /// Frees every append whose last entry is at or below `acked`.
    pub(crate) fn free_up_to(&mut self, acked: Index) {
        while let Some(&(last, bytes)) = self.sent.front()
            && last <= acked
        {
            self.sent.pop_front();
            self.bytes -= bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: InflightMax = InflightMax {
        messages: 3,
        bytes: 100,
    };

    #[test]
    fn the_window_fills_by_messages_and_by_bytes() {
        let mut inflight = Inflight::default();
        for last in 1..=3 {
            assert!(!inflight.is_full(MAX));
            inflight.add(Index::new(last), 1);
        }
        assert!(inflight.is_full(MAX));
        inflight.free_up_to(Index::new(2));
        assert_eq!(inflight.count(), 1);
        inflight.add(Index::new(9), 200);
        assert!(inflight.is_full(MAX), "one message may pass the bound");
        inflight.free_up_to(Index::new(9));
        assert!(!inflight.is_full(MAX));
        assert_eq!((inflight.count(), inflight.bytes), (0, 0));
    }

    #[test]
    fn an_acknowledgement_inside_a_message_frees_nothing_of_it() {
        let mut inflight = Inflight::default();
        inflight.add(Index::new(10), 5);
        inflight.free_up_to(Index::new(9));
        assert_eq!((inflight.count(), inflight.bytes), (1, 5));
    }
}
