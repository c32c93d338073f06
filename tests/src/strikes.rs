//! Clusters in which a strike waits, what is done to them meanwhile, and what must hold once it has struck.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use plurality_common::{digest::Digest, idx, recipe::Recipe};
use plurality_failpoints::{FILE_VARIABLE, Strike};
use plurality_proto::v1::{
    self, DrainRequest, GetRequest, MemberStatus, PauseRequest, ResumeRequest, SubmitRequest, WorkersRequest,
    run_service_client::RunServiceClient,
};
use tempfile::TempDir;
use tonic::{
    Response, Status,
    transport::{Channel, Endpoint},
};

use crate::{
    cluster::{Cluster, Process, binary, count, wait_for},
    recipes,
    workspace::root,
};

/// Members of a run that is disturbed, unless one is enough.
pub const MEMBERS: u32 = 2;
/// Its seed.
pub const SEED: u64 = 5;
/// Hidden units of [`recipe`]: its checkpoint takes two chunks, each of its snapshots three.
const OUTPUTS: u32 = 180;
/// Passes of [`recipe`].
const EPOCHS: u32 = 10;
/// Passes of [`long_recipe`]: enough for more snapshots than are kept, 0.2 s apart, also where nothing else runs.
const LONG_EPOCHS: u32 = 60;
/// Training images, as many as the recipes of tests take: in four chunks.
const TRAIN_IMAGES: usize = 2500;
/// Test images.
const TEST_IMAGES: usize = 500;

/// Returns what is trained unless a strike needs something else: less than a second, with files of more than one chunk each.
pub fn recipe() -> Recipe {
    recipes::wide(OUTPUTS, EPOCHS)
}

/// Returns what is trained where a strike waits for snapshots, or for a worker that is busy.
pub fn long_recipe() -> Recipe {
    recipes::wide(OUTPUTS, LONG_EPOCHS)
}

/// Returns [`recipe`] as people write it.
pub fn recipe_toml() -> String {
    recipes::wide_toml(OUTPUTS, EPOCHS)
}

/// A strike in a file, until it has struck.
pub struct Waiting {
    text: String,
    file: PathBuf,
    _folder: TempDir,
}

impl Waiting {
    /// Lays out the strike that `text` says.
    ///
    /// # Panics
    ///
    /// Panics when it says none.
    pub fn new(text: &str) -> Self {
        let strike: Strike = text.parse().unwrap_or_else(|error| panic!("{error}"));
        let folder = TempDir::new().expect("the temporary folder is writable");
        let file = folder.path().join("strike");
        fs::write(&file, strike.to_string()).expect("the temporary folder is writable");
        Self { text: text.to_owned(), file, _folder: folder }
    }

    /// Returns the file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Says whether it has struck.
    pub fn is_over(&self) -> bool {
        !self.file.exists()
    }

    /// Waits until it has struck.
    ///
    /// # Panics
    ///
    /// Panics when it never does.
    pub async fn has_struck(&self) {
        wait_for(&format!("a process dies at {}", self.text), async || self.is_over().then_some(())).await;
    }
}

/// A cluster in which a strike waits, trained on a few images of MNIST.
pub struct Struck {
    /// The cluster.
    pub cluster: Cluster,
    /// The strike.
    pub strike: Waiting,
}

impl Struck {
    /// Starts a coordinator with further arguments that waits for `strike`; one that dies before it listens is started again.
    pub async fn start(strike: &str, further: &[&str]) -> Self {
        let (strike, data) = (Waiting::new(strike), few_images());
        let data = data.to_string_lossy();
        let arguments = [&["--data", &data][..], further].concat();
        let mut cluster = Cluster::start_armed(strike.file(), &arguments).await;
        if !cluster.listens() {
            cluster.outlive().await;
        }
        Self { cluster, strike }
    }

