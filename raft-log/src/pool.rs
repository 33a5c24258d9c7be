//! Segments ahead and segments behind: prepared before they are needed, recycled or removed when
//! nothing needs them.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use raft_proto::Time;

use crate::config::LaneOptions;
use crate::segment::{NUMBER_MAX, SegmentHeader, incarnation, segment_path};
use crate::vfs::{FileId, Op, OpId, Vfs, VfsError, unfinished_path};

/// Dead segments kept for recycling; more are removed.
pub(crate) const DEAD_MAX: usize = 2;
/// More than are given out between two segments: spares, and what is made again.
const NUMBERS_AHEAD: u64 = 64;
/// How long after a failure the next attempt comes.
pub(crate) const RETRY_NANOS: u64 = 1_000_000_000;
/// So many failures in a row that do not pass by themselves are the end.
const FAILURES_MAX: u32 = 3;

/// A segment that holds no record yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spare {
    pub(crate) number: u64,
    pub(crate) len: u64,
    pub(crate) incarnation: u64,
}

/// A segment that holds nothing any more.
#[derive(Debug)]
pub(crate) struct Dead {
    pub(crate) path: PathBuf,
    pub(crate) len: u64,
    pub(crate) incarnation: u64,
}

/// A segment on its way.
#[derive(Debug)]
struct Making {
    op: OpId,
    spare: Spare,
    /// The smaller one in whose place it comes; that stays if it does not.
    replaces: Option<Spare>,
    /// The dead one that is recycled; if it cannot be, it is removed.
    recycles: Option<PathBuf>,
}

/// What is ahead of the active segment, and what became of those behind it.
#[derive(Debug)]
pub(crate) struct Pool {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    lane: u16,
    identity: u64,
    segment_size_bytes: u64,
    reserve: u64,
    spares_wanted: usize,
    spares: VecDeque<Spare>,
    /// The file of the first of them, with its number: before it is open that one is not there.
    opened: Option<(u64, FileId)>,
    making: Option<Making>,
    dead: Vec<Dead>,
    removing: Vec<OpId>,
    /// The number the next spare gets.
    next_number: u64,
    /// A record waits that needs a segment of this size.
    needed: u64,
    retry_at: Option<Time>,
    /// How often in a row a spare could not be made, for a reason that does not pass by itself.
    failures: u32,
    /// Rises with every segment made, so that no two lives share an incarnation.
    lives: u64,
}

impl Pool {
    pub(crate) fn new(
        vfs: Arc<dyn Vfs>,
        dir: PathBuf,
        options: &LaneOptions,
        next_number: u64,
        (spares, dead): (VecDeque<Spare>, Vec<Dead>),
        lives: u64,
    ) -> Self {
        Self {
            vfs,
            dir,
            lane: options.lane,
            identity: options.log_identity(),
            segment_size_bytes: options.segment_size_bytes,
            reserve: options.reserve(),
            spares_wanted: options.spare_segments,
            spares,
            opened: None,
            making: None,
            dead,
            removing: Vec::new(),
            next_number,
            needed: 0,
            retry_at: None,
            failures: 0,
            lives,
        }
    }

    /// Whether the next spare is ready and large enough. If not, one is asked for.
    pub(crate) fn has(&mut self, len: u64) -> bool {
        self.needed = len;
        let Some(front) = self.spares.front() else {
            return false;
        };
        // Numbers are used in order.
        let making = self.making.as_ref().map(|making| making.spare.number);
        let is_first = making.is_none_or(|making| making > front.number);
        front.len >= len && is_first && self.is_open()
    }

    /// Whether the next spare is there, and open.
    fn is_open(&self) -> bool {
        let opened = self.opened.map(|(number, _)| number);
        opened.is_some() && opened == self.first()
    }

    /// Opens the next spare, if there is one.
    pub(crate) fn open_next(&mut self) -> Result<(), VfsError> {
        if let Some(number) = self.first()
            && !self.is_open()
        {
            self.close_next();
            let file = self.vfs.open(&segment_path(&self.dir, number), false)?;
            self.opened = Some((number, file));
        }
        Ok(())
    }

    fn close_next(&mut self) {
        if let Some((_, file)) = self.opened.take() {
            self.vfs.close(file);
        }
    }

