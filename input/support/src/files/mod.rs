//! Files that a program writes and reads back.
//!
//! An [`AtomicFile`] is written under a temporary name and renamed when it is complete. So a full disk or Ctrl-C leaves
//! no incomplete file under a final name, and a program that has mapped the old file keeps its content. A command that
//! writes a whole folder locks it first ([`FolderLock`]). The crate also has JSON Lines logs ([`log`]), fingerprints of
//! files and folders ([`fingerprint`], [`digest`]), JSON objects that carry their own fingerprint ([`json`]), and checks that
//! no other user has written a file ([`read_own_file`]).

mod atomic;
pub mod digest;
pub mod fingerprint;
pub mod json;
mod lock;
pub mod log;
mod own;
mod synced;

pub use crate::error::Result;
pub use atomic::{AtomicFile, FinishedFile, write_atomically, write_temporary};
pub use lock::{FOLDER_LOCK_FILE, FileLock, FolderLock, LockError, LockHolder};
pub use own::{
    check_folder_of_own_files, create_private_folder, open_without_link, read_own_file, temporary_folder,
    temporary_folder_in,
};
pub use synced::{replace_synced, write_synced, write_synced_with_mode};
