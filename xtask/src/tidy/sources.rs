//! What sources must and must not contain.

use std::collections::BTreeSet;

use super::code::{code_only, lines_with_word};
use super::{Problem, SourceFile};

/// A word that must not stand in the code (comments and literals aside) of some files.
struct Rule {
    words: &'static [&'static str],
    /// The files' paths begin with one of these.
    below: &'static [&'static str],
    except: &'static [&'static str],
    why: &'static str,
}

const RULES: &[Rule] = &[
    Rule {
        words: &[
            "Instant",
            "SystemTime",
            "std::time",
            "std::thread",
            "thread::spawn",
            "std::fs",
            "std::net",
            "std::io",
            "std::process",
            "std::env",
            "std::sync",
            "std::{",
        ],
        below: &["raft-proto/src/"],
        except: &[],
        why: "the core reads no clock, starts no thread, takes no lock and does no I/O",
    },
    Rule {
        words: &["tokio", "quinn", "rustls"],
        below: &["raft-proto/", "raft-log/", "raft-snapshot/", "raft-engine/"],
        except: &[],
        why: "only transport and host know QUIC, TLS and tokio",
    },
    Rule {
        words: &["quinn", "rustls"],
        below: &["raft-host/src/"],
        except: &[],
        why: "the host names the transport, not what it is made of",
    },
    Rule {
        words: &["std::fs", "fs::File", "std::net"],
        below: &["raft-snapshot/src/", "raft-engine/src/"],
        except: &[],
        why: "files are reached through raft_log::vfs, so that the simulator can stand in",
    },
    Rule {
        words: &["dangerous"],
        below: &[""],
        except: &[],
        why: "no certificate check is ever switched off",
    },
    Rule {
        words: &["unsafe"],
        below: &[""],
        except: &["raft-log/src/vfs/map.rs"],
        why: "unsafe code belongs to raft-log's map module alone",
    },
    Rule {
        words: &["todo!", "unimplemented!", "#[ignore"],
        below: &[""],
        except: &[],
        why: "what is not done is not in the code, and no test is left out",
    },
];

/// Words that no text of the repository may hold, in comments and prose neither.
const MARKS: &[&str] = &[concat!("FIX", "ME"), concat!("XX", "X:")];

/// Homes of people and machines.
const HOMES: &[&str] = &[
    concat!("/", "home/"),
    concat!("/", "Users/"),
    concat!("/", "root/"),
];

/// Where a registry or a mirror of one would be configured.
const REGISTRIES: &[&str] = &[
    concat!("replace", "-with"),
    concat!("[registries", "."),
    concat!("[source", "."),
    concat!("index.", "crates.io"),
    concat!("static.", "crates.io"),
];

pub(super) fn check(files: &[SourceFile], machine_words: &[String]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for file in files {
        if file.path.ends_with(".rs") {
            problems.extend(check_code(&file.path, &file.text));
        }
        if !file.path.ends_with("Cargo.lock") && !file.path.starts_with("LICENSE") {
            problems.extend(check_text(&file.path, &file.text, machine_words));
        }
    }
    problems.extend(check_names(files));
    problems
}

fn check_code(path: &str, text: &str) -> Vec<Problem> {
    let mut problems = Vec::new();
    let code = code_only(text);
    for rule in RULES {
        if !rule.below.iter().any(|folder| path.starts_with(folder)) || rule.except.contains(&path)
        {
            continue;
        }
        for word in rule.words {
            for line in lines_with_word(&code, word) {
                problems.push(Problem::at(path, line, format!("`{word}`: {}", rule.why)));
            }
        }
    }
    if !text.ends_with('\n') {
        problems.push(Problem::of(path, "does not end in a newline"));
    }
    problems
}

fn check_text(path: &str, text: &str, machine_words: &[String]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let machine_words: Vec<&str> = machine_words.iter().map(String::as_str).collect();
    let kinds: [(&[&str], &str); 4] = [
        (MARKS, "finish it, or file it"),
        (HOMES, "a path of one machine"),
        (&machine_words, "a path of one machine"),
        (
            REGISTRIES,
            "where crates come from is no part of the project",
        ),
    ];
    for (number, line) in text.lines().enumerate() {
        for (words, why) in kinds {
            if let Some(word) = words.iter().find(|word| line.contains(**word)) {
                problems.push(Problem::at(path, number + 1, format!("`{word}`: {why}")));
            }
        }
    }
    problems
}

/// Files that are there, are missing, or are not reached from their crate's root.
fn check_names(files: &[SourceFile]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let paths: BTreeSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
    for path in &paths {
        if path.ends_with("/mod.rs") {
            problems.push(Problem::of(path, "modules are foo.rs beside foo/"));
        }
    }
    for required in [
        "README.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "LICENSE-MIT",
        "LICENSE-APACHE",
    ] {
        if !paths.contains(required) {
            problems.push(Problem::of(required, "is missing"));
        }
    }
    let deviations = "raft-proto/tests/data/DEVIATIONS.md";
    let has_tests = paths
        .iter()
        .any(|path| path.starts_with("raft-proto/tests/"));
    if has_tests && !paths.contains(deviations) {
        problems.push(Problem::of(deviations, "is missing"));
    }
    for file in files.iter().filter(|file| file.path.ends_with(".md")) {
        for link in dead_links(&file.path, &file.text, &paths) {
            problems.push(Problem::of(
                &file.path,
                format!("links to {link}, which is not there"),
            ));
        }
    }
    for file in files {
        if is_dead(&file.path, files) {
            problems.push(Problem::of(&file.path, "no module declares this file"));
        }
    }
    problems
}

