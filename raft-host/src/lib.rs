//! raft-host
