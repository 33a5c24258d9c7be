//! Why a transport did not start, a peer was refused, or a connection ended.

use std::io;
use std::path::PathBuf;

use raft_proto::{DecodeError, HostId};

use crate::config::ConfigError;
use crate::delivery::HelloRefusal;

/// Why a transport could not start or take a new identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// A value is out of its bounds: correct it.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The address cannot be bound: free it or choose another.
    #[error("cannot listen")]
    Listen(#[source] io::Error),
    /// A certificate, key or CA file cannot be used: replace it.
    #[error("{path:?} holds no usable PEM: {detail}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// Certificate, key and CA do not fit together: replace them.
    #[error("the identity cannot be used: {detail}")]
    Identity {
        /// What is wrong with it.
        detail: String,
    },
    /// The certificate is that of another host or deployment: take this host's own.
    #[error("the certificate is for {found:?}, this host is {expected}")]
    OtherName {
        /// The name that it must carry.
        expected: String,
        /// The names that it carries.
        found: Vec<String>,
    },
}

/// Why this host refused a peer. The connection is closed; other peers are unaffected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The peer showed no certificate.
    #[error("no certificate")]
    NoCertificate,
    /// The certificate was signed by a CA that this host does not trust.
    #[error("the certificate is of an unknown authority")]
    UnknownAuthority,
    /// The certificate is not valid at this time.
    #[error("the certificate is expired or not yet valid")]
    Expired,
    /// The host that answered a dial is not the one that was dialled, or of another deployment.
    #[error("the certificate is not that of the host that was dialled")]
    NotTheDialledHost,
    /// Another failure of the TLS handshake.
    #[error("TLS failed with alert {alert}")]
    Tls {
        /// The alert. Source: RFC 8446, section 6.
        alert: u8,
    },
    /// The certificate carries no name of the form `h<host>.<deployment>.raft`.
    #[error("the certificate names no host")]
    NoHostName,
    /// The peer belongs to another deployment.
    #[error("the peer is of deployment {found:?}")]
    OtherDeployment {
        /// Its deployment.
        found: String,
    },
    /// The peer's Hello names another host than its certificate.
    #[error("the certificate is of host {certificate}, Hello of host {hello}")]
    OtherHost {
        /// The host of the certificate.
        certificate: HostId,
        /// The host that Hello claims.
        hello: HostId,
    },
    /// The peer dialled, and it is the one of the two that only accepts.
    #[error("host {from} dialled, but the lower id dials")]
    WrongDirection {
        /// The peer.
        from: HostId,
    },
    /// No protocol version is spoken by both.
    #[error("the peer speaks versions {min} to {max}")]
    Version {
        /// The peer's oldest.
        min: u16,
        /// The peer's newest.
        max: u16,
    },
    /// The peer's first bytes are not a Hello.
    #[error("malformed Hello")]
    MalformedHello,
    /// The delivery refused the peer's Hello.
    #[error(transparent)]
    Hello(HelloRefusal),
    /// A stream begins with other bytes than a lane does.
    #[error("malformed stream")]
    MalformedStream,
    /// A stream claims to come from another host or deployment than the connection does.
    #[error("a stream of host {connection} claims to come from host {claimed}")]
    ForeignSender {
        /// The host of the connection.
        connection: HostId,
        /// The host that the stream claims.
        claimed: u64,
    },
    /// A frame is longer than this host takes, or empty.
    #[error("a frame of {length} bytes; the bound is {bytes_max}")]
    FrameLength {
        /// What the frame claims.
        length: u32,
        /// The bound.
        bytes_max: usize,
    },
    /// A frame is not a message.
    #[error("malformed message: {detail}")]
    MalformedMessage {
        /// What is wrong with it.
        detail: String,
    },
}

impl Refusal {
    pub(crate) fn malformed(error: &DecodeError) -> Self {
        Self::MalformedMessage {
            detail: error.to_string(),
        }
    }

    pub(crate) const fn from_alert(alert: u8) -> Self {
        match RefusalKind::from_alert(alert) {
            RefusalKind::NoCertificate => Self::NoCertificate,
            RefusalKind::UnknownAuthority => Self::UnknownAuthority,
            RefusalKind::Expired => Self::Expired,
            RefusalKind::NotTheDialledHost => Self::NotTheDialledHost,
            _ => Self::Tls { alert },
        }
    }

    /// The kind, which is what the refused peer is told.
    #[must_use]
    pub const fn kind(&self) -> RefusalKind {
        match self {
            Self::NoCertificate => RefusalKind::NoCertificate,
            Self::UnknownAuthority => RefusalKind::UnknownAuthority,
            Self::Expired => RefusalKind::Expired,
            Self::NotTheDialledHost => RefusalKind::NotTheDialledHost,
            Self::Tls { .. } => RefusalKind::Tls,
            Self::NoHostName => RefusalKind::NoHostName,
            Self::OtherDeployment { .. } => RefusalKind::OtherDeployment,
            Self::OtherHost { .. } => RefusalKind::OtherHost,
            Self::WrongDirection { .. } => RefusalKind::WrongDirection,
            Self::Version { .. } => RefusalKind::Version,
            Self::MalformedHello => RefusalKind::MalformedHello,
            Self::Hello(HelloRefusal::HostReplaced) => RefusalKind::HostReplaced,
            Self::Hello(HelloRefusal::Unavailable { .. }) => RefusalKind::Unavailable,
            Self::MalformedStream => RefusalKind::MalformedStream,
            Self::ForeignSender { .. } => RefusalKind::ForeignSender,
            Self::FrameLength { .. } => RefusalKind::FrameLength,
            Self::MalformedMessage { .. } => RefusalKind::MalformedMessage,
        }
    }
}

