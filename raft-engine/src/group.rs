//! A replica's state in its step worker: the core, and what stands between it and the world.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use raft_log::{SNAPSHOTS_BYTES_MAX, SnapshotRecord, SnapshotsRecord, Submission};
use raft_proto::{
    AfterSync, EntryId, GroupId, HardState, HostId, Index, MEMBERSHIP_BYTES_MAX, Membership,
    Message, Raft, ReplicaId, Session, SnapshotMeta, SubmissionId,
};
use raft_snapshot::SnapshotEnv;

use crate::apply::{Read, Task, Waiter};
use crate::jobs::Abort;
use crate::request::{Applied, RequestError, Responder, SnapshotOutcome};

/// A command that waits for its pass.
pub(crate) struct Proposal {
    pub(crate) command: Bytes,
    pub(crate) session: Option<Session>,
    pub(crate) responder: Responder<Applied>,
}

/// A life of a replica numbers its submissions in this many bits: ten thousand a second for three
/// years. That leaves sixteen million lives.
pub(crate) const SEQUENCE_BITS: u32 = 40;

/// Which of a replica's lives in this process a submission's number is of.
pub(crate) const fn life_of(sequence: u64) -> u64 {
    sequence >> SEQUENCE_BITS
}

/// What the core was promised a notice for, in the order it asked.
///
/// Invariant: completes in order; one without a lane sequence completes with the one before it.
pub(crate) struct Outstanding {
    /// The lane's number for it, or `None` if nothing had to be written.
    pub(crate) sequence: Option<u64>,
    pub(crate) submission: Option<SubmissionId>,
    /// What may leave once it is durable.
    pub(crate) release: Vec<AfterSync<Message>>,
    pub(crate) then: Option<OnDurable>,
}

/// What follows when a snapshot record is durable.
pub(crate) enum OnDurable {
    /// The replica's first record: it exists.
    Founded { responder: Responder<()> },
    /// A snapshot of our own: its flag may go, and its caller hears of it.
    Recorded { index: Index },
    /// A received one: the state machine may be restored from it.
    Installed { meta: SnapshotMeta },
    /// The same for one that takes the place of a lost one; the log stays as it is.
    Filled { meta: SnapshotMeta },
}

/// A snapshot that is lost here while the log is not. Nothing is applied until a peer has given it,
/// or a later one.
pub(crate) struct Awaited {
    pub(crate) index: Index,
    /// The leader is not asked before this tick.
    pub(crate) ask_at: u64,
}

/// A snapshot being saved.
pub(crate) struct Saving {
    pub(crate) number: u64,
    pub(crate) index: Index,
    pub(crate) responder: Option<Responder<SnapshotOutcome>>,
    pub(crate) overhead: u64,
    pub(crate) is_export: bool,
    /// Its record is on the way to the log: too late to be given up.
    pub(crate) is_recording: bool,
    pub(crate) abort: Abort,
}

pub(crate) struct Group {
    pub(crate) id: GroupId,
    pub(crate) replica: ReplicaId,
    pub(crate) epoch: u64,
    pub(crate) raft: Raft,
    /// Already in this pass's list.
    pub(crate) is_touched: bool,
    /// Where the group stands in the timers.
    pub(crate) deadline_tick: Option<u64>,
    /// The number of the last submission given to the lane, or to be given at the end of the pass.
    pub(crate) sequence: u64,
    /// The number of the last submission that has ended there.
    pub(crate) ended: u64,
    pub(crate) outstanding: VecDeque<Outstanding>,
    /// What the lane was last given, and what it must be given with the next record.
    pub(crate) hard_state: HardState,
    pub(crate) proposals: Vec<Proposal>,
    pub(crate) reads: Vec<Read>,
    /// Reads that wait for their round, and the tick at which that is given up.
    pub(crate) rounds: BTreeMap<u64, (u64, Vec<Read>)>,
    pub(crate) next_round: u64,
    /// Proposers whose entries are in the log and not yet committed, by index.
    pub(crate) waiters: VecDeque<Waiter>,
    /// Where each replica lives: from the membership, and from the connections its messages
    /// came by.
    pub(crate) hosts: BTreeMap<ReplicaId, HostId>,
    /// The index of the membership that `hosts` was filled from.
    hosts_as_of: Index,
    pub(crate) env: SnapshotEnv,
    /// Recorded snapshots, oldest first.
    pub(crate) snapshots: Vec<SnapshotMeta>,
    /// Stored snapshots that the machine has yet to be restored from: their directories stay, even
    /// if newer ones have come.
    pub(crate) restoring: Vec<Index>,
    pub(crate) awaits: Option<Awaited>,
    /// One that took a lost one's place and that the entries handed out have not reached yet.
    pub(crate) filled: Option<SnapshotMeta>,
    pub(crate) saving: Option<Saving>,
    pub(crate) saves_begun: u64,
    /// Before this tick no save is begun unasked, and the pause that led to it.
    pub(crate) save_not_before: u64,
    pub(crate) save_backoff_ticks: u64,
    /// The core, leading, wants a snapshot at or past this index for a follower.
    pub(crate) snapshot_wanted: Option<Index>,
    /// The last entry handed to the apply worker.
    pub(crate) handed: EntryId,
    /// The membership as of `handed`: what a snapshot taken there carries. The core's own may be
    /// that of a received snapshot which is not durable yet.
    pub(crate) membership: Membership,
    pub(crate) transfer: Option<(ReplicaId, Responder<()>)>,
    /// Whether the leadership was offered to another since the disk became full.
    pub(crate) is_handed_over_as_full: bool,
    pub(crate) is_installed_from_stream: bool,
    pub(crate) failed: Option<String>,
}

