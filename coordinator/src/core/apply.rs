//! What an event changes. The same code runs live and in a replay; it makes no choice.

use plurality_common::{
    attempt::{FailureKind, SnapshotRef},
    id::{AttemptId, InstanceId, MemberIndex, RunId, Token, WorkerId},
};

use super::{
    command::RefusedSnapshot,
    event::{Event, MemberResult, RunOutcome, RunRequest, WorkerEnd, WorkerProfile},
    loss::Trained,
    state::{Attempt, AttemptStatus, Member, MemberStatus, Run, RunEnd, State, Worker},
    time::WallTime,
};

impl State {
    /// Changes the state by one event.
    ///
    /// # Panics
    ///
    /// When the event names what no earlier event has made: such a log was never written by this program.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::WorkerRegistered { worker, instance, profile, at } => {
                self.workers_by_instance.insert(instance.clone(), worker.clone());
                self.open_session(worker, instance, profile, *at);
            }
            Event::WorkerDraining { worker, finish, .. } => {
                let worker = self.worker_mut(worker);
                (worker.is_draining, worker.leaves_now) = (true, worker.leaves_now || !finish);
            }
            Event::WorkerQuarantined { worker, reason, .. } => {
                self.worker_mut(worker).quarantine = Some(reason.clone());
            }
            Event::WorkerReleased { worker, .. } => self.worker_mut(worker).quarantine = None,
            Event::WorkerClosed { worker, cause, .. } => {
                let closed = self.worker_mut(worker);
                (closed.end, closed.quarantine) = (Some(*cause), None);
            }
            Event::RunSubmitted { run, request, seed, at } => self.begin_run(run, request, *seed, *at),
            Event::RunPaused { run, .. } => self.run_mut(run).is_paused = true,
            Event::RunResumed { run, .. } => self.run_mut(run).is_paused = false,
            Event::AttemptOffered { attempt, token, run, member, worker, is_spare, at } => {
                self.begin_attempt(attempt, token, (run, *member), (worker, *is_spare), *at);
            }
            Event::AttemptStarted { attempt, at } => {
                self.attempt_mut(attempt).started_at = Some(*at);
                self.change(attempt, AttemptStatus::Running, *at);
            }
            Event::AttemptClassified { attempt, class } => {
                self.attempt_mut(attempt).class = Some(class.clone());
            }
            Event::AttemptResumed { attempt, step, .. } => {
                let origin = self.origin_of(self.attempt(attempt), *step);
                let resumed = self.attempt_mut(attempt);
                (resumed.resumed_step, resumed.resumed_from) = (*step, origin);
            }
            Event::AttemptTrained { attempt, step, train_seconds, .. } => {
                self.attempt_mut(attempt).trained = Some(Trained { step: *step, train_seconds: *train_seconds });
            }
            Event::AttemptSnapshotted { attempt, step, snapshot, .. } => {
                self.keep_snapshot(attempt, SnapshotRef { step: *step, blob: *snapshot });
            }
            Event::SnapshotRefused { attempt, step, snapshot, reason, .. } => {
                let snapshot = SnapshotRef { step: *step, blob: *snapshot };
                self.refuse_snapshot(attempt, RefusedSnapshot { snapshot, reason: reason.clone() });
            }
            Event::AttemptUploading { attempt, at } => self.change(attempt, AttemptStatus::Uploading, *at),
            Event::AttemptSuspected { attempt, at } => {
                self.attempt_mut(attempt).was_suspected = true;
                self.change(attempt, AttemptStatus::Suspect, *at);
            }
            Event::AttemptReturned { attempt, at } => {
                let returned = self.attempt_mut(attempt);
                returned.was_suspected = true;
                returned.started_at = returned.started_at.or(Some(*at));
                self.change(attempt, AttemptStatus::Running, *at);
            }
            Event::AttemptLost { attempt, at } => self.change(attempt, AttemptStatus::Lost, *at),
            Event::AttemptFailed { attempt, kind, message, at } => {
                self.change(attempt, AttemptStatus::Failed { kind: *kind, message: message.clone() }, *at);
                if *kind == FailureKind::Numeric {
                    self.discard_snapshots_beside(attempt);
                }
            }
            Event::AttemptDrained { attempt, at } => self.change(attempt, AttemptStatus::Drained, *at),
            Event::AttemptSuperseded { attempt, at } => self.change(attempt, AttemptStatus::Superseded, *at),
            Event::ResultReceived { attempt, result, at } => self.receive(attempt, result, *at),
            Event::ResultRejected { attempt, reason, at } => {
                self.change(attempt, AttemptStatus::Rejected { reason: reason.clone() }, *at);
                self.discard_snapshots_beside(attempt);
            }
            Event::MemberCommitted { attempt, verification, at } => {
                self.change(attempt, AttemptStatus::Won(verification.clone()), *at);
                let winner = self.attempt(attempt);
                let (run, member) = (winner.run.clone(), winner.member);
                let worker = self.worker_mut(&self.attempt(attempt).worker.clone());
                worker.members_committed += 1;
                worker.quarantine = None;
                self.close_member(&run, member, MemberStatus::Committed, &AttemptStatus::Superseded, *at);
            }
            Event::MemberFailed { run, member, at } => {
                self.close_member(run, *member, MemberStatus::Failed, &AttemptStatus::Cancelled, *at);
            }
            Event::RunFinished { run, outcome, at } => self.finish_run(run, outcome, *at),
        }
    }

    fn open_session(&mut self, worker: &WorkerId, instance: &InstanceId, profile: &WorkerProfile, at: WallTime) {
        let session = self.workers.entry(worker.clone()).or_insert_with(|| Worker {
            id: worker.clone(),
            instance: instance.clone(),
            profile: profile.clone(),
            registered_at: at,
            end: None,
            is_draining: false,
            leaves_now: false,
            quarantine: None,
            open_attempts: Default::default(),
            members_committed: 0,
        });
        session.profile = profile.clone();
        // Whoever left and comes back has changed its mind; whoever was only silent is still draining.
        if session.end == Some(WorkerEnd::Left) {
            (session.is_draining, session.leaves_now) = (false, false);
        }
        session.end = None;
    }

    fn begin_run(&mut self, id: &RunId, request: &RunRequest, seed: u64, at: WallTime) {
        let order = self.run_order.len() as u64;
        let run = Run {
            id: id.clone(),
            order,
            request: request.clone(),
            seed,
            submitted_at: at,
            members: vec![Member::default(); request.size as usize],
            is_paused: false,
            end: None,
        };
        self.queue.extend((0..request.size).map(|index| (order, MemberIndex(index))));
        self.run_order.push(id.clone());
        self.runs.insert(id.clone(), run);
    }

    fn begin_attempt(
        &mut self,
        id: &AttemptId,
        token: &Token,
        (run, member): (&RunId, MemberIndex),
        (worker, is_spare): (&WorkerId, bool),
        at: WallTime,
    ) {
        let attempt = Attempt {
            id: id.clone(),
            token: token.clone(),
            run: run.clone(),
            member,
            worker: worker.clone(),
            status: AttemptStatus::Offered,
            is_spare,
            was_suspected: false,
            class: None,
            resumed_step: 0,
            resumed_from: None,
            trained: None,
            snapshots: Vec::new(),
            refused: Vec::new(),
            result: None,
            offered_at: at,
            started_at: None,
            ended_at: None,
        };
        self.attempts.insert(id.clone(), attempt);
        self.member_mut(run, member).attempts.push(id.clone());
        self.change(id, AttemptStatus::Offered, at);
    }

    fn receive(&mut self, id: &AttemptId, result: &MemberResult, at: WallTime) {
        let attempt = self.attempt_mut(id);
        attempt.class = Some(result.class.clone());
        attempt.result = Some(result.clone());
        attempt.started_at = attempt.started_at.or(Some(at));
        self.change(id, AttemptStatus::Verifying, at);
    }

    fn finish_run(&mut self, id: &RunId, outcome: &RunOutcome, at: WallTime) {
        let run = self.run_mut(id);
        run.is_paused = false;
        run.end = Some(RunEnd { outcome: outcome.clone(), at });
        for index in 0..self.run(id).request.size {
            self.close_member(id, MemberIndex(index), MemberStatus::Cancelled, &AttemptStatus::Cancelled, at);
        }
    }

    /// Ends a member that is still open, and with it its open attempts.
    fn close_member(
        &mut self,
        run: &RunId,
        index: MemberIndex,
        status: MemberStatus,
        attempts_become: &AttemptStatus,
        at: WallTime,
    ) {
        let member = self.member_mut(run, index);
        if !member.status.is_open() {
            return;
        }
        member.status = status;
        for attempt in member.attempts.clone() {
            if self.attempt(&attempt).status.is_open() {
                self.change(&attempt, attempts_become.clone(), at);
            }
            self.discard_snapshots(&attempt);
        }
        self.refresh_member(run, index);
    }

    /// Gives an attempt a new status and keeps every index in step with it.
    fn change(&mut self, id: &AttemptId, status: AttemptStatus, at: WallTime) {
        let is_open = status.is_open();
        let is_verifying = status == AttemptStatus::Verifying;
        let attempt = self.attempt_mut(id);
        let was_verifying = attempt.status == AttemptStatus::Verifying;
        attempt.status = status;
        attempt.ended_at = if is_open { None } else { Some(at) };
        let (run, member, worker) = (attempt.run.clone(), attempt.member, attempt.worker.clone());
        let open_attempts = &mut self.worker_mut(&worker).open_attempts;
        if is_open {
            open_attempts.insert(id.clone());
        } else {
            open_attempts.remove(id);
        }
        if was_verifying {
            self.verifying.retain(|waiting| waiting != id);
        }
        if is_verifying {
            self.verifying.push(id.clone());
        }
        self.refresh_member(&run, member);
    }

    /// Derives an open member's status from its attempts, and its place in the queue from its status.
    fn refresh_member(&mut self, run: &RunId, index: MemberIndex) {
        let order = self.run(run).order;
        let member = self.run(run).member(index);
        let status = self.derived_status(member);
        self.member_mut(run, index).status = status;
        if status == MemberStatus::Queued {
            self.queue.insert((order, index));
        } else {
            self.queue.remove(&(order, index));
        }
    }

    /// Returns what an open member's attempts say about it; an ended member stays what it is.
    pub(super) fn derived_status(&self, member: &Member) -> MemberStatus {
        if !member.status.is_open() {
            member.status
        } else if self.attempts_of(member).any(|attempt| attempt.status == AttemptStatus::Verifying) {
            MemberStatus::Verifying
        } else if self.attempts_of(member).any(|attempt| attempt.status.is_live()) {
            MemberStatus::Active
        } else {
            MemberStatus::Queued
        }
    }

    pub(super) fn attempt_mut(&mut self, id: &AttemptId) -> &mut Attempt {
        self.attempts.get_mut(id).expect("an attempt is offered before anything happens to it")
    }

    fn worker_mut(&mut self, id: &WorkerId) -> &mut Worker {
        self.workers.get_mut(id).expect("a worker registers before anything happens to it")
    }

    fn run_mut(&mut self, id: &RunId) -> &mut Run {
        self.runs.get_mut(id).expect("a run is submitted before anything happens to it")
    }

    fn member_mut(&mut self, run: &RunId, index: MemberIndex) -> &mut Member {
        self.run_mut(run).members.get_mut(index.0 as usize).expect("an event names only members that its run has")
    }
}
