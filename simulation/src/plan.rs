//! What a seed stands for: a cluster, what people want of it, and everything that goes wrong with it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use plurality_common::attempt::FailureKind;
use plurality_coordinator::core::Timing;

use crate::{
    chance::Chance,
    disk::RESERVE_BYTES,
    synthetic::{Habit, Mishap},
};

/// Stream of [`Chance`] that plans are drawn from.
const PLAN_STREAM: u64 = 1;
/// Longest idle `Sync`; as short as a busy one, because idle hours are not what is looked at.
const IDLE_SYNC: Duration = Duration::from_secs(25);

/// Kinds that incidents are drawn from; some stand for the same, so that it comes more often.
const INCIDENT_KINDS: u64 = 16;
/// How long after faults have stopped people see to it that nothing is paused: a pause that was asked for twice may come late the
/// first time.
const LAST_LOOK: Duration = Duration::from_secs(60);

/// Most members of a run that cannot be trained: one more than puts every worker in quarantine.
const DOOMED_MAX: u32 = 4;

/// A mistake built in on purpose, to see that it is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Sabotage {
    /// None.
    #[default]
    None,
    /// The store acknowledges events that it has not written.
    StoreForgets,
    /// A commit is answered now so, now otherwise.
    CommitsAreAnsweredAtRandom,
    /// Verification comes to no verdict.
    VerificationStops,
    /// Trainings go on from snapshots one step too far.
    ResumeForgetsAStep,
    /// Who sends what the coordinator has no room for is told that it will never be taken.
    LowDiskIsFinal,
    /// A disk that is full once stays so.
    DiskStaysFull,
    /// Nobody resumes what was paused.
    PausesLast,
    /// The quorum that people want is not passed on.
    QuorumsAreForgotten,
}

/// How likely everything is that can go wrong at any time.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Rates {
    /// A call stays on its way for seconds.
    pub late_call: f64,
    /// A call never arrives.
    pub lost_call: f64,
    /// A call comes a second time later.
    pub echoed_call: f64,
    /// A call is carried out, and its answer is lost.
    pub lost_answer: f64,
    /// A commit is preceded by one without the token.
    pub forgery: f64,
    /// A piece of a connection breaks it.
    pub cut: f64,
    /// An append fails.
    pub disk_failure: f64,
    /// An append takes seconds.
    pub slow_disk: f64,
    /// A sound result is refused by verification.
    pub rejection: f64,
    /// A verification takes a minute.
    pub slow_check: f64,
    /// A training goes wrong.
    pub mishap: f64,
    /// A training brings its machine down.
    pub poison: f64,
}

/// What goes wrong now. Cheap to clone; every part of a cluster asks it.
#[derive(Clone, Debug)]
pub struct Faults {
    // A lock and no message: everybody asks all the time. There is one thread.
    rates: Arc<Mutex<Rates>>,
    sabotage: Sabotage,
}

impl Faults {
    /// Begins with `rates`.
    pub fn new(rates: Rates, sabotage: Sabotage) -> Self {
        Self { rates: Arc::new(Mutex::new(rates)), sabotage }
    }

    /// Returns what is likely now.
    pub fn get(&self) -> Rates {
        *self.rates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets nothing go wrong any more; a mistake that is built in stays.
    pub fn stop(&self) {
        *self.rates.lock().unwrap_or_else(PoisonError::into_inner) = Rates::default();
    }

    /// Returns the mistake that is built in.
    pub fn sabotage(&self) -> Sabotage {
        self.sabotage
    }
}

/// One worker.
#[derive(Clone, Debug)]
pub struct WorkerPlan {
    /// Members that it trains at a time.
    pub slots: u32,
    /// What its trainings' bytes depend on.
    pub class: u32,
    /// When it comes.
    pub comes_at: Duration,
    /// How long it trains on alone; absent: as the coordinator says.
    pub orphan_timeout: Option<Duration>,
    /// Least time between two of its snapshots.
    pub snapshot_interval: Duration,
    /// What a step takes on it.
    pub step: Duration,
}

/// One run that people want.
#[derive(Clone, Copy, Debug)]
pub struct RunPlan {
    /// Its members.
    pub members: u32,
    /// Steps of each.
    pub steps: u32,
    /// Its seed; it tells it from the others.
    pub seed: u64,
    /// Members that are enough, if fewer than all are.
    pub quorum: Option<u32>,
    /// How many of its members, the first ones, cannot be trained.
    pub doomed: u32,
    /// How those fail.
    pub doom: FailureKind,
}

/// Something that people do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Errand {
    /// Ask for the run of that number.
    Submit(usize),
    /// Cancel it.
    Cancel(usize),
    /// Let it rest.
    Pause(usize),
    /// Let it go on.
    Resume(usize),
    /// Ask a worker to leave.
    Drain(usize),
    /// Look at everything.
    Look,
}

