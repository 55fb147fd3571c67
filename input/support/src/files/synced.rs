//! Writes files that are on the disk when the call returns.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::diagnostic::create_temporary;

use crate::files::atomic::temporary_name;

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
    let mut file = create_new(path, private)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Replaces a file by one with the content `bytes`, and waits until this is on the disk (fsync). The file has a
/// temporary name until it is complete. If `private` is true, only the user can read it (mode 0600).
///
/// # Errors
/// The file cannot be written.
pub fn replace_synced(path: &Path, bytes: &[u8], private: bool) -> io::Result<()> {
    let name = |random: &str| temporary_name(path, random);
    let (mut file, temporary, _unfinished) = create_temporary(name, |path| create_new(path, private))?;
    let replaced = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&temporary, path));
    if replaced.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    replaced
}

/// Creates a file, which must not exist. So a symbolic link of this name is not followed.
fn create_new(path: &Path, private: bool) -> io::Result<File> {
    File::options().write(true).create_new(true).mode(if private { 0o600 } else { 0o666 }).open(path)
}
