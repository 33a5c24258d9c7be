//! Snapshots streamed over real QUIC.

use std::sync::Arc;
use std::time::Duration;

use crate::common::{Authority, Book, Ears, Recorder, Told, config, group, host, replica, start};
use bytes::Bytes;
use raft_proto::Term;
use raft_transport::{
    BoxError, ConnectionEnd, SnapshotAbort, SnapshotFailure, SnapshotOffer, SnapshotOutcome,
    SnapshotRefusal, SnapshotSource, Transport,
};
use tokio::sync::oneshot;

fn offer() -> SnapshotOffer {
    SnapshotOffer {
        group: group(7),
        epoch: 1,
        from: replica(2),
        to: replica(1),
        term: Term::new(3),
        meta: Bytes::from_static(b"meta"),
        manifest: Bytes::from(vec![5; 4_096]),
    }
}

/// Yields what it was given, from the end.
struct Blocks(Vec<Result<Bytes, &'static str>>);

impl SnapshotSource for Blocks {
    fn next_block(&mut self) -> Result<Option<Bytes>, BoxError> {
        self.0.pop().transpose().map_err(Into::into)
    }
}

/// Yields one block and then waits for a word that never comes until the test ends.
struct Stalls {
    first: Option<Bytes>,
    word: std::sync::mpsc::Receiver<()>,
}

impl SnapshotSource for Stalls {
    fn next_block(&mut self) -> Result<Option<Bytes>, BoxError> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        self.word.recv()?;
        Ok(None)
    }
}

struct Pair {
    one: Transport,
    two: Transport,
    one_decides: Arc<Recorder>,
    one_hears: Ears,
}

impl Pair {
    /// Host 2 sends, host 1 receives: the sender dials, whoever has the lower id.
    fn new(silence: Duration) -> Self {
        let (authority, book) = (Authority::new(), Arc::new(Book::default()));
        let brisk = |id| {
            let mut config = config(id, "demo");
            config.limits.snapshot_silence = silence;
            config.limits.snapshot_streams_max = 1;
            config
        };
        let (one, one_decides, one_hears) = start(brisk(1), authority.identity(1, "demo"), &book);
        let (two, _, _) = start(brisk(2), authority.identity(2, "demo"), &book);
        Self {
            one,
            two,
            one_decides,
            one_hears,
        }
    }

    fn begin(&self, source: impl SnapshotSource + 'static) -> oneshot::Receiver<SnapshotOutcome> {
        let (told, outcome) = oneshot::channel();
        let done = Box::new(move |outcome| told.send(outcome).expect("the test listens"));
        self.two
            .send_snapshot(host(1), offer(), Box::new(source), done);
        outcome
    }

    async fn send(&self, blocks: Vec<Result<Bytes, &'static str>>) -> SnapshotOutcome {
        self.begin(Blocks(blocks)).await.expect("done is called")
    }

    async fn aborted(&mut self) -> SnapshotAbort {
        self.one_hears
            .wait(|told| match told {
                Told::Aborted(reason) => Some(reason),
                _ => None,
            })
            .await
    }
}

