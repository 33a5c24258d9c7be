//! The layer law: which crate may use which, ours and others'.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata, PackageId};

use super::Problem;

/// What one of our crates may depend on.
struct Law {
    name: &'static str,
    /// Our crates, in its tests too.
    ours: &'static [&'static str],
    /// Others' crates.
    others: &'static [&'static str],
    /// Others' crates that only its tests, examples and benchmarks may use besides.
    in_tests: &'static [&'static str],
    /// Whether a network stack may be reached at all, through whatever crate.
    network: bool,
}

/// The table. A new line in it is a decision: its commit says why.
const LAWS: &[Law] = &[
    Law {
        name: "raft-proto",
        ours: &[],
        others: &[
            "bytes",
            "crc32c",
            "postcard",
            "serde",
            "thiserror",
            "tracing",
        ],
        in_tests: &[
            "criterion",
            "datadriven",
            "expect-test",
            "libtest-mimic",
            "proptest",
            "serde_json",
            "stats_alloc",
        ],
        network: false,
    },
    Law {
        name: "raft-log",
        ours: &["raft-proto"],
        others: &[
            "bytes",
            "crc32c",
            "libc",
            "loom",
            "memmap2",
            "rustc-hash",
            "rustix",
            "thiserror",
            "tracing",
        ],
        in_tests: &[
            "clap",
            "criterion",
            "expect-test",
            "hdrhistogram",
            "libtest-mimic",
            "proptest",
            "serde_json",
            "stats_alloc",
            "tempfile",
        ],
        network: false,
    },
    Law {
        name: "raft-snapshot",
        ours: &["raft-proto", "raft-log"],
        others: &[
            "blake3",
            "bytes",
            "crc32c",
            "lz4_flex",
            "postcard",
            "serde",
            "thiserror",
            "tracing",
            "zstd",
        ],
        in_tests: &[
            "criterion",
            "expect-test",
            "proptest",
            "serde_json",
            "tempfile",
        ],
        network: false,
    },
    Law {
        name: "raft-engine",
        ours: &["raft-proto", "raft-log", "raft-snapshot"],
        others: &[
            "bytes",
            "postcard",
            "rustc-hash",
            "serde",
            "thiserror",
            "tracing",
        ],
        in_tests: &[
            "clap",
            "criterion",
            "expect-test",
            "hdrhistogram",
            "proptest",
            "serde_json",
            "tempfile",
        ],
        network: false,
    },
    Law {
        name: "raft-transport",
        ours: &["raft-proto", "raft-snapshot"],
        others: &[
            "arc-swap",
            "blake3",
            "bytes",
            "postcard",
            "quinn",
            "rustc-hash",
            "rustls",
            "rustls-webpki",
            "serde",
            "thiserror",
            "tokio",
            "tracing",
        ],
        in_tests: &[
            "criterion",
            "expect-test",
            "proptest",
            "rcgen",
            "serde_json",
            "tempfile",
        ],
        network: true,
    },
    Law {
        name: "raft-host",
        ours: &[
            "raft-proto",
            "raft-log",
            "raft-snapshot",
            "raft-engine",
            "raft-transport",
        ],
        others: &[
            "arc-swap",
            "bytes",
            "metrics",
            "postcard",
            "rustc-hash",
            "rustix",
            "serde",
            "thiserror",
            "tokio",
            "tracing",
        ],
        in_tests: &[
            "anyhow",
            "clap",
            "hdrhistogram",
            "libtest-mimic",
            "rcgen",
            "resp-rs",
            "serde_json",
            "tempfile",
            "tracing-subscriber",
        ],
        network: true,
    },
    Law {
        name: "xtask",
        ours: &[],
        others: &[
            "anyhow",
            "cargo_metadata",
            "clap",
            "comfy-table",
            "ctrlc",
            "indicatif",
            "pem",
            "rcgen",
            "serde",
            "serde_json",
            "xshell",
        ],
        in_tests: &["tempfile"],
        network: false,
    },
];

/// Crates that bring a network stack or an asynchronous runtime.
const NETWORK: &[&str] = &[
    "axum",
    "hyper",
    "mio",
    "quinn",
    "quinn-proto",
    "rustls",
    "tokio",
];

/// Checks the whole workspace.
pub(super) fn check(metadata: &Metadata) -> Vec<Problem> {
    let mut problems = Vec::new();
    let members: BTreeSet<&str> = metadata
        .workspace_packages()
        .iter()
        .map(|package| package.name.as_str())
        .collect();
    let expected: BTreeSet<&str> = LAWS.iter().map(|law| law.name).collect();
    if members != expected {
        problems.push(Problem::of(
            "Cargo.toml",
            format!("the members are {members:?}, the layer law knows {expected:?}"),
        ));
    }
    let reachable = Reachable::new(metadata);
    for package in metadata.workspace_packages() {
        let name = package.name.as_str();
        let Some(law) = LAWS.iter().find(|law| law.name == name) else {
            continue;
        };
        if package
            .publish
            .as_ref()
            .is_none_or(|registries| !registries.is_empty())
        {
            problems.push(Problem::of(name, "lacks `publish = false`"));
        }
        for dependency in &package.dependencies {
            let edge = Edge {
                to: &dependency.name,
                is_ours: expected.contains(dependency.name.as_str()),
                in_tests: dependency.kind == DependencyKind::Development,
                by_path_only: dependency.path.is_some() && dependency.req.to_string() == "*",
            };
            problems.extend(check_edge(law, &edge).map(|what| Problem::of(name, what)));
        }
        if !law.network {
            for found in reachable
                .from(&package.id)
                .intersection(&NETWORK.iter().copied().collect())
            {
                problems.push(Problem::of(
                    name,
                    format!("reaches {found} through its dependencies"),
                ));
            }
        }
    }
    problems
}

