//! Real coordinator and worker processes, started on loopback, watched through the public protocol, killed for real.
//!
//! Every wait has a condition and a deadline that is generous, since the machine may be loaded; nothing waits for time to
//! pass alone.

use std::{
    ffi::OsStr,
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use plurality_failpoints::FILE_VARIABLE;
use plurality_proto::v1::{
    self, GetRequest, MemberStatus, ReportRequest, RunStatus, SubmitRequest, WorkersRequest,
    run_service_client::RunServiceClient,
};
use tempfile::TempDir;
use tonic::transport::Channel;

/// How long any condition may take to come true on a machine that does other things too.
pub const PATIENCE: Duration = Duration::from_secs(240);
/// Where a coordinator listens that only this machine is to reach.
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// The signal that nobody can refuse.
const KILLED: i32 = 9;
/// The interval of snapshots that are written as often as the trainer can.
const NO_INTERVAL: &str = "0s";
/// Flags of a worker whose trainer writes snapshots as often as it can.
pub const OFTEN: &[&str] = &["--snapshot-interval", NO_INTERVAL];
/// Between two looks at a condition.
const LOOK: Duration = Duration::from_millis(50);

/// Returns the path of a program built beside this test.
///
/// # Panics
///
/// Panics when it was not built: the tests are run with `make test`, which builds everything.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a running test has an executable");
    let folder = test.ancestors().find(|folder| folder.join(name).is_file());
    let path = folder.map(|folder| folder.join(name));
    path.unwrap_or_else(|| panic!("{name} lies nowhere above {}: run `make build` first", test.display()))
}

/// Looks until `look` returns something, at most for [`PATIENCE`].
///
/// # Panics
///
/// Panics at the deadline, saying `what` did not come true.
pub async fn wait_for<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain until {what}");
        tokio::time::sleep(LOOK).await;
    }
}

/// One process of the cluster; killed when dropped.
pub struct Process {
    child: Child,
    /// Everything it printed, both streams.
    pub log: PathBuf,
}

impl Process {
    /// Starts `program` with `arguments`, its output in `log`.
    pub fn start(program: &str, arguments: &[&str], log: &Path) -> Self {
        Self::start_where(program, arguments, log, &[])
    }

    /// Starts `program` as [`Self::start`] does, with the variables of `environment`.
    pub fn start_where(program: &str, arguments: &[&str], log: &Path, environment: &[(&str, &OsStr)]) -> Self {
        let mut command = Command::new(binary(program));
        Self::spawn(program, command.args(arguments).envs(environment.iter().copied()), log)
    }

    /// Starts `program` with `arguments` where no more than `files` may be open at a time, its output in `log`.
    pub fn start_with_files(files: u32, program: &str, arguments: &[&str], log: &Path) -> Self {
        let script = format!("ulimit -n {files} && exec \"$0\" \"$@\"");
        Self::spawn(program, Command::new("sh").args(["-c", &script]).arg(binary(program)).args(arguments), log)
    }

    fn spawn(program: &str, command: &mut Command, log: &Path) -> Self {
        let output = File::create(log).expect("the test's folder is writable");
        let child = command
            .env("RUST_LOG", "info")
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a file handle can be doubled"))
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("failed to start {program}: {error}"));
        Self { child, log: log.to_owned() }
    }

    /// Returns its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns how many files and connections it has open.
    pub fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.id())).map_or(0, Iterator::count)
    }

    /// Returns its resident memory in bytes.
    pub fn memory_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.expect("a process that runs has resident memory") * 1024
    }

    /// Returns everything it printed so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Returns how it ended, if it has.
    pub fn end(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("our own child can be waited for")
    }

    /// Ends it at once with SIGKILL and waits until it is gone.
    pub fn kill(&mut self) {
        self.child.kill().expect("our own child can be killed");
        self.child.wait().expect("our own child can be waited for");
    }

    /// Sends `signal` (such as `TERM`, `STOP`, `CONT`).
    pub fn signal(&self, signal: &str) {
        send_signal(self.id(), signal);
    }

    /// Waits until it has ended.
    pub async fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.end() {
                return status;
            }
            assert!(Instant::now() < deadline, "process did not end within {PATIENCE:?}:\n{}", self.output());
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), self.output());
        }
    }
}

