//! A small client of the Redis protocol, with pipelining.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// No reply of the cluster comes near this.
const BULK_BYTES_MAX: usize = 64 << 20;
const ARRAY_MAX: usize = 1 << 20;
const DEPTH_MAX: usize = 8;
const LINE_BYTES_MAX: u64 = 64 << 10;

/// A reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    /// `+OK`.
    Simple(String),
    /// `-MOVED 7 127.0.0.1:7000`, without the sign.
    Error(String),
    /// `:1`.
    Integer(i64),
    /// `$3`, or nothing.
    Bulk(Option<Vec<u8>>),
    /// `*2`, or nothing.
    Array(Option<Vec<Self>>),
}

impl Value {
    /// The text of a bulk or simple string.
    pub(crate) fn text(&self) -> Option<String> {
        match self {
            Self::Simple(text) => Some(text.clone()),
            Self::Bulk(Some(bytes)) => Some(String::from_utf8_lossy(bytes).into_owned()),
            _ => None,
        }
    }
}

/// A connection to one host.
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
    /// Commands that were given and not yet sent.
    out: Vec<u8>,
}

impl Connection {
    pub(crate) fn open(address: SocketAddr, patience: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self {
            stream: BufReader::with_capacity(64 << 10, stream),
            out: Vec::new(),
        })
    }

    /// Adds a command to what the next [`Connection::flush`] sends.
    pub(crate) fn push(&mut self, words: &[&[u8]]) {
        encode(words, &mut self.out);
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.stream.get_mut().write_all(&self.out)?;
        self.out.clear();
        Ok(())
    }

    /// The next reply, in the order of the commands.
    pub(crate) fn receive(&mut self) -> io::Result<Value> {
        decode(&mut self.stream, 0)
    }

    /// One command and its reply.
    pub(crate) fn call(&mut self, words: &[&str]) -> io::Result<Value> {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        self.push(&words);
        self.flush()?;
        self.receive()
    }
}

fn encode(words: &[&[u8]], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

fn decode(from: &mut impl BufRead, depth: usize) -> io::Result<Value> {
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut line = String::new();
    from.take(LINE_BYTES_MAX).read_line(&mut line)?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let Some(line) = line.strip_suffix("\r\n") else {
        return Err(invalid(format!("a line without its end: {line:?}")));
    };
    let kind = line.chars().next().unwrap_or(' ');
    let rest = line.get(kind.len_utf8()..).unwrap_or_default();
    let length = |max: usize| match rest.parse::<i64>() {
        Ok(-1) => Ok(None),
        Ok(length) => match usize::try_from(length) {
            Ok(length) if length <= max => Ok(Some(length)),
            _ => Err(invalid(format!("a length out of bounds: {line:?}"))),
        },
        Err(_) => Err(invalid(format!("not a length: {line:?}"))),
    };
    match kind {
        '+' => Ok(Value::Simple(rest.to_owned())),
        '-' => Ok(Value::Error(rest.to_owned())),
        ':' => rest
            .parse()
            .map(Value::Integer)
            .map_err(|_| invalid(format!("not a number: {line:?}"))),
        '$' => {
            let Some(length) = length(BULK_BYTES_MAX)? else {
                return Ok(Value::Bulk(None));
            };
            let mut bytes = vec![0; length + 2];
            from.read_exact(&mut bytes)?;
            if !bytes.ends_with(b"\r\n") {
                return Err(invalid("a bulk string without its end".to_owned()));
            }
            bytes.truncate(length);
            Ok(Value::Bulk(Some(bytes)))
        }
        '*' if depth < DEPTH_MAX => {
            let Some(length) = length(ARRAY_MAX)? else {
                return Ok(Value::Array(None));
            };
            (0..length)
                .map(|_| decode(from, depth + 1))
                .collect::<io::Result<_>>()
                .map(|items| Value::Array(Some(items)))
        }
        _ => Err(invalid(format!("not a reply: {line:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(bytes: &[u8]) -> io::Result<Value> {
        decode(&mut &bytes[..], 0)
    }

    #[test]
    fn commands_are_arrays_of_bulk_strings() {
        let mut out = Vec::new();
        encode(&[b"GET", b"k"], &mut out);
        assert_eq!(out, b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n");
    }

    #[test]
    fn each_kind_of_reply_is_read() {
        assert_eq!(
            decoded(b"+OK\r\n").expect("a reply"),
            Value::Simple("OK".to_owned())
        );
        assert_eq!(
            decoded(b"-ERR x\r\n").expect("a reply"),
            Value::Error("ERR x".to_owned())
        );
        assert_eq!(decoded(b":-3\r\n").expect("a reply"), Value::Integer(-3));
        assert_eq!(decoded(b"$-1\r\n").expect("a reply"), Value::Bulk(None));
        assert_eq!(
            decoded(b"$2\r\na\n\r\n").expect("a reply"),
            Value::Bulk(Some(b"a\n".to_vec()))
        );
        assert_eq!(
            decoded(b"*2\r\n:1\r\n*0\r\n").expect("a reply"),
            Value::Array(Some(vec![
                Value::Integer(1),
                Value::Array(Some(Vec::new()))
            ]))
        );
    }

    #[test]
    fn replies_that_are_cut_or_out_of_bounds_are_errors() {
        for bytes in [
            &b""[..],
            b"+OK",
            b"$5\r\nab\r\n",
            b"$99999999999\r\n",
            b"$-2\r\n",
            b"*9999999999\r\n",
            b"?\r\n",
            b":x\r\n",
            b"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n",
        ] {
            assert!(decoded(bytes).is_err(), "{bytes:?}");
        }
    }
}
