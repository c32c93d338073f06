//! A ladder dies as it writes down a row; the same command finds what was trained, and writes what an undisturbed one does.

use std::{fs, os::unix::process::ExitStatusExt as _, path::Path};

use plurality_failpoints::FILE_VARIABLE;
use plurality_tests::{
    cluster::Process,
    strikes::{Waiting, check_folder},
};
use tempfile::TempDir;

/// All strikes of this file.
pub const ALL: &[&[&str]] = &[WRITING];

// Both files are written once before anything is trained, to find a folder that cannot be.
strikes! { WRITING, ladder_dies,
    before_its_first_page_has_its_name: "file-written/ladder.md",
    before_a_row_has_its_name: "file-written/ladder.json 2",
    before_a_row_is_synced: "file-named/ladder.json 2",
    before_the_page_of_a_row_has_its_name: "file-written/ladder.md 2",
    before_the_page_of_a_row_is_synced: "file-named/ladder.md 2",
}

async fn ladder_dies(strike: &str) {
    let strike = Waiting::new(strike);
    let folder = TempDir::new().unwrap();
    let mut first = ladder(folder.path(), "out", "first.log", Some(&strike));
    assert_eq!(first.ended().await.signal(), Some(9), "{}", first.output());
    strike.has_struck().await;
    let [found, undisturbed] = ["out", "undisturbed"].map(|out| (out, format!("{out}.log")));
    for (out, log) in [&found, &undisturbed] {
        let mut again = ladder(folder.path(), out, log, None);
        assert!(again.ended().await.success(), "{}", again.output());
    }
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    // Whatever it says of a row, it says of the one run that there is.
    assert!(read("undisturbed.log").contains("has completed before"), "{}", read("undisturbed.log"));
    for name in ["ladder.json", "ladder.md"] {
        assert_eq!(read(&format!("out/{name}")), read(&format!("undisturbed/{name}")));
    }
    assert_eq!(fs::read_dir(folder.path().join("out")).unwrap().count(), 2, "a half-written file is left behind");
    check_folder(&folder.path().join("state"));
}

/// Trains a row for one pass into the folder `out`, with one local worker.
fn ladder(folder: &Path, out: &str, log: &str, strike: Option<&Waiting>) -> Process {
    let [state, out] = ["state", out].map(|name| folder.join(name).to_string_lossy().into_owned());
    let arguments = ["ladder", "--rows", "fc100", "--seeds", "1", "--scale", "0.02", "--seed", "1"];
    let place = ["--listen", "127.0.0.1:0", "--local-workers", "1", "--state", &state, "--out", &out];
    let environment = strike.map(|strike| (FILE_VARIABLE, strike.file().as_os_str()));
    Process::start_where("coordinator", &[&arguments[..], &place].concat(), &folder.join(log), environment.as_slice())
}
