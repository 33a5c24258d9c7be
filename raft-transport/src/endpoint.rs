//! The endpoint: bind, accept, dial, and the way to every peer.

use std::fmt;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use quinn::{
    ClientConfig, Connection, Endpoint, EndpointConfig, IdleTimeout, Incoming, MtuDiscoveryConfig,
    RecvStream, SendStream, ServerConfig, TokioRuntime, TransportConfig as QuicConfig, VarInt,
};
use raft_proto::{Envelope, HostId, Time};
use rustc_hash::{FxHashMap, FxHashSet};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time;

use crate::config::{BULK_LANES_MAX, Limits, TransportConfig};
use crate::delivery::{
    Addresses, Delivery, SnapshotFailure, SnapshotOffer, SnapshotOutcome, SnapshotSource,
    TransportEvent,
};
use crate::error::{CLOSE_SHUTDOWN, ConnectionEnd, Refusal, TransportError};
use crate::frame;
use crate::hello::{self, Hello};
use crate::loopback::LoopbackLink;
use crate::peer::Peer;
use crate::reset;
use crate::snapshot_stream;
use crate::stats::{Counters, TransportStats};
use crate::tls::{self, ALPN_MESSAGES, ALPN_SNAPSHOT, TransportIdentity};

/// Called once with the outcome of a snapshot that was sent. Must not block.
pub type SnapshotDone = Box<dyn FnOnce(SnapshotOutcome) + Send>;

/// A host's connections to all its peers. Dropping it closes them.
#[derive(Debug)]
pub struct Transport {
    link: Link,
}

#[derive(Debug)]
enum Link {
    Quic(Arc<Shared>),
    Loopback(LoopbackLink),
}

impl Transport {
    /// Binds the address and begins to accept. Connections are made when
    /// [`connect`](Self::connect) or [`send`](Self::send) asks for them.
    ///
    /// # Errors
    ///
    /// [`TransportError`]: nothing was started.
    pub fn start(
        runtime: &Handle,
        config: TransportConfig,
        identity: TransportIdentity,
        addresses: Arc<dyn Addresses>,
        delivery: Arc<dyn Delivery>,
    ) -> Result<Self, TransportError> {
        config.check()?;
        identity.check(config.host, &config.deployment)?;
        let _entered = runtime.enter();
        let quic = Arc::new(quic_config(&config.limits));
        let endpoint = Endpoint::new(
            endpoint_config(&config, &identity),
            Some(server_config(&identity, &quic)?),
            bind(config.listen, &config.limits).map_err(TransportError::Listen)?,
            Arc::new(TokioRuntime),
        )
        .map_err(TransportError::Listen)?;
        let streams_max = config.limits.snapshot_streams_max;
        let shared = Arc::new(Shared {
            hello: Hello::new(&config),
            deployment_hash: frame::deployment_hash(&config.deployment),
            dialling: RwLock::new(Dialling::new(&identity, &quic)?),
            snapshots_in: Arc::new(Semaphore::new(streams_max)),
            snapshots_out: Arc::new(Semaphore::new(streams_max)),
            snapshots_waiting: Arc::new(Semaphore::new(
                streams_max + config.limits.snapshot_waiting_max,
            )),
            peers: RwLock::new(Some(FxHashMap::default())),
            counters: Counters::default(),
            runtime: runtime.clone(),
            started: Instant::now(),
            config,
            quic,
            endpoint,
            addresses,
            delivery,
        });
        runtime.spawn(accept_all(Arc::clone(&shared)));
        Ok(Self {
            link: Link::Quic(shared),
        })
    }

    pub(crate) const fn loopback(link: LoopbackLink) -> Self {
        Self {
            link: Link::Loopback(link),
        }
    }

    /// Makes sure that a connection to `host` is kept, from now on.
    ///
    /// Of two hosts the one with the lower id dials: it must know of the other, by this call or
    /// by a message to send. Call it for every host of the address book.
    pub fn connect(&self, host: HostId) {
        if let Link::Quic(shared) = &self.link {
            shared.with_peer(host, |_| ());
        }
    }

    /// Takes messages for `to`. Never blocks.
    ///
    /// What finds no room within `queue_bytes_max` is dropped, counted, and reported through
    /// [`Delivery::unreachable`], once per call and possibly before this returns.
    pub fn send(&self, to: HostId, batch: Vec<Envelope>) {
        match &self.link {
            Link::Quic(shared) => shared.send(to, batch),
            Link::Loopback(link) => link.send(to, batch),
        }
    }

