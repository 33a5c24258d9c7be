//! The frames of a lane. Pure.
//!
//! A lane is a stream: a preamble, then frames. A frame is its length, little-endian, and one
//! encoded envelope. The preamble speaks for every frame behind it.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use raft_proto::{Envelope, HostId};

use crate::error::Refusal;

/// The version of the lane format.
const VERSION: u8 = 1;

/// Bytes of [`Preamble`].
pub(crate) const PREAMBLE_BYTES: usize = 18;

/// Bytes before each envelope.
pub(crate) const FRAME_HEADER_BYTES: usize = 4;

/// What a lane begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Preamble {
    /// 0 is the control lane.
    pub(crate) lane: u8,
    /// The sender.
    pub(crate) host: HostId,
    /// [`deployment_hash`] of the sender's deployment.
    pub(crate) deployment: u64,
}

impl Preamble {
    pub(crate) fn encode(self) -> Bytes {
        let mut out = BytesMut::with_capacity(PREAMBLE_BYTES);
        out.put_u8(VERSION);
        out.put_u8(self.lane);
        out.put_u64_le(self.host.get());
        out.put_u64_le(self.deployment);
        out.freeze()
    }

    /// Checks a received preamble against the identity of its connection.
    pub(crate) fn check(mut bytes: &[u8], host: HostId, deployment: u64) -> Result<Self, Refusal> {
        if bytes.len() != PREAMBLE_BYTES || bytes.get_u8() != VERSION {
            return Err(Refusal::MalformedStream);
        }
        let lane = bytes.get_u8();
        let (claimed, claimed_deployment) = (bytes.get_u64_le(), bytes.get_u64_le());
        if claimed != host.get() || claimed_deployment != deployment {
            return Err(Refusal::ForeignSender {
                connection: host,
                claimed,
            });
        }
        Ok(Self {
            lane,
            host,
            deployment,
        })
    }
}

/// FNV-1a of a deployment's name: short and the same everywhere. It tells deployments apart by
/// mistake, not by malice: that is what certificates are for.
pub(crate) fn deployment_hash(deployment: &str) -> u64 {
    deployment
        .bytes()
        .fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
        })
}

/// Appends `envelope` as a frame.
///
/// # Panics
///
/// If it is longer than 4 GiB: the queue refuses what is over `frame_bytes_max`.
pub(crate) fn encode(envelope: &Envelope, out: &mut BytesMut) {
    let start = out.len();
    out.put_u32_le(0);
    envelope.encode_into(out);
    let length = out.len() - start - FRAME_HEADER_BYTES;
    let length = u32::try_from(length).expect("the queue bounds a message far below 4 GiB");
    out[start..start + FRAME_HEADER_BYTES].copy_from_slice(&length.to_le_bytes());
}

/// Cuts a stream of chunks into frames.
///
/// Chunks are gathered in one buffer. A frame that fills half of what came together is a slice of
/// it; a smaller one is copied out, so that no group's cache keeps other groups' messages alive:
/// what a frame holds in memory is at most twice its length.
#[derive(Debug)]
pub(crate) struct Splitter {
    gathered: BytesMut,
    bytes_max: usize,
}

impl Splitter {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            gathered: BytesMut::new(),
            bytes_max,
        }
    }

    pub(crate) fn push(&mut self, chunk: &[u8]) {
        self.gathered.extend_from_slice(chunk);
    }

    /// Takes the complete frames, without cutting them apart yet.
    ///
    /// The memory held is what the peer has sent, never what it claims: a length over the bound
    /// is refused when its four bytes are there.
    pub(crate) fn take(&mut self) -> Result<Burst, Refusal> {
        let mut end = 0;
        let mut frames = 0;
        while let Some(header) = self.gathered[end..].first_chunk::<FRAME_HEADER_BYTES>() {
            let length = u32::from_le_bytes(*header);
            let bytes = usize::try_from(length).unwrap_or(usize::MAX);
            if bytes == 0 || bytes > self.bytes_max {
                return Err(Refusal::FrameLength {
                    length,
                    bytes_max: self.bytes_max,
                });
            }
            let next = end + FRAME_HEADER_BYTES + bytes;
            if next > self.gathered.len() {
                break;
            }
            end = next;
            frames += 1;
        }
        Ok(Burst {
            bytes: self.gathered.split_to(end).freeze(),
            whole: end,
            frames,
        })
    }
}