    /// Starts a coordinator with further arguments for which no strike waits yet.
    pub async fn start_later(strike: &str, further: &[&str]) -> Self {
        let data = few_images();
        let data = data.to_string_lossy();
        let arguments = [&["--data", &data][..], further].concat();
        Self { cluster: Cluster::start_given(&arguments).await, strike: Waiting::new(strike) }
    }

    /// Starts the coordinator again, now to die. It must have ended.
    pub async fn restart(&mut self) {
        self.cluster.restart_armed(self.strike.file()).await;
    }

    /// Waits for the coordinator's death, unless it was seen, and starts it again.
    pub async fn outlive(&mut self) {
        self.strike.has_struck().await;
        if self.cluster.is_armed() {
            self.cluster.outlive().await;
        }
    }

    /// Returns the address that clients call.
    pub fn uri(&self) -> String {
        format!("http://{}", self.cluster.address)
    }

    /// Waits until `run` is completed and holds it to what must be true however it was disturbed.
    pub async fn completed(&self, run: &str, recipe: &Recipe) -> v1::Run {
        let run = self.cluster.completed(run).await;
        check_members(&self.cluster, &run, recipe).await;
        run
    }

    /// Stops the coordinator in order, and has its state folder checked.
    pub async fn check_state(mut self) {
        self.cluster.stop_coordinator().await;
        check_folder(&self.cluster.state);
    }
}

/// Calls until there is an answer: a coordinator may die under any call, and is asked again.
pub async fn answered<T>(
    uri: &str,
    mut call: impl AsyncFnMut(RunServiceClient<Channel>) -> Result<Response<T>, Status>,
) -> T {
    answered_over(uri, async |channel| call(RunServiceClient::new(channel)).await).await
}

/// Calls over a connection of its own, as [`answered`] does.
pub async fn answered_over<T>(uri: &str, mut call: impl AsyncFnMut(Channel) -> Result<Response<T>, Status>) -> T {
    let endpoint = Endpoint::from_shared(uri.to_owned()).expect("it is an address");
    wait_for("the coordinator answers", async || {
        let channel = endpoint.connect().await.ok()?;
        Some(call(channel).await.ok()?.into_inner())
    })
    .await
}

/// Submits a run of [`MEMBERS`] members, once however often it is asked for.
pub async fn submit(uri: &str, recipe: &Recipe) -> String {
    submit_with_quorum(uri, recipe, MEMBERS, None).await
}

/// Submits a run of one member: enough where it is long, and no other has to come after it.
pub async fn submit_one(uri: &str, recipe: &Recipe) -> String {
    submit_with_quorum(uri, recipe, 1, None).await
}

/// Submits a run that is completed when `quorum` of its `members` are committed and the others have failed.
pub async fn submit_with_quorum(uri: &str, recipe: &Recipe, members: u32, quorum: Option<u32>) -> String {
    let request = SubmitRequest {
        recipe_json: recipe.to_canonical_json(),
        seed: Some(SEED),
        ensemble_size: members,
        continue_unfinished: true,
        first_member: 0,
        quorum,
    };
    answered(uri, async |mut runs| runs.submit(request.clone()).await).await.run_id
}

/// Waits until `condition` holds for a run, whatever becomes of the coordinator meanwhile.
pub async fn run_until(uri: &str, what: &str, run: &str, condition: impl Fn(&v1::Run) -> bool) {
    let request = GetRequest { run: run.to_owned() };
    wait_for(what, async || {
        let found = answered(uri, async |mut runs| runs.get(request.clone()).await).await.run;
        found.filter(|run| condition(run)).map(drop)
    })
    .await;
}

