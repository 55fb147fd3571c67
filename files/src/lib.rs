//! The files that a program writes and reads back: JSON Lines logs ([`log`]), fingerprints of files and folders
//! ([`fingerprint`], [`digest`]), and JSON objects that carry their own fingerprint ([`json`]).

pub mod digest;
mod error;
pub mod fingerprint;
pub mod json;
pub mod log;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

pub use error::{FileError, Result};

/// Writes a file, and waits until it is on the disk (fsync).
pub fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_synced_with_mode(path, bytes, false)
}

/// Writes a file; with `private`, only the user can read it (mode 0600).
pub fn write_synced_with_mode(path: &Path, bytes: &[u8], private: bool) -> io::Result<()> {
    // The mode counts only for a new file.
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mode = if private { 0o600 } else { 0o666 };
    let mut file = File::options().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
