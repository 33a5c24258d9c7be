//! Whose directory, whose certificate, and what becomes of a host that is not who it was.

use std::time::Duration;

use raft_host::{
    ConnectionEnd, DataDirError, HostEvent, NodeHost, OpenError, RefusalKind, Start,
    TransportError, TransportEvent,
};
use tokio::sync::broadcast::Receiver;

use crate::common::*;

/// Waits for an event that `pick` picks.
async fn event<T>(
    events: &mut Receiver<HostEvent>,
    what: &str,
    pick: impl Fn(HostEvent) -> Option<T>,
) -> T {
    let waiting = async {
        loop {
            // A listener that was too slow goes on with what is left.
            if let Ok(event) = events.recv().await
                && let Some(picked) = pick(event)
            {
                return picked;
            }
        }
    };
    match tokio::time::timeout(PATIENCE, waiting).await {
        Ok(picked) => picked,
        Err(_) => panic!("waited in vain: {what}"),
    }
}

fn refused_by_peer(event: HostEvent) -> Option<RefusalKind> {
    match event {
        HostEvent::Network(
            TransportEvent::ConnectFailed {
                end: ConnectionEnd::RefusedByPeer(kind),
                ..
            }
            | TransportEvent::Disconnected {
                end: ConnectionEnd::RefusedByPeer(kind),
                ..
            },
        ) => Some(kind),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_21_a_wiped_disk_under_an_old_id_is_refused_until_forgotten() {
    let mut fleet = Fleet::new();
    let mut hosts = fleet.open_all(&[1, 2, 3]).await;
    let mut handles = found(&hosts, 1).await;
    propose(&handles, b"one").await;
    settle(&handles).await;

    // Host 1 is the one that dials: it hears how it is received.
    let gone = hosts.remove(&1).expect("it is there");
    handles.remove(&1);
    gone.close().await.expect("it closes");
    std::fs::remove_dir_all(fleet.data_dir(1)).expect("wiped");
    let mut events = hosts[&2].events();
    let wiped = fleet.open(1).await;
    let mut refusals = wiped.events();
    fleet.introduce(&hosts);
    let replaced = event(&mut events, "a replaced host", |event| match event {
        HostEvent::HostReplaced { host } => Some(host),
        _ => None,
    });
    assert_eq!(replaced.await, host(1));
    let kind = event(&mut refusals, "a refusal", refused_by_peer).await;
    assert_eq!(kind, RefusalKind::HostReplaced);

    // It founds the group anew, with itself and two who do not listen: nobody leads there, and the
    // others go on without it.
    let members = members(&[1, 2, 3]);
    let forgetful = start_on(&wiped, 1, 1, Start::Bootstrap { members }).await;
    propose(&handles, b"two").await;
    let hopeless = forgetful.with_timeout(Duration::from_millis(200));
    assert!(hopeless.read("").await.is_err());
    let status = forgetful.status().await.expect("a status");
    assert_eq!((status.term.get(), status.leader), (1, None));

    // An operator removes the replica, forgets the directory, and adds a replica of a new id.
    wiped.stop_group(group(1)).await.expect("it stops");
    wiped.close().await.expect("it closes");
    std::fs::remove_dir_all(fleet.data_dir(1)).expect("wiped");
    let lead = leader(&handles).await;
    until("the removal", || async {
        handles[&lead].remove(replica(1)).await.ok()
    })
    .await;
    for node in hosts.values() {
        node.forget(host(1)).await.expect("forgotten");
    }
    let fresh = fleet.open(1).await;
    hosts.insert(1, fresh);
    fleet.introduce(&hosts);
    let joined = start_on(&hosts[&1], 1, 11, Start::Join).await;
    until("a new replica", || async {
        handles[&lead].add_learner(replica(11), host(1)).await.ok()
    })
    .await;
    handles.insert(1, joined);
    settle(&handles).await;
    assert_eq!(read(&handles[&1]).await, "one\ntwo");
    close(hosts).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_22_a_rolled_back_directory_is_refused() {
    let mut fleet = Fleet::new();
    let hosts = fleet.open_all(&[1, 2]).await;
    let handles = found(&hosts, 1).await;
    propose(&handles, b"one").await;
    close(hosts).await;
    let (data, backup) = (fleet.data_dir(1), fleet.path().join("backup"));
    copy_dir(&data, &backup);
    // Twice opened since: what the backup will say after its restart has been seen before.
    for _ in 0..2 {
        let hosts = fleet.open_all(&[1, 2]).await;
        let handles = start(&hosts, 1, &Start::Restart).await;
        propose(&handles, b"more").await;
        close(hosts).await;
    }
    std::fs::remove_dir_all(&data).expect("removed");
    std::fs::rename(&backup, &data).expect("restored");
    let two = fleet.open(2).await;
    let mut events = two.events();
    let rolled_back = fleet.open(1).await;
    assert_eq!(
        rolled_back.identity().open_count,
        2,
        "two was 3 when last seen"
    );
    let replaced = event(&mut events, "a replaced host", |event| match event {
        HostEvent::HostReplaced { host } => Some(host),
        _ => None,
    });
    assert_eq!(replaced.await, host(1));
    close([(1, rolled_back), (2, two)].into()).await;
}

fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copied");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_23_a_directory_that_is_open_is_refused_and_stays_as_it_is() {
    let mut fleet = Fleet::new();
    let first = fleet.open(1).await;
    let before = contents(&fleet.data_dir(1));
    let mut config = fleet.config(1);
    config.listen.set_port(0);
    match NodeHost::open(config).await {
        Err(OpenError::DataDir(DataDirError::Locked { path })) => {
            assert_eq!(path, fleet.data_dir(1));
        }
        other => panic!("{other:?}"),
    }
    assert!(
        contents(&fleet.data_dir(1)) == before,
        "something was written"
    );
    first.close().await.expect("it closes");
    // Closed, it gives the directory back, even while something still holds the host.
    let second = fleet.open(1).await;
    assert_eq!(second.identity().open_count, 2);
    first.close().await.expect("a second time does nothing");
    second.close().await.expect("it closes");
    drop(first);
}

/// Another process, not only another handle of this one.
#[tokio::test(flavor = "multi_thread")]
async fn fault_23_a_directory_locked_by_another_process_is_refused() {
    let mut fleet = Fleet::new();
    fleet.open(1).await.close().await.expect("it closes");
    let lock = fleet.data_dir(1).join("LOCK");
    let mut other = std::process::Command::new("flock")
        .args(["--exclusive", "--nonblock"])
        .arg(&lock)
        .args(["sh", "-c", "echo held; read end"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("flock of util-linux runs");
    let mut held = [0; 5];
    std::io::Read::read_exact(other.stdout.as_mut().expect("piped"), &mut held).expect("it holds");
    let refused = fleet.try_open(1).await;
    assert!(
        matches!(
            refused,
            Err(OpenError::DataDir(DataDirError::Locked { .. }))
        ),
        "{refused:?}"
    );
    drop(other.stdin.take());
    other.wait().expect("it ends");
    fleet.open(1).await.close().await.expect("it closes");
}

/// The host's own files in a data directory and what they hold; log and snapshots are written by
/// whoever has it open.
fn contents(dir: &std::path::Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut all: Vec<_> = std::fs::read_dir(dir)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_file())
        .map(|path| (path.clone(), std::fs::read(path).expect("a file")))
        .collect();
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_another_host_or_deployment_is_refused() {
    let mut fleet = Fleet::new();
    fleet.open(1).await.close().await.expect("it closes");
    let mut config = fleet.config(2);
    config.data_dir = fleet.data_dir(1);
    match NodeHost::open(config).await {
        Err(OpenError::DataDir(DataDirError::OtherIdentity { field, .. })) => {
            assert_eq!(field, "host");
        }
        other => panic!("{other:?}"),
    }
    let mut config = fleet.config(1);
    fleet.certify(1, "h1.prod.raft");
    config.deployment = "prod".to_owned();
    match NodeHost::open(config).await {
        Err(OpenError::DataDir(DataDirError::OtherIdentity { field, found, .. })) => {
            assert_eq!((field, found.as_str()), ("deployment", "demo"));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_48_a_certificate_of_another_host_or_deployment_is_refused_before_anything_is_made() {
    let fleet = Fleet::new();
    for name in ["h2.demo.raft", "h1.prod.raft", "localhost"] {
        let config = fleet.config(1);
        fleet.certify(1, name);
        match NodeHost::open(config).await {
            Err(OpenError::Network(TransportError::OtherName { expected, found })) => {
                assert_eq!(
                    (expected.as_str(), found),
                    ("h1.demo.raft", vec![name.to_owned()])
                );
            }
            other => panic!("{other:?}"),
        }
        assert!(!fleet.data_dir(1).exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_48_a_host_of_another_deployment_is_refused_by_its_peers() {
    let mut fleet = Fleet::new();
    let two = fleet.open(2).await;
    let mut config = fleet.config(1);
    fleet.certify(1, "h1.prod.raft");
    config.deployment = "prod".to_owned();
    let stranger = NodeHost::open(config).await.expect("it opens");
    let mut events = stranger.events();
    stranger.registry().set(two.host(), two.raft_addr());
    // It finds out by itself that it is not among its own: nobody needs to tell it.
    let failed = event(&mut events, "a refusal", |event| match event {
        HostEvent::Network(TransportEvent::ConnectFailed { end, .. }) => Some(end),
        _ => None,
    });
    assert!(matches!(failed.await, ConnectionEnd::Refused(_)));
    assert_eq!(two.stats().network.connections, 0);
    close([(1, stranger), (2, two)].into()).await;
}

/// Disks or folders that were exchanged: each directory knows its own log.
#[tokio::test(flavor = "multi_thread")]
async fn fault_7_the_log_of_another_directory_is_refused() {
    let mut fleet = Fleet::new();
    let mut hosts = fleet.open_all(&[1, 2]).await;
    let handles = found(&hosts, 1).await;
    propose(&handles, b"one").await;
    settle(&handles).await;
    close(std::mem::take(&mut hosts)).await;
    let own = fleet.data_dir(1).join("log");
    let aside = fleet.data_dir(1).join("aside");
    std::fs::rename(&own, &aside).expect("moved away");
    copy_dir(&fleet.data_dir(2).join("log"), &own);
    let before = contents(&own.join("0"));
    let error = fleet.try_open(1).await.expect_err("refused");
    assert!(
        error.to_string().contains("another data directory"),
        "{error}"
    );
    assert_eq!(contents(&own.join("0")), before, "nothing was written");
    // The right one back, and all is well.
    std::fs::remove_dir_all(&own).expect("removed");
    std::fs::rename(&aside, &own).expect("moved back");
    let host = fleet.open(1).await;
    assert!(host.recovered_replica(group(1)).is_some());
    host.close().await.expect("it closes");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_out_of_bounds_are_refused_before_anything_is_made() {
    let fleet = Fleet::new();
    let refused = async |change: fn(&mut raft_host::HostConfig)| {
        let mut config = fleet.config(1);
        change(&mut config);
        let error = NodeHost::open(config).await.expect_err("refused");
        assert!(!fleet.data_dir(1).exists(), "{error}");
        error.to_string()
    };
    let text = refused(|config| config.request_timeout = Duration::ZERO).await;
    assert!(text.contains("request_timeout"), "{text}");
    let text = refused(|config| config.engine.step_workers = 0).await;
    assert!(text.contains("step_workers"), "{text}");
    let text = refused(|config| config.log.segment_size_bytes = 1).await;
    assert!(text.contains("segment_size_bytes"), "{text}");
    let text = refused(|config| config.network.bulk_lanes = 99).await;
    assert!(text.contains("bulk_lanes"), "{text}");
    let text = refused(|config| config.advertised = vec![0; 300].into()).await;
    assert!(text.contains("advertised"), "{text}");
    let text = refused(|config| config.certificates.key = "nowhere".into()).await;
    assert!(text.contains("nowhere"), "{text}");
}
