//! Engines on threads of their own: what happens to their callers when a worker is gone.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use raft_engine::{
    Applied, Command, Completion, Engine, EngineConfig, Event, Events, Outbound, Parts,
    RequestError, Responder, SaveCursor, SaveStep, SnapshotRead, SnapshotTransfer, Start,
    StartGroup, StateMachine, StateMachineError,
};
use raft_log::LaneOptions;
use raft_log::vfs::StdVfs;
use raft_proto::{Envelope, GroupId, HostId, ReplicaId};

/// Nothing here takes long: a wait that lasts this long has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// A way to other hosts that panics, and an ear.
struct World(mpsc::Sender<Event>);

impl Outbound for World {
    fn send(&self, _to: HostId, _messages: Vec<Envelope>) {
        panic!("no way out");
    }

    fn send_snapshot(&self, _to: HostId, transfer: SnapshotTransfer) {
        transfer.report.failed();
    }
}

impl Events for World {
    fn event(&self, event: Event) {
        // The test may have ended.
        let _ = self.0.send(event);
    }
}

struct To<T>(mpsc::Sender<Result<T, RequestError>>);

impl<T: Send> Completion<T> for To<T> {
    fn complete(&self, outcome: Result<T, RequestError>) {
        // The test may have ended.
        let _ = self.0.send(outcome);
    }
}

fn ask<T: Send + 'static>(call: impl FnOnce(Responder<T>)) -> Result<T, RequestError> {
    let (sender, outcome) = mpsc::channel();
    call(Responder::new(Arc::new(To(sender))));
    outcome.recv_timeout(PATIENCE).expect("an answer")
}

struct Nothing;

impl StateMachine for Nothing {
    fn apply(&mut self, _: Command<'_>) -> Result<Bytes, StateMachineError> {
        Ok(Bytes::new())
    }

    fn query(&mut self, _: &[u8]) -> Result<Bytes, StateMachineError> {
        Ok(Bytes::new())
    }

    fn save_next(
        &mut self,
        _: &mut SaveCursor,
        _: &mut BytesMut,
    ) -> Result<SaveStep, StateMachineError> {
        Ok(SaveStep::Done)
    }

    fn restore(&mut self, _: &mut dyn SnapshotRead) -> Result<(), StateMachineError> {
        Ok(())
    }
}

#[test]
fn a_worker_that_panics_fails_the_host_and_every_caller_is_answered() {
    let dir = tempfile::tempdir().expect("a directory");
    let (heard, events) = mpsc::channel();
    let world = Arc::new(World(heard));
    let parts = Parts {
        vfs: Arc::new(StdVfs::default()),
        data_dir: dir.path().to_owned(),
        lane: LaneOptions::default(),
        outbound: world.clone(),
        events: world,
    };
    let (engine, workers) = Engine::open(EngineConfig::default(), parts).expect("it opens");
    let running = workers.spawn();
    let group = GroupId::new(1).expect("not 0");
    let replica = |id| ReplicaId::new(id).expect("not 0");
    let host = |id| HostId::new(id).expect("not 0");
    let start = StartGroup {
        group,
        replica: replica(1),
        epoch: 1,
        start: Start::Bootstrap {
            members: BTreeMap::from([(replica(1), host(1)), (replica(2), host(2))]),
        },
        machine: Box::new(Nothing),
    };
    // Its first message is the end of the worker: at the latest when it asks for votes.
    let started = ask(|responder| engine.start_group(start, responder));
    let reason = std::iter::from_fn(|| events.recv_timeout(PATIENCE).ok())
        .find_map(|event| match event {
            Event::HostFailed { reason } => Some(reason),
            _ => None,
        })
        .expect("the host fails");
    assert!(
        reason.contains("raft-step-0") && reason.contains("no way out"),
        "{reason}"
    );
    assert!(
        matches!(started, Ok(()) | Err(RequestError::Terminated)),
        "{started:?}"
    );
    for _ in 0..2 {
        let outcome: Result<Applied, _> =
            ask(|responder| engine.propose(group, Bytes::new(), None, responder));
        assert!(
            matches!(outcome, Err(RequestError::Terminated)),
            "{outcome:?}"
        );
    }
    drop(running);
}
