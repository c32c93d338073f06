//! Every place at which a process can be made to die, and a process that dies there: nothing that counts is lost.
//!
//! Each test lays out one strike, sees that it kills, lets whoever starts the process start it again, and then holds the run to
//! the bytes of one that was not disturbed, and the state folder to `coordinator fsck`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::{
    collections::BTreeSet,
    fs,
    process::{Command, Stdio},
};

use plurality_failpoints::{FILE_VARIABLE, Point, Strike};
use plurality_tests::{cluster::binary, workspace::sources};
use tempfile::TempDir;

/// Makes a test of each strike, and a list of them all.
macro_rules! strikes {
    ($list:ident, $check:ident, $($name:ident: $strike:literal,)+) => {
        pub const $list: &[&str] = &[$($strike),+];
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                $check($strike).await;
            }
        )+
    };
}

mod a_coordinator_dies;
mod a_coordinator_dies_before_a_worker_made_of_calls;
mod a_coordinator_dies_beside_its_worker;
mod a_coordinator_dies_in_an_old_folder;
mod a_ladder_dies;
mod a_one_run_dies;
mod a_trainer_dies;
mod a_worker_dies;

fn all_strikes() -> Vec<Strike> {
    let lists = [
        a_coordinator_dies::ALL,
        a_coordinator_dies_beside_its_worker::ALL,
        a_coordinator_dies_before_a_worker_made_of_calls::ALL,
        a_coordinator_dies_in_an_old_folder::ALL,
        a_ladder_dies::ALL,
        a_one_run_dies::ALL,
        a_trainer_dies::ALL,
        a_worker_dies::ALL,
    ];
    lists.concat().concat().iter().map(|text| text.parse().unwrap()).collect()
}

/// Reads the kinds of events, as the log names them, out of the source.
fn kinds_of_events() -> BTreeSet<String> {
    let events = sources("coordinator/src/core").into_iter().find(|source| source.path.ends_with("/event.rs")).unwrap();
    let (_, variants) = events.text.split_once("pub enum Event {\n").unwrap();
    let (variants, _) = variants.split_once("\n}\n").unwrap();
    let names = variants.lines().filter_map(|line| line.strip_prefix("    ")?.strip_suffix(" {"));
    names.map(in_kebab_case).collect()
}

fn in_kebab_case(name: &str) -> String {
    let words = name.chars().enumerate().map(|(index, letter)| {
        let hyphen = if letter.is_uppercase() && index > 0 { "-" } else { "" };
        format!("{hyphen}{}", letter.to_lowercase())
    });
    words.collect()
}

#[test]
fn every_failpoint_of_every_program_is_struck() {
    let struck: BTreeSet<Point> = all_strikes().iter().map(|strike| strike.point).collect();
    assert_eq!(struck, Point::ALL.iter().copied().collect());
}

#[test]
fn a_coordinator_dies_before_and_after_it_stores_an_event_of_every_kind() {
    let strikes = all_strikes();
    for point in [Point::EventsDecided, Point::EventsStored] {
        let struck = strikes.iter().filter(|strike| strike.point == point).filter_map(|strike| strike.detail.clone());
        assert_eq!(struck.collect::<BTreeSet<_>>(), kinds_of_events(), "{point:?}");
    }
}

#[test]
fn every_program_refuses_a_strike_at_a_place_that_it_does_not_know() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("strike");
    fs::write(&file, "nowhere").unwrap();
    for (program, arguments, code) in [
        ("coordinator", &["recipes"][..], 2),
        ("worker", &["--connect", "127.0.0.1:1"][..], 2),
        ("worker-trainer", &["--check"][..], 1),
    ] {
        let output =
            Command::new(binary(program)).args(arguments).env(FILE_VARIABLE, &file).stdin(Stdio::null()).output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(code), "{program}: {output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("\"nowhere\", which is no failpoint"), "{program}: {said}");
    }
}
