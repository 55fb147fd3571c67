//! Writes files that are on the disk when the call returns.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Writes a file, and waits until it is on the disk (fsync).
pub fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_synced_with_mode(path, bytes, false)
}

/// Writes a file and waits until it is on the disk. If `private` is true, only the user can read the file (mode
/// 0600).
pub fn write_synced_with_mode(path: &Path, bytes: &[u8], private: bool) -> io::Result<()> {
    // The mode is set only when a file is created. So an existing file is removed first.
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mode = if private { 0o600 } else { 0o666 };
    let mut file = File::options().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