    /// Opens the next spare if it could not be opened before, and a while has passed since then.
    pub(crate) fn open_again(&mut self, now: Time) -> Option<Made> {
        let may_try = self.retry_at.is_none_or(|at| at <= now) && self.making.is_none();
        if !may_try || self.spares.is_empty() {
            return None;
        }
        if !self.is_open() {
            return Some(self.opened_as(now));
        }
        // What could not be made was larger than what is asked for since: whoever waits for it is
        // to ask again, or nobody would make it.
        let is_enough = self.spares.len() >= self.spares_wanted && !self.is_small();
        let was_due = is_enough && self.retry_at.take().is_some();
        was_due.then_some(Made::AskAgain)
    }

    /// Whether the next spare is smaller than what is asked for.
    fn is_small(&self) -> bool {
        let front = self.spares.front();
        front.is_some_and(|front| front.len < self.needed)
    }

    fn opened_as(&mut self, now: Time) -> Made {
        match self.open_next() {
            Ok(()) => {
                self.retry_at = None;
                self.failures = 0;
                Made::Spare
            }
            Err(error) => self.failed(error, now),
        }
    }

    /// How large a segment is made for what does not fit into one of the usual size: a full disk
    /// finds the reserve in it, too.
    const fn larger(&self) -> u64 {
        self.needed + self.reserve
    }

    /// The number of the next spare.
    pub(crate) fn first(&self) -> Option<u64> {
        self.spares.front().map(|spare| spare.number)
    }

    /// How large the next spare is, in bytes, if it is open.
    pub(crate) fn front_len(&self) -> Option<u64> {
        let open = self.spares.front().filter(|_| self.is_open());
        open.map(|spare| spare.len)
    }

    /// From here on no number is given out before this is asked again, which is in each new
    /// segment; with `is_last` none is.
    pub(crate) fn numbers_end(&self, is_last: bool) -> u64 {
        let making = self
            .making
            .as_ref()
            .map_or(0, |making| making.spare.number + 1);
        let given = self.next_number.max(making);
        let ahead = if is_last { 0 } else { NUMBERS_AHEAD };
        (given + ahead).min(NUMBER_MAX + 1)
    }

    /// Takes the next spare, which is opened if it is not open.
    pub(crate) fn take(&mut self) -> Result<(Spare, FileId), VfsError> {
        self.open_next()?;
        let spare = self.spares.pop_front().expect("the caller has seen it");
        let (_, file) = self.opened.take().expect("it was just opened");
        self.needed = 0;
        Ok((spare, file))
    }

    /// Whether the next spare may be taken for something else than what comes next: it is one of the
    /// usual size, and nobody waits for it.
    pub(crate) fn may_take_apart(&self) -> bool {
        let front = self.spares.front();
        let is_usual = front.is_some_and(|front| front.len == self.segment_size_bytes);
        is_usual && self.needed == 0 && self.is_open() && self.making.is_none()
    }

    /// Takes the next spare for something else than what comes next, if it may be.
    pub(crate) fn take_apart(&mut self) -> Option<(Spare, FileId)> {
        // It is open.
        self.may_take_apart().then(|| self.take().ok()).flatten()
    }

    /// Takes a segment that nothing needs; `is_held` says that bytes of it are still out.
    pub(crate) fn give_back(&mut self, dead: Dead, is_held: bool) {
        let fits = dead.len == self.segment_size_bytes && !is_held;
        if fits && self.dead.len() < DEAD_MAX {
            self.dead.push(dead);
            self.try_at_once();
        } else {
            self.remove(dead.path);
        }
    }

    fn remove(&mut self, path: PathBuf) {
        let op = self.vfs.submit(Op::Remove { path });
        self.removing.push(op);
        self.try_at_once();
    }

    /// Begins what is to be done ahead. Returns whether something was begun.
    pub(crate) fn maintain(&mut self, now: Time) -> bool {
        if self.making.is_some() || self.retry_at.is_some_and(|at| now < at) {
            return false;
        }
        if self.is_small()
            && let Some(spare) = self.spares.pop_front()
        {
            // The next number gets a file of the size asked for: the same one, made again.
            self.close_next();
            self.make(spare.number, self.larger(), Some(spare));
            return true;
        }
        if self.spares.len() >= self.spares_wanted {
            return false;
        }
        let number = self.next_number;
        let is_next = self.spares.is_empty();
        if is_next && self.needed > self.segment_size_bytes {
            self.make(number, self.larger(), None);
        } else if let Some(dead) = self.dead.pop() {
            self.recycle(number, dead);
        } else {
            self.make(number, self.segment_size_bytes, None);
        }
        true
    }

