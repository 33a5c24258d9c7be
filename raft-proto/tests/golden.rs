//! The wire format, held against files that are decoded for ever.
//!
//! `RAFT_REWRITE_GOLDEN=1 cargo test -p raft-proto --test golden` writes the files anew, which is
//! for new kinds alone: a file that no longer fits means that hosts of the last release and of
//! this one do not understand each other.
#![allow(missing_docs, reason = "a test, not an interface")]

#[path = "support/report.rs"]
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use raft_proto::{
    Batch, BatchBuilder, Body, Change, ChangeKind, DecodeError, ENTRY_HEADER_BYTES, EntryId,
    EntryKind, Envelope, Forwarded, GroupId, HostId, Index, Membership, MembershipChange, Message,
    ReplicaId, Session, SnapshotMeta, Term, Transition, crc32c_append,
};

/// Kinds of messages there are: the bytes that name them go from 1 to this.
const KINDS: u8 = 17;

fn group() -> GroupId {
    GroupId::new(0x0102_0304_0506_0708).expect("a valid id")
}

fn replica(id: u64) -> ReplicaId {
    ReplicaId::new(id).expect("a valid id")
}

const fn id(term: u64, index: u64) -> EntryId {
    EntryId::new(Term::new(term), Index::new(index))
}

const SESSION: Session = Session {
    client: 0xC1C2_C3C4_C5C6_C7C8,
    serial: 9,
};

/// A membership with something in every field that version 1 of it has.
fn membership() -> Membership {
    Membership {
        index: Index::new(12),
        voters: [replica(1), replica(2), replica(5)].into(),
        voters_outgoing: [replica(1), replica(2), replica(3)].into(),
        learners: [replica(4)].into(),
        learners_next: [replica(3)].into(),
        auto_leave: true,
        hosts: (1..=5)
            .map(|id| (replica(id), HostId::new(100 + id).expect("a valid id")))
            .collect(),
        ..Membership::default()
    }
}

/// And one that needs version 2.
fn membership_with_witness() -> Membership {
    Membership {
        witnesses: [replica(5)].into(),
        priorities: BTreeMap::from([(replica(1), 9), (replica(2), 0)]),
        ..membership()
    }
}

fn change() -> MembershipChange {
    let changes = [
        (ChangeKind::AddVoter, Some(104)),
        (ChangeKind::AddLearner, Some(105)),
        (ChangeKind::Remove, None),
        (ChangeKind::Update, Some(106)),
        (ChangeKind::AddWitness, Some(107)),
        (ChangeKind::Prioritise(7), None),
    ];
    let changes = (4..).zip(changes).map(|(id, (kind, host))| Change {
        kind,
        replica: replica(id),
        host: host.and_then(HostId::new),
    });
    MembershipChange {
        transition: Transition::Explicit,
        changes: changes.collect(),
        context: Bytes::from_static(b"context"),
    }
}

/// Three entries, with and without session.
fn batch() -> Batch {
    let mut builder = BatchBuilder::new(group(), Term::new(6), Index::new(21), 0);
    builder.push(EntryKind::Command, 0, None, b"");
    builder.push(
        EntryKind::Command,
        1_700_000_000_123,
        Some(SESSION),
        b"command",
    );
    builder.push(
        EntryKind::Membership,
        (1 << 48) - 1,
        None,
        &change().encode(),
    );
    builder.finish().expect("three entries")
}

fn simple_change() -> Batch {
    let mut builder = BatchBuilder::new(group(), Term::new(7), Index::new(24), 0);
    let change = MembershipChange::single(ChangeKind::Remove, replica(3), None);
    builder.push(EntryKind::MembershipSimple, 5, None, &change.encode());
    builder.finish().expect("one entry")
}

/// An entry as a witness holds it, made here byte by byte: the layout is what counts.
fn without_command() -> Batch {
    let mut frame = vec![0; ENTRY_HEADER_BYTES];
    frame[0] = 32;
    frame[8..16].copy_from_slice(&25_u64.to_le_bytes());
    frame[16..24].copy_from_slice(&7_u64.to_le_bytes());
    frame[24..30].copy_from_slice(&77_u64.to_le_bytes()[..6]);
    frame[31] = 2;
    let mut seed = group().get().to_le_bytes().to_vec();
    seed.extend_from_slice(&frame[..4]);
    let crc = crc32c_append(crc32c_append(0, &seed), &frame[8..]);
    frame[4..8].copy_from_slice(&crc.to_le_bytes());
    let batch = Batch::decode(group(), Bytes::from(frame)).expect("the frame is sound");
    assert!(batch.iter().all(|entry| entry.is_without_command()));
    batch
}

