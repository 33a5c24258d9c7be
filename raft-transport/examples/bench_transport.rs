//! Measures two transports over loopback in one process: round trips, then one-way throughput.
//!
//! `cargo run --release -p raft-transport --example bench_transport -- [--json] [--payload B]
//! [--batch N] [--groups G] [--seconds S]`
//!
//! The conditions are part of the output: both ends share the process and its cores, certificates
//! are checked both ways, and every message is encoded, framed, encrypted, decoded and delivered.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use raft_proto::{
    BatchBuilder, Body, EntryId, EntryKind, Envelope, GroupId, HostId, Index, Message, ReplicaId,
    Term,
};
use raft_transport::{
    Addresses, Delivery, HelloRefusal, Limits, PeerHello, SnapshotOffer, SnapshotRefusal,
    SnapshotSink, Transport, TransportConfig, TransportEvent, TransportIdentity,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::PrivateKeyDer;

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let (one, two) = (HostId::new(1).ok_or("id")?, HostId::new(2).ok_or("id")?);
    let book = Arc::new(Book::default());
    let authority = Authority::new()?;
    let (one_ends, pongs) = End::new();
    let (two_ends, pings) = End::new();
    let first = authority.start(&runtime, one, &book, Arc::clone(&one_ends))?;
    let second = Arc::new(authority.start(&runtime, two, &book, Arc::clone(&two_ends))?);
    book.set(
        first.local_addr().ok_or("no address")?,
        second.local_addr().ok_or("no address")?,
    );
    first.connect(two);

    // Round trips: the second host answers each message on its network task.
    let ping = |n| message(n, 64);
    let answerer = Arc::clone(&second);
    two_ends.answer_with(Box::new(move |batch| answerer.send(one, batch)));
    let mut round_trips = Vec::new();
    for n in 0..options.round_trips + 100 {
        let began = Instant::now();
        first.send(two, vec![ping(1 + n % 8)?]);
        pongs.recv_timeout(Duration::from_secs(10))?;
        if n >= 100 {
            round_trips.push(began.elapsed());
        }
    }
    round_trips.sort_unstable();
    two_ends.answer_with(Box::new(drop));

    // Throughput: as much as the window takes, for some seconds.
    let batch = (0..options.batch)
        .map(|n| message(1 + n % options.groups, options.payload))
        .collect::<Result<Vec<_>, _>>()?;
    let message_bytes = batch.first().ok_or("no message")?.encoded_bytes();
    let queue_bytes = usize::try_from(Limits::default().queue_bytes_max)?;
    let in_queue = u64::try_from(queue_bytes / 2 / message_bytes)?;
    let outstanding = options.outstanding.min(in_queue);
    while pings.try_recv().is_ok() {}
    let before = (second.stats(), cpu_seconds());
    let began = Instant::now();
    let mut sent = 0;
    while began.elapsed() < options.duration {
        // A window of messages in flight, as flow control above the transport has it.
        while sent - (second.stats().messages_received - before.0.messages_received) > outstanding {
            pings.recv_timeout(Duration::from_secs(10))?;
        }
        first.send(two, batch.clone());
        sent += options.batch;
    }
    let elapsed = began.elapsed().as_secs_f64();
    let after = (second.stats(), cpu_seconds());
    let received = after.0.messages_received - before.0.messages_received;
    let bytes = after.0.bytes_received - before.0.bytes_received;
    let per_s = |count: u64| ratio(count, elapsed);
    let report = serde_json::json!({
        "conditions": "one process, loopback, mutual TLS 1.3, both ends share all cores",
        "cores": std::thread::available_parallelism()?.get(),
        "payload_bytes": options.payload,
        "batch": options.batch,
        "groups": options.groups,
        "outstanding": outstanding,
        "seconds": elapsed,
        "round_trip_p50_us": micros(&round_trips, 50),
        "round_trip_p99_us": micros(&round_trips, 99),
        "messages_per_s": per_s(received),
        "bytes_per_s": per_s(bytes),
        "cpu_s_per_gb": (after.1 - before.1) * 1e9 / ratio(bytes, 1.0),
        "us_cpu_per_message": (after.1 - before.1) * 1e6 / ratio(received, 1.0),
        "messages_dropped": first.stats().messages_dropped,
    });
    print(&report, options.json);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "this is what the program is for")]
