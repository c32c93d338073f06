//! Trying a call again: which answers are worth it, how long to wait, when to stop.

use thiserror::Error;
use tokio::time::{Instant, sleep};
use tonic::{Code, Status};

use super::{
    backoff::{Backoff, Dice, Notice},
    server::{Link, describe},
    watched,
};

/// Tries of a call whose answer is [`Verdict::Doubtful`]: with back-off they span about a minute, in which a restarted
/// coordinator has learned to know its workers again.
const DOUBTFUL_TRIES_MAX: u32 = 8;

/// The same of a call that others can take the place of: once more, in case the coordinator was just about to restart.
const DOUBTFUL_TRIES_FEW: u32 = 2;

/// What an answer means for another try of the same call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The coordinator is away or busy: try until it is back.
    Away,
    /// The coordinator has no room for it: try until it has, if it is worth the wait.
    Full,
    /// It may have been a passing state, or will always be so: try a few times.
    Doubtful,
    /// The same call will fail again.
    Final,
}

/// Decides what an answer with `code` means for another try.
pub fn verdict(code: Code) -> Verdict {
    match code {
        Code::Cancelled | Code::Unknown | Code::DeadlineExceeded | Code::Unavailable => Verdict::Away,
        Code::ResourceExhausted => Verdict::Full,
        Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Internal
        | Code::DataLoss
        | Code::Unauthenticated => Verdict::Doubtful,
        Code::Ok | Code::InvalidArgument | Code::PermissionDenied | Code::Unimplemented => Verdict::Final,
    }
}

/// A call was refused for good.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("the coordinator refused to {what}: {reason}")]
pub struct Refused {
    /// What was asked for, after "to".
    what: &'static str,
    /// The coordinator's words.
    reason: String,
    /// The coordinator's code.
    pub code: Code,
}

/// The tries of one call.
#[derive(Debug)]
pub struct Tries {
    what: &'static str,
    backoff: Backoff,
    dice: Dice,
    notice: Notice,
    doubtful: u32,
    doubtful_max: u32,
    /// Whether it is worth the wait for room.
    waits_for_room: bool,
    /// When the coordinator comes back, the next try is due at once.
    link: watched::Receiver<Link>,
}

impl Tries {
    /// Begins to try `what`, words that read after "failed to".
    pub fn new(what: &'static str, link: watched::Receiver<Link>) -> Self {
        Self::at_most(DOUBTFUL_TRIES_MAX, what, link)
    }

    /// Begins to try what matters less than the time that many doubtful tries take.
    pub fn few(what: &'static str, link: watched::Receiver<Link>) -> Self {
        Self::at_most(DOUBTFUL_TRIES_FEW, what, link)
    }

    /// Makes the first answer that there is no room the last.
    pub fn unless_full(self) -> Self {
        Self { waits_for_room: false, ..self }
    }

    fn at_most(doubtful_max: u32, what: &'static str, link: watched::Receiver<Link>) -> Self {
        let (backoff, notice) = (Backoff::default(), Notice::default());
        Self { what, backoff, dice: Dice::from_system(), notice, doubtful: 0, doubtful_max, waits_for_room: true, link }
    }

    /// Waits before the next try after the answer `status`.
    ///
    /// # Errors
    ///
    /// When another try is of no use.
    pub async fn pause(&mut self, status: &Status) -> Result<(), Refused> {
        self.judge(status)?;
        if self.notice.is_due(Instant::now()) {
            tracing::warn!("failed to {}: {}; trying again", self.what, describe(status));
        }
        let wait = self.backoff.next(self.dice.unit());
        let is_up = self.link.borrow_and_update().is_up();
        tokio::select! {
            // Any order would do; a simulation needs one.
            biased;
            Ok(()) = self.link.wait_for(Link::is_up), if !is_up => {}
            () = sleep(wait) => {}
        }
        Ok(())
    }

    /// Notes that the call got further than before.
    pub fn note_progress(&mut self) {
        self.backoff.reset();
        self.doubtful = 0;
    }

    fn judge(&mut self, status: &Status) -> Result<(), Refused> {
        match verdict(status.code()) {
            Verdict::Away => return Ok(()),
            Verdict::Full if self.waits_for_room => return Ok(()),
            Verdict::Doubtful if self.doubtful + 1 < self.doubtful_max => {
                self.doubtful += 1;
                return Ok(());
            }
            Verdict::Full | Verdict::Doubtful | Verdict::Final => {}
        }
        Err(Refused { what: self.what, reason: describe(status), code: status.code() })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use plurality_common::id::WorkerId;

    use super::*;
    use crate::agent::server::LinkState;

    fn up() -> watched::Receiver<Link> {
        let link = Link { state: LinkState::Up(WorkerId::new("w")), orphan_timeout: Duration::from_secs(1) };
        watched::channel(link).1
    }

    #[tokio::test(start_paused = true)]
    async fn a_coordinator_that_is_away_is_tried_for_as_long_as_it_takes() {
        let mut tries = Tries::new("do it", up());
        for _ in 0..100 {
            assert_eq!(tries.pause(&Status::unavailable("away")).await, Ok(()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_doubtful_answer_is_tried_eight_times_and_progress_counts_anew() {
        let link = up();
        let mut tries = Tries::new("do it", link.clone());
        for _ in 1..DOUBTFUL_TRIES_MAX {
            assert_eq!(tries.pause(&Status::not_found("who?")).await, Ok(()));
        }
        let mut progressed = Tries { link: link.clone(), ..tries };
        progressed.note_progress();
        assert_eq!(progressed.pause(&Status::not_found("who?")).await, Ok(()));
        progressed.doubtful = DOUBTFUL_TRIES_MAX - 1;
        let refused = progressed.pause(&Status::not_found("who?")).await.unwrap_err();
        assert_eq!(refused.to_string(), "the coordinator refused to do it: who?");
    }

    #[tokio::test(start_paused = true)]
    async fn what_matters_less_is_tried_once_more_after_a_doubtful_answer() {
        let mut tries = Tries::few("do it", up());
        assert_eq!(tries.pause(&Status::not_found("what?")).await, Ok(()));
        assert_eq!(tries.pause(&Status::not_found("what?")).await.unwrap_err().code, Code::NotFound);
        let mut tries = Tries::few("do it", up());
        for _ in 0..100 {
            assert_eq!(tries.pause(&Status::unavailable("away")).await, Ok(()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn room_is_waited_for_unless_it_is_not_worth_the_wait() {
        let full = Status::resource_exhausted("1 byte free");
        let mut tries = Tries::new("do it", up());
        for _ in 0..100 {
            assert_eq!(tries.pause(&full).await, Ok(()));
        }
        let mut tries = Tries::new("do it", up()).unless_full();
        assert_eq!(tries.pause(&Status::unavailable("away")).await, Ok(()));
        let refused = tries.pause(&full).await.unwrap_err();
        assert_eq!(refused.to_string(), "the coordinator refused to do it: 1 byte free");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_final_at_once() {
        let mut tries = Tries::new("do it", up());
        assert_eq!(tries.pause(&Status::permission_denied("no")).await.unwrap_err().code, Code::PermissionDenied);
    }
}
