//! One snapshot on a connection of its own.
//!
//! On the stream that carried Hello: the offer, the receiver's verdict, blocks, an empty block as
//! the end, the receiver's second verdict. All lengths are little-endian and bounded before they
//! are believed.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use quinn::{ReadExactError, RecvStream, VarInt};
use raft_proto::{HostId, crc32c_append};
use tokio::sync::mpsc;
use tokio::task::{self, JoinHandle};
use tokio::time;

use crate::delivery::{
    SnapshotAbort, SnapshotFailure, SnapshotOffer, SnapshotOutcome, SnapshotRefusal, SnapshotSink,
    SnapshotSource,
};
use crate::endpoint::{self, Established, Purpose, Shared};
use crate::error::{CLOSE_SHUTDOWN, ConnectionEnd, RefusalKind};

/// The version of an offer's format.
const OFFER_VERSION: u8 = 1;
/// Bytes before each block: length and checksum.
const BLOCK_HEADER_BYTES: usize = 8;
/// Bytes of an encoded refusal. Longer texts are cut.
const REFUSAL_BYTES_MAX: usize = 1_024;
/// Blocks read ahead of the wire, or received ahead of the disk.
const BLOCKS_AHEAD: usize = 2;

const VERDICT_YES: u8 = 1;
const VERDICT_NO: u8 = 2;

/// Sends a snapshot. Waits for its turn first.
pub(crate) async fn send(
    shared: Arc<Shared>,
    to: HostId,
    offer: SnapshotOffer,
    source: Box<dyn SnapshotSource>,
) -> SnapshotOutcome {
    let limits = &shared.config.limits;
    let offer = encode_offer(&offer);
    let bytes_max = limits.snapshot_offer_bytes_max;
    if offer.len() - 4 > bytes_max {
        let bytes = offer.len() - 4;
        return SnapshotOutcome::Failed(SnapshotFailure::TooLarge { bytes, bytes_max });
    }
    let turn = Arc::clone(&shared.snapshots_out).acquire_owned().await;
    let Ok(_turn) = turn else {
        return failed(ConnectionEnd::Closed);
    };
    let established = match endpoint::dial(&shared, to, Purpose::Snapshot).await {
        Ok(established) => established,
        Err(end) => return failed(end),
    };
    let connection = established.connection.clone();
    // A receiver that closes is noticed even while the source is slow.
    let outcome = tokio::select! {
        biased;
        outcome = converse(&shared, established, offer, source) => outcome,
        end = connection.closed() => Ok(failed(end.into())),
    };
    connection.close(VarInt::from_u32(CLOSE_SHUTDOWN), b"");
    outcome.unwrap_or_else(SnapshotOutcome::Failed)
}

const fn failed(end: ConnectionEnd) -> SnapshotOutcome {
    SnapshotOutcome::Failed(SnapshotFailure::Connection(end))
}

async fn converse(
    shared: &Shared,
    mut established: Established,
    offer: Bytes,
    source: Box<dyn SnapshotSource>,
) -> Result<SnapshotOutcome, SnapshotFailure> {
    let limits = &shared.config.limits;
    let connection = established.connection.clone();
    let lost = |error: &dyn ToString| {
        SnapshotFailure::Connection(ConnectionEnd::of_stream(&connection, error))
    };
    let sending = &mut established.sending;
    within(limits.snapshot_silence, sending.write_chunk(offer))
        .await?
        .map_err(|error| lost(&error))?;
    let verdict = verdict(&mut established.receiving, limits.snapshot_commit_timeout).await;
    if let Verdict::No(refusal) = verdict.map_err(|error| error.or(&lost))? {
        return Ok(SnapshotOutcome::Refused(refusal));
    }
    let mut blocks = pull(source, limits.snapshot_block_bytes_max);
    loop {
        // A source that reads a slow disk is silent, too.
        let block = within(limits.snapshot_silence, blocks.recv()).await?;
        let chunks = &mut match block {
            None => [Bytes::from_static(&[0; 4]), Bytes::new()],
            Some(block) => {
                let block = block?;
                shared.counters.snapshot_bytes_sent.add(block.len());
                [block_header(&block), block]
            }
        };
        let is_end = chunks[1].is_empty();
        match within(limits.snapshot_silence, sending.write_all_chunks(chunks)).await? {
            Ok(()) if is_end => break,
            Ok(()) => {}
            // The receiver has said why on the other half.
            Err(quinn::WriteError::Stopped(_)) => break,
            Err(error) => return Err(lost(&error)),
        }
    }
    let verdict = self::verdict(&mut established.receiving, limits.snapshot_commit_timeout).await;
    Ok(match verdict.map_err(|error| error.or(&lost))? {
        Verdict::Yes => SnapshotOutcome::Finished,
        Verdict::No(refusal) => SnapshotOutcome::Refused(refusal),
    })
}

