//! Which committed snapshots may go once newer ones are recorded.

use raft_proto::Index;

use super::SnapshotEnv;
use crate::error::SnapshotError;

impl SnapshotEnv {
    /// Removes committed snapshots that lie before the newest of `named` and are not in it.
    ///
    /// `named` is what the log records, durably. Whatever lies past its newest is not this call's
    /// business: it belongs to a later record, or to one under way, so that a call that comes late
    /// removes nothing that was recorded after it was made. With nothing named, nothing goes.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Io`]; what is left is removed by the next call or the next
    /// [`Self::sweep`].
    pub fn retain(&self, named: &[Index]) -> Result<(), SnapshotError> {
        let Some(&newest) = named.iter().max() else {
            return Ok(());
        };
        for index in self.committed()? {
            if index < newest && !named.contains(&index) {
                self.remove(index)?;
            }
        }
        Ok(())
    }
}
