//! A fourth host joins, is fed by a stream, and becomes a voter.

use std::future::Future;

use raft_host::{Applied, NextStep, ProposeError, SnapshotOutcome, SnapshotRequest, Start};

use crate::common::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_fourth_host_is_fed_by_a_stream_and_promoted() {
    let mut fleet = Fleet::new();
    let mut hosts = fleet.open_all(&[1, 2, 3]).await;
    let mut handles = found(&hosts, 1).await;
    for number in 0..50 {
        propose(&handles, format!("line {number}").as_bytes()).await;
    }
    settle(&handles).await;
    for handle in handles.values() {
        let outcome = handle.request_snapshot(SnapshotRequest::default()).await;
        assert!(
            matches!(outcome, Ok(SnapshotOutcome::Completed(_))),
            "{outcome:?}"
        );
    }
    for handle in handles.values() {
        let status = handle.status().await.expect("a status");
        assert!(status.first.get() > 30, "the log was compacted: {status:?}");
    }

    let node = fleet.open(4).await;
    hosts.insert(4, node);
    fleet.introduce(&hosts);
    let joined = start_on(&hosts[&4], 1, 4, Start::Join).await;
    let lead = leader(&handles).await;
    changed(|| handles[&lead].add_learner(replica(4), host(4))).await;
    until("a streamed snapshot", || async {
        let status = joined.status().await.ok()?;
        (status.installed_from_stream && status.applied.get() > 50).then_some(())
    })
    .await;
    changed(|| handles[&lead].promote(replica(4))).await;
    handles.insert(4, joined);
    propose(&handles, b"after").await;
    let status = settle(&handles).await;
    assert_eq!(status.membership.voters.len(), 4);
    assert!(read(&handles[&4]).await.ends_with("after"));
    assert!(hosts[&4].stats().network.snapshot_bytes_received > 0);

    // What was streamed is durable: it survives a restart.
    let node = hosts.remove(&4).expect("it is there");
    handles.remove(&4);
    node.close().await.expect("it closes");
    let node = fleet.open(4).await;
    hosts.insert(4, node);
    fleet.introduce(&hosts);
    handles.insert(4, start_on(&hosts[&4], 1, 4, Start::Restart).await);
    assert_eq!(settle(&handles).await.state_hash, status.state_hash);

    // And it can be led by the newcomer, and do without an elder.
    let lead = leader(&handles).await;
    if lead != 4 {
        handles[&lead]
            .transfer_leadership(replica(4))
            .await
            .expect("it takes over");
    }
    changed(|| handles[&4].remove(replica(1))).await;
    let status = handles[&4].status().await.expect("a status");
    assert_eq!(status.membership.voters.len(), 3);
    handles[&4].propose("with three").await.expect("it leads");
    close(hosts).await;
}

/// Changes the membership; a leader that has just begun, or has another change pending, is asked
/// again.
async fn changed<F: Future<Output = Result<Applied, ProposeError>>>(change: impl Fn() -> F) {
    until("a membership change", || async {
        match change().await {
            Ok(_) => Some(()),
            Err(error) if error.next_step() == NextStep::Retry => None,
            Err(error) => panic!("{error}"),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exported_snapshot_lies_where_it_was_asked_for_and_verifies() {
    let mut fleet = Fleet::new();
    let hosts = fleet.open_all(&[1]).await;
    let handles = found(&hosts, 1).await;
    propose(&handles, b"one").await;
    let to = fleet.path().join("export");
    std::fs::create_dir(&to).expect("a directory");
    let request = SnapshotRequest {
        export: Some(to.clone()),
        ..SnapshotRequest::default()
    };
    let outcome = handles[&1].request_snapshot(request).await;
    let Ok(SnapshotOutcome::Completed(index)) = outcome else {
        panic!("{outcome:?}");
    };
    let exported = to.join(format!("snapshot-{:016x}", index.get()));
    let vfs = std::sync::Arc::new(raft_log::vfs::StdVfs::new());
    let manifest = raft_snapshot::verify(vfs, &exported).expect("it verifies");
    assert_eq!(manifest.meta.group, group(1));
    // It compacted nothing, and an ordinary one is not made old by it.
    let outcome = handles[&1]
        .request_snapshot(SnapshotRequest::default())
        .await;
    assert!(
        matches!(outcome, Ok(SnapshotOutcome::Completed(_))),
        "{outcome:?}"
    );
    assert_eq!(read(&handles[&1]).await, "one");
    close(hosts).await;
}
