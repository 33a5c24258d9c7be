//! The table of faults names tests that are there, and each number that it is to have.

use std::collections::BTreeSet;
use std::path::Path;

const TABLE: &str = include_str!("../../FAULTS.md");

/// The names of all functions below a directory.
fn functions(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).expect("it lists") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            functions(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source = std::fs::read_to_string(&path).expect("it reads");
            let names = source.split("fn ").skip(1).filter_map(|rest| {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
                Some(rest[..end].to_owned())
            });
            found.extend(names);
        }
    }
}

#[test]
fn each_fault_has_its_tests() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut functions_found = BTreeSet::new();
    for part in [
        "raft-log/src",
        "raft-log/tests",
        "raft-engine/tests",
        "raft-host/tests",
    ] {
        functions(&workspace.join(part), &mut functions_found);
    }
    let mut numbers = Vec::new();
    for line in TABLE.lines().filter(|line| line.starts_with("| ")) {
        let number = line.split('|').nth(1).map(str::trim).unwrap_or_default();
        let Ok(number) = number.parse::<u32>() else {
            continue;
        };
        numbers.push(number);
        let tests: Vec<&str> = line
            .split('`')
            .filter(|word| word.contains("fault_"))
            .collect();
        assert!(!tests.is_empty(), "fault {number} has no test");
        for test in tests {
            assert!(functions_found.contains(test), "there is no test {test}");
            let carries = [format!("fault_{number}_"), format!("and_{number}_")];
            let carries = carries.iter().any(|part| test.contains(part));
            assert!(carries, "{test} is no test of fault {number}");
        }
    }
    let wanted: Vec<u32> = (1..=19).chain(23..=29).collect();
    assert_eq!(numbers, wanted);
}
