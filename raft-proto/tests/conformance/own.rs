//! What etcd-raft's language has no word for: reads, requested snapshots, quiet groups, restarts.

use std::collections::BTreeMap;

use raft_proto::{EntryId, Index, Raft, Refused, ReplicaId, Restored, TermRun};

use crate::env::Env;
use crate::node::replica;
use crate::script::Directive;
use crate::storage::State;

impl Env {
    /// `priorities=(1:5, 2:3)`
    pub(crate) fn priorities(directive: &Directive) -> BTreeMap<ReplicaId, u8> {
        directive
            .values("priorities")
            .iter()
            .map(|value| {
                let (id, priority) = value.split_once(':').expect("a priority is ID:PRIORITY");
                let id = id.parse().expect("an id is a number");
                (replica(id), priority.parse().expect("a priority is small"))
            })
            .collect()
    }

    pub(crate) fn run_own(&mut self, directive: &Directive) -> Result<(), String> {
        let ids = directive.ids();
        let refused = |result: Result<(), Refused>| result.map_err(|refused| refused.to_string());
        match directive.command.as_str() {
            "read-index" => refused(self.node(ids[0]).raft.read_index(ids[1])),
            "request-snapshot" => {
                refused(self.node(ids[0]).raft.request_snapshot(Index::new(ids[1])))
            }
            "report-snapshot" => {
                let status = match directive.value("status") {
                    Some("failed") => raft_proto::SnapshotStatus::Failed,
                    _ => raft_proto::SnapshotStatus::Finished,
                };
                self.node(ids[0])
                    .raft
                    .report_snapshot(replica(ids[1]), status);
                Ok(())
            }
            "tick" => {
                self.node(ids[0]).tick(ids[1]);
                Ok(())
            }
            "is-quiet" => {
                let quiet: Vec<String> = self
                    .nodes
                    .iter()
                    .map(|node| format!("{}: {}", node.id, node.raft.is_quiet()))
                    .collect();
                for line in quiet {
                    self.put_line(&line);
                }
                Ok(())
            }
            "why-no-leader" => {
                let raft = &self.node(ids[0]).raft;
                let why = raft
                    .why_no_leader()
                    .map_or_else(|| "it knows the leader".to_owned(), |why| why.to_string());
                self.put_line(&why);
                Ok(())
            }
            "has-lease" => {
                let has_lease = self.node(ids[0]).raft.has_lease();
                self.put_line(&has_lease.to_string());
                Ok(())
            }
            // In etcd-raft's harness a crash loses all that was not written.
            "restart" if self.node(ids[0]).is_async => {
                Err("only a replica whose disk is written at once can be restarted".to_owned())
            }
            "restart" => {
                self.restart(ids[0], directive);
                Ok(())
            }
            _ => Err("unknown command".to_owned()),
        }
    }

    /// The replica comes back with what its disk and its state machine hold.
    fn restart(&mut self, id: u64, directive: &Directive) {
        let config = self
            .config(replica(id), directive, false)
            .expect("the options were taken before");
        let node = self.node(id);
        if let Some(meta) = node.installed.take()
            && meta.id.index > node.state().meta.id.index
        {
            let data = Vec::new();
            node.history.push(State { meta, data });
        }
        let state = node.state().clone();
        let before = node.storage.first().previous().unwrap_or_default();
        let mut terms = Vec::new();
        let mut index = before;
        while index <= node.storage.last() {
            let term = node.storage.term(index).unwrap_or_default();
            terms.push(TermRun { first: index, term });
            index = index.next();
        }
        let last = node.storage.last();
        let restored = Restored {
            hard_state: node.hard_state,
            snapshot: Some(state.meta.clone()),
            first: node.storage.first(),
            last: EntryId::new(node.storage.term(last).unwrap_or_default(), last),
            terms,
            applied: state.meta.id.index,
            membership: state.meta.membership.clone(),
            membership_entries: node
                .storage
                .entries()
                .iter()
                .filter(|entry| entry.kind.is_membership())
                .map(|entry| entry.id.index)
                .collect(),
            ..Restored::default()
        };
        node.raft = Raft::new(config, restored, node.tick).expect("the options were taken before");
        node.append_work.clear();
        node.apply_work.clear();
        node.ready = None;
        node.origins.clear();
        node.unstable_from = last.next();
        node.hard_state = node.raft.hard_state();
        self.letters
            .retain(|letter| letter.to() != id || letter.may_be_dropped());
    }
}
