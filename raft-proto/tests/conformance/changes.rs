//! Membership changes as the scripts write them: `v1 l2 r3 u4`.

use std::collections::BTreeSet;

use raft_proto::{Change, ChangeKind, Membership, ReplicaId};

/// Reads changes; one that names replica 0 is left out, as etcd-raft passes over it.
pub(crate) fn parse(input: &str) -> Result<Vec<Change>, String> {
    let mut changes = Vec::new();
    for word in input.split(' ').filter(|word| !word.is_empty()) {
        let word = word.trim();
        if word.len() < 2 {
            return Err(format!("unknown token {word}"));
        }
        let (kind, id) = word.split_at(1);
        let kind = match kind {
            "v" => ChangeKind::AddVoter,
            "l" => ChangeKind::AddLearner,
            "r" => ChangeKind::Remove,
            "u" => ChangeKind::Update,
            "w" => ChangeKind::AddWitness,
            _ => return Err(format!("unknown input: {word}")),
        };
        let id: u64 = id
            .parse()
            .map_err(|_| format!("strconv.ParseUint: parsing {id:?}: invalid syntax"))?;
        if let Some(replica) = ReplicaId::new(id) {
            changes.push(Change {
                kind,
                replica,
                host: None,
            });
        }
    }
    Ok(changes)
}

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
            format!("{kind}{}", change.replica)
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
