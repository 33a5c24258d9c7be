//! etcd-raft's quorum scripts, run on our majorities.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::print_stdout,
    reason = "a test that prints what it ran, not an interface"
)]

#[path = "conformance/script.rs"]
mod script;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::process::ExitCode;

use raft_proto::{Index, Membership, ReplicaId, VoteResult};
use script::{Directive, Interpreter};

fn main() -> ExitCode {
    script::run_family("quorum", || Box::new(Quorum), script::own_tests())
}

struct Quorum;

type Acked = BTreeMap<u64, u64>;

impl Interpreter for Quorum {
    fn answer(&mut self, directive: &Directive) -> String {
        let ids = directive.numbers("cfg");
        let is_joint = !directive.values("cfgj").is_empty();
        let ids_joint = match directive.values("cfgj") {
            [zero] if zero == "zero" => Vec::new(),
            _ => directive.numbers("cfgj"),
        };
        let read = |key: &str| -> Vec<u64> {
            directive
                .values(key)
                .iter()
                .map(|value| match value.as_str() {
                    "_" => 0,
                    "y" => 2,
                    "n" => 1,
                    number => number.parse().expect("an index is a number"),
                })
                .collect()
        };
        let input = match directive.command.as_str() {
            "committed" => read("idx"),
            "vote" => read("votes"),
            other => panic!("unknown command {other}"),
        };
        let voters: BTreeSet<u64> = ids.iter().chain(&ids_joint).copied().collect();
        if voters.len() != input.len() {
            let list = |numbers: &[u64]| {
                let words: Vec<String> = numbers.iter().map(u64::to_string).collect();
                words.join(" ")
            };
            let voters: Vec<String> = voters.iter().map(|id| format!("{id}:{{}}")).collect();
            return format!(
                "error: mismatched input (explicit or _) for voters map[{}]: [{}]",
                voters.join(" "),
                list(&input)
            );
        }
        let acked = assign(&input, &ids, &ids_joint);
        let (a, b): (BTreeSet<u64>, BTreeSet<u64>) =
            (ids.into_iter().collect(), ids_joint.into_iter().collect());
        if directive.command == "committed" {
            committed(&a, &b, is_joint, &acked)
        } else {
            vote(&a, &b, is_joint, &acked)
        }
    }
}

/// Gives the inputs to the voters in the order in which they are named.
fn assign(input: &[u64], ids: &[u64], ids_joint: &[u64]) -> Acked {
    let mut acked = Acked::new();
    let mut input = input.iter();
    for &id in ids.iter().chain(ids_joint) {
        if let std::collections::btree_map::Entry::Vacant(place) = acked.entry(id)
            && let Some(&index) = input.next()
        {
            place.insert(index);
        }
    }
    acked.retain(|_, index| *index != 0);
    acked
}

fn membership(a: &BTreeSet<u64>, b: &BTreeSet<u64>) -> Membership {
    let ids = |set: &BTreeSet<u64>| {
        set.iter()
            .map(|&id| ReplicaId::new(id).expect("a valid id"))
            .collect()
    };
    Membership {
        voters: ids(a),
        voters_outgoing: ids(b),
        ..Membership::default()
    }
}

fn index_of(a: &BTreeSet<u64>, b: &BTreeSet<u64>, acked: &Acked) -> u64 {
    membership(a, b)
        .committed(|id| acked.get(&id.get()).copied().map(Index::new))
        .get()
}

/// The naive definition: the highest index that more than half of the voters have reached.
fn naive_index(voters: &BTreeSet<u64>, acked: &Acked) -> u64 {
    if voters.is_empty() {
        return u64::MAX;
    }
    let reached = |index: u64| {
        voters
            .iter()
            .filter(|id| acked.get(id).is_some_and(|&own| own >= index))
            .count()
    };
    acked
        .values()
        .copied()
        .filter(|&index| reached(index) > voters.len() / 2)
        .max()
        .unwrap_or(0)
}

fn show(index: u64) -> String {
    if index == u64::MAX {
        "∞".to_owned()
    } else {
        index.to_string()
    }
}

fn committed(a: &BTreeSet<u64>, b: &BTreeSet<u64>, is_joint: bool, acked: &Acked) -> String {
    let none = BTreeSet::new();
    let mut out = String::new();
    let check = |out: &mut String, found: u64, index: u64, how: &str| {
        if found != index {
            writeln!(out, "{} <-- {how}", show(found)).expect("a string takes it");
        }
    };
    if is_joint {
        let both: BTreeSet<u64> = a.union(b).copied().collect();
        out.push_str(&bars(&both, acked));
        let index = index_of(a, b, acked);
        check(&mut out, index_of(b, a, acked), index, "via symmetry");
        writeln!(out, "{}", show(index)).expect("a string takes it");
        return out;
    }
    let index = index_of(a, &none, acked);
    out.push_str(&bars(a, acked));
    check(
        &mut out,
        naive_index(a, acked),
        index,
        "via alternative computation",
    );
    check(
        &mut out,
        index_of(a, &BTreeSet::new(), acked),
        index,
        "via zero-joint quorum",
    );
    check(
        &mut out,
        index_of(a, a, acked),
        index,
        "via self-joint quorum",
    );
    for &id in a {
        let own = acked.get(&id).copied().unwrap_or(0);
        if index > own && own > 0 {
            // What lies below the commit index can fall without moving it.
            for lower in [own - 1, 0] {
                let mut overlaid = acked.clone();
                overlaid.insert(id, lower);
                let found = index_of(a, &none, &overlaid);
                check(&mut out, found, index, &format!("overlaying {id}->{lower}"));
            }
        }
    }
    writeln!(out, "{}", show(index)).expect("a string takes it");
    out
}

fn bars(voters: &BTreeSet<u64>, acked: &Acked) -> String {
    if voters.is_empty() {
        return "<empty majority quorum>".to_owned();
    }
    let n = voters.len();
    let index = |id: &u64| acked.get(id).copied().unwrap_or(0);
    let mut ranked: Vec<u64> = voters.iter().copied().collect();
    ranked.sort_by_key(|id| (index(id), *id));
    let mut bar = BTreeMap::new();
    for (rank, id) in ranked.iter().enumerate() {
        let length = match rank.checked_sub(1).map(|before| ranked[before]) {
            Some(before) if index(&before) == index(id) => bar[&before],
            _ => rank,
        };
        bar.insert(*id, length);
    }
    let mut out = format!("{}    idx\n", " ".repeat(n));
    for id in voters {
        if acked.contains_key(id) {
            let length = bar[id];
            write!(out, "{}>{}", "x".repeat(length), " ".repeat(n - length))
        } else {
            write!(out, "?{}", " ".repeat(n))
        }
        .expect("a string takes it");
        writeln!(out, " {:>5}    (id={id:x})", index(id)).expect("a string takes it");
    }
    out
}

fn vote(a: &BTreeSet<u64>, b: &BTreeSet<u64>, is_joint: bool, votes: &Acked) -> String {
    let result = |a: &BTreeSet<u64>, b: &BTreeSet<u64>| {
        let result = membership(a, b).vote_result(|id| votes.get(&id.get()).map(|&vote| vote != 1));
        match result {
            VoteResult::Pending => "VotePending",
            VoteResult::Lost => "VoteLost",
            VoteResult::Won => "VoteWon",
        }
    };
    let found = result(a, b);
    let mirrored = result(b, a);
    if is_joint && mirrored != found {
        return format!("{mirrored} <-- via symmetry\n{found}\n");
    }
    format!("{found}\n")
}
