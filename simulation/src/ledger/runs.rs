//! What becomes of runs and of their members.

use std::{collections::BTreeSet, time::Duration};

use plurality_common::{
    id::{MemberIndex, RunId},
    recipe::parse::recipe_from_json,
};
use plurality_coordinator::core::{RunOutcome, RunRequest};

use super::{Due, Ledger, Span, stage::Stage};
use crate::{coverage::Sight, synthetic::steps_of};

#[derive(Debug)]
pub(super) struct Run {
    pub(super) request: RunRequest,
    pub(super) steps: u64,
    pub(super) seed: u64,
    pub(super) committed: BTreeSet<MemberIndex>,
    pub(super) failed: BTreeSet<MemberIndex>,
    pub(super) is_paused: bool,
    /// How often it was paused and resumed, and when it was last seen to be.
    pub(super) changes: u64,
    pub(super) changed_at: Duration,
    pub(super) end: Option<RunOutcome>,
}

impl Run {
    pub(super) fn is_open(&self, member: MemberIndex) -> bool {
        self.end.is_none() && !self.committed.contains(&member) && !self.failed.contains(&member)
    }

    pub(super) fn open_members(&self) -> impl Iterator<Item = MemberIndex> {
        (0..self.request.size).map(MemberIndex).filter(|member| self.is_open(*member))
    }

    /// Says whether too few members are left.
    fn is_out_of_reach(&self) -> bool {
        self.request.size as usize - self.failed.len() < self.request.needed() as usize
    }

    pub(super) fn must_end(&self) -> bool {
        self.end.is_none() && (self.is_out_of_reach() || self.open_members().next().is_none())
    }
}

impl Ledger {
    pub(super) fn submit(&mut self, id: &RunId, request: &RunRequest, seed: u64) -> Result<(), String> {
        let recipe = recipe_from_json(&request.recipe.json).map_err(|error| error.to_string())?;
        let run = Run {
            request: request.clone(),
            steps: steps_of(&recipe),
            seed,
            committed: BTreeSet::new(),
            failed: BTreeSet::new(),
            is_paused: false,
            changes: 0,
            changed_at: Duration::ZERO,
            end: None,
        };
        match self.runs.insert(id.clone(), run) {
            None => Ok(()),
            Some(_) => Err(format!("run {id} was submitted twice")),
        }
    }

    pub(super) fn pause(&mut self, id: &RunId, when: Span) -> Result<(), String> {
        let mut attempts = self.attempts.values().filter(|attempt| attempt.run == *id);
        if attempts.any(|attempt| attempt.stage == Stage::Offered) {
            return Err(format!("run {id} is paused while an attempt of it is on its way to its worker"));
        }
        self.change_pause(id, true, when)?;
        self.coverage.see(Sight::Paused);
        Ok(())
    }

    pub(super) fn resume(&mut self, id: &RunId, when: Span) -> Result<(), String> {
        self.change_pause(id, false, when)?;
        self.coverage.see(Sight::PauseEnded);
        Ok(())
    }

    fn change_pause(&mut self, id: &RunId, is_paused: bool, when: Span) -> Result<(), String> {
        let run = self.run_mut(id)?;
        if run.end.is_some() || run.is_paused == is_paused {
            return Err(format!("run {id} cannot be paused or resumed, paused {}, end {:?}", run.is_paused, run.end));
        }
        (run.is_paused, run.changes, run.changed_at) = (is_paused, run.changes + 1, when.to);
        Ok(())
    }

    pub(super) fn fail_member(&mut self, run: &RunId, member: MemberIndex) -> Result<(), String> {
        let tally = self.tally(run, member);
        if !tally.is_spent() || tally.hopeful > 0 {
            return Err(format!("member {member} of run {run} failed within its budget: {tally:?}"));
        }
        let known = self.run_mut(run)?;
        if !known.is_open(member) {
            return Err(format!("member {member} of run {run} failed after its end"));
        }
        known.failed.insert(member);
        let must_end = known.must_end();
        self.end_attempts(run, member, Stage::Cancelled);
        self.coverage.see(Sight::MemberFailed);
        self.due.extend(must_end.then(|| Due::RunEnds(run.clone())));
        Ok(())
    }

    pub(super) fn finish(&mut self, id: &RunId, outcome: &RunOutcome) -> Result<(), String> {
        let run = self.run(id)?;
        let (size, needed) = (run.request.size as usize, run.request.needed() as usize);
        let (committed, failed) = (run.committed.len(), run.failed.len());
        let is_true = match outcome {
            RunOutcome::Completed {} => committed + failed == size && committed >= needed,
            RunOutcome::Failed { member } => run.failed.contains(member) && size - failed < needed,
            RunOutcome::Cancelled { reason } => !reason.is_empty(),
        };
        if !is_true {
            return Err(format!(
                "run {id} did not end as it says, {outcome:?}: {committed} of {size} members committed, {needed} needed"
            ));
        }
        if let Some(before) = &run.end {
            return Err(format!("run {id} ended twice, first {before:?}"));
        }
        let has_quorum = run.request.quorum.is_some();
        let sight = match outcome {
            RunOutcome::Completed {} => (committed < size).then_some(Sight::QuorumSufficed),
            RunOutcome::Failed { .. } if has_quorum => Some(Sight::QuorumMissed),
            RunOutcome::Failed { .. } => Some(Sight::Failed),
            RunOutcome::Cancelled { .. } => Some(Sight::Cancelled),
        };
        let open: Vec<MemberIndex> = run.open_members().collect();
        open.iter().for_each(|member| self.end_attempts(id, *member, Stage::Cancelled));
        sight.into_iter().for_each(|sight| self.coverage.see(sight));
        let run = self.run_mut(id)?;
        (run.end, run.is_paused) = (Some(outcome.clone()), false);
        Ok(())
    }
}
