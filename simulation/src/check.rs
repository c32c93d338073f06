//! Verification without a network: what a synthetic result must be is known.

use std::{future::pending, time::Duration};

use plurality_common::score::Count;
use plurality_coordinator::{
    server::judge::{Check, Claim, Stopped},
    verify::{Rejection, Verified},
};
use tokio::time::sleep;

use crate::{
    chance::Chance,
    plan::{Faults, Sabotage},
    subject::predictions_of,
    witness::Witness,
};

/// Longest time that a verification takes.
const CHECK_MAX: Duration = Duration::from_secs(3);
/// The same on a machine that has other things to do.
const SLOW_CHECK_MAX: Duration = Duration::from_secs(60);

/// Judges synthetic results, slowly and unjustly if chance has it.
pub struct SyntheticCheck {
    /// Where randomness comes from.
    pub chance: Chance,
    /// How slow, how unjust.
    pub faults: Faults,
    /// Who is to know of results that are not what they claim to be.
    pub witness: Witness,
}

impl Check for SyntheticCheck {
    async fn judge(&self, claim: Claim) -> Result<Result<Verified, Rejection>, Stopped> {
        if self.faults.sabotage() == Sabotage::VerificationStops {
            return pending().await;
        }
        let faults = self.faults.get();
        let longest = if self.chance.happens(faults.slow_check) { SLOW_CHECK_MAX } else { CHECK_MAX };
        sleep(self.chance.up_to(longest)).await;
        let images = claim.test_set.images.count;
        let rejection = Rejection::Disagreement { differing: images, images, allowed: 0 };
        if self.chance.happens(faults.rejection) {
            return Ok(Err(rejection));
        }
        let predictions = predictions_of(&claim.checkpoint);
        let Some(predictions) = predictions.filter(|found| found.to_safetensors() == claim.predictions) else {
            self.witness.object("a result reached verification that no training has left");
            return Ok(Err(rejection));
        };
        let test = Count::of(&predictions.labels(), &claim.test_set.labels.0);
        Ok(Ok(Verified { predictions, test, differing: 0, max_abs_difference: 0.0 }))
    }
}
