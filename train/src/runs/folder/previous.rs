//! Keeps the files of an earlier run in OUT until the first step of the new run is done (`--overwrite`).
//!
//! ```text
//! set_aside     move the files of the earlier run to .previous-run.moving, then rename that folder to .previous-run
//! (first step)  the new run writes its own files into OUT
//! remove        rename .previous-run to .previous-run.part, which any later start removes, and remove it
//! put_back      remove the files of the new run, rename .previous-run to .previous-run.moving, move its files back
//! recover       at the start of a process, after a kill: finish what put_back would have done
//! ```
//!
//! While `.previous-run` exists, every file of a run in OUT belongs to the new run. While `.previous-run.moving`
//! exists, every file of a run in OUT and in that folder belongs to the earlier run. So if the process is killed
//! between any two of these steps, [`PreviousRun::recover`] can restore the earlier run.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::runs::folder::entries;

/// The folder in OUT that holds the files of the earlier run until the first step of the new run is done.
const ASIDE: &str = ".previous-run";
/// The name of the folder [`ASIDE`] while files are moved into or out of this folder.
const MOVING: &str = ".previous-run.moving";
/// The name of the folder [`ASIDE`] while the folder is removed. The name ends in `.part`, so
/// [`entries::remove_incomplete_files`] removes the folder if the process is killed.
const REMOVED: &str = ".previous-run.part";

/// The earlier run in OUT that a new run replaces. Dropping this value before [`PreviousRun::remove`] puts the files of
/// the earlier run back.
#[derive(Debug)]
pub struct PreviousRun {
    out: PathBuf,
    is_aside: bool,
}

impl PreviousRun {
    /// Creates a value without an earlier run, for a run that continues the run in OUT.
    pub fn none(out: &Path) -> Self {
        Self { out: out.to_path_buf(), is_aside: false }
    }

    /// Moves the files of the run in `out`, if there is a run, into a hidden folder. Other files stay.
    ///
    /// # Errors
    /// A file cannot be moved.
    pub fn set_aside(out: &Path) -> Result<Self> {
        entries::remove_incomplete_files(out)?;
        let moving = out.join(MOVING);
        fs::create_dir_all(&moving).map_err(|e| Error::cannot_write(&moving, e))?;
        for path in entries::run_entries(out)? {
            rename(&out.join(&path), &moving.join(&path))?;
        }
        remove_empty_folders(out)?;
        rename(&moving, &out.join(ASIDE))?;
        Ok(Self { out: out.to_path_buf(), is_aside: true })
    }

    /// Removes the files of the earlier run. Called after the first step of the new run.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn remove(&mut self) -> Result<()> {
        if !self.is_aside {
            return Ok(());
        }
        let removed = self.out.join(REMOVED);
        rename(&self.out.join(ASIDE), &removed)?;
        self.is_aside = false;
        fs::remove_dir_all(&removed).map_err(|e| Error::cannot_write(&removed, e))
    }

    /// Removes the files of the new run and puts the files of the earlier run back, unless [`PreviousRun::remove`] was
    /// called.
    ///
    /// # Errors
    /// A file cannot be removed or moved. The next process that starts in this folder tries again.
    pub fn put_back(&mut self) -> Result<()> {
        if !self.is_aside {
            return Ok(());
        }
        self.is_aside = false;
        put_back(&self.out)
    }

    /// Restores the earlier run in `out` if a process was killed between [`PreviousRun::set_aside`] and the end of its
    /// first step.
    ///
    /// # Errors
    /// A file cannot be removed or moved.
    pub fn recover(out: &Path) -> Result<()> {
        if out.join(ASIDE).is_dir() {
            return put_back(out);
        }
        if out.join(MOVING).is_dir() { move_back(out) } else { Ok(()) }
    }
}

impl Drop for PreviousRun {
    fn drop(&mut self) {
        // An error cannot be returned here, and another error already ends the run. The next process that starts in
        // this folder tries again.
        let _ = self.put_back();
    }
}

fn put_back(out: &Path) -> Result<()> {
    for path in entries::run_entries(out)? {
        entries::remove(&out.join(path))?;
    }
    remove_empty_folders(out)?;
    rename(&out.join(ASIDE), &out.join(MOVING))?;
    move_back(out)
}

fn move_back(out: &Path) -> Result<()> {
    let moving = out.join(MOVING);
    move_contents(&moving, out)?;
    entries::remove(&moving)
}