/// Submits a run of one member, pauses it as soon as it has a snapshot, does something while it rests, and resumes it.
pub async fn submit_and_rest(uri: &str, recipe: &Recipe, while_it_rests: impl FnOnce()) -> String {
    let run = submit_one(uri, recipe).await;
    let has_snapshots = |run: &v1::Run| snapshot_steps(run).any(|step| step > 0);
    run_until(uri, "a snapshot is stored", &run, has_snapshots).await;
    let pause = PauseRequest { run: run.clone() };
    answered(uri, async |mut runs| runs.pause(pause.clone()).await).await;
    let rests = |run: &v1::Run| count(run, MemberStatus::Active) == 0;
    run_until(uri, "nobody trains", &run, rests).await;
    while_it_rests();
    let resume = ResumeRequest { run: run.clone() };
    answered(uri, async |mut runs| runs.resume(resume.clone()).await).await;
    run
}

/// Has the worker that went on with a member after a rest say so at once, and not with its next heartbeat: asked to finish, it
/// answers that it will.
pub async fn hear_of_resumed(uri: &str, run: &str) {
    let goes_on = |run: &v1::Run| {
        let attempts = &run.members[0].attempt_list;
        attempts.len() > 1 && attempts.last().is_some_and(|attempt| attempt.snapshot_step.is_some())
    };
    run_until(uri, "the member goes on", run, goes_on).await;
    let request = DrainRequest { worker: busy_worker(uri).await, finish: true };
    answered(uri, async |mut runs| runs.drain(request.clone()).await).await;
}

fn snapshot_steps(run: &v1::Run) -> impl Iterator<Item = u64> {
    run.members.iter().flat_map(|member| &member.attempt_list).filter_map(|attempt| attempt.snapshot_step)
}

/// Waits until a worker holds an attempt, and returns the worker.
pub async fn busy_worker(uri: &str) -> String {
    wait_for("a worker trains", async || {
        let workers = answered(uri, async |mut runs| runs.workers(WorkersRequest {}).await).await.workers;
        workers.into_iter().find(|worker| !worker.attempts.is_empty()).map(|worker| worker.worker_id)
    })
    .await
}

/// Returns the digests of the checkpoints of a run that nothing disturbs. They are trained once for all tests, and kept for
/// as long as this machine runs and the trainer stays the same.
pub async fn undisturbed(recipe: &Recipe) -> Vec<String> {
    let trainer = fs::read(binary("worker-trainer")).expect("the trainer was built");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("this is Linux");
    let known = [Digest::of(&trainer).to_string(), boot, recipe.to_canonical_json()].concat();
    let path = beside_programs(&format!("undisturbed-{}", Digest::of(known.as_bytes()).short()));
    let file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
    let file = file.expect("the folder of what was built is writable");
    // One test trains, the others wait for it.
    tokio::task::block_in_place(|| file.lock()).expect("a file can be locked");
    let text = fs::read_to_string(&path).expect("it was just opened");
    if !text.is_empty() {
        return text.split_whitespace().map(str::to_owned).collect();
    }
    let cluster = Cluster::start_given(&["--data", &few_images().to_string_lossy()]).await;
    let _worker = cluster.worker("undisturbed");
    let run = cluster.submit(&recipe.to_canonical_json(), MEMBERS, SEED).await;
    cluster.completed(&run).await;
    let digests = cluster.checkpoints(&run).await;
    fs::write(&path, digests.join("\n")).expect("the folder of what was built is writable");
    digests
}

/// Returns a folder with the first images of MNIST, made once: with all of them each strike would spend its time on storing and
/// hashing the dataset.
pub fn few_images() -> PathBuf {
    let folder = beside_programs(&format!("mnist-{TRAIN_IMAGES}-{TEST_IMAGES}"));
    if !folder.exists() {
        let parent = folder.parent().expect("it lies beside the programs");
        let made = tempfile::tempdir_in(parent).expect("the folder of what was built is writable");
        for (stem, images) in [("train", TRAIN_IMAGES), ("t10k", TEST_IMAGES)] {
            write_first(made.path(), stem, images);
        }
        // Another test may have been faster; then its folder stays, and says the same.
        let _is_first = fs::rename(made.path(), &folder);
    }
    folder
}