struct Edge<'a> {
    to: &'a str,
    is_ours: bool,
    in_tests: bool,
    by_path_only: bool,
}

fn check_edge(law: &Law, edge: &Edge<'_>) -> Option<String> {
    let to = edge.to;
    if edge.is_ours {
        // A crate may name itself in its tests, to switch on its own test features.
        let is_itself = edge.in_tests && to == law.name;
        if !law.ours.contains(&to) && !is_itself {
            return Some(format!("must not use {to}: the layer law has no such edge"));
        }
        // With a version, cargo could take the unrelated crate of that name from the registry.
        if !edge.by_path_only {
            return Some(format!("must name {to} by path only, without a version"));
        }
        return None;
    }
    if law.others.contains(&to) || (edge.in_tests && law.in_tests.contains(&to)) {
        return None;
    }
    Some(format!(
        "uses {to}, which its line of the layer law does not list"
    ))
}

/// What each package reaches through ordinary dependencies, as cargo resolved them.
struct Reachable<'a> {
    names: BTreeMap<&'a PackageId, &'a str>,
    edges: BTreeMap<&'a PackageId, Vec<&'a PackageId>>,
}

impl<'a> Reachable<'a> {
    fn new(metadata: &'a Metadata) -> Self {
        let names = metadata
            .packages
            .iter()
            .map(|package| (&package.id, package.name.as_str()))
            .collect();
        let mut edges: BTreeMap<&PackageId, Vec<&PackageId>> = BTreeMap::new();
        for node in metadata.resolve.iter().flat_map(|resolve| &resolve.nodes) {
            let ordinary = node.deps.iter().filter(|dependency| {
                dependency
                    .dep_kinds
                    .iter()
                    .any(|kind| kind.kind == DependencyKind::Normal)
            });
            edges.insert(
                &node.id,
                ordinary.map(|dependency| &dependency.pkg).collect(),
            );
        }
        Self { names, edges }
    }

    fn from(&self, start: &'a PackageId) -> BTreeSet<&'a str> {
        let mut seen = BTreeSet::from([start]);
        let mut pending = vec![start];
        while let Some(id) = pending.pop() {
            for next in self.edges.get(id).into_iter().flatten() {
                if seen.insert(*next) {
                    pending.push(*next);
                }
            }
        }
        seen.remove(start);
        seen.iter()
            .filter_map(|id| self.names.get(*id).copied())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn law(name: &str) -> &'static Law {
        LAWS.iter()
            .find(|law| law.name == name)
            .expect("a line of the table")
    }

    fn ours(to: &str) -> Edge<'_> {
        Edge {
            to,
            is_ours: true,
            in_tests: false,
            by_path_only: true,
        }
    }

    fn others(to: &str) -> Edge<'_> {
        Edge {
            to,
            is_ours: false,
            in_tests: false,
            by_path_only: false,
        }
    }

    #[test]
    fn an_edge_against_the_law_is_found() {
        assert!(check_edge(law("raft-engine"), &ours("raft-log")).is_none());
        assert!(check_edge(law("raft-engine"), &ours("raft-transport")).is_some());
        assert!(check_edge(law("raft-transport"), &ours("raft-engine")).is_some());
        assert!(
            check_edge(
                law("raft-log"),
                &Edge {
                    in_tests: true,
                    ..ours("raft-engine")
                }
            )
            .is_some()
        );
        assert!(check_edge(law("xtask"), &ours("raft-proto")).is_some());
    }

    #[test]
    fn an_internal_version_is_found() {
        let edge = Edge {
            by_path_only: false,
            ..ours("raft-log")
        };
        assert!(check_edge(law("raft-engine"), &edge).is_some());
    }

    #[test]
    fn an_unlisted_crate_is_found() {
        assert!(check_edge(law("raft-engine"), &others("tokio")).is_some());
        assert!(check_edge(law("raft-transport"), &others("tokio")).is_none());
        assert!(check_edge(law("raft-log"), &others("tempfile")).is_some());
        assert!(
            check_edge(
                law("raft-log"),
                &Edge {
                    in_tests: true,
                    ..others("tempfile")
                }
            )
            .is_none()
        );
    }

    #[test]
    fn the_table_itself_has_no_upward_edge() {
        for (at, law) in LAWS.iter().enumerate() {
            for used in law.ours {
                assert!(
                    LAWS[..at].iter().any(|lower| lower.name == *used),
                    "{}: {used}",
                    law.name
                );
            }
            if !law.network {
                assert!(
                    law.others.iter().all(|other| !NETWORK.contains(other)),
                    "{}",
                    law.name
                );
            }
        }
    }
}
