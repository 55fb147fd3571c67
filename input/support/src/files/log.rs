//! The JSON Lines logs of a run. `metrics.jsonl` gets one line at the end of each step, and `skipped.jsonl` one line
//! for each unusable row. A resumed run first truncates both files to the lines that its checkpoint recorded. So they
//! end up as an uninterrupted run would have written them.

use std::fs::{File, OpenOptions};
use std::hash::Hasher;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use crate::diagnostic::input;
use crate::error::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use crate::files::synced::replace_synced;

/// The number of bytes at the start of a log file, and their fingerprint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogDigest {
    /// The number of bytes.
    pub bytes: u64,
    /// The XXH3 hash of these bytes in 16 hex digits.
    pub digest: String,
}

/// Computes the [`LogDigest`] of a file while it is written.
#[derive(Clone, Default)]
pub struct LogHasher {
    bytes: u64,
    hasher: XxHash3_64,
}

impl std::fmt::Debug for LogHasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LogHasher({:?})", self.digest())
    }
}

impl LogHasher {
    /// Returns the digest of a file that contains these bytes. More bytes can be added later.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut digest = Self::default();
        digest.update(bytes);
        digest
    }

    /// Adds bytes that were appended to the file.
    pub fn update(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.hasher.write(bytes);
    }

    /// The digest of all bytes so far.
    pub fn digest(&self) -> LogDigest {
        LogDigest { bytes: self.bytes, digest: format!("{:016x}", self.hasher.finish()) }
    }
}

/// A JSON Lines file to which lines are appended.
#[derive(Debug)]
pub struct JsonlLog {
    path: PathBuf,
    file: File,
    digest: LogHasher,
}

impl JsonlLog {
    /// Creates the file, replacing an existing one.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|e| Error::cannot_write(path, &e))?;
        Ok(Self { path: path.to_path_buf(), file, digest: LogHasher::default() })
    }

    /// Continues a log: replaces the log file by a new one that contains `lines`. Further lines are appended to it.
    /// The new file is complete before it replaces the old one, so an interruption loses no line.
    pub fn resume(path: &Path, lines: &[String]) -> Result<Self> {
        let mut text = lines.join("\n");
        if !text.is_empty() {
            text.push('\n');
        }
        let failed = |e| Error::cannot_write(path, &e);
        replace_synced(path, text.as_bytes(), false).map_err(failed)?;
        let file = OpenOptions::new().append(true).open(path).map_err(failed)?;
        Ok(Self { path: path.to_path_buf(), file, digest: LogHasher::from_bytes(text.as_bytes()) })
    }

    /// Length and fingerprint of the lines so far.
    pub fn digest(&self) -> LogDigest {
        self.digest.digest()
    }

    /// Appends a line. On return, the line is written to the file but not synced to the disk.
    pub fn append(&mut self, record: &impl Serialize) -> Result<()> {
        let failed = |e| Error::cannot_write(&self.path, &e);
        let mut line = serde_json::to_vec(record).map_err(|e| failed(e.into()))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(failed)?;
        self.digest.update(&line);
        Ok(())
    }

    /// Waits until all lines are on the disk (fsync).
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::cannot_write(&self.path, &e))
    }
}

/// Reads a log and returns the lines for which `keep` is true. Stops at the first damaged line, because a killed run
/// may leave half a line. A missing file has no lines.
pub fn read_matching_lines<T: DeserializeOwned>(path: &Path, keep: impl Fn(&T) -> bool) -> Result<Vec<String>> {
    let file = match input::open_regular_file(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::cannot_read(path, &e)),
    };
    let mut lines = Vec::new();
    for line in BufReader::new(file).split(b'\n') {
        let line = line.map_err(|e| Error::cannot_read(path, &e))?;
        let Ok(text) = String::from_utf8(line) else { break };
        let Ok(record) = serde_json::from_str::<T>(&text) else { break };
        if keep(&record) {
            lines.push(text);
        }
    }
    Ok(lines)
}

/// Returns the number of lines of a log, damaged ones included. A missing file has no lines.
///
/// # Errors
/// The file cannot be read.
pub fn count_lines(path: &Path) -> Result<usize> {
    match input::open_regular_file(path) {
        Ok(file) => BufReader::new(file)
            .split(b'\n')
            .try_fold(0, |count, line| line.map(|_| count + 1))
            .map_err(|e| Error::cannot_read(path, &e)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(e) => Err(Error::cannot_read(path, &e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize, serde::Deserialize)]
    struct Line {
        step: u64,
        loss: f64,
        hash: String,
    }

    fn line(step: u64) -> Line {
        Line { step, loss: 1.5, hash: "0123456789abcdef".into() }
    }

    #[test]
    fn resumed_log_equals_uninterrupted_log() {
        let dir = tempfile::tempdir().unwrap();
        let (whole, broken) = (dir.path().join("a.jsonl"), dir.path().join("b.jsonl"));
        let mut log = JsonlLog::create(&whole).unwrap();
        (1..=5).for_each(|n| log.append(&line(n)).unwrap());
        let mut log = JsonlLog::create(&broken).unwrap();
        (1..=4).for_each(|n| log.append(&line(n)).unwrap());
        let bytes = std::fs::read(&broken).unwrap();
        for cut in [bytes.len(), bytes.len() - 1, bytes.len() - 20, bytes.len() / 4 * 3 + 1] {
            std::fs::write(&broken, &bytes[..cut]).unwrap();
            let kept = read_matching_lines(&broken, |m: &Line| m.step <= 2).unwrap();
            assert_eq!((kept.len(), count_lines(&broken).unwrap()), (2, 4));
            let mut log = JsonlLog::resume(&broken, &kept).unwrap();
            (3..=5).for_each(|n| log.append(&line(n)).unwrap());
            log.sync().unwrap();
            assert_eq!(std::fs::read(&broken).unwrap(), std::fs::read(&whole).unwrap());
        }
    }

    #[test]
    fn a_device_in_place_of_a_log_is_refused() {
        let error = read_matching_lines(Path::new("/dev/zero"), |_: &Line| true).unwrap_err().to_string();
        assert!(error.starts_with("/dev/zero: is not a regular file"), "{error}");
    }

    #[test]
    fn missing_log_is_empty_and_missing_folder_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read_matching_lines(&dir.path().join("x"), |_: &Line| true).unwrap().is_empty());
        assert_eq!(count_lines(&dir.path().join("x")).unwrap(), 0);
        let e = JsonlLog::create(&dir.path().join("no/x")).unwrap_err().to_string();
        assert!(e.contains("no/x: cannot be written: the folder ") && e.contains(" does not exist; "), "{e}");
    }
}
