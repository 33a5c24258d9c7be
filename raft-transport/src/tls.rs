//! Who this host is, and how it tells who others are: TLS 1.3, certificates on both sides.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use raft_proto::HostId;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::error::{Refusal, TransportError};

/// The application protocol of a connection for messages.
pub(crate) const ALPN_MESSAGES: &[u8] = b"raft-messages/1";
/// The application protocol of a connection for one snapshot.
pub(crate) const ALPN_SNAPSHOT: &[u8] = b"raft-snapshot/1";

/// A host's certificate and key, and the CAs that it trusts.
///
/// The certificate carries the DNS name `h<host>.<deployment>.raft` and is used both as a
/// server's and as a client's.
pub struct TransportIdentity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for TransportIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransportIdentity")
            .field("names", &self.names())
            .finish_non_exhaustive()
    }
}

impl TransportIdentity {
    /// Reads a certificate chain, its private key and the trusted CAs, each a PEM file.
    ///
    /// # Errors
    ///
    /// [`TransportError::Pem`] names the file that cannot be used.
    pub fn from_pem_files(
        cert: impl AsRef<Path>,
        key: impl AsRef<Path>,
        ca: impl AsRef<Path>,
    ) -> Result<Self, TransportError> {
        let chain = read_certificates(cert.as_ref())?;
        let mut roots = RootCertStore::empty();
        for root in read_certificates(ca.as_ref())? {
            roots
                .add(root)
                .map_err(|error| pem_error(ca.as_ref(), &error))?;
        }
        let key = PrivateKeyDer::from_pem_file(key.as_ref())
            .map_err(|error| pem_error(key.as_ref(), &error))?;
        Ok(Self::from_rustls(chain, key, roots, default_provider()))
    }

    /// Takes rustls's own types: for keys that do not lie in files, or another crypto provider.
    #[must_use]
    pub fn from_rustls(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        roots: RootCertStore,
        provider: Arc<CryptoProvider>,
    ) -> Self {
        Self {
            chain,
            key,
            roots: Arc::new(roots),
            provider,
        }
    }

    /// What only this host knows, the same at each start.
    pub(crate) fn secret(&self) -> &[u8] {
        self.key.secret_der()
    }

    /// The DNS names of the certificate.
    fn names(&self) -> Vec<String> {
        self.chain.first().map(dns_names).unwrap_or_default()
    }

    /// Checks that the certificate is that of `host` in `deployment`.
    ///
    /// [`Transport::start`](crate::Transport::start) does so itself; this is for those who want to
    /// know before they have opened anything.
    ///
    /// # Errors
    ///
    /// [`TransportError::OtherName`].
    pub fn check(&self, host: HostId, deployment: &str) -> Result<(), TransportError> {
        let (expected, found) = (host_name(host, deployment), self.names());
        if found.contains(&expected) {
            Ok(())
        } else {
            Err(TransportError::OtherName { expected, found })
        }
    }

    /// What an accepting host uses: both protocols, a certificate asked of every client.
    pub(crate) fn server(&self) -> Result<Arc<QuicServerConfig>, TransportError> {
        let roots = Arc::clone(&self.roots);
        let provider = || Arc::clone(&self.provider);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
            .build()
            .map_err(|error| identity_error(&error))?;
        let mut tls = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| identity_error(&error))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|error| identity_error(&error))?;
        tls.alpn_protocols = vec![ALPN_MESSAGES.to_vec(), ALPN_SNAPSHOT.to_vec()];
        tls.session_storage = Arc::new(NoServerSessionStorage {});
        tls.send_tls13_tickets = 0;
        tls.max_early_data_size = 0;
        let quic = QuicServerConfig::try_from(tls).map_err(|error| identity_error(&error))?;
        Ok(Arc::new(quic))
    }

    /// What a dialling host uses, for one of the protocols.
    pub(crate) fn client(&self, alpn: &[u8]) -> Result<Arc<QuicClientConfig>, TransportError> {
        let mut tls = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| identity_error(&error))?
            .with_root_certificates(Arc::clone(&self.roots))
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|error| identity_error(&error))?;
        tls.alpn_protocols = vec![alpn.to_vec()];
        tls.resumption = Resumption::disabled();
        tls.enable_early_data = false;
        let quic = QuicClientConfig::try_from(tls).map_err(|error| identity_error(&error))?;
        Ok(Arc::new(quic))
    }
}

