//! The rules of the house that no lint can hold; ARCHITECTURE.md states them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::{collections::BTreeSet, fs};

use plurality_tests::workspace::{Source, root, sources};

/// Lines of code that contain one of `words` as a whole word.
fn lines_naming(sources: &[Source], words: &[&str]) -> Vec<String> {
    let is_word = |line: &str, word: &str| {
        line.match_indices(word).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            let after = line[at + word.len()..].chars().next();
            let joins = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
            !joins(before) && !joins(after)
        })
    };
    let mut found = Vec::new();
    for source in sources.iter().filter(|source| !source.is_test()) {
        for (number, line) in source.code_lines() {
            if let Some(word) = words.iter().find(|word| is_word(line, word)) {
                found.push(format!("{}:{number} names {word}: {}", source.path, line.trim()));
            }
        }
    }
    found
}

fn assert_none(found: Vec<String>) {
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// The crates that a manifest names as ordinary dependencies.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(root().join(manifest)).unwrap();
    text.lines()
        .skip_while(|line| line.trim() != "[dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

const WORLD: [&str; 12] = [
    "tokio",
    "async",
    "await",
    "TcpStream",
    "UdpSocket",
    "Instant",
    "SystemTime",
    "sqlx",
    "object_store",
    "rand",
    "SysRng",
    "plurality_failpoints",
];

#[test]
fn the_core_names_no_runtime_socket_file_clock_or_randomness() {
    let mut words = WORLD.to_vec();
    words.extend(["File", "fs"]);
    assert_none(lines_naming(&sources("coordinator/src/core"), &words));
}

#[test]
fn common_names_no_runtime_socket_clock_or_randomness() {
    let sources: Vec<_> =
        sources("common/src").into_iter().filter(|source| source.path != "common/src/wire.rs").collect();
    assert_none(lines_naming(&sources, &WORLD));
}

#[test]
fn only_the_torch_folder_names_tch() {
    for folder in ["common/src", "coordinator/src", "worker/src", "proto/src"] {
        let elsewhere: Vec<_> =
            sources(folder).into_iter().filter(|source| !source.path.starts_with("worker/src/torch/")).collect();
        assert_none(lines_naming(&elsewhere, &["tch", "torch_sys"]));
    }
}

#[test]
fn dependencies_point_only_one_way() {
    for (manifest, forbidden) in [
        (
            "common/Cargo.toml",
            &[
                "tokio",
                "tch",
                "torch-sys",
                "candle-core",
                "candle-nn",
                "sqlx",
                "plurality-coordinator",
                "plurality-worker",
            ][..],
        ),
        ("coordinator/Cargo.toml", &["tch", "torch-sys", "plurality-worker", "plurality-simulation"][..]),
        (
            "worker/Cargo.toml",
            &["candle-core", "candle-nn", "sqlx", "plurality-coordinator", "plurality-simulation"][..],
        ),
        ("simulation/Cargo.toml", &["tch", "torch-sys", "candle-core", "candle-nn", "sqlx"][..]),
        ("failpoints/Cargo.toml", &["tokio", "plurality-common", "plurality-coordinator", "plurality-worker"][..]),
        ("proto/Cargo.toml", &["plurality-common", "plurality-coordinator", "plurality-worker"][..]),
    ] {
        let named = dependencies(manifest);
        assert!(!named.is_empty(), "{manifest} names no dependencies: the test reads it wrongly");
        for name in forbidden {
            assert!(!named.contains(*name), "{manifest} must not depend on {name}");
        }
    }
}

#[test]
fn generated_types_appear_only_where_messages_enter_and_leave() {
    let inner = ["coordinator/src/core", "coordinator/src/store", "coordinator/src/verify", "coordinator/src/report"];
    for folder in inner {
        assert_none(lines_naming(&sources(folder), &["plurality_proto", "v1"]));
    }
    let common: Vec<_> =
        sources("common/src").into_iter().filter(|source| source.path != "common/src/wire.rs").collect();
    assert_none(lines_naming(&common, &["plurality_proto"]));
}

/// Where tasks and threads may be started: each of these keeps the handle and waits for it, or ends with the process.
const STARTERS: [&str; 5] = [
    "coordinator/src/driver.rs",
    "coordinator/src/local_workers/mod.rs",
    "coordinator/src/server.rs",
    "worker/src/agent/session.rs",
    "worker/src/torch/pipe.rs",
];

#[test]
fn every_channel_is_bounded_by_a_named_constant() {
    for folder in ["coordinator/src", "worker/src"] {
        let sources = sources(folder);
        assert_none(lines_naming(&sources, &["unbounded_channel", "unbounded"]));
        let mut numbered = Vec::new();
        for source in sources.iter().filter(|source| !source.is_test()) {
            for (number, line) in source.code_lines() {
                let capacity = line.split("mpsc::channel(").nth(1).and_then(|rest| rest.chars().next());
                if capacity.is_some_and(|first| first.is_ascii_digit()) {
                    numbered.push(format!("{}:{number}: {}", source.path, line.trim()));
                }
            }
        }
        assert_none(numbered);
    }
}

#[test]
fn tasks_and_threads_are_started_in_few_places() {
    for folder in ["coordinator/src", "worker/src"] {
        for source in sources(folder).iter().filter(|source| !source.is_test()) {
            for (number, line) in source.code_lines() {
                let starts = line.contains("tokio::spawn(") || line.contains("thread::spawn(");
                let is_allowed = STARTERS.contains(&source.path.as_str());
                assert!(!starts || is_allowed, "{}:{number} starts a task: {}", source.path, line.trim());
            }
        }
    }
}

#[test]
fn every_source_file_begins_with_its_subject() {
    let mut silent = Vec::new();
    for folder in ["proto", "common", "failpoints", "coordinator", "worker", "simulation", "tests"] {
        for source in sources(folder) {
            if !source.text.starts_with("//!") {
                silent.push(format!("{} has no module doc", source.path));
            }
        }
    }
    assert_none(silent);
}

#[test]
fn no_test_is_switched_off() {
    let mut found = Vec::new();
    for folder in ["common", "failpoints", "coordinator", "worker", "simulation", "tests"] {
        for source in sources(folder).iter().filter(|source| source.path != "tests/tests/architecture.rs") {
            for (number, line) in source.text.lines().enumerate() {
                if ["#[ignore", "#[should_panic", "#[allow("].iter().any(|mark| line.trim_start().starts_with(mark)) {
                    found.push(format!("{}:{}: {}", source.path, number + 1, line.trim()));
                }
            }
        }
    }
    assert_none(found);
}

#[test]
fn every_link_in_the_papers_leads_somewhere() {
    let papers =
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/mnist/README.md", "docs/limits.md"];
    let mut dead = Vec::new();
    for paper in papers {
        let path = root().join(paper);
        let text = fs::read_to_string(&path).unwrap();
        let links = text.match_indices("](").map(|(at, _)| text[at + 2..].split(')').next().unwrap());
        let local: Vec<_> = links.filter(|link| !link.contains("://") && !link.starts_with('#')).collect();
        for link in local {
            if !path.parent().unwrap().join(link.split('#').next().unwrap()).exists() {
                dead.push(format!("{paper} links to {link}"));
            }
        }
        if text.contains("TO-FILL") || text.contains("TO COMPLETE") {
            dead.push(format!("{paper} is not finished"));
        }
    }
    assert_none(dead);
}
