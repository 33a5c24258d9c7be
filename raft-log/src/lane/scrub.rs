//! The scrub as the lane drives it: when a step is due, and what becomes of what it finds.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use raft_proto::{Batch, Index, Time};

use crate::index::{At, LIST_RUN_BYTES, Span, decode_list};
use crate::item::Key;
use crate::lane::Lane;
use crate::recovery::DamageReport;
use crate::scrub::{Event, Walk};
use crate::staging::Change;
use crate::state::{Damage, Health};
use crate::vfs::VfsError;

/// The rate of a pass that was asked for where there is none after open.
pub(crate) const DEFAULT_BYTES_PER_S: u64 = 16 << 20;
/// How long a step that is due lets appends go first.
const DEFER_NANOS: u64 = 1_000_000_000;
/// How long after a failed read it is tried again.
const RETRY_NANOS: u64 = 1_000_000_000;
/// Reads of one place that fail before it counts as damaged.
const FAILURES_MAX: u32 = 3;
/// Reports kept until somebody takes them; of more, only the replicas' health tells.
const REPORTS_MAX: usize = 1_024;

/// How far verifying has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubStatus {
    /// Whether a pass is under way.
    pub is_running: bool,
    /// Passes ended since the lane was opened.
    pub passes: u64,
    /// Bytes verified since the lane was opened.
    pub verified_bytes: u64,
    /// Bytes of the segments that the pass under way has not begun yet.
    pub waiting_bytes: u64,
    /// Places found damaged since the lane was opened.
    pub damaged: u64,
}

/// The scrub of a lane.
#[derive(Debug, Default)]
pub(crate) struct Scrub {
    bytes_per_s: u64,
    pass: Option<Pass>,
    /// The next step is not before this.
    next_at: Time,
    failures: u32,
    passes: u64,
    verified_bytes: u64,
    damaged: u64,
    /// Something was verified, or found, since this was last asked.
    has_news: bool,
    reports: Vec<DamageReport>,
    /// Replicas whose damage is recorded, or about to be.
    marked: BTreeSet<Key>,
}

/// One time through all segments.
#[derive(Debug, Default)]
struct Pass {
    /// Number and incarnation, the oldest first.
    segments: VecDeque<(u64, u64)>,
    walk: Option<Walk>,
    /// Found where the walk is; whom it hits is not known yet.
    found: Option<Event>,
}

/// Entries that count and do not hold.
struct Bad {
    key: Key,
    first: Index,
    last: Index,
    /// They may be whole: the footer's list that finds them is not. The records say the same, and
    /// the next open goes by them; so nothing is recorded.
    is_list: bool,
}

impl Bad {
    const fn entries(key: Key, first: Index, last: Index) -> Self {
        Self {
            key,
            first,
            last,
            is_list: false,
        }
    }
}

impl Scrub {
    /// `bytes_per_s` may be 0: the default is meant.
    pub(crate) fn new(bytes_per_s: u64) -> Self {
        Self {
            bytes_per_s: match bytes_per_s {
                0 => DEFAULT_BYTES_PER_S,
                rate => rate,
            },
            ..Self::default()
        }
    }

    /// When the next step is due.
    pub(crate) fn due(&self) -> Option<Time> {
        self.pass.is_some().then_some(self.next_at)
    }
}

impl Lane {
    /// Begins to verify everything durable, the payloads too, at the rate set by
    /// [`LaneOptions::scrub_bytes_per_s`](crate::LaneOptions); a pass under way begins again.
    /// Driven by [`Lane::poll`]; what it finds is told by [`Lane::take_damage`].
    pub fn scrub(&mut self) {
        let segments = {
            let tables = self.tables();
            let all = tables.segments.iter();
            all.map(|(number, info)| (*number, info.incarnation))
                .collect()
        };
        self.scrub_these(segments);
    }

    /// Verifies what an open has left unverified: sealed segments, unless it verified all.
    pub(super) fn scrub_after_open(&mut self) {
        if self.options.verify_all || self.options.scrub_bytes_per_s == 0 {
            return;
        }
        let segments: VecDeque<(u64, u64)> = {
            let tables = self.tables();
            let sealed = tables
                .segments
                .iter()
                .filter(|(number, info)| info.is_sealed && !self.releasing.contains(number));
            sealed
                .map(|(number, info)| (*number, info.incarnation))
                .collect()
        };
        self.scrub_these(segments);
    }

    fn scrub_these(&mut self, segments: VecDeque<(u64, u64)>) {
        if segments.is_empty() {
            return;
        }
        self.scrub.next_at = self.now;
        self.scrub.has_news = true;
        self.scrub.pass = Some(Pass {
            segments,
            ..Pass::default()
        });
    }

