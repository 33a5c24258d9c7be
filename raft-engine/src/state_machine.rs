//! What a service author writes.

use bytes::{Bytes, BytesMut};
use raft_proto::{Index, Session, Term};

/// One committed command, as the state machine sees it.
#[derive(Clone, Copy, Debug)]
pub struct Command<'a> {
    /// Its place in the log. Rises with every call; places of other entries are left out.
    pub index: Index,
    /// Its term.
    pub term: Term,
    /// The leader's time when it appended the command, in milliseconds; never falls. The only
    /// time a state machine may use, because it is the same on every replica.
    pub leader_time_ms: u64,
    /// The client session, if the proposal carried one.
    pub session: Option<Session>,
    /// The command as proposed.
    pub payload: &'a [u8],
}

/// Where a save stands, kept by the machine between calls of [`StateMachine::save_next`].
///
/// Empty at the start of a save; its content is the machine's own affair.
#[derive(Clone, Debug, Default)]
pub struct SaveCursor(pub Vec<u8>);

/// Whether a save has more to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaveStep {
    /// Call again.
    More,
    /// That was all.
    Done,
}

/// Why a state machine cannot go on. Its group stops on this host; the host and the other groups
/// go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("state machine: {0}")]
pub struct StateMachineError(pub String);

/// The bytes of a snapshot, block by block, each checked before it is handed out.
pub trait SnapshotRead {
    /// The next bytes, or `None` at the end.
    ///
    /// # Errors
    ///
    /// The snapshot is damaged or cannot be read. Return the error: the restore is given up.
    fn next(&mut self) -> Result<Option<Bytes>, StateMachineError>;
}

/// A replicated state machine of the *exclusive* kind: while it is saved or restored, updates and
/// queries of its group wait.
///
/// It must be deterministic: the same commands in the same order give the same state and the same
/// results on every replica. An error or a panic stops its group on this host, never the process.
pub trait StateMachine: Send + 'static {
    /// Applies one command and returns what its proposer gets.
    ///
    /// # Errors
    ///
    /// Only if the machine cannot go on. A command that makes no sense is a *result*, not an error.
    fn apply(&mut self, command: Command<'_>) -> Result<Bytes, StateMachineError>;

    /// Answers a query without changing anything.
    ///
    /// # Errors
    ///
    /// Only if the machine cannot go on.
    fn query(&mut self, query: &[u8]) -> Result<Bytes, StateMachineError>;

    /// Appends the next bytes of the saved state to `out`; some hundred KiB a call are a good
    /// measure. The machine does not change between the calls of one save.
    ///
    /// # Errors
    ///
    /// Only if the machine cannot go on.
    fn save_next(
        &mut self,
        cursor: &mut SaveCursor,
        out: &mut BytesMut,
    ) -> Result<SaveStep, StateMachineError>;

    /// Replaces the whole state by a saved one.
    ///
    /// # Errors
    ///
    /// The bytes make no sense, or `source` failed.
    fn restore(&mut self, source: &mut dyn SnapshotRead) -> Result<(), StateMachineError>;

    /// A hash of the state, equal on all replicas at equal applied indexes; 0 if not offered.
    fn state_hash(&mut self) -> u64 {
        0
    }
}
