//! raft-snapshot
