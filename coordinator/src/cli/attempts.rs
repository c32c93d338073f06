//! The attempts of a run for people: who tried, on what, and from which step.

use std::fmt::Write as _;

use plurality_common::attempt::DeterminismClass;

use super::tables::table;
use crate::client::view::{Attempt, Member};

/// Returns a line for each attempt, each class in full, and what went wrong with snapshots; empty without attempts.
///
/// An attempt is named by its member and its number, a class by a number: there are few, and their names are long.
pub fn attempts(members: &[Member]) -> String {
    let attempts: Vec<(String, &Attempt)> = members
        .iter()
        .flat_map(|member| {
            let numbered = (1..).zip(&member.attempt_list);
            numbered.map(|(number, attempt)| (format!("{}.{number}", member.index), attempt))
        })
        .collect();
    if attempts.is_empty() {
        return String::new();
    }
    let mut classes: Vec<&DeterminismClass> = Vec::new();
    let header = ["attempt", "worker", "status", "resumed at", "snapshot", "lost", "class"];
    let mut table = table(header, &[3, 4, 5, 6]);
    for (name, attempt) in &attempts {
        table.add_row([
            name.clone(),
            attempt.worker_name.clone(),
            format!("{}{}", attempt.status.word(), if attempt.is_spare { " (spare)" } else { "" }),
            if attempt.resumed_step > 0 { format!("step {}", attempt.resumed_step) } else { String::new() },
            attempt.snapshot_step.map_or_else(String::new, |step| format!("step {step}")),
            if attempt.lost_steps > 0 { format!("{:.1} s", attempt.lost_training_seconds) } else { String::new() },
            attempt.class.as_ref().map_or_else(String::new, |class| number_of(class, &mut classes).to_string()),
        ]);
    }
    let mut text = format!("\n\n{}\n", table.trim_fmt());
    for (number, class) in (1..).zip(classes) {
        write!(text, "\nclass {number}: {class}").expect("text can always be written to");
    }
    for (name, attempt) in &attempts {
        for note in &attempt.notes {
            write!(text, "\nattempt {name}: {note}").expect("text can always be written to");
        }
    }
    text
}

/// Returns the number of a class among `seen`, from 1; a new one is added.
fn number_of<'a>(class: &'a DeterminismClass, seen: &mut Vec<&'a DeterminismClass>) -> usize {
    let place = seen.iter().position(|seen| *seen == class).unwrap_or_else(|| {
        seen.push(class);
        seen.len() - 1
    });
    place + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::view::{AttemptStatus, MemberStatus};

    fn class(device_model: &str) -> DeterminismClass {
        DeterminismClass {
            libtorch_version: "2.11.0".to_owned(),
            device_model: device_model.to_owned(),
            instruction_set: "AVX512".to_owned(),
            threads: 1,
            flags: "mkldnn=1".to_owned(),
            trainer_version: "0.1.0".to_owned(),
        }
    }

    fn attempt(worker: &str, status: AttemptStatus, device_model: Option<&str>) -> Attempt {
        Attempt {
            attempt_id: "0".to_owned(),
            worker_name: worker.to_owned(),
            status,
            class: device_model.map(class),
            resumed_step: 0,
            snapshot_step: None,
            lost_training_seconds: 0.0,
            lost_steps: 0,
            is_spare: false,
            notes: Vec::new(),
        }
    }

    fn member(index: u32, attempt_list: Vec<Attempt>) -> Member {
        Member {
            index,
            status: MemberStatus::Active,
            attempts: u32::try_from(attempt_list.len()).unwrap(),
            worker_name: String::new(),
            progress: None,
            test_correct: None,
            validation_accuracy: None,
            train_seconds: None,
            failures: Vec::new(),
            waiting: String::new(),
            attempt_list,
        }
    }

    #[test]
    fn each_attempt_is_shown_with_its_class_and_the_step_it_resumed_from() {
        let lost = Attempt {
            snapshot_step: Some(12_000),
            lost_training_seconds: 61.5,
            lost_steps: 400,
            ..attempt("anna", AttemptStatus::Lost, Some("abacus"))
        };
        let resumed = Attempt {
            resumed_step: 8000,
            notes: vec!["snapshot of step 12000 refused: header is damaged".to_owned()],
            ..attempt("ben", AttemptStatus::Running, Some("abacus"))
        };
        let other = attempt("clara", AttemptStatus::Won, Some("slide rule"));
        let members = [
            member(0, vec![lost, resumed]),
            member(1, vec![other]),
            member(2, vec![attempt("anna", AttemptStatus::Offered, None)]),
            member(3, Vec::new()),
        ];
        insta::assert_snapshot!(attempts(&members).trim_start(), @r"
        attempt  worker  status   resumed at    snapshot    lost  class
        0.1      anna    lost                 step 12000  61.5 s      1
        0.2      ben     running   step 8000                          1
        1.1      clara   won                                          2
        2.1      anna    offered

        class 1: libtorch 2.11.0 / abacus / AVX512 / 1 threads / mkldnn=1 / trainer 0.1.0
        class 2: libtorch 2.11.0 / slide rule / AVX512 / 1 threads / mkldnn=1 / trainer 0.1.0
        attempt 0.2: snapshot of step 12000 refused: header is damaged
        ");
    }

    #[test]
    fn without_attempts_nothing_is_shown() {
        assert_eq!(attempts(&[member(0, Vec::new())]), "");
    }
}
