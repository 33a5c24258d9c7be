//! A group made ready outside of its step worker, which alone knows the time it begins at.

use raft_log::Submission;
use raft_proto::{Config, EntryId, Index, Raft, Restored, SnapshotMeta};
use raft_snapshot::SnapshotEnv;

use crate::group::{Awaited, Group, OnDurable, Outstanding};
use crate::request::Responder;

/// What a group is made of.
pub(crate) struct Prepared {
    pub(crate) core_config: Config,
    pub(crate) restored: Restored,
    pub(crate) epoch: u64,
    pub(crate) env: SnapshotEnv,
    /// Recorded snapshots, oldest first.
    pub(crate) snapshots: Vec<SnapshotMeta>,
    /// Whether the machine is being restored from the newest of them.
    pub(crate) is_restoring: bool,
    /// The snapshot that is lost here, if one is.
    pub(crate) lost: Option<Index>,
    /// The last entry that its machine has applied or is restored to.
    pub(crate) handed: EntryId,
    /// The number before that of its first submission.
    pub(crate) sequence: u64,
    /// Whether this is the replica's first life, which is to be recorded.
    pub(crate) is_founder: bool,
}

impl Prepared {
    /// Makes the group, whose time begins at `tick`, and the first record of a founder. A founder
    /// answers once that is durable, any other replica at once.
    pub(crate) fn into_group(
        self,
        tick: u64,
        responder: Responder<()>,
    ) -> (Box<Group>, Option<Submission>) {
        let hard_state = self.restored.hard_state;
        let (id, replica) = (self.core_config.group, self.core_config.id);
        let raft = Raft::new(self.core_config, self.restored, tick).expect(
            "bounds and contents were checked: when the engine opened, and when it read them",
        );
        let mut group = Box::new(Group::new(
            id,
            replica,
            self.epoch,
            raft,
            self.env,
            self.snapshots,
        ));
        group.handed = self.handed;
        group.hard_state = hard_state;
        (group.sequence, group.ended) = (self.sequence, self.sequence);
        group.learn_hosts();
        group.awaits = self.lost.map(|index| Awaited {
            index,
            ask_at: tick,
        });
        if self.is_restoring {
            group
                .restoring
                .extend(group.newest_stored().map(|meta| meta.id.index));
        }
        if !self.is_founder {
            responder.respond(Ok(()));
            return (group, None);
        }
        let founding = Submission {
            hard_state: Some(hard_state),
            snapshots: Some(group.snapshots_record()),
            restart_after: Some(group.handed),
            ..group.next_submission()
        };
        group.sequence = founding.submission;
        group.outstanding.push_back(Outstanding {
            sequence: Some(group.sequence),
            submission: None,
            release: Vec::new(),
            then: Some(OnDurable::Founded { responder }),
        });
        (group, Some(founding))
    }
}
