//! The host process.

use std::collections::{BTreeMap, VecDeque};
use std::env;
use std::error::Error;
use std::io::{BufRead, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use raft_host::{
    Bytes, BytesMut, CertificateFiles, Command, GroupHandle, GroupId, GroupStart, HostConfig,
    HostId, NodeHost, ReplicaId, SaveCursor, SaveStep, SnapshotRead, SnapshotRequest, Start,
    StateMachine, StateMachineError,
};
use tokio::sync::mpsc;

type BoxError = Box<dyn Error + Send + Sync>;

/// Proposals under way at once.
const WINDOW: usize = 64;
/// Acknowledged proposals between two snapshots.
const SNAPSHOT_EVERY: u64 = 400;

/// Keeps every number, in order.
#[derive(Default)]
struct Numbers(Vec<u64>);

impl StateMachine for Numbers {
    fn apply(&mut self, command: Command<'_>) -> Result<Bytes, StateMachineError> {
        let number = command.payload.try_into().map(u64::from_le_bytes);
        let number = number.map_err(|_| StateMachineError("not a number".to_owned()))?;
        self.0.push(number);
        Ok(Bytes::new())
    }

    fn query(&mut self, _query: &[u8]) -> Result<Bytes, StateMachineError> {
        Ok(self
            .0
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect())
    }

    fn save_next(
        &mut self,
        _cursor: &mut SaveCursor,
        out: &mut BytesMut,
    ) -> Result<SaveStep, StateMachineError> {
        out.extend(self.0.iter().flat_map(|number| number.to_le_bytes()));
        Ok(SaveStep::Done)
    }

    fn restore(&mut self, source: &mut dyn SnapshotRead) -> Result<(), StateMachineError> {
        let mut bytes = BytesMut::new();
        while let Some(block) = source.next()? {
            bytes.extend_from_slice(&block);
        }
        self.0 = bytes
            .chunks_exact(8)
            .map(|chunk| u64::from_le_bytes(chunk.try_into().expect("eight bytes")))
            .collect();
        Ok(())
    }
}

/// What the parent says: `HOST`, `DIR`, `ADDRESSES` as `1=ADDR,...`, and from where to count.
pub(crate) fn run() -> Result<(), BoxError> {
    let said = |name: &str| env::var(name).map_err(|error| format!("{name}: {error}"));
    let id = HostId::try_from(said(super::super::HOST)?.parse::<u64>()?)?;
    let dir = PathBuf::from(said("FLOTILLA_TEST_DIR")?);
    let mut addresses: BTreeMap<HostId, SocketAddr> = BTreeMap::new();
    for peer in said("FLOTILLA_TEST_ADDRESSES")?.split(',') {
        let (host, address) = peer.split_once('=').ok_or("an address without its host")?;
        addresses.insert(HostId::try_from(host.parse::<u64>()?)?, address.parse()?);
    }
    let first = said("FLOTILLA_TEST_FIRST")?.parse()?;
    tokio::runtime::Runtime::new()?.block_on(serve(id, dir, addresses, first))
}

async fn serve(
    id: HostId,
    dir: PathBuf,
    addresses: BTreeMap<HostId, SocketAddr>,
    first: u64,
) -> Result<(), BoxError> {
    let mut config = HostConfig::new(dir.join(format!("host-{id}")), id, "kill");
    config.certificates = CertificateFiles::in_dir(dir, id);
    config.listen = addresses[&id];
    config.log.segment_size_bytes = 128 << 10;
    config.log.record_bytes_max = 32 << 10;
    config.engine.message_bytes_max = 16 << 10;
    config.engine.proposal_bytes_max = 16 << 10;
    config.engine.compaction_overhead = 10;
    let replica_of = |host: HostId| ReplicaId::try_from(host.get());
    let members: Result<BTreeMap<_, _>, _> = addresses
        .keys()
        .map(|&host| replica_of(host).map(|replica| (replica, host)))
        .collect();
    config.addresses = addresses;
    let host = NodeHost::open(config).await?;
    let group = GroupId::try_from(1)?;
    let start = match host.recovered_replica(group) {
        Some(_) => Start::Restart,
        None => Start::Bootstrap { members: members? },
    };
    let replica = replica_of(id)?;
    let machine = Box::<Numbers>::default();
    let start = GroupStart {
        group,
        replica,
        start,
        machine,
    };
    let numbers = host.start_group(start).await?;
    let load = tokio::spawn(propose(numbers.clone(), first));
    let mut lines = stdin_lines();
    while let Some(line) = lines.recv().await {
        match line.as_str() {
            "quiet" => load.abort(),
            "read" => {
                let patient = numbers.with_timeout(Duration::from_secs(30));
                say(&match patient.read("").await {
                    Ok(all) => {
                        let all: Vec<String> = all
                            .chunks_exact(8)
                            .map(|chunk| u64::from_le_bytes(chunk.try_into().expect("eight bytes")))
                            .map(|number| number.to_string())
                            .collect();
                        format!("all {}", all.join(" "))
                    }
                    Err(error) => format!("again {error}"),
                })?;
            }
            other => return Err(format!("not understood: {other}").into()),
        }
    }
    host.close().await?;
    Ok(())
}

/// Whether a proposal was acknowledged.
type Outcome = Pin<Box<dyn Future<Output = bool> + Send>>;

/// Proposes numbers while this host leads, each once, and prints those that were acknowledged.
async fn propose(numbers: GroupHandle, first: u64) -> Result<(), BoxError> {
    let mut next = first;
    let mut acknowledged = 0;
    let mut under_way: VecDeque<(u64, Outcome)> = VecDeque::new();
    loop {
        while under_way.len() < WINDOW {
            let outcome = numbers.propose(Bytes::copy_from_slice(&next.to_le_bytes()));
            under_way.push_back((next, Box::pin(async move { outcome.await.is_ok() })));
            next += 1;
        }
        let (number, outcome) = under_way.pop_front().expect("the window was just filled");
        if outcome.await {
            say(&format!("acknowledged {number}"))?;
            acknowledged += 1;
            if acknowledged % SNAPSHOT_EVERY == 0 {
                drop(numbers.request_snapshot(SnapshotRequest::default()));
            }
        } else if !numbers.is_leader() {
            // Another leads, or nobody: there will be news, or the end.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Prints a whole line at once.
fn say(line: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes())?;
    out.flush()
}

fn stdin_lines() -> mpsc::UnboundedReceiver<String> {
    let (sender, lines) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}