/// Something that goes wrong at a certain time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Incident {
    /// The coordinator dies, and comes back after a while.
    CoordinatorDies {
        /// How long it is away.
        away: Duration,
        /// Whether its system tells its peers.
        says_goodbye: bool,
    },
    /// The coordinator is stopped in order, and comes back.
    CoordinatorStops,
    /// The coordinator's process stands still for a while.
    CoordinatorFreezes {
        /// How long.
        pause: Duration,
    },
    /// A worker dies, and comes back as a new process.
    WorkerDies {
        /// Which.
        worker: usize,
        /// How long it is away.
        away: Duration,
        /// Whether its system tells its peers.
        says_goodbye: bool,
    },
    /// A worker is asked to leave at once, and comes back as a new process.
    WorkerLeaves {
        /// Which.
        worker: usize,
    },
    /// A worker's process stands still for a while.
    WorkerFreezes {
        /// Which.
        worker: usize,
        /// How long.
        pause: Duration,
    },
    /// Nothing gets from one side to the other.
    Partition {
        /// The worker.
        worker: usize,
        /// Whether nothing gets to the coordinator.
        upwards: bool,
        /// Whether nothing gets from it.
        downwards: bool,
        /// How long.
        span: Duration,
    },
    /// Everything between a worker and the coordinator takes longer.
    SlowLink {
        /// The worker.
        worker: usize,
        /// How much.
        extra: Duration,
        /// How long.
        span: Duration,
    },
    /// The coordinator's disk has too little room for uploads for a while.
    DiskFills {
        /// What is left of it.
        free_bytes: u64,
        /// How long.
        span: Duration,
    },
    /// The coordinator's wall clock jumps.
    ClockJumps {
        /// By how much, in seconds.
        by_s: i64,
    },
}

/// Everything that a seed stands for.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How long the coordinator waits for what.
    pub timing: Timing,
    /// The workers.
    pub workers: Vec<WorkerPlan>,
    /// The runs.
    pub runs: Vec<RunPlan>,
    /// What people do, and when.
    pub errands: Vec<(Duration, Errand)>,
    /// What goes wrong, and when.
    pub incidents: Vec<(Duration, Incident)>,
    /// What goes wrong at any time until faults stop.
    pub rates: Rates,
    /// When faults stop.
    pub calm_at: Duration,
    /// Least bytes of checkpoints and snapshots.
    pub file_bytes: usize,
}