    /// How far verifying has come.
    #[must_use]
    pub fn scrub_status(&self) -> ScrubStatus {
        let scrub = &self.scrub;
        let tables = self.tables();
        let waiting = scrub.pass.iter().flat_map(|pass| &pass.segments);
        let waiting = waiting.filter_map(|(number, _)| tables.segments.get(number));
        ScrubStatus {
            is_running: scrub.pass.is_some(),
            passes: scrub.passes,
            verified_bytes: scrub.verified_bytes,
            waiting_bytes: waiting.map(|info| info.len).sum(),
            damaged: scrub.damaged,
        }
    }

    /// Whether a step was done since the last call.
    pub(crate) fn is_scrub_news(&mut self) -> bool {
        std::mem::take(&mut self.scrub.has_news)
    }

    /// Takes the damage found since the last call, the 1,024 oldest places of it: stop the replicas
    /// that it names, all others go on. Those whose entries are lost are marked
    /// [`Health::Damaged`], durably; where only a footer's list is, the next open mends it.
    pub fn take_damage(&mut self) -> Vec<DamageReport> {
        std::mem::take(&mut self.scrub.reports)
    }

    /// When the next step is done: while something waits to be written, a second late.
    pub(super) fn scrub_at(&self) -> Option<Time> {
        let due = self.scrub.due()?;
        Some(if self.is_drained() {
            due
        } else {
            due.plus_nanos(DEFER_NANOS)
        })
    }

    /// Does one step if it is due and nothing more urgent waits.
    pub(super) fn scrub_poll(&mut self) {
        let Some(may_start) = self.scrub_at() else {
            return;
        };
        if self.now < may_start || self.flight.is_some() || self.latched.is_some() {
            return;
        }
        let Some(mut pass) = self.scrub.pass.take() else {
            return;
        };
        let read = self.scrub_step(&mut pass);
        self.scrub.has_news = true;
        let is_over = pass.walk.is_none() && pass.segments.is_empty();
        if is_over {
            self.scrub.passes += 1;
        } else {
            self.scrub.pass = Some(pass);
        }
        let wait = match read {
            Ok(bytes) => {
                self.scrub.failures = 0;
                let nanos = u128::from(bytes) * 1_000_000_000;
                let nanos = nanos / u128::from(self.scrub.bytes_per_s);
                u64::try_from(nanos).unwrap_or(u64::MAX)
            }
            Err(_) => RETRY_NANOS,
        };
        self.scrub.next_at = self.now.plus_nanos(wait);
    }

    /// Verifies a piece. Returns the bytes read.
    fn scrub_step(&mut self, pass: &mut Pass) -> Result<u64, VfsError> {
        let mut walk = match pass.walk.take() {
            Some(walk) if self.is_there(&walk) => walk,
            _ => {
                // What was found there went with it.
                pass.found = None;
                match self.next_walk(pass) {
                    Some(walk) => walk,
                    None => return Ok(0),
                }
            }
        };
        let advanced = match pass.found.take() {
            Some(found) => Ok((0, found)),
            None => walk.advance(self.vfs.as_ref()),
        };
        let (bytes, event) = match advanced {
            Ok(found) => found,
            Err(error) => {
                // A want of memory or descriptors passes, and says nothing of what lies there.
                self.scrub.failures += u32::from(error.is_of_medium());
                if self.scrub.failures < FAILURES_MAX {
                    pass.walk = Some(walk);
                    return Err(error);
                }
                // What can be read of the rest is told by its batches.
                let (from, to, reason) = (walk.offset, walk.len, "the segment cannot be read");
                let event = Event::Bad {
                    from,
                    to,
                    reason,
                    is_certain: true,
                    is_end: true,
                };
                (0, event)
            }
        };
        self.scrub.verified_bytes += bytes;
        match event {
            Event::More => pass.walk = Some(walk),
            Event::Ended => {}
            Event::Bad {
                from,
                to,
                reason,
                is_certain,
                is_end,
            } => {
                let bad = match self.bad_entries(&walk, from, to) {
                    Ok(bad) => bad,
                    Err(error) => {
                        pass.found = Some(event);
                        pass.walk = Some(walk);
                        return Err(error);
                    }
                };
                if is_certain || !bad.is_empty() {
                    self.on_damage((walk.number, from), reason, &bad);
                }
                if !is_end {
                    pass.walk = Some(walk);
                }
            }
        }
        Ok(bytes)
    }

    /// Whether the segment still lives the life in which its walk began.
    fn is_there(&self, walk: &Walk) -> bool {
        let tables = self.tables();
        let info = tables.segments.get(&walk.number);
        info.is_some_and(|info| info.incarnation == walk.incarnation)
    }

