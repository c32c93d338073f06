//! The coordinator program as it is typed.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test, in helpers too")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    net::TcpListener,
    path::Path,
    process::{Child, ChildStdout, Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;

use crate::support::{RECIPE, write_dataset};

mod support;

/// Longer than anything here takes on a busy machine; a test that waits this long has failed.
const DEADLINE: Duration = Duration::from_secs(60);

/// An empty folder to work in, and the program in it.
struct Desk {
    folder: TempDir,
}

impl Desk {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    /// A desk with a small dataset in `data` and a recipe for it in `tiny.toml`.
    fn with_dataset() -> Self {
        let desk = Self::new();
        write_dataset(&desk.path().join("data"));
        fs::write(desk.path().join("tiny.toml"), RECIPE).unwrap();
        desk
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_coordinator"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PLURALITY_")) {
            command.env_remove(name);
        }
        command.args(arguments).current_dir(self.path()).env_remove("RUST_LOG").env_remove("COLUMNS");
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Writes a script that stands in for the worker program.
    fn script(&self, text: &str) -> String {
        let path = self.path().join("worker.sh");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

/// A coordinator that runs until it is told otherwise.
struct Running {
    child: Child,
    /// Held, so that it can go on printing.
    stdout: BufReader<ChildStdout>,
    /// Lines of standard error as they come.
    stderr: mpsc::Receiver<String>,
    address: String,
}

impl Running {
    /// Starts it and waits until it listens.
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, stderr) = mpsc::channel();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let Some(address) = line.trim_end().strip_prefix("listening on ") else {
            let said: Vec<_> = stderr.iter().collect();
            panic!("expected an address, found {line:?}; it said {said:?}");
        };
        Self { child, stdout, stderr, address: address.to_owned() }
    }

    fn wait_for(&self, part: &str) -> String {
        let began = Instant::now();
        let mut seen = Vec::new();
        while let Ok(line) = self.stderr.recv_timeout(DEADLINE.saturating_sub(began.elapsed())) {
            if line.contains(part) {
                return line;
            }
            seen.push(line);
        }
        panic!("no line has {part:?}, only {seen:?}");
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end; returns the exit code and the rest of both outputs.
    fn end(mut self) -> (Option<i32>, String, String) {
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        let status = self.child.wait().unwrap();
        (status.code(), rest, self.stderr.iter().collect::<Vec<_>>().join("\n"))
    }
}

/// Runs the program and checks its exit code and what it says on standard error.
fn check(desk: &Desk, arguments: &[&str], code: i32, parts: &[&str]) {
    let output = desk.run(arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    for part in parts {
        assert!(said.contains(part), "{arguments:?} does not say {part:?}: {said}");
    }
}

fn help(arguments: &[&str]) -> String {
    let output = Desk::new().run(arguments);
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn help_reads_as_it_should() {
    insta::assert_snapshot!("help", help(&["--help"]));
    insta::assert_snapshot!("help_serve", help(&["serve", "--help"]));
    insta::assert_snapshot!("help_submit", help(&["submit", "--help"]));
    insta::assert_snapshot!("help_report", help(&["report", "--help"]));
    insta::assert_snapshot!("help_recipes", help(&["recipes", "--help"]));
    insta::assert_snapshot!("help_ladder", help(&["ladder", "--help"]));
    insta::assert_snapshot!("help_fsck", help(&["fsck", "--help"]));
    insta::assert_snapshot!("help_gc", help(&["gc", "--help"]));
}

#[test]
fn wrong_flags_are_refused_by_name() {
    let desk = Desk::new();
    check(&desk, &["--ensembel", "3"], 2, &["--ensembel", "--ensemble"]);
    check(&desk, &["--ensemble", "0"], 2, &["--ensemble", "1..=1000"]);
    check(&desk, &["--ensemble", "1001"], 2, &["--ensemble", "1..=1000"]);
    check(&desk, &["--local-workers", "many"], 2, &["--local-workers", "auto", "many"]);
    check(&desk, &["--min-accuracy", "0.995"], 2, &["--min-accuracy", "percentage above 1", "0.995"]);
    check(&desk, &["--seed", "x"], 2, &["--seed"]);
    check(&desk, &["--listen", "somewhere"], 2, &["somewhere", "ADDRESS:PORT"]);
    check(&desk, &["list", "--server", "no port"], 2, &["no port", "HOST:PORT"]);
    check(&desk, &["--ensemble", "3", "serve"], 2, &["--ensemble belongs behind the command"]);
    check(&desk, &["serve", "--ensemble", "3"], 2, &["--ensemble"]);
    assert!(!desk.path().join(".plurality").exists(), "a refused command leaves nothing behind");
}

#[test]
fn a_ladder_that_cannot_be_climbed_is_refused_by_name() {
    let desk = Desk::new();
    let rows = plurality_coordinator::ladder::rows::ROWS.map(|row| row.name);
    check(&desk, &["ladder", "--rows", "fc100,conv3"], 2, &[&["\"conv3\""], &rows[..]].concat());
    check(&desk, &["ladder", "--seeds", "0"], 2, &["--seeds", "1..=1000"]);
    for scale in ["0", "-1", "NaN", "inf", "half"] {
        let flag = format!("--scale={scale}");
        check(&desk, &["ladder", &flag], 2, &["--scale", "a number above 0", scale]);
    }
    check(&desk, &["ladder", "--server", "127.0.0.1:1", "--local-workers", "1"], 2, &["--server", "--local-workers"]);
    check(&desk, &["ladder", "--rows", "fc100", "--server", "127.0.0.1:1"], 5, &["127.0.0.1:1"]);
    fs::write(desk.path().join("ladder.json"), "{\"format\": \"plurality-ladder/9\"}").unwrap();
    check(&desk, &["ladder", "--out", "."], 2, &["ladder.json", "plurality-ladder/9", "plurality-ladder/1"]);
    assert!(!desk.path().join(".plurality").exists(), "a refused command leaves nothing behind");
}

#[test]
fn unknown_configuration_keys_are_refused_by_name() {
    let desk = Desk::new();
    fs::write(desk.path().join("wrong.toml"), "seed = 1\nensembel = 3\n").unwrap();
    check(&desk, &["--config", "wrong.toml"], 2, &["wrong.toml", "line 2", "ensembel", "`ensemble`"]);
    fs::write(desk.path().join("many.toml"), "ensemble = 5000\n").unwrap();
    check(&desk, &["--config", "many.toml"], 2, &["5000", "1 to 1000"]);
    check(&desk, &["--config", "absent.toml"], 2, &["absent.toml", "No such file"]);
}

#[test]
fn levels_of_the_log_that_cannot_be_read_are_refused() {
    let desk = Desk::new();
    let output = desk.command(&["recipes"]).env("RUST_LOG", "plurality=loud").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("RUST_LOG") && said.contains("plurality=loud"), "{said}");
    for harmless in ["", "debug", "warn,plurality_coordinator=debug"] {
        assert!(
            desk.command(&["recipes"]).env("RUST_LOG", harmless).output().unwrap().status.success(),
            "{harmless:?}"
        );
    }
}

#[test]
fn flags_win_over_environment_and_that_over_the_file() {
    let desk = Desk::new();
    fs::write(desk.path().join("c.toml"), "listen = \"file\"\n").unwrap();
    let refused = |arguments: &[&str], variable: Option<&str>| {
        let mut command = desk.command(arguments);
        if let Some(value) = variable {
            command.env("PLURALITY_LISTEN", value);
        }
        String::from_utf8(command.output().unwrap().stderr).unwrap()
    };
    assert!(refused(&["--config", "c.toml"], None).contains("\"file\""));
    assert!(refused(&["--config", "c.toml"], Some("variable")).contains("\"variable\""));
    assert!(refused(&["--config", "c.toml", "--listen", "flag"], Some("variable")).contains("\"flag\""));
}

#[test]
fn other_addresses_than_loopback_need_consent() {
    let desk = Desk::with_dataset();
    check(&desk, &["--listen", "0.0.0.0:0"], 2, &["0.0.0.0:0", "nothing is encrypted", "--insecure"]);
    check(&desk, &["serve", "--listen", "[::]:0"], 2, &["--insecure"]);
    let allowed = desk.command(&["serve", "--listen", "0.0.0.0:0", "--insecure", "--data", "data"]);
    let running = Running::start(allowed);
    running.signal(Signal::TERM);
    assert_eq!(running.end().0, Some(0));
}

#[test]
fn an_unknown_recipe_is_told_the_known_ones() {
    let desk = Desk::new();
    let names = plurality_common::recipe::builtin::NAMES;
    check(&desk, &["--recipe", "defualt"], 2, &[&["\"defualt\""], &names[..]].concat());
    check(&desk, &["recipes", "defualt"], 2, &names);
    fs::write(desk.path().join("bad.toml"), RECIPE.replace("epochs = 1", "epochs = 0")).unwrap();
    check(&desk, &["--recipe", "bad.toml"], 2, &["bad.toml", "epochs", "0"]);
    let listed = String::from_utf8(desk.run(&["recipes"]).stdout).unwrap();
    assert!(names.iter().all(|name| listed.contains(name)), "{listed}");
    let shown = desk.run(&["recipes", "smoke"]).stdout;
    assert!(String::from_utf8(shown).unwrap().contains("name = \"smoke\""));
    assert_eq!(desk.run(&["recipes", "show", "smoke"]).stdout, desk.run(&["recipes", "smoke"]).stdout);
    check(&desk, &["recipes", "show", "defualt"], 2, &names);
    let json =
        |arguments: &[&str]| -> serde_json::Value { serde_json::from_slice(&desk.run(arguments).stdout).unwrap() };
    assert_eq!(json(&["recipes", "--output", "json"]).as_array().unwrap().len(), names.len());
    assert_eq!(json(&["recipes", "show", "smoke", "--output", "json"])["name"], "smoke");
}

#[test]
fn a_folder_without_a_dataset_is_refused_by_the_missing_file() {
    let desk = Desk::new();
    fs::create_dir(desk.path().join("empty")).unwrap();
    check(&desk, &["--data", "empty", "--listen", "127.0.0.1:0"], 2, &["empty", "train-images-idx3-ubyte"]);
}

#[test]
fn a_folder_for_results_that_cannot_be_made_is_refused_before_any_training() {
    let desk = Desk::with_dataset();
    let arguments =
        ["--recipe", "tiny.toml", "--data", "data", "--listen", "127.0.0.1:0", "--out", "tiny.toml/results"];
    check(&desk, &arguments, 2, &["tiny.toml/results"]);
}

#[test]
fn a_coordinator_that_is_not_there_is_named() {
    let desk = Desk::new();
    for command in ["list", "show", "watch", "report", "workers"] {
        check(&desk, &[command, "--server", "127.0.0.1:1"], 5, &["127.0.0.1:1", "coordinator serve"]);
    }
}

#[test]
fn a_coordinator_that_closes_the_connection_is_said_to_have_done_so() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // As a coordinator does that holds as many connections as it takes. Ends with the test's process.
    thread::spawn(move || listener.incoming().for_each(drop));
    check(&Desk::new(), &["list", "--server", &address], 5, &["no answer", "the connection broke (", "try again"]);
}

#[test]
fn an_address_or_folder_in_use_is_named() {
    let desk = Desk::with_dataset();
    let running = Running::start(desk.command(&["serve", "--listen", "127.0.0.1:0", "--data", "data"]));
    let address = running.address.clone();
    check(&desk, &["serve", "--listen", &address, "--state", "other"], 1, &[&address, "in use", "--listen"]);
    check(&desk, &["serve", "--listen", "127.0.0.1:0"], 1, &[".plurality", "in use by another coordinator", "--state"]);
    running.signal(Signal::TERM);
    let (code, _, said) = running.end();
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn clients_speak_to_a_coordinator_that_serves() {
    let desk = Desk::with_dataset();
    let running = Running::start(desk.command(&["serve", "--listen", "127.0.0.1:0", "--data", "data"]));
    let server = running.address.clone();
    let ask = |arguments: &[&str]| {
        let output = desk.run(&[arguments, &["--server", &server]].concat());
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let json = |arguments: &[&str]| -> serde_json::Value {
        serde_json::from_str(&ask(&[arguments, &["--output", "json"]].concat())).unwrap()
    };
    assert!(ask(&["list"]).contains("no runs yet"));
    assert!(ask(&["workers"]).contains("no workers"));
    let submitted = json(&["submit", "--recipe", "tiny.toml", "--ensemble", "2", "--seed", "3"]);
    assert_eq!((&submitted["seed"], &submitted["is_continued"]), (&3.into(), &false.into()));
    assert_eq!(json(&["submit", "--recipe", "tiny.toml", "--ensemble", "2", "--continue"])["is_continued"], true);
    let run = json(&["show"]);
    assert_eq!((&run["status"], &run["seed"]), (&"running".into(), &3.into()));
    assert_eq!(run["members"].as_array().unwrap().len(), 2);
    assert!(ask(&["show"]).contains("queued"));
    assert!(ask(&["list"]).contains("0 of 2"));
    assert!(ask(&["cancel", "last"]).contains("cancelled"));
    check(&desk, &["watch", "--server", &server], 3, &["cancelled by a user"]);
    check(&desk, &["report", "--server", &server], 1, &["0 of 2 members"]);
    check(&desk, &["show", "nothing", "--server", &server], 1, &["nothing"]);
    check(&desk, &["submit", "--recipe", "smoke", "--server", &server], 2, &["6000"]);
    running.signal(Signal::INT);
    assert_eq!(running.end().0, Some(0));
}

#[test]
fn a_run_without_workers_says_what_to_type_and_continues_after_a_signal() {
    let desk = Desk::with_dataset();
    let arguments = ["--recipe", "tiny.toml", "--data", "data", "--listen", "127.0.0.1:0", "--ensemble", "3"];
    let running = Running::start(desk.command(&arguments));
    let first = running.wait_for("3 members, recipe tiny, seed ");
    running.wait_for("waiting for workers");
    running.wait_for(&format!("worker --connect {}", running.address));
    running.signal(Signal::INT);
    let (code, _, said) = running.end();
    assert_eq!(code, Some(130), "{said}");
    assert!(said.contains("stopped by SIGINT") && said.contains("--state continues"), "{said}");

    let running = Running::start(desk.command(&arguments));
    let again = running.wait_for("continuing run");
    let seed = first.rsplit(' ').next().unwrap();
    assert!(again.ends_with(&format!("seed {seed}")), "{first:?}, then {again:?}");
    running.signal(Signal::TERM);
    assert_eq!(running.end().0, Some(130));

    let mut other = arguments;
    *other.last_mut().unwrap() = "2";
    let running = Running::start(desk.command(&other));
    running.wait_for("2 members, recipe tiny");
    let line = running.wait_for("is unfinished in this state folder too");
    let id = first.strip_prefix("run ").unwrap().split(':').next().unwrap();
    let (beginning, ending) =
        (format!("run {id}, recipe tiny"), format!("cancel {id} --server {}` ends it", running.address));
    assert!(line.starts_with(&beginning) && line.ends_with(&ending), "{line}");
    running.signal(Signal::TERM);
    assert_eq!(running.end().0, Some(130));
}

#[test]
fn a_local_worker_that_crashes_again_and_again_ends_the_run_with_its_last_words() {
    let desk = Desk::with_dataset();
    let worker = desk.script("echo 'no LibTorch here' >&2; exit 3");
    let mut command =
        desk.command(&["--recipe", "tiny.toml", "--data", "data", "--listen", "127.0.0.1:0", "--local-workers", "1"]);
    let output = command.env("PLURALITY_WORKER", worker).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in ["starting it again", "4 times in a row", "exit status: 3", "local-worker.log", "no LibTorch here"] {
        assert!(said.contains(part), "does not say {part:?}: {said}");
    }
}

#[test]
fn an_absent_worker_program_is_named() {
    let desk = Desk::with_dataset();
    let mut command = desk.command(&["serve", "--data", "data", "--listen", "127.0.0.1:0", "--local-workers", "auto"]);
    let output = command.env("PLURALITY_WORKER", "/nowhere/worker").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("/nowhere/worker") && said.contains("PLURALITY_WORKER"), "{said}");
}

/// Starts a coordinator whose local worker writes its arguments and id, then does `waits`; returns the worker's id.
fn serve_with_worker(desk: &Desk, waits: &str) -> (Running, Pid) {
    let worker = desk.script(&format!("echo \"$@\" > arguments; echo $$ > pid.new; mv pid.new pid; {waits}"));
    let mut command = desk.command(&["serve", "--data", "data", "--listen", "127.0.0.1:0", "--local-workers", "2"]);
    command.env("PLURALITY_WORKER", worker);
    let running = Running::start(command);
    let path = desk.path().join("pid");
    wait_until("the worker has started", || path.exists());
    let pid = fs::read_to_string(path).unwrap().trim().parse().unwrap();
    (running, Pid::from_raw(pid).unwrap())
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < DEADLINE, "waited in vain until {what}");
        thread::yield_now();
    }
}

