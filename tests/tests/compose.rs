//! The promise of `deploy/`: real containers train one ensemble, lose a worker or move the coordinator, and leave the report on
//! the host.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{self, Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use plurality_tests::{
    cluster::{Process, wait_for},
    workspace::root,
};
use serde_json::Value;
use tempfile::TempDir;

/// The images' tag: a test never replaces the images that somebody works with.
const TAG: &str = "compose-test";
const MEMBERS: usize = 5;
const WORKERS: usize = 3;
/// What is trained.
const RECIPE: &str = "smoke-norm";
const SEED: &str = "7";

/// Runs `command` from the root of the project and returns what it printed, standard error last.
fn run(command: &mut Command) -> Result<String, String> {
    let shown = format!("{command:?}");
    let Output { status, stdout, stderr } =
        command.current_dir(root()).output().map_err(|error| format!("{shown}: {error}"))?;
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    if status.success() { Ok(stdout.into_owned()) } else { Err(format!("{shown}: {status}\n{stdout}\n{stderr}")) }
}

fn docker(arguments: &[&str]) -> Result<String, String> {
    run(Command::new("docker").args(arguments))
}

/// The C library of the images' base: programs built for a newer one do not start in it.
const IMAGE_GLIBC: (u32, u32) = (2, 36);

/// Says why this machine cannot run containers of what was built on it, if it cannot.
fn obstacle() -> Option<String> {
    if let Err(error) = docker(&["version", "--format", "{{.Server.Version}}"]) {
        return Some(format!("no docker engine answers: {error}"));
    }
    if docker(&["compose", "version"]).is_err() && run(Command::new("docker-compose").arg("version")).is_err() {
        return Some("neither docker compose nor docker-compose is installed".to_owned());
    }
    let found = glibc();
    if found.is_none_or(|found| found > IMAGE_GLIBC) {
        return Some(format!("programs built here want glibc {found:?}, the images have {IMAGE_GLIBC:?}"));
    }
    let base = "debian:bookworm-slim";
    let is_there = docker(&["image", "inspect", base]).is_ok() || docker(&["pull", "--quiet", base]).is_ok();
    (!is_there).then(|| format!("{base} is not there and cannot be pulled: see scripts/stand-in-images"))
}

/// Returns the version of this machine's C library, `None` if it is not glibc.
fn glibc() -> Option<(u32, u32)> {
    let said = run(Command::new("getconf").arg("GNU_LIBC_VERSION")).ok()?;
    let (major, minor) = said.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// One `docker-compose up`, taken down with its networks and volumes when dropped.
struct Project {
    name: String,
    /// Networks to train.
    members: usize,
    results: TempDir,
}

impl Project {
    /// Makes the images of what was built here and begins a run of `members` with them. `None`, with words on standard error,
    /// where this machine cannot: the test is then to end.
    fn up(members: usize) -> Option<Self> {
        if let Some(obstacle) = obstacle() {
            assert!(std::env::var_os("CI").is_none(), "CI must run containers, but {obstacle}");
            eprintln!("skipped: {obstacle}");
            return None;
        }
        run(&mut Command::new("scripts/collect-dist")).unwrap();
        run(Command::new("scripts/build-images").env("PLURALITY_TAG", TAG)).unwrap();
        let project = Self::new(members);
        project.start();
        Some(project)
    }

    fn new(members: usize) -> Self {
        let results = TempDir::new().expect("a temporary folder can be made");
        // The containers' user is not the one that runs this test.
        let for_everyone = fs::Permissions::from_mode(0o777);
        fs::set_permissions(results.path(), for_everyone).expect("the folder is ours");
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!("plurality-test-{}-{}", process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        Self { name, members, results }
    }

    fn compose(&self, arguments: &[&str]) -> Result<String, String> {
        let is_plugin = docker(&["compose", "version"]).is_ok();
        let mut command = Command::new(if is_plugin { "docker" } else { "docker-compose" });
        command.args(is_plugin.then_some("compose"));
        command.args(["--project-name", &self.name, "--file", "deploy/compose.yaml"]).args(arguments);
        command.env("PLURALITY_TAG", TAG).env("PLURALITY_RESULTS", self.results.path());
        command.env("PLURALITY_ENSEMBLE", self.members.to_string()).env("PLURALITY_RECIPE", RECIPE);
        command.env("PLURALITY_SEED", SEED).env("PLURALITY_MIN_ACCURACY", "97").env("RUST_LOG", "info");
        run(&mut command)
    }

    /// Starts every container that is not there.
    fn start(&self) {
        self.compose(&["up", "--detach", "--no-recreate", "--scale", &format!("worker={WORKERS}")]).unwrap();
    }

    /// Returns the id of the coordinator's container.
    fn coordinator(&self) -> String {
        let [coordinator] = &self.containers("coordinator")[..] else { panic!("not one coordinator") };
        coordinator.clone()
    }

    /// Returns the ids of a service's containers.
    fn containers(&self, service: &str) -> Vec<String> {
        let ids = self.compose(&["ps", "--quiet", service]).expect("the project is up");
        ids.lines().map(str::to_owned).collect()
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.compose(&["logs", "--no-color"]).unwrap_or_else(|error| error));
        }
        let down = self.compose(&["down", "--volumes", "--remove-orphans", "--timeout", "2"]);
        down.unwrap_or_else(|error| format!("containers are left behind: {error}"));
    }
}

/// Returns one field of a container's state, as docker's template language names it.
fn inspect(container: &str, field: &str) -> String {
    let format = format!("{{{{{field}}}}}");
    docker(&["inspect", "--format", &format, container]).expect("the container exists").trim().to_owned()
}

