//! What each crate's `Cargo.toml` and the lock file must and must not say.

use super::{Problem, SourceFile};

/// The only source of crates that a lock file may name.
const PUBLIC_INDEX: &str = concat!("registry+https://github.com/rust-lang/", "crates.io-index");

pub(super) fn check(files: &[SourceFile]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for file in files {
        match file.path.rsplit('/').next() {
            Some("Cargo.toml") if file.path != "Cargo.toml" => {
                problems.extend(check_member(&file.path, &file.text));
            }
            Some("Cargo.lock") => problems.extend(check_lock(&file.path, &file.text)),
            _ => {}
        }
    }
    problems
}

fn check_member(path: &str, text: &str) -> Vec<Problem> {
    let in_table = |table: &str, key: &str| {
        text.lines()
            .map(str::trim)
            .skip_while(|line| *line != table)
            .skip(1)
            .take_while(|line| !line.starts_with('['))
            .any(|line| line.starts_with(key))
    };
    let mut problems = Vec::new();
    // Fuzz targets and the peers of benchmarks are workspaces of their own.
    let own_workspace = text.lines().any(|line| line.trim() == "[workspace]");
    if !own_workspace {
        if !in_table("[lints]", "workspace = true") {
            problems.push(Problem::of(path, "lacks `[lints] workspace = true`"));
        }
        if !in_table("[package]", "license.workspace = true") {
            problems.push(Problem::of(path, "lacks `license.workspace = true`"));
        }
    }
    if !in_table("[package]", "publish = false") {
        problems.push(Problem::of(path, "lacks `publish = false`"));
    }
    problems
}

fn check_lock(path: &str, text: &str) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if let Some(source) = line.strip_prefix("source = ")
            && source.trim_matches('"') != PUBLIC_INDEX
        {
            problems.push(Problem::at(
                path,
                number + 1,
                format!("takes a crate from {source}"),
            ));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[package]\nname = \"x\"\nlicense.workspace = true\npublish = false\n\n[lints]\nworkspace = true\n\n[dependencies]\n";

    #[test]
    fn a_manifest_without_its_lines_is_found() {
        assert_eq!(check_member("x/Cargo.toml", GOOD), vec![]);
        for line in [
            "license.workspace = true\n",
            "publish = false\n",
            "workspace = true\n\n",
        ] {
            let text = GOOD.replacen(line, "", 1);
            assert!(!check_member("x/Cargo.toml", &text).is_empty(), "{line}");
        }
    }

    #[test]
    fn a_foreign_source_in_the_lock_file_is_found() {
        let good = format!("source = \"{PUBLIC_INDEX}\"\n");
        assert_eq!(check_lock("Cargo.lock", &good), vec![]);
        let bad = "source = \"registry+https://mirror.example/index\"\n";
        assert_eq!(check_lock("Cargo.lock", bad).len(), 1);
    }
}
