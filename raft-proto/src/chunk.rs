//! Where a leader encodes its entries: batches are cut from one chunk of memory until it is full, so
//! that a busy group allocates once for many of them.

use bytes::BytesMut;

/// Chunks double up to this size while the group is busy.
const CHUNK_BYTES_MAX: usize = 64 << 10;

/// The chunk in use.
///
/// A batch keeps the chunk that it was cut from alive. Whoever holds few bytes of a batch for long
/// copies them.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    rest: BytesMut,
    /// The size of the latest chunk.
    size: usize,
    is_used: bool,
}

impl Chunk {
    /// Hands out a buffer with room for `bytes`; what is left of it comes back by [`Self::put`].
    pub(crate) fn take(&mut self, bytes: usize) -> BytesMut {
        self.is_used = true;
        if self.rest.capacity() < bytes && !self.rest.try_reclaim(bytes) {
            self.size = bytes.max(CHUNK_BYTES_MAX.min(2 * self.size));
            self.rest = BytesMut::with_capacity(self.size);
        }
        core::mem::take(&mut self.rest)
    }

    pub(crate) fn put(&mut self, rest: BytesMut) {
        self.rest = rest;
    }

    /// Lets the chunk go if nothing was taken since the last call: a group at rest holds none.
    pub(crate) fn rest(&mut self) {
        if !core::mem::take(&mut self.is_used) {
            *self = Self::default();
        }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.rest.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_double_up_to_their_bound_and_go_when_nothing_is_taken() {
        let mut chunk = Chunk::default();
        let mut cut = Vec::new();
        for _ in 0..10_000 {
            let mut bytes = chunk.take(48);
            assert!(bytes.capacity() >= 48);
            bytes.extend_from_slice(&[1; 48]);
            cut.push(bytes.split().freeze());
            chunk.put(bytes);
            assert!(chunk.memory_bytes() <= CHUNK_BYTES_MAX);
        }
        assert_eq!(chunk.size, CHUNK_BYTES_MAX);
        assert!(cut.iter().all(|cut| **cut == [1; 48]));
        let large = chunk.take(3 * CHUNK_BYTES_MAX);
        assert!(large.capacity() >= 3 * CHUNK_BYTES_MAX);
        chunk.put(large);
        chunk.rest();
        assert!(chunk.memory_bytes() > 0, "it was used since");
        chunk.rest();
        assert_eq!(chunk.memory_bytes(), 0);
    }
}
