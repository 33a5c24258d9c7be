//! Three replicas of one group in one thread: an election, and a command that all of them apply.
use raft_proto::{Config, GroupId, Membership, Proposal, Raft, ReplicaId, Restored};
use std::{collections::VecDeque, error::Error};

struct Replica {
    raft: Raft,
    commands: Vec<Vec<u8>>, // the state machine
}

fn main() -> Result<(), Box<dyn Error>> {
    let group = GroupId::new(1).ok_or("0 is no id")?;
    let mut membership = Membership::default();
    membership.voters.extend((1..=3).filter_map(ReplicaId::new));
    let mut replicas = Vec::new();
    for &id in &membership.voters {
        // What the disk holds at the first start: nothing but who belongs to the group.
        let disk = Restored {
            membership: membership.clone(),
            ..Restored::default()
        };
        let raft = Raft::new(Config::new(group, id, id.get()), disk, 0)?;
        replicas.push(Replica {
            raft,
            commands: Vec::new(),
        });
    }
    replicas[0].raft.campaign()?; // or wait: `advance_to` tells a replica the time
    run(&mut replicas)?;
    replicas[0].raft.propose([Proposal::command(b"hello")])?;
    run(&mut replicas)?;
    for replica in &replicas {
        assert_eq!(replica.commands, [&b""[..], b"hello"]); // a leader begins with an empty one
    }
    Ok(())
}

/// Does all that the replicas want done, until they want nothing more.
fn run(replicas: &mut [Replica]) -> Result<(), Box<dyn Error>> {
    let mut mail = VecDeque::new();
    loop {
        for Replica { raft, commands } in replicas.iter_mut() {
            while let Some(ready) = raft.poll_ready() {
                mail.extend(ready.messages);
                if let Some(submission) = ready.submission {
                    // Here `hard_state` and `entries` are written and synced. Then say so:
                    let durable = raft.persisted(submission);
                    let held = ready.messages_after_sync.into_iter();
                    mail.extend(held.map(|held| held.release(durable)));
                }
                for batch in ready.committed {
                    commands.extend(batch.iter().map(|entry| entry.payload().to_vec()));
                    raft.applied(batch.last().index);
                }
            }
        }
        let Some(message) = mail.pop_front() else {
            return Ok(());
        };
        let to = usize::try_from(message.to.get())? - 1;
        replicas[to].raft.handle_message(message).ok(); // a refusal says why; old news is no error
    }
}
