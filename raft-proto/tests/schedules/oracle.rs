//! What must hold over all replicas, and what was seen of it.
//!
//! The oracle sees each replica after each of its steps. It keeps what can never change again: which
//! entry has which term, who led which term, who was voted for, what is committed, and what the
//! state machine is at each index. Source: thesis Figure 3.2, §6.4.

use std::collections::{BTreeMap, BTreeSet};

use raft_proto::{
    Batch, EntryId, EntryRef, Index, Membership, MembershipChange, Raft, ReadState, Refused,
    ReplicaId, Role, Term,
};

use crate::replica::{Disk, Machine};

/// What was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Violation {
    /// Two leaders of one term.
    ElectionSafety { term: Term, leaders: [ReplicaId; 2] },
    /// A replica voted for two in one term.
    TwoVotes { voter: ReplicaId, term: Term },
    /// Two entries of one index and term, or with different entries before them.
    LogMatching { id: EntryId },
    /// A leader lacks what was committed in an earlier term.
    LeaderCompleteness { term: Term, lacks: EntryId },
    /// Two replicas committed, or applied, different entries at one index.
    StateMachineSafety { index: Index },
    /// An entry carries an earlier time than the one before it.
    TimeFell { id: EntryId },
    /// Committed by less than a quorum of disks.
    CommitWithoutQuorum { id: EntryId },
    /// A term or a commit index fell.
    WentBack { replica: ReplicaId },
    /// Two memberships of one index.
    Configurations { index: Index },
    /// A read that misses what was committed when it was asked for.
    StaleRead { index: Index, floor: Index },
    /// A read that nobody asked for, or that was answered twice.
    UnknownRead { user: u64 },
    /// Something left before what it says was durable.
    Promise { what: &'static str },
    /// More memory than the settings allow.
    Memory { bytes: usize, bound: usize },
    /// A correct replica's word was taken for a lie.
    Refused { refused: Refused },
    /// With everything healed, nothing moves.
    NoProgress { why: String },
    /// A panic.
    Panic { message: String },
}

/// What happened, so that a run in which nothing did is not taken for a proof.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) by_name: BTreeMap<&'static str, u64>,
}

impl Counts {
    pub(crate) fn add(&mut self, name: &'static str, count: u64) {
        *self.by_name.entry(name).or_default() += count;
    }

    pub(crate) fn add_all(&mut self, other: &Self) {
        for (&name, &count) in &other.by_name {
            self.add(name, count);
        }
    }

    pub(crate) fn of(&self, name: &str) -> u64 {
        self.by_name.get(name).copied().unwrap_or_default()
    }
}

#[derive(Clone, Copy, Debug)]
struct Known {
    term: Term,
    before: Term,
    hash: u64,
    leader_time_ms: u64,
}

#[derive(Clone, Copy, Debug)]
struct Committed {
    term: Term,
    /// The term of whoever was first to know it, which is its leader's.
    in_term: Term,
}

/// What the oracle saw of a replica last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    term: Term,
    commit: Index,
    led: Term,
    membership: Index,
}

