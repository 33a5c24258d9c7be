//! raft-transport
