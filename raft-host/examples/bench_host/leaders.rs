//! Spreads the leaders evenly over the hosts.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use raft_host::{GroupHandle, HostEvent, HostId, NodeHost, ReplicaId};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, sleep, timeout};

/// Each host has one replica a group, with the host's own number.
pub(crate) fn replica_on(host: HostId) -> ReplicaId {
    ReplicaId::new(host.get()).expect("what is a host id is a replica id")
}

/// What may pass without any news before all groups are looked at again: a transfer can fail.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(55);

/// Hands on what others should lead, for as long as it runs.
pub(crate) async fn hand_on(host: Arc<NodeHost>, groups: Vec<GroupHandle>, voters: Vec<HostId>) {
    let own = replica_on(host.host());
    let mut events = host.events();
    loop {
        for (group, wanted) in wanted(&groups, &voters) {
            if wanted != own && group.is_leader() {
                // Whoever should lead may not have started yet: then it is tried again.
                drop(group.transfer_leadership(wanted));
            }
        }
        news(&mut events).await;
    }
}

/// Waits until each group is led by whom it should be, and returns those of this host.
pub(crate) async fn settled(
    host: &NodeHost,
    groups: &[GroupHandle],
    voters: &[HostId],
) -> Result<Vec<GroupHandle>> {
    let deadline = Instant::now() + PATIENCE;
    let mut events = host.events();
    loop {
        let is_wrong =
            |(group, wanted): &(&GroupHandle, ReplicaId)| group.leader() != Some(*wanted);
        let missing = wanted(groups, voters).filter(is_wrong).count();
        if missing == 0 {
            let led = groups.iter().filter(|group| group.is_leader());
            return Ok(led.cloned().collect());
        }
        ensure!(
            Instant::now() < deadline,
            "{missing} groups are not led by whom they should be"
        );
        news(&mut events).await;
    }
}

fn wanted<'a>(
    groups: &'a [GroupHandle],
    voters: &'a [HostId],
) -> impl Iterator<Item = (&'a GroupHandle, ReplicaId)> {
    let turns = voters.iter().map(|&voter| replica_on(voter)).cycle();
    groups.iter().zip(turns)
}

/// Waits for any news, or for a while. That some news was missed is news, too.
async fn news(events: &mut Receiver<HostEvent>) {
    if let Ok(Err(RecvError::Closed)) = timeout(LOOK_AGAIN, events.recv()).await {
        sleep(LOOK_AGAIN).await;
    }
}
