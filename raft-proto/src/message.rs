//! The messages between replicas, and their bytes.
//!
//! ```text
//! envelope: version u8, kind u8, flags u16, reserved u32, group u64, epoch u64, from u64, to u64,
//!           term u64, then the body's fixed fields, then its entries or membership
//! ```
//! Little-endian.

use alloc::boxed::Box;
use alloc::vec::Vec;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::entries::Entries;
use crate::entry::{Batch, EntryKind, FrameError, Session, read_u64};
use crate::membership::{Membership, MembershipDecodeError};
use crate::raft_log::held_bytes;
use crate::types::{EntryId, GroupId, Index, ReplicaId, Term};

const VERSION: u8 = 1;
/// The bytes of an envelope before its body.
pub const ENVELOPE_HEADER_BYTES: usize = 48;
/// How many commands are passed on in one message.
const FORWARDED_MAX: u32 = 65_536;

/// A snapshot's place and the membership in force there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// The last entry it covers.
    pub id: EntryId,
    /// The membership as of that entry.
    pub membership: Membership,
}

/// What a replica says to another of its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The sender.
    pub from: ReplicaId,
    /// The receiver.
    pub to: ReplicaId,
    /// The sender's term; for a pre-vote the term it would stand in.
    pub term: Term,
    /// What it says.
    pub body: Body,
}

/// The content of a message. Source: thesis Figure 3.1, §9.6 (pre-vote), §6.4 (ReadIndex).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Would you vote for me?
    PreVote {
        /// The last entry of the asker's log.
        last: EntryId,
    },
    /// The answer.
    PreVoteResponse {
        /// No.
        is_rejected: bool,
    },
    /// Vote for me.
    Vote {
        /// The last entry of the candidate's log.
        last: EntryId,
        /// The leader asked for this election: a lease does not stand against it.
        is_transfer: bool,
    },
    /// The answer.
    VoteResponse {
        /// No.
        is_rejected: bool,
    },
    /// Entries to append.
    Append {
        /// The entry before them.
        prev: EntryId,
        /// The leader's commit index.
        commit: Index,
        /// The entries.
        entries: Entries,
    },
    /// The answer.
    AppendResponse {
        /// The last index that matches, or the one refused.
        index: Index,
        /// Where the logs may match, if refused.
        rejected: Option<EntryId>,
    },
    /// I lead.
    Heartbeat {
        /// What the follower may commit.
        commit: Index,
        /// The ReadIndex round it confirms; 0 for none.
        round: u64,
    },
    /// The answer.
    HeartbeatResponse {
        /// The round confirmed.
        round: u64,
    },
    /// You need a snapshot: this one.
    Snapshot {
        /// Its place. Rare and large: boxed, so that no other message has its size.
        meta: Box<SnapshotMeta>,
    },
    /// Stand for election now.
    TimeoutNow,
    /// A follower's wish to hand the leadership over.
    TransferLeader {
        /// To whom.
        to: ReplicaId,
    },
    /// A follower's read.
    ReadIndex {
        /// Which life of the follower asks: [`Config::life`](crate::Config::life).
        life: u64,
        /// The follower's own number for it.
        id: u64,
    },
    /// The answer.
    ReadIndexResponse {
        /// The follower's life that asked.
        life: u64,
        /// The follower's number.
        id: u64,
        /// What must be applied before the read.
        index: Index,
    },
    /// Commands that a follower passes on.
    Propose {
        /// The commands.
        entries: Vec<Forwarded>,
    },
    /// Nothing is to be done: no heartbeats follow until something is.
    Quiesce {
        /// The last entry of the leader's log, which is committed.
        last: EntryId,
    },
    /// A follower lost its snapshot, not its log.
    SnapshotRequest {
        /// The least index it needs.
        index: Index,
        /// The follower's number for the request.
        request: u64,
    },
    /// The answer: fetch this one.
    SnapshotOffer {
        /// The snapshot.
        meta: Box<SnapshotMeta>,
        /// The follower's number.
        request: u64,
    },
}

