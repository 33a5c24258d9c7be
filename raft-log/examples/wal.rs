//! Three streams in one write-ahead log: `cargo run --example wal -- DIR`. Run again, it goes on.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::{error::Error, path::Path, sync::Arc};

use raft_log::{LaneOptions, Wal, vfs::StdVfs};

/// Appends two records to each stream, and reads all of them back.
pub fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args().nth(1).ok_or("usage: wal DIR")?;
    let vfs = Arc::new(StdVfs::new());
    let (wal, report) = Wal::open(vfs, Path::new(&dir), LaneOptions::default())?;
    for damage in &report.damaged {
        println!("segment {} is damaged: {}", damage.segment, damage.reason);
    }
    for stream in 1..=3 {
        // Durable when it returns. Threads that append at the same time share one sync.
        let numbers = wal.append(stream, &["ordered", "paid"])?;
        println!("stream {stream} has got {numbers:?}");
        for record in wal.read(stream, 1) {
            let (number, bytes) = record?;
            println!("{number}: {}", String::from_utf8_lossy(&bytes));
        }
        if *numbers.end() > 100 {
            wal.trim(stream, *numbers.start())?;
        }
    }
    Ok(wal.close()?)
}
