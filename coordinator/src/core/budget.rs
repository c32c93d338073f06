//! What an attempt that ended costs its member.

use std::time::Duration;

use plurality_common::attempt::FailureKind;

use super::state::AttemptStatus;

/// Attempts that may be charged to a member and still be tried again: enough for bad luck, few enough that a broken
/// recipe is reported within minutes. Spark and Ballista allow as many.
pub const RETRY_BUDGET: u32 = 4;
/// Machines that may fail a member (lost, out of memory, disk full) and still be followed by another: a machine's fault
/// is not the recipe's, yet what brings down six machines is not bad luck. HyperQueue's crash limit.
pub const LOSS_BUDGET: u32 = 5;
/// Numeric failures that are final: a member's seed is fixed, so the second shows that it would come again.
pub const NUMERIC_FAILURES: u32 = 2;

/// Members that one worker may fail within [`QUARANTINE`] before it is in quarantine: one is the member's bad luck, two a
/// coincidence, and a machine that spoils all that it is given shows it with three.
pub const QUARANTINE_MEMBERS: usize = 3;
/// How long a failure counts towards a quarantine, and how long a quarantine lasts, unless the settings say otherwise: a full disk
/// or too little memory is seen to within minutes or not at all, and trying it anew costs one attempt in so long.
pub const QUARANTINE: Duration = Duration::from_secs(15 * 60);

/// Whom a failure is charged to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Charge {
    /// The member: its retry budget.
    Member,
    /// The machine: the member's loss budget.
    Machine,
    /// The worker: it gets this member no more, and nothing is charged.
    Worker,
    /// Nobody.
    Nobody,
}

/// Says whom a failure is charged to.
pub(super) fn charge(kind: FailureKind) -> Charge {
    match kind {
        FailureKind::Numeric | FailureKind::Dataset | FailureKind::Internal | FailureKind::Stalled => Charge::Member,
        FailureKind::OutOfMemory | FailureKind::DiskFull => Charge::Machine,
        FailureKind::Incompatible | FailureKind::Startup => Charge::Worker,
        FailureKind::Drained | FailureKind::Paused => Charge::Nobody,
    }
}

/// Says whether an attempt that ended so rules its worker out for the member.
pub(super) fn excludes_worker(status: &AttemptStatus) -> bool {
    matches!(status, AttemptStatus::Failed { kind, .. } if charge(*kind) == Charge::Worker)
}

/// Says whether an attempt that ended so counts towards a quarantine of its worker: whatever is charged, but for a lost worker,
/// which has nothing to be kept from.
pub(super) fn is_strike(status: &AttemptStatus) -> bool {
    match status {
        AttemptStatus::Failed { kind, .. } => matches!(charge(*kind), Charge::Member | Charge::Machine),
        AttemptStatus::Rejected { .. } => true,
        _ => false,
    }
}

/// Says whether an attempt that ended so makes another worker the better choice.
pub(super) fn disfavours_worker(status: &AttemptStatus) -> bool {
    match status {
        AttemptStatus::Failed { .. }
        | AttemptStatus::Rejected { .. }
        | AttemptStatus::Suspect
        | AttemptStatus::Lost => true,
        AttemptStatus::Offered
        | AttemptStatus::Running
        | AttemptStatus::Uploading
        | AttemptStatus::Verifying
        | AttemptStatus::Won(_)
        | AttemptStatus::Drained
        | AttemptStatus::Cancelled
        | AttemptStatus::Superseded => false,
    }
}

/// What a member's attempts have cost it so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Tally {
    /// Charged to the member.
    pub charged: u32,
    /// Numeric failures among these.
    pub numeric: u32,
    /// Lost with their workers, or given up for a fault of the machine.
    pub lost: u32,
    /// Silent, perhaps lost.
    pub suspect: u32,
    /// Holding a lease or waiting for verification.
    pub hopeful: u32,
}

impl Tally {
    /// Counts a member's attempts.
    pub(super) fn of<'a>(statuses: impl Iterator<Item = &'a AttemptStatus>) -> Self {
        let mut tally = Self::default();
        for status in statuses {
            match status {
                AttemptStatus::Failed { kind, .. } => match charge(*kind) {
                    Charge::Member => {
                        tally.charged += 1;
                        tally.numeric += u32::from(*kind == FailureKind::Numeric);
                    }
                    Charge::Machine => tally.lost += 1,
                    Charge::Worker | Charge::Nobody => {}
                },
                AttemptStatus::Rejected { .. } => tally.charged += 1,
                AttemptStatus::Lost => tally.lost += 1,
                AttemptStatus::Suspect => tally.suspect += 1,
                AttemptStatus::Offered
                | AttemptStatus::Running
                | AttemptStatus::Uploading
                | AttemptStatus::Verifying => tally.hopeful += 1,
                AttemptStatus::Won(_)
                | AttemptStatus::Drained
                | AttemptStatus::Cancelled
                | AttemptStatus::Superseded => {}
            }
        }
        tally
    }

    /// Says whether no further attempt may be made.
    pub(super) fn is_spent(&self) -> bool {
        self.charged > RETRY_BUDGET || self.lost > LOSS_BUDGET || self.numeric >= NUMERIC_FAILURES
    }

    /// Says whether another attempt may be made now. Silent attempts count as lost here, else a member that brings its
    /// workers down could go through all of them before the first orphan window is over.
    pub(super) fn allows_attempt(&self) -> bool {
        !self.is_spent() && self.lost + self.suspect <= LOSS_BUDGET
    }
}
