//! Certificates, and a delivery that writes down what it gets.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use raft_proto::{
    BatchBuilder, Body, EntryId, EntryKind, Envelope, GroupId, HostId, Index, Message, ReplicaId,
    Term,
};
use raft_transport::{
    Addresses, BoxError, Delivery, HelloRefusal, Limits, PeerHello, SnapshotAbort, SnapshotOffer,
    SnapshotRefusal, SnapshotSink, Transport, TransportConfig, TransportEvent, TransportIdentity,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use tempfile::TempDir;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

/// Nothing here takes long: a wait that lasts this long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn host(id: u64) -> HostId {
    HostId::new(id).expect("an id")
}

pub(crate) fn group(id: u64) -> GroupId {
    GroupId::new(id).expect("an id")
}

pub(crate) fn replica(id: u64) -> ReplicaId {
    ReplicaId::new(id).expect("an id")
}

/// A certificate authority and what it signed, as PEM files.
pub(crate) struct Authority {
    pub(crate) dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        Self::named("test CA")
    }

    pub(crate) fn named(name: &str) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        std::fs::write(dir.path().join("ca.pem"), certificate.pem()).expect("written");
        Self {
            dir,
            issuer: Issuer::new(params, key),
        }
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Writes a certificate for the DNS name, valid to the end of a year, and its key.
    pub(crate) fn files(&self, name: &str, last_year: i32) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a DNS name");
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(last_year, 12, 31);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let path = |kind| self.dir.path().join(format!("{name}.{last_year}.{kind}"));
        std::fs::write(path("pem"), certificate.pem()).expect("written");
        std::fs::write(path("key"), key.serialize_pem()).expect("written");
        (path("pem"), path("key"))
    }

    pub(crate) fn identity(&self, host: u64, deployment: &str) -> TransportIdentity {
        let (cert, key) = self.files(&format!("h{host}.{deployment}.raft"), 4000);
        TransportIdentity::from_pem_files(cert, key, self.ca()).expect("an identity")
    }
}

/// What a [`Recorder`] was told.
#[derive(Debug)]
pub(crate) enum Told {
    Messages(HostId, Vec<Envelope>),
    Unreachable(HostId, Vec<(GroupId, ReplicaId)>),
    Hello(PeerHello),
    Event(TransportEvent),
    Block(Bytes),
    Finished,
    Aborted(SnapshotAbort),
}

/// Decides about an offer.
pub(crate) type OnOffer = Box<dyn Fn(&SnapshotOffer) -> Result<(), SnapshotRefusal> + Send + Sync>;

/// Writes down everything, in order.
pub(crate) struct Recorder {
    told: mpsc::UnboundedSender<Told>,
    pub(crate) hello: Mutex<Result<(), HelloRefusal>>,
    pub(crate) on_offer: Mutex<OnOffer>,
    pub(crate) sink_fails: Mutex<bool>,
}

impl Recorder {
    pub(crate) fn new() -> (Arc<Self>, Ears) {
        let (told, heard) = mpsc::unbounded_channel();
        let recorder = Self {
            told,
            hello: Mutex::new(Ok(())),
            on_offer: Mutex::new(Box::new(|_| Ok(()))),
            sink_fails: Mutex::new(false),
        };
        (Arc::new(recorder), Ears { heard })
    }

    fn tell(&self, told: Told) {
        // A test that has seen enough no longer listens.
        let _ = self.told.send(told);
    }
}

impl Delivery for Recorder {
    fn messages(&self, from: HostId, batch: Vec<Envelope>) {
        self.tell(Told::Messages(from, batch));
    }

    fn unreachable(&self, to: HostId, replicas: Vec<(GroupId, ReplicaId)>) {
        self.tell(Told::Unreachable(to, replicas));
    }

    fn hello(&self, hello: PeerHello) -> Result<(), HelloRefusal> {
        self.tell(Told::Hello(hello));
        self.hello.lock().expect("no panic").clone()
    }

    fn snapshot_offered(
        &self,
        _from: HostId,
        offer: SnapshotOffer,
    ) -> Result<Box<dyn SnapshotSink>, SnapshotRefusal> {
        (self.on_offer.lock().expect("no panic"))(&offer)?;
        let fails = *self.sink_fails.lock().expect("no panic");
        Ok(Box::new(RecordingSink {
            told: self.told.clone(),
            fails,
        }))
    }

    fn event(&self, event: TransportEvent) {
        self.tell(Told::Event(event));
    }
}

struct RecordingSink {
    told: mpsc::UnboundedSender<Told>,
    fails: bool,
}

