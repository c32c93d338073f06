//! The promise of `deploy/`: real containers train one ensemble, lose a worker, and leave the report on the host.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{self, Command, Output},
    thread,
};

use plurality_tests::{cluster::wait_for, workspace::root};
use serde_json::Value;
use tempfile::TempDir;

/// The images' tag: a test never replaces the images that somebody works with.
const TAG: &str = "compose-test";
const MEMBERS: usize = 5;
const WORKERS: usize = 3;

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
    results: TempDir,
}

impl Project {
    fn new() -> Self {
        let results = TempDir::new().expect("a temporary folder can be made");
        // The containers' user is not the one that runs this test.
        let for_everyone = fs::Permissions::from_mode(0o777);
        fs::set_permissions(results.path(), for_everyone).expect("the folder is ours");
        Self { name: format!("plurality-test-{}", process::id()), results }
    }

    fn compose(&self, arguments: &[&str]) -> Result<String, String> {
        let is_plugin = docker(&["compose", "version"]).is_ok();
        let mut command = Command::new(if is_plugin { "docker" } else { "docker-compose" });
        command.args(is_plugin.then_some("compose"));
        command.args(["--project-name", &self.name, "--file", "deploy/compose.yaml"]).args(arguments);
        command.env("PLURALITY_TAG", TAG).env("PLURALITY_RESULTS", self.results.path());
        command.env("PLURALITY_ENSEMBLE", MEMBERS.to_string()).env("PLURALITY_RECIPE", "smoke-norm");
        command.env("PLURALITY_SEED", "7").env("PLURALITY_MIN_ACCURACY", "97").env("RUST_LOG", "info");
        run(&mut command)
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

#[tokio::test(flavor = "multi_thread")]
async fn containers_finish_a_run_that_lost_one_of_them() {
    if let Some(obstacle) = obstacle() {
        assert!(std::env::var_os("CI").is_none(), "CI must run containers, but {obstacle}");
        eprintln!("skipped: {obstacle}");
        return;
    }
    run(&mut Command::new("scripts/collect-dist")).unwrap();
    run(Command::new("scripts/build-images").env("PLURALITY_TAG", TAG)).unwrap();

    let project = Project::new();
    project.compose(&["up", "--detach", "--scale", &format!("worker={WORKERS}")]).unwrap();
    let [coordinator] = &project.containers("coordinator")[..] else { panic!("not one coordinator") };
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
    wait_for("the coordinator has ended", || async {
        (inspect(coordinator, ".State.Status") == "exited").then_some(())
    })
    .await;
    assert_eq!(inspect(coordinator, ".State.ExitCode"), "0", "the run must succeed without the killed worker");
    assert_eq!(inspect(doomed, ".State.Running"), "false", "the killed worker must stay dead");

    let path = report_under(project.results.path()).expect("the report lies on the host");
    let report: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let members = report["members"].as_array().unwrap();
    assert_eq!(members.len(), MEMBERS);
    let attempts: u64 = members.iter().map(|member| member["attempts"].as_u64().unwrap()).sum();
    assert!(attempts > MEMBERS as u64, "the killed worker's member must have been tried again: {report}");
}