fn print(report: &serde_json::Value, is_json: bool) {
    if is_json {
        println!("{report}");
    } else {
        for (key, value) in report.as_object().into_iter().flatten() {
            println!("{key:20} {value}");
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn ratio(count: u64, by: f64) -> f64 {
    count as f64 / by
}

fn micros(sorted: &[Duration], percent: usize) -> f64 {
    let place = sorted.len().saturating_sub(1) * percent / 100;
    sorted.get(place).map_or(0.0, |it| it.as_secs_f64() * 1e6)
}

/// User and system time of this process. Source: proc(5), `stat` fields 14 and 15, in ticks of
/// 10 ms.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace();
    let ticks = fields
        .skip(11)
        .take(2)
        .filter_map(|it| it.parse::<u64>().ok())
        .sum();
    ratio(ticks, 100.0)
}

struct Options {
    json: bool,
    payload: usize,
    batch: u64,
    groups: u64,
    outstanding: u64,
    round_trips: u64,
    duration: Duration,
}

impl Options {
    fn parse() -> Result<Self, Box<dyn Error>> {
        let mut options = Self {
            json: false,
            payload: 48,
            batch: 64,
            groups: 48,
            outstanding: 200_000,
            round_trips: 2_000,
            duration: Duration::from_secs(3),
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            match word.as_str() {
                "--json" => options.json = true,
                "--payload" => options.payload = value()?.parse()?,
                "--batch" => options.batch = value()?.parse::<u64>()?.max(1),
                "--groups" => options.groups = value()?.parse::<u64>()?.max(1),
                "--outstanding" => options.outstanding = value()?.parse()?,
                "--round-trips" => options.round_trips = value()?.parse()?,
                "--seconds" => options.duration = Duration::from_secs(value()?.parse()?),
                _ => return Err(format!("unknown option {word}").into()),
            }
        }
        Ok(options)
    }
}

type Answer = Box<dyn Fn(Vec<Envelope>) + Send + Sync>;

struct End {
    arrived: mpsc::Sender<()>,
    answer: std::sync::RwLock<Answer>,
    count: AtomicU64,
}

impl End {
    fn new() -> (Arc<Self>, mpsc::Receiver<()>) {
        let (arrived, arrivals) = mpsc::channel();
        let answer: Answer = Box::new(drop);
        let end = Self {
            arrived,
            answer: std::sync::RwLock::new(answer),
            count: AtomicU64::new(0),
        };
        (Arc::new(end), arrivals)
    }

    fn answer_with(&self, answer: Answer) {
        *self.answer.write().expect("no panic") = answer;
    }
}

impl Delivery for End {
    fn messages(&self, _from: HostId, batch: Vec<Envelope>) {
        self.count.fetch_add(1, Ordering::Relaxed);
        (self.answer.read().expect("no panic"))(batch);
        // Nobody listens at the second host.
        let _ = self.arrived.send(());
    }

    fn unreachable(&self, _to: HostId, _replicas: Vec<(GroupId, ReplicaId)>) {}

    fn hello(&self, _hello: PeerHello) -> Result<(), HelloRefusal> {
        Ok(())
    }

    fn snapshot_offered(
        &self,
        _from: HostId,
        _offer: SnapshotOffer,
    ) -> Result<Box<dyn SnapshotSink>, SnapshotRefusal> {
        Err(SnapshotRefusal::UnknownReplica)
    }

    fn event(&self, _event: TransportEvent) {}
}

#[derive(Default)]
struct Book(std::sync::OnceLock<[SocketAddr; 2]>);

impl Book {
    fn set(&self, one: SocketAddr, two: SocketAddr) {
        self.0.get_or_init(|| [one, two]);
    }
}

impl Addresses for Book {
    fn address(&self, host: HostId) -> Option<SocketAddr> {
        self.0
            .get()
            .map(|[one, two]| if host.get() == 1 { *one } else { *two })
    }
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: rcgen::Certificate,
}

impl Authority {
    fn new() -> Result<Self, Box<dyn Error>> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let root = params.self_signed(&key)?;
        Ok(Self {
            issuer: Issuer::new(params, key),
            root,
        })
    }

    fn start(
        &self,
        runtime: &tokio::runtime::Runtime,
        host: HostId,
        book: &Arc<Book>,
        end: Arc<End>,
    ) -> Result<Transport, Box<dyn Error>> {
        let key = KeyPair::generate()?;
        let params = CertificateParams::new(vec![format!("h{host}.bench.raft")])?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(self.root.der().clone())?;
        let chain = vec![certificate.der().clone()];
        let key = PrivateKeyDer::try_from(key.serialize_der())?;
        let identity = TransportIdentity::from_rustls(chain, key, roots, provider());
        let config = TransportConfig {
            host,
            deployment: "bench".into(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            uuid: [0; 16],
            open_count: 1,
            advertised: bytes::Bytes::new(),
            limits: Limits::default(),
        };
        let book = Arc::clone(book) as Arc<dyn Addresses>;
        Ok(Transport::start(
            runtime.handle(),
            config,
            identity,
            book,
            end,
        )?)
    }
}

#[cfg(feature = "aws-lc-rs")]
fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

#[cfg(not(feature = "aws-lc-rs"))]
fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// An append of one entry with `payload` bytes.
fn message(group: u64, payload: usize) -> Result<Envelope, Box<dyn Error>> {
    let group = GroupId::new(group).ok_or("an id")?;
    let replica = |id| ReplicaId::new(id).ok_or("an id");
    let mut batch = BatchBuilder::new(group, Term::new(1), Index::new(1), payload + 64);
    batch.push(EntryKind::Command, 0, None, &vec![7; payload]);
    let body = Body::Append {
        prev: EntryId::ZERO,
        commit: Index::ZERO,
        entries: batch.finish().ok_or("an entry")?.into(),
    };
    let (from, to, term) = (replica(1)?, replica(2)?, Term::new(1));
    Ok(Envelope {
        group,
        epoch: 1,
        message: Message {
            from,
            to,
            term,
            body,
        },
    })
}
