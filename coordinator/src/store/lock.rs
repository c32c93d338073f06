//! One coordinator per folder.

use std::{
    fs::{self, File, TryLockError},
    path::Path,
};

use super::StoreError;

/// The file that is locked. It stays behind, empty: removing it would let two processes lock two files of one name.
const LOCK_FILE: &str = "lock";

/// The right to use a folder, until dropped or until the process ends, however it ends.
#[derive(Debug)]
pub(super) struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Makes `folder` if needed and takes it.
    ///
    /// # Errors
    ///
    /// [`StoreError::InUse`] if another process has it, [`StoreError::Folder`] if the system refuses.
    pub(super) fn take(folder: &Path) -> Result<Self, StoreError> {
        let refused = |source| StoreError::Folder { folder: folder.to_owned(), source };
        fs::create_dir_all(folder).map_err(refused)?;
        let path = folder.join(LOCK_FILE);
        let file = File::options().create(true).truncate(false).write(true).open(path).map_err(refused)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(StoreError::InUse { folder: folder.to_owned() }),
            Err(TryLockError::Error(source)) => Err(refused(source)),
        }
    }
}
