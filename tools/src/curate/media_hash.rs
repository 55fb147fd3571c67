//! SHA-256 of media files. `OUT/media-hashes.jsonl` stores the hashes with each file's size and modification time, so
//! that a resumed run does not read all videos again.

use std::collections::{BTreeSet, HashMap};
use std::fs::{File, Metadata};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use reel_support::diagnostic::input;
use reel_support::files::AtomicFile;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::curate::complete_file::{cannot_write_curation, with_help_to_resume};
use crate::curate::prompts::hex;
use crate::error::Result;

/// The file with the hashes, in OUT.
pub const MEDIA_HASHES_FILE: &str = "media-hashes.jsonl";

/// Bytes that are read at once.
const PIECE: usize = 1 << 20;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct KnownHash {
    path: PathBuf,
    bytes: u64,
    changed_seconds: i64,
    changed_nanoseconds: i64,
    sha256: String,
}

impl KnownHash {
    fn is_of(&self, facts: &Metadata) -> bool {
        (self.bytes, self.changed_seconds, self.changed_nanoseconds) == (facts.len(), facts.mtime(), facts.mtime_nsec())
    }
}

/// Hashes of media files, computed by this run or by earlier runs.
#[derive(Debug, Default)]
pub struct MediaHashes(HashMap<PathBuf, KnownHash>);

impl MediaHashes {
    /// Reads the hashes of earlier runs. If a line cannot be read, its file is hashed again.
    pub fn open(out: &Path) -> Self {
        let text = input::read_file(out.join(MEDIA_HASHES_FILE), input::MAX_ROWS_BYTES).unwrap_or_default();
        let known = text.split(|&b| b == b'\n').filter_map(|line| serde_json::from_slice::<KnownHash>(line).ok());
        Self(known.map(|hash| (hash.path.clone(), hash)).collect())
    }

    /// Hashes files in parallel. Returns the error of each file that cannot be read; all other files have a hash
    /// afterwards.
    pub fn add(&mut self, paths: BTreeSet<PathBuf>) -> HashMap<PathBuf, std::io::Error> {
        let known = &self.0;
        let hashed: Vec<_> = paths
            .into_par_iter()
            .map(|path| {
                let hash = hash_file(&path, known.get(&path));
                (path, hash)
            })
            .collect();
        let mut errors = HashMap::new();
        for (path, hash) in hashed {
            match hash {
                Ok(hash) => drop(self.0.insert(path, hash)),
                Err(e) => {
                    self.0.remove(&path);
                    errors.insert(path, e);
                }
            }
        }
        errors
    }

    /// The hash of a file, if [`Self::add`] has hashed it.
    pub fn get(&self, path: &Path) -> Option<&str> {
        self.0.get(path).map(|hash| &hash.sha256[..])
    }

    /// Writes all hashes.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, out: &Path) -> Result<()> {
        let path = out.join(MEDIA_HASHES_FILE);
        let mut hashes: Vec<&KnownHash> = self.0.values().collect();
        hashes.sort_by(|a, b| a.path.cmp(&b.path));
        let mut draft = AtomicFile::create(&path).map_err(with_help_to_resume)?;
        for hash in hashes {
            let line = serde_json::to_string(hash).map_err(|e| cannot_write_curation(&path, &e.into()))?;
            writeln!(draft, "{line}").map_err(|e| cannot_write_curation(&path, &e))?;
        }
        draft.commit().map_err(with_help_to_resume)
    }
}

fn hash_file(path: &Path, known: Option<&KnownHash>) -> std::io::Result<KnownHash> {
    let mut file: File = input::open_regular_file(path)?;
    let facts = file.metadata()?;
    if let Some(known) = known.filter(|known| known.is_of(&facts)) {
        return Ok(known.clone());
    }
    let (mut hash, mut piece) = (Sha256::new(), vec![0; PIECE]);
    loop {
        match file.read(&mut piece)? {
            0 => break,
            bytes => hash.update(&piece[..bytes]),
        }
    }
    Ok(KnownHash {
        path: path.to_path_buf(),
        bytes: facts.len(),
        changed_seconds: facts.mtime(),
        changed_nanoseconds: facts.mtime_nsec(),
        sha256: hex(&hash.finalize()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_files_are_hashed_again_and_others_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let (a, missing) = (dir.path().join("a"), dir.path().join("missing"));
        std::fs::write(&a, "abc").unwrap();
        let mut hashes = MediaHashes::open(dir.path());
        let errors = hashes.add([a.clone(), missing.clone()].into());
        assert_eq!(errors.into_keys().collect::<Vec<_>>(), [missing]);
        let of_abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hashes.get(&a), Some(of_abc));
        // A wrong hash is written into the file: if it is returned, the unchanged media file was not read again.
        hashes.save(dir.path()).unwrap();
        let file = dir.path().join(MEDIA_HASHES_FILE);
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace(of_abc, "marked") + "{\"path\": 3}\nnonsense").unwrap();
        let mut again = MediaHashes::open(dir.path());
        assert!(again.add([a.clone()].into()).is_empty());
        assert_eq!(again.get(&a), Some("marked"));
        std::fs::write(&a, "abcd").unwrap();
        again.add([a.clone()].into());
        assert!(again.get(&a).is_some_and(|hash| hash.starts_with("88d4266fd4e6338d")));
    }
}