/// Processes that are stopped; killed if they still exist when this is dropped, because nothing else would end them.
pub struct Stopped(Vec<u32>);

impl Stopped {
    /// Stops processes `ids` with SIGSTOP.
    pub fn stop(ids: Vec<u32>) -> Self {
        ids.iter().for_each(|id| send_signal(*id, "STOP"));
        Self(ids)
    }

    /// Lets them go on.
    pub fn go_on(mut self) {
        self.0.drain(..).for_each(|id| send_signal(id, "CONT"));
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.iter().filter(|id| is_running(**id)).for_each(|id| send_signal(*id, "KILL"));
    }
}

/// Sends `signal` to process `id`.
///
/// # Panics
///
/// Panics when there is no such process.
pub fn send_signal(id: u32, signal: &str) {
    let status = Command::new("kill").args([&format!("-{signal}"), &id.to_string()]).status().expect("kill exists");
    assert!(status.success(), "kill -{signal} {id} failed");
}

/// Returns the ids of the processes whose parent is `parent`.
pub fn children_of(parent: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|id| parent_of(*id) == Some(parent)).collect()
}

/// Says whether process `id` runs (a zombie does not).
pub fn is_running(id: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    status.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Says whether process `id` trains: neither the check of the machine with which a worker begins, nor what is left of that, nor
/// one that is only about to become a trainer.
fn is_training(id: u32) -> bool {
    let line = fs::read_to_string(format!("/proc/{id}/cmdline")).unwrap_or_default();
    let mut words = line.split('\0');
    words.next().is_some_and(|program| program.ends_with("worker-trainer")) && words.all(|word| word != "--check")
}

fn parent_of(id: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // "pid (name) state parent …", where the name may hold spaces.
    status.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// A coordinator that takes runs, and its workers, in a folder of their own.
pub struct Cluster {
    /// The coordinator.
    pub coordinator: Process,
    /// Where the coordinator listens.
    pub address: SocketAddr,
    starts: usize,
    /// The coordinator's state folder.
    pub state: PathBuf,
    /// Further arguments of the coordinator.
    further: Vec<String>,
    /// Whether the coordinator that was started last is to die somewhere.
    is_armed: bool,
    /// Everything of this cluster; last, so that it is removed after the processes that write into it have ended.
    pub folder: TempDir,
}

impl Cluster {
    /// Starts `coordinator serve` on a free port.
    pub async fn start() -> Self {
        Self::start_given(&[]).await
    }

    /// Starts `coordinator serve` on a free port, with further arguments.
    pub async fn start_given(further: &[&str]) -> Self {
        let folder = TempDir::new().expect("the temporary folder is writable");
        let state = folder.path().join("state");
        Self::start_with(folder, state, LOOPBACK, further).await
    }

    /// Starts `coordinator serve` on a free port of `address`, which others than this machine reach.
    pub async fn start_at(address: IpAddr) -> Self {
        let folder = TempDir::new().expect("the temporary folder is writable");
        let state = folder.path().join("state");
        Self::start_with(folder, state, address, &["--insecure"]).await
    }

    /// Starts `coordinator serve` with its state below `disk` and further arguments.
    pub async fn start_in(disk: &Path, further: &[&str]) -> Self {
        let folder = TempDir::new().expect("the temporary folder is writable");
        Self::start_with(folder, disk.join("state"), LOOPBACK, further).await
    }

    /// Starts `coordinator serve`, which dies where the file `strike` says, and hands that on to a local worker. It may have died
    /// when this returns; then [`Self::listens`] says so.
    pub async fn start_armed(strike: &Path, further: &[&str]) -> Self {
        let folder = TempDir::new().expect("the temporary folder is writable");
        let state = folder.path().join("state");
        let further: Vec<String> = further.iter().map(|&word| word.to_owned()).collect();
        let address = SocketAddr::new(LOOPBACK, 0);
        let coordinator = launch(folder.path(), &state, &further, address, 0, Some(strike));
        let mut cluster = Self { folder, state, further, address, coordinator, starts: 1, is_armed: true };
        cluster.settle().await;
        cluster
    }

    /// Starts the coordinator again, as [`Self::start_armed`] does.
    pub async fn restart_armed(&mut self, strike: &Path) {
        let listen = self.address;
        self.coordinator = launch(self.folder.path(), &self.state, &self.further, listen, self.starts, Some(strike));
        (self.starts, self.is_armed) = (self.starts + 1, true);
        self.settle().await;
    }

    /// Waits until the coordinator listens or has ended.
    async fn settle(&mut self) {
        let coordinator = &mut self.coordinator;
        let address = wait_for("the coordinator listens or has ended", async || {
            let address = address_in(&coordinator.output());
            let is_settled = address.is_some() || coordinator.end().is_some();
            is_settled.then_some(address)
        });
        self.address = address.await.unwrap_or(self.address);
    }

    /// Says whether the coordinator has ever listened.
    pub fn listens(&self) -> bool {
        self.address.port() != 0
    }

    /// Says whether the coordinator that was started last is to die somewhere.
    pub fn is_armed(&self) -> bool {
        self.is_armed
    }

    /// Stops the coordinator in order.
    ///
    /// # Panics
    ///
    /// Panics when it ends with an error.
    pub async fn stop_coordinator(&mut self) {
        self.coordinator.signal("TERM");
        let end = self.coordinator.ended().await;
        assert!(end.success(), "{}", self.coordinator.output());
    }

    /// Waits until the coordinator has died by SIGKILL, and starts it again.
    ///
    /// # Panics
    ///
    /// Panics when it lives on, or ends in another way.
    pub async fn outlive(&mut self) {
        let end = self.coordinator.ended().await;
        assert_eq!(end.signal(), Some(KILLED), "{}", self.coordinator.output());
        self.restart_coordinator().await;
    }

    async fn start_with(folder: TempDir, state: PathBuf, address: IpAddr, further: &[&str]) -> Self {
        let further: Vec<String> = further.iter().map(|&word| word.to_owned()).collect();
        let listen = SocketAddr::new(address, 0);
        let (coordinator, address) = serve(folder.path(), &state, &further, listen, 0).await;
        Self { folder, state, further, address, coordinator, starts: 1, is_armed: false }
    }

    /// Starts the coordinator again, on the same port and the same state.
    pub async fn restart_coordinator(&mut self) {
        self.is_armed = false;
        (self.coordinator, self.address) =
            serve(self.folder.path(), &self.state, &self.further, self.address, self.starts).await;
        self.starts += 1;
    }

    /// Starts a worker with one slot.
    pub fn worker(&self, name: &str) -> Process {
        self.worker_with(name, &[])
    }

    /// Starts a worker with one slot and further arguments.
    pub fn worker_with(&self, name: &str, further: &[&str]) -> Process {
        let cache = self.folder.path().join(format!("cache-{name}"));
        let log = self.folder.path().join(format!("worker-{name}.log"));
        let arguments = ["--connect", &self.address.to_string(), "--slots", "1", "--name", name, "--cache"];
        let cache = cache.to_string_lossy();
        Process::start("worker", &[&arguments[..], &[&cache], further].concat(), &log)
    }

    /// Waits until `worker` trains and returns its trainers.
    ///
    /// Looks at processes, not at progress: that is reported by heartbeats, and a fast machine trains a small network
    /// between two of them.
    pub async fn trainers(&self, worker: &Process) -> Vec<u32> {
        wait_for("the worker trains", || async {
            let trainers: Vec<u32> = children_of(worker.id()).into_iter().filter(|id| is_training(*id)).collect();
            (!trainers.is_empty()).then_some(trainers)
        })
        .await
    }

    /// Returns a client of the run service.
    pub async fn runs(&self) -> RunServiceClient<Channel> {
        let uri = format!("http://{}", self.address);
        wait_for("the coordinator answers", || async { RunServiceClient::connect(uri.clone()).await.ok() }).await
    }

    /// Submits a run of `members` members and returns its id.
    pub async fn submit(&self, recipe_json: &str, members: u32, seed: u64) -> String {
        let request = SubmitRequest {
            recipe_json: recipe_json.to_owned(),
            seed: Some(seed),
            ensemble_size: members,
            continue_unfinished: false,
            first_member: 0,
            quorum: None,
        };
        let response = self.runs().await.submit(request).await.expect("the request is valid");
        response.into_inner().run_id
    }

    /// Returns a run as it stands; `None` while the coordinator does not answer.
    pub async fn run(&self, run: &str) -> Option<v1::Run> {
        let uri = format!("http://{}", self.address);
        let mut client = RunServiceClient::connect(uri).await.ok()?;
        client.get(GetRequest { run: run.to_owned() }).await.ok()?.into_inner().run
    }

    /// Waits until `condition` holds for a run.
    pub async fn run_until(&self, what: &str, run: &str, condition: impl Fn(&v1::Run) -> bool) -> v1::Run {
        wait_for(what, || async { self.run(run).await.filter(|run| condition(run)) }).await
    }

    /// Waits until a run is completed.
    ///
    /// # Panics
    ///
    /// Panics when it fails or is cancelled instead.
    pub async fn completed(&self, run: &str) -> v1::Run {
        let run = self.run_until("the run ends", run, |run| run.status() != RunStatus::Running).await;
        assert_eq!(run.status(), RunStatus::Completed, "{}", run.message);
        run
    }

    /// Returns the digests of a completed run's checkpoints, by member.
    pub async fn checkpoints(&self, run: &str) -> Vec<String> {
        let request = ReportRequest { run: run.to_owned() };
        let report = self.runs().await.report(request).await.expect("the run is completed").into_inner();
        report.members.into_iter().map(|blob| blob.sha256).collect()
    }

    /// Returns the workers as the coordinator sees them.
    pub async fn workers(&self) -> Vec<v1::Worker> {
        self.runs().await.workers(WorkersRequest {}).await.expect("the coordinator answers").into_inner().workers
    }
}

/// Starts a coordinator for the `start`-th time, to die where the file `strike` says.
fn launch(
    folder: &Path,
    state: &Path,
    further: &[String],
    listen: SocketAddr,
    start: usize,
    strike: Option<&Path>,
) -> Process {
    let (state, listen) = (state.to_string_lossy(), listen.to_string());
    let mut arguments = vec!["serve", "--listen", &listen, "--state", &state];
    arguments.extend(further.iter().map(String::as_str));
    let log = folder.join(format!("coordinator-{start}.log"));
    // The interval is for local workers: snapshots as often as the trainer can.
    let often = ("PLURALITY_SNAPSHOT_INTERVAL", OsStr::new(NO_INTERVAL));
    let environment = strike.map(|strike| [(FILE_VARIABLE, strike.as_os_str()), often]);
    Process::start_where("coordinator", &arguments, &log, environment.as_ref().map_or(&[], |both| both))
}

async fn serve(
    folder: &Path,
    state: &Path,
    further: &[String],
    listen: SocketAddr,
    start: usize,
) -> (Process, SocketAddr) {
    let process = launch(folder, state, further, listen, start, None);
    let address = wait_for("the coordinator says where it listens", || async { address_in(&process.output()) }).await;
    (process, address)
}

/// Finds the address with which a coordinator that serves says where it listens.
pub fn address_in(output: &str) -> Option<SocketAddr> {
    let (_, said) = output.split_once("listening on ")?;
    let (address, _) = said.split_once('\n')?;
    address.parse().ok()
}

/// Counts the members of `run` in `status`.
pub fn count(run: &v1::Run, status: MemberStatus) -> usize {
    run.members.iter().filter(|member| member.status() == status).count()
}
