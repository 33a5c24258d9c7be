//! Membership changes as the scripts write them: `v1 l2 r3 u4`.

use std::collections::BTreeSet;

use raft_proto::{Change, ChangeKind, Membership, ReplicaId};

/// Reads changes, separated by single spaces.
///
/// Replica 0, whom etcd-raft passes over when it applies a change, has no id here: a change to it is
/// an update of a replica that is no member, which does as little, and is shown as it was written.
pub(crate) fn parse(input: &str) -> Result<Vec<Change>, String> {
    if input.is_empty() {
        return Ok(Vec::new());
    }
    input.split(' ').map(parse_one).collect()
}

fn parse_one(word: &str) -> Result<Change, String> {
    if word.len() < 2 {
        return Err(format!("unknown token {word}"));
    }
    let unknown = || format!("unknown input: {word}");
    let letter = word.chars().next().ok_or_else(unknown)?;
    let kind = match letter {
        'v' => ChangeKind::AddVoter,
        'l' => ChangeKind::AddLearner,
        'r' => ChangeKind::Remove,
        'u' => ChangeKind::Update,
        'w' => ChangeKind::AddWitness,
        _ => return Err(unknown()),
    };
    let id = parse_id(&word[1..])?;
    let (kind, replica) = match ReplicaId::new(id) {
        Some(replica) => (kind, replica),
        None => (ChangeKind::Update, stand_in_for_zero(letter)),
    };
    Ok(Change {
        kind,
        replica,
        host: None,
    })
}

/// As Go's `strconv.ParseUint` reads numbers, and what it says of those it does not.
fn parse_id(text: &str) -> Result<u64, String> {
    let problem = |what: &str| Err(format!("strconv.ParseUint: parsing {text:?}: {what}"));
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return problem("invalid syntax");
    }
    text.parse().or_else(|_| problem("value out of range"))
}

/// An id for each letter, out of the reach of scripts.
fn stand_in_for_zero(letter: char) -> ReplicaId {
    let id = ZERO_STAND_INS + u64::from(u32::from(letter));
    ReplicaId::new(id).expect("it is below the reserved ids")
}

const ZERO_STAND_INS: u64 = u64::MAX - 1_000;

/// Writes them.
#[allow(dead_code, reason = "not every family writes changes")]
pub(crate) fn show(changes: &[Change]) -> String {
    let words: Vec<String> = changes
        .iter()
        .map(|change| {
            let kind = match change.kind {
                ChangeKind::AddVoter => 'v',
                ChangeKind::AddLearner => 'l',
                ChangeKind::Remove => 'r',
                ChangeKind::Update => 'u',
                ChangeKind::AddWitness => 'w',
                ChangeKind::Prioritise(_) => 'p',
            };
            let stood_in = "vlruw"
                .chars()
                .find(|&letter| change.replica == stand_in_for_zero(letter));
            match stood_in {
                Some(letter) => format!("{letter}0"),
                None => format!("{kind}{}", change.replica),
            }
        })
        .collect();
    words.join(" ")
}

/// `voters=(1 2)&&(1 3) learners=(4) autoleave`
#[allow(dead_code, reason = "not every family describes memberships")]
pub(crate) fn describe(membership: &Membership) -> String {
    let set = |ids: &BTreeSet<ReplicaId>| {
        let ids: Vec<String> = ids.iter().map(|id| format!("{:x}", id.get())).collect();
        format!("({})", ids.join(" "))
    };
    let mut out = format!("voters={}", set(&membership.voters));
    if membership.is_joint() {
        out.push_str("&&");
        out.push_str(&set(&membership.voters_outgoing));
    }
    if !membership.learners.is_empty() {
        out.push_str(" learners=");
        out.push_str(&set(&membership.learners));
    }
    if !membership.learners_next.is_empty() {
        out.push_str(" learners_next=");
        out.push_str(&set(&membership.learners_next));
    }
    if membership.auto_leave {
        out.push_str(" autoleave");
    }
    out
}
