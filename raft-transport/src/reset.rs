//! How peers learn at once that a host was killed and is back.
//!
//! A process that was killed says no goodbye: its peers send into a connection that nobody knows
//! until it times out. The new process answers such packets with a stateless reset, which a peer
//! believes only if it carries the token that the old process had promised. So the key of these
//! tokens is the same in both: it is derived from the host's private key.
//!
//! Source: RFC 9000, section 10.3.

use std::sync::Arc;

use quinn::crypto::{CryptoError, HmacKey};
use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig};

/// Bytes of a connection id; QUIC allows 20.
const ID_BYTES: usize = 12;

/// An endpoint's configuration whose resets peers of the process before believe.
///
/// `secret` is the host's own, the same at each start; `start` is never the same at two.
pub(crate) fn endpoint_config(secret: &[u8], start: &[u8]) -> EndpointConfig {
    let reset = blake3::derive_key("flotilla raft-transport stateless reset 1", secret);
    let mut ids = blake3::Hasher::new_derive_key("flotilla raft-transport connection ids 1");
    let ids = *ids.update(secret).update(start).finalize().as_bytes();
    let mut config = EndpointConfig::new(Arc::new(ResetKey(reset)));
    // Those of the process before must pass, or its packets would not be answered: so ids are
    // unpredictable, and any of the right length is taken for one.
    config.cid_generator(move || Box::new(Ids { key: ids, made: 0 }));
    config
}

struct ResetKey([u8; 32]);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(blake3::keyed_hash(&self.0, data).as_bytes());
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        // A comparison in constant time.
        match blake3::Hash::from_slice(signature) {
            Ok(signature) if signature == blake3::keyed_hash(&self.0, data) => Ok(()),
            _ => Err(CryptoError),
        }
    }
}

struct Ids {
    key: [u8; 32],
    made: u64,
}

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        self.made += 1;
        let hash = blake3::keyed_hash(&self.key, &self.made.to_le_bytes());
        ConnectionId::new(&hash.as_bytes()[..ID_BYTES])
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_that_of_its_data_and_key_alone() {
        let (key, other) = (ResetKey([1; 32]), ResetKey([2; 32]));
        let mut signature = [0; 32];
        key.sign(b"data", &mut signature);
        assert!(key.verify(b"data", &signature).is_ok());
        assert!(key.verify(b"date", &signature).is_err());
        assert!(other.verify(b"data", &signature).is_err());
        assert!(key.verify(b"data", &signature[1..]).is_err());
    }

    #[test]
    fn no_connection_id_comes_twice_not_even_after_a_restart() {
        let made = |start: u8| {
            let key = blake3::derive_key("test", &[start]);
            let mut ids = Ids { key, made: 0 };
            (0..1_000)
                .map(|_| ids.generate_cid().to_vec())
                .collect::<Vec<_>>()
        };
        let all: std::collections::BTreeSet<_> = made(1).into_iter().chain(made(2)).collect();
        assert_eq!(all.len(), 2_000);
    }
}
