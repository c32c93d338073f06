//! Makes views.

use std::{cell::LazyCell, cmp::Reverse, collections::BTreeSet};

use plurality_common::{
    attempt::DeterminismClass,
    id::{AttemptId, MemberIndex, RunId, WorkerId},
};

use super::{
    budget::{Tally, disfavours_worker, excludes_worker},
    decide::{free_slots, has_room, is_available, is_excluded, suits},
    event::RunOutcome,
    loss::Loss,
    state::{Attempt, Member, MemberStatus, Run, Worker},
    time::Moment,
    view::{
        AttemptView, HeldAttemptView, MemberView, PendingVerification, RunPage, RunView, Waiting, WorkerStatus,
        WorkerView, describe_failed, describe_refusal, describe_refused,
    },
    world::World,
};

/// Most runs of one page, and most members that they have together, unless a single one has more: a page fits into a message.
pub const PAGE_RUNS_MAX: usize = 256;
pub const PAGE_MEMBERS_MAX: usize = 4096;
/// Ended sessions of workers that are shown: a list that a person reads, and not all that ever were.
pub const WORKERS_GONE_SHOWN_MAX: usize = 100;

/// Who could train the members that wait.
struct Crew<'a> {
    /// Workers that are here and take new work.
    available: Vec<&'a Worker>,
    /// Why a member waits for which none of them is ruled out: said once, because a thousand may wait for a thousand workers.
    waiting: Option<Waiting>,
}

impl World {
    /// Shows one run.
    pub fn run_view(&self, run: &RunId, now: Moment) -> Option<RunView> {
        let crew = LazyCell::new(|| self.crew(now));
        self.state.runs.get(run).map(|run| self.show_run(run, now, &crew))
    }

    /// Shows all runs, newest first.
    pub fn run_views(&self, now: Moment) -> Vec<RunView> {
        let crew = LazyCell::new(|| self.crew(now));
        self.state.run_order.iter().rev().map(|id| self.show_run(self.state.run(id), now, &crew)).collect()
    }

    /// Shows the newest runs, or the newest that are older than one, as many as a page holds. `None` if there is no such run.
    pub fn run_page(&self, older_than: Option<&RunId>, now: Moment) -> Option<RunPage> {
        let end = match older_than {
            Some(id) => usize::try_from(self.state.runs.get(id)?.order).ok()?,
            None => self.state.run_order.len(),
        };
        let crew = LazyCell::new(|| self.crew(now));
        let older = self.state.run_order.get(..end)?.iter().rev().map(|id| self.state.run(id));
        let mut members = 0;
        let fitting = older.take(PAGE_RUNS_MAX).take_while(|run| {
            let is_first = members == 0;
            members += run.members.len();
            is_first || members <= PAGE_MEMBERS_MAX
        });
        let runs: Vec<RunView> = fitting.map(|run| self.show_run(run, now, &crew)).collect();
        Some(RunPage { has_older: runs.len() < end, runs })
    }

    /// Shows one worker.
    pub fn worker_view(&self, worker: &WorkerId, now: Moment) -> Option<WorkerView> {
        self.state.workers.get(worker).map(|worker| self.show_worker(worker, now))
    }

    /// Shows the workers: open sessions first, then those that ended, of which the newest [`WORKERS_GONE_SHOWN_MAX`] are shown;
    /// the newest first of either.
    pub fn worker_views(&self, now: Moment) -> Vec<WorkerView> {
        let mut workers: Vec<&Worker> = self.state.workers.values().collect();
        workers.sort_by_key(|worker| (worker.end.is_some(), Reverse(worker.registered_at), worker.id.clone()));
        let open = workers.partition_point(|worker| worker.end.is_none());
        workers.truncate(open + WORKERS_GONE_SHOWN_MAX);
        workers.into_iter().map(|worker| self.show_worker(worker, now)).collect()
    }

