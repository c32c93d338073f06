//! Promises of the real `worker-trainer`: the same bytes again, an error for each wrong specification, no orphans.
#![cfg(feature = "torch")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, and so do its helpers")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use plurality_common::{
    attempt::{DeterminismClass, FailureKind},
    digest::Digest,
    recipe::builtin,
    trainer::{CHECKPOINT_FILE, PREDICTIONS_FILE, TRAINER_FORMAT, TrainerEvent, TrainerSpec, TrainerWish},
};

/// CPU seconds that a `smoke` member may take: its recipe promises seconds on one core, `make try` five in a minute.
const SMOKE_CPU_SECONDS_MAX: f64 = 15.0;
/// Longer than any training here on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);

fn spec(out: &Path) -> TrainerSpec {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/mnist");
    TrainerSpec {
        format: TRAINER_FORMAT.to_owned(),
        recipe: builtin::by_name("smoke").unwrap(),
        run_seed: 1,
        member: 0,
        train_images: data.join("train-images-idx3-ubyte.gz"),
        train_labels: data.join("train-labels-idx1-ubyte.gz"),
        test_images: data.join("t10k-images-idx3-ubyte.gz"),
        device: "cpu".to_owned(),
        threads: 1,
        out: out.to_owned(),
        resume: Vec::new(),
        snapshot_interval_ms: u64::MAX,
    }
}

/// A running trainer and both ends of its pipe.
struct Trainer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Trainer {
    fn start(line: &str) -> Self {
        Self::start_as(Command::new(env!("CARGO_BIN_EXE_worker-trainer")), line)
    }

    fn start_as(mut command: Command, line: &str) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        writeln!(input, "{line}").unwrap();
        Self { child, input, output }
    }

    fn next(&mut self) -> Option<TrainerEvent> {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        (!line.is_empty()).then(|| serde_json::from_str(&line).unwrap())
    }

    fn last(mut self) -> TrainerEvent {
        let events: Vec<TrainerEvent> = std::iter::from_fn(|| self.next()).collect();
        self.child.wait().unwrap();
        events.into_iter().last().unwrap()
    }
}

fn outcome(spec: &TrainerSpec) -> TrainerEvent {
    Trainer::start(&serde_json::to_string(spec).unwrap()).last()
}

fn check_failure(spec: &TrainerSpec, expected: FailureKind, words: &str) {
    let TrainerEvent::Failed { kind, message } = outcome(spec) else { panic!("{words}: did not fail") };
    assert_eq!(kind, expected, "{message}");
    assert!(message.contains(words), "{message}");
}

