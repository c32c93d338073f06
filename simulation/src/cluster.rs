//! A whole cluster, from its first machine to the end of its last run.
//!
//! Machines take turns of [`LATENCY_MIN`], always in the same order; in between, what the plan has for this moment happens to
//! them. Once the plan's faults are over, everything that is off is switched on again, a worker that nothing has happened to
//! is added, and every run has to come to its end.

mod audit;
mod incidents;

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use object_store::memory::InMemory;
use plurality_common::{
    digest::Digest,
    limits::{DRAIN_TIMEOUT, STALL_TIMEOUT},
};
use plurality_coordinator::{
    artifacts::ArtifactStore,
    blocking,
    core::WallTime,
    driver::{Environment, StartError},
    server::{Parts, Server, ServerError},
    store::StoreError,
};
use plurality_proto::v1::run_service_client::RunServiceClient;
use plurality_worker::{
    agent::{
        self, AgentError, Outfit,
        server::Server as Way,
        session::{Home, Identity},
    },
    config::ResolvedDevice,
    host,
    signals::Leave,
};
use tempfile::TempDir;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::{
    chance::Chance,
    check::SyntheticCheck,
    clock::Clock,
    coverage::{Coverage, Sight},
    dataset,
    disk::Disk,
    doom::Doomed,
    ledger::Ledger,
    machine::{Machine, note_panics, take_panics},
    network::{Address, LATENCY_MIN, Link, Network},
    people::{People, worker_name},
    plan::{Faults, Incident, Plan, Sabotage, WorkerPlan, habit},
    service::Unreliable,
    synthetic::{Synthetic, class},
    trace::Trace,
    uploads::Uploads,
    witness::Witness,
};

/// The coordinator's place among the machines.
const COORDINATOR: Address = Address(0);
/// The people's.
const PEOPLE: Address = Address(1);
/// The first worker's.
const FIRST_WORKER: usize = 2;
/// Streams of [`Chance`] beside the plan's.
const CLUSTER_STREAM: u64 = 3;
const FRESH_STREAM: u64 = 4;
/// How long a run may take to end once faults have stopped: several orphan windows, and all work on one slow slot.
const PATIENCE: Duration = Duration::from_secs(3 * 60 * 60);
/// How long workers may take to learn that everything has ended.
const SETTLING: Duration = Duration::from_secs(100);
/// How long some clusters are watched that have a worker in quarantine then: until that has ended with time.
const LONG_SETTLING: Duration = Duration::from_secs(16 * 60);
/// Where the wall clock begins, in milliseconds since 1970: some day in 2026.
const WALL_BEGIN_MS: i64 = 1_780_000_000_000;

/// A simulation could not be made.
#[derive(Debug, Error)]
pub enum SimulationError {
    /// There is no room for files.
    #[error("failed to make a folder for the simulated machines")]
    Folder(#[source] io::Error),
    /// There is no room for a runtime.
    #[error("failed to switch a simulated machine on")]
    Machine(#[source] io::Error),
}

/// How a simulation went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// What was as it must never be.
    pub violation: Option<String>,
    /// Digest of everything that happened.
    pub digest: Digest,
    /// The last lines of the trace.
    pub tail: Vec<String>,
    /// Virtual time that it took.
    pub time: Duration,
    /// Attempts that were made.
    pub attempts: usize,
    /// Members committed.
    pub committed: usize,
    /// Runs completed, failed, cancelled.
    pub runs: [usize; 3],
    /// Times that the coordinator was started.
    pub coordinator_lives: u64,
    /// What was seen to happen.
    pub coverage: Coverage,
}

/// How the program of a machine ended.
#[derive(Debug)]
enum Exit {
    /// As it was asked to, or had nothing more to do.
    Done,
    /// For a reason that the simulation gave it.
    Expected(String),
    /// For no reason.
    Unexpected(String),
}

/// Something that happens at a certain time.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Boot(Address),
    Thaw(Address),
    Leave(Address),
    Incident(Incident),
    Restore(Address, Address),
    MakeRoom,
    Calm,
}

/// A place for a machine, on or off.
#[derive(Default)]
struct Place {
    machine: Option<Machine<Exit>>,
    is_frozen: bool,
    /// Whether it was asked to stop while it stood still, and does not know yet.
    is_to_leave: bool,
    lives: u64,
    /// Cancelled when its program is to end in order.
    leave: CancellationToken,
}

