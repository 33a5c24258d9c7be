//! Three hosts replicate, restart, and lose one of them.

use std::time::Duration;

use raft_host::{Bytes, ProposeError, Start};

use crate::common::*;

#[tokio::test(flavor = "multi_thread")]
async fn three_hosts_replicate_and_keep_everything_over_a_restart() {
    let mut fleet = Fleet::new();
    let hosts = fleet.open_all(&[1, 2, 3]).await;
    let handles = found(&hosts, 7).await;
    for number in 0..20 {
        propose(&handles, format!("line {number}").as_bytes()).await;
    }
    let before = read(&handles[&1]).await;
    assert_eq!(before.lines().count(), 20);
    let at = settle(&handles).await;
    for handle in handles.values() {
        assert_eq!(
            read(handle).await,
            before,
            "a linearizable read on each host"
        );
    }
    assert!(hosts[&1].stats().log.fdatasyncs > 0);
    assert!(hosts[&1].stats().network.messages_sent > 0);
    close(hosts).await;

    let hosts = fleet.open_all(&[1, 2, 3]).await;
    for node in hosts.values() {
        let recovered = node.recovered();
        assert_eq!(recovered.len(), 1);
        assert_eq!(
            (recovered[0].group, &recovered[0].damage),
            (group(7), &None)
        );
        assert_eq!(node.identity().open_count, 2);
    }
    let handles = start(&hosts, 7, &Start::Restart).await;
    assert_eq!(read(&handles[&2]).await, before);
    let after = settle(&handles).await;
    assert_eq!(after.state_hash, at.state_hash);
    close(hosts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_three_go_on_and_the_third_catches_up() {
    let mut fleet = Fleet::new();
    let mut hosts = fleet.open_all(&[1, 2, 3]).await;
    let mut handles = found(&hosts, 1).await;
    propose(&handles, b"before").await;
    let gone = leader(&handles).await;
    handles.remove(&gone);
    hosts
        .remove(&gone)
        .expect("it is there")
        .close()
        .await
        .expect("it closes");
    propose(&handles, b"meanwhile").await;
    let node = fleet.open(gone).await;
    hosts.insert(gone, node);
    fleet.introduce(&hosts);
    handles.insert(gone, start_on(&hosts[&gone], 1, gone, Start::Restart).await);
    settle(&handles).await;
    let text = read(&handles[&gone]).await;
    assert!(
        text.contains("before") && text.contains("meanwhile"),
        "{text}"
    );
    close(hosts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_take_effect_in_the_order_of_the_calls() {
    let mut fleet = Fleet::new();
    let hosts = fleet.open_all(&[1, 2, 3]).await;
    let handles = found(&hosts, 1).await;
    let leader = &handles[&leader(&handles).await];
    let mut pending = Vec::new();
    for number in 0..100 {
        pending.push(leader.propose(format!("{number}")));
    }
    for (number, outcome) in pending.into_iter().enumerate() {
        let applied = outcome.await.expect("it leads");
        assert_eq!(applied.result, (number + 1).to_string());
    }
    // One that nobody waits for is done all the same.
    drop(leader.propose("last"));
    until("the last line", || async {
        read(leader).await.ends_with("last").then_some(())
    })
    .await;
    close(hosts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_names_the_leaders_host_and_a_lone_host_times_out() {
    let mut fleet = Fleet::new();
    let mut hosts = fleet.open_all(&[1, 2, 3]).await;
    let handles = found(&hosts, 1).await;
    propose(&handles, b"one").await;
    settle(&handles).await;
    let lead = leader(&handles).await;
    let follower = if lead == 1 { 2 } else { 1 };
    match handles[&follower].propose("x").await {
        Err(error @ ProposeError::NotLeader { .. }) => {
            let next = raft_host::NextStep::RetryElsewhere {
                leader: Some(host(lead)),
            };
            assert_eq!(error.next_step(), next);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(handles[&follower].leader(), Some(replica(lead)));
    assert!(handles[&lead].is_leader());

    let alone = hosts.remove(&lead).expect("it is there");
    close(hosts).await;
    let short = handles[&lead].with_timeout(Duration::from_millis(50));
    match short.propose("nobody hears it").await {
        Err(error) => assert_eq!(error.next_step(), raft_host::NextStep::FindOut, "{error}"),
        Ok(applied) => panic!("{applied:?}"),
    }
    close([(lead, alone)].into()).await;
    // A handle outlives its host and says so.
    assert!(matches!(
        handles[&lead].propose(Bytes::new()).await,
        Err(ProposeError::HostDown { .. })
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_together_exceed_record_and_message_are_split() {
    let mut fleet = Fleet::new();
    let hosts = fleet.open_all(&[1, 2, 3]).await;
    let handles = found(&hosts, 1).await;
    propose(&handles, b"first").await;
    let leader = &handles[&leader(&handles).await];
    // A record takes 256 KiB, a segment 1 MiB: forty of these are far more than either.
    let line = vec![b'x'; 100 << 10];
    let pending: Vec<_> = (0..40).map(|_| leader.propose(line.clone())).collect();
    for outcome in pending {
        outcome.await.expect("it is applied");
    }
    let status = settle(&handles).await;
    assert!(status.applied.get() > 40, "{status:?}");
    for node in hosts.values() {
        assert!(node.stats().log.written_bytes > 40 * (100 << 10));
    }
    close(hosts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_over_the_bound_is_refused_and_one_at_the_bound_is_not() {
    let fleet = Fleet::new();
    let mut config = fleet.config(1);
    config.engine.proposal_bytes_max = 64 << 10;
    let node = raft_host::NodeHost::open(config).await.expect("it opens");
    let start = Start::Bootstrap {
        members: members(&[1]),
    };
    let alone = start_on(&node, 1, 1, start).await;
    alone.wait_for_leader().await.expect("it leads alone");
    alone
        .propose(vec![0; 64 << 10])
        .await
        .expect("at the bound");
    let error = alone.propose(vec![0; (64 << 10) + 1]).await;
    let error = error.expect_err("over the bound");
    assert_eq!(error.next_step(), raft_host::NextStep::GiveUp, "{error}");
    node.close().await.expect("it closes");
}
