//! What this host has seen of others: the highest uuid and open count of each, kept durably before
//! the peer's first message counts.
//!
//! A host whose disk was wiped, swapped or rolled back has forgotten votes and acknowledgements; it
//! comes with another uuid or a lower count and is refused until an operator says
//! [`forget`](crate::NodeHost::forget).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use raft_proto::HostId;

use super::{DataDirError, hex, parse_hex, read_checked, write_checked};

/// Hosts that are remembered: far more than a deployment has.
const HOSTS_MAX: usize = 65_536;
const BYTES_MAX: u64 = 8 << 20;
/// A peer that was refused so often since it was last taken is refused for good: each restart
/// raises the count of a rolled-back directory too, and would in the end lift it past the record.
const REFUSALS_MAX: u32 = 8;

/// A peer is not who it was.
#[derive(Debug)]
pub(crate) enum PeerRefused {
    /// Its directory was wiped, swapped or rolled back.
    Replaced,
    /// The record could not be written.
    NotRecorded(DataDirError),
}

/// The record of all peers.
#[derive(Debug)]
pub(crate) struct Peers {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    seen: BTreeMap<HostId, Seen>,
    /// Refusals since a peer was last taken; not kept over a restart.
    refusals: BTreeMap<HostId, u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    uuid: [u8; 16],
    open_count: u64,
    is_barred: bool,
}

impl Peers {
    pub(super) fn open(dir: &Path) -> Result<Self, DataDirError> {
        let path = dir.join("PEERS");
        let seen = match read_checked(&path, BYTES_MAX)? {
            Some(text) => parse(&text).ok_or_else(|| DataDirError::Damaged {
                path: path.clone(),
                reason: "a line is none of a host",
            })?,
            None => BTreeMap::new(),
        };
        let state = Mutex::new(State {
            seen,
            ..State::default()
        });
        Ok(Self { path, state })
    }

    /// Decides about a peer that introduces itself. What it says is durable before it is taken.
    pub(crate) fn admit(
        &self,
        host: HostId,
        uuid: [u8; 16],
        open_count: u64,
    ) -> Result<(), PeerRefused> {
        let mut state = self.lock();
        let news = Seen {
            uuid,
            open_count,
            is_barred: false,
        };
        let before = state.seen.get(&host).copied();
        match before {
            Some(seen) if seen == news => {
                state.refusals.remove(&host);
                return Ok(());
            }
            Some(seen) if seen.is_barred => return Err(PeerRefused::Replaced),
            Some(seen) if seen.uuid != uuid => return Err(PeerRefused::Replaced),
            Some(seen) if seen.open_count > open_count => {
                let refusals = state.refusals.entry(host).or_default();
                *refusals += 1;
                if *refusals >= REFUSALS_MAX {
                    let barred = Seen {
                        is_barred: true,
                        ..seen
                    };
                    self.record(&mut state, host, Some(barred))?;
                }
                return Err(PeerRefused::Replaced);
            }
            None if state.seen.len() >= HOSTS_MAX => {
                return Err(PeerRefused::NotRecorded(DataDirError::Damaged {
                    path: self.path.clone(),
                    reason: "it is full: forget hosts that are gone",
                }));
            }
            Some(_) | None => {}
        }
        self.record(&mut state, host, Some(news))?;
        state.refusals.remove(&host);
        Ok(())
    }

    /// Forgets a peer, durably: whoever comes next under its id is taken as it is.
    pub(crate) fn forget(&self, host: HostId) -> Result<(), DataDirError> {
        let mut state = self.lock();
        state.refusals.remove(&host);
        if !state.seen.contains_key(&host) {
            return Ok(());
        }
        self.replace(&mut state, host, None)
    }

    fn record(
        &self,
        state: &mut State,
        host: HostId,
        seen: Option<Seen>,
    ) -> Result<(), PeerRefused> {
        self.replace(state, host, seen)
            .map_err(PeerRefused::NotRecorded)
    }

