//! Hello: how two hosts introduce themselves, first on each connection.

use std::sync::Arc;

use bytes::Bytes;
use raft_proto::HostId;
use serde::{Deserialize, Serialize};

use crate::config::{ADVERTISED_BYTES_MAX, TransportConfig};
use crate::delivery::{Delivery, HelloRefusal, PeerHello};
use crate::error::{ConnectionEnd, Refusal};

/// The version of Hello's own format.
const FORMAT: u8 = 1;
/// Bytes of Hello, version byte included.
const BYTES_MAX: usize = 512;
/// The protocol versions that this build speaks.
const PROTOCOL_MIN: u16 = 1;
const PROTOCOL_MAX: u16 = 1;

/// What a host says of itself. Fields are only ever appended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) deployment: String,
    pub(crate) host: HostId,
    pub(crate) uuid: [u8; 16],
    pub(crate) open_count: u64,
    pub(crate) protocol_min: u16,
    pub(crate) protocol_max: u16,
    #[serde(with = "crate::byte_string")]
    pub(crate) advertised: Bytes,
}

impl Hello {
    pub(crate) fn new(config: &TransportConfig) -> Self {
        Self {
            deployment: config.deployment.clone(),
            host: config.host,
            uuid: config.uuid,
            open_count: config.open_count,
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL_MAX,
            advertised: config.advertised.clone(),
        }
    }

    fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![FORMAT]).expect("Hello has no value that cannot be encoded")
    }

    /// Bytes behind the known fields are ignored: they are fields of a newer version.
    fn decode(bytes: &[u8]) -> Result<Self, Refusal> {
        match bytes {
            [FORMAT, rest @ ..] => match postcard::take_from_bytes(rest) {
                Ok((hello, _)) => Ok(hello),
                Err(_) => Err(Refusal::MalformedHello),
            },
            _ => Err(Refusal::MalformedHello),
        }
    }

    /// Checks the peer's Hello against its certificate and against our own.
    fn check(&self, ours: &Self, certificate: HostId) -> Result<(), Refusal> {
        if self.deployment != ours.deployment {
            return Err(Refusal::OtherDeployment {
                found: self.deployment.clone(),
            });
        }
        if self.host != certificate {
            return Err(Refusal::OtherHost {
                certificate,
                hello: self.host,
            });
        }
        let (min, max) = (self.protocol_min, self.protocol_max);
        if min > max || min > ours.protocol_max || max < ours.protocol_min {
            return Err(Refusal::Version { min, max });
        }
        if self.advertised.len() > ADVERTISED_BYTES_MAX {
            return Err(Refusal::MalformedHello);
        }
        Ok(())
    }
}

/// Sends our Hello: two bytes of length, little-endian, and the Hello.
pub(crate) async fn send(
    connection: &quinn::Connection,
    stream: &mut quinn::SendStream,
    ours: &Hello,
) -> Result<(), ConnectionEnd> {
    let body = ours.encode();
    let length = u16::try_from(body.len()).expect("a DNS label and some numbers");
    let mut out = length.to_le_bytes().to_vec();
    out.extend_from_slice(&body);
    let written = stream.write_all(&out).await;
    written.map_err(|error| ConnectionEnd::of_stream(connection, &error))
}

/// Receives the peer's Hello, checks it, and asks the delivery.
pub(crate) async fn receive(
    connection: &quinn::Connection,
    stream: &mut quinn::RecvStream,
    ours: &Hello,
    certificate: HostId,
    delivery: &Arc<dyn Delivery>,
) -> Result<(), ConnectionEnd> {
    let mut length = [0; 2];
    read_exact(connection, stream, &mut length).await?;
    let body = usize::from(u16::from_le_bytes(length));
    let mut buffer = [0; BYTES_MAX];
    let Some(body) = buffer.get_mut(..body) else {
        return Err(Refusal::MalformedHello.into());
    };
    read_exact(connection, stream, body).await?;
    let hello = Hello::decode(body)?;
    hello.check(ours, certificate)?;
    let delivery = Arc::clone(delivery);
    let hello = PeerHello {
        host: hello.host,
        uuid: hello.uuid,
        open_count: hello.open_count,
        advertised: hello.advertised,
    };
    let decide = move || delivery.hello(hello);
    let decided = tokio::task::spawn_blocking(decide)
        .await
        .unwrap_or_else(|panic| {
            Err(HelloRefusal::Unavailable {
                detail: panic.to_string(),
            })
        });
    decided.map_err(|refusal| Refusal::Hello(refusal).into())
}

async fn read_exact(
    connection: &quinn::Connection,
    stream: &mut quinn::RecvStream,
    out: &mut [u8],
) -> Result<(), ConnectionEnd> {
    match stream.read_exact(out).await {
        Ok(()) => Ok(()),
        Err(quinn::ReadExactError::FinishedEarly(_)) => Err(Refusal::MalformedHello.into()),
        Err(error) => Err(ConnectionEnd::of_stream(connection, &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(id: u64) -> HostId {
        HostId::new(id).expect("an id")
    }

    fn hello(id: u64) -> Hello {
        Hello::new(&TransportConfig {
            host: host(id),
            deployment: "demo".into(),
            listen: std::net::SocketAddr::from(([127, 0, 0, 1], 0)),
            uuid: [3; 16],
            open_count: 9,
            advertised: Bytes::from_static(b"here"),
            limits: crate::Limits::default(),
        })
    }

    #[test]
    fn survives_the_wire_and_ignores_later_fields() {
        let hello = hello(7);
        let mut bytes = hello.encode();
        assert_eq!(Hello::decode(&bytes), Ok(hello.clone()));
        bytes.extend_from_slice(b"a later field");
        assert_eq!(Hello::decode(&bytes), Ok(hello));
    }

    #[test]
    fn garbage_is_refused() {
        let bytes = hello(7).encode();
        for end in 0..bytes.len() {
            assert_eq!(Hello::decode(&bytes[..end]), Err(Refusal::MalformedHello));
        }
        assert_eq!(Hello::decode(&[2; 64]), Err(Refusal::MalformedHello));
        assert_eq!(
            Hello::decode(&[FORMAT, 0xFF, 0xFF, 0xFF, 0xFF]),
            Err(Refusal::MalformedHello)
        );
    }

    #[test]
    fn fault_48_a_hello_must_match_certificate_deployment_and_version() {
        let ours = hello(1);
        let theirs = hello(2);
        assert_eq!(theirs.check(&ours, host(2)), Ok(()));
        let refused = Refusal::OtherHost {
            certificate: host(3),
            hello: host(2),
        };
        assert_eq!(theirs.check(&ours, host(3)), Err(refused));
        let other = Hello {
            deployment: "other".into(),
            ..theirs.clone()
        };
        let refused = Refusal::OtherDeployment {
            found: "other".into(),
        };
        assert_eq!(other.check(&ours, host(2)), Err(refused));
        let loud = Hello {
            advertised: vec![0; ADVERTISED_BYTES_MAX + 1].into(),
            ..theirs.clone()
        };
        assert_eq!(loud.check(&ours, host(2)), Err(Refusal::MalformedHello));
        let newer = Hello {
            protocol_min: 7,
            protocol_max: 9,
            ..theirs
        };
        assert_eq!(
            newer.check(&ours, host(2)),
            Err(Refusal::Version { min: 7, max: 9 })
        );
    }
}
