//! Writes and verifies `training/digests.json` in a checkpoint: the fingerprint of every file that a resume reads. A
//! resume compares the fingerprints with the files before it uses any file, so that a flipped bit on a disk is an error
//! and does not change the run's results.
//!
//! | key | value |
//! |---|---|
//! | `files` | fingerprint of each file of the checkpoint that a resume reads, by its path in the checkpoint |
//! | `logs` | for each log in OUT: length in bytes when the checkpoint was made, and fingerprint of these bytes |
//! | `digest` | the fingerprint of this list without this key |

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::Path;

use crate::error::{Error, Result};
use crate::file_names::{DIGESTS_FILE, RUN_STATE_FILE};
use reel_model::lora::ADAPTER_CONFIG_FILE;
use reel_support::diagnostic::input;
use reel_support::files::digest::file_fingerprint;
use reel_support::files::json::{DIGEST_KEY, has_valid_digest, with_digest};
use reel_support::files::log::{LogDigest, LogHasher};
use reel_support::files::write_synced;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::runs::folder::{entries, resume};

/// Digests of the files that a resume from one checkpoint reads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointDigests {
    /// Fingerprint by path in the checkpoint folder.
    pub files: BTreeMap<String, String>,
    /// Length and fingerprint of each log in OUT when the checkpoint was made, by file name.
    pub logs: LogDigests,
}

/// The digests of the logs of a run, by file name in OUT.
pub type LogDigests = BTreeMap<String, LogDigest>;

/// Writes the list of files with their fingerprints into a complete checkpoint folder.
///
/// # Errors
/// A file cannot be read or written.
pub(crate) fn write(folder: &Path, logs: LogDigests) -> Result<()> {
    let mut files = BTreeMap::new();
    for name in files_of_a_resume(folder)? {
        let digest = file_fingerprint(&folder.join(&name))?;
        files.insert(name, digest);
    }
    let path = folder.join(DIGESTS_FILE);
    let failed = |e| Error::cannot_write(&path, e);
    let list = serde_json::to_value(CheckpointDigests { files, logs }).map_err(|e| failed(e.into()))?;
    write_synced(&path, format!("{:#}\n", with_digest(list)).as_bytes()).map_err(failed)
}

