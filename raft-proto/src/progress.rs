//! A follower's log as its leader sees it.
//!
//! Source: thesis §3.5, §10.2.1; etcd `tracker/progress.go`, `tracker/inflights.go`.

use alloc::collections::VecDeque;

use crate::types::Index;

/// What the leader may send.
#[derive(Debug)]
pub(crate) enum ProgressState {
    /// The match point is unknown: one append at a time.
    Probe { is_sent: bool },
    /// The match point is known: stream up to the window.
    Replicate {
        inflight: VecDeque<(Index, usize)>,
        inflight_bytes: usize,
        is_paused: bool,
    },
    /// Waits for the snapshot at `pending`.
    Snapshot { pending: Index },
}

/// Invariant: `matched < next`.
#[derive(Debug)]
pub(crate) struct Progress {
    pub(crate) matched: Index,
    pub(crate) next: Index,
    pub(crate) state: ProgressState,
    pub(crate) is_recent_active: bool,
    /// The commit index last sent.
    pub(crate) sent_commit: Index,
}

impl Progress {
    pub(crate) const fn new(next: Index) -> Self {
        Self {
            matched: Index::ZERO,
            next,
            state: ProgressState::Probe { is_sent: false },
            is_recent_active: false,
            sent_commit: Index::ZERO,
        }
    }

    pub(crate) fn become_probe(&mut self) {
        self.next = match self.state {
            ProgressState::Snapshot { pending } if pending.get() > self.matched.get() => {
                pending.next()
            }
            _ => self.matched.next(),
        };
        self.state = ProgressState::Probe { is_sent: false };
        self.sent_commit = Index::new(if self.sent_commit.get() < self.next.get() - 1 {
            self.sent_commit.get()
        } else {
            self.next.get() - 1
        });
    }

    pub(crate) fn become_replicate(&mut self) {
        self.next = self.matched.next();
        self.state = ProgressState::Replicate {
            inflight: VecDeque::new(),
            inflight_bytes: 0,
            is_paused: false,
        };
    }

    pub(crate) fn become_snapshot(&mut self, pending: Index) {
        self.state = ProgressState::Snapshot { pending };
        self.next = pending.next();
        self.sent_commit = pending;
    }

    pub(crate) const fn is_paused(&self) -> bool {
        match self.state {
            ProgressState::Probe { is_sent } => is_sent,
            ProgressState::Replicate { is_paused, .. } => is_paused,
            ProgressState::Snapshot { .. } => true,
        }
    }

    /// Whether `acked` was news.
    pub(crate) fn on_accepted(&mut self, acked: Index) -> bool {
        if acked <= self.matched {
            return false;
        }
        self.matched = acked;
        self.next = self.next.max(acked.next());
        true
    }

    /// Whether the rejection of an append behind `rejected` was news.
    pub(crate) fn on_rejected(&mut self, rejected: Index, hint: Index) -> bool {
        if let ProgressState::Replicate { .. } = self.state {
            if rejected <= self.matched {
                return false;
            }
            self.next = self.matched.next();
            self.sent_commit = self.sent_commit.min(self.matched);
            return true;
        }
        if self.next.previous() != Some(rejected) {
            return false;
        }
        self.next = rejected.min(hint.next()).max(self.matched.next());
        self.sent_commit = self
            .sent_commit
            .min(self.next.previous().unwrap_or_default());
        if let ProgressState::Probe { is_sent } = &mut self.state {
            *is_sent = false;
        }
        true
    }

    /// Notes entries up to `last` of `bytes` as sent.
    pub(crate) fn on_sent(&mut self, last: Option<Index>, bytes: usize, bounds: (usize, usize)) {
        match &mut self.state {
            ProgressState::Probe { is_sent } => *is_sent |= last.is_some(),
            ProgressState::Replicate {
                inflight,
                inflight_bytes,
                is_paused,
            } => {
                if let Some(last) = last {
                    self.next = last.next();
                    inflight.push_back((last, bytes));
                    *inflight_bytes += bytes;
                }
                *is_paused = inflight.len() >= bounds.0 || *inflight_bytes >= bounds.1;
            }
            ProgressState::Snapshot { .. } => {}
        }
    }

    pub(crate) fn free_inflight(&mut self, acked: Index, bounds: (usize, usize)) {
        if let ProgressState::Replicate {
            inflight,
            inflight_bytes,
            is_paused,
        } = &mut self.state
        {
            while inflight.front().is_some_and(|&(last, _)| last <= acked) {
                let (_, bytes) = inflight.pop_front().expect("it was just seen");
                *inflight_bytes -= bytes;
            }
            *is_paused = inflight.len() >= bounds.0 || *inflight_bytes >= bounds.1;
        }
    }
}