/// The name that the certificate of `host` carries.
pub(crate) fn host_name(host: HostId, deployment: &str) -> String {
    format!("h{host}.{deployment}.raft")
}

/// Reads the host from the certificate of an authenticated connection.
pub(crate) fn peer_host(
    connection: &quinn::Connection,
    deployment: &str,
) -> Result<HostId, Refusal> {
    let identity = connection.peer_identity().ok_or(Refusal::NoCertificate)?;
    let chain = identity
        .downcast::<Vec<CertificateDer<'static>>>()
        .map_err(|_| Refusal::NoCertificate)?;
    let certificate = chain.first().ok_or(Refusal::NoCertificate)?;
    host_of_names(&dns_names(certificate), deployment)
}

/// The application protocol that was agreed on.
pub(crate) fn is_snapshot(connection: &quinn::Connection) -> bool {
    let data = connection.handshake_data();
    let data = data.and_then(|data| data.downcast::<quinn::crypto::rustls::HandshakeData>().ok());
    data.is_some_and(|data| data.protocol.as_deref() == Some(ALPN_SNAPSHOT))
}

fn host_of_names(names: &[String], deployment: &str) -> Result<HostId, Refusal> {
    let mut other = None;
    for name in names {
        let Some((host, found)) = parse_name(name) else {
            continue;
        };
        if found == deployment {
            return Ok(host);
        }
        other = Some(found.to_owned());
    }
    Err(
        other.map_or(Refusal::NoHostName, |found| Refusal::OtherDeployment {
            found,
        }),
    )
}

fn parse_name(name: &str) -> Option<(HostId, &str)> {
    let (host, deployment) = name
        .strip_prefix('h')?
        .strip_suffix(".raft")?
        .split_once('.')?;
    let id = HostId::new(host.parse().ok()?)?;
    // One spelling of each id: "007" and "+7" are nobody.
    (id.to_string() == host).then_some((id, deployment))
}

fn dns_names(certificate: &CertificateDer<'static>) -> Vec<String> {
    webpki::EndEntityCert::try_from(certificate)
        .map(|certificate| certificate.valid_dns_names().map(str::to_owned).collect())
        .unwrap_or_default()
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TransportError> {
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| pem_error(path, &error))?;
    if certificates.is_empty() {
        return Err(pem_error(path, &"it holds no certificate"));
    }
    Ok(certificates)
}

fn pem_error(path: &Path, detail: &dyn ToString) -> TransportError {
    TransportError::Pem {
        path: path.to_owned(),
        detail: detail.to_string(),
    }
}

fn identity_error(detail: &dyn ToString) -> TransportError {
    TransportError::Identity {
        detail: detail.to_string(),
    }
}

#[cfg(feature = "aws-lc-rs")]
fn default_provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

#[cfg(all(feature = "ring", not(feature = "aws-lc-rs")))]
fn default_provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_spelling() {
        let parsed = |name| parse_name(name).map(|(host, deployment)| (host.get(), deployment));
        assert_eq!(parsed("h12.demo.raft"), Some((12, "demo")));
        for name in [
            "h0.demo.raft",
            "h+1.demo.raft",
            "h01.demo.raft",
            "h1.raft",
            "1.demo.raft",
        ] {
            assert_eq!(parsed(name), None, "{name}");
        }
    }

    #[test]
    fn fault_48_another_deployment_is_told_from_no_name_at_all() {
        let names = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        };
        let found = host_of_names(&names(&["localhost", "h2.demo.raft"]), "demo");
        assert_eq!(found, Ok(HostId::new(2).expect("an id")));
        let other = Refusal::OtherDeployment {
            found: "prod".into(),
        };
        assert_eq!(host_of_names(&names(&["h2.prod.raft"]), "demo"), Err(other));
        assert_eq!(
            host_of_names(&names(&["localhost"]), "demo"),
            Err(Refusal::NoHostName)
        );
    }
}
