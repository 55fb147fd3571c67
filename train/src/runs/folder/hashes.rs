//! Writes and reads `OUT/hashes.bin`. The file has the low 32 bits of the hash of every trained tensor for each step,
//! sorted by tensor name, little-endian, without header. `reel replay` uses this file to name the first tensor that
//! differs; `metrics.jsonl` has only one fingerprint of all tensors.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::file_names::HASHES_FILE;
use reel_support::diagnostic::input;
use reel_support::files::log::{LogDigest, LogHasher};
use reel_support::files::replace_synced;

/// Writes `hashes.bin`: each step appends the hashes of all trained tensors.
#[derive(Debug)]
pub struct TensorHashLog {
    path: PathBuf,
    file: File,
    digest: LogHasher,
}

impl TensorHashLog {
    /// Opens the file for a run that continues after `step`. The hashes of the steps up to `step` are copied from the
    /// run in `home`, which may be `out` itself. Missing hashes are replaced by zeros.
    pub fn open(out: &Path, home: &Path, step: u64, tensor_count: usize) -> Result<Self> {
        let path = out.join(HASHES_FILE);
        let failed = |e| Error::cannot_write(&path, e);
        let size = step * 4 * tensor_count as u64;
        let mut kept = Vec::new();
        match input::open_regular_file(home.join(HASHES_FILE)) {
            Ok(file) => drop(file.take(size).read_to_end(&mut kept).map_err(|e| Error::cannot_read(home, e))?),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::cannot_read(home.join(HASHES_FILE), e)),
        }
        kept.resize(size as usize, 0);
        replace_synced(&path, &kept, false).map_err(failed)?;
        let file = OpenOptions::new().append(true).open(&path).map_err(failed)?;
        Ok(Self { file, path, digest: LogHasher::from_bytes(&kept) })
    }

    /// Appends the hashes of all trained tensors after a step.
    pub fn append(&mut self, hashes: &[u64]) -> Result<()> {
        let bytes: Vec<u8> = hashes.iter().flat_map(|&h| low_32_bits(h).to_le_bytes()).collect();
        self.file.write_all(&bytes).map_err(|e| Error::cannot_write(&self.path, e))?;
        self.digest.update(&bytes);
        Ok(())
    }

    /// Returns the length and fingerprint of the file's present contents.
    pub fn digest(&self) -> LogDigest {
        self.digest.digest()
    }

    /// Waits until all hashes are on the disk (fsync).
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::cannot_write(&self.path, e))
    }
}

/// Returns the low 32 bits of a hash, the part that the file stores.
pub fn low_32_bits(hash: u64) -> u32 {
    hash as u32
}

/// Reads the stored hashes of a step (counted from 1), one per tensor; `None` if the run did not record them.
pub fn read_step_hashes(out: &Path, step: u64, tensor_count: usize) -> Result<Option<Vec<u32>>> {
    let path = out.join(HASHES_FILE);
    let mut file = match input::open_regular_file(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::cannot_read(&path, e)),
    };
    let mut bytes = vec![0; 4 * tensor_count];
    let found = file.seek(SeekFrom::Start((step - 1) * bytes.len() as u64)).and_then(|_| file.read_exact(&mut bytes));
    match found {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(Error::cannot_read(&path, e)),
    }
    let words: Vec<u32> = bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
    // If all words are zero, the hashes of this step are missing (see [`TensorHashLog::open`]).
    Ok(words.iter().any(|&w| w != 0).then_some(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resumed_run_truncates_and_continues_the_hashes() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = TensorHashLog::open(dir.path(), dir.path(), 0, 2).unwrap();
        (1..=3).for_each(|n| log.append(&[n << 40 | n, n + 10]).unwrap());
        assert_eq!(read_step_hashes(dir.path(), 2, 2).unwrap(), Some(vec![2, 12]));
        assert_eq!(read_step_hashes(dir.path(), 4, 2).unwrap(), None);
        let mut log = TensorHashLog::open(dir.path(), dir.path(), 1, 2).unwrap();
        log.append(&[7, 8]).unwrap();
        assert_eq!(read_step_hashes(dir.path(), 1, 2).unwrap(), Some(vec![1, 11]));
        assert_eq!(read_step_hashes(dir.path(), 2, 2).unwrap(), Some(vec![7, 8]));
        assert_eq!(read_step_hashes(dir.path(), 3, 2).unwrap(), None);
        let other = tempfile::tempdir().unwrap();
        TensorHashLog::open(other.path(), dir.path(), 3, 2).unwrap();
        assert_eq!(read_step_hashes(other.path(), 2, 2).unwrap(), Some(vec![7, 8]));
        assert_eq!(read_step_hashes(other.path(), 3, 2).unwrap(), None);
    }
}
