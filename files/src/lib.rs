//! Files that other processes see complete or not at all, and locks on files and folders.
//!
//! An [`AtomicFile`] is written under a temporary name and renamed when it is complete. So a full disk or Ctrl-C leaves
//! no incomplete file under a final name, and a program that has mapped the old file keeps its content. A command that
//! writes a whole folder locks it first ([`FolderLock`]).

mod atomic;
mod error;
mod lock;

pub use atomic::{AtomicFile, FinishedFile, write_atomically, write_unfinished};
pub use error::WriteError;
pub use lock::{FOLDER_LOCK_FILE, FileLock, FolderLock, LockError, LockHolder};
