//! The names of snapshot directories.
//!
//! Only names that this module writes are ever opened, renamed or removed: whatever else lies in a
//! replica's directory is left alone.

use raft_proto::{Index, ReplicaId};

/// What a directory's name says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DirName {
    /// A committed snapshot.
    Committed(Index),
    /// One that is, or was, being written or received.
    Temporary,
}

impl DirName {
    /// Reads a name, or `None` if it is not one of ours: other digits, other case, other length.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let rest = name.strip_prefix("snapshot-")?;
        let (digits, suffix) = rest.split_at_checked(INDEX_DIGITS)?;
        let index = hex(digits).and_then(valid_index)?;
        if suffix.is_empty() {
            return Some(Self::Committed(index));
        }
        let (unique, kind) = suffix.strip_prefix('-')?.split_once('.')?;
        let is_ours = match kind {
            "generating" => {
                let replica = unique.parse().ok().and_then(ReplicaId::new);
                replica.is_some_and(|replica| replica.to_string() == unique)
            }
            "receiving" => unique.len() == HASH_DIGITS && hex(unique).is_some(),
            _ => false,
        };
        is_ours.then_some(Self::Temporary)
    }
}

/// The final name of the snapshot at `index`.
pub(crate) fn committed(index: Index) -> String {
    format!("snapshot-{:016x}", index.get())
}

/// The name of the directory where `replica` writes the snapshot at `index`.
pub(crate) fn generating(index: Index, replica: ReplicaId) -> String {
    format!("{}-{replica}.generating", committed(index))
}

/// The name of the directory where the snapshot with this manifest hash is received.
pub(crate) fn receiving(index: Index, manifest: &blake3::Hash) -> String {
    let hash = manifest.to_hex();
    format!("{}-{}.receiving", committed(index), &hash[..HASH_DIGITS])
}

/// An index that a snapshot can have: not 0, and with a place behind it.
pub(crate) fn valid_index(value: u64) -> Option<Index> {
    (1..u64::MAX - 1)
        .contains(&value)
        .then(|| Index::new(value))
}

/// Lower-case hexadecimal digits only; `from_str_radix` alone takes signs and capitals too.
fn hex(digits: &str) -> Option<u64> {
    let is_hex = digits
        .bytes()
        .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    if is_hex {
        u64::from_str_radix(digits, 16).ok()
    } else {
        None
    }
}

const INDEX_DIGITS: usize = 16;
const HASH_DIGITS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        let index = Index::new(0x1f3);
        let replica = ReplicaId::new(7).expect("not 0");
        assert_eq!(committed(index), "snapshot-00000000000001f3");
        assert_eq!(
            DirName::parse(&committed(index)),
            Some(DirName::Committed(index))
        );
        assert_eq!(
            generating(index, replica),
            "snapshot-00000000000001f3-7.generating"
        );
        let receiving = receiving(index, &blake3::hash(b"x"));
        for name in [generating(index, replica), receiving] {
            assert_eq!(DirName::parse(&name), Some(DirName::Temporary), "{name}");
        }
    }

    #[test]
    fn fault_56_names_that_are_not_ours_are_refused() {
        let long = format!("snapshot-{}", "0".repeat(300));
        for name in [
            "",
            "snapshot-",
            "../x",
            "/snapshot-0000000000000001",
            "snapshot-../../../../../x",
            "snapshot-0000000000000001/../x",
            "snapshot-0000000000000001\0",
            "snapshot-000000000000000\u{e9}",
            "snapshot-00000000000000A1",
            "SNAPSHOT-0000000000000001",
            "snapshot-+000000000000001",
            "snapshot-0000000000000000",
            "snapshot-ffffffffffffffff",
            "snapshot-0000000000000001-07.generating",
            "snapshot-0000000000000001-+7.generating",
            "snapshot-0000000000000001-0.generating",
            "snapshot-0000000000000001-7.generating.bak",
            "snapshot-0000000000000001-xyz.receiving",
            "snapshot-0000000000000001.receiving",
            "snapshot-0000000000000001~",
            "lost+found",
            &long,
        ] {
            assert_eq!(DirName::parse(name), None, "{name:?}");
        }
    }
}
