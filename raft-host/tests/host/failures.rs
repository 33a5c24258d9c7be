//! What fails on its own, and what takes the host with it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use raft_host::{
    Event, HostEvent, HostParts, NextStep, NodeHost, ProposeError, StartError, TransportIdentity,
};

use crate::common::*;

#[tokio::test(flavor = "multi_thread")]
async fn fault_41_a_group_that_panics_or_gives_up_stops_alone() {
    let mut fleet = Fleet::new();
    let hosts = fleet.open_all(&[1, 2, 3]).await;
    let mut events = hosts[&1].events();
    let poisoned = found(&hosts, 1).await;
    let giving_up = found(&hosts, 2).await;
    let sound = found(&hosts, 3).await;
    for handles in [&poisoned, &giving_up, &sound] {
        propose(handles, b"before").await;
    }
    for (handles, command) in [(&poisoned, POISON), (&giving_up, ERROR)] {
        let lead = &handles[&leader(handles).await];
        let error = lead.propose(command).await.expect_err("it fails");
        assert!(
            matches!(error, ProposeError::OutcomeUnknown { .. }),
            "{error}"
        );
        assert_eq!(error.next_step(), NextStep::FindOut);
    }
    // The command was committed: it takes the replica on every host with it, and only that.
    let mut failed = std::collections::BTreeSet::new();
    while failed.len() < 2 {
        let event = tokio::time::timeout(PATIENCE, events.recv()).await;
        if let HostEvent::Engine(Event::GroupFailed { group, .. }) =
            event.expect("in time").expect("nothing missed")
        {
            failed.insert(group);
        }
    }
    assert_eq!(failed, [group(1), group(2)].into());
    let error = poisoned[&1].propose("after").await.expect_err("it failed");
    assert!(error.to_string().contains("poisoned"), "{error}");
    propose(&sound, b"after").await;
    let status = settle(&sound).await;
    assert_eq!(read(&sound[&1]).await, "before\nafter", "{status:?}");
    close(hosts).await;
}

/// A disk whose syncs fail once it is told so.
#[derive(Debug)]
struct FailingDisk {
    disk: raft_log::vfs::StdVfs,
    has_failed: Arc<AtomicBool>,
}

mod failing_disk {
    //! The seam has many calls; all but the syncs pass through.

    use super::{FailingDisk, Ordering, Path};
    use raft_log::vfs::{DirEntry, FileId, Op, OpDone, OpId, Vfs, VfsError};
    use raft_proto::Time;

    impl FailingDisk {
        fn check(&self) -> Result<(), VfsError> {
            if !self.has_failed.load(Ordering::Acquire) {
                return Ok(());
            }
            Err(VfsError {
                op: "sync",
                path: "disk".into(),
                source: std::io::Error::other("the disk is gone"),
            })
        }
    }

    impl Vfs for FailingDisk {
        fn random(&self) -> Result<u64, VfsError> {
            self.disk.random()
        }
        fn create_dir_all(&self, path: &Path) -> Result<(), VfsError> {
            self.disk.create_dir_all(path)
        }
        fn list(&self, path: &Path) -> Result<Vec<DirEntry>, VfsError> {
            self.disk.list(path)
        }
        fn open(&self, path: &Path, create: bool) -> Result<FileId, VfsError> {
            self.disk.open(path, create)
        }
        fn close(&self, file: FileId) {
            self.disk.close(file);
        }
        fn len(&self, file: FileId) -> Result<u64, VfsError> {
            self.disk.len(file)
        }
        fn prepare(&self, file: FileId, len: u64) -> Result<(), VfsError> {
            self.disk.prepare(file, len)
        }
        fn read(&self, file: FileId, offset: u64, len: usize) -> Result<bytes::Bytes, VfsError> {
            self.disk.read(file, offset, len)
        }
        fn write(&self, file: FileId, offset: u64, data: &[u8]) -> Result<(), VfsError> {
            self.disk.write(file, offset, data)
        }
        fn sync(&self, file: FileId) -> Result<(), VfsError> {
            self.check().and_then(|()| self.disk.sync(file))
        }
        fn sync_dir(&self, path: &Path) -> Result<(), VfsError> {
            self.check().and_then(|()| self.disk.sync_dir(path))
        }
        fn rename(&self, from: &Path, to: &Path) -> Result<(), VfsError> {
            self.disk.rename(from, to)
        }
        fn replace(&self, from: &Path, to: &Path) -> Result<(), VfsError> {
            self.disk.replace(from, to)
        }
        fn remove_file(&self, path: &Path) -> Result<(), VfsError> {
            self.disk.remove_file(path)
        }
        fn remove_dir_all(&self, path: &Path) -> Result<(), VfsError> {
            self.disk.remove_dir_all(path)
        }
        fn submit(&self, op: Op) -> OpId {
            self.disk.submit(op)
        }
        fn completions(&self, now: Time) -> Vec<OpDone> {
            let mut done = self.disk.completions(now);
            if let Err(error) = self.check() {
                let failed = done.last_mut();
                if let Some(failed) = failed {
                    failed.result = Err(error);
                }
            }
            done
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_14_a_host_whose_log_cannot_be_synced_says_so_and_the_others_go_on() {
    let mut fleet = Fleet::new();
    let has_failed = Arc::new(AtomicBool::new(false));
    let config = fleet.config(1);
    let files = config.certificates.clone();
    let identity =
        TransportIdentity::from_pem_files(files.certificate, files.key, files.authorities);
    let parts = HostParts {
        identity: identity.expect("an identity"),
        vfs: Arc::new(FailingDisk {
            disk: raft_log::vfs::StdVfs::new(),
            has_failed: Arc::clone(&has_failed),
        }),
    };
    let failing = NodeHost::open_with(config, parts).await.expect("it opens");
    let mut hosts = fleet.open_all(&[2, 3]).await;
    fleet.know(1, failing.raft_addr());
    hosts.insert(1, failing);
    fleet.introduce(&hosts);
    let mut handles = found(&hosts, 1).await;
    propose(&handles, b"before").await;
    settle(&handles).await;
    has_failed.store(true, Ordering::Release);
    // Whoever leads, host 1 must write this.
    propose(&handles, b"after").await;
    let reason = tokio::time::timeout(PATIENCE, hosts[&1].failed()).await;
    let reason = reason.expect("it has failed");
    assert!(reason.contains("the disk is gone"), "{reason}");
    let error = handles[&1].propose("never").await.expect_err("it failed");
    assert!(matches!(error, ProposeError::HostDown { .. }), "{error}");
    assert_eq!(error.next_step(), NextStep::RetryElsewhere { leader: None });
    let start = hosts[&1].start_group(a_start(9, 1, raft_host::Start::Join));
    assert!(matches!(start.await, Err(StartError::HostDown { .. })));
    // Its connections are closed, and it closes in good order all the same.
    handles.remove(&1);
    let failed = hosts.remove(&1).expect("it is there");
    assert_eq!(
        failed.stats().network,
        Default::default(),
        "no transport any more"
    );
    failed.close().await.expect("it closes");
    propose(&handles, b"later").await;
    assert!(read(&handles[&2]).await.ends_with("later"));

    // Opened on a sound disk, it catches up.
    has_failed.store(false, Ordering::Release);
    drop(failed);
    let node = fleet.open(1).await;
    hosts.insert(1, node);
    fleet.introduce(&hosts);
    let again = start_on(&hosts[&1], 1, 1, raft_host::Start::Restart).await;
    handles.insert(1, again);
    settle(&handles).await;
    assert!(read(&handles[&1]).await.ends_with("later"));
    close(hosts).await;
}
