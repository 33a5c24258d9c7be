//! raft-engine