/// Moves everything in the folder `from` into `to`. The contents of a folder that also exists in `to` are moved one by
/// one.
fn move_contents(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).map_err(|e| Error::cannot_read(from, e))? {
        let source = entry.map_err(|e| Error::cannot_read(from, e))?.path();
        let target = to.join(source.file_name().unwrap_or_default());
        match target.is_dir() && source.is_dir() {
            true => move_contents(&source, &target)?,
            false => rename(&source, &target)?,
        }
    }
    Ok(())
}

/// Renames a file or folder. Creates the parent folder of `to` if necessary.
fn rename(from: &Path, to: &Path) -> Result<()> {
    let created = to.parent().map_or(Ok(()), fs::create_dir_all);
    created.and_then(|()| fs::rename(from, to)).map_err(|e| Error::cannot_write(to, e))
}

/// Removes the folders that the run shared with the user, if nothing is left in them.
fn remove_empty_folders(out: &Path) -> Result<()> {
    let expected = [ErrorKind::NotFound, ErrorKind::DirectoryNotEmpty, ErrorKind::NotADirectory];
    for folder in entries::SHARED_FOLDERS {
        let folder = out.join(folder);
        match fs::remove_dir(&folder) {
            Err(e) if !expected.contains(&e.kind()) => return Err(Error::cannot_write(&folder, e)),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FILES: [&str; 9] = [
        "metrics.jsonl",
        "run.json",
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "rollouts/000001.jsonl",
        "checkpoint-3/training/state.json",
        "wandb/offline-run-20260101_000000-abcd1234/run-abcd1234.wandb",
        "eval/step-2/mmvu.jsonl",
        "notes.txt",
    ];

    fn write(out: &Path, names: &[&str], text: &str) {
        for name in names {
            let path = out.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    /// Returns the path and text of all files below `out`, sorted.
    fn files(out: &Path) -> Vec<(PathBuf, String)> {
        let (mut found, mut folders) = (Vec::new(), vec![out.to_path_buf()]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => folders.push(path),
                    false => found.push((path.strip_prefix(out).unwrap().into(), fs::read_to_string(&path).unwrap())),
                }
            }
        }
        found.sort();
        found
    }

    /// Copies a folder in its present state, which is the state that a killed process would leave.
    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            let target = to.join(path.file_name().unwrap());
            match path.is_dir() {
                true => copy(&path, &target),
                false => assert!(fs::copy(&path, &target).is_ok()),
            }
        }
    }

    #[test]
    fn earlier_run_is_put_back_or_removed() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path();
        write(out, &FILES, "old");
        let before = files(out);
        let mut previous = PreviousRun::set_aside(out).unwrap();
        assert!(!out.join("metrics.jsonl").exists() && !out.join("checkpoint-3").exists());
        write(out, &["metrics.jsonl", "events.out.tfevents.1", "wandb/offline-run-20260102_000000-a/f"], "new");
        previous.put_back().unwrap();
        assert_eq!(files(out), before);
        drop(previous);
        assert_eq!(files(out), before, "dropping it does not put the files back a second time");

        let mut previous = PreviousRun::set_aside(out).unwrap();
        write(out, &["metrics.jsonl"], "new");
        previous.remove().unwrap();
        drop(previous);
        let left: Vec<String> = files(out).iter().map(|f| format!("{}={}", f.0.display(), f.1)).collect();
        assert_eq!(left, ["metrics.jsonl=new", "notes.txt=old"]);
        PreviousRun::recover(out).unwrap();
        assert_eq!(files(out).len(), 2);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// No file of the earlier run is lost if the process is killed while files are moved aside or back, or during
        /// the first step.
        #[test]
        fn killed_process_loses_no_file(
            chosen in prop::sample::subsequence(FILES.to_vec(), 1..=FILES.len()), moved in 0usize..10, early: bool,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let out = dir.path().join("out");
            write(&out, &chosen, "old");
            let before = files(&out);
            // Simulates a kill while files are moved aside or back: some of the files are in the hidden folder.
            let killed = dir.path().join("moving");
            copy(&out, &killed);
            for path in entries::run_entries(&killed).unwrap().iter().take(moved) {
                rename(&killed.join(path), &killed.join(MOVING).join(path)).unwrap();
            }
            PreviousRun::recover(&killed).unwrap();
            prop_assert_eq!(&files(&killed), &before);
            // Simulates a kill during the first step, or while the new run's files are removed.
            std::mem::forget(PreviousRun::set_aside(&out).unwrap());
            let new = ["run.json", "metrics.jsonl", "rollouts/1.jsonl"];
            write(&out, &new[..if early { 1 } else { 3 }], "new");
            PreviousRun::recover(&out).unwrap();
            prop_assert_eq!(&files(&out), &before);
        }
    }
}
