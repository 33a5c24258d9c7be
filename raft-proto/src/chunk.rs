//! Where a leader encodes its entries: batches are cut from one chunk of memory until it is full, so
//! that a busy group allocates once for many of them; and a full chunk is written again when nobody
//! holds a batch of it any more, so that one that stays busy does not allocate at all.

use alloc::collections::VecDeque;

use bytes::BytesMut;

/// Chunks double up to this size while the group is busy.
const CHUNK_BYTES_MAX: usize = 64 << 10;

/// A chunk of which everything is given away, but for the handle that can win it back.
#[derive(Debug)]
struct Full {
    buffer: BytesMut,
    size: usize,
}

/// The chunk in use, and those before it.
///
/// A batch keeps the chunk that it was cut from alive. Whoever holds few bytes of a batch for long
/// copies them.
///
/// Invariant: `full_bytes` is the sum of the sizes of `full`, and at most `full_bytes_max`.
#[derive(Debug)]
pub(crate) struct Chunk {
    rest: BytesMut,
    /// The size of the chunk in use.
    size: usize,
    is_used: bool,
    /// The oldest first: it is the first to be free again.
    full: VecDeque<Full>,
    full_bytes: usize,
    full_bytes_max: usize,
}

impl Chunk {
    /// Makes one that remembers full chunks of at most `full_bytes_max` together.
    pub(crate) fn new(full_bytes_max: usize) -> Self {
        Self {
            rest: BytesMut::new(),
            size: 0,
            is_used: false,
            full: VecDeque::new(),
            full_bytes: 0,
            full_bytes_max,
        }
    }

    /// Hands out a buffer with room for `bytes`; what is left of it comes back by [`Self::put`].
    pub(crate) fn take(&mut self, bytes: usize) -> BytesMut {
        self.is_used = true;
        if self.rest.capacity() < bytes && !self.rest.try_reclaim(bytes) {
            self.change(bytes);
        }
        core::mem::take(&mut self.rest)
    }

    pub(crate) fn put(&mut self, rest: BytesMut) {
        self.rest = rest;
    }

    /// Puts the chunk in use aside, for the oldest one if that is free, or for a new one.
    fn change(&mut self, bytes: usize) {
        // One that is too small now would only bar the way to those behind it.
        while let Some(oldest) = self.full.front()
            && oldest.size < bytes
        {
            self.forget_oldest();
        }
        let is_free = self
            .full
            .front_mut()
            .is_some_and(|oldest| oldest.buffer.try_reclaim(bytes));
        let freed = is_free.then(|| self.forget_oldest()).flatten();
        let next = match freed {
            Some(freed) => freed,
            None => {
                let size = bytes.max(CHUNK_BYTES_MAX.min(2 * self.size));
                let buffer = BytesMut::with_capacity(size);
                Full { buffer, size }
            }
        };
        let buffer = core::mem::replace(&mut self.rest, next.buffer);
        let size = core::mem::replace(&mut self.size, next.size);
        if size > 0 {
            self.full.push_back(Full { buffer, size });
            self.full_bytes += size;
        }
        while self.full_bytes > self.full_bytes_max {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) -> Option<Full> {
        let oldest = self.full.pop_front()?;
        self.full_bytes -= oldest.size;
        Some(oldest)
    }

    /// Forgets all chunks: each goes with its last batch.
    pub(crate) fn clear(&mut self) {
        *self = Self::new(self.full_bytes_max);
    }

    /// Forgets all chunks if nothing was taken since the last call: a group at rest holds none.
    pub(crate) fn rest(&mut self) {
        if !core::mem::take(&mut self.is_used) {
            self.clear();
        }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.rest.capacity() + self.full_bytes + self.full.len() * size_of::<Full>()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn cut(chunk: &mut Chunk, bytes: usize) -> Bytes {
        let mut buffer = chunk.take(bytes);
        assert!(buffer.capacity() >= bytes);
        buffer.resize(bytes, 1);
        let cut = buffer.split().freeze();
        chunk.put(buffer);
        cut
    }

    #[test]
    fn chunks_double_up_to_their_bound_and_go_when_nothing_is_taken() {
        let mut chunk = Chunk::new(0);
        let mut held = Vec::new();
        for _ in 0..10_000 {
            held.push(cut(&mut chunk, 48));
            assert!(chunk.memory_bytes() <= CHUNK_BYTES_MAX);
        }
        assert_eq!(chunk.size, CHUNK_BYTES_MAX);
        assert!(held.iter().all(|cut| **cut == [1; 48]));
        held.push(cut(&mut chunk, 3 * CHUNK_BYTES_MAX));
        held.push(cut(&mut chunk, 48));
        chunk.rest();
        assert!(chunk.memory_bytes() > 0, "it was used since");
        chunk.rest();
        assert_eq!(chunk.memory_bytes(), 0);
    }

    #[test]
    fn a_full_chunk_is_written_again_when_no_batch_of_it_is_held() {
        const BATCH: usize = 2 * CHUNK_BYTES_MAX;
        let mut chunk = Chunk::new(4 * BATCH);
        let mut held = VecDeque::new();
        let mut places = Vec::new();
        for _ in 0..100 {
            let batch = cut(&mut chunk, BATCH);
            places.push(batch.as_ptr());
            held.push_back(batch);
            if held.len() > 3 {
                held.pop_front();
            }
            assert!(chunk.memory_bytes() <= 6 * BATCH);
        }
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), 4, "as many chunks as are held at once");
    }

    #[test]
    fn chunks_that_are_held_for_long_are_forgotten_beyond_the_bound() {
        const BATCH: usize = 2 * CHUNK_BYTES_MAX;
        let mut chunk = Chunk::new(4 * BATCH);
        let held: Vec<Bytes> = (0..50).map(|_| cut(&mut chunk, BATCH)).collect();
        assert_eq!(chunk.full_bytes, 4 * BATCH);
        assert_eq!(chunk.full.len(), 4);
        assert!(held.iter().all(|batch| batch.iter().all(|&byte| byte == 1)));
    }
}
