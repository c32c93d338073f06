//! Where an attempt stands by the log, and what it costs its member.

use plurality_common::attempt::FailureKind;

/// Attempts that may be charged to a member and still be tried again.
const RETRIES_MAX: usize = 4;
/// Attempts that may be lost with their machines and still be followed by another.
const LOSSES_MAX: usize = 5;
/// Numeric failures that are final.
const NUMERIC_MAX: usize = 2;

/// Where an attempt stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    Offered,
    Running,
    Uploading,
    Suspect,
    Lost,
    Verifying,
    Won,
    Failed(Fault),
    Drained,
    Cancelled,
    Superseded,
    Rejected,
}

/// Whose fault a failure is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fault {
    /// The member's.
    Member,
    /// The member's, and it would come again.
    Numeric,
    /// The machine's.
    Machine,
    /// The worker's, which is not to have the member again.
    Worker,
    /// Nobody's.
    Nobody,
}

/// Stages in which an attempt holds a lease.
pub(super) const LIVE: &[Stage] = &[Stage::Offered, Stage::Running, Stage::Uploading];
/// Stages in which it may be lost.
pub(super) const HELD: &[Stage] = &[Stage::Offered, Stage::Running, Stage::Uploading, Stage::Suspect];
/// Stages in which its worker may still speak for it.
pub(super) const WELCOME: &[Stage] = &[Stage::Offered, Stage::Running, Stage::Uploading, Stage::Suspect, Stage::Lost];

impl Stage {
    /// Says whether it holds a lease or waits for its verdict.
    pub(super) fn is_hopeful(self) -> bool {
        LIVE.contains(&self) || self == Self::Verifying
    }

    /// Says whether it ends when its member does.
    pub(super) fn is_open(self) -> bool {
        self.is_hopeful() || self == Self::Suspect
    }
}

/// Says whose fault a failure is.
pub(super) fn fault(kind: FailureKind) -> Fault {
    match kind {
        FailureKind::Numeric => Fault::Numeric,
        FailureKind::Dataset | FailureKind::Internal | FailureKind::Stalled => Fault::Member,
        FailureKind::OutOfMemory | FailureKind::DiskFull => Fault::Machine,
        FailureKind::Incompatible | FailureKind::Startup => Fault::Worker,
        FailureKind::Drained | FailureKind::Paused => Fault::Nobody,
    }
}

/// What a member's attempts have cost it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Tally {
    charged: usize,
    numeric: usize,
    lost: usize,
    suspect: usize,
    /// Attempts that may still succeed and have a lease or wait for their verdict.
    pub hopeful: usize,
}

impl Tally {
    pub(super) fn of(stages: impl Iterator<Item = Stage>) -> Self {
        let mut tally = Self::default();
        for stage in stages {
            match stage {
                Stage::Offered | Stage::Running | Stage::Uploading | Stage::Verifying => tally.hopeful += 1,
                Stage::Suspect => tally.suspect += 1,
                Stage::Lost | Stage::Failed(Fault::Machine) => tally.lost += 1,
                Stage::Rejected | Stage::Failed(Fault::Member) => tally.charged += 1,
                Stage::Failed(Fault::Numeric) => {
                    tally.charged += 1;
                    tally.numeric += 1;
                }
                Stage::Failed(Fault::Worker | Fault::Nobody)
                | Stage::Won
                | Stage::Drained
                | Stage::Cancelled
                | Stage::Superseded => {}
            }
        }
        tally
    }

    /// Says whether a budget is spent.
    pub(super) fn is_spent(&self) -> bool {
        self.charged > RETRIES_MAX || self.lost > LOSSES_MAX || self.numeric >= NUMERIC_MAX
    }

    /// Says whether another attempt may be made: one that is silent may be lost.
    pub(super) fn allows_attempt(&self) -> bool {
        !self.is_spent() && self.lost + self.suspect <= LOSSES_MAX
    }
}

#[cfg(test)]
mod tests {
    use plurality_coordinator::core::{LOSS_BUDGET, NUMERIC_FAILURES, RETRY_BUDGET};

    use super::*;

    /// The ledger would judge nothing if it asked the core; so it says the numbers itself.
    #[test]
    fn the_ledger_and_the_core_have_the_same_budgets() {
        assert_eq!(RETRIES_MAX, RETRY_BUDGET as usize);
        assert_eq!(LOSSES_MAX, LOSS_BUDGET as usize);
        assert_eq!(NUMERIC_MAX, NUMERIC_FAILURES as usize);
    }
}
