//! What is refused before it is appended or passed on.

use crate::dropped;
use crate::net::{Net, change, index, message, plain, replica};
use raft_proto::{
    Body, COMMANDS_BYTES_MAX, ChangeKind, DropReason, EntryKind, Forwarded, Proposal, ProposeError,
    Raft,
};

/// What may lie uncommitted beside `uncommitted_bytes_max`, in entries without a command.
const EMPTY_MAX: usize = (64 << 10) / 32;

fn empties(count: usize) -> Vec<Forwarded> {
    let empty = Forwarded::from(Proposal::command(b""));
    vec![empty; count]
}

fn propose_empties(raft: &mut Raft, count: usize) -> Result<(), ProposeError> {
    let empties = vec![Proposal::command(b""); count];
    raft.propose(empties.iter().copied()).map(drop)
}

#[test]
fn commands_of_no_bytes_fill_the_memory_for_uncommitted_entries_too() {
    let mut net = Net::new(&[1, 2, 3], |config| {
        config.uncommitted_bytes_max = 0;
        config.cache_bytes_max = 0;
    });
    net.elect(1);
    net.tick_all(1);
    let last = net.raft(1).last_index();
    for count in [EMPTY_MAX + 1, 65_536] {
        assert_eq!(
            propose_empties(net.raft(1), count),
            Err(ProposeError::UncommittedFull)
        );
        let entries = empties(count);
        assert_eq!(
            net.raft(1)
                .handle_message(message(2, 1, 0, Body::Propose { entries })),
            dropped(DropReason::ProposalRefused)
        );
    }
    assert_eq!(net.raft(1).last_index(), last);
    // Those that were taken before count as well, and so do their commands.
    propose_empties(net.raft(1), 1_000).expect("there is room");
    let command = [0; 32 * 8];
    net.raft(1)
        .propose([Proposal::command(&command)])
        .expect("any size is taken when none is uncommitted");
    assert_eq!(
        propose_empties(net.raft(1), EMPTY_MAX - 1_000 - 8),
        Err(ProposeError::UncommittedFull)
    );
    propose_empties(net.raft(1), EMPTY_MAX - 1_000 - 9).expect("there is room");
    assert_eq!(
        propose_empties(net.raft(1), 1),
        Err(ProposeError::UncommittedFull)
    );
    // A change of membership goes, and when all is committed there is room again.
    let learner = change(ChangeKind::AddLearner, 4);
    net.raft(1)
        .propose_membership_at(index(0), learner)
        .expect_err("its bytes are counted as before");
    net.settle();
    propose_empties(net.raft(1), EMPTY_MAX).expect("all is committed");
    let learner = change(ChangeKind::AddLearner, 4);
    net.raft(1)
        .propose_membership(learner)
        .expect("a change needs no room for its place");
}

#[test]
fn a_new_leader_begins_its_term_however_much_is_uncommitted() {
    let mut net = Net::new(&[1, 2, 3], |config| config.uncommitted_bytes_max = 0);
    net.elect(1);
    net.tick_all(1);
    propose_empties(net.raft(1), EMPTY_MAX).expect("there is room");
    net.cut.extend([(2, 1), (3, 1)]);
    net.settle();
    net.elect(2);
    assert_eq!(net.raft(2).commit(), index(1 + 2_048 + 1));
}

#[test]
fn a_membership_change_is_no_command() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    let last = net.raft(1).last_index();
    let payload = change(ChangeKind::AddVoter, 4).encode();
    for kind in [EntryKind::Membership, EntryKind::MembershipSimple] {
        let change = Proposal {
            kind,
            session: None,
            payload: &payload,
        };
        assert_eq!(
            net.raft(1).propose([Proposal::command(b"x"), change]),
            Err(ProposeError::MembershipKind)
        );
    }
    assert_eq!(net.raft(1).last_index(), last);
}

#[test]
fn what_the_leader_could_not_read_is_not_passed_on() {
    let mut net = Net::new(&[1, 2, 3], plain);
    net.elect(1);
    net.tick_all(1);
    for count in [0, 65_537] {
        assert_eq!(
            net.raft(2).forward(empties(count)),
            dropped(DropReason::BatchSize)
        );
        let entries = empties(count);
        assert_eq!(
            net.raft(2)
                .handle_message(message(3, 2, 0, Body::Propose { entries })),
            dropped(DropReason::BatchSize)
        );
    }
    assert!(!net.pump(2), "nothing was sent");
    assert_eq!(net.raft(2).forward(empties(65_536)), Ok(replica(1)));
}

#[test]
fn more_commands_than_are_taken_at_once_are_refused_before_anything_is_copied() {
    let mut net = Net::new(&[1], plain);
    net.elect(1);
    let last = net.raft(1).last_index();
    // Of zeros that nobody touches: no memory is used for them.
    let bytes = COMMANDS_BYTES_MAX + 1;
    let long = vec![0; bytes];
    let refused = Err(ProposeError::TooLarge { bytes });
    assert_eq!(net.raft(1).propose([Proposal::command(&long)]), refused);
    let half = Proposal::command(&long[..bytes / 2 + 1]);
    let bytes = 2 * (bytes / 2 + 1);
    let refused = Err(ProposeError::TooLarge { bytes });
    assert_eq!(net.raft(1).propose([half, half]), refused);
    assert_eq!(net.raft(1).last_index(), last);
    net.propose(1, "small").expect("it leads still");
}
