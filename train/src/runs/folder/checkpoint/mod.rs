//! `OUT/checkpoint-N/`: a model folder (or adapter folder) with the weights after step N and, below `training/`, the
//! files for a bit-exact resume: `optimizer.safetensors` (moments, their scales, low bits of the master weights),
//! `state.json`, and `digests.json` with the fingerprints of the files that a resume reads.
//!
//! A checkpoint is written under a hidden name and renamed when it is complete and on the disk, so a killed run or a
//! full disk leaves earlier checkpoints intact. [`CheckpointWriter`] writes a [`CheckpointSnapshot`] while the next
//! steps run. If the run has several ranks, all write it together, before the next step: rank 0 creates the files, and
//! each rank writes its cells of the model's weights and of the optimizer state.

mod optimizer;
mod parts;
mod saver;
mod snapshot;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::runs::folder::entries::checkpoints_by_step;

pub use optimizer::load_optimizer_state;
pub use saver::{CheckpointWriter, host_memory_has_room_for};
pub use snapshot::{BaseModel, CheckpointSnapshot, TrainedWeights, checkpoint_bytes};

/// Removes all checkpoints but the newest `keep` (`None`: keeps all). The checkpoint of step `best_step` is always
/// kept, in addition to the newest `keep`.
pub fn remove_old_checkpoints(out: &Path, keep: Option<usize>, best_step: Option<u64>) -> Result<()> {
    let mut found = checkpoints_by_step(out)?;
    best_step.map(|step| found.remove(&step));
    let old = found.len().saturating_sub(keep.unwrap_or(usize::MAX));
    found.values().take(old).try_for_each(|path| remove_checkpoint(path))
}

/// Removes a checkpoint. Its folder is renamed first, so that a process killed during the removal leaves no damaged
/// folder under a checkpoint's name.
pub(crate) fn remove_checkpoint(path: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = path.with_file_name(format!(".{name}.old.part"));
    fs::rename(path, &aside).map_err(|e| Error::cannot_write(path, e))?;
    remove_dir(&aside)
}

fn remove_dir(path: &Path) -> Result<()> {
    fs::remove_dir_all(path).map_err(|e| Error::cannot_write(path, e))
}

/// A folder that has a hidden name while its files are written. Dropping this value before [`Self::publish`] removes
/// the folder.
struct FolderDraft(PathBuf);

impl FolderDraft {
    fn begin(out: &Path, name: &str) -> Result<Self> {
        let path = out.join(name);
        if path.exists() {
            remove_dir(&path)?;
        }
        fs::create_dir_all(&path).map_err(|e| Error::cannot_write(&path, e))?;
        Ok(Self(path))
    }

    /// Gives the complete folder its final name `target`. An existing `target` is renamed first, so an incomplete
    /// folder never has that name.
    fn publish(self, target: &Path) -> Result<()> {
        let failed = |e| Error::cannot_write(target, e);
        let aside = self.0.with_extension("old.part");
        if target.exists() {
            fs::rename(target, &aside).map_err(failed)?;
        }
        fs::rename(&self.0, target).map_err(failed)?;
        if aside.exists() {
            remove_dir(&aside)?;
        }
        if let Some(parent) = target.parent() {
            File::open(parent).and_then(|folder| folder.sync_all()).map_err(failed)?;
        }
        Ok(())
    }
}

impl Drop for FolderDraft {
    fn drop(&mut self) {
        // After `publish` the hidden folder no longer exists and nothing is removed. `drop` cannot return an error.
        let _ = fs::remove_dir_all(&self.0);
    }
}
