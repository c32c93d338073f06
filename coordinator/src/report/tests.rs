//! The report of a small hand-made run, in every form.

use plurality_common::{digest::Digest, recipe::builtin};

use super::*;

/// Labels of the six test images.
const LABELS: [u8; 6] = [0, 1, 2, 0, 1, 2];

/// Predictions of six images that give `labels` the probability `confidence`.
fn predictions(labels: [u8; 6], confidence: f32) -> Predictions {
    let rest = (1.0 - confidence) / 2.0;
    let row = |label: u8| (0..3).map(move |class| if class == label { confidence } else { rest });
    Predictions::new(6, 3, labels.into_iter().flat_map(row).collect()).unwrap()
}

fn member(index: u32, worker: &str, labels: [u8; 6], confidence: f32) -> MemberFacts {
    MemberFacts {
        index,
        worker: worker.to_owned(),
        device: "cpu".to_owned(),
        class: DeterminismClass {
            libtorch_version: "2.11.0".to_owned(),
            device_model: "AMD EPYC".to_owned(),
            instruction_set: "AVX2".to_owned(),
            threads: 1,
            flags: "mkldnn=1".to_owned(),
            trainer_version: "0.1.0".to_owned(),
        },
        checkpoint: BlobRef::of(&[index as u8]),
        validation_accuracy: (index > 0).then(|| 0.95 + f64::from(index) / 100.0),
        train_seconds: 61.25 + f64::from(index),
        train_cpu_seconds: 60.5,
        attempts: index + 1,
        predictions: predictions(labels, confidence),
    }
}

/// Three members: image 3 is a tie decided right, image 4 is voted wrong, image 5 is a tie decided wrong.
fn facts() -> RunFacts {
    RunFacts {
        id: RunId::new("01939f3e-0000-7000-8000-000000000001"),
        seed: 42,
        recipe: builtin::by_name("smoke").unwrap(),
        dataset: DatasetRef {
            train_images: BlobRef::of(b"train images"),
            train_labels: BlobRef::of(b"train labels"),
            test_images: BlobRef::of(b"test images"),
        },
        coordinator_version: "0.1.0".to_owned(),
        started: "2001-01-01T00:00:00Z".parse().unwrap(),
        finished: "2001-01-01T00:02:03.5Z".parse().unwrap(),
        lost_training_seconds: 12.345,
        repeated_steps: 678,
        size: 3,
        quorum: 3,
        failed: Vec::new(),
        members: vec![
            member(0, "anna", [0, 1, 2, 0, 0, 0], 0.9),
            member(1, "berta", [0, 1, 2, 1, 0, 1], 0.6),
            member(2, "anna|\u{1b}[31m<b>", [0, 1, 1, 2, 1, 2], 0.8),
        ],
    }
}

fn report() -> Report {
    build(&facts(), &LABELS)
}

/// Snapshots must not depend on the recipe's hyperparameters, which change for good reasons.
fn with_fixed_recipe(mut report: Report) -> Report {
    report.run.recipe.summary = "A summary.".to_owned();
    report.run.recipe_sha256 = Digest::of(b"recipe");
    report
}

#[test]
fn the_vote_and_its_errors_are_those_of_the_members() {
    let report = report();
    let vote = &report.ensemble.majority_vote;
    assert_eq!((vote.correct, vote.total, vote.ties, vote.ties_correct), (4, 6, 2, 1));
    assert_eq!(
        report.misclassified,
        [
            Misclassified { index: 4, label: 1, vote: 0, votes: vec![0, 0, 1] },
            Misclassified { index: 5, label: 2, vote: 0, votes: vec![0, 1, 2] },
        ]
    );
    assert_eq!(report.members.iter().map(|member| member.test_correct).collect::<Vec<_>>(), [4, 3, 4]);
    assert!((report.mean_test_accuracy() - 11.0 / 18.0).abs() < 1e-12);
    assert_eq!(report.members[2].seed, "42/2");
}

#[test]
fn the_recipe_is_named_by_its_digest() {
    assert_eq!(report().run.recipe_sha256, builtin::by_name("smoke").unwrap().digest());
}

#[test]
fn a_report_is_read_back_as_it_was() {
    let report = report();
    assert_eq!(serde_json::from_str::<Report>(&report.to_json()).unwrap(), report);
}

#[test]
fn the_json_is_as_documented() {
    let report = with_fixed_recipe(report());
    let recipe = serde_json::to_value(&report.run.recipe).unwrap();
    let mut json = String::new();
    // The recipe is left out: it stands on the lines from its key to its closing bracket.
    let mut is_recipe = false;
    for line in report.to_json().lines() {
        is_recipe |= line == "    \"recipe\": {";
        if !is_recipe {
            json.push_str(line);
            json.push('\n');
        }
        is_recipe &= line != "    },";
    }
    insta::assert_snapshot!(json);
    let read: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
    assert_eq!(read["run"]["recipe"], recipe);
}

#[test]
fn every_field_of_the_json_is_in_its_documentation() {
    fn names(value: &serde_json::Value, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(fields) => fields.iter().for_each(|(name, value)| {
                found.push(name.clone());
                names(value, found);
            }),
            serde_json::Value::Array(values) => values.iter().for_each(|value| names(value, found)),
            _ => {}
        }
    }
    let documentation = include_str!("../../../docs/report.md");
    let mut json: serde_json::Value = serde_json::from_str(&report().to_json()).unwrap();
    json["run"]["recipe"] = serde_json::Value::Null;
    let mut found = Vec::new();
    names(&json, &mut found);
    for name in found {
        assert!(documentation.contains(&format!("`{name}`")), "docs/report.md lacks `{name}`");
    }
    assert!(documentation.contains(REPORT_FORMAT));
}