fn is_alive(pid: Pid) -> bool {
    // One that has ended but that nobody has waited for is a zombie: it still has an id, but no command line.
    let command_line = format!("/proc/{}/cmdline", pid.as_raw_nonzero());
    test_kill_process(pid).is_ok() && fs::read(command_line).is_ok_and(|text| !text.is_empty())
}

/// A worker that says who it is, and leaves when it is asked to.
const OBEDIENT: &str = "echo $$ >&0; trap 'exit 0' TERM; while :; do sleep 0.05; done";

#[test]
fn a_local_worker_is_told_where_to_connect_and_leaves_with_the_coordinator() {
    let desk = Desk::with_dataset();
    let (running, pid) = serve_with_worker(&desk, OBEDIENT);
    let arguments = fs::read_to_string(desk.path().join("arguments")).unwrap();
    let words: Vec<_> = arguments.split_whitespace().collect();
    assert_eq!((words[0], &words[2..4]), ("--connect-file", &["--slots", "2"][..]), "{arguments}");
    assert_eq!(fs::read_to_string(words[1]).unwrap(), format!("{}\n", running.address));
    running.signal(Signal::TERM);
    let (code, _, said) = running.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(!is_alive(pid), "{said}");
}

#[test]
fn a_local_worker_that_a_killed_coordinator_left_is_found_and_asked_to_leave_by_one_that_wants_another_or_none() {
    for wanted in ["3", "0"] {
        let desk = Desk::with_dataset();
        let (running, pid) = serve_with_worker(&desk, OBEDIENT);
        running.signal(Signal::KILL);
        running.end();
        assert!(is_alive(pid));
        let mut command =
            desk.command(&["serve", "--data", "data", "--listen", "127.0.0.1:0", "--local-workers", wanted]);
        command.env("PLURALITY_WORKER", desk.script(OBEDIENT));
        let second = Running::start(command);
        wait_until("the worker of the first has left", || !is_alive(pid));
        second.signal(Signal::TERM);
        assert_eq!(second.end().0, Some(0));
    }
}

