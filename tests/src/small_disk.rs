//! A disk so small that a test can fill it.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

/// File that takes up what the test does not leave free.
const BALLAST: &str = "ballast";
/// Bytes written at a time, and what stays free at most when the disk is filled.
const BLOCK_BYTES: usize = 4096;

/// A file system in memory, mounted for one test and taken away when dropped.
pub struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    /// Mounts one of `mebibytes`. `None`, with words on standard error, where this process may not mount: the test is then
    /// to end.
    pub fn mount(mebibytes: u32) -> Option<Self> {
        let folder = TempDir::new().expect("the temporary folder is writable");
        let size = format!("size={mebibytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).output();
        match mounted {
            Ok(output) if output.status.success() => return Some(Self { folder }),
            Ok(output) => eprint!("skipped: no disk can be mounted: {}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => eprintln!("skipped: no disk can be mounted: {error}"),
        }
        None
    }

    /// Returns where it is mounted.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Fills it, to the last block.
    pub fn fill(&self) {
        self.fill_but(0);
    }

    /// Fills it and leaves `free_bytes`, rounded down to whole blocks.
    pub fn fill_but(&self, free_bytes: u64) {
        let mut ballast = File::create(self.ballast()).expect("a file can be made");
        let mut written = 0;
        loop {
            match ballast.write_all(&[0; BLOCK_BYTES]) {
                Ok(()) => written += BLOCK_BYTES as u64,
                Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                Err(error) => panic!("failed to fill the disk: {error}"),
            }
        }
        let ballast_bytes = written.saturating_sub(free_bytes.next_multiple_of(BLOCK_BYTES as u64));
        ballast.set_len(ballast_bytes).expect("a file can be cut");
    }

    /// Gives back what was filled.
    pub fn empty(&self) {
        fs::remove_file(self.ballast()).expect("the disk was filled before");
    }

    fn ballast(&self) -> PathBuf {
        self.path().join(BALLAST)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, so that it goes also while a killed process still lets go of its files.
        let unmounted = Command::new("umount").arg("--lazy").arg(self.path()).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("failed to unmount {}", self.path().display());
        }
    }
}
