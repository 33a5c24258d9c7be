//! Each kind of message there is, from who may not say it: refused with a typed reason, and nothing
//! of the replica is another after it.

use std::collections::BTreeSet;

use crate::net::{
    Net, append, change, entry_id, follower, group, index, message, plain, replica, voters,
};
use crate::{dropped, holding};
use raft_proto::{
    Body, ChangeKind, DropReason, Envelope, Forwarded, GroupId, Message, Proposal, Raft, Refused,
    Restored, Role, SnapshotMeta, SnapshotStatus, Term,
};

/// The whole state, whatever it is made of, but for the trace that the feature `trace` keeps last.
pub(crate) fn whole(raft: &Raft) -> String {
    let mut text = format!("{raft:?}");
    let end = text.rfind(", trace: [").unwrap_or(text.len());
    text.truncate(end);
    text
}

/// How many kinds there are.
const KINDS: usize = 17;

/// Names the kind; a new one has to be named here, and to be among `every_body`.
const fn kind(body: &Body) -> usize {
    match body {
        Body::PreVote { .. } => 1,
        Body::PreVoteResponse { .. } => 2,
        Body::Vote { .. } => 3,
        Body::VoteResponse { .. } => 4,
        Body::Append { .. } => 5,
        Body::AppendResponse { .. } => 6,
        Body::Heartbeat { .. } => 7,
        Body::HeartbeatResponse { .. } => 8,
        Body::Snapshot { .. } => 9,
        Body::TimeoutNow => 10,
        Body::TransferLeader { .. } => 11,
        Body::ReadIndex { .. } => 12,
        Body::ReadIndexResponse { .. } => 13,
        Body::Propose { .. } => 14,
        Body::Quiesce { .. } => 15,
        Body::SnapshotRequest { .. } => 16,
        Body::SnapshotOffer { .. } => KINDS,
    }
}

/// Each kind, such as it may be said of a log of term 1.
fn every_body() -> Vec<Body> {
    let last = entry_id(1, 1);
    let meta = || SnapshotMeta {
        id: entry_id(1, 9),
        membership: voters(&[1, 2, 3]),
    };
    let change = change(ChangeKind::AddVoter, 9).encode();
    let forwarded = Proposal {
        kind: raft_proto::EntryKind::Membership,
        ..Proposal::command(&change)
    };
    let entries = vec![
        Forwarded::from(Proposal::command(b"x")),
        Forwarded::from(forwarded),
    ];
    let bodies = vec![
        Body::PreVote { last },
        Body::PreVoteResponse { is_rejected: false },
        Body::PreVoteResponse { is_rejected: true },
        Body::Vote {
            last,
            is_transfer: false,
        },
        Body::Vote {
            last,
            is_transfer: true,
        },
        Body::VoteResponse { is_rejected: false },
        Body::VoteResponse { is_rejected: true },
        append(last, 1, vec![]),
        Body::AppendResponse {
            index: index(2),
            rejected: None,
        },
        Body::AppendResponse {
            index: index(2),
            rejected: Some(last),
        },
        Body::Heartbeat {
            commit: index(1),
            round: 0,
        },
        Body::HeartbeatResponse { round: 0 },
        Body::Snapshot {
            meta: meta().into(),
        },
        Body::TimeoutNow,
        Body::TransferLeader { to: replica(2) },
        Body::ReadIndex { life: 1, id: 1 },
        Body::ReadIndexResponse {
            life: 1,
            id: 1,
            index: index(1),
        },
        Body::Propose { entries },
        Body::Quiesce { last },
        Body::SnapshotRequest {
            index: index(1),
            request: 1,
        },
        Body::SnapshotOffer {
            meta: meta().into(),
            request: 1,
        },
    ];
    let kinds: BTreeSet<usize> = bodies.iter().map(kind).collect();
    assert_eq!(kinds, (1..=KINDS).collect(), "each kind is there");
    bodies
}

/// The term that a body is said in by one whose term is `term`.
const fn term_of(body: &Body, term: u64) -> u64 {
    match body {
        Body::Propose { .. } | Body::ReadIndex { .. } => 0,
        _ => term,
    }
}

