//! Three replicas in one thread, in memory: how many proposals a second the core commits and
//! applies on all three, and how many allocations each entry costs.
//!
//! `bench_proto FORM PAYLOAD_BYTES BATCH SECONDS`, with FORM `reference` or `bytes`: every message
//! is moved, or is encoded, decoded and checked. Prints `PROPOSALS_PER_S ALLOCS_PER_ENTRY`.
//! `bench_proto quiet GROUPS` makes so many groups, lets them fall quiet, and prints how many of
//! them ask for a call after that.
//!
//! What one round does, here and in `xtask/peers/src/bin/raft_rs.rs` alike: the leader proposes a
//! batch; then, until nobody has anything left to do, every replica that was given something is
//! asked for work, its entries and hard state go to storage in memory, which is durable at once, its
//! messages to a queue, its committed entries to a counter; then the queue is delivered. The next
//! batch comes when all three replicas have applied the last one; the clock is looked at every 16
//! rounds. Storage keeps the latest 2,000 to 4,000 entries, on both sides.
//!
//! What differs: this core encodes and sums each entry once, and storage, messages and committed
//! entries share those bytes; the other core copies entries, each with a buffer of its own, as its
//! types have it. In the form `bytes` ours writes the envelope and copies the frames into a buffer
//! (used again when nothing of it is held any more), decodes it without a copy, and checks the
//! CRC-32C of every entry; theirs encodes and parses protobuf and checks nothing. Heartbeats and
//! elections are no part of either.
#![expect(clippy::print_stdout, reason = "it prints what it measures")]

use std::collections::VecDeque;
use std::error::Error;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use raft_proto::{
    Batch, Config, Envelope, GroupId, HardState, Index, Membership, Message, Proposal, Raft, Ready,
    ReplicaId, Restored, Role,
};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<std::alloc::System> = &INSTRUMENTED_SYSTEM;

/// Applied entries that stay in the in-memory storage.
const KEPT: u64 = 2_000;
/// Rounds between two looks at the clock: reading it takes as long as a good part of a round.
const ROUNDS_A_LOOK: u32 = 16;

struct Replica {
    raft: Raft,
    hard_state: HardState,
    log: VecDeque<Batch>,
    first: Index,
    applied: Index,
    commands: u64,
    /// Whether it was given anything since it was last asked for work.
    is_touched: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [form, groups] if form == "quiet" => quiet(groups.parse()?),
        [form, payload, batch, seconds] => {
            let in_bytes = match form.as_str() {
                "reference" => false,
                "bytes" => true,
                other => return Err(format!("no form {other}").into()),
            };
            let seconds = Duration::try_from_secs_f64(seconds.parse()?)?;
            run(in_bytes, payload.parse()?, batch.parse()?, seconds)
        }
        _ => Err("usage: bench_proto reference|bytes PAYLOAD_BYTES BATCH SECONDS".into()),
    }
}

fn run(
    in_bytes: bool,
    payload_bytes: usize,
    batch: usize,
    seconds: Duration,
) -> Result<(), Box<dyn Error>> {
    let mut bench = Bench::new(in_bytes, payload_bytes, batch)?;
    let mut measure = |span: Duration| -> Result<(u64, f64, usize), Box<dyn Error>> {
        let (before, before_proposals) = (allocations(), bench.proposals);
        let begin = Instant::now();
        while begin.elapsed() < span {
            for _ in 0..ROUNDS_A_LOOK {
                bench.round()?;
            }
        }
        let elapsed = begin.elapsed().as_secs_f64();
        let proposals = bench.proposals - before_proposals;
        Ok((proposals, elapsed, allocations() - before))
    };
    measure(seconds / 4)?;
    let (proposals, elapsed, allocations) = measure(seconds)?;
    bench.check()?;
    let [proposals, allocations] = [proposals, u64::try_from(allocations)?].map(as_f64);
    println!("{:.0} {:.4}", proposals / elapsed, allocations / proposals);
    Ok(())
}

/// Allocations and reallocations of the whole process until now.
pub(crate) fn allocations() -> usize {
    let stats = ALLOCATOR.stats();
    stats.allocations + stats.reallocations
}

