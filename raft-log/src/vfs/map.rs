//! Read-only maps of segment files, and the optional SIGBUS handler: the only unsafe code of the
//! workspace.
//!
//! Source: mmap(2), madvise(2) `MADV_POPULATE_READ`.
#![expect(
    unsafe_code,
    reason = "maps files for reading without a copy; installs a signal handler on request"
)]

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use memmap2::{Advice, Mmap, MmapOptions};

use super::claims::Claim;
use crate::segment::segment_number;
use crate::sync::Arc;

/// A read-only map of a whole file.
#[derive(Debug)]
pub(super) struct Map {
    map: Mmap,
    /// What the signal handler knows of it; `None` if there are too many maps to name.
    known: Option<&'static Known>,
    _claim: Arc<Claim>,
}

/// A part of a map that outlives whoever reads it: keeps the map alive.
struct Slice {
    map: Arc<Map>,
    start: usize,
    end: usize,
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        // Only this range is ever borrowed, never the whole map: bytes outside of it may be
        // written at the same time.
        &self.map.map[self.start..self.end]
    }
}

impl Map {
    pub(super) fn new(
        file: &File,
        path: &Path,
        len: usize,
        claim: &Arc<Claim>,
    ) -> io::Result<Self> {
        // SAFETY: the map is read-only, and its bytes are borrowed by range only (see `Slice`).
        // The ranges asked for lie below the durable watermark: the log never writes them again
        // before the file is retired, and reuses a retired file only when no slice of it is left, whichever handle of the file
        // it came through (see `Claim`).
        // Another process that writes or truncates the file could break this; the data directory's
        // lock keeps our own kind out, and bytes are checked before they are believed.
        // Guarded by the tests `slices_stay_valid_when_the_file_is_unlinked`,
        // `a_shared_file_is_not_recycled` and `slices_outlive_the_log_that_gave_them`.
        let map = unsafe { MmapOptions::new().len(len).map(file) }?;
        let known = Known::enter(&map, path);
        Ok(Self {
            map,
            known,
            _claim: Arc::clone(claim),
        })
    }

    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    /// The bytes `start..end`, their pages faulted in: a device error is an error here and no
    /// signal later.
    ///
    /// Invariant: `start < end <= len`.
    pub(super) fn slice(this: &Arc<Self>, start: usize, end: usize) -> io::Result<Bytes> {
        assert!(start < end && end <= this.map.len(), "a part of the map");
        let page = start - start % PAGE_BYTES;
        this.map
            .advise_range(Advice::PopulateRead, page, end - page)?;
        Ok(Bytes::from_owner(Slice {
            map: Arc::clone(this),
            start,
            end,
        }))
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // Before the addresses can mean something else.
        if let Some(known) = self.known {
            known.start.store(FREE, Ordering::Release);
        }
    }
}

/// A map that the signal handler can name.
#[derive(Debug)]
struct Known {
    /// Its first address, or [`FREE`], or [`TAKEN`] while the rest is filled in.
    start: AtomicUsize,
    end: AtomicUsize,
    /// 0 if it is no segment.
    segment: AtomicU64,
    lane: AtomicU32,
}

const FREE: usize = 0;
const TAKEN: usize = 1;
/// Maps that can be named at the same time: 64 GiB in segments of the default size.
const KNOWN_MAX: usize = 1_024;

static KNOWN: [Known; KNOWN_MAX] = [const {
    Known {
        start: AtomicUsize::new(FREE),
        end: AtomicUsize::new(0),
        segment: AtomicU64::new(0),
        lane: AtomicU32::new(0),
    }
}; KNOWN_MAX];

impl Known {
    /// Enters a map whose path ends in `<lane>/<segment>.seg`, or in something else.
    fn enter(map: &Mmap, path: &Path) -> Option<&'static Self> {
        let name = |path: &Path| path.file_name()?.to_str().map(str::to_owned);
        let segment = name(path).and_then(|name| segment_number(&name));
        let lane = path.parent().and_then(name);
        let lane = lane.and_then(|lane| lane.parse::<u16>().ok());
        let known = KNOWN.iter().find(|known| {
            let taken =
                known
                    .start
                    .compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Relaxed);
            taken.is_ok()
        })?;
        let start = map.as_ptr().addr();
        known.end.store(start + map.len(), Ordering::Relaxed);
        known.segment.store(segment.unwrap_or(0), Ordering::Relaxed);
        known
            .lane
            .store(u32::from(lane.unwrap_or(0)), Ordering::Relaxed);
        known.start.store(start, Ordering::Release);
        Some(known)
    }

    /// The map that an address lies in, and where in it.
    fn find(address: usize) -> Option<(&'static Self, usize)> {
        KNOWN.iter().find_map(|known| {
            let start = known.start.load(Ordering::Acquire);
            let is_in =
                start > TAKEN && start <= address && address < known.end.load(Ordering::Relaxed);
            is_in.then(|| (known, address - start))
        })
    }
}

/// The status that a process ends with when a mapped file was taken away under it.
const EXIT_SIGBUS: i32 = 71;