fn block_header(block: &[u8]) -> Bytes {
    let mut header = BytesMut::with_capacity(BLOCK_HEADER_BYTES);
    header.put_u32_le(u32::try_from(block.len()).expect("checked against a bound below 4 GiB"));
    header.put_u32_le(crc32c_append(0, block));
    header.freeze()
}

/// Reads the source on a blocking thread, a few blocks ahead of the wire.
fn pull(
    mut source: Box<dyn SnapshotSource>,
    bytes_max: usize,
) -> mpsc::Receiver<Result<Bytes, SnapshotFailure>> {
    let (blocks, pulled) = mpsc::channel(BLOCKS_AHEAD);
    task::spawn_blocking(move || {
        loop {
            let block = match source.next_block() {
                Ok(None) => return,
                Ok(Some(block)) if (1..=bytes_max).contains(&block.len()) => Ok(block),
                Ok(Some(block)) => Err(SnapshotFailure::TooLarge {
                    bytes: block.len(),
                    bytes_max,
                }),
                Err(error) => Err(SnapshotFailure::Source {
                    detail: error.to_string(),
                }),
            };
            let is_last = block.is_err();
            if blocks.blocking_send(block).is_err() || is_last {
                return;
            }
        }
    });
    pulled
}

async fn within<T>(silence: Duration, work: impl Future<Output = T>) -> Result<T, SnapshotFailure> {
    time::timeout(silence, work)
        .await
        .map_err(|_| SnapshotFailure::Silent)
}

enum Verdict {
    Yes,
    No(SnapshotRefusal),
}

enum VerdictError {
    Silent,
    Malformed,
    Read(ReadExactError),
}

impl VerdictError {
    fn or(self, lost: &dyn Fn(&dyn ToString) -> SnapshotFailure) -> SnapshotFailure {
        match self {
            Self::Silent => SnapshotFailure::Silent,
            Self::Malformed => SnapshotFailure::Malformed,
            Self::Read(error) => lost(&error),
        }
    }
}

async fn verdict(stream: &mut RecvStream, timeout: Duration) -> Result<Verdict, VerdictError> {
    let read = async {
        let mut kind = [0];
        stream
            .read_exact(&mut kind)
            .await
            .map_err(VerdictError::Read)?;
        match kind {
            [VERDICT_YES] => Ok(Verdict::Yes),
            [VERDICT_NO] => {
                let mut length = [0; 2];
                stream
                    .read_exact(&mut length)
                    .await
                    .map_err(VerdictError::Read)?;
                let mut buffer = [0; REFUSAL_BYTES_MAX];
                let length = usize::from(u16::from_le_bytes(length));
                let body = buffer.get_mut(..length).ok_or(VerdictError::Malformed)?;
                stream.read_exact(body).await.map_err(VerdictError::Read)?;
                // A kind of refusal that a newer version knows is still a refusal.
                let refusal = postcard::from_bytes(body)
                    .unwrap_or_else(|_| SnapshotRefusal::Other("unknown refusal".into()));
                Ok(Verdict::No(refusal))
            }
            _ => Err(VerdictError::Malformed),
        }
    };
    time::timeout(timeout, read)
        .await
        .unwrap_or(Err(VerdictError::Silent))
}

fn encode_verdict(verdict: &Verdict) -> Vec<u8> {
    match verdict {
        Verdict::Yes => vec![VERDICT_YES],
        Verdict::No(refusal) => {
            let encoded = postcard::to_allocvec(&shortened(refusal.clone()))
                .expect("a refusal has no value that cannot be encoded");
            let length = u16::try_from(encoded.len()).expect("a refusal's text was cut");
            let mut out = vec![VERDICT_NO];
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(&encoded);
            out
        }
    }
}

