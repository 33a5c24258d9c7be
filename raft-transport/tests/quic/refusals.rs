//! Who is refused, why, and that nobody else notices. Peers that break rules are made of quinn
//! and rustls by hand.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::common::{Authority, Book, Ears, config, envelope, host, start};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, Endpoint};
use raft_transport::{
    ConnectionEnd, Refusal, RefusalKind, Transport, TransportError, TransportEvent,
    TransportIdentity,
};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A host 2 that stands, and what a stranger needs to reach it.
struct Victim {
    authority: Authority,
    transport: Transport,
    ears: Ears,
    book: Arc<Book>,
}

impl Victim {
    fn new() -> Self {
        let (authority, book) = (Authority::new(), Arc::new(Book::default()));
        let identity = authority.identity(2, "demo");
        let (transport, _, ears) = start(config(2, "demo"), identity, &book);
        Self {
            authority,
            transport,
            ears,
            book,
        }
    }

    fn address(&self) -> SocketAddr {
        self.transport.local_addr().expect("an address")
    }

    /// Connects as quinn does, with any certificate or none.
    async fn stranger(
        &self,
        files: Option<(PathBuf, PathBuf)>,
        alpn: &[u8],
    ) -> Result<(Endpoint, Connection), quinn::ConnectionError> {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(self.authority.ca()).expect("a CA");
        roots.add(ca).expect("a CA");
        let provider = Arc::new(provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(roots);
        let mut tls = match files {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let chain = vec![CertificateDer::from_pem_file(cert).expect("a certificate")];
                let key = PrivateKeyDer::from_pem_file(key).expect("a key");
                builder.with_client_auth_cert(chain, key).expect("they fit")
            }
        };
        tls.alpn_protocols = vec![alpn.to_vec()];
        let quic = QuicClientConfig::try_from(tls).expect("TLS 1.3");
        let endpoint = Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a socket");
        let connecting = endpoint
            .connect_with(
                quinn::ClientConfig::new(Arc::new(quic)),
                self.address(),
                "h2.demo.raft",
            )
            .expect("a name");
        Ok((endpoint, connecting.await?))
    }

    /// Why a connection from outside came to nothing.
    async fn accept_failed(&mut self) -> ConnectionEnd {
        let event = self
            .ears
            .event(|event| matches!(event, TransportEvent::AcceptFailed { .. }))
            .await;
        match event {
            TransportEvent::AcceptFailed { end, .. } => end,
            other => panic!("{other:?}"),
        }
    }

    /// Shows that an honest peer is served.
    async fn serves_others(&mut self) {
        let (one, _, _) = start(
            config(1, "demo"),
            self.authority.identity(1, "demo"),
            &self.book,
        );
        one.send(host(2), vec![envelope(5, b"honest")]);
        assert_eq!(self.ears.messages(1).await, [envelope(5, b"honest")]);
    }
}

#[cfg(feature = "aws-lc-rs")]
fn provider() -> rustls::crypto::CryptoProvider {
    rustls::crypto::aws_lc_rs::default_provider()
}

#[cfg(not(feature = "aws-lc-rs"))]
fn provider() -> rustls::crypto::CryptoProvider {
    rustls::crypto::ring::default_provider()
}

const MESSAGES: &[u8] = b"raft-messages/1";
const SNAPSHOT: &[u8] = b"raft-snapshot/1";

/// A Hello as the protocol page describes it.
fn hello(deployment: &str, host: u8) -> Vec<u8> {
    let mut body = vec![1, u8::try_from(deployment.len()).expect("short")];
    body.extend_from_slice(deployment.as_bytes());
    body.push(host);
    body.extend_from_slice(&[9; 16]);
    body.extend_from_slice(&[1, 1, 1, 0]);
    let mut out = u16::try_from(body.len())
        .expect("short")
        .to_le_bytes()
        .to_vec();
    out.extend_from_slice(&body);
    out
}

