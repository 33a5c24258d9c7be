//! The entries of one message: most often none or one batch, which then need no allocation.

use alloc::vec::{self, Vec};
use core::iter::Chain;
use core::ops::{Deref, DerefMut};
use core::{fmt, option, slice};

use crate::entry::Batch;

/// Batches one after the other, as an append carries them; reads as a slice.
///
/// One lies inside, more lie in a vector.
#[derive(Clone, Default)]
pub struct Entries {
    held: Held,
}

#[derive(Clone, Default)]
enum Held {
    #[default]
    None,
    One(Batch),
    Many(Vec<Batch>),
}

impl Entries {
    /// Makes an empty one.
    #[must_use]
    pub const fn new() -> Self {
        Self { held: Held::None }
    }

    /// Adds a batch at the end.
    pub fn push(&mut self, batch: Batch) {
        match &mut self.held {
            Held::None => self.held = Held::One(batch),
            Held::One(first) => {
                let batches = alloc::vec![first.clone(), batch];
                self.held = Held::Many(batches);
            }
            Held::Many(batches) => batches.push(batch),
        }
    }

    /// Takes out all of them, in order.
    pub(crate) fn take_each(&mut self, mut visit: impl FnMut(Batch)) {
        match core::mem::take(&mut self.held) {
            Held::None => {}
            Held::One(batch) => visit(batch),
            Held::Many(batches) => batches.into_iter().for_each(visit),
        }
    }
}

impl Deref for Entries {
    type Target = [Batch];

    fn deref(&self) -> &[Batch] {
        match &self.held {
            Held::None => &[],
            Held::One(batch) => slice::from_ref(batch),
            Held::Many(batches) => batches,
        }
    }
}

impl DerefMut for Entries {
    fn deref_mut(&mut self) -> &mut [Batch] {
        match &mut self.held {
            Held::None => &mut [],
            Held::One(batch) => slice::from_mut(batch),
            Held::Many(batches) => batches,
        }
    }
}

impl fmt::Debug for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl PartialEq for Entries {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Entries {}

impl From<Batch> for Entries {
    fn from(batch: Batch) -> Self {
        Self {
            held: Held::One(batch),
        }
    }
}

impl From<Vec<Batch>> for Entries {
    fn from(batches: Vec<Batch>) -> Self {
        Self {
            held: Held::Many(batches),
        }
    }
}

impl FromIterator<Batch> for Entries {
    fn from_iter<I: IntoIterator<Item = Batch>>(batches: I) -> Self {
        let mut entries = Self::new();
        for batch in batches {
            entries.push(batch);
        }
        entries
    }
}

impl IntoIterator for Entries {
    type Item = Batch;
    type IntoIter = Chain<option::IntoIter<Batch>, vec::IntoIter<Batch>>;

    fn into_iter(self) -> Self::IntoIter {
        let (one, many) = match self.held {
            Held::None => (None, Vec::new()),
            Held::One(batch) => (Some(batch), Vec::new()),
            Held::Many(batches) => (None, batches),
        };
        one.into_iter().chain(many)
    }
}

impl<'a> IntoIterator for &'a Entries {
    type Item = &'a Batch;
    type IntoIter = slice::Iter<'a, Batch>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'a> IntoIterator for &'a mut Entries {
    type Item = &'a mut Batch;
    type IntoIter = slice::IterMut<'a, Batch>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}

/// Where entries are gathered.
pub(crate) trait Gather {
    fn gather(&mut self, batch: Batch);
    fn has_none(&self) -> bool;
}

impl Gather for Entries {
    fn gather(&mut self, batch: Batch) {
        self.push(batch);
    }

    fn has_none(&self) -> bool {
        self.is_empty()
    }
}

impl Gather for Vec<Batch> {
    fn gather(&mut self, batch: Batch) {
        self.push(batch);
    }

    fn has_none(&self) -> bool {
        self.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{BatchBuilder, EntryKind};
    use crate::types::{GroupId, Index, Term};

    fn batch(index: u64) -> Batch {
        let group = GroupId::new(1).expect("valid");
        let mut builder = BatchBuilder::new(group, Term::new(1), Index::new(index), 0);
        builder.push(EntryKind::Command, 0, None, b"x");
        builder.finish().expect("one entry")
    }

    #[test]
    fn they_read_and_iterate_as_the_batches_that_were_pushed() {
        for count in 0..5 {
            let batches: Vec<Batch> = (1..=count).map(batch).collect();
            let mut entries: Entries = batches.iter().cloned().collect();
            assert_eq!(*entries, *batches);
            assert_eq!(entries, Entries::from(batches.clone()));
            assert_eq!(entries.clone().into_iter().collect::<Vec<_>>(), batches);
            if let Some(last) = entries.last_mut() {
                *last = batch(9);
                assert_eq!(entries.last().map(Batch::first), Some(batch(9).first()));
            }
        }
    }
}
