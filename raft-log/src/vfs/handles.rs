//! Open files by their ids, and whether anybody still uses one that is given up.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use super::FileId;
use crate::sync::{Arc, Mutex};

/// The open files.
#[derive(Debug)]
pub(super) struct Handles<T> {
    files: Mutex<Files<T>>,
}

#[derive(Debug)]
struct Files<T> {
    by_id: BTreeMap<FileId, Arc<T>>,
    last: u64,
}

/// What became of a file that was given up.
#[derive(Debug)]
pub(super) enum Retired<T> {
    /// There was none.
    Unknown,
    /// Whoever found it before still uses it.
    InUse,
    /// Nobody can reach it any more.
    Free(T),
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        let (by_id, last) = (BTreeMap::new(), 0);
        Self {
            files: Mutex::new(Files { by_id, last }),
        }
    }
}

impl<T> Handles<T> {
    fn with<R>(&self, change: impl FnOnce(&mut Files<T>) -> R) -> R {
        change(&mut self.files.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn insert(&self, file: T) -> FileId {
        self.with(|files| {
            files.last += 1;
            let id = FileId(files.last);
            files.by_id.insert(id, Arc::new(file));
            id
        })
    }

    pub(super) fn find(&self, id: FileId) -> Option<Arc<T>> {
        self.with(|files| files.by_id.get(&id).cloned())
    }

    pub(super) fn close(&self, id: FileId) {
        drop(self.with(|files| files.by_id.remove(&id)));
    }

    pub(super) fn retire(&self, id: FileId) -> Retired<T> {
        let removed = self.with(|files| files.by_id.remove(&id));
        removed.map_or(Retired::Unknown, |file| {
            unshared(file).map_or(Retired::InUse, Retired::Free)
        })
    }
}

/// Takes what nobody else holds. Not by the count alone: whoever dropped it last has read from it
/// before, and what follows must not be seen by that read.
pub(super) fn unshared<T>(shared: Arc<T>) -> Option<T> {
    Arc::try_unwrap(shared).ok()
}

#[cfg(all(test, loom))]
mod interleavings {
    use loom::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// A file, and what is mapped of it. Nothing but the counts orders what is done to the content.
    #[derive(Debug)]
    struct File {
        map: Arc<AtomicU64>,
    }

    #[test]
    fn a_segment_is_written_again_only_when_no_reader_is_left() {
        loom::model(|| {
            let handles = Arc::new(Handles::default());
            let map = Arc::new(AtomicU64::new(1));
            let id = handles.insert(File { map });
            let readers = [(); 2].map(|()| {
                let handles = Arc::clone(&handles);
                loom::thread::spawn(move || {
                    let Some(file) = handles.find(id) else {
                        return;
                    };
                    // A slice outlives the handle it was made through.
                    let slice = Arc::clone(&file.map);
                    drop(file);
                    let found = slice.load(Ordering::Relaxed);
                    assert_eq!(found, 1, "the old content, whatever comes after");
                })
            });
            if let Retired::Free(file) = handles.retire(id)
                && let Some(content) = unshared(file.map)
            {
                content.store(2, Ordering::Relaxed);
            }
            for reader in readers {
                reader.join().expect("no panic");
            }
        });
    }
}