/// A lane's preamble as the protocol page describes it.
fn preamble(host: u64, deployment: &str) -> Vec<u8> {
    let hash = deployment
        .bytes()
        .fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3)
        });
    let mut out = vec![1, 0];
    out.extend_from_slice(&host.to_le_bytes());
    out.extend_from_slice(&hash.to_le_bytes());
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_certificate_is_refused() {
    let mut victim = Victim::new();
    let _stranger = victim.stranger(None, MESSAGES).await;
    assert_eq!(victim.accept_failed().await, Refusal::NoCertificate.into());
    victim.serves_others().await;
    assert_eq!(victim.transport.stats().refusals, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_another_authority_is_refused() {
    let mut victim = Victim::new();
    // A stranger's CA may well have the name of ours.
    for other in [Authority::new(), Authority::named("another CA")] {
        let _stranger = victim
            .stranger(Some(other.files("h1.demo.raft", 4000)), MESSAGES)
            .await;
        assert_eq!(
            victim.accept_failed().await,
            Refusal::UnknownAuthority.into()
        );
    }
    victim.serves_others().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_certificate_is_refused() {
    let mut victim = Victim::new();
    let files = victim.authority.files("h1.demo.raft", 2001);
    let _stranger = victim.stranger(Some(files), MESSAGES).await;
    assert_eq!(victim.accept_failed().await, Refusal::Expired.into());
    victim.serves_others().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_48_a_certificate_of_another_deployment_is_refused() {
    let mut victim = Victim::new();
    let files = victim.authority.files("h1.prod.raft", 4000);
    let stranger = victim
        .stranger(Some(files), MESSAGES)
        .await
        .expect("TLS itself is fine");
    let refusal = Refusal::OtherDeployment {
        found: "prod".into(),
    };
    assert_eq!(victim.accept_failed().await, refusal.into());
    let closed = ConnectionEnd::from(stranger.1.closed().await);
    assert_eq!(
        closed,
        ConnectionEnd::RefusedByPeer(RefusalKind::OtherDeployment)
    );
    victim.serves_others().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_48_a_certificate_without_a_host_name_is_refused() {
    let mut victim = Victim::new();
    let files = victim.authority.files("www.example.org", 4000);
    let _stranger = victim
        .stranger(Some(files), MESSAGES)
        .await
        .expect("TLS itself is fine");
    assert_eq!(victim.accept_failed().await, Refusal::NoHostName.into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_48_a_hello_of_another_host_than_the_certificate_is_refused() {
    let mut victim = Victim::new();
    let files = victim.authority.files("h1.demo.raft", 4000);
    let (_endpoint, connection) = victim.stranger(Some(files), MESSAGES).await.expect("TLS");
    let (mut sending, _receiving) = connection.open_bi().await.expect("a stream");
    sending.write_all(&hello("demo", 3)).await.expect("written");
    let refusal = Refusal::OtherHost {
        certificate: host(1),
        hello: host(3),
    };
    assert_eq!(victim.accept_failed().await, refusal.into());
    let closed = ConnectionEnd::from(connection.closed().await);
    assert_eq!(closed, ConnectionEnd::RefusedByPeer(RefusalKind::OtherHost));
    victim.serves_others().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_48_the_dialler_refuses_a_host_that_it_did_not_dial() {
    let (authority, book) = (Authority::new(), Arc::new(Book::default()));
    let (_three, _, mut three_hears) =
        start(config(3, "demo"), authority.identity(3, "demo"), &book);
    let (one, _, mut one_hears) = start(config(1, "demo"), authority.identity(1, "demo"), &book);
    // Host 2 is said to be where host 3 is.
    book.set(
        host(2),
        raft_transport::Addresses::address(&*book, host(3)).expect("known"),
    );
    one.connect(host(2));
    let end = ConnectionEnd::Refused(Refusal::NotTheDialledHost);
    let failed = TransportEvent::ConnectFailed { host: host(2), end };
    one_hears.event(|event| *event == failed).await;
    three_hears
        .event(|event| {
            matches!(
                event,
                TransportEvent::AcceptFailed {
                    end: ConnectionEnd::RefusedByPeer(RefusalKind::NotTheDialledHost),
                    ..
                }
            )
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_higher_host_may_not_dial() {
    let mut victim = Victim::new();
    let files = victim.authority.files("h3.demo.raft", 4000);
    let _stranger = victim.stranger(Some(files), MESSAGES).await.expect("TLS");
    assert_eq!(
        victim.accept_failed().await,
        Refusal::WrongDirection { from: host(3) }.into()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_protocol_is_refused_in_the_handshake() {
    let victim = Victim::new();
    let files = victim.authority.files("h1.demo.raft", 4000);
    let refused = victim.stranger(Some(files), b"raft-messages/99").await;
    assert!(refused.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_52_garbage_for_a_hello_is_refused() {
    let mut victim = Victim::new();
    for garbage in [&[0xFF; 600][..], &[3, 0, 1, 0xFF, 0xFF], &[1, 0, 77]] {
        let files = victim.authority.files("h1.demo.raft", 4000);
        let (_endpoint, connection) = victim.stranger(Some(files), MESSAGES).await.expect("TLS");
        let (mut sending, _receiving) = connection.open_bi().await.expect("a stream");
        sending.write_all(garbage).await.expect("written");
        assert_eq!(victim.accept_failed().await, Refusal::MalformedHello.into());
    }
    victim.serves_others().await;
}

/// Connects as host 1 and does Hello as it should be.
async fn turncoat(victim: &mut Victim) -> (Endpoint, Connection) {
    let files = victim.authority.files("h1.demo.raft", 4000);
    let (endpoint, connection) = victim.stranger(Some(files), MESSAGES).await.expect("TLS");
    let (mut sending, _receiving) = connection.open_bi().await.expect("a stream");
    sending.write_all(&hello("demo", 1)).await.expect("written");
    assert_eq!(victim.ears.connected().await, host(1));
    (endpoint, connection)
}

/// Sends bytes on a lane and returns why the victim ended the connection.
async fn refusal_of(victim: &mut Victim, bytes: &[u8]) -> ConnectionEnd {
    let (_endpoint, connection) = turncoat(victim).await;
    let mut lane = connection.open_uni().await.expect("a stream");
    lane.write_all(bytes).await.expect("written");
    let event = victim
        .ears
        .event(|event| matches!(event, TransportEvent::Disconnected { .. }))
        .await;
    let closed = ConnectionEnd::from(connection.closed().await);
    match event {
        TransportEvent::Disconnected {
            end: ConnectionEnd::Refused(refusal),
            ..
        } => {
            assert_eq!(closed, ConnectionEnd::RefusedByPeer(refusal.kind()));
            refusal.into()
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_52_a_frame_of_4_gib_closes_the_connection_and_no_other() {
    let mut victim = Victim::new();
    let mut bytes = preamble(1, "demo");
    bytes.extend_from_slice(&u32::MAX.to_le_bytes());
    let bytes_max = 16 << 20;
    let refusal = Refusal::FrameLength {
        length: u32::MAX,
        bytes_max,
    };
    assert_eq!(refusal_of(&mut victim, &bytes).await, refusal.into());
    victim.serves_others().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_52_garbage_for_a_message_closes_the_connection() {
    let mut victim = Victim::new();
    let mut bytes = preamble(1, "demo");
    bytes.extend_from_slice(&[8, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]);
    let end = refusal_of(&mut victim, &bytes).await;
    assert!(
        matches!(
            end,
            ConnectionEnd::Refused(Refusal::MalformedMessage { .. })
        ),
        "{end}"
    );
    victim.serves_others().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_48_a_lane_that_claims_another_sender_closes_the_connection() {
    let mut victim = Victim::new();
    let refusal = Refusal::ForeignSender {
        connection: host(1),
        claimed: 3,
    };
    assert_eq!(
        refusal_of(&mut victim, &preamble(3, "demo")).await,
        refusal.into()
    );
    let refusal = Refusal::ForeignSender {
        connection: host(1),
        claimed: 1,
    };
    assert_eq!(
        refusal_of(&mut victim, &preamble(1, "prod")).await,
        refusal.into()
    );
    assert_eq!(victim.transport.stats().refusals, 2);
    victim.serves_others().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_52_an_oversize_offer_is_refused() {
    let mut victim = Victim::new();
    let files = victim.authority.files("h3.demo.raft", 4000);
    let (_endpoint, connection) = victim.stranger(Some(files), SNAPSHOT).await.expect("TLS");
    let (mut sending, _receiving) = connection.open_bi().await.expect("a stream");
    let mut bytes = hello("demo", 3);
    bytes.extend_from_slice(&u32::MAX.to_le_bytes());
    sending.write_all(&bytes).await.expect("written");
    let timeout = std::time::Duration::from_secs(20);
    let closed = tokio::time::timeout(timeout, connection.closed())
        .await
        .expect("in time");
    let end = ConnectionEnd::from(closed);
    assert_eq!(
        end,
        ConnectionEnd::RefusedByPeer(RefusalKind::MalformedStream)
    );
    victim.serves_others().await;
}

#[tokio::test]
async fn a_host_does_not_start_with_the_certificate_of_another() {
    let authority = Authority::new();
    let refused = |identity: TransportIdentity| {
        let (recorder, _) = crate::common::Recorder::new();
        let book = Arc::new(Book::default());
        let runtime = tokio::runtime::Handle::current();
        Transport::start(&runtime, config(1, "demo"), identity, book, recorder)
    };
    for identity in [authority.identity(2, "demo"), authority.identity(1, "prod")] {
        let error = refused(identity).expect_err("refused");
        assert!(matches!(error, TransportError::OtherName { .. }), "{error}");
    }
    let (cert, _) = authority.files("h1.demo.raft", 4000);
    let no_key = TransportIdentity::from_pem_files(&cert, &cert, authority.ca());
    assert!(matches!(no_key, Err(TransportError::Pem { path, .. }) if path == cert));
}