/// Writes the first `images` of MNIST's files `stem` into `folder`.
fn write_first(folder: &Path, stem: &str, images: usize) {
    let read = |name: &str| fs::read(root().join("data/mnist").join(name)).expect("the project carries MNIST");
    let write = |name: &str, bytes: &[u8]| fs::write(folder.join(name), bytes).expect("the folder was just made");
    let name = format!("{stem}-images-idx3-ubyte");
    let mut found = idx::parse_images(&name, &read(&format!("{name}.gz"))).expect("MNIST is well formed");
    found.count = images;
    found.pixels.truncate(images * found.rows * found.columns);
    write(&name, &found.to_idx());
    let name = format!("{stem}-labels-idx1-ubyte");
    let mut found = idx::parse_labels(&name, &read(&format!("{name}.gz")), 10).expect("MNIST is well formed");
    found.0.truncate(images);
    write(&name, &found.to_idx());
}

fn beside_programs(name: &str) -> PathBuf {
    binary("worker-trainer").with_file_name(name)
}

/// Holds a completed run to what must be true however it was disturbed: one commit a member, and the bytes of a run that was
/// not.
async fn check_members(cluster: &Cluster, run: &v1::Run, recipe: &Recipe) {
    assert_eq!(count(run, MemberStatus::Committed), run.members.len(), "{run:?}");
    for member in &run.members {
        let won = member.attempt_list.iter().filter(|attempt| attempt.status() == v1::AttemptStatus::Won);
        assert_eq!(won.count(), 1, "{member:?}");
    }
    // Whether others follow a member changes nothing about it.
    assert_eq!(cluster.checkpoints(&run.run_id).await, undisturbed(recipe).await[..run.members.len()]);
}

/// Holds a training that its worker went on with to having lost nothing: one attempt a member, and no step taken twice.
pub fn check_nothing_lost(run: &v1::Run) {
    for member in &run.members {
        assert_eq!((member.attempts, member.failures.len()), (1, 0), "{member:?}");
    }
    assert_eq!((run.repeated_steps, run.lost_steps), (0, 0), "{run:?}");
}

/// Holds a run that somebody interrupted in order to having charged nobody for it.
pub fn check_nothing_charged(run: &v1::Run) {
    assert!(run.members.iter().all(|member| member.failures.is_empty()), "{run:?}");
}

/// Has a state folder checked that no coordinator has open.
pub fn check_folder(state: &Path) {
    let fsck = maintain("fsck", state, None);
    let said = String::from_utf8_lossy(&fsck.stdout);
    assert!(fsck.status.success() && said.contains("no damage"), "{said}{}", String::from_utf8_lossy(&fsck.stderr));
}

/// Carries out `coordinator fsck` or `gc` on a state folder, to die where `strike` says.
pub fn maintain(command: &str, state: &Path, strike: Option<&Path>) -> Output {
    let mut coordinator = Command::new(binary("coordinator"));
    coordinator.arg(command).arg("--state").arg(state).stdin(Stdio::null());
    coordinator.envs(strike.map(|strike| (FILE_VARIABLE, strike)));
    coordinator.output().expect("the coordinator was built")
}

/// Runs the one-run form in `folder` with one local worker, to die where `strike` says.
pub fn one_run(folder: &Path, recipe: &Path, log: &str, strike: Option<&Path>) -> Process {
    let (state, out, data) = (folder.join("state"), folder.join("out"), few_images());
    let [state, out, data, recipe] = [&state, &out, &data, recipe].map(|path| path.to_string_lossy());
    let (members, seed) = (MEMBERS.to_string(), SEED.to_string());
    let arguments = ["--listen", "127.0.0.1:0", "--local-workers", "1", "--ensemble", &members, "--seed", &seed];
    let arguments =
        [&arguments[..], &["--data", &data, "--recipe", &recipe, "--state", &state, "--out", &out]].concat();
    let strike = strike.map(|strike| (FILE_VARIABLE, strike.as_os_str()));
    Process::start_where("coordinator", &arguments, &folder.join(log), strike.as_slice())
}