/// A cluster under way.
struct Cluster {
    seed: u64,
    plan: Plan,
    clock: Clock,
    trace: Trace,
    witness: Witness,
    faults: Faults,
    chance: Chance,
    fresh: Chance,
    network: Network,
    disk: Disk,
    objects: Arc<InMemory>,
    folder: TempDir,
    /// How far the wall clock is from where it should be.
    wall_shift_ms: Arc<AtomicI64>,
    trainers: BTreeMap<Address, Synthetic>,
    places: BTreeMap<Address, Place>,
    deeds: BTreeMap<(Duration, u64), Deed>,
    next_deed: u64,
    now: Duration,
    is_calm: bool,
}

/// Simulates what `seed` stands for.
///
/// # Errors
///
/// When there is no room for the simulated machines.
pub fn simulate(seed: u64, sabotage: Sabotage, is_printed: bool) -> Result<Outcome, SimulationError> {
    host::simulate(seed);
    blocking::simulate();
    note_panics();
    Cluster::new(seed, sabotage, is_printed)?.run()
}

impl Cluster {
    fn new(seed: u64, sabotage: Sabotage, is_printed: bool) -> Result<Self, SimulationError> {
        let plan = Plan::draw(seed);
        let clock = Clock::default();
        let trace = Trace::new(is_printed);
        let witness = Witness::new(clock.clone(), trace.clone(), plan.file_bytes, plan.timing);
        let faults = Faults::new(plan.rates, sabotage);
        let chance = Chance::new(seed, CLUSTER_STREAM);
        let network = Network::new(clock.clone(), seed);
        let disk = Disk::new(chance.clone(), faults.clone(), witness.clone());
        let folder = scratch_folder().map_err(SimulationError::Folder)?;
        let mut cluster = Self {
            seed,
            clock,
            trace,
            witness,
            faults,
            chance,
            fresh: Chance::new(seed, FRESH_STREAM),
            network,
            disk,
            objects: Arc::new(InMemory::new()),
            folder,
            wall_shift_ms: Arc::default(),
            trainers: BTreeMap::new(),
            places: BTreeMap::new(),
            deeds: BTreeMap::new(),
            next_deed: 0,
            now: Duration::ZERO,
            is_calm: false,
            plan,
        };
        cluster.witness.say(&format!("{:?}", cluster.plan));
        cluster.prepare();
        Ok(cluster)
    }

    /// Puts down everything that is to happen.
    fn prepare(&mut self) {
        let workers: Vec<WorkerPlan> = self.plan.workers.clone();
        self.later(Duration::ZERO, Deed::Boot(COORDINATOR));
        self.later(Duration::ZERO, Deed::Boot(PEOPLE));
        for (worker, plan) in workers.iter().enumerate() {
            self.equip(worker, plan);
            self.later(plan.comes_at, Deed::Boot(address(worker)));
            for (from, to) in [(address(worker), COORDINATOR), (COORDINATOR, address(worker))] {
                let link = Link {
                    latency: LATENCY_MIN + self.chance.seconds(0.0, 0.1),
                    jitter: self.chance.seconds(0.0, 0.2),
                    is_down: false,
                    cut: self.plan.rates.cut,
                };
                self.network.change(from, to, |known| *known = link);
            }
        }
        for (at, incident) in self.plan.incidents.clone() {
            self.later(at, Deed::Incident(incident));
        }
        self.later(self.plan.calm_at, Deed::Calm);
    }

    /// Gives a worker its trainers, which outlive its processes only as a count.
    fn equip(&mut self, worker: usize, plan: &WorkerPlan) {
        let (chance, faults, step) = (self.chance.clone(), self.faults.clone(), plan.step);
        let habits = Arc::new(move || habit(&chance, step, &faults));
        let trainers = Synthetic::new(class(plan.class), self.plan.file_bytes, habits);
        self.trainers.insert(address(worker), trainers);
    }

    fn later(&mut self, at: Duration, deed: Deed) {
        self.deeds.insert((at.max(self.now), self.next_deed), deed);
        self.next_deed += 1;
    }