/// Complete frames, in order.
#[derive(Debug)]
pub(crate) struct Burst {
    bytes: Bytes,
    /// Bytes of all frames together.
    whole: usize,
    frames: usize,
}

impl Iterator for Burst {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.bytes.is_empty() {
            return None;
        }
        let length = self.bytes.get_u32_le();
        self.frames -= 1;
        let length = usize::try_from(length).expect("checked against a usize when it was taken");
        let frame = self.bytes.split_to(length);
        if length < self.whole / 2 {
            return Some(Bytes::copy_from_slice(&frame));
        }
        Some(frame)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.frames, Some(self.frames))
    }
}

impl ExactSizeIterator for Burst {}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(payloads: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for payload in payloads {
            let length = u32::try_from(payload.len()).expect("short");
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(payload);
        }
        out
    }

    #[test]
    fn frames_are_the_same_however_the_stream_is_cut() {
        let payloads: [&[u8]; 4] = [b"a", b"bcd", &[7; 300], b"e"];
        let stream = framed(&payloads);
        for step in 1..stream.len() {
            let mut splitter = Splitter::new(1_024);
            let mut frames = Vec::new();
            for chunk in stream.chunks(step) {
                splitter.push(chunk);
                frames.extend(splitter.take().expect("frames"));
            }
            assert_eq!(frames, payloads, "in chunks of {step}");
        }
    }

    #[test]
    fn a_small_frame_does_not_hold_what_came_with_it() {
        let stream = framed(&[&[1; 100], &[2; 10_000], &[3; 100]]);
        let mut splitter = Splitter::new(16_384);
        splitter.push(&stream);
        let burst = splitter.take().expect("frames");
        let held = burst.bytes.as_ptr_range();
        let frames: Vec<Bytes> = burst.collect();
        let is_inside = |frame: &Bytes| held.contains(&frame.as_ptr());
        let inside: Vec<bool> = frames.iter().map(is_inside).collect();
        assert_eq!(inside, [false, true, false]);
    }

    #[test]
    fn fault_52_a_frame_over_the_bound_is_refused_at_its_header() {
        for length in [u32::MAX, 1_025, 0] {
            let mut splitter = Splitter::new(1_024);
            splitter.push(&length.to_le_bytes());
            let held = splitter.gathered.capacity();
            let refused = splitter.take().expect_err("refused");
            assert_eq!(
                refused,
                Refusal::FrameLength {
                    length,
                    bytes_max: 1_024
                }
            );
            assert_eq!(
                splitter.gathered.capacity(),
                held,
                "nothing is allocated for it"
            );
        }
    }

    #[test]
    fn fault_48_a_preamble_of_another_host_or_deployment_is_refused() {
        let host = |id| HostId::new(id).expect("an id");
        let preamble = Preamble {
            lane: 2,
            host: host(3),
            deployment: deployment_hash("demo"),
        };
        let bytes = preamble.encode();
        let check = |host, name| Preamble::check(&bytes, host, deployment_hash(name));
        assert_eq!(check(host(3), "demo"), Ok(preamble));
        let foreign = |connection| Refusal::ForeignSender {
            connection: host(connection),
            claimed: 3,
        };
        assert_eq!(check(host(4), "demo"), Err(foreign(4)));
        assert_eq!(check(host(3), "other"), Err(foreign(3)));
        let mut newer = bytes.to_vec();
        newer[0] = 9;
        assert_eq!(
            Preamble::check(&newer, host(3), 0),
            Err(Refusal::MalformedStream)
        );
    }
}
