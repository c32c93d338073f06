//! The stored format, one line for each kind of event: a change here is a change of every log out there.

use super::Event;

const LINES: &str = include_str!("events.v3.jsonl");
/// What versions 1 and 2 wrote.
const OLDER_LINES: &[&str] = &[include_str!("events.v1.jsonl"), include_str!("events.v2.jsonl")];

/// Kinds of events, so that a new one cannot be forgotten below.
fn kind(event: &Event) -> usize {
    match event {
        Event::WorkerRegistered { .. } => 0,
        Event::WorkerDraining { .. } => 1,
        Event::WorkerQuarantined { .. } => 2,
        Event::WorkerReleased { .. } => 3,
        Event::WorkerClosed { .. } => 4,
        Event::RunSubmitted { .. } => 5,
        Event::RunPaused { .. } => 6,
        Event::RunResumed { .. } => 7,
        Event::AttemptOffered { .. } => 8,
        Event::AttemptStarted { .. } => 9,
        Event::AttemptClassified { .. } => 10,
        Event::AttemptResumed { .. } => 11,
        Event::AttemptSnapshotted { .. } => 12,
        Event::SnapshotRefused { .. } => 13,
        Event::AttemptTrained { .. } => 14,
        Event::AttemptUploading { .. } => 15,
        Event::AttemptSuspected { .. } => 16,
        Event::AttemptReturned { .. } => 17,
        Event::AttemptLost { .. } => 18,
        Event::AttemptFailed { .. } => 19,
        Event::AttemptDrained { .. } => 20,
        Event::AttemptSuperseded { .. } => 21,
        Event::ResultReceived { .. } => 22,
        Event::ResultRejected { .. } => 23,
        Event::MemberCommitted { .. } => 24,
        Event::MemberFailed { .. } => 25,
        Event::RunFinished { .. } => 26,
    }
}

#[test]
fn the_stored_format_is_what_it_was() {
    let mut kinds = Vec::new();
    for line in LINES.lines() {
        let event: Event = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert_eq!(serde_json::to_string(&event).unwrap(), line);
        kinds.push(kind(&event));
    }
    kinds.dedup();
    assert_eq!(kinds, (0..=26).collect::<Vec<_>>());
}

#[test]
fn an_event_of_an_older_version_is_an_event_of_this_one() {
    let newer: Vec<Event> = LINES.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for line in OLDER_LINES.iter().flat_map(|lines| lines.lines()) {
        let event: Event = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert!(newer.contains(&event), "{line}");
    }
}

#[test]
fn a_field_that_this_version_does_not_know_is_refused() {
    for line in LINES.lines() {
        let longer = line.replacen('{', "{\"colour\":\"blue\",", 1);
        let error = serde_json::from_str::<Event>(&longer).unwrap_err().to_string();
        assert!(error.contains("unknown field `colour`"), "{error}");
    }
    let unknown = serde_json::from_str::<Event>("{\"event\":\"worker-danced\"}").unwrap_err().to_string();
    assert!(unknown.contains("unknown variant `worker-danced`"), "{unknown}");
}
