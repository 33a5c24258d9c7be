//! The words of the protocol as types: ids, terms, indexes, hard state.

use core::fmt;
use core::num::NonZeroU64;

use serde::{Deserialize, Serialize};

/// Monotonic time in nanoseconds. The core never reads a clock: whoever drives it passes time in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    /// Adds a span in nanoseconds, saturating at the end of time.
    #[must_use]
    pub const fn plus_nanos(self, nanos: u64) -> Self {
        Self(self.0.saturating_add(nanos))
    }

    /// Returns the nanoseconds since `earlier`, zero if `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// An id is 0 or one of the two highest values of `u64`, which no id may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no valid id: ids are not 0 and lie below 2^64-2")]
pub struct InvalidId(pub u64);

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "u64", into = "u64")]
        pub struct $name(NonZeroU64);

        impl $name {
            /// Makes an id, or `None` for 0 and values from 2^64-2 up.
            #[must_use]
            pub const fn new(value: u64) -> Option<Self> {
                if value >= u64::MAX - 1 {
                    return None;
                }
                match NonZeroU64::new(value) {
                    Some(value) => Some(Self(value)),
                    None => None,
                }
            }

            /// The id as a number.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0.get()
            }
        }

        impl TryFrom<u64> for $name {
            type Error = InvalidId;

            fn try_from(value: u64) -> Result<Self, InvalidId> {
                Self::new(value).ok_or(InvalidId(value))
            }
        }

        impl From<$name> for u64 {
            fn from(id: $name) -> Self {
                id.get()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

id! {
    /// One Raft group: a replicated state machine.
    GroupId
}
id! {
    /// A member of a group. A replica lives on one host all its life; its id is never used again.
    ReplicaId
}
id! {
    /// A process with a data directory.
    HostId
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Before the first.
            pub const ZERO: Self = Self(0);

            /// Makes one from its number.
            #[must_use]
            pub const fn new(value: u64) -> Self {
                Self(value)
            }

            /// The number.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The one after this.
            ///
            /// # Panics
            ///
            /// At 2^64-1, which no message and no record may carry (decoders refuse it).
            #[must_use]
            #[inline]
            pub const fn next(self) -> Self {
                self.plus(1)
            }

            /// `count` further on.
            ///
            /// # Panics
            ///
            /// Past 2^64-1.
            #[must_use]
            #[inline]
            pub const fn plus(self, count: u64) -> Self {
                match self.0.checked_add(count) {
                    Some(value) => Self(value),
                    None => panic!("past 2^64-1"),
                }
            }

            /// The one before this, or `None` at zero.
            #[must_use]
            #[inline]
            pub const fn previous(self) -> Option<Self> {
                match self.0.checked_sub(1) {
                    Some(value) => Some(Self(value)),
                    None => None,
                }
            }

            /// How far this lies past `earlier`; zero if it does not.
            #[must_use]
            #[inline]
            pub const fn distance_from(self, earlier: Self) -> u64 {
                self.0.saturating_sub(earlier.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

counter! {
    /// A Raft term; zero before the first election. Source: thesis §3.3.
    Term
}
counter! {
    /// The place of an entry in its group's log; the first entry has index 1. Source: thesis §3.3.
    Index
}

/// An entry's place and term, which together name its content. Source: thesis §3.5 (log matching).
#[derive(
    Clone, Copy, Default, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct EntryId {
    /// The term, first, so that ids order as logs do: by term, then by index (thesis §3.6.1).
    pub term: Term,
    /// The index.
    pub index: Index,
}

impl EntryId {
    /// The place before the first entry.
    pub const ZERO: Self = Self {
        term: Term::ZERO,
        index: Index::ZERO,
    };

    /// Makes one.
    #[must_use]
    pub const fn new(term: Term, index: Index) -> Self {
        Self { term, index }
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.term, self.index)
    }
}

/// What a replica must know after a restart besides its log. Source: thesis Figure 3.1.
///
/// `commit` is as needed as the rest: membership changes are switched to when they are committed, and
/// a replica that came back without the commit index that came with an entry could stand under a
/// membership of the past. So it is durable with or before the entries of the same
/// [`Ready`](crate::Ready), in the order of submissions: one sync covers both. What is lost with a
/// Ready that held nothing else is found again by the next leader's word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HardState {
    /// The latest term this replica has seen.
    pub term: Term,
    /// The replica voted for in `term`.
    pub vote: Option<ReplicaId>,
    /// The highest index known to be committed.
    pub commit: Index,
}
