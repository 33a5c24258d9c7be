//! Quorums and memberships against naive definitions, over many drawn cases.
#![allow(missing_docs, unreachable_pub, reason = "a test, not an interface")]

#[path = "support/report.rs"]
mod report;
#[path = "support/rng.rs"]
mod rng;

use std::collections::{BTreeMap, BTreeSet};

use raft_proto::{
    Change, ChangeKind, HostId, Index, Membership, MembershipChange, ReplicaId, Transition,
    VoteResult,
};
use rng::Rng;

const QUORUM_CASES: u64 = 50_000;
const CHANGE_RUNS: u64 = 2_000;

type Ids = BTreeSet<ReplicaId>;

fn replica(id: u64) -> ReplicaId {
    ReplicaId::new(id).expect("a valid id")
}

fn draw_ids(rng: &mut Rng, count_max: u64) -> Ids {
    let count = rng.below(count_max + 1);
    (0..count).map(|_| replica(rng.range(1, 12))).collect()
}

/// A membership with one set of voters or, half the time, two.
fn draw_voters(rng: &mut Rng) -> Membership {
    let voters = draw_ids(rng, 9);
    let voters_outgoing = if rng.chance(50) {
        draw_ids(rng, 9)
    } else {
        Ids::new()
    };
    Membership {
        voters,
        voters_outgoing,
        ..Membership::default()
    }
}

/// The highest index that more than half of the voters have reached, looked for from the top.
fn naive_committed(voters: &Ids, acked: &BTreeMap<ReplicaId, Index>) -> Index {
    if voters.is_empty() {
        return Index::new(u64::MAX);
    }
    let reached = |index: Index| {
        let count = voters
            .iter()
            .filter(|id| acked.get(id).is_some_and(|&own| own >= index))
            .count();
        2 * count > voters.len()
    };
    let candidates = acked.values().copied().filter(|&index| reached(index));
    candidates.max().unwrap_or(Index::ZERO)
}

/// Won or lost if it stays so however the missing votes are cast; else open.
fn naive_vote(voters: &Ids, votes: &BTreeMap<ReplicaId, bool>) -> VoteResult {
    let wins = |missing_say: bool| {
        let yes = voters
            .iter()
            .filter(|id| votes.get(id).copied().unwrap_or(missing_say))
            .count();
        voters.is_empty() || 2 * yes > voters.len()
    };
    match (wins(false), wins(true)) {
        (true, _) => VoteResult::Won,
        (false, true) => VoteResult::Pending,
        (false, false) => VoteResult::Lost,
    }
}

#[test]
fn hazard_23_the_commit_index_is_what_a_naive_count_says() {
    let mut rng = Rng::new(23);
    let mut joint = 0_u64;
    for case in 0..QUORUM_CASES {
        let membership = draw_voters(&mut rng);
        let mut acked = BTreeMap::new();
        for id in membership.replicas() {
            if rng.chance(80) {
                acked.insert(id, Index::new(rng.below(8)));
            }
        }
        let incoming = naive_committed(&membership.voters, &acked);
        let outgoing = naive_committed(&membership.voters_outgoing, &acked);
        let found = membership.committed(|id| acked.get(&id).copied());
        assert_eq!(
            found,
            incoming.min(outgoing),
            "case {case}: {membership:?} {acked:?}"
        );
        joint += u64::from(membership.is_joint());
    }
    assert!(joint > QUORUM_CASES / 4, "joint ones are among them");
    report::record(&serde_json::json!({"suite": "proto commit index", "cases": QUORUM_CASES}));
}

#[test]
fn hazard_23_the_vote_result_is_what_a_naive_count_says() {
    let mut rng = Rng::new(24);
    let mut results = BTreeMap::new();
    for case in 0..QUORUM_CASES {
        let membership = draw_voters(&mut rng);
        let mut votes = BTreeMap::new();
        for id in membership.replicas() {
            if rng.chance(70) {
                votes.insert(id, rng.chance(60));
            }
        }
        let incoming = naive_vote(&membership.voters, &votes);
        let outgoing = naive_vote(&membership.voters_outgoing, &votes);
        let expected = match (incoming, outgoing) {
            (VoteResult::Won, VoteResult::Won) => VoteResult::Won,
            (VoteResult::Lost, _) | (_, VoteResult::Lost) => VoteResult::Lost,
            _ => VoteResult::Pending,
        };
        let found = membership.vote_result(|id| votes.get(&id).copied());
        assert_eq!(found, expected, "case {case}: {membership:?} {votes:?}");
        *results.entry(format!("{found:?}")).or_insert(0_u64) += 1;
    }
    assert!(
        results.len() == 3 && results.values().all(|&count| count > QUORUM_CASES / 20),
        "each result is among them: {results:?}"
    );
    report::record(&serde_json::json!({"suite": "proto vote result", "cases": QUORUM_CASES}));
}

