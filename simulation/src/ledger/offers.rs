//! What must hold when a worker is given a member.

use plurality_common::id::{AttemptId, MemberIndex, RunId, WorkerId};

use super::{
    Ledger, Span,
    attempts::Attempt,
    stage::{Fault, Stage},
};
use crate::coverage::Sight;

impl Ledger {
    pub(super) fn offer(
        &mut self,
        id: &AttemptId,
        run: &RunId,
        member: MemberIndex,
        worker: &WorkerId,
        is_spare: bool,
        when: Span,
    ) -> Result<(), String> {
        let tally = self.tally(run, member);
        if !tally.allows_attempt() {
            return Err(format!("attempt {id} exceeds the budget of member {member} of run {run}: {tally:?}"));
        }
        let known = self.run(run)?;
        if !known.is_open(member) {
            return Err(format!("attempt {id} is at member {member} of run {run}, which needs none"));
        }
        if known.is_paused {
            return Err(format!("attempt {id} is given out while run {run} is paused"));
        }
        self.sessions.may_be_given(worker, self.slots_used(worker))?;
        if self.is_excluded(run, member, worker) {
            return Err(format!(
                "attempt {id} goes to worker {worker}, which cannot train member {member} of run {run}"
            ));
        }
        self.check_quarantine(id, run, member, worker, is_spare, when)?;
        self.check_beside(id, run, member, worker, is_spare)?;
        let attempt = Attempt {
            run: run.clone(),
            member,
            worker: worker.clone(),
            is_spare,
            stage: Stage::Offered,
            result: None,
            class: None,
            snapshots: Vec::new(),
        };
        match self.attempts.insert(id.clone(), attempt) {
            None => Ok(()),
            Some(_) => Err(format!("attempt {id} was offered twice")),
        }
    }

    /// Checks that a worker in quarantine is the last resort.
    fn check_quarantine(
        &mut self,
        id: &AttemptId,
        run: &RunId,
        member: MemberIndex,
        worker: &WorkerId,
        is_spare: bool,
        when: Span,
    ) -> Result<(), String> {
        if !self.sessions.is_quarantined(worker) {
            return Ok(());
        }
        if is_spare {
            return Err(format!("attempt {id} is a spare for worker {worker}, which is in quarantine"));
        }
        let mut sound = self.sessions.sound(when);
        if let Some(other) = sound.find(|other| *other != worker && !self.is_excluded(run, member, other)) {
            return Err(format!("attempt {id} goes to worker {worker} in quarantine, worker {other} could take it"));
        }
        drop(sound);
        self.coverage.see(Sight::LastResort);
        Ok(())
    }

    /// Checks what attempts there are beside a new one.
    fn check_beside(
        &mut self,
        id: &AttemptId,
        run: &RunId,
        member: MemberIndex,
        worker: &WorkerId,
        is_spare: bool,
    ) -> Result<(), String> {
        let beside: Vec<&Attempt> = self.attempts_of(run, member).filter(|attempt| attempt.stage.is_open()).collect();
        if !is_spare {
            return match beside.iter().find(|attempt| attempt.stage.is_hopeful()) {
                Some(other) => Err(format!("attempt {id} is no spare, and beside it there is {other:?}")),
                None => Ok(()),
            };
        }
        let is_of_use = matches!(beside.as_slice(), [only] if only.stage == Stage::Running && only.worker != *worker);
        if !is_of_use {
            return Err(format!("attempt {id} is a spare, and beside it there is {beside:?}"));
        }
        if let Some((run, member)) = self.waiting() {
            return Err(format!("attempt {id} is a spare while member {member} of run {run} waits"));
        }
        self.coverage.see(Sight::Spare);
        Ok(())
    }

    /// Returns a member that waits for a slot.
    fn waiting(&self) -> Option<(&RunId, MemberIndex)> {
        let runs = self.runs.iter().filter(|(_, run)| !run.is_paused);
        let mut open = runs.flat_map(|(id, run)| run.open_members().map(move |member| (id, member)));
        open.find(|(run, member)| self.tally(run, *member).hopeful == 0)
    }

    /// Counts what a worker has begun or is to begin.
    fn slots_used(&self, worker: &WorkerId) -> usize {
        let uses = |attempt: &&Attempt| matches!(attempt.stage, Stage::Offered | Stage::Running);
        self.attempts.values().filter(|attempt| attempt.worker == *worker).filter(uses).count()
    }

    /// Says whether a worker has shown that it cannot train a member.
    fn is_excluded(&self, run: &RunId, member: MemberIndex, worker: &WorkerId) -> bool {
        let mut attempts = self.attempts_of(run, member).filter(|attempt| attempt.worker == *worker);
        attempts.any(|attempt| attempt.stage == Stage::Failed(Fault::Worker))
    }
}