/// A command that travels without a place in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarded {
    /// What kind of entry it is to be.
    pub kind: EntryKind,
    /// The client session, if any.
    pub session: Option<Session>,
    /// The command.
    pub payload: Bytes,
}

impl Body {
    const fn kind(&self) -> u8 {
        match self {
            Self::PreVote { .. } => 1,
            Self::PreVoteResponse { .. } => 2,
            Self::Vote { .. } => 3,
            Self::VoteResponse { .. } => 4,
            Self::Append { .. } => 5,
            Self::AppendResponse { .. } => 6,
            Self::Heartbeat { .. } => 7,
            Self::HeartbeatResponse { .. } => 8,
            Self::Snapshot { .. } => 9,
            Self::TimeoutNow => 10,
            Self::TransferLeader { .. } => 11,
            Self::ReadIndex { .. } => 12,
            Self::ReadIndexResponse { .. } => 13,
            Self::Propose { .. } => 14,
            Self::Quiesce { .. } => 15,
            Self::SnapshotRequest { .. } => 16,
            Self::SnapshotOffer { .. } => 17,
        }
    }

    /// Memory held beyond the value itself.
    pub(crate) fn memory_bytes(&self) -> usize {
        match self {
            Self::Append { entries, .. } => entries.iter().map(held_bytes).sum(),
            Self::Propose { entries } => entries
                .iter()
                .map(|entry| size_of::<Forwarded>() + entry.payload.len())
                .sum(),
            Self::Snapshot { meta } | Self::SnapshotOffer { meta, .. } => {
                size_of::<SnapshotMeta>() + meta.membership.memory_bytes()
            }
            _ => 0,
        }
    }

    /// Whether it answers, so that only a member of the group can have said it.
    #[must_use]
    pub const fn is_response(&self) -> bool {
        matches!(
            self,
            Self::PreVoteResponse { .. }
                | Self::VoteResponse { .. }
                | Self::AppendResponse { .. }
                | Self::HeartbeatResponse { .. }
                | Self::ReadIndexResponse { .. }
                | Self::SnapshotOffer { .. }
        )
    }

    /// Whether anybody may say it: who asks for a vote, or leads, may be a member by an entry that is
    /// not here yet, and nobody else could bring that entry (thesis §4.1).
    pub(crate) const fn is_from_anybody(&self) -> bool {
        matches!(
            self,
            Self::PreVote { .. }
                | Self::Vote { .. }
                | Self::Append { .. }
                | Self::Heartbeat { .. }
                | Self::Snapshot { .. }
        )
    }

    /// Whether it counts only from a member, and not from a leader that is none: a voice, or how far
    /// a follower has come (etcd).
    pub(crate) const fn is_of_member(&self) -> bool {
        matches!(
            self,
            Self::PreVoteResponse { .. }
                | Self::VoteResponse { .. }
                | Self::AppendResponse { .. }
                | Self::HeartbeatResponse { .. }
        )
    }

    /// Whether it promises what must be remembered: it waits for the disk.
    pub(crate) const fn is_promise(&self) -> bool {
        matches!(
            self,
            Self::Vote { .. }
                | Self::VoteResponse { .. }
                | Self::PreVoteResponse { .. }
                | Self::AppendResponse { .. }
        )
    }
}

impl Message {
    /// Whether it travels on the control lane: votes, heartbeats and their answers.
    #[must_use]
    pub const fn is_control(&self) -> bool {
        !matches!(
            self.body,
            Body::Append { .. } | Body::AppendResponse { .. } | Body::Propose { .. }
        )
    }
}

/// A message with the group it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The group.
    pub group: GroupId,
    /// The group's epoch.
    pub epoch: u64,
    /// The message.
    pub message: Message,
}