impl Seen {
    /// What a restart brings back: the term and, at least, what the state machine had applied.
    pub(crate) const fn restarted(term: Term, commit: Index) -> Self {
        Self {
            term,
            commit,
            led: Term::ZERO,
            membership: Index::ZERO,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Oracle {
    /// By index: the entries that were ever in a log there.
    entries: Vec<Vec<Known>>,
    /// By index. The first two are the start: nothing, and the snapshot that all begin with.
    committed: Vec<Committed>,
    /// By index: the hash of the state after it.
    states: Vec<u64>,
    leaders: BTreeMap<Term, ReplicaId>,
    votes: BTreeMap<(ReplicaId, Term), ReplicaId>,
    memberships: BTreeMap<Index, Membership>,
    reads: BTreeMap<u64, Index>,
    pub(crate) members_ever: BTreeSet<ReplicaId>,
    pub(crate) counts: Counts,
}

fn at(index: Index) -> usize {
    usize::try_from(index.get()).expect("indexes are small here")
}

impl Oracle {
    pub(crate) fn new(membership: &Membership) -> Self {
        let start = |term| Committed {
            term,
            in_term: term,
        };
        Self {
            entries: Vec::new(),
            committed: vec![start(Term::ZERO), start(Term::new(1))],
            states: vec![0, 1],
            leaders: BTreeMap::new(),
            votes: BTreeMap::new(),
            memberships: BTreeMap::from([(membership.index, membership.clone())]),
            reads: BTreeMap::new(),
            members_ever: membership.replicas(),
            counts: Counts::default(),
        }
    }

    /// The highest index that any replica knows to be committed.
    pub(crate) fn committed_index(&self) -> Index {
        Index::new(u64::try_from(self.committed.len()).expect("it fits") - 1)
    }

    /// The newest membership that is in force anywhere.
    pub(crate) fn membership(&self) -> &Membership {
        self.memberships
            .last_key_value()
            .expect("the first one is there")
            .1
    }

    /// Whether a replica was a witness when it was a member last.
    pub(crate) fn was_witness(&self, id: ReplicaId) -> bool {
        let mut latest = self.memberships.values().rev();
        let last = latest.find(|membership| membership.is_member(id));
        last.is_some_and(|membership| membership.is_witness(id))
    }

    /// The membership that the group began with.
    pub(crate) fn first_membership(&self) -> &Membership {
        self.memberships
            .first_key_value()
            .expect("the first one is there")
            .1
    }

    pub(crate) fn state(&self, index: Index) -> u64 {
        self.states[at(index)]
    }

    /// Entries came into a replica's log behind one of term `before`.
    pub(crate) fn appended(&mut self, batches: &[Batch], before: Term) -> Result<(), Violation> {
        let mut before = before;
        for entry in batches.iter().flatten() {
            let place = at(entry.index());
            if self.entries.len() <= place {
                self.entries.resize_with(place + 1, Vec::new);
            }
            let term = entry.term();
            let hash = frame_hash(entry);
            let leader_time_ms = entry.leader_time_ms();
            let previous = entry.index().previous().unwrap_or_default();
            if leader_time_ms < self.time(EntryId::new(before, previous)) {
                return Err(Violation::TimeFell { id: entry.id() });
            }
            match self.entries[place].iter().find(|known| known.term == term) {
                None => self.entries[place].push(Known {
                    term,
                    before,
                    hash,
                    leader_time_ms,
                }),
                Some(known)
                    if known.before == before
                        && (known.hash == hash || entry.is_without_command()) => {}
                Some(_) => return Err(Violation::LogMatching { id: entry.id() }),
            }
            before = term;
        }
        Ok(())
    }

    /// The leader's time of an entry; 0 for one that was in no log.
    pub(crate) fn time(&self, id: EntryId) -> u64 {
        let known = self.entries.get(at(id.index)).into_iter().flatten();
        let mut times = known.filter(|known| known.term == id.term);
        times.next().map_or(0, |known| known.leader_time_ms)
    }

    /// The hash of the entry's content, also where this copy was made for a witness.
    fn content(&self, entry: EntryRef<'_>) -> u64 {
        let known = self.entries.get(at(entry.index())).and_then(|known| {
            known
                .iter()
                .find(|known| known.term == entry.term() && entry.is_without_command())
        });
        known.map_or_else(|| frame_hash(entry), |known| known.hash)
    }

    /// Looks at a replica after a step of it.
    pub(crate) fn look(
        &mut self,
        raft: &Raft,
        seen: &mut Seen,
        disk_of: impl Fn(ReplicaId, EntryId) -> bool,
        must_be_on_disk: bool,
    ) -> Result<(), Violation> {
        let id = raft.config().id;
        if raft.term() < seen.term || raft.commit() < seen.commit {
            return Err(Violation::WentBack { replica: id });
        }
        seen.term = raft.term();
        if raft.role() == Role::Leader && seen.led != raft.term() {
            seen.led = raft.term();
            self.elected(raft)?;
        }
        if raft.commit() > seen.commit {
            self.committed(raft, seen.commit, disk_of, must_be_on_disk)?;
            seen.commit = raft.commit();
        }
        let membership = raft.membership();
        if membership.index != seen.membership {
            seen.membership = membership.index;
            self.configured(membership)?;
        }
        Ok(())
    }

    fn elected(&mut self, raft: &Raft) -> Result<(), Violation> {
        let (id, term) = (raft.config().id, raft.term());
        let leader = *self.leaders.entry(term).or_insert(id);
        if leader != id {
            let leaders = [leader, id];
            return Err(Violation::ElectionSafety { term, leaders });
        }
        self.counts.add("elections", 1);
        for (index, committed) in self.committed.iter().enumerate().skip(1) {
            let index = Index::new(u64::try_from(index).expect("it fits"));
            let is_there =
                index.next() < raft.first_index() || raft.term_at(index) == Some(committed.term);
            if committed.in_term < term && !is_there {
                let lacks = EntryId::new(committed.term, index);
                return Err(Violation::LeaderCompleteness { term, lacks });
            }
        }
        Ok(())
    }

    fn committed(
        &mut self,
        raft: &Raft,
        before: Index,
        disk_of: impl Fn(ReplicaId, EntryId) -> bool,
        must_be_on_disk: bool,
    ) -> Result<(), Violation> {
        let mut index = before;
        let mut newest = None;
        while index < raft.commit() {
            index = index.next();
            let term = raft.term_at(index);
            match (self.committed.get(at(index)), term) {
                (Some(known), Some(term)) if known.term != term => {
                    return Err(Violation::StateMachineSafety { index });
                }
                (Some(_), _) => {}
                // What a snapshot covers was committed before it was taken.
                (None, None) => return Err(Violation::StateMachineSafety { index }),
                (None, Some(term)) => {
                    let in_term = raft.term();
                    self.committed.push(Committed { term, in_term });
                    self.counts.add("commits", 1);
                    newest = Some(EntryId::new(term, index));
                }
            }
        }
        if let Some(id) = newest.filter(|_| must_be_on_disk) {
            let reached = raft
                .membership()
                .committed(|voter| disk_of(voter, id).then_some(id.index));
            if reached < id.index {
                return Err(Violation::CommitWithoutQuorum { id });
            }
        }
        Ok(())
    }

    /// A membership is in force somewhere.
    pub(crate) fn configured(&mut self, membership: &Membership) -> Result<(), Violation> {
        if membership.replicas().is_empty() {
            return Ok(());
        }
        let index = membership.index;
        match self.memberships.get(&index) {
            Some(known) if known == membership => Ok(()),
            Some(_) => Err(Violation::Configurations { index }),
            None => {
                self.counts.add("memberships", 1);
                let before = self.memberships.range(..index).next_back();
                let returned = membership.replicas().into_iter().filter(|id| {
                    let was_member = before.is_none_or(|(_, before)| before.is_member(*id));
                    self.members_ever.contains(id) && !was_member
                });
                let returned = u64::try_from(returned.count()).expect("few");
                for (name, count) in [
                    ("joint", membership.is_joint().into()),
                    ("with witnesses", (!membership.witnesses.is_empty()).into()),
                    ("with learners", (!membership.learners.is_empty()).into()),
                    ("priorities", (!membership.priorities.is_empty()).into()),
                    ("readmissions", returned),
                ] {
                    self.counts.add(name, count);
                }
                self.members_ever.extend(membership.replicas());
                self.memberships.insert(index, membership.clone());
                Ok(())
            }
        }
    }

    /// A replica handed this out to be applied.
    pub(crate) fn handed_out(&self, entry: EntryRef<'_>) -> Result<(), Violation> {
        let index = entry.index();
        match self.committed.get(at(index)) {
            Some(known) if known.term == entry.term() => Ok(()),
            _ => Err(Violation::StateMachineSafety { index }),
        }
    }

    /// A state machine applies `entry`.
    pub(crate) fn applied(
        &mut self,
        machine: &mut Machine,
        entry: EntryRef<'_>,
    ) -> Result<(), Violation> {
        let index = entry.index();
        if index != machine.applied.index.next() {
            return Err(Violation::StateMachineSafety { index });
        }
        machine.applied = entry.id();
        machine.state = (machine.state ^ self.content(entry))
            .wrapping_mul(0x0100_0000_01B3)
            .rotate_left(23);
        if entry.kind().is_membership() {
            let change = MembershipChange::decode(entry.payload())
                .map_err(|_| Violation::StateMachineSafety { index })?;
            if let Ok(changed) = machine.membership.changed(index, &change) {
                machine.membership = changed.membership;
                self.configured(&machine.membership)?;
            }
        }
        match self.states.get(at(index)) {
            Some(&state) if state == machine.state => Ok(()),
            Some(_) => Err(Violation::StateMachineSafety { index }),
            None if self.states.len() == at(index) => {
                self.states.push(machine.state);
                Ok(())
            }
            None => Err(Violation::StateMachineSafety { index }),
        }
    }

    /// `voter` votes for `candidate`.
    pub(crate) fn voted(
        &mut self,
        voter: ReplicaId,
        term: Term,
        candidate: ReplicaId,
    ) -> Result<(), Violation> {
        if *self.votes.entry((voter, term)).or_insert(candidate) == candidate {
            Ok(())
        } else {
            Err(Violation::TwoVotes { voter, term })
        }
    }

    /// A read is asked for: it has to see all that is committed by now.
    pub(crate) fn read_asked(&mut self, user: u64) {
        self.reads.insert(user, self.committed_index());
    }

    pub(crate) fn read_answered(&mut self, read: ReadState) -> Result<(), Violation> {
        let Some(floor) = self.reads.remove(&read.user) else {
            return Err(Violation::UnknownRead { user: read.user });
        };
        if read.index < floor || read.index > self.committed_index() {
            let index = read.index;
            return Err(Violation::StaleRead { index, floor });
        }
        self.counts.add("reads", 1);
        Ok(())
    }

    pub(crate) fn read_dropped(&mut self, user: u64) -> Result<(), Violation> {
        match self.reads.remove(&user) {
            Some(_) => Ok(()),
            None => Err(Violation::UnknownRead { user }),
        }
    }

    /// The replica that was asked is gone, and what it was asked with it.
    pub(crate) fn reads_forgotten(&mut self, users: &BTreeSet<u64>) {
        self.reads.retain(|user, _| !users.contains(user));
    }

    /// How many of these reads wait for an answer.
    pub(crate) fn reads_waiting(&self) -> usize {
        self.reads.len()
    }
}

/// Whether a disk holds the entry, or a snapshot that covers it.
pub(crate) fn is_on_disk(disk: &Disk, id: EntryId) -> bool {
    id.index < disk.first() || disk.term_at(id.index) == Some(id.term)
}

/// The checksum that the frame carries stands for all of it.
fn frame_hash(entry: EntryRef<'_>) -> u64 {
    let crc = entry.frame()[4..8].try_into().expect("four bytes");
    u64::from(u32::from_le_bytes(crc))
}
