//! The simulation can fail: a cluster with a mistake built in is found out by one of the first seeds.

use plurality_simulation::{cluster::simulate, plan::Sabotage};

/// Seeds within which every mistake is found.
const SEEDS: u64 = 100;

/// Simulates seed after seed until one is found out; returns what is found.
fn found(sabotage: Sabotage) -> String {
    let violations =
        (0..SEEDS).filter_map(|seed| simulate(seed, sabotage, false).expect("the machine can simulate").violation);
    violations.take(1).next().unwrap_or_else(|| panic!("{sabotage:?} goes unnoticed in {SEEDS} seeds"))
}

#[test]
fn a_store_that_forgets_what_it_has_acknowledged_is_found_out() {
    let violation = found(Sabotage::StoreForgets);
    assert!(violation.contains("acknowledged events"), "{violation}");
}

#[test]
fn a_commit_that_is_answered_in_two_ways_is_found_out() {
    let violation = found(Sabotage::CommitsAreAnsweredAtRandom);
    assert!(violation.contains("after it was Refused"), "{violation}");
}

#[test]
fn a_run_that_does_not_end_is_found_out() {
    let violation = found(Sabotage::VerificationStops);
    assert!(violation.contains("runs without an end"), "{violation}");
}

#[test]
fn a_training_that_is_resumed_wrongly_is_found_out() {
    let violation = found(Sabotage::ResumeForgetsAStep);
    assert!(violation.contains("other bytes than an undisturbed training"), "{violation}");
}

#[test]
fn a_low_disk_that_is_charged_to_a_member_is_found_out() {
    let violation = found(Sabotage::LowDiskIsFinal);
    assert!(violation.contains("because the coordinator's disk is low"), "{violation}");
}

#[test]
fn a_disk_that_stays_full_is_found_out() {
    let violation = found(Sabotage::DiskStaysFull);
    assert!(violation.contains("runs without an end"), "{violation}");
}

#[test]
fn a_run_that_nobody_resumes_is_found_out() {
    let violation = found(Sabotage::PausesLast);
    assert!(violation.contains("runs without an end"), "{violation}");
}

#[test]
fn a_quorum_that_is_not_passed_on_is_found_out() {
    let violation = found(Sabotage::QuorumsAreForgotten);
    assert!(violation.contains("asked for was"), "{violation}");
}