    /// Streams a snapshot to `to`, on a connection of its own, and calls `done` once.
    pub fn send_snapshot(
        &self,
        to: HostId,
        offer: SnapshotOffer,
        source: Box<dyn SnapshotSource>,
        done: SnapshotDone,
    ) {
        match &self.link {
            Link::Quic(shared) => {
                let Ok(place) = Arc::clone(&shared.snapshots_waiting).try_acquire_owned() else {
                    return done(SnapshotOutcome::Failed(SnapshotFailure::Busy));
                };
                let shared = Arc::clone(shared);
                shared.runtime.clone().spawn(async move {
                    let done = Done(Some(done));
                    let outcome = snapshot_stream::send(shared, to, offer, source).await;
                    drop(place);
                    done.call(outcome);
                });
            }
            Link::Loopback(link) => link.send_snapshot(to, offer, source, done),
        }
    }

    /// Closes the connection to `host` and forgets what waits for it. A later
    /// [`send`](Self::send), [`connect`](Self::connect) or dial of the peer begins anew.
    pub fn disconnect(&self, host: HostId) {
        if let Link::Quic(shared) = &self.link {
            let mut peers = shared.peers.write().unwrap_or_else(PoisonError::into_inner);
            if let Some(peers) = &mut *peers {
                peers.remove(&host);
            }
        }
    }

    /// Uses another certificate, key and CAs for all connections made from now on.
    ///
    /// # Errors
    ///
    /// The new identity cannot be used, or is another host's: the old one stays in use.
    pub fn replace_identity(&self, identity: &TransportIdentity) -> Result<(), TransportError> {
        if let Link::Quic(shared) = &self.link {
            identity.check(shared.config.host, &shared.config.deployment)?;
            let server = server_config(identity, &shared.quic)?;
            let dialling = Dialling::new(identity, &shared.quic)?;
            shared.endpoint.set_server_config(Some(server));
            *shared
                .dialling
                .write()
                .unwrap_or_else(PoisonError::into_inner) = dialling;
        }
        Ok(())
    }

    /// Where it listens; `None` for a loopback.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.link {
            Link::Quic(shared) => shared.endpoint.local_addr().ok(),
            Link::Loopback(_) => None,
        }
    }

    /// What it has done so far.
    #[must_use]
    pub fn stats(&self) -> TransportStats {
        match &self.link {
            Link::Quic(shared) => shared.counters.read(),
            Link::Loopback(link) => link.stats(),
        }
    }

    /// Closes every connection and takes nothing any more. What still waits is lost.
    pub fn close(&self) {
        match &self.link {
            Link::Quic(shared) => {
                shared
                    .peers
                    .write()
                    .unwrap_or_else(PoisonError::into_inner)
                    .take();
                shared.endpoint.close(VarInt::from_u32(CLOSE_SHUTDOWN), b"");
            }
            Link::Loopback(link) => link.close(),
        }
    }

    /// Waits until the peers of a closed transport have been told.
    pub async fn closed(&self) {
        if let Link::Quic(shared) = &self.link {
            shared.endpoint.wait_idle().await;
        }
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.close();
    }
}

/// Calls `done` even if the stream's task dies.
struct Done(Option<SnapshotDone>);

impl Done {
    fn call(mut self, outcome: SnapshotOutcome) {
        if let Some(done) = self.0.take() {
            done(outcome);
        }
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        if let Some(done) = self.0.take() {
            done(SnapshotOutcome::Failed(SnapshotFailure::Connection(
                ConnectionEnd::Closed,
            )));
        }
    }
}

/// What all tasks of a transport share.
pub(crate) struct Shared {
    pub(crate) config: TransportConfig,
    pub(crate) deployment_hash: u64,
    pub(crate) delivery: Arc<dyn Delivery>,
    pub(crate) counters: Counters,
    pub(crate) runtime: Handle,
    pub(crate) snapshots_in: Arc<Semaphore>,
    pub(crate) snapshots_out: Arc<Semaphore>,
    snapshots_waiting: Arc<Semaphore>,
    hello: Hello,
    endpoint: Endpoint,
    quic: Arc<QuicConfig>,
    dialling: RwLock<Dialling>,
    addresses: Arc<dyn Addresses>,
    /// `None` once closed.
    peers: RwLock<Option<FxHashMap<HostId, Peer>>>,
    started: Instant,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn send(self: &Arc<Self>, to: HostId, batch: Vec<Envelope>) {
        let dropped = self
            .with_peer(to, |peer| peer.queue.push(batch))
            .unwrap_or_default();
        if !dropped.is_empty() {
            self.counters.messages_dropped.add(dropped.len());
            let dropped: FxHashSet<_> = dropped.into_iter().collect();
            self.delivery.unreachable(to, dropped.into_iter().collect());
        }
    }

