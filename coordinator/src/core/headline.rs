//! What somebody who runs a cluster wants to see go by: one line of what happened, and whom it is about.

use std::borrow::Cow;

use plurality_common::id::{AttemptId, MemberIndex, RunId, WorkerId};

use super::{
    event::{Event, RunOutcome, WorkerEnd},
    state::State,
    view::{describe_failure, describe_rejection},
};

/// An event in words, for people. Programs read events.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Headline<'a> {
    /// The run that it is about.
    pub run: Option<&'a RunId>,
    /// The member, by the number that its checkpoint and report name.
    pub member: Option<MemberIndex>,
    /// The worker's name.
    pub worker: Option<&'a str>,
    /// What happened.
    pub text: Cow<'static, str>,
}

impl State {
    /// Says what `event`, which has been applied, means to people; nothing if it matters to programs alone.
    pub fn headline<'a>(&'a self, event: &'a Event) -> Option<Headline<'a>> {
        let headline = match event {
            Event::RunSubmitted { run, request, seed, .. } => {
                let text =
                    format!("run begun: recipe {}, ensemble of {}, seed {seed}", request.recipe.name, request.size);
                about_run(run, text)
            }
            Event::RunPaused { run, .. } => about_run(run, "run paused"),
            Event::RunResumed { run, .. } => about_run(run, "run resumed"),
            Event::RunFinished { run, outcome, .. } => match outcome {
                RunOutcome::Completed {} => about_run(run, "run completed"),
                RunOutcome::Failed { .. } => about_run(run, "run failed"),
                RunOutcome::Cancelled { reason } => about_run(run, format!("run cancelled: {reason}")),
            },
            Event::MemberFailed { run, member, .. } => {
                let member = Some(self.run(run).request.number_of(*member));
                Headline { member, ..about_run(run, "member failed for good") }
            }
            Event::AttemptOffered { attempt, is_spare: false, .. } => self.about_attempt(attempt, "member given out"),
            Event::AttemptOffered { attempt, is_spare: true, .. } => {
                self.about_attempt(attempt, "member given out as a spare")
            }
            Event::AttemptResumed { attempt, step, .. } => {
                self.about_attempt(attempt, format!("training goes on from the snapshot of step {step}"))
            }
            Event::SnapshotRefused { attempt, step, reason, .. } => {
                self.about_attempt(attempt, format!("snapshot of step {step} cannot be used: {reason}"))
            }
            Event::AttemptSuspected { attempt, .. } => {
                self.about_attempt(attempt, "attempt silent for longer than a lease: its member may be given out again")
            }
            Event::AttemptReturned { attempt, .. } => self.about_attempt(attempt, "attempt heard of again"),
            Event::AttemptLost { attempt, .. } => self.about_attempt(attempt, "attempt lost"),
            Event::AttemptFailed { attempt, kind, message, .. } => {
                self.about_attempt(attempt, format!("attempt failed: {}", describe_failure(*kind, message)))
            }
            Event::AttemptDrained { attempt, .. } => self.about_attempt(attempt, "attempt given back"),
            Event::ResultRejected { attempt, reason, .. } => self.about_attempt(attempt, describe_rejection(reason)),
            Event::MemberCommitted { attempt, verification, .. } => {
                let (correct, total) = (verification.test_correct, verification.test_total);
                self.about_attempt(attempt, format!("member committed: {correct} of {total} test images right"))
            }
            Event::WorkerDraining { worker, finish, .. } => {
                self.about_worker(worker, if *finish { "worker leaves once it has finished" } else { "worker leaves" })
            }
            Event::WorkerQuarantined { worker, reason, .. } => {
                self.about_worker(worker, format!("worker in quarantine: it {reason}"))
            }
            Event::WorkerReleased { worker, .. } => self.about_worker(worker, "quarantine of the worker is over"),
            Event::WorkerClosed { worker, cause, .. } => {
                let text = match cause {
                    WorkerEnd::Left => "worker has left",
                    WorkerEnd::Crashed => "process of the worker ended",
                    WorkerEnd::Silent => "worker gone: silent for too long",
                };
                self.about_worker(worker, text)
            }
            Event::WorkerRegistered { .. }
            | Event::AttemptStarted { .. }
            | Event::AttemptClassified { .. }
            | Event::AttemptSnapshotted { .. }
            | Event::AttemptTrained { .. }
            | Event::AttemptUploading { .. }
            | Event::AttemptSuperseded { .. }
            | Event::ResultReceived { .. } => return None,
        };
        Some(headline)
    }

    fn about_attempt<'a>(&'a self, attempt: &AttemptId, text: impl Into<Cow<'static, str>>) -> Headline<'a> {
        let attempt = self.attempt(attempt);
        let member = Some(self.run(&attempt.run).request.number_of(attempt.member));
        Headline { member, run: Some(&attempt.run), ..self.about_worker(&attempt.worker, text) }
    }

    fn about_worker<'a>(&'a self, worker: &WorkerId, text: impl Into<Cow<'static, str>>) -> Headline<'a> {
        let name = &self.worker(worker).profile.name;
        Headline { run: None, member: None, worker: Some(name), text: text.into() }
    }
}

fn about_run(run: &RunId, text: impl Into<Cow<'static, str>>) -> Headline<'_> {
    Headline { run: Some(run), member: None, worker: None, text: text.into() }
}