    /// Begins with the next segment that is still there.
    fn next_walk(&self, pass: &mut Pass) -> Option<Walk> {
        let tables = self.tables();
        while let Some((number, incarnation)) = pass.segments.pop_front() {
            let info = tables.segments.get(&number);
            let Some(info) = info.filter(|info| info.incarnation == incarnation) else {
                continue;
            };
            let is_active = number == self.active.number && !self.active.is_sealed;
            // Nothing is on its way: all of it is durable.
            let appended_to = is_active.then_some(self.active.offset);
            return Some(Walk::new(number, info, appended_to));
        }
        None
    }

    /// The live entries between two bytes of a segment that do not hold, each batch for itself.
    /// Fails if that cannot be told now.
    fn bad_entries(&self, walk: &Walk, from: u64, to: u64) -> Result<Vec<Bad>, VfsError> {
        let spans: Vec<(Key, Span)> = {
            let tables = self.tables();
            let keys = tables.keys().into_iter();
            keys.flat_map(|key| {
                let spans = tables.replicas[&key].spans.iter();
                let here = spans.filter(|span| span.segment == walk.number);
                here.map(|span| (key, *span)).collect::<Vec<_>>()
            })
            .collect()
        };
        let is_hit = |offset: u64, len: usize| offset < to && from < offset + to_u64(len);
        let mut bad = Vec::new();
        for (key, span) in spans {
            match span.at {
                At::Batch { offset, len } => {
                    if is_hit(offset, len) && !self.is_batch_whole(walk, key, (offset, len))? {
                        bad.push(Bad::entries(key, span.first, span.last));
                    }
                }
                At::List { offset, count, crc } => {
                    let len = to_usize(u64::from(count)) * LIST_RUN_BYTES;
                    let place = walk.place(offset);
                    let read = self.read_of_medium(walk, offset, len)?;
                    let Some(list) = read.and_then(|bytes| decode_list(&bytes, place, crc)) else {
                        bad.push(Bad {
                            is_list: true,
                            ..Bad::entries(key, span.first, span.last)
                        });
                        continue;
                    };
                    for run in list {
                        let last = run.first.plus(u64::from(run.count) - 1);
                        let at = (run.offset, to_usize(u64::from(run.len)));
                        if is_hit(at.0, at.1)
                            && run.first <= span.last
                            && last >= span.first
                            && !self.is_batch_whole(walk, key, at)?
                        {
                            let (first, last) = (run.first.max(span.first), last.min(span.last));
                            bad.push(Bad::entries(key, first, last));
                        }
                    }
                }
            }
        }
        Ok(bad)
    }

    fn is_batch_whole(
        &self,
        walk: &Walk,
        key: Key,
        (offset, len): (u64, usize),
    ) -> Result<bool, VfsError> {
        let read = self.read_of_medium(walk, offset, len)?;
        Ok(read.is_some_and(|bytes| Batch::decode(key.0, bytes).is_ok()))
    }

    /// What lies there; `None` if the medium does not give it back.
    fn read_of_medium(
        &self,
        walk: &Walk,
        offset: u64,
        len: usize,
    ) -> Result<Option<Bytes>, VfsError> {
        match self.vfs.read_shared(walk.file, offset, len) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.is_of_medium() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reports damage and records it for the replicas that it hits.
    fn on_damage(&mut self, (segment, offset): (u64, u64), reason: &'static str, bad: &[Bad]) {
        self.scrub.damaged += 1;
        for Bad {
            key, first, last, ..
        } in bad.iter().filter(|bad| !bad.is_list)
        {
            let is_sound = {
                let tables = self.tables();
                let replica = tables.replicas.get(key);
                replica.is_some_and(|replica| replica.state.health == Health::Sound)
            };
            if is_sound && self.scrub.marked.insert(*key) {
                let damage = Damage {
                    segment,
                    offset,
                    first: *first,
                    last: *last,
                };
                let health = Health::Damaged(damage);
                self.staging.change(*key, Change::Health(health));
            }
        }
        if self.scrub.reports.len() < REPORTS_MAX {
            self.scrub.reports.push(DamageReport {
                segment,
                offset,
                reason,
                replicas: bad
                    .iter()
                    .map(|bad| (bad.key.0, bad.key.1, bad.first, bad.last))
                    .collect(),
            });
        }
    }
}

fn to_u64(len: usize) -> u64 {
    u64::try_from(len).expect("a length fits")
}

fn to_usize(len: u64) -> usize {
    usize::try_from(len).expect("a segment fits in memory")
}
