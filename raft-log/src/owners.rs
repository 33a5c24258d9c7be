//! Whose records they are: what a header says of them, so that a record that is lost stops those who
//! may have been in it, which is few while few were. See FORMAT.md, "Records".

use crate::item::Key;
use crate::record::Place;
use crate::segment::SECTOR_BYTES;

const SET_BYTES: usize = 9;
const SET_BITS: u64 = 8 * SET_BYTES as u64;
/// Bits that stand for one replica.
const BITS: u32 = 3;
pub(crate) const OWNERS_BYTES: usize = 2 * SET_BYTES + 2;

/// A set of replicas that says "no" for sure and "yes" perhaps: of eight in it, one in fifty others
/// is taken for one of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct OwnerSet([u8; SET_BYTES]);

impl OwnerSet {
    pub(crate) fn insert(&mut self, key: Key) {
        for (byte, bit) in bits(key) {
            self.0[byte] |= bit;
        }
    }

    pub(crate) fn may_hold(&self, key: Key) -> bool {
        bits(key).all(|(byte, bit)| self.0[byte] & bit != 0)
    }

    fn join(&mut self, other: &Self) {
        for (byte, more) in self.0.iter_mut().zip(other.0) {
            *byte |= more;
        }
    }
}

/// Byte and bit, [`BITS`] times.
fn bits((group, replica): Key) -> impl Iterator<Item = (usize, u8)> {
    let mut mixed = group.get() ^ replica.get().rotate_left(32);
    // The finisher of SplitMix64.
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^= mixed >> 31;
    (0..BITS).map(move |at| {
        let bit = (mixed >> (21 * at) & 0x1F_FFFF) % SET_BITS;
        let byte = usize::try_from(bit / 8).expect("below the set's length");
        (byte, 1 << (bit % 8))
    })
}

/// What a header says of whose records there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Owners {
    /// In this record; empty for one that repeats what others say.
    pub(crate) own: OwnerSet,
    /// In the [`reach`](Self::reach) records before it.
    pub(crate) before: OwnerSet,
    /// How many records before it are told: all that begin in the sector in which the last of them
    /// does, so that the loss of a sector takes no record together with what tells its owners.
    pub(crate) reach: u16,
}

impl Owners {
    pub(crate) fn encode(&self) -> [u8; OWNERS_BYTES] {
        let mut out = [0; OWNERS_BYTES];
        out[..SET_BYTES].copy_from_slice(&self.own.0);
        out[SET_BYTES..2 * SET_BYTES].copy_from_slice(&self.before.0);
        out[2 * SET_BYTES..].copy_from_slice(&self.reach.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8; OWNERS_BYTES]) -> Self {
        let set = |from: usize| {
            let mut set = [0; SET_BYTES];
            set.copy_from_slice(&bytes[from..from + SET_BYTES]);
            OwnerSet(set)
        };
        let reach = [bytes[2 * SET_BYTES], bytes[2 * SET_BYTES + 1]];
        Self {
            own: set(0),
            before: set(SET_BYTES),
            reach: u16::from_le_bytes(reach),
        }
    }
}

/// The owners of the records written lately: all that begin in the sector in which the last does.
#[derive(Debug, Default)]
pub(crate) struct Lately {
    /// Incarnation and number of that sector.
    sector: (u64, u64),
    set: OwnerSet,
    records: u16,
}

impl Lately {
    /// What the header of the next record says.
    pub(crate) fn next(&mut self, own: OwnerSet, place: Place) -> Owners {
        let owners = Owners {
            own,
            before: self.set,
            reach: self.records,
        };
        let sector = (place.incarnation, place.offset / SECTOR_BYTES as u64);
        if sector != self.sector {
            *self = Self {
                sector,
                ..Self::default()
            };
        }
        self.set.join(&own);
        self.records = self.records.saturating_add(1);
        owners
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft_proto::{GroupId, ReplicaId};

    fn key(group: u64) -> Key {
        let (group, replica) = (GroupId::new(group), ReplicaId::new(group * 10));
        (group.expect("not 0"), replica.expect("not 0"))
    }

    fn set(groups: std::ops::Range<u64>) -> OwnerSet {
        let mut set = OwnerSet::default();
        groups.for_each(|group| set.insert(key(group)));
        set
    }

    #[test]
    fn a_set_forgets_nobody_and_takes_few_others_for_its_own() {
        for (size, others_max) in [(0, 0), (1, 10), (8, 600), (1_000, 10_000)] {
            let set = set(1..1 + size);
            assert!((1..1 + size).all(|group| set.may_hold(key(group))));
            let others = (10_000..20_000).filter(|&group| set.may_hold(key(group)));
            let others = others.count();
            assert!(others <= others_max, "{others} of {size}");
        }
    }

    #[test]
    fn a_header_tells_of_all_records_that_begin_in_one_sector_with_the_one_before_it() {
        let place = |incarnation, offset| Place {
            incarnation,
            offset,
        };
        let mut lately = Lately::default();
        let told: Vec<Owners> = [(1, 1_024), (1, 1_152), (1, 1_472), (1, 1_536), (2, 1_536)]
            .into_iter()
            .zip(1..)
            .map(|((incarnation, offset), group)| {
                lately.next(set(group..group + 1), place(incarnation, offset))
            })
            .collect();
        let reaches: Vec<u16> = told.iter().map(|owners| owners.reach).collect();
        assert_eq!(reaches, [0, 1, 2, 3, 1]);
        assert_eq!(told[3].before, set(1..4));
        assert_eq!(told[4].before, set(4..5), "another file's sector");
        for owners in told {
            assert_eq!(Owners::decode(&owners.encode()), owners);
        }
    }
}