    fn run(mut self) -> Result<Outcome, SimulationError> {
        let ran = self.run_to_the_end();
        // Programs that still run end here, and what they say while they do is of no interest.
        let addresses: Vec<Address> = self.places.keys().copied().collect();
        for address in addresses {
            self.switch_off(address, false);
        }
        ran?;
        let (committed, runs) = self.witness.with_ledger(|ledger| ledger.totals());
        Ok(Outcome {
            seed: self.seed,
            violation: self.trace.violation(),
            digest: self.trace.digest(),
            tail: self.trace.tail(),
            time: self.now,
            attempts: self.witness.with_ledger(|ledger| ledger.attempts()),
            committed,
            runs,
            coordinator_lives: self.places.get(&COORDINATOR).map_or(0, |place| place.lives),
            coverage: self.witness.coverage(),
        })
    }

    fn run_to_the_end(&mut self) -> Result<(), SimulationError> {
        while !(self.is_calm && self.witness.is_all_done()) {
            self.turn()?;
            if self.now > self.plan.calm_at + PATIENCE {
                let left = self.witness.what_is_left();
                self.witness.object(&format!("{} s after faults stopped: {left}", PATIENCE.as_secs()));
            }
            if self.trace.violation().is_some() {
                return Ok(());
            }
        }
        let is_quarantined = self.witness.with_ledger(Ledger::has_quarantine);
        let settling = if is_quarantined && self.chance.happens(0.15) { LONG_SETTLING } else { SETTLING };
        let settled_at = self.now + settling;
        while self.now < settled_at && self.trace.violation().is_none() {
            self.turn()?;
        }
        if settling == LONG_SETTLING && self.witness.with_ledger(Ledger::has_quarantine) {
            self.witness.object("a quarantine does not end with time");
        }
        self.audit()
    }

    /// Does what is due, and lets every machine run until the next thing is.
    fn turn(&mut self) -> Result<(), SimulationError> {
        while let Some(entry) = self.deeds.first_entry()
            && entry.key().0 <= self.now
        {
            let deed = entry.remove();
            self.do_it(deed)?;
        }
        let next_deed = self.deeds.keys().next().map_or(Duration::MAX, |(at, _)| *at);
        let until = (self.now + LATENCY_MIN).min(next_deed);
        for place in self.places.values() {
            if let Some(machine) = place.machine.as_ref().filter(|_| !place.is_frozen) {
                machine.run_until(until);
            }
        }
        self.now = until;
        self.clock.reach(until);
        self.bury();
        let fallen: Vec<Address> = self
            .trainers
            .iter()
            .filter(|(_, trainers)| trainers.has_gone_down())
            .map(|(address, _)| *address)
            .collect();
        for address in fallen {
            self.witness.say(&format!("{address:?} is brought down by a training"));
            self.witness.see(Sight::MachineFell);
            let (away, says_goodbye) = (self.chance.seconds(0.5, 5.0), self.chance.happens(0.5));
            self.kill(address, away, says_goodbye);
        }
        for (address, trainers) in &self.trainers {
            let slots = self.slots(*address);
            if trainers.under_way() > slots {
                self.witness.object(&format!("{address:?} has {} trainings in {slots} slots", trainers.under_way()));
            }
        }
        for panic in take_panics() {
            self.witness.object(&format!("a program panicked: {panic}"));
        }
        Ok(())
    }

    fn slots(&self, address: Address) -> usize {
        self.worker_plan(address).map_or(usize::MAX, |plan| plan.slots as usize)
    }

    fn worker_plan(&self, address: Address) -> Option<&WorkerPlan> {
        address.0.checked_sub(FIRST_WORKER).and_then(|worker| self.plan.workers.get(worker))
    }

    /// Looks after machines whose programs have ended.
    fn bury(&mut self) {
        let ended = self.places.iter().filter(|(_, place)| place.machine.as_ref().is_some_and(Machine::has_ended));
        let ended: Vec<Address> = ended.map(|(address, _)| *address).collect();
        for address in ended {
            let machine = self.places.get_mut(&address).and_then(|place| place.machine.take());
            let Some(machine) = machine else { continue };
            self.network.switch_off(address, true);
            match machine.outcome() {
                Some(Exit::Done) => self.witness.say(&format!("{address:?} ends in order")),
                Some(Exit::Expected(reason)) => self.witness.say(&format!("{address:?} ends: {reason}")),
                Some(Exit::Unexpected(reason)) => self.witness.object(&format!("{address:?} ends: {reason}")),
                // The panic itself is noted elsewhere.
                None => self.witness.say(&format!("{address:?} ends in a panic")),
            }
            if address != PEOPLE {
                let back_at = self.now + self.chance.seconds(0.5, 20.0);
                self.later(back_at, Deed::Boot(address));
            }
        }
    }

