//! What a crash left behind, removed at the next start.

use raft_proto::Index;

use super::SnapshotEnv;
use crate::dir_name::{self, DirName};
use crate::error::SnapshotError;

/// What a sweep removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// Names of directories removed, temporary ones first.
    pub removed: Vec<String>,
}

impl SnapshotEnv {
    /// Cleans up after a crash, before the replica starts: temporary directories go, committed
    /// ones that the log does not name go, and those that it names lose their flag.
    ///
    /// `named` is what the log records of this replica. With `log_is_damaged`, committed ones stay
    /// whatever the log says: its newest record may be what is missing. Names that are not ours
    /// are left alone. Doing it twice changes nothing.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Io`]; the rest goes with the next sweep.
    pub fn sweep(
        &self,
        named: &[Index],
        log_is_damaged: bool,
    ) -> Result<SweepReport, SnapshotError> {
        let mut report = SweepReport::default();
        for found in self.vfs.list(&self.dir)? {
            if found.is_dir && DirName::parse(&found.name) == Some(DirName::Temporary) {
                self.vfs.remove_dir_all(&self.dir.join(&found.name))?;
                report.removed.push(found.name);
            }
        }
        for index in self.committed()? {
            if named.contains(&index) {
                self.remove_flag(index)?;
            } else if !log_is_damaged {
                self.remove(index)?;
                report.removed.push(dir_name::committed(index));
            }
        }
        if !report.removed.is_empty() {
            self.vfs.sync_dir(&self.dir)?;
        }
        Ok(report)
    }
}
