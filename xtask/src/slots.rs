//! Which group owns a key.
//!
//! The same rule as in `raft-host/examples/kv`, written down in ARCHITECTURE.md: slots are those of
//! Redis Cluster, and slot `s` belongs to group `s * groups / 16384 + 1`.

/// Slots of a Redis Cluster.
pub(crate) const SLOTS: u64 = 16_384;

/// The slot of a key: CRC16 of the key, or of what its first `{..}` holds, modulo 16,384.
pub(crate) fn slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let inside = &key[open + 1..];
        let close = inside.iter().position(|byte| *byte == b'}')?;
        (close > 0).then(|| &inside[..close])
    });
    crc16(tag.unwrap_or(key)) % 16_384
}

/// The group that owns a slot, of `groups` groups with the ids `1..=groups`.
pub(crate) fn group_of_slot(slot: u16, groups: u64) -> u64 {
    u64::from(slot) * groups / SLOTS + 1
}

/// The group that owns a key.
pub(crate) fn group_of_key(key: &[u8], groups: u64) -> u64 {
    group_of_slot(slot(key), groups)
}

/// For each group, a hash tag whose keys it owns.
pub(crate) fn tags(groups: u64) -> Vec<String> {
    let mut tags: Vec<Option<String>> = (0..groups).map(|_| None).collect();
    let mut missing = tags.len();
    for candidate in 0_u64.. {
        if missing == 0 {
            break;
        }
        let tag = format!("t{candidate}");
        let group = group_of_key(tag.as_bytes(), groups);
        let place = usize::try_from(group - 1).expect("a group id is below the number of tags");
        if tags[place].is_none() {
            tags[place] = Some(tag);
            missing -= 1;
        }
    }
    tags.into_iter().flatten().collect()
}

/// CRC16 with polynomial 0x1021, not reflected, initial value 0.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 {
                crc << 1
            } else {
                (crc << 1) ^ 0x1021
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc16_has_the_value_of_the_cluster_specification() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
    }

    #[test]
    fn hash_tags_decide_where_they_are_not_empty() {
        assert_eq!(slot(b"{user1000}.following"), slot(b"{user1000}.followers"));
        assert_eq!(slot(b"foo{}{bar}"), crc16(b"foo{}{bar}") % 16_384);
        assert_eq!(slot(b"foo{{bar}}zap"), slot(b"{bar"));
        assert_eq!(slot(b"foo{bar}{zap}"), slot(b"bar"));
    }

    #[test]
    fn slots_cover_all_groups_in_order() {
        for groups in [1, 3, 16, 64, 1000] {
            assert_eq!(group_of_slot(0, groups), 1);
            assert_eq!(group_of_slot(16_383, groups), groups);
        }
    }

    #[test]
    fn each_group_gets_a_tag_of_its_own() {
        let tags = tags(64);
        assert_eq!(tags.len(), 64);
        for (place, tag) in tags.iter().enumerate() {
            let key = format!("{{{tag}}}:x");
            assert_eq!(group_of_key(key.as_bytes(), 64), place as u64 + 1);
        }
    }
}
