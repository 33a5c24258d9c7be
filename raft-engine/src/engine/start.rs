//! Starts and stops groups on this host.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Weak};

use raft_log::{Health, ReplicaState};
use raft_proto::{Config, GroupId, HostId, Index, ReplicaId};
use raft_snapshot::{SnapshotEnv, SnapshotError};

use super::origin::Origin;
use super::{Engine, EngineShared, Phase, Running, damage, lock, storage};
use crate::apply::{ApplyInput, Task};
use crate::group::{BOOTSTRAP_INDEX, SEQUENCE_BITS};
use crate::prepared::Prepared;
use crate::request::{Completion, RequestError, Responder};
use crate::route;
use crate::state_machine::StateMachine;
use crate::step::StepInput;

/// And so many bits number the lives within an opening of the data directory.
const LIVES_BITS: u32 = u64::BITS - SEQUENCE_BITS;

/// How a group comes to be on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// The group is founded, with these voters and their hosts, the same on every founding host.
    Bootstrap {
        /// The founding voters.
        members: BTreeMap<ReplicaId, HostId>,
    },
    /// The replica's state is on this host's disk.
    Restart,
    /// The replica is empty and will be fed by the group's leader, which has added it or will.
    Join,
}

/// What a group's start needs.
pub struct StartGroup {
    /// The group.
    pub group: GroupId,
    /// This host's replica. An id is never used again once it was removed.
    pub replica: ReplicaId,
    /// The group's epoch; messages of another are refused. 1 until an import raises it.
    pub epoch: u64,
    /// How it comes to be.
    pub start: Start,
    /// The state machine, empty.
    pub machine: Box<dyn StateMachine>,
}

impl Engine {
    /// Starts a group on this host. Reads the replica's directories; the responder hears when the
    /// replica's existence is durable.
    ///
    /// # Errors
    ///
    /// Through the responder: [`RequestError::AlreadyRunning`], [`RequestError::StateExists`],
    /// [`RequestError::NoState`]; [`RequestError::Damaged`]: the replica neither votes nor
    /// acknowledges, and the other groups of this host go on; [`RequestError::Storage`];
    /// [`RequestError::Invalid`] for members that make no sense.
    pub fn start_group(&self, start: StartGroup, responder: Responder<()>) {
        if let Err(error) = self.claim(&start) {
            return responder.respond(Err(error));
        }
        let id = start.group;
        match self.prepare(start) {
            Ok(prepared) => self.step(id).notice(StepInput::Start {
                prepared,
                responder,
            }),
            Err(error) => {
                lock(&self.shared.running).remove(&id);
                responder.respond(Err(error));
            }
        }
    }

    /// Takes the group's place, so that it is started once.
    fn claim(&self, start: &StartGroup) -> Result<(), RequestError> {
        match lock(&self.shared.running).entry(start.group) {
            Entry::Occupied(_) => Err(RequestError::AlreadyRunning(start.group)),
            Entry::Vacant(place) => {
                place.insert(Running {
                    replica: start.replica,
                    epoch: start.epoch,
                    phase: Phase::Starting,
                });
                Ok(())
            }
        }
    }

    /// Reads what the disk holds of the replica, and hands its machine to the apply worker.
    fn prepare(&self, start: StartGroup) -> Result<Box<Prepared>, RequestError> {
        let StartGroup {
            group: id,
            replica,
            epoch,
            start,
            machine,
        } = start;
        let env = self.env(id, replica).map_err(|error| storage(&error))?;
        let origin = self.origin(id, replica, &start, &env)?;
        let starts = self.shared.starts.fetch_add(1, Ordering::Relaxed) + 1;
        lock(&self.shared.recovered).remove(&(id, replica));
        if let Some(running) = lock(&self.shared.running).get_mut(&id) {
            running.phase = Phase::Serving;
        }
        let newest = origin.snapshots.last().map(|meta| meta.id.index);
        let restore = newest.filter(|&index| index > BOOTSTRAP_INDEX && origin.lost.is_none());
        let apply = &self.shared.step_shared.applies;
        let apply = &apply[route(id, apply.len())];
        apply.notice(ApplyInput::Start {
            group: id,
            machine,
            // A machine starts empty: what a stored snapshot covers comes from there.
            applied: match (restore, origin.lost) {
                (None, None) => origin.restored.applied,
                _ => Index::ZERO,
            },
            awaits_snapshot: origin.lost.is_some(),
        });
        if let Some(index) = restore {
            apply.notice(ApplyInput::Task {
                group: id,
                task: Task::restore(id, env.clone(), index, false),
            });
        }
        Ok(Box::new(Prepared {
            core_config: self.core_config(id, replica, starts),
            restored: origin.restored,
            epoch,
            env,
            snapshots: origin.snapshots,
            is_restoring: restore.is_some(),
            lost: origin.lost,
            handed: origin.handed,
            // Numbers of an earlier life of the replica in this process vouch for nothing of this.
            sequence: starts << SEQUENCE_BITS,
            is_founder: matches!(start, Start::Bootstrap { .. }),
        }))
    }

    /// The time that the last entry held carries: none behind it may carry an earlier one. What a
    /// snapshot covers is not looked at: its entries are gone.
    fn last_leader_time_ms(&self, group: GroupId, replica: ReplicaId, state: &ReplicaState) -> u64 {
        let (reader, last) = (&self.shared.step_shared.reader, state.last.index);
        let batches = reader.entries(group, replica, last, last, 1);
        let times = batches.unwrap_or_default().into_iter();
        times
            .flat_map(|batch| batch.iter().map(|entry| entry.leader_time_ms()).max())
            .max()
            .unwrap_or(0)
    }

