//! Client connections: commands in, replies out, in the order of the commands.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use raft_host::{Bytes, BytesMut};
use resp_rs::ParseError;
use resp_rs::resp2::{self, Frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::commands::{self, Kind};
use crate::machine::COMMAND_BYTES_MAX;
use crate::node::Node;
use crate::reply;

/// Clients at once.
const CONNECTIONS_MAX: usize = 4_096;
/// What a client may have sent of a command that is not whole: a command and its lengths.
const INPUT_BYTES_MAX: usize = COMMAND_BYTES_MAX + (64 << 10);
/// Commands of one connection under way at once.
const WINDOW: usize = 1_024;
/// Replies are written when there are this many bytes of them.
const OUTPUT_BYTES: usize = 64 << 10;
const READ_BYTES: usize = 64 << 10;

/// Accepts clients until the task is aborted.
pub(crate) async fn accept_all(listener: TcpListener, node: Arc<Node>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: clients that go make room.
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            }
        };
        let (node, place) = (Arc::clone(&node), Arc::clone(&places).try_acquire_owned());
        tokio::spawn(async move {
            let served = match place {
                Ok(_place) => serve(stream, &node).await,
                Err(_) => turn_away(stream).await,
            };
            if let Err(error) = served {
                tracing::debug!(%error, "connection lost");
            }
        });
    }
}

async fn turn_away(mut stream: TcpStream) -> io::Result<()> {
    let refusal = reply::error("ERR max number of clients reached");
    stream.write_all(&refusal).await
}

/// What a connection has said of itself.
#[derive(Default)]
pub(crate) struct Session {
    /// `READONLY`: reads are answered from the replica here.
    pub(crate) reads_locally: bool,
}

/// A reply on its way.
pub(crate) type Reply = Pin<Box<dyn Future<Output = Bytes> + Send>>;

/// What became of a command when it was begun.
pub(crate) enum Begun {
    /// It is answered.
    Done(Bytes),
    /// It is under way.
    Waiting(Reply),
}

async fn serve(mut stream: TcpStream, node: &Arc<Node>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = BytesMut::with_capacity(READ_BYTES);
    let mut pipeline = Pipeline::default();
    let mut session = Session::default();
    loop {
        let mut unread = input.split().freeze();
        let mut trouble = None;
        while !unread.is_empty() {
            match next_command(&mut unread) {
                Ok(Some(words)) => {
                    let kind = commands::kind(&words);
                    if pipeline.must_wait_for(kind) {
                        pipeline.finish(&mut stream).await?;
                    }
                    let begun = commands::begin(node, &mut session, words);
                    pipeline.push(kind, begun);
                }
                Ok(None) => break,
                Err(text) => {
                    trouble = Some(text);
                    break;
                }
            }
        }
        pipeline.finish(&mut stream).await?;
        if let Some(text) = trouble {
            return stream.write_all(&reply::error(text)).await;
        }
        // Usually nothing is left, or the buffer is ours alone and is taken back as it is.
        input = unread
            .try_into_mut()
            .unwrap_or_else(|rest| BytesMut::from(&rest[..]));
        input.reserve(READ_BYTES);
        if stream.read_buf(&mut input).await? == 0 {
            return Ok(());
        }
    }
}

/// Takes a whole command from the front of what was received.
fn next_command(unread: &mut Bytes) -> Result<Option<Vec<Bytes>>, &'static str> {
    const NOT_A_COMMAND: &str = "ERR Protocol error: expected an array of bulk strings";
    match resp2::parse_frame(unread.clone()) {
        Ok((Frame::Array(Some(frames)), rest)) => {
            *unread = rest;
            let words = frames.into_iter().map(Frame::into_bulk_string);
            let words: Result<Vec<Bytes>, Frame> = words.collect();
            words.map(Some).map_err(|_| NOT_A_COMMAND)
        }
        Err(ParseError::Incomplete) if unread.len() <= INPUT_BYTES_MAX => Ok(None),
        Err(ParseError::Incomplete) => Err("ERR Protocol error: the command is too long"),
        _ => Err(NOT_A_COMMAND),
    }
}

/// Commands of a connection that are under way, oldest first.
///
/// Commands of one kind run together. One of another kind waits for those before it: a read behind
/// a write must see it, and a write must not be seen by a read before it.
#[derive(Default)]
struct Pipeline {
    begun: VecDeque<Begun>,
    kind: Option<Kind>,
    out: BytesMut,
}

impl Pipeline {
    fn must_wait_for(&self, kind: Kind) -> bool {
        let is_other = self.kind.is_some_and(|under_way| under_way != kind);
        self.begun.len() >= WINDOW || (is_other && kind != Kind::Plain)
    }

    fn push(&mut self, kind: Kind, begun: Begun) {
        if kind != Kind::Plain {
            self.kind = Some(kind);
        }
        self.begun.push_back(begun);
    }

    /// Waits for all, and writes their replies.
    async fn finish(&mut self, stream: &mut TcpStream) -> io::Result<()> {
        while let Some(begun) = self.begun.pop_front() {
            let reply = match begun {
                Begun::Done(reply) => reply,
                Begun::Waiting(reply) => reply.await,
            };
            self.out.extend_from_slice(&reply);
            if self.out.len() >= OUTPUT_BYTES {
                self.write(stream).await?;
            }
        }
        self.kind = None;
        self.write(stream).await
    }

    async fn write(&mut self, stream: &mut TcpStream) -> io::Result<()> {
        if !self.out.is_empty() {
            stream.write_all(&self.out).await?;
            self.out.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(bytes: &'static [u8]) -> (Result<Option<Vec<Bytes>>, &'static str>, usize) {
        let mut unread = Bytes::from_static(bytes);
        let parsed = next_command(&mut unread);
        (parsed, unread.len())
    }

    #[test]
    fn commands_are_arrays_of_bulk_strings_and_nothing_else() {
        let (words, left) = parsed(b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n*1\r\n");
        let words = words.expect("a command").expect("whole");
        assert_eq!(words, [&b"GET"[..], b"k"]);
        assert_eq!(left, 4);
        assert_eq!(parsed(b"*2\r\n$3\r\nGET\r\n$1\r\n").0, Ok(None));
        for bytes in [
            &b"GET k\r\n"[..],
            b":1\r\n",
            b"*1\r\n:1\r\n",
            b"*-1\r\n",
            b"*1\r\n$-1\r\n",
        ] {
            assert!(parsed(bytes).0.is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn fault_52_lengths_beyond_the_bound_are_refused_without_room_for_them() {
        for bytes in [
            &b"*1\r\n$4294967295\r\n"[..],
            b"*1000000000\r\n$1\r\n",
            b"*1\r\n$99999999999999999999\r\n",
        ] {
            assert!(parsed(bytes).0.is_err(), "{bytes:?}");
        }
        let mut long = Bytes::from([&b"*1\r\n$500000\r\n"[..], &vec![b'x'; 450_000]].concat());
        assert!(next_command(&mut long).is_err());
    }
}
