//! The table of limits in `docs/limits.md` says what the source says, and a coordinator keeps to what its system allows.

use std::{
    fs,
    io::ErrorKind,
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use plurality_common::limits;
use plurality_proto::v1::{ListRequest, run_service_client::RunServiceClient};
use plurality_tests::{
    cluster::{Process, address_in, wait_for},
    workspace::root,
};

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

/// Says whether a connection was taken, by the server's first words, or closed without any; nothing if neither has come yet.
fn is_taken(connection: &TcpStream) -> Option<bool> {
    connection.set_read_timeout(Some(Duration::from_millis(20))).expect("the time is not zero");
    match connection.peek(&mut [0]) {
        Ok(bytes) => Some(bytes > 0),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
        Err(_) => Some(false),
    }
}

#[tokio::test]
async fn a_coordinator_with_few_open_files_refuses_connections_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let arguments = ["serve", "--listen", "127.0.0.1:0", "--state", &state.to_string_lossy()];
    let coordinator = Process::start_with_files(300, "coordinator", &arguments, &folder.path().join("log"));
    let address: SocketAddr =
        wait_for("the coordinator says where it listens", || async { address_in(&coordinator.output()) }).await;
    assert!(coordinator.output().contains("at most 150 connections are taken"), "{}", coordinator.output());

    let connections: Vec<TcpStream> = (0..400).map(|_| TcpStream::connect(address).unwrap()).collect();
    let taken = wait_for("every connection is taken or closed", || async {
        connections.iter().map(is_taken).collect::<Option<Vec<_>>>()
    });
    assert_eq!(taken.await.into_iter().filter(|is_taken| *is_taken).count(), 150);
    drop(connections);
    wait_for("the coordinator takes connections again", || async {
        let mut runs = RunServiceClient::connect(format!("http://{address}")).await.ok()?;
        runs.list(ListRequest::default()).await.ok()
    })
    .await;
}
