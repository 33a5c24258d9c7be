//! What holds after every input, whatever the input was. Asserts stay on in release: what they
//! say can only be broken by our own code.
//!
//! Source: thesis Figure 3.2; DESIGN section 10.

use crate::output::number;
use crate::raft::Raft;
use crate::roles::State;
use crate::types::Term;

impl Raft {
    /// # Panics
    ///
    /// If an invariant is broken: a bug in this crate, which must not be survived.
    pub(crate) fn assert_invariants(&self) {
        self.log.assert_invariants();
        assert!(
            self.durable_term <= self.term,
            "what is durable was held in memory before"
        );
        if let State::Follower(follower) = &self.state {
            assert!(
                number(follower.leader) != self.config.id.get(),
                "a follower follows another"
            );
        } else if let State::Leader(_) = &self.state {
            assert!(self.term > Term::ZERO, "an election begins a term");
        } else if let State::Candidate(_) = &self.state {
            assert!(
                self.vote == Some(self.config.id),
                "a candidate votes for itself"
            );
        }
        if cfg!(debug_assertions) {
            self.assert_peers();
        }
    }

    fn assert_peers(&self) {
        let last = self.log.last();
        let members = || self.members.iter().map(|member| member.id);
        assert!(
            members().zip(members().skip(1)).all(|(a, b)| a < b),
            "members ascend"
        );
        if let Some(leader) = self.leading() {
            assert!(
                leader.peers.iter().map(|peer| peer.member.id).eq(members()),
                "a leader has a progress for each member"
            );
            for peer in leader.peers.iter() {
                let progress = &peer.progress;
                assert!(progress.matched < progress.next, "matched < next");
                assert!(progress.matched <= last, "a match lies within the log");
            }
        }
        assert!(
            self.membership_entries
                .iter()
                .zip(self.membership_entries.iter().skip(1))
                .all(|(a, b)| a < b),
            "membership entries ascend"
        );
        assert!(
            self.membership_entries
                .back()
                .is_none_or(|&index| index <= last),
            "membership entries lie within the log"
        );
    }
}