    fn header(&mut self, number: u64, len: u64, before: u64, is_recycled: bool) -> SegmentHeader {
        self.lives += 1;
        let before = before ^ self.lives.rotate_left(32);
        SegmentHeader {
            lane: self.lane,
            identity: self.identity,
            number,
            incarnation: incarnation(self.identity, self.lane, number, before),
            len,
            is_recycled,
            is_apart: false,
        }
    }

    fn make(&mut self, number: u64, len: u64, replaces: Option<Spare>) {
        let before = replaces.map_or(0, |spare| spare.incarnation);
        let header = self.header(number, len, before, false);
        let op = self.vfs.submit(Op::Prepare {
            path: segment_path(&self.dir, number),
            len,
            head: header.encode(),
        });
        let incarnation = header.incarnation;
        let spare = Spare {
            number,
            len,
            incarnation,
        };
        self.making = Some(Making {
            op,
            spare,
            replaces,
            recycles: None,
        });
    }

    fn recycle(&mut self, number: u64, dead: Dead) {
        let header = self.header(number, dead.len, dead.incarnation, true);
        let op = self.vfs.submit(Op::Recycle {
            from: dead.path.clone(),
            to: segment_path(&self.dir, number),
            head: header.encode(),
        });
        let spare = Spare {
            number,
            len: dead.len,
            incarnation: header.incarnation,
        };
        self.making = Some(Making {
            op,
            spare,
            replaces: None,
            recycles: Some(dead.path),
        });
    }

    /// Takes a completion, if it is one of ours.
    pub(crate) fn on_done(
        &mut self,
        op: OpId,
        result: Result<(), VfsError>,
        now: Time,
    ) -> Option<Made> {
        if let Some(at) = self.removing.iter().position(|removing| *removing == op) {
            // A dead segment that stays costs space, and the next open removes it.
            self.removing.swap_remove(at);
            return Some(Made::Nothing);
        }
        let Making {
            spare,
            replaces,
            recycles,
            ..
        } = self.making.take_if(|making| making.op == op)?;
        Some(match result {
            Ok(()) => {
                self.insert(spare);
                self.next_number = self.next_number.max(spare.number + 1);
                self.opened_as(now)
            }
            Err(error) => {
                if let Some(path) = recycles {
                    // It has the header of its second life, and its old name or the new one: nobody's
                    // file. That number is not given out again.
                    self.remove(path);
                    self.remove(segment_path(&self.dir, spare.number));
                    self.next_number = self.next_number.max(spare.number + 1);
                }
                if let Some(small) = replaces {
                    self.insert(small);
                    // If it cannot be, it is opened later.
                    drop(self.open_next());
                }
                let is_too_small = spare.len > self.segment_size_bytes;
                let is_full = error.is_storage_full();
                let made = self.failed(error, now);
                if is_full && is_too_small {
                    // They cannot become this one, and take the room that it needs.
                    for dead in std::mem::take(&mut self.dead) {
                        self.remove(dead.path);
                    }
                }
                made
            }
        })
    }

    /// The next spare could not be made or opened: not before a while again.
    fn failed(&mut self, error: VfsError, now: Time) -> Made {
        self.try_again(now);
        self.failures = match error.may_pass() {
            true => 0,
            false => self.failures + 1,
        };
        let is_waited_for = self.needed > self.front_len().unwrap_or(0);
        if is_waited_for && self.failures >= FAILURES_MAX {
            Made::Failed(error)
        } else {
            Made::NoRoom(error)
        }
    }

    /// In order of numbers: one that was made again goes before the others.
    fn insert(&mut self, spare: Spare) {
        let others = &self.spares;
        let at = others.partition_point(|other| other.number < spare.number);
        self.spares.insert(at, spare);
    }

    /// When something that failed is tried again, unless that is under way.
    pub(crate) fn retry_at(&self) -> Option<Time> {
        self.retry_at.filter(|_| self.making.is_none())
    }