fn meta(membership: Membership) -> Box<SnapshotMeta> {
    Box::new(SnapshotMeta {
        id: id(5, 20),
        membership,
    })
}

fn name(body: &Body) -> &'static str {
    match body {
        Body::PreVote { .. } => "pre-vote",
        Body::PreVoteResponse { .. } => "pre-vote-response",
        Body::Vote { .. } => "vote",
        Body::VoteResponse { .. } => "vote-response",
        Body::Append { .. } => "append",
        Body::AppendResponse { .. } => "append-response",
        Body::Heartbeat { .. } => "heartbeat",
        Body::HeartbeatResponse { .. } => "heartbeat-response",
        Body::Snapshot { .. } => "snapshot",
        Body::TimeoutNow => "timeout-now",
        Body::TransferLeader { .. } => "transfer-leader",
        Body::ReadIndex { .. } => "read-index",
        Body::ReadIndexResponse { .. } => "read-index-response",
        Body::Propose { .. } => "propose",
        Body::Quiesce { .. } => "quiesce",
        Body::SnapshotRequest { .. } => "snapshot-request",
        Body::SnapshotOffer { .. } => "snapshot-offer",
    }
}

/// A message of every kind, and of every form that a kind has.
fn bodies() -> Vec<(&'static str, Body)> {
    let (index, commit) = (Index::new(20), Index::new(19));
    let whole = [batch(), simple_change()].map(|batch| batch.bytes().to_vec());
    let entries = Batch::decode(group(), whole.concat().into()).expect("they follow one another");
    let forwarded = |session| Forwarded {
        kind: EntryKind::Command,
        session,
        payload: Bytes::from_static(b"forwarded"),
    };
    let forwarded_change = Forwarded {
        kind: EntryKind::Membership,
        session: None,
        payload: change().encode().into(),
    };
    let append = |entries: Vec<Batch>| Body::Append {
        prev: id(5, 20),
        commit,
        entries: entries.into(),
    };
    vec![
        ("", Body::PreVote { last: id(5, 20) }),
        ("-yes", Body::PreVoteResponse { is_rejected: false }),
        ("-no", Body::PreVoteResponse { is_rejected: true }),
        (
            "",
            Body::Vote {
                last: id(5, 20),
                is_transfer: false,
            },
        ),
        (
            "-transfer",
            Body::Vote {
                last: id(5, 20),
                is_transfer: true,
            },
        ),
        ("-yes", Body::VoteResponse { is_rejected: false }),
        ("-no", Body::VoteResponse { is_rejected: true }),
        ("-empty", append(Vec::new())),
        ("", append(vec![entries])),
        (
            "-accepted",
            Body::AppendResponse {
                index,
                rejected: None,
            },
        ),
        (
            "-rejected",
            Body::AppendResponse {
                index,
                rejected: Some(id(4, 17)),
            },
        ),
        ("", Body::Heartbeat { commit, round: 3 }),
        ("", Body::HeartbeatResponse { round: 3 }),
        (
            "",
            Body::Snapshot {
                meta: meta(membership()),
            },
        ),
        (
            "-with-witness",
            Body::Snapshot {
                meta: meta(membership_with_witness()),
            },
        ),
        ("", Body::TimeoutNow),
        ("", Body::TransferLeader { to: replica(3) }),
        (
            "",
            Body::ReadIndex {
                life: u64::MAX,
                id: 6,
            },
        ),
        (
            "",
            Body::ReadIndexResponse {
                life: u64::MAX,
                id: 6,
                index,
            },
        ),
        (
            "",
            Body::Propose {
                entries: vec![forwarded(None), forwarded(Some(SESSION)), forwarded_change],
            },
        ),
        ("", Body::Quiesce { last: id(5, 20) }),
        ("", Body::SnapshotRequest { index, request: 4 }),
        (
            "",
            Body::SnapshotOffer {
                meta: meta(membership()),
                request: 4,
            },
        ),
    ]
}

fn envelope(body: Body) -> Envelope {
    Envelope {
        group: group(),
        epoch: 3,
        message: Message {
            from: replica(1),
            to: replica(2),
            term: Term::new(8),
            body,
        },
    }
}