fn shortened(mut refusal: SnapshotRefusal) -> SnapshotRefusal {
    if let SnapshotRefusal::Other(text) | SnapshotRefusal::Malformed(text) = &mut refusal {
        let mut end = text.len().min(REFUSAL_BYTES_MAX - 16);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    refusal
}

/// The offer as it travels: its length, then a version byte and postcard.
fn encode_offer(offer: &SnapshotOffer) -> Bytes {
    let out = vec![0, 0, 0, 0, OFFER_VERSION];
    let mut out =
        postcard::to_extend(offer, out).expect("an offer has no value that cannot be encoded");
    // Far over the bound either way if it does not fit: the caller refuses it.
    let length = u32::try_from(out.len() - 4).unwrap_or(u32::MAX);
    out[..4].copy_from_slice(&length.to_le_bytes());
    out.into()
}

fn decode_offer(bytes: &[u8]) -> Option<SnapshotOffer> {
    match bytes {
        [OFFER_VERSION, rest @ ..] => postcard::take_from_bytes(rest)
            .ok()
            .map(|(offer, _later_fields)| offer),
        _ => None,
    }
}

/// Receives a snapshot: everything after Hello.
pub(crate) async fn receive(shared: Arc<Shared>, from: HostId, established: Established) {
    let Established {
        connection,
        mut sending,
        mut receiving,
    } = established;
    let (verdict, is_malformed) = match take(&shared, from, &mut sending, &mut receiving).await {
        Ok(()) => (Verdict::Yes, false),
        Err(refusal) => {
            let is_malformed = matches!(refusal, SnapshotRefusal::Malformed(_));
            (Verdict::No(refusal), is_malformed)
        }
    };
    let _ = receiving.stop(VarInt::from_u32(0));
    if is_malformed {
        shared.counters.refusals.add(1);
    }
    // An honest sender closes once it has read the verdict. Whether it does makes no difference.
    let last_words = async {
        if sending.write_all(&encode_verdict(&verdict)).await.is_ok() && sending.finish().is_ok() {
            if is_malformed {
                let _ = sending.stopped().await;
            } else {
                connection.closed().await;
            }
        }
    };
    let _ = time::timeout(shared.config.limits.snapshot_silence, last_words).await;
    let code = if is_malformed {
        RefusalKind::MalformedStream.code()
    } else {
        CLOSE_SHUTDOWN
    };
    connection.close(VarInt::from_u32(code), b"");
}

async fn take(
    shared: &Arc<Shared>,
    from: HostId,
    sending: &mut quinn::SendStream,
    receiving: &mut RecvStream,
) -> Result<(), SnapshotRefusal> {
    let limits = &shared.config.limits;
    let silence = limits.snapshot_silence;
    let Ok(_turn) = Arc::clone(&shared.snapshots_in).try_acquire_owned() else {
        return Err(SnapshotRefusal::Busy);
    };
    let malformed = |text: &str| SnapshotRefusal::Malformed(text.to_owned());
    let length = read_length(receiving, silence)
        .await
        .map_err(|_| malformed("no offer"))?;
    if length == 0 || length > limits.snapshot_offer_bytes_max {
        return Err(SnapshotRefusal::Malformed(format!(
            "an offer of {length} bytes"
        )));
    }
    let offer = read_bytes(receiving, length, silence)
        .await
        .map_err(|_| malformed("no offer"))?;
    let offer = decode_offer(&offer).ok_or_else(|| malformed("no offer"))?;
    let delivery = Arc::clone(&shared.delivery);
    let decide = move || delivery.snapshot_offered(from, offer);
    let decided = task::spawn_blocking(decide).await;
    let sink = decided.unwrap_or_else(|panic| Err(SnapshotRefusal::Other(panic.to_string())))?;
    let (blocks, sunk) = sink_on_thread(sink);
    let fed = match sending.write_all(&encode_verdict(&Verdict::Yes)).await {
        Ok(()) => feed(shared, receiving, &blocks).await,
        Err(_) => Err(SnapshotAbort::ConnectionLost),
    };
    let step = match &fed {
        Ok(()) => Step::Finish,
        Err(reason) => Step::Abort(reason.clone()),
    };
    // The thread is gone only if the sink failed; its answer says so.
    let _ = blocks.send(step).await;
    drop(blocks);
    let sunk = sunk.await.unwrap_or_else(|panic| Err(panic.to_string()));
    match (fed, sunk) {
        (Err(reason @ SnapshotAbort::Malformed { .. }), _) => {
            Err(SnapshotRefusal::Malformed(reason.to_string()))
        }
        (_, Err(detail)) => Err(SnapshotRefusal::Other(detail)),
        (Err(reason), Ok(())) => Err(SnapshotRefusal::Other(reason.to_string())),
        (Ok(()), Ok(())) => Ok(()),
    }
}

/// Reads blocks and hands them to the sink, to the empty one that ends them.
async fn feed(
    shared: &Shared,
    receiving: &mut RecvStream,
    blocks: &mpsc::Sender<Step>,
) -> Result<(), SnapshotAbort> {
    let limits = &shared.config.limits;
    let silence = limits.snapshot_silence;
    for block in 0.. {
        let length = read_length(receiving, silence).await?;
        if length == 0 {
            return Ok(());
        }
        if length > limits.snapshot_block_bytes_max {
            return Err(SnapshotAbort::Malformed { block });
        }
        let crc = read_bytes(receiving, 4, silence).await?;
        let bytes = read_bytes(receiving, length, silence).await?;
        if crc32c_append(0, &bytes).to_le_bytes() != crc[..] {
            return Err(SnapshotAbort::Malformed { block });
        }
        shared.counters.snapshot_bytes_received.add(bytes.len());
        if blocks.send(Step::Block(bytes)).await.is_err() {
            // The sink failed, and its answer says how.
            return Err(SnapshotAbort::Sink {
                detail: String::new(),
            });
        }
    }
    Ok(())
}

async fn read_length(stream: &mut RecvStream, silence: Duration) -> Result<usize, SnapshotAbort> {
    let mut length = [0; 4];
    match time::timeout(silence, stream.read_exact(&mut length)).await {
        Err(_) => Err(SnapshotAbort::Silent),
        Ok(Err(_)) => Err(SnapshotAbort::ConnectionLost),
        Ok(Ok(())) => Ok(usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX)),
    }
}

