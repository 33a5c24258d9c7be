//! TiKV's `raft` crate: three replicas in one thread over its in-memory storage.
//!
//! `raft_rs FORM PAYLOAD_BYTES BATCH SECONDS`, with FORM `reference` or `bytes`: every message is
//! moved, or is encoded and decoded as protobuf. Prints proposals per second, each committed and
//! applied on all three replicas. What a round does is said in raft-proto's `bench_proto.rs`; both do
//! the same.

use std::error::Error;
use std::time::{Duration, Instant};

use protobuf::Message as _;
use raft::eraftpb::{Entry, Message};
use raft::storage::MemStorage;
use raft::{Config, RawNode, StateRole, Storage as _};

/// Applied entries that stay in the in-memory storage.
const KEPT: u64 = 2_000;
/// Rounds between two looks at the clock.
const ROUNDS_A_LOOK: u32 = 16;

struct Replica {
    node: RawNode<MemStorage>,
    store: MemStorage,
    applied: u64,
    commands: u64,
    /// Whether it was given anything since it was last asked for work.
    is_touched: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [form, payload, batch, seconds] = &arguments[..] else {
        return Err("usage: raft_rs reference|bytes PAYLOAD_BYTES BATCH SECONDS".into());
    };
    let in_bytes = match form.as_str() {
        "reference" => false,
        "bytes" => true,
        other => return Err(format!("no form {other}").into()),
    };
    let payload = vec![7_u8; payload.parse()?];
    let batch: u64 = batch.parse()?;
    let seconds = Duration::from_secs_f64(seconds.parse()?);

    let mut replicas = (1..=3).map(replica).collect::<Result<Vec<_>, _>>()?;
    replicas[0].node.campaign()?;
    settle(&mut replicas, in_bytes)?;
    assert_eq!(replicas[0].node.raft.state, StateRole::Leader);

    let mut run = |span: Duration| -> Result<(u64, f64), Box<dyn Error>> {
        let begin = Instant::now();
        let mut proposals = 0;
        while begin.elapsed() < span {
            for _ in 0..ROUNDS_A_LOOK {
                for _ in 0..batch {
                    replicas[0].node.propose(Vec::new(), payload.clone())?;
                }
                replicas[0].is_touched = true;
                settle(&mut replicas, in_bytes)?;
                proposals += batch;
            }
        }
        Ok((proposals, begin.elapsed().as_secs_f64()))
    };
    let warm_up = run(seconds / 4)?.0;
    let (proposals, elapsed) = run(seconds)?;
    for replica in &replicas {
        assert_eq!(
            replica.commands,
            warm_up + proposals,
            "all applied everywhere"
        );
    }
    println!("{:.0}", proposals as f64 / elapsed);
    Ok(())
}

fn replica(id: u64) -> Result<Replica, Box<dyn Error>> {
    let config = Config {
        id,
        election_tick: 10,
        heartbeat_tick: 1,
        max_size_per_msg: 1 << 20,
        max_inflight_msgs: 256,
        ..Config::default()
    };
    let store = MemStorage::new_with_conf_state((vec![1, 2, 3], vec![]));
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let node = RawNode::new(&config, store.clone(), &logger)?;
    Ok(Replica {
        node,
        store,
        applied: 0,
        commands: 0,
        is_touched: true,
    })
}

/// Until no replica has anything to do and no message is under way.
fn settle(replicas: &mut [Replica], in_bytes: bool) -> Result<(), Box<dyn Error>> {
    let mut messages = Vec::new();
    loop {
        for replica in replicas.iter_mut() {
            if !std::mem::take(&mut replica.is_touched) {
                continue;
            }
            while replica.node.has_ready() {
                handle_ready(replica, &mut messages)?;
            }
        }
        if messages.is_empty() {
            return Ok(());
        }
        for message in messages.drain(..) {
            let message = if in_bytes {
                Message::parse_from_bytes(&message.write_to_bytes()?)?
            } else {
                message
            };
            let to = usize::try_from(message.to - 1)?;
            replicas[to].node.step(message)?;
            replicas[to].is_touched = true;
        }
    }
}

fn handle_ready(replica: &mut Replica, out: &mut Vec<Message>) -> Result<(), Box<dyn Error>> {
    let mut ready = replica.node.ready();
    out.extend(ready.take_messages());
    apply(replica, ready.take_committed_entries());
    if !ready.entries().is_empty() {
        replica.store.wl().append(ready.entries())?;
    }
    if let Some(hard_state) = ready.hs() {
        replica.store.wl().set_hardstate(hard_state.clone());
    }
    out.extend(ready.take_persisted_messages());
    let mut light = replica.node.advance(ready);
    if let Some(commit) = light.commit_index() {
        replica.store.wl().mut_hard_state().set_commit(commit);
    }
    out.extend(light.take_messages());
    apply(replica, light.take_committed_entries());
    replica.node.advance_apply();
    if replica.applied > replica.store.first_index()? + 2 * KEPT {
        replica.store.wl().compact(replica.applied - KEPT)?;
    }
    Ok(())
}

fn apply(replica: &mut Replica, entries: Vec<Entry>) {
    for entry in entries {
        replica.applied = entry.index;
        replica.commands += u64::from(!entry.data.is_empty());
    }
}