/// Who leads, follows, follows in a quiet group, asks, stands, and knows no membership yet; all have
/// nothing more to do or to say.
fn receivers() -> Vec<Raft> {
    let mut receivers = Vec::new();
    for quiesce_timeouts in [0, 1] {
        let mut net = Net::new(&[1, 2, 3], |config| {
            config.quiesce_timeouts = quiesce_timeouts;
        });
        net.elect(1);
        net.propose(1, "a").expect("it leads");
        net.settle();
        net.tick_all(30);
        for id in [1, 2] {
            assert_eq!(net.raft(id).is_quiet(), quiesce_timeouts > 0);
            receivers.push(net.nodes.remove(&id).expect("it is there").raft);
        }
    }
    for pre_vote in [true, false] {
        let mut net = Net::new(&[1, 2, 3], |config| config.pre_vote = pre_vote);
        net.raft(2).campaign().expect("it may stand");
        net.pump(2);
        receivers.push(net.nodes.remove(&2).expect("it is there").raft);
    }
    let config = follower(2, 1, &[], 0).config().clone();
    receivers.push(Raft::new(config, Restored::default(), 0).expect("sound settings"));
    let roles = receivers.iter().map(|raft| raft.role());
    let roles: Vec<Role> = roles.collect();
    let first = [Role::Leader, Role::Follower, Role::Leader, Role::Follower];
    assert_eq!(roles[..4], first);
    assert_eq!(
        roles[4..],
        [Role::PreCandidate, Role::Candidate, Role::Follower]
    );
    receivers
}

/// Has the replica refuse the message as dropped, with nothing changed and nothing to say.
fn refuse(raft: &mut Raft, message: Message, reason: DropReason) {
    let before = whole(raft);
    let what = format!("{:?} {message:?}", raft.role());
    assert_eq!(raft.handle_message(message), dropped(reason), "{what}");
    assert!(whole(raft) == before, "changed by {what}");
    assert!(raft.poll_ready().is_none(), "{what}");
}

#[test]
fn from_a_stranger_nothing_is_taken_but_what_brings_a_newcomer_into_the_group() {
    for mut raft in receivers() {
        let me = raft.config().id.get();
        let term = raft.term().get();
        for body in every_body() {
            let is_taken = matches!(
                body,
                Body::PreVote { .. }
                    | Body::Vote { .. }
                    | Body::Append { .. }
                    | Body::Heartbeat { .. }
                    | Body::Snapshot { .. }
            );
            for term in [term.saturating_sub(1).max(1), term.max(1), term + 1, 1_000] {
                let said = message(9, me, term_of(&body, term), body.clone());
                if !is_taken {
                    refuse(&mut raft, said, DropReason::UnknownPeer);
                }
            }
        }
    }
    // What is taken is taken: else a replica that joins would hear nobody.
    for body in every_body() {
        let mut raft = holding(2, 1, &[1], 1);
        let result = raft.handle_message(message(9, 2, term_of(&body, 7), body.clone()));
        if raft.term() == Term::new(7) {
            let of_leader = [5, 7, 9].contains(&kind(&body));
            assert_eq!(raft.leader(), of_leader.then(|| replica(9)), "{body:?}");
            assert!(of_leader || kind(&body) == 3, "{body:?}");
        } else if matches!(body, Body::PreVote { .. }) {
            assert_eq!(result, Ok(()));
            let answer = raft.poll_ready().expect("an answer").messages_after_sync;
            let granted =
                |said: &Message| matches!(said.body, Body::PreVoteResponse { is_rejected: false });
            assert!(answer.iter().any(|said| granted(said.held())));
        } else {
            assert_eq!(result, dropped(DropReason::UnknownPeer), "{body:?}");
        }
    }
}

#[test]
fn a_strangers_word_to_stand_starts_no_election() {
    // Of a later term it had made the replica stand, and depose the leader.
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    net.tick_all(1);
    let term = net.raft(2).term();
    for later in [0, 1, 50] {
        let said = message(9, 2, term.get() + later, Body::TimeoutNow);
        refuse(net.raft(2), said, DropReason::UnknownPeer);
    }
    assert_eq!((net.raft(2).term(), net.leaders()), (term, vec![1]));
}

