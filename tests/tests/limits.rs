//! The table of limits in `docs/limits.md` says what the source says.

use std::fs;

use plurality_common::limits;
use plurality_tests::workspace::root;

#[test]
fn every_limit_in_the_papers_is_the_one_in_the_source() {
    let paper = fs::read_to_string(root().join("docs/limits.md")).unwrap();
    let mut named = Vec::new();
    for line in paper.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        let [name, value, _, _, file] = cells[..] else { panic!("expected five cells, found {line}") };
        let source = fs::read_to_string(root().join(file)).unwrap();
        let line = source.lines().find(|line| line.contains(&format!("const {name}: ")));
        let line = line.unwrap_or_else(|| panic!("{file} has no constant {name}"));
        let (_, found) = line.trim_end_matches(';').split_once(" = ").unwrap();
        assert_eq!(value, found, "{name} in {file}");
        named.push(name.to_owned());
    }
    // What both sides agree on is in the table, all of it but spans of time and the protocol.
    let source = fs::read_to_string(root().join("common/src/limits.rs")).unwrap();
    let constants = source.lines().filter_map(|line| line.strip_prefix("pub const ")?.split_once(": "));
    let counts = constants.filter(|(name, kind)| !kind.starts_with("Duration") && !name.starts_with("PROTOCOL"));
    for (name, _) in counts {
        assert!(named.iter().any(|one| one == name), "docs/limits.md lacks {name}");
    }
}

#[test]
fn the_limits_fit_into_one_another() {
    const {
        assert!(limits::CHUNK_BYTES < limits::MESSAGE_BYTES_MAX);
        assert!(limits::UPLOAD_BYTES_MAX >= limits::BLOB_BYTES_MAX, "the largest blob could never be sent");
        assert!(limits::UPLOADS_PER_CONNECTION_MAX <= limits::UPLOADS_AT_ONCE_MAX);
        assert!(limits::UPLOADS_PER_CONNECTION_MAX < limits::CALLS_PER_CONNECTION_MAX as usize);
    }
}
