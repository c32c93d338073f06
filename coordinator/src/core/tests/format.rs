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
        Event::AttemptOffered { .. } => 6,
        Event::AttemptStarted { .. } => 7,
        Event::AttemptClassified { .. } => 8,
        Event::AttemptResumed { .. } => 9,
        Event::AttemptSnapshotted { .. } => 10,
        Event::SnapshotRefused { .. } => 11,
        Event::AttemptTrained { .. } => 12,
        Event::AttemptUploading { .. } => 13,
        Event::AttemptSuspected { .. } => 14,
        Event::AttemptReturned { .. } => 15,
        Event::AttemptLost { .. } => 16,
        Event::AttemptFailed { .. } => 17,
        Event::AttemptDrained { .. } => 18,
        Event::AttemptSuperseded { .. } => 19,
        Event::ResultReceived { .. } => 20,
        Event::ResultRejected { .. } => 21,
        Event::MemberCommitted { .. } => 22,
        Event::MemberFailed { .. } => 23,
        Event::RunFinished { .. } => 24,
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
    assert_eq!(kinds, (0..=24).collect::<Vec<_>>());
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