/// What handled the signal before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Makes a `SIGBUS` from the map of a log file end the process with status 71, after one line on
/// standard error that names segment and byte.
///
/// It comes when a file is truncated, or its device goes away, while somebody holds entries read
/// from it: nothing then can give these bytes, and what the process would do with others is
/// nobody's guess. The next open reports the damage. Such a signal from anywhere else goes to
/// whatever handled it before. The library never calls this by itself, and
/// [`ReadMode::Pread`](super::ReadMode::Pread) needs none. To call it twice changes nothing.
///
/// # Errors
///
/// If the system refuses to install it.
pub fn install_sigbus_handler() -> io::Result<()> {
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    if BEFORE.get().is_some() {
        return Ok(());
    }
    // SAFETY: a sigaction of zeroes is one: no handler, an empty mask, no flags.
    // Guarded by the test `fault_19_a_file_truncated_under_a_live_map_ends_the_process_with_71`.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: as above. Guarded by the same test.
    let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: both point to a sigaction of ours, and the handler does nothing that is forbidden in
    // a signal: it reads atomics, formats into its own stack, and calls write, _exit and sigaction.
    // Guarded by the same test.
    let installed = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, &raw mut before) };
    if installed != 0 {
        return Err(io::Error::last_os_error());
    }
    BEFORE.get_or_init(|| before);
    Ok(())
}

extern "C" fn on_sigbus(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the system gives a valid siginfo to a handler installed with SA_SIGINFO.
    // Guarded by the test `fault_19_a_file_truncated_under_a_live_map_ends_the_process_with_71`.
    let info = unsafe { &*info };
    // SAFETY: SIGBUS fills in the address. Guarded by the same test.
    let address = unsafe { info.si_addr() }.addr();
    if let Some((known, offset)) = Known::find(address) {
        let mut line = Line::default();
        line.text("raft-log: SIGBUS: segment ");
        line.number(known.segment.load(Ordering::Relaxed));
        line.text(" of lane ");
        line.number(u64::from(known.lane.load(Ordering::Relaxed)));
        line.text(" cannot be read at byte ");
        line.number(u64::try_from(offset).unwrap_or(u64::MAX));
        line.text(": the file was truncated, or its device is gone\n");
        // SAFETY: the line is a buffer of ours of that length. Guarded by the same test.
        let _written = unsafe { libc::write(2, line.bytes.as_ptr().cast(), line.len) };
        // SAFETY: ends the process and runs nothing of it. Guarded by the same test.
        unsafe { libc::_exit(EXIT_SIGBUS) };
    }
    // Not ours: the instruction comes again, to what was there before.
    let Some(before) = BEFORE.get() else {
        // Not known yet: the next round finds it.
        return;
    };
    // SAFETY: `before` came from the system. Guarded by the test
    // `fault_19_a_sigbus_from_elsewhere_goes_to_whoever_handled_it_before`.
    unsafe { libc::sigaction(libc::SIGBUS, before, std::ptr::null_mut()) };
    if info.si_code <= 0 {
        // Sent by a process: no instruction brings it back.
        // SAFETY: sends this thread a signal that it waits with until this handler has returned.
        // Guarded by the same test.
        unsafe { libc::raise(signal) };
    }
}

/// A line put together without memory: there is none to be had in a signal.
struct Line {
    bytes: [u8; 256],
    len: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            bytes: [0; 256],
            len: 0,
        }
    }
}

impl Line {
    fn text(&mut self, text: &str) {
        for byte in text.bytes() {
            if let Some(place) = self.bytes.get_mut(self.len) {
                *place = byte;
                self.len += 1;
            }
        }
    }

    fn number(&mut self, mut number: u64) {
        let mut digits = [b'0'; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] += u8::try_from(number % 10).unwrap_or(0);
            number /= 10;
            if number == 0 {
                break;
            }
        }
        self.text(std::str::from_utf8(&digits[at..]).unwrap_or("?"));
    }
}

/// The least page size of the systems supported; a start rounded down to it is rounded further
/// down by the map itself where pages are larger.
const PAGE_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_known_by_address_while_they_live() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("3").join(format!("{:016x}.seg", 5));
        std::fs::create_dir(dir.path().join("3")).expect("made");
        std::fs::write(&path, [7; 9000]).expect("written");
        let file = File::open(&path).expect("open");
        let claim = Arc::new(Claim::new(&file).expect("claimed"));
        let map = Map::new(&file, &path, 9000, &claim).expect("mapped");
        let start = map.map.as_ptr().addr();
        let (known, offset) = Known::find(start + 8999).expect("it is known");
        assert_eq!(offset, 8999);
        assert_eq!(known.segment.load(Ordering::Relaxed), 5);
        assert_eq!(known.lane.load(Ordering::Relaxed), 3);
        assert!(Known::find(start + 9000).is_none());
        drop(map);
        let again = Known::find(start);
        assert!(again.is_none_or(|(known, _)| known.segment.load(Ordering::Relaxed) != 5));
    }

    #[test]
    fn lines_are_put_together_and_never_overflow() {
        let mut line = Line::default();
        line.number(0);
        line.text(" ");
        line.number(u64::MAX);
        assert_eq!(&line.bytes[..line.len], b"0 18446744073709551615");
        for _ in 0..100 {
            line.text("0123456789");
        }
        assert_eq!(line.len, 256);
    }
}