fn draw_change(rng: &mut Rng) -> MembershipChange {
    let count = rng.below(4);
    let changes = (0..count).map(|_| {
        let id = rng.range(1, 8);
        Change {
            kind: rng.pick(&[
                ChangeKind::AddVoter,
                ChangeKind::AddVoter,
                ChangeKind::AddLearner,
                ChangeKind::Remove,
                ChangeKind::Update,
                ChangeKind::AddWitness,
                ChangeKind::Prioritise(3),
            ]),
            replica: replica(id),
            host: HostId::new(rng.range(1, 99)),
        }
    });
    MembershipChange {
        changes: changes.collect(),
        transition: rng.pick(&[Transition::Auto, Transition::Implicit, Transition::Explicit]),
        ..MembershipChange::default()
    }
}

/// What holds for every membership that changes can lead to.
fn assert_sound(membership: &Membership) {
    let members = membership.replicas();
    assert!(!membership.voters.is_empty(), "somebody votes");
    for learner in &membership.learners {
        assert!(!membership.is_voter(*learner), "a learner does not vote");
    }
    assert!(
        membership
            .learners_next
            .is_subset(&membership.voters_outgoing),
        "only who is going out becomes a learner next"
    );
    assert!(
        membership.learners_next.is_disjoint(&membership.voters),
        "who stays a voter becomes no learner"
    );
    assert!(membership.is_joint() || !membership.auto_leave);
    assert!(membership.is_joint() || membership.learners_next.is_empty());
    assert!(membership.witnesses.is_subset(&members));
    assert!(membership.hosts.keys().all(|id| members.contains(id)));
    assert!(membership.priorities.keys().all(|id| members.contains(id)));
    for voters in [&membership.voters, &membership.voters_outgoing] {
        let witnesses = voters.intersection(&membership.witnesses).count();
        assert!(voters.is_empty() || 2 * witnesses <= voters.len());
    }
    for &id in &members {
        assert!(membership.is_member(id), "all members are members");
    }
}

/// Any majority of one shares a voter with any majority of the other, by counting all of them.
fn majorities_meet(a: &Ids, b: &Ids) -> bool {
    let all: Vec<ReplicaId> = a.union(b).copied().collect();
    let is_majority = |voters: &Ids, chosen: u64| {
        let count = all
            .iter()
            .enumerate()
            .filter(|(bit, id)| chosen >> bit & 1 == 1 && voters.contains(id))
            .count();
        2 * count > voters.len()
    };
    // The complement of a majority of `a` must never hold one of `b`.
    let everyone = (1_u64 << all.len()) - 1;
    (0..=everyone).all(|chosen| !is_majority(a, chosen) || !is_majority(b, everyone & !chosen))
}

#[test]
fn drawn_membership_changes_keep_what_must_hold() {
    let mut rng = Rng::new(41);
    let (mut taken, mut refused, mut joint) = (0_u64, 0_u64, 0_u64);
    for _ in 0..CHANGE_RUNS {
        let mut membership = Membership {
            voters: [replica(1)].into(),
            ..Membership::default()
        };
        for step in 1..=12 {
            let change = draw_change(&mut rng);
            let index = Index::new(step);
            let before = membership.clone();
            let Ok(changed) = membership.changed(index, &change) else {
                assert_eq!(membership, before, "a refusal changes nothing");
                refused += 1;
                continue;
            };
            taken += 1;
            let next = changed.membership;
            assert_sound(&next);
            assert_eq!(next.index, index);
            joint += u64::from(next.is_joint());
            // Old and new never decide apart. A joint one needs both of its majorities.
            let old_sets = [&before.voters, &before.voters_outgoing];
            let new_sets = [&next.voters, &next.voters_outgoing];
            let meets = old_sets.iter().filter(|set| !set.is_empty()).any(|old| {
                new_sets
                    .iter()
                    .filter(|set| !set.is_empty())
                    .any(|new| majorities_meet(old, new))
            });
            assert!(meets, "{before:?} and {next:?} can decide apart");
            for id in changed.added {
                let is_removed = change
                    .changes
                    .iter()
                    .any(|part| part.replica == id && part.kind == ChangeKind::Remove);
                assert!(
                    is_removed || (next.is_member(id) && !before.is_member(id)),
                    "{id} is new, or was removed and added again"
                );
            }
            // What is stored is what is restored.
            let restored = Membership::decode(&next.encode());
            assert_eq!(restored.as_ref(), Ok(&next));
            let decoded = MembershipChange::decode(&change.encode());
            assert_eq!(decoded.as_ref(), Ok(&change));
            membership = next;
        }
    }
    assert!(taken > CHANGE_RUNS && refused > CHANGE_RUNS && joint > CHANGE_RUNS / 2);
    report::record(&serde_json::json!({"suite": "proto membership changes", "cases": taken}));
}