    /// Where the replica starts from, with snapshots that were read through.
    fn origin(
        &self,
        id: GroupId,
        replica: ReplicaId,
        start: &Start,
        env: &SnapshotEnv,
    ) -> Result<Origin, RequestError> {
        let damaged = |reason| RequestError::Damaged {
            group: id,
            replica,
            reason,
        };
        let known = self.shared.step_shared.reader.replicas_of(id);
        let has_state = known
            .iter()
            .any(|(_, state)| !matches!(state.health, Health::Tombstone));
        let mut origin = match start {
            Start::Restart => {
                let state = known.iter().find(|(known, _)| *known == replica);
                let (_, state) = state.ok_or(RequestError::NoState(id))?;
                if let Some(reason) = damage(&state.health) {
                    return Err(damaged(reason));
                }
                let mut origin = Origin::recovered(id, state)?;
                origin.restored.leader_time_ms = self.last_leader_time_ms(id, replica, state);
                origin
            }
            _ if has_state => return Err(RequestError::StateExists(id)),
            Start::Bootstrap { members } => Origin::founded(id, replica, members)?,
            Start::Join => Origin::default(),
        };
        let named: Vec<Index> = origin.snapshots.iter().map(|meta| meta.id.index).collect();
        let swept = env.sweep(&named, false).map_err(|error| storage(&error))?;
        if !swept.removed.is_empty() {
            tracing::info!(group = id.get(), removed = ?swept.removed, "swept");
        }
        if let Some((index, error)) = origin.fall_back_to_sound(&self.shared.vfs, env) {
            let has_peers = origin
                .restored
                .membership
                .voters
                .iter()
                .any(|&voter| voter != replica);
            // What the disk refuses to give may be there yet.
            let is_gone = !matches!(error, SnapshotError::Io(_) | SnapshotError::Version { .. });
            if !has_peers || !is_gone {
                return Err(damaged(error.to_string()));
            }
            // Its name is free for the one that comes.
            env.remove(index).map_err(|error| storage(&error))?;
            tracing::warn!(group = id.get(), %index, "its snapshot is lost: asks a peer for one");
            origin.lost = Some(index);
        }
        Ok(origin)
    }

    /// Stops a group on this host; its state stays on disk. A save under way is aborted. Answered
    /// when all that it submitted is durable, which on a full disk may wait for room, and its state
    /// machine is gone; until then the group counts as running, if it has failed too. When the host
    /// has failed nothing is waited for. A group whose start is under way does not run yet.
    ///
    /// # Errors
    ///
    /// Through the responder: [`RequestError::UnknownGroup`]; [`RequestError::Terminated`] if the
    /// engine ends first.
    pub fn stop_group(&self, group: GroupId, responder: Responder<()>) {
        match lock(&self.shared.running).get_mut(&group) {
            Some(running) if running.phase == Phase::Serving => running.phase = Phase::Stopping,
            _ => return responder.respond(Err(RequestError::UnknownGroup(group))),
        }
        let stopped = Stopped {
            shared: Arc::downgrade(&self.shared),
            group,
            then: Mutex::new(Some(responder)),
        };
        let responder = Responder::new(Arc::new(stopped));
        self.step(group)
            .notice(StepInput::Stop { group, responder });
    }

    /// The core's settings in the life that this is, the `starts`-th group started since the data
    /// directory was opened.
    fn core_config(&self, group: GroupId, replica: ReplicaId, starts: u64) -> Config {
        let config = &self.shared.config;
        let life = config.open_count << LIVES_BITS | starts;
        let seed = [config.seed, group.get(), replica.get(), life]
            .into_iter()
            .fold(0, mixed);
        Config {
            life,
            election_timeout_ticks_min: config.election_timeout_ticks_min,
            election_timeout_ticks_max: config.election_timeout_ticks_max,
            heartbeat_ticks: config.heartbeat_ticks,
            lease_ticks: config.lease_ticks,
            quiesce_timeouts: config.quiesce_timeouts,
            message_bytes_max: config.message_bytes_max,
            inflight_messages_max: config.inflight_messages_max,
            inflight_bytes_max: config.inflight_bytes_max,
            uncommitted_bytes_max: config.uncommitted_bytes_max,
            committed_bytes_per_ready_max: config.applying_bytes_max,
            cache_bytes_max: config.cache_bytes_max,
            ..Config::new(group, replica, seed)
        }
    }
}

/// One step of a hash in which every bit counts (splitmix64's).
const fn mixed(hash: u64, word: u64) -> u64 {
    let z = (hash ^ word).wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Forgets a group when it has stopped, and passes the answer on.
struct Stopped {
    /// Not owned: the engine's own inboxes hold this.
    shared: Weak<EngineShared>,
    group: GroupId,
    then: Mutex<Option<Responder<()>>>,
}

impl Completion<()> for Stopped {
    fn complete(&self, outcome: Result<(), RequestError>) {
        if let Some(shared) = self.shared.upgrade() {
            lock(&shared.running).remove(&self.group);
        }
        if let Some(responder) = lock(&self.then).take() {
            responder.respond(outcome);
        }
    }
}
