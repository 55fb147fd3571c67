//! What a command leaves behind: text on stdout, and files that are whole or absent.

use std::io::{self, IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, Result};
use reel_model::save::AtomicFile;
use serde::Serialize;

/// One line of text on stdout.
pub fn line(text: impl std::fmt::Display) -> Result<()> {
    writeln!(io::stdout().lock(), "{text}").context("stdout: cannot be written; check where it leads")
}

/// Text on stdout as it is, at once.
pub fn text(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("stdout: cannot be written; check where it leads")
}

/// A machine-readable result: one line of JSON on stdout.
pub fn json(value: &impl Serialize) -> Result<()> {
    line(serde_json::to_string(value)?)
}

/// Whether somebody watches stderr, where progress goes.
pub fn watched() -> bool {
    io::stderr().is_terminal()
}

/// Writes a whole file, or leaves what was there before.
pub fn file(to: &Path, bytes: &[u8]) -> Result<()> {
    let mut draft = AtomicFile::create(to)?;
    draft.write_all(bytes).map_err(|e| not_written(to, e))?;
    Ok(draft.commit()?)
}

/// The error of a file that could not be written.
pub fn not_written(path: &Path, e: io::Error) -> anyhow::Error {
    let (what, cure) = match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ("the disk is full".to_string(), "free some space or write elsewhere")
        }
        _ => (e.to_string(), "check the folder and its disk"),
    };
    let message = format!("{}: cannot be written: {what}; {cure}", path.display());
    anyhow::Error::from(e).context(message)
}

/// The error of a file that could not be read.
pub fn not_read(path: &Path, e: io::Error) -> anyhow::Error {
    let message = match e.kind() {
        io::ErrorKind::NotFound => format!("{}: no such file; check the path", path.display()),
        io::ErrorKind::IsADirectory => format!("{}: is a folder; give a file", path.display()),
        _ => format!("{}: cannot be read: {e}; check the path and its permissions", path.display()),
    };
    anyhow::Error::from(e).context(message)
}

/// Reads a whole file that a user named. A pipe or a device is refused: reading it could wait or go on for ever.
pub fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let facts = std::fs::metadata(path).map_err(|e| not_read(path, e))?;
    if !facts.is_file() && !facts.is_dir() {
        anyhow::bail!("{}: is not a regular file; copy what it gives to a file", path.display());
    }
    std::fs::read(path).map_err(|e| not_read(path, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_file_is_whole_and_alone() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let to = dir.path().join("x.bin");
        file(&to, b"before")?;
        file(&to, b"after")?;
        assert_eq!(fs::read(&to)?, b"after");
        assert_eq!(fs::read_dir(dir.path())?.count(), 1);
        Ok(())
    }

    #[test]
    fn a_missing_folder_is_named_in_one_line() {
        let e = file(Path::new("no/such/folder/x"), b"").unwrap_err().to_string();
        assert!(e.starts_with("no/such/folder/x: ") && !e.contains('\n'), "{e}");
    }
}
