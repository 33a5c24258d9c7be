//! The example that knows nothing of Raft.

use crate::{run, text};

pub fn the_example_of_streams_goes_on_where_it_ended() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().to_str().expect("a name");
    for (life, numbers) in [(1, "1..=2"), (2, "3..=4"), (3, "5..=6")] {
        let output = run("wal", &[path]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let mut want = String::new();
        for stream in 1..=3 {
            want += &format!("stream {stream} has got {numbers}\n");
            for number in (1..=life * 2).step_by(2) {
                want += &format!("{number}: ordered\n{}: paid\n", number + 1);
            }
        }
        assert_eq!(text(&output.stdout), want);
    }
    let source = include_str!("../../examples/wal.rs").to_lowercase();
    for word in [
        "raft_proto",
        "group",
        "replica",
        "term",
        "index",
        "vote",
        "leader",
    ] {
        assert!(!source.contains(word), "the example speaks of a {word}");
    }
    let code = source.lines().filter(|line| !line.starts_with("//"));
    assert!(code.count() <= 35, "some thirty lines");
}
