//! A coordinator dies in a state folder of an earlier one, from which something has to go first.

use std::{
    fs::{self, File},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use plurality_common::digest::Digest;
use plurality_tests::{
    cluster::Cluster,
    strikes::{MEMBERS, SEED, Struck, Waiting, check_folder, few_images, maintain, recipe, undisturbed},
};
use sqlx::{Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};

use crate::a_coordinator_dies::train_through;

/// All strikes of this file.
pub const ALL: &[&[&str]] = &[RENAMING, MENDING, TIDYING, COLLECTING];
/// Older than anything that is kept for somebody who may still come.
const OLD: Duration = Duration::from_secs(10 * 24 * 60 * 60);

strikes! { RENAMING, older_log_dies,
    while_an_older_log_takes_its_new_name: "log-renamed",
}

strikes! { MENDING, damaged_dataset_dies,
    when_a_damaged_blob_is_removed: "damaged-removed",
}

strikes! { TIDYING, leftovers_die,
    between_two_old_uploads_that_are_removed: "leftover-removed/upload",
    between_two_unfinished_blobs_that_are_removed: "leftover-removed/unfinished",
    between_two_unnamed_blobs_that_are_removed: "leftover-removed/unnamed",
}

strikes! { COLLECTING, collector_dies,
    between_two_needless_blobs_that_are_collected: "leftover-removed/needless",
}

/// Returns a cluster whose coordinator has ended in order.
async fn ended(strike: &str) -> Struck {
    let mut struck = Struck::start_later(strike, &[]).await;
    struck.cluster.stop_coordinator().await;
    struck
}

async fn older_log_dies(strike: &str) {
    let mut struck = ended(strike).await;
    let options = SqliteConnectOptions::new().filename(struck.cluster.state.join("events.sqlite"));
    let mut log = SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::query("UPDATE meta SET value = 'plurality-events/2'").execute(&mut log).await.unwrap();
    log.close().await.unwrap();
    struck.restart().await;
    train_through(struck, recipe()).await;
}

async fn damaged_dataset_dies(strike: &str) {
    let mut struck = ended(strike).await;
    let images = fs::read(few_images().join("train-images-idx3-ubyte")).unwrap();
    let blob = blob_path(&struck.cluster.state, &images);
    let mut damaged = fs::read(&blob).unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    fs::write(&blob, damaged).unwrap();
    struck.restart().await;
    train_through(struck, recipe()).await;
}

async fn leftovers_die(strike: &str) {
    let mut struck = ended(strike).await;
    let leftovers = lay_out_leftovers(&struck.cluster.state, OLD);
    struck.restart().await;
    train_through(struck, recipe()).await;
    assert!(leftovers.iter().all(|path| !path.exists()), "{leftovers:?}");
}

async fn collector_dies(strike: &str) {
    let mut cluster = Cluster::start_given(&["--data", &few_images().to_string_lossy()]).await;
    let worker = cluster.worker("a");
    let run = cluster.submit(&recipe().to_canonical_json(), MEMBERS, SEED).await;
    cluster.completed(&run).await;
    drop(worker);
    cluster.stop_coordinator().await;
    let leftovers = lay_out_leftovers(&cluster.state, Duration::ZERO);
    let needless: Vec<_> = leftovers.iter().filter(|path| !path.to_string_lossy().ends_with(".partial")).collect();
    let strike = Waiting::new(strike);
    let died = maintain("gc", &cluster.state, Some(strike.file()));
    assert_eq!((died.status.signal(), strike.is_over()), (Some(9), true), "{died:?}");
    assert_eq!(needless.iter().filter(|path| path.exists()).count(), needless.len() - 1);
    let collected = maintain("gc", &cluster.state, Some(strike.file()));
    assert!(collected.status.success(), "{collected:?}");
    assert!(needless.iter().all(|path| !path.exists()), "{needless:?}");
    check_folder(&cluster.state);
    cluster.restart_coordinator().await;
    assert_eq!(cluster.checkpoints(&run).await, undisturbed(&recipe()).await);
}

/// Leaves two of everything in a state folder that a coordinator removes there by itself, last touched `age` ago.
fn lay_out_leftovers(state: &Path, age: Duration) -> Vec<PathBuf> {
    let mut leftovers = Vec::new();
    for bytes in [b"one", b"two"] {
        let blob = blob_path(state, bytes);
        let upload = state.join(format!("artifacts/staging/{}-8.partial", Digest::of(bytes)));
        let paths = [blob.with_extension("x#1"), upload, blob];
        for path in &paths {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
            File::options().write(true).open(path).unwrap().set_modified(SystemTime::now() - age).unwrap();
        }
        leftovers.extend(paths);
    }
    leftovers
}

/// Returns where a state folder has the blob of these bytes.
fn blob_path(state: &Path, bytes: &[u8]) -> PathBuf {
    let digest = Digest::of(bytes).to_string();
    state.join("artifacts/blobs/sha256").join(&digest[..2]).join(digest)
}
