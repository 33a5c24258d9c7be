//! A process that is killed while it appends, again and again.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;

use raft_log::vfs::StdVfs;
use raft_log::{LaneOptions, RecoveryReport, Wal};

use crate::program;

const STREAMS: u64 = 4;
/// Records that each stream keeps.
const KEPT: u64 = 50;
const ROUNDS: usize = 100;

fn options() -> LaneOptions {
    LaneOptions {
        segment_size_bytes: 64 << 10,
        record_bytes_max: 16 << 10,
        spare_segments: 2,
        ..LaneOptions::default()
    }
}

fn record(stream: u64, number: u64) -> Vec<u8> {
    let len = usize::try_from(number * 97 % 1_500).expect("small");
    let word = (stream << 32 | number).to_le_bytes();
    word.iter().copied().cycle().take(8 + len).collect()
}

/// Appends to each stream by a thread of its own and says what is durable, until it is killed.
pub fn child() -> ExitCode {
    let dir = std::env::args().nth(1).expect("a directory");
    let opened = Wal::open(Arc::new(StdVfs::new()), Path::new(&dir), options());
    let (wal, _) = opened.expect("it opens");
    std::thread::scope(|scope| {
        for stream in 1..=STREAMS {
            let wal = &wal;
            scope.spawn(move || {
                loop {
                    let next = wal.range(stream).map_or(1, |range| range.end() + 1);
                    let numbers = wal
                        .append(stream, &[record(stream, next), record(stream, next + 1)])
                        .expect("it is durable");
                    let last = *numbers.end();
                    writeln!(std::io::stdout(), "{stream} {last}").expect("somebody reads");
                    wal.trim(stream, last.saturating_sub(KEPT).max(1))
                        .expect("it is durable");
                }
            });
        }
    });
    ExitCode::SUCCESS
}

pub fn fault_28_a_process_killed_under_load_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().to_str().expect("a name");
    let mut acknowledged: BTreeMap<u64, u64> = BTreeMap::new();
    for round in 0..ROUNDS {
        let mut child = program("killed", &[path])
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut said = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut hear = |line: String| {
            let numbers: Vec<u64> = line
                .split(' ')
                .filter_map(|word| word.parse().ok())
                .collect();
            // The last line may be cut.
            if let [stream, last] = numbers[..]
                && line.len() > 2
            {
                let known = acknowledged.entry(stream).or_default();
                *known = last.max(*known);
            }
        };
        // Somewhere between its first append and the turn of a segment.
        for _ in 0..1 + round * 37 % 150 {
            hear(said.next().expect("it goes on").expect("it is read"));
        }
        child.kill().expect("it lives");
        child.wait().expect("it ends");
        let mut rest: Vec<String> = said.map_while(Result::ok).collect();
        rest.pop();
        rest.into_iter().for_each(&mut hear);
        let opened = Wal::open(Arc::new(StdVfs::new()), dir.path(), options());
        let (wal, report) = opened.expect("it opens");
        let want = RecoveryReport {
            torn: report.torn.clone(),
            ..RecoveryReport::default()
        };
        assert_eq!(report, want, "round {round}");
        for (&stream, &last) in &acknowledged {
            let range = wal.range(stream).expect("it has records");
            assert!(
                *range.end() >= last,
                "round {round}: {stream} ends at {range:?}, not {last}"
            );
            let mut next = *range.start();
            for found in wal.read(stream, next) {
                let (number, bytes) = found.expect("it reads");
                assert_eq!(number, next, "round {round}: {stream}");
                assert!(
                    bytes == record(stream, number),
                    "round {round}: {stream} {number}"
                );
                next += 1;
            }
            assert_eq!(next, range.end() + 1, "round {round}: {stream}");
        }
        wal.close().expect("it closes");
    }
}