impl Plan {
    /// Draws the plan of a seed.
    pub fn draw(seed: u64) -> Self {
        let chance = Chance::new(seed, PLAN_STREAM);
        let calm_at = chance.seconds(60.0, 240.0);
        let mut timing = Timing {
            lease: chance.one_of(&[20, 30].map(Duration::from_secs)),
            orphan_window: chance.one_of(&[60, 120, 300].map(Duration::from_secs)),
            idle_sync: IDLE_SYNC,
            ..Timing::default()
        };
        let workers: Vec<WorkerPlan> = (0..chance.between(1, 5)).map(|_| worker(&chance)).collect();
        let runs: Vec<RunPlan> = (0..chance.between(1, 3)).map(|number| run(&chance, number)).collect();
        let errands = errands(&chance, calm_at, runs.len(), workers.len());
        // A seed that has only some kinds of faults finds what their mixture hides.
        let rate = |most: f64| {
            let is_present = chance.happens(0.5);
            if is_present { chance.seconds(0.0, 1.0).as_secs_f64() * most } else { 0.0 }
        };
        let rates = Rates {
            late_call: rate(0.2),
            lost_call: rate(0.15),
            echoed_call: rate(0.5),
            lost_answer: rate(0.5),
            forgery: rate(1.0),
            cut: rate(0.02),
            disk_failure: rate(0.03),
            slow_disk: rate(0.1),
            rejection: rate(0.9),
            slow_check: rate(0.3),
            mishap: rate(0.9),
            poison: if chance.happens(0.15) { rate(2.0).min(1.0) } else { 0.0 },
        };
        let file_bytes = if chance.happens(0.03) { 700_000 } else { chance.one_of(&[100, 2000]) };
        let incidents = incidents(&chance, calm_at, workers.len(), file_bytes);
        timing.quarantine = chance.one_of(&[30, 120, 900].map(Duration::from_secs));
        Self { timing, workers, runs, errands, incidents, rates, calm_at, file_bytes }
    }
}

/// Draws what a training on a machine with this `step` is like, where each goes wrong with probability `mishap`.
pub fn habit(chance: &Chance, step: Duration, faults: &Faults) -> Habit {
    let forgets_a_step = faults.sabotage() == Sabotage::ResumeForgetsAStep;
    if chance.happens(faults.get().poison) {
        return Habit { step, mishap: Mishap::BringsMachineDown { step: chance.between(0, 3) }, forgets_a_step };
    }
    if !chance.happens(faults.get().mishap) {
        return Habit { step, mishap: Mishap::None, forgets_a_step };
    }
    let at = chance.between(0, 12);
    let kinds = [
        FailureKind::Numeric,
        FailureKind::OutOfMemory,
        FailureKind::DiskFull,
        FailureKind::Internal,
        FailureKind::Dataset,
        FailureKind::Startup,
    ];
    let mishap = match chance.between(0, 9) {
        0 => Mishap::NoStart,
        1..=3 => Mishap::Fails { step: at, kind: chance.one_of(&kinds) },
        4 | 5 => Mishap::Dies { step: at },
        6 | 7 => Mishap::Hangs { step: at, pause: chance.seconds(5.0, 100.0) },
        _ => Mishap::RefusesSnapshots,
    };
    Habit { step, mishap, forgets_a_step }
}

fn worker(chance: &Chance) -> WorkerPlan {
    WorkerPlan {
        slots: u32::try_from(chance.between(1, 3)).unwrap_or(1),
        class: u32::try_from(chance.one_of(&[0, 0, 1])).unwrap_or(0),
        comes_at: chance.seconds(0.0, 20.0),
        orphan_timeout: chance.one_of(&[None, Some(30), Some(90)]).map(Duration::from_secs),
        snapshot_interval: chance.seconds(3.0, 20.0),
        step: if chance.happens(0.1) { chance.seconds(8.0, 25.0) } else { chance.seconds(0.5, 4.0) },
    }
}

fn run(chance: &Chance, number: u64) -> RunPlan {
    let members = u32::try_from(chance.between(1, 8)).unwrap_or(1);
    let steps = u32::try_from(chance.between(3, 14)).unwrap_or(3);
    let quorum = (members > 1 && chance.happens(0.4)).then(|| chance.between(1, u64::from(members) - 1));
    let quorum = quorum.and_then(|quorum| u32::try_from(quorum).ok());
    // Where all are needed, the first that fails ends everything.
    let is_doomed = chance.happens(if quorum.is_some() { 0.4 } else { 0.1 });
    let doomed = if is_doomed { chance.between(1, u64::from(members.min(DOOMED_MAX))) } else { 0 };
    let doom = chance.one_of(&[FailureKind::Numeric, FailureKind::Internal, FailureKind::OutOfMemory]);
    RunPlan { members, steps, seed: number + 1, quorum, doomed: u32::try_from(doomed).unwrap_or(0), doom }
}