#[test]
fn training_smoke_twice_gives_the_same_checkpoint_and_predictions() {
    let digests: Vec<[Digest; 2]> = (0..2)
        .map(|_| {
            let out = tempfile::tempdir().unwrap();
            let event = outcome(&spec(out.path()));
            let TrainerEvent::Finished { validation_accuracy: Some(accuracy), train_cpu_seconds, .. } = event else {
                panic!("{event:?}")
            };
            assert!(accuracy >= 0.97, "smoke reaches 97 % at least, not {accuracy}");
            // CPU time: what else the machine does has little effect on it.
            assert!(train_cpu_seconds <= SMOKE_CPU_SECONDS_MAX, "smoke took {train_cpu_seconds} CPU seconds");
            [CHECKPOINT_FILE, PREDICTIONS_FILE].map(|name| Digest::of(&fs::read(out.path().join(name)).unwrap()))
        })
        .collect();
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn the_first_event_names_the_class_that_check_names() {
    let out = tempfile::tempdir().unwrap();
    let mut trainer = Trainer::start(&serde_json::to_string(&spec(out.path())).unwrap());
    let Some(TrainerEvent::Started { format, class, steps_total, epochs_total, resumed_step }) = trainer.next() else {
        panic!("did not start")
    };
    let recipe = builtin::by_name("smoke").unwrap();
    assert_eq!((format.as_str(), steps_total), (TRAINER_FORMAT, recipe.steps_total()));
    assert_eq!((epochs_total, resumed_step), (recipe.training.epochs, 0));
    let check = Command::new(env!("CARGO_BIN_EXE_worker-trainer")).arg("--check").output().unwrap();
    assert!(check.status.success());
    assert_eq!(serde_json::from_slice::<DeterminismClass>(&check.stdout).unwrap(), class);
    trainer.child.kill().unwrap();
    trainer.child.wait().unwrap();
}

#[test]
fn a_trainer_whose_worker_is_gone_ends_at_once_without_a_core_dump() {
    let out = tempfile::tempdir().unwrap();
    let mut spec = spec(out.path());
    spec.recipe.training.epochs = 10_000;
    let mut trainer = Trainer::start(&serde_json::to_string(&spec).unwrap());
    assert!(matches!(trainer.next(), Some(TrainerEvent::Started { .. })));
    let Trainer { mut child, input, output } = trainer;
    drop(input);
    // Its output ends when it ends; until then this reads reports.
    let closed = Instant::now();
    let ended = output.lines().take_while(|_| closed.elapsed() < DEADLINE).last();
    assert!(closed.elapsed() < DEADLINE, "still running: {ended:?}");
    let status = child.wait().unwrap();
    // SIGKILL: of the signals that end a process under its work, the one that never writes a core dump.
    assert_eq!((status.signal(), status.core_dumped()), (Some(9), false));
    assert!(!out.path().join(CHECKPOINT_FILE).exists());
}

#[test]
fn a_snapshot_is_written_at_once_when_it_is_wished_for() {
    let out = tempfile::tempdir().unwrap();
    let mut spec = spec(out.path());
    spec.recipe.training.epochs = 10_000;
    let mut trainer = Trainer::start(&serde_json::to_string(&spec).unwrap());
    assert!(matches!(trainer.next(), Some(TrainerEvent::Started { .. })));
    let mut last_step = 0;
    for _ in 0..2 {
        writeln!(trainer.input, "no wish\n{}", serde_json::to_string(&TrainerWish::Snapshot).unwrap()).unwrap();
        let mut events = std::iter::from_fn(|| trainer.next());
        let written = events.find_map(|event| match event {
            TrainerEvent::Snapshot { step, file } => Some((step, file)),
            _ => None,
        });
        let (step, file) = written.expect("the interval of the specification never ends, so this one was wished for");
        assert!(step > last_step, "{step} after {last_step}");
        assert!(out.path().join(file).is_file());
        last_step = step;
    }
    trainer.child.kill().unwrap();
    trainer.child.wait().unwrap();
}

#[test]
fn every_unusable_specification_says_what_is_wrong() {
    let out = tempfile::tempdir().unwrap();
    let good = spec(out.path());
    let file = |name: &str, bytes: &[u8]| -> PathBuf {
        let path = out.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let with = |change: &dyn Fn(&mut TrainerSpec)| {
        let mut spec = good.clone();
        change(&mut spec);
        spec
    };
    let missing = with(&|spec| spec.train_images = out.path().join("absent"));
    check_failure(&missing, FailureKind::Dataset, "`absent` cannot be read");
    let malformed = with(&|spec| spec.train_images = file("bad-images", b"not an IDX file, not at all"));
    check_failure(&malformed, FailureKind::Dataset, "bad-images");
    let mixed = with(&|spec| spec.train_labels = good.train_labels.with_file_name("t10k-labels-idx1-ubyte.gz"));
    check_failure(&mixed, FailureKind::Dataset, "10000 training labels");
    let greedy = with(&|spec| spec.recipe.data.train = 59_500);
    check_failure(&greedy, FailureKind::Dataset, "60000 training images, the recipe needs 60500");
    for device in ["gpu", "cuda:x"] {
        let wrong = with(&|spec| spec.device = device.to_owned());
        check_failure(&wrong, FailureKind::Incompatible, "expected `cpu` or `cuda:N`");
    }
    let unannounced = with(&|spec| spec.device = "cuda:0".to_owned());
    check_failure(&unannounced, FailureKind::Incompatible, "libtorch_cuda.so is not loaded");
    let format = with(&|spec| spec.format = "plurality-trainer/99".to_owned());
    check_failure(&format, FailureKind::Incompatible, "plurality-trainer/99");
}

/// A library that is none: the loader says so and goes on, so that the program can be watched being started again. A whole
/// one takes a gigabyte, and a GPU to say more.
#[test]
fn a_gpu_starts_the_trainer_again_with_the_library_of_libtorch_as_it_is_set_now() {
    let place = tempfile::tempdir().unwrap();
    fs::create_dir(place.path().join("lib")).unwrap();
    let library = place.path().join("lib/libtorch_cuda.so");
    fs::write(&library, "no library").unwrap();
    let command = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_worker-trainer"));
        command.args(arguments).env("LIBTORCH", place.path());
        command
    };
    let checked = command(&["--check", "--device", "cuda:0"]).output().unwrap();
    assert_eq!((checked.status.code(), checked.stdout.len()), (Some(1), 0));
    let log = String::from_utf8(checked.stderr).unwrap();
    let lines: Vec<&str> = log.lines().collect();
    let [first, loaders, last] = lines[..] else { panic!("{log}") };
    assert_eq!(first, format!("CUDA: starting again with {}", library.canonicalize().unwrap().display()));
    assert!(loaders.contains("LD_PRELOAD cannot be preloaded"), "{loaders}");
    assert!(last.starts_with("error: libtorch_cuda.so was found, but the loader did not take it"), "{last}");

    // The specification waits on standard input until then.
    let mut spec = spec(place.path());
    spec.device = "cuda:0".to_owned();
    let trainer = Trainer::start_as(command(&["--device", &spec.device]), &serde_json::to_string(&spec).unwrap());
    let TrainerEvent::Failed { kind, message } = trainer.last() else { panic!("did not fail") };
    assert_eq!(kind, FailureKind::Incompatible);
    assert!(message.contains("did not take it"), "{message}");
}

#[test]
fn a_line_that_is_no_specification_fails() {
    for line in ["", "{", "{\"format\": 1}"] {
        let TrainerEvent::Failed { kind, message } = Trainer::start(line).last() else { panic!("did not fail") };
        assert_eq!(kind, FailureKind::Incompatible);
        assert!(message.starts_with("trainer specification is unreadable"), "{message}");
    }
}

#[test]
fn the_worker_itself_does_not_link_libtorch() {
    let needs = |program: &str| {
        let listed = Command::new("ldd").arg(program).output().unwrap();
        String::from_utf8(listed.stdout).unwrap().contains("libtorch")
    };
    assert!(needs(env!("CARGO_BIN_EXE_worker-trainer")));
    assert!(!needs(env!("CARGO_BIN_EXE_worker")));
}

#[test]
fn bench_measures_a_recipe_and_refuses_one_that_does_not_exist() {
    let bench = |recipe: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_worker-trainer"));
        let data = spec(Path::new("unused")).train_images.parent().unwrap().to_owned();
        command.args(["--bench", recipe, "--batch", "10", "--seconds", "0.2", "--data"]).arg(data).output().unwrap()
    };
    let measured = bench("smoke");
    let line: serde_json::Value = serde_json::from_slice(&measured.stdout).unwrap();
    assert_eq!(line["batch"], 10);
    assert!(line["images_per_second"].as_f64().unwrap() > 0.0);
    assert!(line["loss"].as_f64().unwrap() > 0.0);
    for (name, words) in [("no-such", "no recipe is called `no-such`"), ("no-such.toml", "cannot be read")] {
        let refused = bench(name);
        assert!(!refused.status.success());
        assert!(String::from_utf8(refused.stderr).unwrap().contains(words));
    }
}

#[test]
fn bench_product_prints_a_rate() {
    let measured = Command::new(env!("CARGO_BIN_EXE_worker-trainer")).arg("--bench-product").output().unwrap();
    let line: serde_json::Value = serde_json::from_slice(&measured.stdout).unwrap();
    assert_eq!(line["threads"], 1);
    assert!(line["gflop_per_second"].as_f64().unwrap() > 0.0);
}