/// Returns the files in a checkpoint that a resume reads: weights, adapter, and everything in `training/` except
/// `digests.json`. A resume reads config and tokenizer from the model that the run started from.
fn files_of_a_resume(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for part in ["", "training"] {
        let place = folder.join(part);
        for entry in fs::read_dir(&place).map_err(|e| Error::cannot_read(&place, e))? {
            let entry = entry.map_err(|e| Error::cannot_read(&place, e))?;
            let name = Path::new(part).join(entry.file_name()).to_string_lossy().into_owned();
            let weights = [".safetensors", ".safetensors.index.json"].iter().any(|end| name.ends_with(end));
            let read = weights || name == ADAPTER_CONFIG_FILE || !part.is_empty() && name != DIGESTS_FILE;
            if read && entry.path().is_file() {
                found.push(name);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Compares the files of a checkpoint with its `digests.json` and returns these digests.
///
/// # Errors
/// The folder is no checkpoint, or a file is missing, or its bytes differ from what the run wrote.
pub(crate) fn verify_checkpoint(folder: &Path) -> Result<CheckpointDigests> {
    let path = folder.join(DIGESTS_FILE);
    let text = match input::read_file(&path, input::MAX_ROWS_BYTES) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            resume::read_run_state(folder)?;
            return Err(damaged_file_error(folder, DIGESTS_FILE, "is missing"));
        }
        Err(e) => return Err(Error::cannot_read(&path, e)),
    };
    let list = serde_json::from_slice::<Value>(&text).ok().filter(|list| list.get(DIGEST_KEY).is_some());
    let list = list.filter(has_valid_digest).and_then(|list| serde_json::from_value::<CheckpointDigests>(list).ok());
    let Some(list) = list else {
        return Err(damaged_file_error(folder, DIGESTS_FILE, "is damaged: it is not what the run wrote"));
    };
    for (name, digest) in &list.files {
        match file_fingerprint(&folder.join(name)) {
            Ok(now) if now == *digest => {}
            Ok(_) => {
                return Err(damaged_file_error(
                    folder,
                    name,
                    "is damaged: its bytes differ from those that the run wrote",
                ));
            }
            Err(_) if !folder.join(name).exists() => return Err(damaged_file_error(folder, name, "is missing")),
            Err(e) => return Err(e),
        }
    }
    match list.files.contains_key(RUN_STATE_FILE) {
        true => Ok(list),
        false => Err(damaged_file_error(folder, DIGESTS_FILE, "is damaged: it does not list training/state.json")),
    }
}

/// Checks that the log `name` in `home`, the output folder of the checkpoint `folder`, still begins with the bytes that
/// the log had when the checkpoint was made.
///
/// # Errors
/// The log is missing, shorter, or begins with other bytes.
pub(crate) fn verify_log(folder: &Path, home: &Path, name: &str, digests: &CheckpointDigests) -> Result<()> {
    let Some(digest) = digests.logs.get(name) else { return Ok(()) };
    let path = home.join(name);
    let mut bytes = Vec::new();
    match input::open_regular_file(&path).and_then(|file| file.take(digest.bytes).read_to_end(&mut bytes)) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(Error::cannot_read(&path, e)),
    }
    if LogHasher::from_bytes(&bytes).digest() == *digest {
        return Ok(());
    }
    let what =
        format!("does not begin with the {} bytes that the run had written before {}", digest.bytes, folder.display());
    Err(Error::damaged(path.display().to_string(), what, help(folder, "the file")))
}

/// The error for a missing or damaged file `name` in the checkpoint `folder`. An empty `name` means the whole
/// checkpoint.
pub(crate) fn damaged_file_error(folder: &Path, name: &str, what: &str) -> Error {
    let path = if name.is_empty() { folder.to_path_buf() } else { folder.join(name) };
    Error::damaged(path.display().to_string(), what, help(folder, "the checkpoint"))
}

/// Makes the help text for a checkpoint `folder` that cannot be used: restore it, or resume from the checkpoint
/// before it, if any.
fn help(folder: &Path, thing: &str) -> String {
    let out = folder.parent().unwrap_or(Path::new(""));
    let step = entries::step_of_checkpoint_folder(folder).unwrap_or(0);
    let earlier =
        entries::checkpoints_by_step(out).ok().and_then(|found| found.range(..step).next_back().map(|f| f.1.clone()));
    match earlier {
        Some(earlier) => {
            format!(
                "restore {thing} from a copy, or resume from the previous checkpoint: --resume-from-checkpoint {}",
                earlier.display()
            )
        }
        None => format!("restore {thing} from a copy, or start the run again with --overwrite"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn checkpoint_folder(out: &Path, step: u64) -> std::path::PathBuf {
        let folder = out.join(format!("checkpoint-{step}"));
        fs::create_dir_all(folder.join("training")).unwrap();
        for name in [
            "model.safetensors",
            "config.json",
            "training/optimizer.safetensors",
            "training/state.json",
            "training/set.json",
        ] {
            fs::write(folder.join(name), format!("{name} after step {step}")).unwrap();
        }
        folder
    }

    #[test]
    fn list_has_the_files_that_a_resume_reads() {
        let dir = tempfile::tempdir().unwrap();
        let folder = checkpoint_folder(dir.path(), 4);
        write(&folder, LogDigests::new()).unwrap();
        let list = verify_checkpoint(&folder).unwrap();
        let names: Vec<&str> = list.files.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            ["model.safetensors", "training/optimizer.safetensors", "training/set.json", "training/state.json"]
        );
        // A file that a resume does not read may change.
        fs::write(folder.join("config.json"), "{}").unwrap();
        verify_checkpoint(&folder).unwrap();
        fs::remove_file(folder.join("training/set.json")).unwrap();
        let e = verify_checkpoint(&folder).unwrap_err().to_string();
        assert!(
            e.contains("checkpoint-4/training/set.json: is missing; restore the checkpoint from a copy, or start"),
            "{e}"
        );
        checkpoint_folder(dir.path(), 2);
        let e = verify_checkpoint(&folder).unwrap_err().to_string();
        assert!(e.contains("--resume-from-checkpoint ") && e.ends_with("checkpoint-2"), "{e}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// A flipped bit in any file of a checkpoint, including `digests.json`, is an error that names the file.
        #[test]
        fn any_flipped_bit_is_noticed(file in 0usize..5, at in 0.0f64..1.0, bit in 0u8..8) {
            let dir = tempfile::tempdir().unwrap();
            let folder = checkpoint_folder(dir.path(), 4);
            let logs = [("metrics.jsonl".to_string(), LogHasher::from_bytes(b"{}\n").digest())];
            write(&folder, logs.into_iter().collect()).unwrap();
            let names = ["model.safetensors", "training/optimizer.safetensors", "training/set.json", RUN_STATE_FILE];
            let path = folder.join(names.get(file).unwrap_or(&DIGESTS_FILE));
            let mut bytes = fs::read(&path).unwrap();
            let index = (bytes.len() as f64 * at) as usize;
            // `digests.json` is compared by its JSON content, so a changed white space character is not an error.
            prop_assume!(!bytes[index].is_ascii_whitespace());
            bytes[index] ^= 1 << bit;
            fs::write(&path, &bytes).unwrap();
            let e = verify_checkpoint(&folder).unwrap_err().to_string();
            prop_assert!(e.starts_with(&format!("{}: is damaged: ", path.display())), "{}", e);
        }

        /// A log may grow, but the bytes that were recorded must not change. The digest of a log is the same whether
        /// its bytes are added in pieces or at once.
        #[test]
        fn log_is_checked_up_to_the_checkpoint(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..9),
            flip in any::<prop::sample::Index>(),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let mut running = LogHasher::default();
            pieces.iter().for_each(|piece| running.update(piece));
            let whole = pieces.concat();
            prop_assert_eq!(running.digest(), LogHasher::from_bytes(&whole).digest());
            let logs = [("log".to_string(), running.digest())].into_iter().collect();
            let list = CheckpointDigests { logs, ..Default::default() };
            let check = |bytes: &[u8]| {
                fs::write(dir.path().join("log"), bytes).unwrap();
                verify_log(&dir.path().join("checkpoint-1"), dir.path(), "log", &list)
            };
            check(&[&whole[..], b"more"].concat()).unwrap();
            if !whole.is_empty() {
                let mut other = whole.clone();
                other[flip.index(whole.len())] ^= 1;
                prop_assert!(check(&other).is_err() && check(&whole[..whole.len() - 1]).is_err());
            }
        }
    }
}
