//! Which log files belong together.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::Path;

use crate::error::LogError;
use crate::hard_state;
use crate::read::lane_dir;
use crate::segment::{HeaderFound, SEGMENT_HEADER_BYTES, SegmentHeader, segment_number};
use crate::vfs::{Vfs, read_through};

/// The identity that most of a lane's segments bear, where the vote file counts as one more and of
/// equally many its own goes first, then the lowest; without segments the vote file's. `None`: no
/// file says.
pub(crate) fn of_files(vfs: &dyn Vfs, data_dir: &Path, lane: u16) -> Result<Option<u64>, LogError> {
    let of_votes = hard_state::identity(vfs, data_dir, lane)?;
    let dir = lane_dir(data_dir, lane);
    let mut counts = BTreeMap::<u64, usize>::new();
    for entry in vfs.list(&dir)? {
        if !entry.is_file || segment_number(&entry.name).is_none() {
            continue;
        }
        let file = vfs.open(&dir.join(&entry.name), false)?;
        let head = read_through(vfs, file, 0, SEGMENT_HEADER_BYTES);
        vfs.close(file);
        if let HeaderFound::Whole(header) | HeaderFound::Half(header) =
            SegmentHeader::decode(&head?.0)
            && header.lane == lane
        {
            *counts.entry(header.identity).or_default() += 1;
        }
    }
    let weight = |(identity, count): &(u64, usize)| {
        let is_of_votes = Some(*identity) == of_votes;
        (
            count + usize::from(is_of_votes),
            is_of_votes,
            Reverse(*identity),
        )
    };
    let most = counts.into_iter().max_by_key(weight);
    Ok(most.map(|(identity, _)| identity).or(of_votes))
}