    fn do_it(&mut self, deed: Deed) -> Result<(), SimulationError> {
        match deed {
            Deed::Boot(address) => return self.boot(address),
            Deed::Thaw(address) => self.thaw(address),
            Deed::Leave(address) => self.ask_to_leave(address),
            Deed::Restore(from, to) => {
                let cut = self.faults.get().cut;
                self.network.change(from, to, |link| *link = Link { cut, ..Link::default() });
            }
            Deed::MakeRoom => self.disk.make_room(),
            Deed::Incident(incident) if !self.is_calm => self.happen(incident),
            Deed::Incident(_) => {}
            Deed::Calm => self.calm(),
        }
        Ok(())
    }

    fn kill(&mut self, address: Address, away: Duration, says_goodbye: bool) {
        if self.switch_off(address, says_goodbye) {
            self.later(self.now + away, Deed::Boot(address));
        }
    }

    /// Switches a machine off; says whether it was on.
    fn switch_off(&mut self, address: Address, says_goodbye: bool) -> bool {
        let place = self.places.entry(address).or_default();
        (place.is_frozen, place.is_to_leave) = (false, false);
        let Some(machine) = place.machine.take() else { return false };
        // First, so that connections that are dropped with the machine say nothing.
        self.network.switch_off(address, says_goodbye);
        drop(machine);
        true
    }

    fn ask_to_leave(&mut self, address: Address) {
        match self.places.get_mut(&address) {
            Some(place) if address == COORDINATOR && place.is_frozen => place.is_to_leave = true,
            Some(place) => place.leave.cancel(),
            None => {}
        }
    }

    /// Has the coordinator stop at a moment when nothing reaches it: of two things that have happened at once its server takes one at
    /// random.
    fn stop_coordinator(&mut self) {
        self.network.hush(COORDINATOR, self.now + 2 * LATENCY_MIN);
        self.later(self.now + LATENCY_MIN, Deed::Leave(COORDINATOR));
    }

    fn freeze(&mut self, address: Address, pause: Duration) {
        let place = self.places.entry(address).or_default();
        if place.machine.is_some() && !place.is_frozen {
            place.is_frozen = true;
            self.later(self.now + pause, Deed::Thaw(address));
        }
    }

    fn thaw(&mut self, address: Address) {
        let now = self.now;
        let place = self.places.entry(address).or_default();
        if std::mem::take(&mut place.is_frozen)
            && let Some(machine) = &place.machine
        {
            self.witness.say(&format!("{address:?} goes on"));
            machine.wake(now);
            if std::mem::take(&mut place.is_to_leave) {
                self.stop_coordinator();
            }
        }
    }

    fn boot(&mut self, address: Address) -> Result<(), SimulationError> {
        let place = self.places.entry(address).or_default();
        if place.machine.is_some() {
            return Ok(());
        }
        place.lives += 1;
        place.leave = CancellationToken::new();
        let (life, leave) = (place.lives, place.leave.clone());
        self.witness.say(&format!("{address:?} is switched on, life {life}"));
        self.network.boot(address);
        let booted = match address {
            COORDINATOR => Machine::boot(&self.clock, self.now, self.coordinator(leave)),
            PEOPLE => Machine::boot(&self.clock, self.now, self.people()),
            Address(number) => Machine::boot(&self.clock, self.now, self.worker(number - FIRST_WORKER, leave)),
        };
        let machine = booted.map_err(SimulationError::Machine)?;
        self.places.entry(address).or_default().machine = Some(machine);
        Ok(())
    }

    fn coordinator(&self, leave: CancellationToken) -> impl Future<Output = Exit> + use<> {
        let (disk, network) = (self.disk.clone(), self.network.clone());
        let (chance, faults, witness) = (self.chance.clone(), self.faults.clone(), self.witness.clone());
        let environment = self.environment();
        let (objects, staging) = (Arc::clone(&self.objects), self.staging());
        let start = async move {
            let artifacts = ArtifactStore::over(objects, staging, disk.room())?;
            let dataset = dataset::store(&artifacts).await?;
            let parts = Parts {
                store: disk.open(),
                artifacts,
                dataset,
                environment,
                check: SyntheticCheck { chance: chance.clone(), faults: faults.clone(), witness: witness.clone() },
                incoming: network.listen(COORDINATOR),
                address: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
                has_reflection: false,
            };
            Server::assemble(parts, |workers, inner| {
                let uploads = Uploads { inner, disk, faults: faults.clone(), witness: witness.clone() };
                (Unreliable::new(workers, chance, faults, witness), uploads)
            })
            .await
        };
        async move {
            let started = tokio::select! {
                biased;
                () = leave.cancelled() => return Exit::Done,
                started = start => started,
            };
            let mut server = match started {
                Ok(server) => server,
                Err(error) => return exit_of(&error),
            };
            tokio::select! {
                biased;
                error = server.failed() => return exit_of(&error),
                () = leave.cancelled() => {}
            }
            match server.stop().await {
                Ok(()) => Exit::Done,
                Err(error) => exit_of(&error),
            }
        }
    }