/// Bytes that are no envelope. The connection they came by is not to be trusted further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// They end too early.
    #[error("cut short")]
    Truncated,
    /// There are bytes left over.
    #[error("{0} bytes left over")]
    Overlong(usize),
    /// A version or kind that this build does not know.
    #[error("version {version} kind {kind} is unknown")]
    Unknown {
        /// The version.
        version: u8,
        /// The kind.
        kind: u8,
    },
    /// A field out of its range.
    #[error("{0} is out of range")]
    Field(&'static str),
    /// The entries are damaged.
    #[error(transparent)]
    Entries(#[from] FrameError),
    /// The membership is damaged.
    #[error(transparent)]
    Membership(#[from] MembershipDecodeError),
}

impl Envelope {
    /// The size of its encoding.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        ENVELOPE_HEADER_BYTES
            + match &self.message.body {
                Body::PreVote { .. }
                | Body::Heartbeat { .. }
                | Body::ReadIndex { .. }
                | Body::Quiesce { .. }
                | Body::SnapshotRequest { .. } => 16,
                Body::Vote { .. } => 17,
                Body::PreVoteResponse { .. } | Body::VoteResponse { .. } => 1,
                Body::ReadIndexResponse { .. } => 24,
                Body::Append { entries, .. } => {
                    24 + entries.iter().map(Batch::size_bytes).sum::<usize>()
                }
                Body::AppendResponse { rejected, .. } => {
                    8 + if rejected.is_some() { 16 } else { 0 }
                }
                Body::HeartbeatResponse { .. } | Body::TransferLeader { .. } => 8,
                Body::Snapshot { meta } => 16 + meta.membership.encode().len(),
                Body::SnapshotOffer { meta, .. } => 24 + meta.membership.encode().len(),
                Body::TimeoutNow => 0,
                Body::Propose { entries } => {
                    4 + entries.iter().map(Forwarded::encoded_bytes).sum::<usize>()
                }
            }
    }

    /// Appends its bytes to `out`.
    pub fn encode_into(&self, out: &mut BytesMut) {
        let message = &self.message;
        let mut header = [0; ENVELOPE_HEADER_BYTES];
        header[..2].copy_from_slice(&[VERSION, message.body.kind()]);
        header[8..16].copy_from_slice(&self.group.get().to_le_bytes());
        header[16..24].copy_from_slice(&self.epoch.to_le_bytes());
        header[24..32].copy_from_slice(&message.from.get().to_le_bytes());
        header[32..40].copy_from_slice(&message.to.get().to_le_bytes());
        header[40..].copy_from_slice(&message.term.get().to_le_bytes());
        out.put_slice(&header);
        match &message.body {
            Body::PreVote { last } => put_id(out, *last),
            Body::Vote { last, is_transfer } => {
                put_id(out, *last);
                out.put_u8(u8::from(*is_transfer));
            }
            Body::PreVoteResponse { is_rejected } | Body::VoteResponse { is_rejected } => {
                out.put_u8(u8::from(*is_rejected));
            }
            Body::Append {
                prev,
                commit,
                entries,
            } => {
                put_id(out, *prev);
                out.put_u64_le(commit.get());
                for batch in entries {
                    out.put_slice(batch.bytes());
                }
            }
            Body::AppendResponse { index, rejected } => {
                out.put_u64_le(index.get());
                if let Some(hint) = rejected {
                    put_id(out, *hint);
                }
            }
            Body::Heartbeat { commit, round } => {
                out.put_u64_le(commit.get());
                out.put_u64_le(*round);
            }
            Body::HeartbeatResponse { round } => out.put_u64_le(*round),
            Body::Snapshot { meta } => {
                put_id(out, meta.id);
                out.put_slice(&meta.membership.encode());
            }
            Body::TimeoutNow => {}
            Body::TransferLeader { to } => out.put_u64_le(to.get()),
            Body::ReadIndex { life, id } => {
                out.put_u64_le(*life);
                out.put_u64_le(*id);
            }
            Body::ReadIndexResponse { life, id, index } => {
                out.put_u64_le(*life);
                out.put_u64_le(*id);
                out.put_u64_le(index.get());
            }
            Body::Propose { entries } => {
                out.put_u32_le(u32::try_from(entries.len()).unwrap_or(u32::MAX));
                for entry in entries {
                    entry.encode_into(out);
                }
            }
            Body::Quiesce { last } => put_id(out, *last),
            Body::SnapshotRequest { index, request } => {
                out.put_u64_le(index.get());
                out.put_u64_le(*request);
            }
            Body::SnapshotOffer { meta, request } => {
                out.put_u64_le(*request);
                put_id(out, meta.id);
                out.put_slice(&meta.membership.encode());
            }
        }
    }

    /// Reads one envelope, all of `bytes`; its entries share them.
    ///
    /// # Errors
    ///
    /// [`DecodeError`]: nothing of it is to be believed.
    pub fn decode(mut bytes: Bytes) -> Result<Self, DecodeError> {
        if bytes.len() < ENVELOPE_HEADER_BYTES {
            return Err(DecodeError::Truncated);
        }
        let (version, kind) = (bytes[0], bytes[1]);
        let group = GroupId::new(read_u64(&bytes, 8)).ok_or(DecodeError::Field("group"))?;
        let epoch = read_u64(&bytes, 16);
        let from = ReplicaId::new(read_u64(&bytes, 24)).ok_or(DecodeError::Field("from"))?;
        let to = ReplicaId::new(read_u64(&bytes, 32)).ok_or(DecodeError::Field("to"))?;
        let term = Term::new(in_range(read_u64(&bytes, 40), "term")?);
        bytes.advance(ENVELOPE_HEADER_BYTES);
        if version != VERSION {
            return Err(DecodeError::Unknown { version, kind });
        }
        let body = match kind {
            1 => Body::PreVote {
                last: id(&mut bytes)?,
            },
            2 => Body::PreVoteResponse {
                is_rejected: flag(&mut bytes)?,
            },
            3 => Body::Vote {
                last: id(&mut bytes)?,
                is_transfer: flag(&mut bytes)?,
            },
            4 => Body::VoteResponse {
                is_rejected: flag(&mut bytes)?,
            },
            5 => {
                let prev = id(&mut bytes)?;
                let commit = Index::new(number(&mut bytes, "commit")?);
                let entries = if bytes.is_empty() {
                    Entries::new()
                } else {
                    Entries::from(Batch::decode(group, core::mem::take(&mut bytes))?)
                };
                Body::Append {
                    prev,
                    commit,
                    entries,
                }
            }
            6 => {
                let index = Index::new(number(&mut bytes, "index")?);
                let rejected = if bytes.is_empty() {
                    None
                } else {
                    Some(id(&mut bytes)?)
                };
                Body::AppendResponse { index, rejected }
            }
            7 => Body::Heartbeat {
                commit: Index::new(number(&mut bytes, "commit")?),
                round: number(&mut bytes, "round")?,
            },
            8 => Body::HeartbeatResponse {
                round: number(&mut bytes, "round")?,
            },
            9 => {
                let id = id(&mut bytes)?;
                let membership = Membership::decode(&bytes.split_off(0))?;
                Body::Snapshot {
                    meta: Box::new(SnapshotMeta { id, membership }),
                }
            }
            10 => Body::TimeoutNow,
            11 => {
                let to = ReplicaId::new(number(&mut bytes, "target")?);
                Body::TransferLeader {
                    to: to.ok_or(DecodeError::Field("target"))?,
                }
            }
            12 => Body::ReadIndex {
                life: word(&mut bytes)?,
                id: number(&mut bytes, "read id")?,
            },
            13 => Body::ReadIndexResponse {
                life: word(&mut bytes)?,
                id: number(&mut bytes, "read id")?,
                index: Index::new(number(&mut bytes, "index")?),
            },
            14 => Body::Propose {
                entries: forwarded(&mut bytes)?,
            },
            15 => Body::Quiesce {
                last: id(&mut bytes)?,
            },
            16 => Body::SnapshotRequest {
                index: Index::new(number(&mut bytes, "index")?),
                request: number(&mut bytes, "request")?,
            },
            17 => {
                let request = number(&mut bytes, "request")?;
                let id = id(&mut bytes)?;
                let membership = Membership::decode(&bytes.split_off(0))?;
                Body::SnapshotOffer {
                    meta: Box::new(SnapshotMeta { id, membership }),
                    request,
                }
            }
            _ => return Err(DecodeError::Unknown { version, kind }),
        };
        if bytes.has_remaining() {
            return Err(DecodeError::Overlong(bytes.len()));
        }
        Ok(Self {
            group,
            epoch,
            message: Message {
                from,
                to,
                term,
                body,
            },
        })
    }
}

impl Forwarded {
    /// Whether one message carries them all, as its reader takes it.
    pub(crate) fn may_travel(entries: &[Self]) -> bool {
        let fits = |number: usize, max: u32| u32::try_from(number).is_ok_and(|n| n <= max);
        let bytes = entries.iter().map(Self::encoded_bytes);
        !entries.is_empty()
            && fits(entries.len(), FORWARDED_MAX)
            && fits(bytes.fold(0, usize::saturating_add), u32::MAX)
    }

    const fn header_bytes(has_session: bool) -> usize {
        if has_session { 22 } else { 6 }
    }

    fn encoded_bytes(&self) -> usize {
        Self::header_bytes(self.session.is_some()) + self.payload.len()
    }

    fn encode_into(&self, out: &mut BytesMut) {
        out.put_u32_le(u32::try_from(self.payload.len()).unwrap_or(u32::MAX));
        out.put_u8(self.kind.to_byte());
        out.put_u8(u8::from(self.session.is_some()));
        if let Some(session) = self.session {
            out.put_u64_le(session.client);
            out.put_u64_le(session.serial);
        }
        out.put_slice(&self.payload);
    }

    fn decode(bytes: &mut Bytes) -> Result<Self, DecodeError> {
        if bytes.len() < Self::header_bytes(false) {
            return Err(DecodeError::Truncated);
        }
        let length = usize::try_from(bytes.get_u32_le()).map_err(|_| DecodeError::Truncated)?;
        let kind = EntryKind::from_byte(bytes.get_u8()).ok_or(DecodeError::Field("entry kind"))?;
        let session = if flag(bytes)? {
            if bytes.len() < 16 {
                return Err(DecodeError::Truncated);
            }
            Some(Session {
                client: bytes.get_u64_le(),
                serial: bytes.get_u64_le(),
            })
        } else {
            None
        };
        if bytes.len() < length {
            return Err(DecodeError::Truncated);
        }
        Ok(Self {
            kind,
            session,
            payload: bytes.split_to(length),
        })
    }
}

fn forwarded(bytes: &mut Bytes) -> Result<Vec<Forwarded>, DecodeError> {
    if bytes.len() < 4 {
        return Err(DecodeError::Truncated);
    }
    let count = bytes.get_u32_le();
    if count == 0 || count > FORWARDED_MAX {
        return Err(DecodeError::Field("forwarded count"));
    }
    // Nothing is reserved for what is merely claimed: each takes bytes that are there.
    let mut entries = Vec::new();
    for _ in 0..count {
        entries.push(Forwarded::decode(bytes)?);
    }
    Ok(entries)
}

fn put_id(out: &mut BytesMut, id: EntryId) {
    out.put_u64_le(id.term.get());
    out.put_u64_le(id.index.get());
}

/// A number, below the two values that no index and no term may take.
fn number(bytes: &mut Bytes, field: &'static str) -> Result<u64, DecodeError> {
    in_range(word(bytes)?, field)
}

const fn in_range(value: u64, field: &'static str) -> Result<u64, DecodeError> {
    if value >= u64::MAX - 1 {
        Err(DecodeError::Field(field))
    } else {
        Ok(value)
    }
}

fn word(bytes: &mut Bytes) -> Result<u64, DecodeError> {
    bytes.try_get_u64_le().map_err(|_| DecodeError::Truncated)
}

fn id(bytes: &mut Bytes) -> Result<EntryId, DecodeError> {
    let term = Term::new(number(bytes, "entry term")?);
    Ok(EntryId::new(
        term,
        Index::new(number(bytes, "entry index")?),
    ))
}

fn flag(bytes: &mut Bytes) -> Result<bool, DecodeError> {
    match bytes.try_get_u8() {
        Ok(0) => Ok(false),
        Ok(1) => Ok(true),
        Ok(_) => Err(DecodeError::Field("flag")),
        Err(_) => Err(DecodeError::Truncated),
    }
}
