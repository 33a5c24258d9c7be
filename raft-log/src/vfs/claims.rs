//! Which files this process has open or mapped, however often: one that is mapped through an older
//! handle, of a log that was closed and opened again, is not written over.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Device and inode: they name one file as long as somebody has it open or mapped.
pub(super) type FileName = (u64, u64);

/// That somebody has a file open or mapped, until it is dropped.
#[derive(Debug)]
pub(super) struct Claim(FileName);

static CLAIMS: Mutex<BTreeMap<FileName, usize>> = Mutex::new(BTreeMap::new());

fn claims() -> MutexGuard<'static, BTreeMap<FileName, usize>> {
    CLAIMS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether anybody claims the file.
pub(super) fn is_claimed(name: FileName) -> bool {
    claims().contains_key(&name)
}

impl Claim {
    pub(super) fn new(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let name = (metadata.dev(), metadata.ino());
        *claims().entry(name).or_default() += 1;
        Ok(Self(name))
    }

    pub(super) const fn name(&self) -> FileName {
        self.0
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut claims = claims();
        if let Some(count) = claims.get_mut(&self.0) {
            *count -= 1;
            if *count == 0 {
                claims.remove(&self.0);
            }
        }
    }
}