/// The kinds of [`Refusal`], as a refused peer learns them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[repr(u32)]
#[expect(
    missing_docs,
    reason = "each is told at the variant of Refusal with the same name"
)]
pub enum RefusalKind {
    NoCertificate = 0x10,
    UnknownAuthority = 0x11,
    Expired = 0x12,
    NotTheDialledHost = 0x13,
    Tls = 0x14,
    NoHostName = 0x15,
    OtherDeployment = 0x16,
    OtherHost = 0x17,
    WrongDirection = 0x18,
    Version = 0x20,
    MalformedHello = 0x21,
    HostReplaced = 0x22,
    Unavailable = 0x23,
    MalformedStream = 0x30,
    ForeignSender = 0x31,
    FrameLength = 0x32,
    MalformedMessage = 0x33,
    /// A code of a newer version.
    Unknown = 0xFFFF,
}

/// Close codes that are not refusals.
pub(crate) const CLOSE_SHUTDOWN: u32 = 0;
pub(crate) const CLOSE_REPLACED: u32 = 1;

impl RefusalKind {
    /// The application close code of QUIC.
    pub(crate) const fn code(self) -> u32 {
        self as u32
    }

    fn from_code(code: u64) -> Self {
        const KINDS: [RefusalKind; 17] = [
            RefusalKind::NoCertificate,
            RefusalKind::UnknownAuthority,
            RefusalKind::Expired,
            RefusalKind::NotTheDialledHost,
            RefusalKind::Tls,
            RefusalKind::NoHostName,
            RefusalKind::OtherDeployment,
            RefusalKind::OtherHost,
            RefusalKind::WrongDirection,
            RefusalKind::Version,
            RefusalKind::MalformedHello,
            RefusalKind::HostReplaced,
            RefusalKind::Unavailable,
            RefusalKind::MalformedStream,
            RefusalKind::ForeignSender,
            RefusalKind::FrameLength,
            RefusalKind::MalformedMessage,
        ];
        KINDS
            .into_iter()
            .find(|kind| u64::from(kind.code()) == code)
            .unwrap_or(Self::Unknown)
    }

    /// Source: RFC 8446, section 6.2, and which of its alerts rustls sends for what.
    const fn from_alert(alert: u8) -> Self {
        match alert {
            42 => Self::NotTheDialledHost,
            45 => Self::Expired,
            // 51: an authority of a trusted name, but with another key.
            48 | 51 => Self::UnknownAuthority,
            116 => Self::NoCertificate,
            _ => Self::Tls,
        }
    }
}

/// How a connection, or the attempt at one, ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionEnd {
    /// This host refused the peer.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The peer refused this host.
    #[error("refused by the peer: {0:?}")]
    RefusedByPeer(RefusalKind),
    /// The peer does not answer. It is tried again.
    #[error("timed out")]
    TimedOut,
    /// A newer connection of the same peer took over.
    #[error("replaced by a newer connection")]
    Replaced,
    /// One of the two was closed on purpose.
    #[error("closed")]
    Closed,
    /// The address book does not know the host: add it.
    #[error("no address")]
    NoAddress,
    /// Anything else that QUIC reports.
    #[error("connection failed: {detail}")]
    Failed {
        /// What QUIC says.
        detail: String,
    },
}

impl From<quinn::ConnectionError> for ConnectionEnd {
    fn from(error: quinn::ConnectionError) -> Self {
        use quinn::ConnectionError as E;
        match error {
            E::TransportError(error) => match alert_of(error.code) {
                Some(alert) => Self::Refused(Refusal::from_alert(alert)),
                None => Self::Failed {
                    detail: error.to_string(),
                },
            },
            E::ConnectionClosed(close) => match alert_of(close.error_code) {
                Some(alert) => Self::RefusedByPeer(RefusalKind::from_alert(alert)),
                None => Self::Failed {
                    detail: close.to_string(),
                },
            },
            E::ApplicationClosed(close) => match close.error_code.into_inner() {
                0 => Self::Closed,
                1 => Self::Replaced,
                code => Self::RefusedByPeer(RefusalKind::from_code(code)),
            },
            E::TimedOut => Self::TimedOut,
            E::LocallyClosed => Self::Closed,
            other => Self::Failed {
                detail: other.to_string(),
            },
        }
    }
}

impl ConnectionEnd {
    /// The end of a connection, whose own reason counts more than that of one of its streams.
    pub(crate) fn of_stream(connection: &quinn::Connection, detail: &dyn ToString) -> Self {
        match connection.close_reason() {
            Some(reason) => reason.into(),
            None => Self::Failed {
                detail: detail.to_string(),
            },
        }
    }

    /// What the peer is told when this host ends the connection.
    pub(crate) const fn code(&self) -> u32 {
        match self {
            Self::Refused(refusal) => refusal.kind().code(),
            Self::Replaced => CLOSE_REPLACED,
            _ => CLOSE_SHUTDOWN,
        }
    }
}

/// TLS alerts are the QUIC error codes 0x100 to 0x1FF. Source: RFC 9001, section 4.8.
fn alert_of(code: quinn::TransportErrorCode) -> Option<u8> {
    let code = u64::from(code);
    u8::try_from(code.checked_sub(0x100)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_peer_learns_the_kind() {
        for refusal in [
            Refusal::MalformedHello,
            Refusal::Hello(HelloRefusal::HostReplaced),
            Refusal::FrameLength {
                length: u32::MAX,
                bytes_max: 1,
            },
            Refusal::OtherDeployment { found: "x".into() },
        ] {
            let code = u64::from(refusal.kind().code());
            assert_eq!(RefusalKind::from_code(code), refusal.kind());
        }
        assert_eq!(RefusalKind::from_code(0xABCDEF), RefusalKind::Unknown);
    }
}
