//! etcd-raft's membership change scripts, run on our memberships.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::print_stdout,
    reason = "a test that prints what it ran, not an interface"
)]

#[path = "conformance/changes.rs"]
mod changes;
#[path = "conformance/script.rs"]
mod script;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::ExitCode;

use raft_proto::{Index, Membership, ReplicaId};
use script::{Directive, Interpreter};

fn main() -> ExitCode {
    script::run_family(
        "confchange",
        || Box::new(Changer::default()),
        script::own_tests(),
    )
}

#[derive(Default)]
struct Changer {
    membership: Membership,
    /// The next index to send to each member, as its leader would set it.
    next: BTreeMap<ReplicaId, u64>,
    last: u64,
}

impl Interpreter for Changer {
    fn answer(&mut self, directive: &Directive) -> String {
        let last = self.last;
        self.last += 1;
        let changes = match changes::parse(&directive.input) {
            Ok(changes) => changes,
            Err(error) => return error,
        };
        let index = Index::new(last);
        let changed = match directive.command.as_str() {
            "simple" => self.membership.simple(index, &changes),
            "enter-joint" => {
                let auto_leave = directive.flag("autoleave").unwrap_or(false);
                self.membership.enter_joint(index, auto_leave, &changes)
            }
            "leave-joint" if !changes.is_empty() => return "this command takes no input\n".into(),
            "leave-joint" => self.membership.leave_joint(index),
            _ => return "unknown command".into(),
        };
        let changed = match changed {
            Ok(changed) => changed,
            Err(error) => return format!("{error}\n"),
        };
        let members = changed.membership.replicas();
        self.next.retain(|id, _| members.contains(id));
        for id in changed.added {
            self.next.insert(id, last.max(1));
        }
        self.membership = changed.membership;
        let mut out = changes::describe(&self.membership);
        out.push('\n');
        for id in members {
            let next = self.next[&id];
            write!(out, "{id}: StateProbe match=0 next={next}").expect("a string takes it");
            if self.membership.learners.contains(&id) {
                out.push_str(" learner");
            }
            out.push('\n');
        }
        out
    }
}