/// A group of three whose first replica leads, and what it is given to do.
pub(crate) struct Bench {
    replicas: Vec<Replica>,
    world: World,
    payload: Vec<u8>,
    batch: usize,
    pub(crate) proposals: u64,
}

impl Bench {
    pub(crate) fn new(
        in_bytes: bool,
        payload_bytes: usize,
        batch: usize,
    ) -> Result<Self, Box<dyn Error>> {
        let group = GroupId::new(1).ok_or("a valid id")?;
        let mut replicas = make_group(group, 0)?;
        let mut world = World {
            in_bytes,
            group,
            ready: Ready::default(),
            mail: Vec::new(),
            buffers: Buffers::default(),
        };
        replicas[0].raft.campaign()?;
        world.settle(&mut replicas)?;
        if replicas[0].raft.role() != Role::Leader {
            return Err("replica 1 does not lead".into());
        }
        Ok(Self {
            replicas,
            world,
            payload: vec![7; payload_bytes],
            batch,
            proposals: 0,
        })
    }

    /// Proposes a batch, and goes on until all three replicas have applied it.
    pub(crate) fn round(&mut self) -> Result<(), Box<dyn Error>> {
        let commands = std::iter::repeat_n(Proposal::command(&self.payload), self.batch);
        self.replicas[0].raft.propose(commands)?;
        self.replicas[0].is_touched = true;
        self.world.settle(&mut self.replicas)?;
        self.proposals += u64::try_from(self.batch)?;
        Ok(())
    }