/// Says whether a trainer trains there; one that only looks what it runs on does not.
fn is_training(container: &str) -> bool {
    let trains = |process: &str| process.contains("worker-trainer") && !process.contains("--check");
    docker(&["top", container]).is_ok_and(|processes| processes.lines().any(trains))
}

/// Returns the one `report.json` under `folder`.
fn report_under(folder: &Path) -> Option<PathBuf> {
    let runs = fs::read_dir(folder).expect("the folder for results is mounted");
    runs.filter_map(Result::ok).map(|run| run.path().join("report.json")).find(|path| path.is_file())
}

/// Returns the name of the only run that was begun, which has a folder for its results from its beginning on.
fn only_run(folder: &Path) -> String {
    let mut runs = fs::read_dir(folder).expect("the folder for results is mounted").filter_map(Result::ok);
    let run = runs.next().expect("a run was begun").file_name();
    assert!(runs.next().is_none(), "another run was begun");
    run.into_string().expect("runs have ids of plain letters")
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_finish_a_run_that_lost_one_of_them() {
    let Some(project) = Project::up(MEMBERS) else { return };
    let coordinator = &project.coordinator();
    let workers = project.containers("worker");
    assert_eq!(workers.len(), WORKERS);
    for container in workers.iter().chain([coordinator]) {
        assert_eq!(docker(&["exec", container, "id", "-u"]).unwrap().trim(), "1000", "no container runs as root");
    }
    let doomed = wait_for("a worker trains", || async { workers.iter().find(|worker| is_training(worker)) }).await;
    docker(&["kill", doomed]).unwrap();
    assert_eq!(inspect(coordinator, ".State.Status"), "running", "the worker was killed after the run");
    // The killed worker's lease keeps the run going for longer than any container needs to be found healthy.
    let survivors: Vec<_> = workers.iter().filter(|worker| *worker != doomed).chain([coordinator]).collect();
    wait_for("all that were not killed are healthy", || async {
        survivors.iter().all(|container| inspect(container, ".State.Health.Status") == "healthy").then_some(())
    })
    .await;
    let report = report_of_completed(&project, coordinator).await;
    assert_eq!(inspect(doomed, ".State.Running"), "false", "the killed worker must stay dead");
    let attempts: u64 = attempts(&report).iter().sum();
    assert!(attempts > MEMBERS as u64, "the killed worker's member must have been tried again: {report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_moved_to_a_fresh_container_goes_on_where_it_was() {
    let Some(project) = Project::up(WORKERS) else { return };
    let before = project.coordinator();
    let workers = project.containers("worker");
    // A trainer that runs may still load its libraries.
    wait_for("as many members as there are workers are trained", || async {
        let log = project.compose(&["logs", "--no-color", "worker"]).ok()?;
        (log.matches(" steps in ").count() >= WORKERS).then_some(())
    })
    .await;
    let run = only_run(project.results.path());
    docker(&["kill", &before]).unwrap();
    docker(&["rm", &before]).unwrap();
    assert!(report_under(project.results.path()).is_none(), "the coordinator was killed after the run");
    project.start();
    let after = project.coordinator();
    assert_ne!(before, after, "the container must be a fresh one");
    let report = report_of_completed(&project, &after).await;
    assert_eq!(only_run(project.results.path()), run, "the run must be gone on with");
    assert_eq!(report["run"]["id"].as_str(), Some(run.as_str()));
    assert_eq!(attempts(&report), [1; WORKERS], "the workers held what they trained: {report}");
    let lost = [&report["run"]["repeated_steps"], &report["run"]["lost_training_seconds"]];
    assert!(lost.iter().all(|lost| lost.as_f64() == Some(0.0)), "{report}");
    assert_eq!(project.containers("worker"), workers, "the workers stay");
    let undisturbed = trained_undisturbed().await;
    for (member, again) in members(&report).iter().zip(members(&undisturbed)) {
        for field in ["class", "checkpoint_sha256"] {
            assert_eq!(member[field], again[field], "{member} is not {again}");
        }
    }
}

/// Trains without containers what these trained: as many members as there are workers.
async fn trained_undisturbed() -> Value {
    let folder = TempDir::new().unwrap();
    let (state, out) = (folder.path().join("state"), folder.path().join("out"));
    let (state, out, ensemble) = (state.to_string_lossy(), out.to_string_lossy(), WORKERS.to_string());
    let place = ["--listen", "127.0.0.1:0", "--local-workers", "2", "--state", &state, "--out", &out];
    let request = ["--ensemble", &ensemble, "--recipe", RECIPE, "--seed", SEED];
    let log = folder.path().join("one-run.log");
    let mut coordinator = Process::start("coordinator", &[&place[..], &request].concat(), &log);
    assert!(coordinator.ended().await.success(), "{}", coordinator.output());
    read_report(&folder.path().join("out/report.json"))
}

/// Waits until the coordinator's container has ended and returns the report that it left.
async fn report_of_completed(project: &Project, coordinator: &str) -> Value {
    wait_for("the coordinator has ended", || async {
        (inspect(coordinator, ".State.Status") == "exited").then_some(())
    })
    .await;
    assert_eq!(inspect(coordinator, ".State.ExitCode"), "0", "the run must succeed");
    let report = read_report(&report_under(project.results.path()).expect("the report lies on the host"));
    assert_eq!(members(&report).len(), project.members);
    report
}

fn read_report(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn members(report: &Value) -> &[Value] {
    report["members"].as_array().unwrap()
}

/// Returns the attempts of each member.
fn attempts(report: &Value) -> Vec<u64> {
    members(report).iter().map(|member| member["attempts"].as_u64().unwrap()).collect()
}