#[test]
fn a_state_folder_is_checked_and_cleaned_only_while_no_coordinator_has_it_open() {
    let desk = Desk::with_dataset();
    for command in ["fsck", "gc"] {
        check(&desk, &[command, "--state", "data"], 2, &["folder data holds no coordinator's state", "--state"]);
    }
    let serve = ["serve", "--listen", "127.0.0.1:0", "--data", "data", "--state", "state"];
    let running = Running::start(desk.command(&serve));
    for command in ["fsck", "gc"] {
        check(&desk, &[command, "--state", "state"], 9, &["state folder state is in use by another coordinator"]);
    }
    running.signal(Signal::TERM);
    assert_eq!(running.end().0, Some(0));

    let answer = |arguments: &[&str], code: i32| -> serde_json::Value {
        let output = desk.run(&[arguments, &["--state", "state", "--output", "json"]].concat());
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let checkup = answer(&["fsck"], 0);
    assert_eq!((&checkup["blobs"], &checkup["findings"]), (&4.into(), &serde_json::json!([])));
    // No run names the dataset yet.
    let removed = |collection: &serde_json::Value| collection["removed"].as_array().unwrap().clone();
    let dry = answer(&["gc", "--dry-run"], 0);
    assert_eq!((removed(&dry).len(), dry["is_dry_run"].as_bool()), (4, Some(true)));
    let file = removed(&dry)[0]["file"].as_str().unwrap().to_owned();
    fs::write(desk.path().join("state").join(&file), b"damaged").unwrap();
    let checkup = answer(&["fsck"], 0);
    assert_eq!((&checkup["findings"][0]["file"], &checkup["findings"][0]["kind"]), (&file.into(), &"leftover".into()));
    assert_eq!(removed(&answer(&["gc"], 0)).len(), 4);
    assert_eq!(answer(&["fsck"], 0)["blobs"], 0);

    fs::write(desk.path().join("state/events.sqlite"), [b'x'; 8192]).unwrap();
    let output = desk.run(&["fsck", "--state", "state"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(8), "{said}");
    assert!(said.starts_with("damaged events.sqlite: "), "{said}");
    check(&desk, &["gc", "--state", "state"], 1, &["event store failed"]);
    fs::write(desk.path().join("state/format"), "plurality-state/9\n").unwrap();
    for command in ["fsck", "gc"] {
        check(&desk, &[command, "--state", "state"], 1, &["plurality-state/9", "plurality-state/1"]);
    }
}