impl SnapshotSink for RecordingSink {
    fn block(&mut self, block: Bytes) -> Result<(), BoxError> {
        if self.fails {
            return Err("disk full".into());
        }
        let _ = self.told.send(Told::Block(block));
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), BoxError> {
        let _ = self.told.send(Told::Finished);
        Ok(())
    }

    fn abort(self: Box<Self>, reason: SnapshotAbort) {
        let _ = self.told.send(Told::Aborted(reason));
    }
}

/// Hears what a [`Recorder`] was told.
pub(crate) struct Ears {
    heard: mpsc::UnboundedReceiver<Told>,
}

impl Ears {
    /// Waits for something that `pick` picks, and forgets what came before.
    pub(crate) async fn wait<T>(&mut self, mut pick: impl FnMut(Told) -> Option<T>) -> T {
        let mut missed = Vec::new();
        let waited = tokio::time::timeout(PATIENCE, async {
            loop {
                let told = self.heard.recv().await.expect("the recorder lives");
                missed.push(format!("{told:.200?}"));
                if let Some(picked) = pick(told) {
                    return picked;
                }
            }
        });
        match waited.await {
            Ok(picked) => picked,
            Err(_) => panic!("waited in vain; heard {missed:#?}"),
        }
    }

    pub(crate) async fn event(
        &mut self,
        mut is_it: impl FnMut(&TransportEvent) -> bool,
    ) -> TransportEvent {
        self.wait(|told| match told {
            Told::Event(event) if is_it(&event) => Some(event),
            _ => None,
        })
        .await
    }

    pub(crate) async fn connected(&mut self) -> HostId {
        self.wait(|told| match told {
            Told::Event(TransportEvent::Connected { host }) => Some(host),
            _ => None,
        })
        .await
    }

    /// Waits until `count` messages came.
    pub(crate) async fn messages(&mut self, count: usize) -> Vec<Envelope> {
        let (mut messages, mut sender) = (Vec::new(), None);
        self.wait(|told| {
            if let Told::Messages(from, batch) = told {
                assert!(sender.is_none_or(|it| it == from), "one test, one sender");
                sender = Some(from);
                messages.extend(batch);
            }
            (messages.len() >= count).then_some(())
        })
        .await;
        messages
    }
}

/// An address book that can be written while it is read.
#[derive(Default)]
pub(crate) struct Book(Mutex<Vec<(HostId, SocketAddr)>>);

impl Book {
    pub(crate) fn set(&self, host: HostId, address: SocketAddr) {
        let mut entries = self.0.lock().expect("no panic");
        entries.retain(|(it, _)| *it != host);
        entries.push((host, address));
    }
}

impl Addresses for Book {
    fn address(&self, host: HostId) -> Option<SocketAddr> {
        let entries = self.0.lock().expect("no panic");
        entries
            .iter()
            .find(|(it, _)| *it == host)
            .map(|(_, address)| *address)
    }
}

pub(crate) fn config(id: u64, deployment: &str) -> TransportConfig {
    TransportConfig {
        host: host(id),
        deployment: deployment.to_owned(),
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        uuid: [id.to_le_bytes()[0]; 16],
        open_count: 1,
        advertised: Bytes::copy_from_slice(&id.to_le_bytes()),
        limits: Limits::default(),
    }
}

/// Starts a host and writes it into the book.
pub(crate) fn start(
    config: TransportConfig,
    identity: TransportIdentity,
    book: &Arc<Book>,
) -> (Transport, Arc<Recorder>, Ears) {
    let (recorder, ears) = Recorder::new();
    let id = config.host;
    let transport = Transport::start(
        &Handle::current(),
        config,
        identity,
        Arc::clone(book) as Arc<dyn Addresses>,
        Arc::clone(&recorder) as Arc<dyn Delivery>,
    )
    .expect("it starts");
    book.set(id, transport.local_addr().expect("an address"));
    (transport, recorder, ears)
}

/// An append of one entry that carries `payload`, on the bulk lane of its group.
pub(crate) fn envelope(group_id: u64, payload: &[u8]) -> Envelope {
    let mut batch = BatchBuilder::new(group(group_id), Term::new(1), Index::new(1), 64);
    batch.push(EntryKind::Command, 0, None, payload);
    Envelope {
        group: group(group_id),
        epoch: 1,
        message: Message {
            from: replica(1),
            to: replica(2),
            term: Term::new(1),
            body: Body::Append {
                prev: EntryId::ZERO,
                commit: Index::ZERO,
                entries: batch.finish().expect("one entry").into(),
            },
        },
    }
}
