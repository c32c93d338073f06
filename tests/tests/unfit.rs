//! Runs with a member that cannot be trained, with a worker that spoils all that it gets, and with one that is too slow: between
//! real processes, with real trainers but for what is said of them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use plurality_proto::v1::{self, AttemptStatus, RunStatus};
use plurality_tests::{
    cluster::{Cluster, OFTEN, Process, binary, wait_for},
    recipes,
};
use serde_json::Value;
use tempfile::TempDir;

/// What a numeric failure is called.
const DIVERGED: &str = "w: loss or weights became infinite or not a number: ";
/// What the coordinator measures a rate from at least, in seconds of training.
const MEASURED_SECONDS: f64 = 20.0;
/// How long a slowed process runs at a time.
const MOVING: Duration = Duration::from_millis(20);
/// Passes of a member that is trained as soon as a trainer has begun.
const SHORT: u32 = 20;
/// Passes of a member that takes some seconds where nothing slows it.
const LONG: u32 = 500;

/// Writes a trainer below `folder` that runs the shell commands `training` in place of a training, with the trainer's path in
/// `$real`; checks of the machine are the real trainer's. Returns its path.
fn trainer(folder: &Path, training: &str) -> String {
    let path = folder.join("trainer");
    let real = binary("worker-trainer");
    let check = r#"[[ " $* " == *" --check "* ]] && exec "$real" "$@""#;
    let script = format!("#!/usr/bin/env bash\nreal='{}'\n{check}\n{training}\n", real.display());
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_string_lossy().into_owned()
}

/// The one-run form with one worker.
struct OneRun {
    coordinator: Process,
    _worker: Process,
    folder: TempDir,
}

impl OneRun {
    /// Trains three members, of which number 1 diverges, because its trainer is given another learning rate.
    async fn with_a_hopeless_member(arguments: &[&str]) -> Self {
        let folder = TempDir::new().unwrap();
        let below = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
        fs::write(below("small.toml"), recipes::small_toml(SHORT)).unwrap();
        let (recipe, state, out) = (below("small.toml"), below("state"), below("out"));
        let place = ["--listen", "127.0.0.1:0", "--state", &state, "--out", &out];
        let request = ["--ensemble", "3", "--seed", "1", "--recipe", &recipe];
        let arguments = [&place[..], &request, arguments].concat();
        let coordinator = Process::start("coordinator", &arguments, &folder.path().join("coordinator.log"));
        let address = wait_for("the coordinator says where it listens", || async {
            let output = coordinator.output();
            let (_, rest) = output.split_once("worker --connect ")?;
            Some(rest.split_once('\n')?.0.to_owned())
        })
        .await;
        // What follows the specification reaches the trainer as well.
        let diverging = r#"
            IFS= read -r spec
            [[ $spec == *'"member":1,'* ]] && spec=${spec/'"rate":0.01'/'"rate":1e30'}
            exec "$real" "$@" < <(printf '%s\n' "$spec"; exec cat 2>/dev/null)"#;
        let (trainer, cache) = (trainer(folder.path(), diverging), below("cache"));
        let arguments =
            ["--connect", &address, "--slots", "1", "--name", "w", "--cache", &cache, "--trainer", &trainer];
        let worker = Process::start("worker", &arguments, &folder.path().join("worker.log"));
        Self { coordinator, _worker: worker, folder }
    }

