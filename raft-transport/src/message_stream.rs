//! The lanes of a connection: messages out of a queue, messages into the delivery.

use std::array;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use quinn::{Connection, ReadExactError, RecvStream};
use raft_proto::{Envelope, HostId};
use rustc_hash::FxHashSet;
use tokio::task::JoinSet;

use crate::endpoint::Shared;
use crate::error::{ConnectionEnd, Refusal};
use crate::frame::{self, PREAMBLE_BYTES, Preamble, Splitter};
use crate::queue::{CONTROL_LANE, Destination, PeerQueue};

/// Frames are gathered to about this many bytes before they are handed to QUIC.
const WRITE_BYTES: usize = 256 << 10;
/// Chunks taken from QUIC at once; each is at most one packet's payload.
const READ_CHUNKS: usize = 64;

/// The replicas that were written to on one connection. Should it be lost, what was written last
/// may not have arrived.
#[derive(Debug, Default)]
pub(crate) struct Written(Mutex<FxHashSet<Destination>>);

impl Written {
    fn insert(&self, messages: &[Envelope]) {
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        written.extend(messages.iter().map(|it| (it.group, it.message.to)));
    }

    pub(crate) fn take(&self) -> FxHashSet<Destination> {
        mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Writes one lane for as long as the connection lasts.
pub(crate) async fn write(
    shared: Arc<Shared>,
    connection: Connection,
    queue: Arc<PeerQueue>,
    lane: usize,
    written: Arc<Written>,
) -> Result<(), ConnectionEnd> {
    let failed = |error: &dyn ToString| ConnectionEnd::of_stream(&connection, error);
    let mut stream = connection.open_uni().await?;
    stream
        .set_priority(i32::from(lane == CONTROL_LANE))
        .map_err(|error| failed(&error))?;
    let preamble = Preamble {
        lane: u8::try_from(lane).expect("a configuration has at most 15 bulk lanes"),
        host: shared.config.host,
        deployment: shared.deployment_hash,
    };
    stream
        .write_chunk(preamble.encode())
        .await
        .map_err(|error| failed(&error))?;
    let mut out = BytesMut::with_capacity(WRITE_BYTES);
    loop {
        let taken = queue.take(lane).await;
        written.insert(&taken.messages);
        let mut rest = taken.messages.iter().peekable();
        while let Some(envelope) = rest.next() {
            frame::encode(envelope, &mut out);
            if out.len() >= WRITE_BYTES || rest.peek().is_none() {
                shared.counters.bytes_sent.add(out.len());
                let chunk = out.split().freeze();
                stream
                    .write_chunk(chunk)
                    .await
                    .map_err(|error| failed(&error))?;
            }
        }
        shared.counters.messages_sent.add(taken.messages.len());
        if lane == CONTROL_LANE {
            let mtu = connection.stats().path.current_mtu;
            shared.counters.path_mtu_bytes_max.raise_to(mtu.into());
        }
    }
}

/// Accepts the peer's lanes and reads them for as long as the connection lasts.
pub(crate) async fn read_all(
    shared: Arc<Shared>,
    connection: Connection,
    host: HostId,
) -> Result<(), ConnectionEnd> {
    let mut lanes = JoinSet::new();
    loop {
        tokio::select! {
            stream = connection.accept_uni() => {
                lanes.spawn(read(Arc::clone(&shared), connection.clone(), host, stream?));
            }
            Some(ended) = lanes.join_next() => ended.map_err(|panic| {
                ConnectionEnd::Failed { detail: panic.to_string() }
            })??,
        }
    }
}

/// Reads one lane until the peer ends it.
async fn read(
    shared: Arc<Shared>,
    connection: Connection,
    host: HostId,
    mut stream: RecvStream,
) -> Result<(), ConnectionEnd> {
    let mut preamble = [0; PREAMBLE_BYTES];
    match stream.read_exact(&mut preamble).await {
        Ok(()) => {}
        Err(ReadExactError::FinishedEarly(_)) => return Err(Refusal::MalformedStream.into()),
        Err(error) => return Err(ConnectionEnd::of_stream(&connection, &error)),
    }
    Preamble::check(&preamble, host, shared.deployment_hash)?;
    let mut splitter = Splitter::new(shared.config.limits.frame_bytes_max);
    let mut chunks: [Bytes; READ_CHUNKS] = array::from_fn(|_| Bytes::new());
    loop {
        let read = stream.read_chunks(&mut chunks).await;
        let read = read.map_err(|error| ConnectionEnd::of_stream(&connection, &error))?;
        let Some(count) = read else { return Ok(()) };
        for chunk in &mut chunks[..count] {
            let chunk = mem::take(chunk);
            shared.counters.bytes_received.add(chunk.len());
            splitter.push(&chunk);
        }
        let burst = splitter.take()?;
        let mut batch = Vec::with_capacity(burst.len());
        for frame in burst {
            let envelope = Envelope::decode(frame).map_err(|error| Refusal::malformed(&error))?;
            batch.push(envelope);
        }
        if !batch.is_empty() {
            shared.counters.messages_received.add(batch.len());
            shared.delivery.messages(host, batch);
        }
    }
}