    /// Writes first: what is remembered is never ahead of the disk.
    fn replace(
        &self,
        state: &mut State,
        host: HostId,
        seen: Option<Seen>,
    ) -> Result<(), DataDirError> {
        let mut next = state.seen.clone();
        match seen {
            Some(seen) => next.insert(host, seen),
            None => next.remove(&host),
        };
        write_checked(&self.path, to_text(&next))?;
        state.seen = next;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The maps are changed only after the file was written.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn to_text(all: &BTreeMap<HostId, Seen>) -> String {
    let mut text = String::from("version 1\n");
    for (host, seen) in all {
        let state = if seen.is_barred { "barred" } else { "known" };
        let _ = writeln!(
            text,
            "{host} {} {} {state}",
            hex(&seen.uuid),
            seen.open_count
        );
    }
    text
}

fn parse(text: &str) -> Option<BTreeMap<HostId, Seen>> {
    let mut lines = text.lines();
    if lines.next() != Some("version 1") {
        return None;
    }
    let mut all = BTreeMap::new();
    for line in lines {
        let mut words = line.split(' ');
        let host = HostId::new(words.next()?.parse().ok()?)?;
        let seen = Seen {
            uuid: parse_hex(words.next()?)?,
            open_count: words.next()?.parse().ok()?,
            is_barred: match words.next()? {
                "known" => false,
                "barred" => true,
                _ => return None,
            },
        };
        if words.next().is_some() || all.insert(host, seen).is_some() || all.len() > HOSTS_MAX {
            return None;
        }
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: [u8; 16] = [7; 16];
    const OTHER: [u8; 16] = [8; 16];

    fn host(id: u64) -> HostId {
        HostId::new(id).expect("an id")
    }

    fn is_replaced(outcome: Result<(), PeerRefused>) -> bool {
        matches!(outcome, Err(PeerRefused::Replaced))
    }

    #[test]
    fn fault_21_another_uuid_is_refused_over_restarts_until_forgotten() {
        let dir = tempfile::tempdir().expect("a directory");
        let open = || Peers::open(dir.path()).expect("it opens");
        open().admit(host(2), UUID, 5).expect("it is new");
        assert!(is_replaced(open().admit(host(2), OTHER, 1)));
        assert!(is_replaced(open().admit(host(2), OTHER, 9)));
        open().admit(host(3), OTHER, 1).expect("another host");
        open().admit(host(2), UUID, 5).expect("itself again");
        open().forget(host(2)).expect("forgotten");
        open().admit(host(2), OTHER, 1).expect("forgotten");
        assert!(is_replaced(open().admit(host(2), UUID, 5)));
    }

    #[test]
    fn fault_22_a_lower_count_is_refused_and_in_the_end_for_good() {
        let dir = tempfile::tempdir().expect("a directory");
        let peers = Peers::open(dir.path()).expect("it opens");
        peers.admit(host(2), UUID, 5).expect("new");
        peers.admit(host(2), UUID, 6).expect("it was opened again");
        assert!(is_replaced(peers.admit(host(2), UUID, 5)));
        peers
            .admit(host(2), UUID, 7)
            .expect("a late greeting does no harm");
        // A rolled-back directory raises its count with each restart.
        for _ in 0..REFUSALS_MAX {
            assert!(is_replaced(peers.admit(host(2), UUID, 3)));
        }
        assert!(is_replaced(peers.admit(host(2), UUID, 8)));
        drop(peers);
        let peers = Peers::open(dir.path()).expect("it opens");
        assert!(is_replaced(peers.admit(host(2), UUID, 9)));
        peers.forget(host(2)).expect("forgotten");
        peers.admit(host(2), UUID, 3).expect("forgotten");
    }

    #[test]
    fn a_damaged_record_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let peers = Peers::open(dir.path()).expect("it opens");
        peers.admit(host(2), UUID, 5).expect("new");
        let path = dir.path().join("PEERS");
        let mut bytes = std::fs::read(&path).expect("a file");
        bytes[12] ^= 1;
        std::fs::write(&path, bytes).expect("written");
        assert!(Peers::open(dir.path()).is_err());
    }
}
