//! Replies of the Redis protocol (RESP2), as bytes.

use raft_host::{Bytes, BytesMut};

/// `+OK`.
pub(crate) const OK: Bytes = Bytes::from_static(b"+OK\r\n");
/// A bulk string that is not there.
pub(crate) const NIL: Bytes = Bytes::from_static(b"$-1\r\n");
/// An array of nothing.
pub(crate) const EMPTY: Bytes = Bytes::from_static(b"*0\r\n");

/// An error. Its first word tells clients what to do; line ends in the text would end the reply, and
/// are replaced.
pub(crate) fn error(text: &str) -> Bytes {
    format!("-{}\r\n", text.replace(['\r', '\n'], " ")).into()
}

/// A short text without line ends.
pub(crate) fn simple(text: &str) -> Bytes {
    format!("+{text}\r\n").into()
}

pub(crate) fn integer(value: i64) -> Bytes {
    format!(":{value}\r\n").into()
}

pub(crate) fn bulk(bytes: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(bytes.len() + 16);
    put_bulk(&mut out, bytes);
    out.freeze()
}

pub(crate) fn put_bulk(out: &mut BytesMut, bytes: &[u8]) {
    out.extend_from_slice(format!("${}\r\n", bytes.len()).as_bytes());
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

/// Begins an array; its items follow.
pub(crate) fn put_array(out: &mut BytesMut, items: usize) {
    out.extend_from_slice(format!("*{items}\r\n").as_bytes());
}

pub(crate) fn put_integer(out: &mut BytesMut, value: u64) {
    out.extend_from_slice(format!(":{value}\r\n").as_bytes());
}