    /// Runs `use_it` on the peer, which is made if need be; `None` once closed.
    fn with_peer<T>(self: &Arc<Self>, host: HostId, use_it: impl FnOnce(&Peer) -> T) -> Option<T> {
        if host == self.config.host {
            return None;
        }
        {
            let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(peer) = peers.as_ref()?.get(&host) {
                return Some(use_it(peer));
            }
        }
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        let peer = peers
            .as_mut()?
            .entry(host)
            .or_insert_with(|| Peer::start(self, host));
        Some(use_it(peer))
    }

    pub(crate) fn now(&self) -> Time {
        Time(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    pub(crate) fn instant(&self, time: Time) -> time::Instant {
        (self.started + Duration::from_nanos(time.0)).into()
    }

    /// Closes a connection for a reason that the peer learns.
    pub(crate) fn close(&self, connection: &Connection, end: &ConnectionEnd) {
        connection.close(VarInt::from_u32(end.code()), b"");
        self.count(end);
    }

    fn count(&self, end: &ConnectionEnd) {
        if matches!(end, ConnectionEnd::Refused(_)) {
            self.counters.refusals.add(1);
        }
    }
}

/// What a connection is for. Each purpose has its own application protocol.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose {
    Messages,
    Snapshot,
}

struct Dialling {
    messages: ClientConfig,
    snapshot: ClientConfig,
}

impl Dialling {
    fn new(identity: &TransportIdentity, quic: &Arc<QuicConfig>) -> Result<Self, TransportError> {
        let config = |alpn| -> Result<ClientConfig, TransportError> {
            let mut config = ClientConfig::new(identity.client(alpn)?);
            config.transport_config(Arc::clone(quic));
            Ok(config)
        };
        Ok(Self {
            messages: config(ALPN_MESSAGES)?,
            snapshot: config(ALPN_SNAPSHOT)?,
        })
    }
}

/// A connection whose Hello is done on both sides, and the stream that carried it.
pub(crate) struct Established {
    pub(crate) connection: Connection,
    pub(crate) sending: SendStream,
    pub(crate) receiving: RecvStream,
}

/// Dials a peer and exchanges Hello.
pub(crate) async fn dial(
    shared: &Arc<Shared>,
    host: HostId,
    purpose: Purpose,
) -> Result<Established, ConnectionEnd> {
    let address = shared
        .addresses
        .address(host)
        .ok_or(ConnectionEnd::NoAddress)?;
    let config = {
        let dialling = shared
            .dialling
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        match purpose {
            Purpose::Messages => dialling.messages.clone(),
            Purpose::Snapshot => dialling.snapshot.clone(),
        }
    };
    let name = tls::host_name(host, &shared.config.deployment);
    let connecting = shared
        .endpoint
        .connect_with(config, address, &name)
        .map_err(|error| ConnectionEnd::Failed {
            detail: error.to_string(),
        })?;
    let handshake = async {
        let connection = connecting.await.inspect_err(|error| {
            shared.count(&error.clone().into());
        })?;
        let introduced = introduce(shared, &connection, host).await;
        match introduced {
            Ok((sending, receiving)) => Ok(Established {
                connection,
                sending,
                receiving,
            }),
            Err(end) => {
                shared.close(&connection, &end);
                Err(end)
            }
        }
    };
    let timeout = shared.config.limits.handshake_timeout;
    time::timeout(timeout, handshake)
        .await
        .unwrap_or(Err(ConnectionEnd::TimedOut))
}

/// The dialler's side of Hello.
async fn introduce(
    shared: &Shared,
    connection: &Connection,
    host: HostId,
) -> Result<(SendStream, RecvStream), ConnectionEnd> {
    let (mut sending, mut receiving) = connection.open_bi().await?;
    hello::send(connection, &mut sending, &shared.hello).await?;
    hello::receive(
        connection,
        &mut receiving,
        &shared.hello,
        host,
        &shared.delivery,
    )
    .await?;
    Ok((sending, receiving))
}

async fn accept_all(shared: Arc<Shared>) {
    let handshakes_max = shared.config.limits.handshakes_max;
    // Senders that proved their address have places of their own, so that a flood of forged
    // addresses cannot keep them out.
    let unproven = Arc::new(Semaphore::new(handshakes_max));
    let proven = Arc::new(Semaphore::new(handshakes_max));
    while let Some(incoming) = shared.endpoint.accept().await {
        let is_proven = incoming.remote_address_validated();
        let places = if is_proven { &proven } else { &unproven };
        match Arc::clone(places).try_acquire_owned() {
            Ok(place) => {
                shared
                    .runtime
                    .spawn(accept(Arc::clone(&shared), incoming, place));
            }
            Err(_) if incoming.may_retry() => {
                if let Err(error) = incoming.retry() {
                    error.into_incoming().refuse();
                }
            }
            Err(_) => incoming.refuse(),
        }
    }
}

/// Sees one connection from outside through its handshake and hands it on.
async fn accept(shared: Arc<Shared>, incoming: Incoming, place: OwnedSemaphorePermit) {
    let remote = incoming.remote_address();
    let mut host = None;
    let handshake = welcome(&shared, incoming, &mut host);
    let timeout = shared.config.limits.handshake_timeout;
    let welcomed = time::timeout(timeout, handshake).await;
    drop(place);
    let (from, established) = match welcomed.unwrap_or(Err(ConnectionEnd::TimedOut)) {
        Ok(welcomed) => welcomed,
        Err(end) => {
            shared.count(&end);
            return shared
                .delivery
                .event(TransportEvent::AcceptFailed { remote, host, end });
        }
    };
    if tls::is_snapshot(&established.connection) {
        return snapshot_stream::receive(shared, from, established).await;
    }
    let connection = established.connection;
    let accepted = shared.with_peer(from, |peer| peer.accepted.try_send(connection));
    if !matches!(accepted, Some(Ok(()))) {
        let end = ConnectionEnd::Closed;
        shared
            .delivery
            .event(TransportEvent::AcceptFailed { remote, host, end });
    }
}

/// The accepting side of TLS, identity and Hello.
async fn welcome(
    shared: &Arc<Shared>,
    incoming: Incoming,
    host: &mut Option<HostId>,
) -> Result<(HostId, Established), ConnectionEnd> {
    let connection = incoming.accept()?.await?;
    let introduced = async {
        let from = tls::peer_host(&connection, &shared.config.deployment)?;
        *host = Some(from);
        if !tls::is_snapshot(&connection) && from >= shared.config.host {
            return Err(Refusal::WrongDirection { from }.into());
        }
        let (mut sending, mut receiving) = connection.accept_bi().await?;
        let ours = &shared.hello;
        hello::receive(&connection, &mut receiving, ours, from, &shared.delivery).await?;
        hello::send(&connection, &mut sending, ours).await?;
        Ok((from, sending, receiving))
    };
    let introduced: Result<_, ConnectionEnd> = introduced.await;
    match introduced {
        Ok((from, sending, receiving)) => Ok((
            from,
            Established {
                connection,
                sending,
                receiving,
            },
        )),
        Err(end) => {
            connection.close(VarInt::from_u32(end.code()), b"");
            Err(end)
        }
    }
}

fn bind(address: SocketAddr, limits: &Limits) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    let state = quinn::udp::UdpSocketState::new((&socket).into())?;
    // The kernel may grant less; that costs throughput, not safety.
    let bytes = limits.socket_buffer_bytes;
    for result in [
        state.set_send_buffer_size((&socket).into(), bytes),
        state.set_recv_buffer_size((&socket).into(), bytes),
    ] {
        if let Err(error) = result {
            tracing::warn!(%error, bytes, "socket buffer not set");
        }
    }
    Ok(socket)
}

