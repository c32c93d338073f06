//! `coordinator ladder` as it is typed, on MNIST, with a worker made of calls.

use plurality_coordinator::ladder::results::Ladder;

use super::*;

/// Test images of MNIST, and how many of them show a 0.
const MNIST_TEST: usize = 10_000;
const MNIST_ZEROS: u32 = 980;

/// A coordinator on MNIST.
async fn house() -> House {
    let folder = tempfile::tempdir().unwrap();
    let settings = ServerSettings { data: None, ..House::settings(folder.path().to_owned()) };
    let server = Server::start(&settings).await.unwrap();
    House { folder, server }
}

fn climb(house: &House, seed: &str) -> Child {
    climb_to(house, "fc100", seed)
}

fn climb_to(house: &House, row: &str, seed: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coordinator"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PLURALITY_")) {
        command.env_remove(name);
    }
    let server = house.server.address().to_string();
    command.args(["ladder", "--rows", row, "--seeds", "2", "--scale", "0.05", "--seed", seed]);
    command.args(["--out", "ladder", "--server", &server]).current_dir(house.folder.path()).env_remove("RUST_LOG");
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap()
}

/// Hands over the next member, a network without weights.
async fn train(worker: &mut FakeWorker) -> v1::Start {
    let start = worker.start().await;
    let trained = Trained::on(&start, InputShape { rows: 28, columns: 28 }, MNIST_TEST, 10, 0.0);
    worker.send(&trained).await;
    let answer = worker.commit(&start, &trained).await;
    assert_eq!(answer.outcome(), v1::CommitOutcome::Accepted, "{}", answer.message);
    start
}

async fn finished(child: Child) -> String {
    let output = timeout(DEADLINE, child.wait_with_output()).await.expect("it ends in time").unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    String::from_utf8(output.stdout).unwrap() + &said
}

fn written(house: &House) -> Ladder {
    let folder = house.folder.path().join("ladder");
    let ladder = Ladder::from_json(&fs::read_to_string(folder.join("ladder.json")).unwrap()).unwrap();
    let page = fs::read_to_string(folder.join("ladder.md")).unwrap();
    assert!(page.contains("| `fc100` | 97.80 | 9.80 ± 0.00 | 2 |"), "{page}");
    assert!(page.contains("| `fc100` | 97.80 | not run |") && page.contains("shortened to 0.05"), "{page}");
    ladder
}

#[tokio::test]
async fn a_row_is_trained_once_and_kept() {
    let house = house().await;
    let mut worker = FakeWorker::connect(&house).await;
    let child = climb(&house, "7");
    let start = train(&mut worker).await;
    let recipe = recipe_from_json(&start.recipe_json).unwrap();
    assert_eq!((recipe.name.as_str(), recipe.training.epochs, start.run_seed), ("fc100-scaled", 3, 7));
    train(&mut worker).await;
    assert!(finished(child).await.contains("row fc100: 9.80 ± 0.00 %"));
    let result = &written(&house).results[0];
    let figures: Vec<_> = result.networks.iter().map(|network| (network.seed.as_str(), network.test.correct)).collect();
    assert_eq!(figures, [("7/0", MNIST_ZEROS), ("7/1", MNIST_ZEROS)]);
    assert_eq!((result.passes, result.classes[0].device_model.as_str()), (3, "paper"));

    // Nobody trains: the row is there.
    assert!(finished(climb(&house, "7")).await.contains("row fc100 is done already"));
    assert_eq!(written(&house).results.len(), 1);
}

#[tokio::test]
async fn what_was_trained_while_the_command_was_away_is_taken() {
    let house = house().await;
    let mut worker = FakeWorker::connect(&house).await;
    let mut child = climb(&house, "8");
    train(&mut worker).await;
    child.kill().await.unwrap();
    // Another time it goes on with what was begun, and is killed again before the end.
    let mut child = climb(&house, "8");
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = timeout(DEADLINE, lines.next_line()).await.expect("it speaks in time").unwrap().unwrap();
    assert!(line.contains("goes on: recipe fc100-scaled, members 0 to 1"), "{line}");
    child.kill().await.unwrap();
    train(&mut worker).await;
    let mut client = house.client().await;
    House::last_completed(&mut client).await;

    assert!(finished(climb(&house, "8")).await.contains("has completed before"));
    assert_eq!(written(&house).results[0].seed, 8);
    assert_eq!(client.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn two_at_a_time_keep_the_rows_of_both() {
    let house = house().await;
    let mut worker = FakeWorker::connect(&house).await;
    let mut client = house.client().await;
    let mut begun = async |runs: usize| {
        timeout(DEADLINE, async { while client.list().await.unwrap().len() < runs {} })
            .await
            .expect("it begins in time");
    };
    let first = climb_to(&house, "fc100", "7");
    begun(1).await;
    let second = climb_to(&house, "fc-deep", "7");
    begun(2).await;
    // The newest run is trained before the others.
    for child in [second, first] {
        train(&mut worker).await;
        train(&mut worker).await;
        finished(child).await;
    }
    let rows: Vec<_> = written(&house).results.into_iter().map(|result| result.row).collect();
    assert_eq!(rows, ["fc100", "fc-deep"]);
}

#[tokio::test]
async fn another_dataset_is_refused() {
    let desk = tempfile::tempdir().unwrap();
    write_dataset(&desk.path().join("data"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_coordinator"));
    command.args(["ladder", "--rows", "fc100", "--data", "data", "--listen", "127.0.0.1:0"]).current_dir(desk.path());
    let output = timeout(DEADLINE, command.output()).await.expect("it ends in time").unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("MNIST"), "{said}");
}