fn errands(chance: &Chance, calm_at: Duration, runs: usize, workers: usize) -> Vec<(Duration, Errand)> {
    let latest = calm_at.as_secs_f64();
    let mut errands = Vec::new();
    for run in 0..runs {
        let submitted_at = chance.seconds(0.0, latest / 2.0);
        errands.push((submitted_at, Errand::Submit(run)));
        if chance.happens(0.2) {
            errands.push((submitted_at + chance.seconds(1.0, latest / 2.0), Errand::Cancel(run)));
        }
        if chance.happens(0.3) {
            let paused_at = submitted_at + chance.seconds(1.0, latest / 2.0);
            errands.push((paused_at, Errand::Pause(run)));
            errands.push((paused_at + chance.seconds(1.0, 60.0), Errand::Resume(run)));
            errands.push((calm_at + LAST_LOOK, Errand::Resume(run)));
        }
    }
    for worker in 0..workers {
        if chance.happens(0.15) {
            errands.push((chance.seconds(5.0, latest), Errand::Drain(worker)));
        }
    }
    errands.extend((0..3).map(|_| (chance.seconds(0.0, latest * 1.5), Errand::Look)));
    errands.sort_by_key(|(at, _)| *at);
    errands
}

/// Draws incidents: a few in most seeds, storms of mostly one kind in some.
fn incidents(chance: &Chance, calm_at: Duration, workers: usize, file_bytes: usize) -> Vec<(Duration, Incident)> {
    let count = chance.one_of(&[0, 3, 6, 10, 10, 60]);
    // What is away for long is spared by the rest of a storm.
    let spans: &[(f64, f64)] = if count > 10 { &[(0.1, 3.0)] } else { &[(0.1, 3.0), (3.0, 40.0), (40.0, 150.0)] };
    let favourite = chance.between(0, INCIDENT_KINDS - 1);
    let is_mostly_one = chance.happens(0.5);
    let mut incidents: Vec<(Duration, Incident)> = (0..count)
        .map(|_| {
            let at = chance.seconds(1.0, calm_at.as_secs_f64());
            let is_favourite = is_mostly_one && chance.happens(0.8);
            let kind = if is_favourite { favourite } else { chance.between(0, INCIDENT_KINDS - 1) };
            let (shortest, longest) = chance.one_of(spans);
            let away = chance.seconds(shortest, longest);
            let incident = match kind {
                14 | 15 => disk_fills(chance, away, file_bytes),
                _ => incident(chance, kind, away, workers),
            };
            (at, incident)
        })
        .collect();
    incidents.sort_by_key(|(at, _)| *at);
    incidents
}

fn incident(chance: &Chance, kind: u64, away: Duration, workers: usize) -> Incident {
    let worker = usize::try_from(chance.between(0, workers as u64 - 1)).unwrap_or(0);
    let says_goodbye = chance.happens(0.6);
    match kind {
        0..=2 => Incident::CoordinatorDies { away, says_goodbye },
        3 => Incident::CoordinatorStops,
        4 => Incident::CoordinatorFreezes { pause: away },
        5..=7 => Incident::WorkerDies { worker, away, says_goodbye },
        8 => Incident::WorkerLeaves { worker },
        9 => Incident::WorkerFreezes { worker, pause: away },
        10 | 11 => {
            let (upwards, downwards) = chance.one_of(&[(true, true), (true, false), (false, true)]);
            Incident::Partition { worker, upwards, downwards, span: away }
        }
        12 => Incident::SlowLink { worker, extra: chance.seconds(0.2, 3.0), span: away },
        _ => {
            let by_s = chance.one_of(&[-86_400 * 400, -7200, -30, 30, 7200, 86_400 * 400]);
            Incident::ClockJumps { by_s }
        }
    }
}

/// Draws a disk that has no room at all, none beside its reserve, or a byte too little for two copies of a file.
fn disk_fills(chance: &Chance, span: Duration, file_bytes: usize) -> Incident {
    let free_bytes = chance.one_of(&[0, RESERVE_BYTES, RESERVE_BYTES + 2 * file_bytes as u64 - 1]);
    Incident::DiskFills { free_bytes, span }
}
