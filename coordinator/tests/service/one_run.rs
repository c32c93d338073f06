//! The program that trains one run, with a worker made of calls.

use tokio::process::ChildStdout;

use super::*;

/// A coordinator program that trains one network on what lies in `folder`; returns it, its output, and where it listens.
async fn one_run(folder: &Path) -> (Child, BufReader<ChildStdout>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coordinator"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PLURALITY_")) {
        command.env_remove(name);
    }
    command.args(["--recipe", "tiny.toml", "--data", "data", "--listen", "127.0.0.1:0", "--ensemble", "1"]);
    command.args(["--out", "out"]).current_dir(folder).env_remove("RUST_LOG").kill_on_drop(true);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    timeout(DEADLINE, stdout.read_line(&mut line)).await.expect("it listens in time").unwrap();
    let address = line.trim_end().strip_prefix("listening on ").unwrap().to_owned();
    (child, stdout, address)
}

#[tokio::test]
async fn results_that_could_not_be_written_are_written_by_the_same_command_without_training() {
    let folder = tempfile::tempdir().unwrap();
    write_dataset(&folder.path().join("data"));
    fs::write(folder.path().join("tiny.toml"), RECIPE).unwrap();
    let in_the_way = folder.path().join("out/report.md");
    fs::create_dir_all(&in_the_way).unwrap();

    let (child, _stdout, address) = one_run(folder.path()).await;
    let mut worker = FakeWorker::register_at(&address, registration()).await;
    worker.do_one().await;
    drop(worker);
    let (code, said) = end(child).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("report.md"), "{said}");
    let report = folder.path().join("out/report.json");
    assert!(!report.exists());

    fs::remove_dir(&in_the_way).unwrap();
    // No worker comes this time.
    let (child, _stdout, _) = one_run(folder.path()).await;
    let (code, said) = end(child).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("was trained but its results were not written"), "{said}");
    assert!(report.is_file() && in_the_way.is_file());

    // What was delivered is not delivered again: a new run waits for workers.
    let (child, _stdout, address) = one_run(folder.path()).await;
    let mut worker = FakeWorker::register_at(&address, registration()).await;
    worker.do_one().await;
    drop(worker);
    let (code, said) = end(child).await;
    assert_eq!(code, Some(0), "{said}");
}