#[test]
fn the_markdown_reads_well() {
    insta::assert_snapshot!(markdown(&with_fixed_recipe(report())));
}

#[test]
fn the_terminal_table_reads_well() {
    let table = terminal_table(&report());
    assert!(!table.contains('\u{1b}'), "no colour, and none smuggled in by a worker's name");
    insta::assert_snapshot!(table);
}

#[test]
fn a_perfect_ensemble_of_one_has_a_report_too() {
    let mut facts = facts();
    facts.members = vec![member(0, "anna", LABELS, 0.9)];
    let report = build(&facts, &LABELS);
    assert!(report.misclassified.is_empty());
    assert!(markdown(&report).ends_with("The vote labels every test image right.\n"));
    assert!(terminal_table(&report).contains("0 wrong, no ties"));
}

#[test]
fn a_report_without_some_members_says_how_many_were_enough_and_why_they_failed() {
    let reasons = vec!["anna: trainer crashed: signal 9".to_owned(), "berta: result rejected: <b>".to_owned()];
    let failed = vec![FailedMember { index: 3, reasons }];
    let report = build(&RunFacts { size: 4, quorum: 2, failed, ..facts() }, &LABELS);
    let text = markdown(&report);
    assert!(text.contains("3 of 4 members, quorum 2. The others could not be trained and have no vote:\n"), "{text}");
    let line = r"- member 3: anna: trainer crashed: signal 9; berta: result rejected: \<b\>";
    assert!(text.contains(line), "{text}");
    assert!(terminal_table(&report).contains("\n3 of 4 members, quorum 2; failed: 3.\n"));
}

#[test]
fn a_long_list_of_errors_is_cut_in_the_markdown() {
    let mut report = report();
    report.misclassified = vec![report.misclassified[0].clone(); 202];
    assert!(markdown(&report).ends_with("\n2 more are in `report.json`.\n"));
}

mod picture {
    use image::{GenericImageView, GrayImage};
    use plurality_common::idx::Images;

    use super::*;

    fn with_errors(count: usize, label: u8, vote: u8) -> Report {
        let mut report = report();
        report.misclassified =
            (0..count).map(|index| Misclassified { index, label, vote, votes: vec![vote] }).collect();
        report
    }

    /// Noise, which packs worst.
    fn noise(count: usize, rows: usize, columns: usize) -> Images {
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        Images { count, rows, columns, pixels: (0..count * rows * columns).map(|_| next()).collect() }
    }

    fn decoded(report: &Report, images: &Images) -> GrayImage {
        let png = misclassified_png(report, images);
        image::load_from_memory_with_format(&png, image::ImageFormat::Png).unwrap().to_luma8()
    }

    #[test]
    fn any_number_of_errors_gives_a_picture() {
        for (count, label, vote) in [(0, 0, 0), (1, 4, 9), (7, 0, 1), (33, 2, 7), (500, 3, 5), (2_000, 25, 7)] {
            let picture = decoded(&with_errors(count, label, vote), &noise(count.max(1), 28, 28));
            let (width, height) = picture.dimensions();
            assert!(width > 20 && height > 20, "{count}: {width}×{height}");
            if count > 30 {
                let ratio = f64::from(width) / f64::from(height);
                assert!((0.5..2.0).contains(&ratio), "{count}: {width}×{height}");
            }
        }
    }

    #[test]
    fn images_larger_and_smaller_than_mnist_fit() {
        for (rows, columns) in [(1, 1), (3, 40), (64, 64), (200, 100)] {
            decoded(&with_errors(9, 1, 2), &noise(9, rows, columns));
        }
    }

    #[test]
    fn the_report_of_an_untrained_ensemble_still_fits_into_a_message() {
        let mut report = with_errors(10_000, 3, 8);
        report.misclassified.iter_mut().for_each(|each| each.votes = vec![8; 20]);
        let png = misclassified_png(&report, &mnist_like(10_000));
        let bytes = png.len() + report.to_json().len() + markdown(&report).len();
        assert!(bytes < plurality_common::limits::MESSAGE_BYTES_MAX, "{bytes} bytes");
    }

    #[test]
    fn digits_are_dark_on_light() {
        let images = Images { count: 1, rows: 28, columns: 28, pixels: [vec![255; 392], vec![0; 392]].concat() };
        let picture = decoded(&with_errors(1, 1, 7), &images);
        let row = |y: u32| picture.view(8, y, 84, 1).pixels().all(|(_, _, pixel)| pixel.0 == [0]);
        let rows: Vec<bool> = (0..picture.height()).map(row).collect();
        assert_eq!(rows.iter().filter(|is_black| **is_black).count(), 42, "14 rows of ink, three pixels each");
    }

    /// Blank but for a diagonal stroke, about as much ink as a digit.
    fn mnist_like(count: usize) -> Images {
        let mut images = noise(count, 28, 28);
        for (index, pixel) in images.pixels.iter_mut().enumerate() {
            let (row, column) = (index % 784 / 28, index % 28);
            if row.abs_diff(column) > 2 || !(4..24).contains(&row) {
                *pixel = 0;
            }
        }
        images
    }
}