    /// Nothing is tried before a while has passed.
    pub(crate) fn try_again(&mut self, now: Time) {
        self.retry_at = Some(now.plus_nanos(RETRY_NANOS));
    }

    /// What has failed, and whoever waits for it, is tried at once.
    pub(crate) fn try_at_once(&mut self) {
        self.retry_at = self.retry_at.map(|_| Time(0));
    }

    /// Makes the next spare while the caller waits: at open there is nothing else to do.
    pub(crate) fn make_now(&mut self) -> Result<(), VfsError> {
        let len = match self.needed > self.segment_size_bytes {
            true => self.larger(),
            false => self.segment_size_bytes,
        };
        let (number, before) = match self.spares.front() {
            Some(small) => (small.number, small.incarnation),
            None => (self.next_number, 0),
        };
        let header = self.header(number, len, before, false);
        let mut made = self.write_now(&header);
        if made.as_ref().is_err_and(VfsError::is_storage_full) && !self.dead.is_empty() {
            // Nobody needs them, and they may be too small to become this one.
            for dead in self.dead.drain(..) {
                self.vfs.remove_file(&dead.path)?;
            }
            made = self.write_now(&header);
        }
        made?;
        self.close_next();
        self.spares.pop_front();
        self.next_number = self.next_number.max(number + 1);
        self.spares.push_front(Spare {
            number,
            len,
            incarnation: header.incarnation,
        });
        Ok(())
    }

    fn write_now(&self, header: &SegmentHeader) -> Result<(), VfsError> {
        let path = segment_path(&self.dir, header.number);
        // Beside the small one, whose absence would be taken for a loss.
        let unfinished = unfinished_path(&path);
        let file = self.vfs.create(&unfinished)?;
        let made = self
            .vfs
            .prepare(file, header.len)
            .and_then(|()| self.vfs.write(file, 0, &header.encode()))
            .and_then(|()| self.vfs.sync(file))
            .and_then(|()| self.vfs.replace(&unfinished, &path))
            .and_then(|()| self.vfs.sync_dir(&self.dir));
        self.vfs.close(file);
        if made.is_err() {
            // It takes room that others need; if it cannot go, the next open removes it.
            drop(self.vfs.remove_file(&unfinished));
        }
        made
    }

    /// Whether a file is on its way, to be one or to be none.
    pub(crate) fn is_busy(&self) -> bool {
        self.is_making() || !self.removing.is_empty()
    }

    pub(crate) const fn is_making(&self) -> bool {
        self.making.is_some()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.close_next();
    }
}

/// What a completion of the pool means.
#[derive(Debug)]
pub(crate) enum Made {
    /// There is a spare more.
    Spare,
    /// None is made, as the one there is is enough for whoever has asked last.
    AskAgain,
    /// There is none for now: the disk is full, or there are no descriptors, say.
    NoRoom(VfsError),
    /// There is none, and none can be made.
    Failed(VfsError),
    /// Nothing to act on.
    Nothing,
}

#[cfg(all(test, feature = "sim", not(loom)))]
mod tests {
    use super::*;
    use crate::vfs::SimVfs;
    use std::path::Path;

    #[test]
    fn on_a_full_disk_the_next_segment_takes_the_room_of_a_dead_one() {
        let disk = Arc::new(SimVfs::new(1));
        let dir = Path::new("/data");
        disk.create_dir_all(dir).expect("an empty disk");
        let options = LaneOptions {
            segment_size_bytes: 64 << 10,
            ..LaneOptions::default()
        };
        let path = segment_path(dir, 1);
        let file = disk.create(&path).expect("there is room");
        disk.prepare(file, options.segment_size_bytes)
            .expect("there is room");
        disk.close(file);
        let dead = Dead {
            path: path.clone(),
            len: options.segment_size_bytes,
            incarnation: 7,
        };
        disk.set_capacity(Some(disk.used_bytes()));
        let vfs: Arc<dyn Vfs> = Arc::<SimVfs>::clone(&disk);
        let ahead = (VecDeque::new(), vec![dead]);
        let mut pool = Pool::new(vfs, dir.to_owned(), &options, 2, ahead, 0);
        pool.make_now().expect("the dead one makes room");
        assert_eq!(pool.first(), Some(2));
        disk.open(&path, false).expect_err("it is gone");
    }
}