fn server_config(
    identity: &TransportIdentity,
    quic: &Arc<QuicConfig>,
) -> Result<ServerConfig, TransportError> {
    let mut config = ServerConfig::with_crypto(identity.server()?);
    config.transport_config(Arc::clone(quic));
    Ok(config)
}

/// What one stream may have in flight.
const STREAM_WINDOW_BYTES: u32 = 16 << 20;
/// What one connection may have in flight; QUIC's own default is no bound.
const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;
/// What one connection may hold unacknowledged.
const SEND_WINDOW_BYTES: u64 = 16 << 20;
/// Hosts of a deployment are near each other; QUIC's own default is 333 ms.
const INITIAL_RTT: Duration = Duration::from_millis(20);

/// Says to peers how large a datagram they may send; QUIC's own default of 1,472 bytes would hold
/// MTU discovery there, whatever its bound.
fn endpoint_config(config: &TransportConfig, identity: &TransportIdentity) -> EndpointConfig {
    let mut start = config.uuid.to_vec();
    start.extend_from_slice(&config.open_count.to_le_bytes());
    // For those who do not count how often they open.
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    start.extend_from_slice(&since.unwrap_or_default().as_nanos().to_le_bytes());
    let mut endpoint = reset::endpoint_config(identity.secret(), &start);
    endpoint
        .max_udp_payload_size(config.limits.mtu_max)
        .expect("a configuration allows 1,200 to 6,500 bytes");
    endpoint
}

fn quic_config(limits: &Limits) -> QuicConfig {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(limits.mtu_max);
    let idle = IdleTimeout::try_from(limits.idle_timeout).expect("a configuration allows an hour");
    let lanes_max = u32::try_from(1 + BULK_LANES_MAX).expect("16");
    let mut config = QuicConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(lanes_max))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(limits.keep_alive))
        .initial_rtt(INITIAL_RTT)
        .mtu_discovery_config(Some(mtu));
    config
}