/// The bytes of everything that is stored or sent, by file name, and whether they are read as
/// what they were made of.
fn samples() -> BTreeMap<String, (Bytes, bool)> {
    let mut samples = BTreeMap::new();
    let mut add = |name: String, bytes: Bytes, is_read: bool| {
        assert!(samples.insert(name, (bytes, is_read)).is_none());
    };
    for (suffix, body) in bodies() {
        let file = format!("message-{}{suffix}", name(&body));
        let envelope = envelope(body);
        let bytes = encoded(&envelope);
        let is_read = Envelope::decode(bytes.clone()) == Ok(envelope);
        add(file, bytes, is_read);
    }
    let batches = [
        ("entries", batch()),
        ("entry-simple-change", simple_change()),
        ("entry-without-command", without_command()),
    ];
    for (file, batch) in batches {
        let bytes = batch.bytes().clone();
        let is_read = Batch::decode(group(), bytes.clone()) == Ok(batch);
        add(file.to_owned(), bytes, is_read);
    }
    for (file, membership) in [
        ("membership", membership()),
        ("membership-with-witness", membership_with_witness()),
    ] {
        let bytes: Bytes = membership.encode().into();
        let is_read = Membership::decode(&bytes) == Ok(membership);
        add(file.to_owned(), bytes, is_read);
    }
    for (file, change) in [
        ("change", change()),
        ("change-leave-joint", MembershipChange::default()),
    ] {
        let bytes: Bytes = change.encode().into();
        let is_read = MembershipChange::decode(&bytes) == Ok(change);
        add(file.to_owned(), bytes, is_read);
    }
    samples
}

fn encoded(envelope: &Envelope) -> Bytes {
    let mut bytes = BytesMut::new();
    envelope.encode_into(&mut bytes);
    assert_eq!(bytes.len(), envelope.encoded_bytes(), "the size is told");
    bytes.freeze()
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden")
}

/// Sixteen bytes a line.
fn to_hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for line in bytes.chunks(16) {
        let words: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(text, "{}", words.join(" ")).expect("memory takes it");
    }
    text
}

fn from_hex(text: &str) -> Vec<u8> {
    let words = text.split_ascii_whitespace();
    words
        .map(|word| u8::from_str_radix(word, 16).expect("two digits"))
        .collect()
}

/// The files: what stands there, by name.
fn files() -> BTreeMap<String, Vec<u8>> {
    let listed = fs::read_dir(directory()).expect("the directory is part of the crate");
    let files = listed.map(|entry| {
        let path = entry.expect("it lists").path();
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        let text = fs::read_to_string(&path).expect("a text");
        (stem.expect("a plain name").to_owned(), from_hex(&text))
    });
    files.collect()
}

#[test]
fn what_is_stored_and_sent_is_what_the_files_say() {
    let samples = samples();
    if std::env::var_os("RAFT_REWRITE_GOLDEN").is_some() {
        for (name, (bytes, _)) in &samples {
            let path = directory().join(format!("{name}.hex"));
            fs::write(path, to_hex(bytes)).expect("the directory is there");
        }
    }
    let files = files();
    assert!(
        files.keys().eq(samples.keys()),
        "a file for each sample and a sample for each file"
    );
    for (name, (bytes, is_read)) in &samples {
        assert_eq!(
            to_hex(&files[name]),
            to_hex(bytes),
            "{name} is written otherwise"
        );
        assert!(is_read, "{name} is read as something else");
    }
    report::record(&serde_json::json!({
        "suite": "proto golden files", "cases": samples.len(),
    }));
}

#[test]
fn every_kind_of_message_has_a_file() {
    let files = files();
    let messages = files
        .iter()
        .filter(|(name, _)| name.starts_with("message-"));
    let kinds: BTreeSet<u8> = messages.map(|(_, bytes)| bytes[1]).collect();
    assert_eq!(kinds, (1..=KINDS).collect(), "by the byte that names it");
    // And there are no others.
    for kind in [0, KINDS + 1, u8::MAX] {
        let mut bytes = files["message-timeout-now"].clone();
        bytes[1] = kind;
        let refused = Envelope::decode(bytes.into());
        assert_eq!(refused, Err(DecodeError::Unknown { version: 1, kind }));
    }
}

#[test]
fn a_file_of_another_version_says_so() {
    for (name, bytes) in files() {
        if name.starts_with("message-") {
            let mut later = bytes.clone();
            later[0] = 2;
            let kind = later[1];
            let refused = Envelope::decode(later.into());
            assert_eq!(
                refused,
                Err(DecodeError::Unknown { version: 2, kind }),
                "{name}"
            );
        } else if name.starts_with("membership") {
            let mut later = bytes.clone();
            later[0] = 99;
            assert!(Membership::decode(&later).is_err(), "{name}");
        }
    }
}
