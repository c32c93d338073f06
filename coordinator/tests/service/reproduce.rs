//! `coordinator reproduce` as it is typed, with workers made of calls.

use plurality_common::weights::Metadata;
use plurality_coordinator::report::Report;

use super::*;

/// What the second training gives.
#[derive(Clone, Copy)]
struct Again {
    /// The value of every weight; the first training has zeros.
    weight: f32,
    instruction_set: &'static str,
}

/// Trains and hands over the next member; returns its number.
async fn train(worker: &mut FakeWorker, again: Again) -> u32 {
    let start = worker.start().await;
    let trained = Trained::with_weights(&start, again.weight);
    worker.send(&trained).await;
    let class = v1::DeterminismClass { instruction_set: again.instruction_set.to_owned(), ..class() };
    let answer = worker.commit_as(&start, &trained, class).await;
    assert_eq!(answer.outcome(), v1::CommitOutcome::Accepted, "{}", answer.message);
    start.member
}

fn coordinator(house: &House, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coordinator"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PLURALITY_")) {
        command.env_remove(name);
    }
    let server = house.server.address().to_string();
    command.args(arguments).args(["--server", &server]).env_remove("RUST_LOG").kill_on_drop(true);
    command.current_dir(house.folder.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Has member 1 of two trained again; returns the exit code and what was said on both outputs.
async fn reproduced(again: Again, arguments: &[&str]) -> (Option<i32>, String, String) {
    let house = House::open().await;
    let mut worker = FakeWorker::connect(&house).await;
    let run = house.submit(2).await.run_id;
    worker.do_one().await;
    worker.do_one().await;
    let mut client = house.client().await;
    House::last_completed(&mut client).await;

    let child = coordinator(&house, &[&["reproduce", "last", "1"], arguments].concat()).spawn().unwrap();
    assert_eq!(train(&mut worker, again).await, 1, "the member keeps its number");
    let output = timeout(DEADLINE, child.wait_with_output()).await.expect("it ends in time").unwrap();
    let report: Report = serde_json::from_str(&client.report("last").await.unwrap().json).unwrap();
    assert_eq!((report.members[0].index, report.members[0].seed.as_str()), (1, "7/1"));
    let written = coordinator(&house, &["report", "last", "--out", "again"]).output().await.unwrap();
    assert!(written.status.success(), "{written:?}");
    let checkpoint = fs::read(house.folder.path().join("again/members/1.safetensors")).unwrap();
    assert_eq!(Metadata::from_safetensors(&checkpoint).unwrap().member, 1);

    let second = client.get("last").await.unwrap().run_id;
    let renamed = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().replace(&run, "FIRST").replace(&second, "SECOND");
    (output.status.code(), renamed(output.stdout), renamed(output.stderr))
}

#[tokio::test]
async fn a_member_with_the_same_bytes_is_identical() {
    let (code, told, said) = reproduced(Again { weight: 0.0, instruction_set: "NONE" }, &[]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(told.starts_with("member 1 of run FIRST is identical\n"), "{told}");
    assert!(said.contains("run SECOND trains member 1 of run FIRST again\n"), "{said}");
}

#[tokio::test]
async fn other_bytes_of_the_same_class_are_an_error_of_its_own() {
    let (code, told, said) = reproduced(Again { weight: 0.25, instruction_set: "NONE" }, &[]).await;
    assert_eq!(code, Some(6), "{said}");
    for part in ["not identical, though", "0 of 20 labels differ", "14 of 20 test images right"] {
        assert!(told.contains(part), "does not say {part:?}: {told}");
    }
    assert!(said.contains("error: member 1 of run FIRST is not identical, though"), "{said}");
}

#[tokio::test]
async fn another_class_is_named_by_the_parts_that_differ() {
    let again = Again { weight: 0.25, instruction_set: "ABACUS" };
    let (code, told, _) = reproduced(again, &[]).await;
    assert_eq!(code, Some(7), "{told}");
    assert!(told.contains("instruction_set: NONE → ABACUS\n"), "{told}");

    let (code, told, _) = reproduced(again, &["--output", "json"]).await;
    assert_eq!(code, Some(7), "{told}");
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&told["verdict"], &told["test_images"]), (&"other-class".into(), &20.into()));
    assert_eq!(told["class_differences"][0]["part"], "instruction_set");
    assert_eq!(told["original"]["run_id"], "FIRST");
}

#[tokio::test]
async fn what_cannot_be_trained_again_is_refused_by_name() {
    let house = House::open().await;
    let run = house.submit(2).await.run_id;
    for (arguments, code, part) in [
        (["reproduce", "last", "2"], 2, "has members 0 to 1, found 2"),
        (["reproduce", "last", "1"], 1, "is not committed"),
        (["reproduce", "nothing", "1"], 1, "no run is called \"nothing\""),
        (["reproduce", run.as_str(), "x"], 2, "MEMBER"),
    ] {
        let output = coordinator(&house, &arguments).output().await.unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(part), "{arguments:?} does not say {part:?}: {said}");
    }
}

#[tokio::test]
async fn without_a_worker_it_waits_and_says_for_what() {
    let house = House::open().await;
    let mut worker = FakeWorker::connect(&house).await;
    house.submit(1).await;
    worker.do_one().await;
    let mut client = house.client().await;
    House::last_completed(&mut client).await;
    client.drain("fake", true).await.unwrap();
    worker.leave().await;

    let mut child = coordinator(&house, &["reproduce", "last", "0"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut said = String::new();
    while !said.contains("no worker is connected: waiting for one, which has to be of the class libtorch 2.11.0") {
        let line = timeout(DEADLINE, lines.next_line()).await.expect("it speaks in time").unwrap();
        said += &line.unwrap_or_else(|| panic!("it ended: {said}"));
    }
    let back = v1::RegisterRequest { instance_id: "instance-2".to_owned(), ..registration() };
    let mut worker = FakeWorker::register(&house, back).await;
    train(&mut worker, Again { weight: 0.0, instruction_set: "NONE" }).await;
    let status = timeout(DEADLINE, child.wait()).await.expect("it ends in time").unwrap();
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn a_damaged_checkpoint_is_made_good_by_training_its_member_again() {
    let house = House::open().await;
    let mut worker = FakeWorker::connect(&house).await;
    house.submit(1).await;
    let start = worker.start().await;
    let result = Trained::of(&start);
    worker.send(&result).await;
    assert_eq!(worker.commit(&start, &result).await.outcome(), v1::CommitOutcome::Accepted);
    let mut client = house.client().await;
    House::last_completed(&mut client).await;
    damage(&house, &result.checkpoint);

    client.reproduce("last", 0).await.unwrap();
    let start = worker.start().await;
    // The damage is in a bit of a file of the right length: only who reads it finds it.
    assert_eq!(worker.commit(&start, &result).await.outcome(), v1::CommitOutcome::BlobsMissing);
    worker.upload(&result.checkpoint, 0).await.unwrap();
    assert_eq!(worker.commit(&start, &result).await.outcome(), v1::CommitOutcome::Accepted);
    House::last_completed(&mut client).await;
    assert_eq!(client.download(BlobRef::of(&result.checkpoint)).await.unwrap(), result.checkpoint);
}
