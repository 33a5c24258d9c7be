//! Spreads the leaders evenly over the hosts.

use std::time::Duration;

use anyhow::{Result, ensure};
use raft_host::{GroupHandle, HostId, NodeHost, ReplicaId};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, timeout};

/// Each host has one replica a group, with the host's own number.
pub(crate) fn replica_on(host: HostId) -> ReplicaId {
    ReplicaId::new(host.get()).expect("what is a host id is a replica id")
}

/// What may pass without any news before all groups are looked at again: a transfer can fail.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(55);

/// Hands on what others should lead, and waits for what this host should; returns the latter.
pub(crate) async fn spread(
    host: &NodeHost,
    groups: &[GroupHandle],
    voters: &[HostId],
) -> Result<Vec<GroupHandle>> {
    let deadline = Instant::now() + PATIENCE;
    let mut events = host.events();
    let own = replica_on(host.host());
    loop {
        let mut missing = 0;
        for (place, group) in groups.iter().enumerate() {
            let wanted = replica_on(voters[place % voters.len()]);
            if wanted == own && !group.is_leader() {
                missing += 1;
            } else if wanted != own && group.is_leader() {
                missing += 1;
                // Whoever should lead may not have started yet: then it is tried again.
                drop(group.transfer_leadership(wanted));
            }
        }
        if missing == 0 {
            break;
        }
        ensure!(
            Instant::now() < deadline,
            "{missing} groups are not led by whom they should be"
        );
        // Any news will do, and that some were missed is news, too.
        if let Ok(Err(RecvError::Closed)) = timeout(LOOK_AGAIN, events.recv()).await {
            break;
        }
    }
    let led = groups.iter().filter(|group| group.is_leader());
    Ok(led.cloned().collect())
}