    /// Lists the results to judge, first come first: one of each member, because the first valid one wins.
    pub fn pending_verifications(&self) -> impl Iterator<Item = PendingVerification> {
        let mut members = BTreeSet::new();
        let attempts = self.state.verifying.iter().map(|id| self.state.attempt(id));
        attempts.filter_map(move |attempt| {
            let result = attempt.result.clone()?;
            let run = self.state.run(&attempt.run);
            members.insert((&attempt.run, attempt.member)).then(|| PendingVerification {
                attempt: attempt.id.clone(),
                run: run.id.clone(),
                member: run.request.number_of(attempt.member),
                run_seed: run.seed,
                recipe: run.request.recipe.clone(),
                dataset: run.request.dataset,
                test_labels: run.request.test_labels,
                result,
            })
        })
    }

    /// Returns the first result to judge that is not `postponed`; makes no list, because after each verdict it is asked for
    /// again, and thousands may wait.
    pub fn next_verification(&self, postponed: &BTreeSet<AttemptId>) -> Option<PendingVerification> {
        self.pending_verifications().find(|pending| !postponed.contains(&pending.attempt))
    }

    fn show_run<'a>(&'a self, run: &Run, now: Moment, crew: &LazyCell<Crew<'a>, impl FnOnce() -> Crew<'a>>) -> RunView {
        let members = run.members.iter().zip(0..).map(|(member, index)| MemberView {
            number: run.request.number_of(MemberIndex(index)),
            status: member.status,
            attempts: self.show_attempts(member),
            waiting: self.why_waiting(run, member, now, crew),
        });
        let members: Vec<MemberView> = members.collect();
        let outcome = run.end.as_ref().map(|end| end.outcome.clone());
        let message = match &outcome {
            None => String::new(),
            Some(RunOutcome::Cancelled { reason }) => reason.clone(),
            Some(RunOutcome::Completed {} | RunOutcome::Failed { .. }) => describe_failed(&run.request, &members),
        };
        RunView {
            id: run.id.clone(),
            request: run.request.clone(),
            seed: run.seed,
            is_paused: run.is_paused,
            outcome,
            message,
            members,
            submitted_at: run.submitted_at,
            finished_at: run.end.as_ref().map(|end| end.at),
        }
    }

    fn show_attempts(&self, member: &Member) -> Vec<AttemptView> {
        let attempts = self.state.attempts_of(member).zip(self.state.losses(member));
        attempts.map(|(attempt, loss)| self.show_attempt(attempt, loss)).collect()
    }

    fn show_attempt(&self, attempt: &Attempt, loss: Loss) -> AttemptView {
        let profile = &self.state.worker(&attempt.worker).profile;
        AttemptView {
            id: attempt.id.clone(),
            worker: attempt.worker.clone(),
            worker_name: profile.name.clone(),
            device: profile.device.clone(),
            status: attempt.status.clone(),
            is_spare: attempt.is_spare,
            progress: self.pulse.attempts.get(&attempt.id).and_then(|pulse| pulse.progress.clone()),
            class: attempt.class.clone(),
            resumed_step: attempt.resumed_step,
            snapshot_step: attempt.snapshots.last().map(|snapshot| snapshot.step),
            loss,
            notes: attempt.refused.iter().map(describe_refused).chain(describe_refusal(&attempt.status)).collect(),
            result: attempt.result.clone(),
            offered_at: attempt.offered_at,
            started_at: attempt.started_at,
            ended_at: attempt.ended_at,
        }
    }

    fn show_worker(&self, worker: &Worker, now: Moment) -> WorkerView {
        let status = match (worker.end, self.pulse.is_online(&worker.id, now)) {
            (Some(_), _) => WorkerStatus::Gone,
            (None, false) => WorkerStatus::Suspect,
            (None, true) if worker.is_draining => WorkerStatus::Draining,
            (None, true) => WorkerStatus::Online,
        };
        let attempts = worker.open_attempts.iter().map(|id| self.state.attempt(id)).map(|attempt| HeldAttemptView {
            id: attempt.id.clone(),
            run: attempt.run.clone(),
            member: self.state.run(&attempt.run).request.number_of(attempt.member),
            progress: self.pulse.attempts.get(&attempt.id).and_then(|pulse| pulse.progress.clone()),
        });
        WorkerView {
            id: worker.id.clone(),
            profile: worker.profile.clone(),
            status,
            free_slots: free_slots(&self.state, &self.pulse, worker),
            attempts: attempts.collect(),
            class: self.class_of(worker),
            members_committed: worker.members_committed,
            quarantine: worker.quarantine.clone(),
        }
    }

    /// Returns what a worker's trainers run on: as it says itself, else as the newest attempt that said so did.
    fn class_of(&self, worker: &Worker) -> Option<DeterminismClass> {
        if let Some(class) = &worker.profile.class {
            return Some(class.clone());
        }
        let attempts = self.state.attempts.values().filter(|attempt| attempt.worker == worker.id);
        let newest = attempts.filter(|attempt| attempt.class.is_some()).max_by_key(|attempt| attempt.offered_at);
        newest.and_then(|attempt| attempt.class.clone())
    }

    /// Says why nobody works on a queued member, so that it never just hangs.
    fn why_waiting<'a>(
        &'a self,
        run: &Run,
        member: &Member,
        now: Moment,
        crew: &LazyCell<Crew<'a>, impl FnOnce() -> Crew<'a>>,
    ) -> Option<Waiting> {
        if member.status != MemberStatus::Queued {
            return None;
        }
        if run.is_paused {
            return Some(Waiting::Paused);
        }
        let tally = Tally::of(self.state.attempts_of(member).map(|attempt| &attempt.status));
        if !tally.allows_attempt() {
            return Some(Waiting::Silent { attempts: tally.suspect });
        }
        let is_suitable = |worker: &&Worker| !is_excluded(&self.state, member, &worker.id);
        let rules_out = self.state.attempts_of(member).any(|attempt| excludes_worker(&attempt.status));
        if !rules_out || crew.available.is_empty() {
            return crew.waiting.clone().or_else(|| self.why_put_off(member, &crew.available, now));
        }
        let suitable: Vec<&Worker> = crew.available.iter().copied().filter(is_suitable).collect();
        if suitable.is_empty() {
            return Some(Waiting::Refused { reasons: self.refusals(member) });
        }
        self.why_workers_wait(&suitable, now).or_else(|| self.why_put_off(member, &suitable, now))
    }

    /// Says why none of `workers`, of which some have room, begins a member: it went wrong on those.
    fn why_put_off(&self, member: &Member, workers: &[&Worker], now: Moment) -> Option<Waiting> {
        if !self.state.attempts_of(member).any(|attempt| disfavours_worker(&attempt.status)) {
            return None;
        }
        let takes = |worker: &&Worker| {
            has_room(&self.state, &self.pulse, now, worker) && suits(&self.state, &self.pulse, now, member, worker)
        };
        (!workers.iter().any(takes)).then_some(Waiting::Busy)
    }

    fn crew(&self, now: Moment) -> Crew<'_> {
        let is_available = |worker: &&Worker| is_available(&self.pulse, now, worker);
        let available: Vec<&Worker> = self.state.workers.values().filter(is_available).collect();
        let waiting = self.why_workers_wait(&available, now);
        Crew { available, waiting }
    }

    /// Says why none of `workers` begins a member that any of them might.
    fn why_workers_wait(&self, workers: &[&Worker], now: Moment) -> Option<Waiting> {
        if workers.is_empty() {
            return Some(Waiting::NoWorker);
        }
        let mut sound = workers.iter().filter(|worker| worker.quarantine.is_none()).peekable();
        if sound.peek().is_none() {
            let reasons = workers.iter().filter_map(|worker| {
                let reason = worker.quarantine.as_ref()?;
                Some(format!("{} {reason}", worker.profile.name))
            });
            return Some(Waiting::Quarantined { reasons: reasons.collect() });
        }
        let has_room = sound.any(|worker| has_room(&self.state, &self.pulse, now, worker));
        (!has_room).then_some(Waiting::Busy)
    }

    /// Returns why workers were ruled out for a member.
    fn refusals(&self, member: &Member) -> Vec<String> {
        let excluding = self.state.attempts_of(member).filter(|attempt| excludes_worker(&attempt.status));
        let reasons = excluding.filter_map(|attempt| {
            let name = &self.state.worker(&attempt.worker).profile.name;
            Some(format!("{name}: {}", describe_refusal(&attempt.status)?))
        });
        reasons.collect()
    }
}