    /// Waits until the coordinator has ended, and returns its exit code.
    async fn code(&mut self) -> Option<i32> {
        self.coordinator.ended().await.code()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_with_a_quorum_is_completed_without_the_member_that_cannot_be_trained() {
    let mut run = OneRun::with_a_hopeless_member(&["--quorum", "2"]).await;
    assert_eq!(run.code().await, Some(0), "{}", run.coordinator.output());
    let out = run.folder.path().join("out");
    let report: Value = serde_json::from_slice(&fs::read(out.join("report.json")).unwrap()).unwrap();
    assert_eq!((&report["run"]["size"], &report["run"]["quorum"]), (&3.into(), &2.into()));
    let members = report["members"].as_array().unwrap();
    let facts: Vec<_> = members.iter().map(|member| (member["index"].as_u64(), member["attempts"].as_u64())).collect();
    assert_eq!(facts, [(Some(0), Some(1)), (Some(2), Some(1))]);
    let [failed] = &report["failed"].as_array().unwrap()[..] else { panic!("not one failed: {report}") };
    assert_eq!(failed["index"], 1);
    let reasons: Vec<&str> = failed["reasons"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect();
    assert!(reasons.len() == 2 && reasons.iter().all(|reason| reason.starts_with(DIVERGED)), "{reasons:?}");
    let votes =
        report["misclassified"].as_array().unwrap().iter().map(|image| image["votes"].as_array().unwrap().len());
    assert!(votes.clone().count() > 0 && votes.clone().all(|votes| votes == 2), "the failed member has no vote");
    let markdown = fs::read_to_string(out.join("report.md")).unwrap();
    assert!(markdown.contains("2 of 3 members, quorum 2"), "{markdown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_without_a_quorum_fails_at_once_and_says_why_every_attempt_did() {
    let mut run = OneRun::with_a_hopeless_member(&[]).await;
    let code = run.code().await;
    let output = run.coordinator.output();
    assert_eq!(code, Some(3), "{output}");
    let errors: Vec<&str> = output.lines().filter(|line| line.starts_with("error: ")).collect();
    let [error] = errors[..] else { panic!("not one message:\n{output}") };
    let (_, reasons) = error.split_once(" failed: member 1 failed after 2 attempts: ").unwrap();
    assert!(reasons.starts_with(DIVERGED) && reasons.matches(DIVERGED).count() == 2, "{error}");
    assert!(!output.contains("member 2: started"), "it went on after it could not be completed any more:\n{output}");
    assert!(!run.folder.path().join("out/report.json").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_spoils_all_that_it_gets_is_quarantined_and_another_finishes_the_run() {
    let cluster = Cluster::start().await;
    let failing = r#"
        echo '{"event":"failed","kind":"internal","message":"this machine spoils what it gets"}'
        exit 1"#;
    let trainer = trainer(cluster.folder.path(), failing);
    let _workers = [cluster.worker("sound"), cluster.worker_with("spoiler", &["--trainer", &trainer])];
    wait_for("both workers are here", || async { (cluster.workers().await.len() == 2).then_some(()) }).await;
    // The other one is busy while this one fails at once: it must not use up a member's attempts meanwhile.
    let run = cluster.submit(&recipes::small(SHORT).to_canonical_json(), 5, 1).await;
    let quarantined = wait_for("the worker is in quarantine", || async {
        let found = cluster.workers().await.into_iter().find(|worker| !worker.quarantine.is_empty());
        if found.is_none() {
            let run = cluster.run(&run).await?;
            assert_eq!(run.status(), RunStatus::Running, "the run ended before: {run:?}");
        }
        found
    })
    .await;
    assert_eq!(quarantined.name, "spoiler", "{quarantined:?}");
    let reason = "failed 3 members within 15m, the last: trainer crashed: this machine spoils what it gets";
    assert_eq!(quarantined.quarantine, reason);
    let shown = shown(&cluster, "workers").await;
    let row = shown.lines().find(|line| line.contains(" spoiler "));
    assert!(row.is_some_and(|row| row.contains(" quarantined ")), "{shown}");
    assert!(shown.contains(&format!("spoiler is in quarantine: it {reason}")), "{shown}");
    let said = cluster.coordinator.output();
    assert!(said.contains(&format!("worker in quarantine: it {reason}")), "{said}");

    let run = cluster.completed(&run).await;
    assert!(run.members.iter().all(|member| member.worker_name == "sound"), "{run:?}");
    let failures: Vec<usize> = run.members.iter().map(|member| member.failures.len()).collect();
    assert_eq!(failures.iter().filter(|failures| **failures > 0).count(), 3, "{failures:?}");
}

/// Returns what `coordinator` prints when it is asked for `what`.
async fn shown(cluster: &Cluster, what: &str) -> String {
    let log = cluster.folder.path().join(format!("{what}.log"));
    let mut client = Process::start("coordinator", &[what, "--server", &cluster.address.to_string()], &log);
    assert!(client.ended().await.success(), "{}", client.output());
    client.output()
}

/// Processes that stand still most of the time; they go on as usual when this is dropped.
struct Slowed {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Slowed {
    /// Lets processes `ids` run for [`MOVING`], then stand still for `still`, and so on.
    #[expect(clippy::disallowed_methods, reason = "nothing is waited for: that time passes is what goes wrong")]
    fn begin(ids: Vec<u32>, still: Duration) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let is_over_there = Arc::clone(&is_over);
        let thread = thread::spawn(move || {
            while !is_over_there.load(Ordering::Relaxed) {
                signal(&ids, "-STOP");
                thread::sleep(still);
                signal(&ids, "-CONT");
                thread::sleep(MOVING);
            }
        });
        Self { is_over, thread: Some(thread) }
    }
}

impl Drop for Slowed {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

/// Sends a signal to processes, of which some may have ended.
fn signal(ids: &[u32], signal: &str) {
    let ids = ids.iter().map(u32::to_string);
    let _ = Command::new("kill").arg(signal).args(ids).stderr(Stdio::null()).status();
}

/// Waits until `worker` takes steps, and slows its trainers.
async fn slowed(cluster: &Cluster, worker: &Process, still: Duration) -> Slowed {
    let trainers = cluster.trainers(worker).await;
    wait_for("the trainer takes steps", || async { worker.output().contains(" steps in ").then_some(()) }).await;
    Slowed::begin(trainers, still)
}

/// Waits until the only attempt of a run has trained for long enough that its rate is known.
async fn measured(cluster: &Cluster, run: &str) {
    let is_measured = |run: &v1::Run| {
        let progress = run.members[0].progress.as_ref();
        progress.is_some_and(|progress| progress.step > 0 && progress.train_seconds >= MEASURED_SECONDS)
    };
    cluster.run_until("the rate of an attempt is known", run, is_measured).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_straggler_gets_a_spare_which_wins_with_the_bytes_of_an_undisturbed_training() {
    let cluster = Cluster::start().await;
    let recipe = recipes::small(LONG).to_canonical_json();
    let fast = cluster.worker("fast");
    let undisturbed = cluster.submit(&recipe, 1, 5).await;
    // Even this one is not too fast for its rate to be measured, whatever the machine.
    let slowed_fast = slowed(&cluster, &fast, Duration::from_secs(1)).await;
    let slow = cluster.worker_with("slow", OFTEN);
    let run = cluster.submit(&recipe, 1, 5).await;
    let _slowed_slow = slowed(&cluster, &slow, Duration::from_secs(5)).await;
    let has_snapshot = |run: &v1::Run| run.members[0].attempt_list[0].snapshot_step.is_some();
    cluster.run_until("a snapshot of the straggler is stored", &run, has_snapshot).await;
    measured(&cluster, &run).await;
    measured(&cluster, &undisturbed).await;
    drop(slowed_fast);
    cluster.completed(&undisturbed).await;

    let run = cluster.completed(&run).await;
    let [straggler, spare] = &run.members[0].attempt_list[..] else { panic!("not two attempts: {run:?}") };
    assert_eq!((straggler.worker_name.as_str(), spare.worker_name.as_str()), ("slow", "fast"));
    assert_eq!((straggler.is_spare, spare.is_spare), (false, true));
    assert_eq!((straggler.status(), spare.status()), (AttemptStatus::Superseded, AttemptStatus::Won));
    assert!(spare.resumed_step > 0, "the spare began anew: {spare:?}");
    assert!(run.members[0].failures.is_empty(), "nothing is charged: {run:?}");
    assert_eq!(cluster.checkpoints(&run.run_id).await, cluster.checkpoints(&undisturbed).await);
    wait_for("the straggler has stopped", || async {
        let workers = cluster.workers().await;
        workers.iter().all(|worker| worker.attempts.is_empty() && worker.free_slots == 1).then_some(())
    })
    .await;
}
