//! A trainer dies; its worker lives on.

use plurality_tests::strikes::long_recipe;

use crate::a_worker_dies::{WORKER_DIED, trained_through};

/// All strikes of this file.
pub const ALL: &[&[&str]] = &[TRAINING];

strikes! { TRAINING, trainer_dies,
    while_it_writes_a_snapshot: "output-begun/snapshot",
    before_a_snapshot_has_its_name: "output-written/snapshot",
    before_a_later_snapshot_has_its_name: "output-written/snapshot 2",
    before_the_folder_of_a_snapshot_is_synced: "output-named/snapshot",
    before_it_tells_of_a_snapshot: "snapshot-written",
    while_it_writes_its_checkpoint: "output-begun/checkpoint",
    before_its_checkpoint_has_its_name: "output-written/checkpoint",
    before_its_predictions_are_written: "output-named/checkpoint",
    before_its_predictions_have_their_name: "output-written/predictions",
    before_it_tells_of_its_result: "training-ended",
}

async fn trainer_dies(strike: &str) {
    let (struck, run) = trained_through(strike, long_recipe()).await;
    let said = struck.cluster.coordinator.output();
    assert!(!said.contains(WORKER_DIED), "{said}");
    assert_eq!(run.members.iter().flat_map(|member| &member.failures).count(), 1, "{run:?}");
    struck.check_state().await;
}