    /// Whether all that was proposed was committed and applied everywhere.
    pub(crate) fn check(&self) -> Result<(), Box<dyn Error>> {
        for replica in &self.replicas {
            if replica.commands != self.proposals {
                return Err("not all were applied everywhere".into());
            }
            if replica.hard_state.commit.get() < self.proposals {
                return Err("not all were committed everywhere".into());
            }
        }
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts lie far below 2^52")]
const fn as_f64(count: u64) -> f64 {
    count as f64
}

fn make_group(group: GroupId, quiesce_timeouts: u64) -> Result<Vec<Replica>, Box<dyn Error>> {
    let ids: Vec<ReplicaId> = (1..=3).filter_map(ReplicaId::new).collect();
    let membership = Membership {
        voters: ids.iter().copied().collect(),
        ..Membership::default()
    };
    ids.iter()
        .map(|&id| {
            let config = Config {
                quiesce_timeouts,
                ..Config::new(group, id, id.get())
            };
            let restored = Restored {
                membership: membership.clone(),
                ..Restored::default()
            };
            Ok(Replica {
                raft: Raft::new(config, restored, 0)?,
                hard_state: HardState::default(),
                log: VecDeque::new(),
                first: Index::new(1),
                applied: Index::ZERO,
                commands: 0,
                is_touched: true,
            })
        })
        .collect()
}

struct World {
    in_bytes: bool,
    group: GroupId,
    ready: Ready,
    mail: Vec<Message>,
    buffers: Buffers,
}

/// What a receiver reads into: a buffer is used again when nothing of it is held any more.
#[derive(Default)]
struct Buffers {
    /// The oldest first; the last one is in use.
    buffers: VecDeque<BytesMut>,
}

impl Buffers {
    const SIZE: usize = 64 << 10;

    /// A buffer with room for `bytes`.
    fn room(&mut self, bytes: usize) -> &mut BytesMut {
        let has_room = |buffer: &BytesMut| buffer.capacity() >= bytes;
        if !self.buffers.back().is_some_and(has_room) {
            let oldest = self.buffers.front_mut();
            let is_free = oldest.is_some_and(|oldest| oldest.try_reclaim(bytes));
            let freed = is_free.then(|| self.buffers.pop_front()).flatten();
            let next = || BytesMut::with_capacity(bytes.max(Self::SIZE));
            self.buffers.push_back(freed.unwrap_or_else(next));
        }
        self.buffers.back_mut().expect("one was just pushed")
    }
}

impl World {
    /// Until no replica has anything to do and no message is under way.
    fn settle(&mut self, replicas: &mut [Replica]) -> Result<(), Box<dyn Error>> {
        loop {
            for replica in replicas.iter_mut() {
                if !std::mem::take(&mut replica.is_touched) {
                    continue;
                }
                while replica.raft.poll_ready_into(&mut self.ready) {
                    replica.handle(&mut self.ready, &mut self.mail);
                }
            }
            if self.mail.is_empty() {
                return Ok(());
            }
            if self.in_bytes {
                for message in self.mail.drain(..) {
                    let message = through_bytes(&mut self.buffers, self.group, message)?;
                    deliver(replicas, message);
                }
            } else {
                for message in self.mail.drain(..) {
                    deliver(replicas, message);
                }
            }
        }
    }
}

/// Encodes a message, and decodes it where it arrives.
fn through_bytes(
    buffers: &mut Buffers,
    group: GroupId,
    message: Message,
) -> Result<Message, Box<dyn Error>> {
    let envelope = Envelope {
        group,
        epoch: 0,
        message,
    };
    let buffer = buffers.room(envelope.encoded_bytes());
    envelope.encode_into(buffer);
    Ok(Envelope::decode(buffer.split().freeze())?.message)
}

fn deliver(replicas: &mut [Replica], message: Message) {
    // Replica n lies at n - 1.
    let at = usize::try_from(message.to.get() - 1);
    if let Some(replica) = at.ok().and_then(|at| replicas.get_mut(at)) {
        replica.is_touched = true;
        // What is old news is dropped, as on any network.
        replica.raft.handle_message(message).ok();
    }
}

impl Replica {
    fn handle(&mut self, ready: &mut Ready, mail: &mut Vec<Message>) {
        if !ready.messages.is_empty() {
            mail.append(&mut ready.messages);
        }
        if !ready.entries.is_empty() {
            for batch in ready.entries.drain(..) {
                self.log.push_back(batch);
            }
        }
        if let Some(hard_state) = ready.hard_state {
            self.hard_state = hard_state;
        }
        // In memory everything is durable at once.
        if let Some(submission) = ready.submission {
            let durable = self.raft.persisted(submission);
            if !ready.messages_after_sync.is_empty() {
                for held in ready.messages_after_sync.drain(..) {
                    mail.push(held.release(durable));
                }
            }
        }
        if ready.committed.is_empty() {
            return;
        }
        for batch in ready.committed.drain(..) {
            self.applied = batch.last().index;
            for entry in &batch {
                self.commands += u64::from(!entry.payload().is_empty());
            }
        }
        self.raft.applied(self.applied);
        if self.applied > self.first.plus(2 * KEPT) {
            let keep = Index::new(self.applied.get() - KEPT);
            while self
                .log
                .front()
                .is_some_and(|batch| batch.last().index < keep)
            {
                self.log.pop_front();
            }
            self.first = self.log.front().map_or(keep, |batch| batch.first().index);
            self.raft.compacted(self.first);
        }
    }
}

/// Makes groups, lets them fall quiet, and counts those that still ask to be called.
fn quiet(groups: u64) -> Result<(), Box<dyn Error>> {
    let mut calls = 0_u64;
    let mut quiet = 0_u64;
    for number in 1..=groups {
        let group = GroupId::new(number).ok_or("a valid id")?;
        let mut replicas = make_group(group, 2)?;
        let mut world = World {
            in_bytes: false,
            group,
            ready: Ready::default(),
            mail: Vec::new(),
            buffers: Buffers::default(),
        };
        replicas[0].raft.campaign()?;
        world.settle(&mut replicas)?;
        for tick in (5..=200).step_by(5) {
            for replica in &mut replicas {
                replica.raft.advance_to(tick);
                replica.is_touched = true;
            }
            world.settle(&mut replicas)?;
        }
        for replica in &mut replicas {
            quiet += u64::from(replica.raft.is_quiet());
            calls += u64::from(replica.raft.next_deadline().is_some());
            calls += u64::from(replica.raft.poll_ready_into(&mut world.ready));
        }
    }
    println!("{quiet} quiet replicas, {calls} calls");
    if calls == 0 && quiet == 3 * groups {
        Ok(())
    } else {
        Err("some are not quiet".into())
    }
}