    fn environment(&self) -> Environment {
        let (fresh, clock, shift) = (self.fresh.clone(), self.clock.clone(), Arc::clone(&self.wall_shift_ms));
        let witness = self.witness.clone();
        Environment {
            timing: self.plan.timing,
            fresh: Box::new(move || fresh.bytes()),
            wall: Box::new(move || {
                let passed_ms = i64::try_from(clock.now().as_millis()).unwrap_or(i64::MAX);
                WallTime(WALL_BEGIN_MS + passed_ms + shift.load(Ordering::Relaxed))
            }),
            inspect: Box::new(move |world, events| witness.inspect(world, events)),
        }
    }

    fn people(&self) -> impl Future<Output = Exit> + use<> {
        let way = way(&self.network, PEOPLE);
        let (runs, errands, witness) = (self.plan.runs.clone(), self.plan.errands.clone(), self.witness.clone());
        let sabotage = self.faults.sabotage();
        async move {
            let client = RunServiceClient::new(way.channel());
            People { client, runs, errands, witness, sabotage }.run().await;
            Exit::Done
        }
    }

    fn worker(&self, worker: usize, leave: CancellationToken) -> impl Future<Output = Exit> + use<> {
        let plan = &self.plan.workers[worker];
        let identity = Identity {
            instance_id: hex_of(self.chance.bytes()),
            name: worker_name(worker),
            slots: plan.slots,
            threads_per_slot: 1,
            device: ResolvedDevice::Cpu.to_string(),
            cores: plan.slots,
            class: class(plan.class),
        };
        let outfit = Outfit {
            server: way(&self.network, address(worker)),
            address: "the simulated coordinator".to_owned(),
            identity,
            device: ResolvedDevice::Cpu,
            trainers: Arc::new(Doomed {
                trainers: self.trainers[&address(worker)].clone(),
                runs: self.plan.runs.as_slice().into(),
            }),
            cache: self.folder.path().join(worker_name(worker)),
            orphan_timeout: plan.orphan_timeout,
            snapshot_interval: plan.snapshot_interval,
            stall_timeout: STALL_TIMEOUT,
            drain_timeout: DRAIN_TIMEOUT,
            home: Home::SharedRuntime,
            leaves_when_orphaned: false,
        };
        async move {
            match agent::serve(outfit, Leave { now: leave, ..Leave::default() }).await {
                Ok(()) => Exit::Done,
                Err(error @ AgentError::Refused { .. }) => Exit::Unexpected(error.to_string()),
                Err(error) => Exit::Unexpected(format!("{error:?}")),
            }
        }
    }

    fn staging(&self) -> PathBuf {
        self.folder.path().join("staging")
    }
}

fn address(worker: usize) -> Address {
    Address(FIRST_WORKER + worker)
}

/// Returns the way from a machine to the coordinator.
fn way(network: &Network, from: Address) -> Way {
    let address = "coordinator:1".parse().expect("a host and a port");
    Way::new(&address).expect("a host and a port make a URL").dialled_by(network.dialler(from, COORDINATOR))
}

fn exit_of(error: &ServerError) -> Exit {
    match error {
        ServerError::Store(StoreError::Injected) | ServerError::Start(StartError::Store(StoreError::Injected)) => {
            Exit::Expected("its disk has failed".to_owned())
        }
        _ => Exit::Unexpected(format!("{error:?}")),
    }
}

fn hex_of(bytes: [u8; 16]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Makes a folder in memory if the system has one, because file systems on disk sync slowly.
fn scratch_folder() -> io::Result<TempDir> {
    let in_memory = PathBuf::from("/dev/shm");
    let builder = || {
        let mut builder = tempfile::Builder::new();
        builder.prefix("plurality-simulation-");
        builder
    };
    builder().tempdir_in(in_memory).or_else(|_| builder().tempdir())
}
