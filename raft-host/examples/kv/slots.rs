//! Which group owns a key: slots are Redis Cluster's, and slot `s` belongs to group
//! `s * groups / 16384 + 1`.

use raft_host::GroupId;

/// Slots of a Redis Cluster.
pub(crate) const SLOTS: u64 = 16_384;

/// The slot of a key.
pub(crate) fn slot(key: &[u8]) -> u16 {
    resp_rs::cluster::hash_slot(key)
}

/// The group that owns a slot.
pub(crate) fn group_of_slot(slot: u16, groups: u64) -> GroupId {
    GroupId::new(u64::from(slot) * groups / SLOTS + 1).expect("above zero, below some thousands")
}

/// The slots of a group, both ends included.
pub(crate) fn slots_of_group(group: GroupId, groups: u64) -> (u64, u64) {
    let first = |group: u64| (group * SLOTS).div_ceil(groups);
    (first(group.get() - 1), first(group.get()) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_all_slots_and_agree_with_the_owner_of_each() {
        for groups in [1, 3, 16, 64, 1_000, 4_096] {
            let mut next = 0;
            for id in 1..=groups {
                let group = GroupId::new(id).expect("an id");
                let (first, last) = slots_of_group(group, groups);
                assert_eq!(first, next);
                for slot in [first, last] {
                    let slot = u16::try_from(slot).expect("a slot");
                    assert_eq!(group_of_slot(slot, groups), group);
                }
                next = last + 1;
            }
            assert_eq!(next, SLOTS);
        }
    }
}
