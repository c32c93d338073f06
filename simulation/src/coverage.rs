//! What happened in simulated clusters, counted: so that a fault that is no longer drawn, or a behaviour that no seed leads to any
//! more, is missed.

use std::{collections::BTreeMap, fmt};

/// Seeds that [`Sight::least`] speaks of.
const SEEDS: u64 = 1000;

macro_rules! sights {
    ($($(#[doc = $doc:literal])* $name:ident $least:literal $words:literal,)*) => {
        /// Something that can be seen to happen in a cluster.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Sight {
            $($(#[doc = $doc])* $name,)*
        }

        impl Sight {
            /// Every one.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Returns how often it is seen at least in a thousand seeds: between a third and a half of what was counted when it
            /// was written down.
            pub fn least(self) -> u64 {
                match self {
                    $(Self::$name => $least,)*
                }
            }

            /// Says it for people, in the plural.
            pub fn words(self) -> &'static str {
                match self {
                    $(Self::$name => $words,)*
                }
            }
        }
    };
}

sights! {
    /// A coordinator died.
    CoordinatorDied 1000 "coordinators killed",
    /// A coordinator was stopped in order.
    CoordinatorStopped 400 "coordinators stopped in order",
    /// A coordinator's process stood still.
    CoordinatorFroze 350 "coordinators that stood still",
    /// A worker died.
    WorkerDied 1000 "workers killed",
    /// A worker was asked to leave.
    WorkerLeft 300 "workers asked to leave",
    /// A worker's process stood still.
    WorkerFroze 350 "workers that stood still",
    /// A training brought its machine down.
    MachineFell 100 "machines brought down by what they trained",
    /// Nothing got from one side to the other.
    Partition 700 "partitions",
    /// A link became slow.
    SlowLink 350 "slow links",
    /// A wall clock jumped.
    ClockJump 400 "jumps of the clock",
    /// The coordinator's disk had no room for uploads.
    DiskFilled 500 "full disks",
    /// An upload was refused for want of room.
    UploadRefused 700 "uploads refused for want of room",
    /// An append to the event log failed.
    StoreFailed 120 "failures of the store",
    /// A call came late.
    CallLate 1500 "late calls",
    /// A call was lost.
    CallLost 1100 "lost calls",
    /// A call came twice.
    CallRepeated 4000 "calls that came twice",
    /// An answer was lost after the call was carried out.
    AnswerLost 4000 "answers lost after the call was carried out",
    /// Somebody committed without the token.
    Forgery 500 "commits without the token",
    /// A training went on from a snapshot.
    Resumed 250 "trainings resumed from snapshots",
    /// A snapshot could not be used.
    SnapshotRefused 10 "snapshots that could not be used",
    /// An attempt was suspected.
    Suspected 800 "attempts suspected",
    /// A suspect or lost attempt returned.
    Returned 40 "attempts that returned",
    /// An attempt was lost.
    Lost 200 "attempts lost",
    /// An attempt was given back.
    Drained 300 "attempts given back",
    /// An attempt failed by a fault that is charged to the member.
    FailedByMember 700 "attempts failed by their member's fault",
    /// An attempt failed by a fault of its machine.
    FailedByMachine 500 "attempts failed by their machine's fault",
    /// An attempt failed because its worker cannot train the member.
    FailedByWorker 100 "attempts that their workers cannot make",
    /// A result was refused by verification.
    Rejected 400 "results refused by verification",
    /// An offered attempt became needless.
    Superseded 3 "offers that became needless",
    /// A spare was begun.
    Spare 50 "spares",
    /// A spare won.
    SpareWon 35 "spares that won",
    /// A worker was put in quarantine.
    Quarantined 100 "quarantines",
    /// A worker's quarantine ended with time.
    Released 70 "quarantines that ended with time",
    /// A worker in quarantine was given a member, because nobody else could take it.
    LastResort 100 "members given to workers in quarantine",
    /// A worker in quarantine had a member committed, which ended it.
    Rehabilitated 30 "quarantines that ended with a committed member",
    /// A run was paused.
    Paused 180 "pauses",
    /// A run was resumed.
    PauseEnded 160 "resumed runs",
    /// An attempt was given back because its run was paused.
    GivenBackByPause 140 "attempts given back by a pause",
    /// A result was taken while its run was paused.
    TakenInPause 50 "results taken during a pause",
    /// A member could not be trained.
    MemberFailed 200 "members that could not be trained",
    /// A run was completed with fewer members than it was asked for.
    QuorumSufficed 40 "runs completed by their quorum",
    /// A run failed because its quorum was out of reach.
    QuorumMissed 25 "runs that missed their quorum",
    /// A run that needs all of its members failed.
    Failed 20 "runs without a quorum that failed",
    /// A run was cancelled.
    Cancelled 120 "runs cancelled",
}

/// How often each thing was seen.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Coverage(BTreeMap<Sight, u64>);

impl Coverage {
    /// Counts one more.
    pub fn see(&mut self, sight: Sight) {
        *self.0.entry(sight).or_default() += 1;
    }

    /// Returns how often it was seen.
    pub fn count(&self, sight: Sight) -> u64 {
        self.0.get(&sight).copied().unwrap_or_default()
    }

    /// Adds what was seen elsewhere.
    pub fn add(&mut self, other: &Self) {
        for (sight, count) in &other.0 {
            *self.0.entry(*sight).or_default() += count;
        }
    }

    /// Returns what was seen less often in `seeds` seeds than it should be.
    pub fn missing(&self, seeds: u64) -> Vec<String> {
        let least = |sight: Sight| sight.least() * seeds / SEEDS;
        let rare = Sight::ALL.iter().filter(|sight| self.count(**sight) < least(**sight));
        rare.map(|sight| format!("{} {}, expected {}", self.count(*sight), sight.words(), least(*sight))).collect()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> =
            Sight::ALL.iter().map(|sight| format!("{} {}", self.count(*sight), sight.words())).collect();
        f.write_str(&words.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_never_seen_is_missed() {
        for absent in Sight::ALL {
            let mut coverage = Coverage::default();
            for sight in Sight::ALL.iter().filter(|sight| *sight != absent) {
                (0..sight.least()).for_each(|_| coverage.see(*sight));
            }
            let missing = coverage.missing(SEEDS);
            assert_eq!(missing, [format!("0 {}, expected {}", absent.words(), absent.least())]);
            coverage.0.insert(*absent, absent.least());
            assert_eq!(coverage.missing(SEEDS), [] as [String; 0]);
        }
    }
}