/// Links of a page to files of the repository that do not exist.
fn dead_links(path: &str, text: &str, paths: &BTreeSet<&str>) -> Vec<String> {
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let targets = text
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split([')', '#']).next());
    targets
        .filter(|target| !target.is_empty() && !target.contains("://"))
        .filter(|target| {
            let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
            for part in target.split('/') {
                match part {
                    ".." => drop(parts.pop()),
                    "" | "." => {}
                    part => parts.push(part),
                }
            }
            let wanted = parts.join("/");
            !paths
                .iter()
                .any(|path| *path == wanted || path.starts_with(&format!("{wanted}/")))
        })
        .map(str::to_owned)
        .collect()
}

/// Whether a module's file is declared by none of the files that could.
fn is_dead(path: &str, files: &[SourceFile]) -> bool {
    let Some((krate, inside)) = path.split_once("/src/") else {
        return false;
    };
    let Some(module) = inside.strip_suffix(".rs") else {
        return false;
    };
    if matches!(module, "lib" | "main") || module.starts_with("bin/") {
        return false;
    }
    let (parents, name) = match module.rsplit_once('/') {
        Some((parent, name)) => (vec![format!("{krate}/src/{parent}.rs")], name),
        None => (
            vec![
                format!("{krate}/src/lib.rs"),
                format!("{krate}/src/main.rs"),
            ],
            module,
        ),
    };
    !files
        .iter()
        .filter(|file| parents.contains(&file.path))
        .any(|parent| {
            let code = code_only(&parent.text);
            !lines_with_word(&code, &format!("mod {name}")).is_empty()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> SourceFile {
        SourceFile {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    #[test]
    fn each_rule_finds_each_of_its_words() {
        for rule in RULES {
            for word in rule.words {
                for folder in rule.below {
                    let path = format!("{folder}probe.rs");
                    let text = format!("x {word} y;\n");
                    assert!(!check_code(&path, &text).is_empty(), "{word} in {path}");
                    let comment = format!("// x {word} y;\n");
                    assert!(
                        check_code(&path, &comment).is_empty(),
                        "{word} in a comment"
                    );
                }
            }
            for path in rule.except {
                let text = format!("{}\n", rule.words[0]);
                assert!(check_code(path, &text).is_empty(), "{path} is excepted");
            }
        }
    }

    #[test]
    fn a_rule_ends_at_its_folder() {
        assert!(check_code("raft-host/src/open.rs", "use std::fs::File;\n").is_empty());
        assert!(!check_code("raft-proto/src/raft.rs", "use std::fs::File;\n").is_empty());
        assert!(check_code("raft-proto/tests/thesis.rs", "use std::fs::File;\n").is_empty());
    }

    #[test]
    fn a_missing_last_newline_is_found() {
        assert_eq!(check_code("raft-log/src/lane.rs", "fn f() {}").len(), 1);
    }

    #[test]
    fn marks_machine_paths_and_registries_are_found() {
        let words = ["/build/here/".to_owned()];
        for line in MARKS
            .iter()
            .chain(HOMES)
            .chain(REGISTRIES)
            .chain(&["at /build/here/x"])
        {
            assert!(
                !check_text("README.md", &format!("a\n{line}\n"), &words).is_empty(),
                "{line}"
            );
        }
        assert!(check_text("README.md", "plain\n", &words).is_empty());
    }

    #[test]
    fn a_mod_rs_is_found() {
        let files = [file("raft-log/src/vfs/mod.rs", "")];
        assert!(
            check_names(&files)
                .iter()
                .any(|problem| problem.what.contains("foo.rs"))
        );
    }

    #[test]
    fn missing_papers_are_found() {
        let places: Vec<String> = check_names(&[file("raft-proto/tests/quorum.rs", "")])
            .into_iter()
            .map(|p| p.place)
            .collect();
        assert!(places.contains(&"README.md".to_owned()));
        assert!(places.contains(&"raft-proto/tests/data/DEVIATIONS.md".to_owned()));
    }

    #[test]
    fn a_link_to_nothing_is_found() {
        let paths = BTreeSet::from(["README.md", "docs/A.md", "raft-log/FORMAT.md"]);
        let text =
            "[a](A.md#top) [b](../README.md) [c](../raft-log) [d](https://x.example) [e](#here)";
        assert_eq!(dead_links("docs/B.md", text, &paths), Vec::<String>::new());
        assert_eq!(
            dead_links("docs/B.md", "[a](README.md)", &paths),
            ["README.md"]
        );
    }

    #[test]
    fn a_file_that_no_module_declares_is_found() {
        let files = [
            file("a/src/lib.rs", "mod used;\npub mod outer;\n// mod dead;\n"),
            file("a/src/used.rs", ""),
            file("a/src/outer.rs", "mod inner;\n"),
            file("a/src/outer/inner.rs", ""),
            file("a/src/dead.rs", ""),
            file("a/src/outer/dead.rs", ""),
            file("a/tests/data.rs", ""),
        ];
        let dead: Vec<&str> = files
            .iter()
            .map(|f| f.path.as_str())
            .filter(|path| is_dead(path, &files))
            .collect();
        assert_eq!(dead, ["a/src/dead.rs", "a/src/outer/dead.rs"]);
    }
}