impl Group {
    pub(crate) fn new(
        id: GroupId,
        replica: ReplicaId,
        epoch: u64,
        raft: Raft,
        env: SnapshotEnv,
        snapshots: Vec<SnapshotMeta>,
    ) -> Self {
        let membership = raft.membership().clone();
        Self {
            id,
            replica,
            epoch,
            raft,
            is_touched: false,
            deadline_tick: None,
            sequence: 0,
            ended: 0,
            outstanding: VecDeque::new(),
            hard_state: HardState::default(),
            proposals: Vec::new(),
            reads: Vec::new(),
            rounds: BTreeMap::new(),
            next_round: 1,
            waiters: VecDeque::new(),
            hosts: BTreeMap::new(),
            hosts_as_of: Index::ZERO,
            env,
            snapshots,
            restoring: Vec::new(),
            awaits: None,
            filled: None,
            saving: None,
            saves_begun: 0,
            save_not_before: 0,
            save_backoff_ticks: 0,
            snapshot_wanted: None,
            handed: EntryId::ZERO,
            membership,
            transfer: None,
            is_handed_over_as_full: false,
            is_installed_from_stream: false,
            failed: None,
        }
    }

    /// What is submitted next, empty yet.
    pub(crate) const fn next_submission(&self) -> Submission {
        Submission::new(self.id, self.replica, self.sequence + 1)
    }

    /// What the log records of the retained snapshots.
    pub(crate) fn snapshots_record(&self) -> SnapshotsRecord {
        record_of(&self.snapshots)
    }

    /// The task that replaces the machine's state by the stored snapshot at `index`.
    pub(crate) fn restore_task(&mut self, index: Index, is_fill: bool) -> Task {
        self.restoring.push(index);
        Task::restore(self.id, self.env.clone(), index, is_fill)
    }

    /// The machine has come so far.
    pub(crate) fn applied(&mut self, index: Index) {
        self.restoring.retain(|&restoring| restoring > index);
        self.raft.applied(index);
        if let Some(meta) = self.filled.take_if(|meta| meta.id.index <= index) {
            self.raft.snapshot_stored(meta);
        }
    }

    /// The newest recorded snapshot that lies in a directory.
    pub(crate) fn newest_stored(&self) -> Option<&SnapshotMeta> {
        self.snapshots
            .last()
            .filter(|meta| meta.id.index > BOOTSTRAP_INDEX)
    }

    /// Adds a snapshot to those retained; the oldest go.
    pub(crate) fn retain_with(&mut self, meta: SnapshotMeta, retention: usize) {
        self.snapshots.push(meta);
        retain_newest(&mut self.snapshots, retention);
    }

    /// Takes the next of what completes with the submission of this number.
    pub(crate) fn next_durable(&mut self, sequence: u64) -> Option<Outstanding> {
        let front = self.outstanding.front()?;
        if front.sequence.is_some_and(|own| own > sequence) {
            return None;
        }
        self.outstanding.pop_front()
    }

    /// Answers a founder who will not be founded.
    pub(crate) fn refuse_founding(&mut self, error: &RequestError) {
        for outstanding in self.outstanding.drain(..) {
            if let Some(OnDurable::Founded { responder }) = outstanding.then {
                responder.respond(Err(error.clone()));
            }
        }
    }

    /// Learns where replicas live if the membership in force is another than before.
    pub(crate) fn learn_hosts_of_switch(&mut self) {
        if self.hosts_as_of != self.raft.membership().index {
            self.learn_hosts();
        }
    }

