//! A coordinator in the one-run form dies; its worker lives on, and the same command goes on with both.

use std::{fs, os::unix::process::ExitStatusExt as _, path::Path};

use plurality_common::digest::Digest;
use plurality_tests::strikes::{Waiting, check_folder, one_run, recipe, recipe_toml, undisturbed};
use serde_json::Value;
use tempfile::TempDir;

/// All strikes of this file.
pub const ALL: &[&[&str]] = &[WRITING];

strikes! { WRITING, one_run_dies,
    before_the_mark_of_its_run_has_its_name: "file-written/undelivered",
    before_the_mark_of_its_run_is_synced: "file-named/undelivered",
    when_the_report_before_is_removed: "file-removed/report.json",
    when_a_member_of_the_report_before_is_removed: "file-removed/7.safetensors",
    before_a_checkpoint_has_its_name: "file-written/0.safetensors",
    when_one_of_two_checkpoints_is_written: "file-named/0.safetensors",
    before_the_predictions_have_their_name: "file-written/predictions.safetensors",
    before_its_report_has_its_name: "file-written/report.json",
    before_its_report_is_synced: "file-named/report.json",
    when_the_mark_of_its_run_is_removed: "file-removed/undelivered",
}

async fn one_run_dies(strike: &str) {
    let strike = Waiting::new(strike);
    let folder = TempDir::new().unwrap();
    let recipe = folder.path().join("recipe.toml");
    fs::write(&recipe, recipe_toml()).unwrap();
    lay_out_report_before(&folder.path().join("out"));
    let mut first = one_run(folder.path(), &recipe, "first.log", Some(strike.file()));
    assert_eq!(first.ended().await.signal(), Some(9), "{}", first.output());
    strike.has_struck().await;
    let mut second = one_run(folder.path(), &recipe, "second.log", None);
    assert!(second.ended().await.success(), "{}", second.output());
    assert!(second.output().contains("took back the local worker"), "{}", second.output());
    check_results(&folder.path().join("out")).await;
    let marks = fs::read_dir(folder.path().join("state/undelivered")).unwrap();
    assert_eq!(marks.count(), 0, "a run whose results are written is still marked");
    check_folder(&folder.path().join("state"));
}

/// Leaves what must not be taken for the results of the run: the report of another, and a member that only that one has.
fn lay_out_report_before(out: &Path) {
    fs::create_dir_all(out.join("members")).unwrap();
    fs::write(out.join("report.json"), "{}").unwrap();
    fs::write(out.join("members/7.safetensors"), "").unwrap();
}

/// Holds a folder of results to those of a run that nothing disturbed.
async fn check_results(out: &Path) {
    let report: Value = serde_json::from_slice(&fs::read(out.join("report.json")).unwrap()).unwrap();
    let members = report["members"].as_array().unwrap();
    let digests: Vec<_> = members.iter().map(|member| member["checkpoint_sha256"].as_str().unwrap()).collect();
    assert_eq!(digests, undisturbed(&recipe()).await);
    assert!(members.iter().all(|member| member["attempts"] == 1), "the worker held its attempts: {members:?}");
    let mut written = fs::read_dir(out.join("members")).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    written.sort();
    let written = written.iter().map(|path| Digest::of(&fs::read(path).unwrap()).to_string());
    assert_eq!(written.collect::<Vec<_>>(), digests);
    let names = fs::read_dir(out).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    assert_eq!(names.filter(|name| name.ends_with(".tmp")).count(), 0, "a half-written file is left behind");
}
