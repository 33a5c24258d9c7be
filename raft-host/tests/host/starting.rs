//! How a group comes to be on a host, and how it must not.

use raft_host::{NodeHost, Start, StartError};

use crate::common::*;

/// What a start that must not succeed says.
async fn refused(node: &NodeHost, id: u64, how: Start) -> StartError {
    node.start_group(a_start(id, node.host().get(), how))
        .await
        .expect_err("refused")
}

#[tokio::test(flavor = "multi_thread")]
async fn bootstrap_over_state_and_restart_without_it_are_refused() {
    let mut fleet = Fleet::new();
    let node = fleet.open(1).await;
    let founded = || Start::Bootstrap {
        members: members(&[1]),
    };
    let unknown = StartError::NoState(group(7));
    assert_eq!(refused(&node, 7, Start::Restart).await, unknown);
    assert!(node.group(group(7)).is_none());
    let handle = start_on(&node, 7, 1, founded()).await;
    handle.wait_for_leader().await.expect("it leads alone");
    handle.propose("one").await.expect("it leads");
    let running = StartError::AlreadyRunning(group(7));
    for how in [founded(), Start::Restart, Start::Join] {
        assert_eq!(refused(&node, 7, how).await, running);
    }
    // What was refused has not disturbed what runs.
    assert!(node.group(group(7)).expect("it runs").is_leader());
    node.close().await.expect("it closes");
    drop(node);

    let node = fleet.open(1).await;
    let exists = StartError::StateExists(group(7));
    assert_eq!(refused(&node, 7, founded()).await, exists);
    assert_eq!(refused(&node, 7, Start::Join).await, exists);
    assert_eq!(node.recovered_replica(group(7)), Some(replica(1)));
    let handle = start_on(&node, 7, 1, Start::Restart).await;
    assert_eq!(read(&handle).await, "one");
    assert_eq!(node.recovered_replica(group(7)), None);
    node.close().await.expect("it closes");
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_make_no_sense_are_refused() {
    let mut fleet = Fleet::new();
    let node = fleet.open(1).await;
    for hosts in [&[][..], &[2, 3]] {
        let members = members(hosts);
        let error = refused(&node, 1, Start::Bootstrap { members }).await;
        assert!(matches!(error, StartError::Invalid { .. }), "{error}");
    }
    let twice = [(replica(1), host(1)), (replica(2), host(1))].into();
    let error = refused(&node, 1, Start::Bootstrap { members: twice }).await;
    assert!(matches!(error, StartError::Invalid { .. }), "{error}");
    node.close().await.expect("it closes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_group_is_gone_and_its_host_serves_the_others() {
    let mut fleet = Fleet::new();
    let node = fleet.open(1).await;
    let founded = || Start::Bootstrap {
        members: members(&[1]),
    };
    let (one, two) = (
        start_on(&node, 1, 1, founded()).await,
        start_on(&node, 2, 1, founded()).await,
    );
    for handle in [&one, &two] {
        handle.wait_for_leader().await.expect("it leads alone");
    }
    node.stop_group(group(1)).await.expect("it stops");
    assert_eq!(node.groups(), [(group(2), replica(1))]);
    assert_eq!(
        node.stop_group(group(1)).await,
        Err(StartError::NotRunning(group(1)))
    );
    let error = one.propose("x").await.expect_err("it was stopped");
    assert_eq!(
        error.next_step(),
        raft_host::NextStep::RetryElsewhere { leader: None }
    );
    two.propose("x").await.expect("it runs");
    node.close().await.expect("it closes");
}