    /// Learns where replicas live from the membership in force.
    pub(crate) fn learn_hosts(&mut self) {
        self.hosts_as_of = self.raft.membership().index;
        for (&replica, &host) in &self.raft.membership().hosts {
            self.hosts.insert(replica, host);
        }
    }

    /// Whether `replica` lives on `host`, which is believed of the first host that it speaks from.
    pub(crate) fn lives_on(&mut self, replica: ReplicaId, host: HostId) -> bool {
        if let Some(&known) = self.hosts.get(&replica) {
            return known == host;
        }
        if self.hosts.len() >= HOSTS_MAX {
            // Names that no membership holds, made up by a peer: forget them all.
            let members = &self.raft.membership().hosts;
            self.hosts.retain(|known, _| members.contains_key(known));
        }
        self.hosts.insert(replica, host);
        true
    }
}

fn record_of(snapshots: &[SnapshotMeta]) -> SnapshotsRecord {
    let record = |meta: &SnapshotMeta| SnapshotRecord {
        id: meta.id,
        membership: Bytes::from(meta.membership.encode()),
    };
    SnapshotsRecord {
        retained: snapshots.iter().map(record).collect(),
    }
}

/// Keeps the newest snapshots: so many at most, and no more than the log takes a record of.
fn retain_newest(snapshots: &mut Vec<SnapshotMeta>, retention: usize) {
    const {
        assert!(MEMBERSHIP_BYTES_MAX + RECORD_BYTES <= SNAPSHOTS_BYTES_MAX / 7);
    }
    let mut bytes = 0;
    let newest = snapshots.iter().rev().take(retention);
    let kept = newest.take_while(|meta| {
        bytes += RECORD_BYTES + meta.membership.encode().len();
        bytes <= SNAPSHOTS_BYTES_MAX
    });
    let excess = snapshots.len() - kept.count();
    snapshots.drain(..excess);
}

/// What the record of a snapshot takes beside its membership, at most.
const RECORD_BYTES: usize = 64;

/// Places of replicas that are remembered; a membership has no more than 1,024.
const HOSTS_MAX: usize = 4_096;

/// A bootstrapped group's log starts behind this entry, which every founding replica holds by
/// definition: its term is 1 and its content the founding membership, recorded like a snapshot.
/// A replica that joins later is therefore always fed by a snapshot.
pub(crate) const BOOTSTRAP_INDEX: Index = Index::new(1);

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use raft_log::vfs::{SimVfs, Vfs};
    use raft_log::{Lane, LaneOptions};
    use raft_proto::Term;

    use super::*;

    /// A membership of more bytes than a sixteenth of what the log takes.
    fn large() -> Membership {
        let id = |number: u64| ReplicaId::new(u64::MAX - 9_999 + number).expect("an id");
        let ids = || (1..=1_000).map(id);
        let host = HostId::new(u64::MAX - 9_999).expect("an id");
        Membership {
            voters: ids().collect(),
            voters_outgoing: ids().collect(),
            hosts: ids().map(|id| (id, host)).collect(),
            ..Membership::default()
        }
    }

    #[test]
    fn as_many_snapshots_are_retained_as_the_log_takes() {
        let disk: Arc<dyn Vfs> = Arc::new(SimVfs::new(1));
        let path = Path::new("/data");
        disk.create_dir_all(path).expect("an empty disk");
        let (mut lane, _) = Lane::open(disk, path, LaneOptions::default()).expect("it opens");
        let ids = GroupId::new(1).zip(ReplicaId::new(1));
        let (group, replica) = ids.expect("not 0");
        let membership = large();
        let bytes = membership.encode().len();
        assert!((SNAPSHOTS_BYTES_MAX / 16..MEMBERSHIP_BYTES_MAX).contains(&bytes));
        let mut snapshots = Vec::new();
        for index in 1..=40 {
            let id = EntryId::new(Term::new(1), Index::new(index));
            snapshots.push(SnapshotMeta {
                id,
                membership: membership.clone(),
            });
            retain_newest(&mut snapshots, 16);
            let mut submission = Submission::new(group, replica, index);
            submission.snapshots = Some(record_of(&snapshots));
            submission.restart_after = Some(id);
            lane.submit(submission).expect("the log takes it");
        }
        assert!((7..16).contains(&snapshots.len()), "{}", snapshots.len());
        for index in 41..=80 {
            let id = EntryId::new(Term::new(1), Index::new(index));
            let membership = Membership::default();
            snapshots.push(SnapshotMeta { id, membership });
            retain_newest(&mut snapshots, 16);
        }
        assert_eq!(snapshots.len(), 16);
    }
}
