//! The state machine: a sorted map of keys and values.

use std::collections::BTreeMap;
use std::ops::Bound;

use raft_host::{
    Bytes, BytesMut, Command, SaveCursor, SaveStep, SnapshotRead, StateMachine, StateMachineError,
};

use crate::reply;

/// A command on the wire and in the log: what it does, then its words, each behind its length.
pub(crate) const COMMAND_BYTES_MAX: usize = 320 << 10;
/// What a key or a value may take.
pub(crate) const WORD_BYTES_MAX: usize = 256 << 10;
/// Bytes of saved state a call hands over.
const SAVE_BYTES: usize = 256 << 10;

const SET: u8 = 1;
const DELETE: u8 = 2;
const INCREMENT: u8 = 3;

/// Encodes a command that gives `key` the value `value`.
pub(crate) fn set(key: &[u8], value: &[u8]) -> Bytes {
    encode(SET, &[key, value])
}

/// Encodes a command that deletes `keys`.
pub(crate) fn delete(keys: &[Bytes]) -> Bytes {
    let keys: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
    encode(DELETE, &keys)
}

/// Encodes a command that adds one to the number in `key`.
pub(crate) fn increment(key: &[u8]) -> Bytes {
    encode(INCREMENT, &[key])
}

fn encode(what: u8, words: &[&[u8]]) -> Bytes {
    let length = 1 + words.iter().map(|word| 4 + word.len()).sum::<usize>();
    let mut out = BytesMut::with_capacity(length);
    out.extend_from_slice(&[what]);
    words.iter().for_each(|word| put_word(&mut out, word));
    out.freeze()
}

fn put_word(out: &mut BytesMut, word: &[u8]) {
    let length = u32::try_from(word.len()).expect("words are bounded where they come in");
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(word);
}

/// Takes a word from the front; `None` if it is not whole.
fn take_word<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, behind) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let (word, behind) = behind.split_at_checked(length)?;
    *rest = behind;
    Some(word)
}

/// Keys and values, and a hash over all of them.
#[derive(Default)]
pub(crate) struct KeyValues {
    entries: BTreeMap<Box<[u8]>, Box<[u8]>>,
    /// The sum of all entries' hashes: it does not depend on the order in which they came.
    hash: u64,
}

impl KeyValues {
    fn insert(&mut self, key: &[u8], value: Box<[u8]>) {
        self.hash = self.hash.wrapping_add(hash_of(key, &value));
        let before = match self.entries.get_mut(key) {
            Some(place) => Some(std::mem::replace(place, value)),
            None => self.entries.insert(key.into(), value),
        };
        if let Some(before) = before {
            self.hash = self.hash.wrapping_sub(hash_of(key, &before));
        }
    }

    fn remove(&mut self, key: &[u8]) -> bool {
        match self.entries.remove(key) {
            Some(before) => {
                self.hash = self.hash.wrapping_sub(hash_of(key, &before));
                true
            }
            None => false,
        }
    }

    fn increment(&mut self, key: &[u8]) -> Bytes {
        let before = match self.entries.get(key) {
            None => Some(0),
            Some(value) => std::str::from_utf8(value)
                .ok()
                .and_then(|text| text.parse::<i64>().ok()),
        };
        let Some(after) = before.and_then(|before| before.checked_add(1)) else {
            return reply::error("ERR value is not an integer or out of range");
        };
        self.insert(key, after.to_string().into_bytes().into());
        reply::integer(after)
    }
}

impl StateMachine for KeyValues {
    /// The result is the reply that the client gets.
    fn apply(&mut self, command: Command<'_>) -> Result<Bytes, StateMachineError> {
        let unreadable = || StateMachineError(format!("command {} is unreadable", command.index));
        let (what, mut rest) = command.payload.split_first().ok_or_else(unreadable)?;
        let key = take_word(&mut rest).ok_or_else(unreadable)?;
        match *what {
            SET => {
                let value = take_word(&mut rest).ok_or_else(unreadable)?;
                self.insert(key, value.into());
                Ok(reply::OK)
            }
            DELETE => {
                let mut removed = i64::from(self.remove(key));
                while let Some(key) = take_word(&mut rest) {
                    removed += i64::from(self.remove(key));
                }
                Ok(reply::integer(removed))
            }
            INCREMENT => Ok(self.increment(key)),
            _ => Err(unreadable()),
        }
    }

    /// The query is a key, the answer the reply that the client gets.
    fn query(&mut self, query: &[u8]) -> Result<Bytes, StateMachineError> {
        Ok(self
            .entries
            .get(query)
            .map_or(reply::NIL, |value| reply::bulk(value)))
    }

    /// The cursor is the last key that was saved, behind one byte that says that there is one.
    fn save_next(
        &mut self,
        cursor: &mut SaveCursor,
        out: &mut BytesMut,
    ) -> Result<SaveStep, StateMachineError> {
        let from = match cursor.0.get(1..) {
            Some(last) => Bound::Excluded(last),
            None => Bound::Unbounded,
        };
        let mut last = None;
        for (key, value) in self.entries.range::<[u8], _>((from, Bound::Unbounded)) {
            put_word(out, key);
            put_word(out, value);
            if out.len() >= SAVE_BYTES {
                last = Some(key);
                break;
            }
        }
        Ok(match last {
            Some(key) => {
                cursor.0.clear();
                cursor.0.push(1);
                cursor.0.extend_from_slice(key);
                SaveStep::More
            }
            None => SaveStep::Done,
        })
    }

    fn restore(&mut self, source: &mut dyn SnapshotRead) -> Result<(), StateMachineError> {
        *self = Self::default();
        let mut waiting = BytesMut::new();
        while let Some(block) = source.next()? {
            waiting.extend_from_slice(&block);
            let mut rest = &waiting[..];
            let mut used = 0;
            let mut ahead = rest;
            while let Some(key) = take_word(&mut ahead)
                && let Some(value) = take_word(&mut ahead)
            {
                self.insert(key, value.into());
                used += rest.len() - ahead.len();
                rest = ahead;
            }
            let _ = waiting.split_to(used);
        }
        if waiting.is_empty() {
            Ok(())
        } else {
            Err(StateMachineError("the last entry is cut".to_owned()))
        }
    }

    fn state_hash(&mut self) -> u64 {
        self.hash
    }
}

/// A hash of one entry, the same in every process.
fn hash_of(key: &[u8], value: &[u8]) -> u64 {
    [key, value].into_iter().fold(0, |hash, word| {
        let hash = mix(hash, u64::try_from(word.len()).unwrap_or(u64::MAX));
        word.chunks(8).fold(hash, |hash, chunk| {
            let mut bytes = [0; 8];
            bytes[..chunk.len()].copy_from_slice(chunk);
            mix(hash, u64::from_le_bytes(bytes))
        })
    })
}

fn mix(hash: u64, word: u64) -> u64 {
    let mixed = (hash.rotate_left(23) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^ (mixed >> 32)
}