/// Reads exactly `length` bytes, which the caller has bounded. Memory grows with what comes.
async fn read_bytes(
    stream: &mut RecvStream,
    length: usize,
    silence: Duration,
) -> Result<Bytes, SnapshotAbort> {
    const STEP_BYTES: usize = 64 << 10;
    let mut bytes = BytesMut::with_capacity(length.min(STEP_BYTES));
    while bytes.len() < length {
        let chunk = stream.read_chunk(length - bytes.len(), true);
        match time::timeout(silence, chunk).await {
            Err(_) => return Err(SnapshotAbort::Silent),
            Ok(Ok(Some(chunk))) => bytes.extend_from_slice(&chunk.bytes),
            Ok(Ok(None) | Err(_)) => return Err(SnapshotAbort::ConnectionLost),
        }
    }
    Ok(bytes.freeze())
}

/// What the thread of a sink is told.
enum Step {
    Block(Bytes),
    Finish,
    Abort(SnapshotAbort),
}

/// Runs a sink on a blocking thread. It is finished or aborted in any case.
fn sink_on_thread(
    sink: Box<dyn SnapshotSink>,
) -> (mpsc::Sender<Step>, JoinHandle<Result<(), String>>) {
    let (blocks, mut steps) = mpsc::channel(BLOCKS_AHEAD);
    let thread = task::spawn_blocking(move || {
        let mut sink = sink;
        loop {
            match steps.blocking_recv() {
                Some(Step::Block(block)) => {
                    if let Err(error) = sink.block(block) {
                        let detail = error.to_string();
                        sink.abort(SnapshotAbort::Sink {
                            detail: detail.clone(),
                        });
                        return Err(detail);
                    }
                }
                Some(Step::Finish) => return sink.finish().map_err(|error| error.to_string()),
                Some(Step::Abort(reason)) => {
                    let detail = reason.to_string();
                    sink.abort(reason);
                    return Err(detail);
                }
                // The task of the stream was dropped: the transport is closing.
                None => {
                    sink.abort(SnapshotAbort::ConnectionLost);
                    return Err("closed".to_owned());
                }
            }
        }
    });
    (blocks, thread)
}

#[cfg(test)]
mod tests {
    use raft_proto::{GroupId, ReplicaId, Term};

    use super::*;

    #[test]
    fn an_offer_survives_the_wire_and_garbage_does_not() {
        let offer = SnapshotOffer {
            group: GroupId::new(3).expect("an id"),
            epoch: 1,
            from: ReplicaId::new(4).expect("an id"),
            to: ReplicaId::new(5).expect("an id"),
            term: Term::new(9),
            meta: Bytes::from_static(b"meta"),
            manifest: Bytes::from_static(&[7; 300]),
        };
        let encoded = encode_offer(&offer);
        assert_eq!(decode_offer(&encoded[4..]), Some(offer));
        for end in 4..encoded.len() {
            assert_eq!(decode_offer(&encoded[4..end]), None);
        }
        assert_eq!(decode_offer(&[OFFER_VERSION, 0xFF, 0xFF, 0xFF]), None);
    }

    #[test]
    fn a_long_refusal_is_cut_to_its_bound() {
        let refusal = SnapshotRefusal::Other("ä".repeat(5_000));
        let encoded = encode_verdict(&Verdict::No(refusal));
        assert!(encoded.len() <= 3 + REFUSAL_BYTES_MAX);
    }
}
