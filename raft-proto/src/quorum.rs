//! Majorities, and two of them at once.
//!
//! Source: thesis §3.5 (commitment), §4.3 (joint consensus); etcd `quorum/`.

use alloc::vec::Vec;

use crate::types::Index;

/// How a vote stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VoteResult {
    /// Neither won nor lost yet.
    Pending,
    /// No quorum can be reached any more.
    Lost,
    /// A quorum said yes.
    Won,
}

impl VoteResult {
    /// The outcome when both of two votes must be won.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Won, Self::Won) => Self::Won,
            (Self::Lost, _) | (_, Self::Lost) => Self::Lost,
            _ => Self::Pending,
        }
    }
}

/// As many voters as lie on the stack; larger groups take one allocation.
const VOTERS_ON_STACK: usize = 7;

/// The highest value that a majority of voters has reached, or `None` without voters: then
/// nothing stands in the way.
///
/// A voter of which nothing is known counts as zero.
pub(crate) fn majority_reached<T: Copy + Ord + Default>(
    reached: impl Iterator<Item = T> + Clone,
) -> Option<T> {
    let mut stack = [T::default(); VOTERS_ON_STACK];
    let mut count = 0;
    for value in reached.clone() {
        if count == VOTERS_ON_STACK {
            let mut heap: Vec<T> = reached.collect();
            heap.sort_unstable();
            return reached_by_majority(&heap);
        }
        // Each in its place as it comes: they are few, and most often in order.
        let mut at = count;
        while at > 0 && stack[at - 1] > value {
            stack[at] = stack[at - 1];
            at -= 1;
        }
        stack[at] = value;
        count += 1;
    }
    reached_by_majority(&stack[..count])
}

/// Of values in ascending order.
fn reached_by_majority<T: Copy>(values: &[T]) -> Option<T> {
    let count = values.len();
    // With n voters, n - n/2 - 1 of them may lie below what a majority has reached.
    values.get(count.checked_sub(count / 2 + 1)?).copied()
}

/// The lower of what two majorities have reached; without voters in either, the highest index.
pub(crate) fn both_reached(incoming: Option<Index>, outgoing: Option<Index>) -> Index {
    match (incoming, outgoing) {
        (Some(a), Some(b)) => a.min(b),
        (a, b) => a.or(b).unwrap_or(Index::new(u64::MAX)),
    }
}

/// The outcome of a vote among one set of voters, each yes, no or not heard of.
pub(crate) fn majority_vote(votes: impl Iterator<Item = Option<bool>>) -> VoteResult {
    let (mut voters, mut yes, mut missing) = (0_usize, 0_usize, 0_usize);
    for vote in votes {
        voters += 1;
        match vote {
            Some(true) => yes += 1,
            Some(false) => {}
            None => missing += 1,
        }
    }
    let quorum = voters / 2 + 1;
    if voters == 0 || yes >= quorum {
        VoteResult::Won
    } else if yes + missing >= quorum {
        VoteResult::Pending
    } else {
        VoteResult::Lost
    }
}