#[test]
fn a_leader_that_is_no_member_here_is_answered_and_answers() {
    // The change that made it a member is not committed here yet.
    let mut raft = holding(2, 1, &[1], 1);
    let beat = Body::Heartbeat {
        commit: index(1),
        round: 0,
    };
    raft.handle_message(message(9, 2, 4, beat)).expect("taken");
    raft.read_index(5).expect("there is a leader");
    let mut ready = raft.poll_ready().expect("a read to pass on");
    raft.persisted(ready.submission.take().expect("a term"));
    let answer = Body::ReadIndexResponse {
        life: raft.config().life,
        id: 1,
        index: index(1),
    };
    // Not of a term that nobody is known to lead.
    let later = message(9, 2, 5, answer.clone());
    refuse(&mut raft, later, DropReason::UnknownPeer);
    raft.handle_message(message(9, 2, 4, answer))
        .expect("an answer of its leader");
    assert_eq!(raft.poll_ready().expect("the read").reads[0].user, 5);
    raft.handle_message(message(9, 2, 4, Body::TimeoutNow))
        .expect("its leader's word");
    assert_eq!(raft.role(), Role::Candidate);
}

#[test]
fn of_another_group_or_epoch_nothing_is_taken() {
    for mut raft in receivers() {
        let me = raft.config().id.get();
        for body in every_body() {
            for from in [1, 2, 3, 9] {
                for term in [raft.term().get().max(1), 1_000] {
                    let said = message(from, me, term_of(&body, term), body.clone());
                    let other = GroupId::new(8).expect("a valid id");
                    for (group, epoch, reason) in [
                        (other, 0, DropReason::OtherGroup),
                        (group(), 1, DropReason::OtherEpoch),
                    ] {
                        let before = whole(&raft);
                        let refused = raft.handle_envelope(Envelope {
                            group,
                            epoch,
                            message: said.clone(),
                        });
                        assert_eq!(refused, dropped(reason));
                        assert!(whole(&raft) == before, "changed by {said:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn for_another_replica_or_in_its_own_name_nothing_is_taken() {
    for mut raft in receivers() {
        let me = raft.config().id.get();
        for body in every_body() {
            let term = term_of(&body, 1_000);
            let misdirected = message(1, 7, term, body.clone());
            refuse(&mut raft, misdirected, DropReason::NotForThisReplica);
            let before = whole(&raft);
            let own = raft.handle_message(message(me, me, term, body));
            assert!(matches!(own, Err(Refused::Violation { .. })));
            assert!(whole(&raft) == before, "{:?}", raft.role());
        }
    }
}

#[test]
fn of_a_term_that_is_over_nothing_is_done() {
    // One kind is answered, so that who is stuck in an old term learns of it; with leases or a check
    // of the quorum what a leader says is too.
    for body in every_body() {
        let mut raft = holding(2, 5, &[1, 2], 1);
        let term = term_of(&body, 4);
        if term == 0 {
            continue;
        }
        let before = whole(&raft);
        let refused = raft.handle_message(message(1, 2, term, body.clone()));
        let (found, current) = (Term::new(4), Term::new(5));
        let stale = DropReason::StaleTerm { found, current };
        assert_eq!(refused, dropped(stale), "{body:?}");
        if matches!(body, Body::PreVote { .. }) {
            let ready = raft.poll_ready().expect("an answer");
            assert_eq!(ready.messages_after_sync.len(), 1);
            assert!(ready.hard_state.is_none() && ready.soft_state.is_none());
        } else {
            assert!(whole(&raft) == before, "changed by {body:?}");
        }
    }
}

#[test]
fn reports_about_strangers_change_nothing() {
    for mut raft in receivers() {
        let before = whole(&raft);
        raft.report_unreachable(replica(9));
        for status in [SnapshotStatus::Finished, SnapshotStatus::Failed] {
            raft.report_snapshot(replica(9), status);
        }
        assert!(whole(&raft) == before, "{:?}", raft.role());
    }
}