const PATIENT: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_arrives_whole_and_in_order() {
    let mut pair = Pair::new(PATIENT);
    let wanted: Vec<_> = (0..9_u8).map(|n| Bytes::from(vec![n; 1 << 20])).collect();
    *pair.one_decides.on_offer.lock().expect("no panic") = Box::new(|it| {
        assert_eq!(*it, offer());
        Ok(())
    });
    let outcome = pair
        .send(wanted.iter().rev().cloned().map(Ok).collect())
        .await;
    assert_eq!(outcome, SnapshotOutcome::Finished);
    let mut blocks = Vec::new();
    pair.one_hears
        .wait(|told| match told {
            Told::Block(block) => {
                blocks.push(block);
                None
            }
            Told::Finished => Some(()),
            _ => None,
        })
        .await;
    assert!(blocks == wanted);
    assert_eq!(pair.two.stats().snapshot_bytes_sent, 9 << 20);
    assert_eq!(pair.one.stats().snapshot_bytes_received, 9 << 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_offer_reaches_the_sender_with_its_reason() {
    let pair = Pair::new(PATIENT);
    *pair.one_decides.on_offer.lock().expect("no panic") =
        Box::new(|_| Err(SnapshotRefusal::OutOfDate));
    let outcome = pair.send(vec![Ok(Bytes::from_static(b"block"))]).await;
    assert_eq!(
        outcome,
        SnapshotOutcome::Refused(SnapshotRefusal::OutOfDate)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_that_fails_midway_ends_the_stream_with_its_reason() {
    let mut pair = Pair::new(PATIENT);
    *pair.one_decides.sink_fails.lock().expect("no panic") = true;
    let block = Bytes::from(vec![1; 1 << 20]);
    let outcome = pair.send(vec![Ok(block); 64]).await;
    let refusal = SnapshotRefusal::Other("disk full".into());
    assert_eq!(outcome, SnapshotOutcome::Refused(refusal));
    assert_eq!(
        pair.aborted().await,
        SnapshotAbort::Sink {
            detail: "disk full".into()
        }
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_fails_aborts_the_receiver() {
    let mut pair = Pair::new(PATIENT);
    let outcome = pair
        .send(vec![Err("bad sector"), Ok(Bytes::from_static(b"block"))])
        .await;
    let failure = SnapshotFailure::Source {
        detail: "bad sector".into(),
    };
    assert_eq!(outcome, SnapshotOutcome::Failed(failure));
    assert_eq!(pair.aborted().await, SnapshotAbort::ConnectionLost);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_over_the_bound_is_not_sent() {
    let mut pair = Pair::new(PATIENT);
    let outcome = pair.send(vec![Ok(Bytes::from(vec![0; 2 << 20]))]).await;
    assert!(matches!(
        outcome,
        SnapshotOutcome::Failed(SnapshotFailure::TooLarge { .. })
    ));
    assert_eq!(pair.aborted().await, SnapshotAbort::ConnectionLost);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_54_silence_midway_ends_the_stream_on_both_sides() {
    let mut pair = Pair::new(Duration::from_millis(300));
    let (_keep, word) = std::sync::mpsc::channel();
    let outcome = pair.begin(Stalls {
        first: Some(Bytes::from_static(b"block")),
        word,
    });
    let outcome = outcome.await.expect("done is called");
    assert_eq!(outcome, SnapshotOutcome::Failed(SnapshotFailure::Silent));
    let reason = pair.aborted().await;
    let is_expected = [SnapshotAbort::Silent, SnapshotAbort::ConnectionLost].contains(&reason);
    assert!(is_expected, "{reason:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_streams_than_allowed_wait_their_turn() {
    let mut pair = Pair::new(PATIENT);
    let (word, wait) = std::sync::mpsc::channel();
    let first = pair.begin(Stalls {
        first: Some(Bytes::from_static(b"block")),
        word: wait,
    });
    pair.one_hears
        .wait(|told| matches!(told, Told::Block(_)).then_some(()))
        .await;
    let mut second = pair.begin(Blocks(vec![Ok(Bytes::from_static(b"block"))]));
    assert!(second.try_recv().is_err(), "the first has the only place");
    word.send(()).expect("the source waits");
    assert_eq!(first.await, Ok(SnapshotOutcome::Finished));
    assert_eq!(second.await, Ok(SnapshotOutcome::Finished));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_the_transport_answers_every_sender_and_aborts_every_sink() {
    let mut pair = Pair::new(PATIENT);
    let (_keep, word) = std::sync::mpsc::channel();
    let outcome = pair.begin(Stalls {
        first: Some(Bytes::from_static(b"block")),
        word,
    });
    pair.one_hears
        .wait(|told| matches!(told, Told::Block(_)).then_some(()))
        .await;
    pair.one.close();
    assert_eq!(pair.aborted().await, SnapshotAbort::ConnectionLost);
    let failure = SnapshotFailure::Connection(ConnectionEnd::Closed);
    assert_eq!(outcome.await, Ok(SnapshotOutcome::Failed(failure)));
}
