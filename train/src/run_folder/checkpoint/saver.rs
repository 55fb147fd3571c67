//! Writing beside the steps: one checkpoint at a time, on a thread of its own.

use std::fs;
use std::path::Path;
use std::thread::{self, JoinHandle};

use crate::{Result, TrainError};

/// What writes checkpoints. Dropped, it waits for the one that is being written.
#[derive(Debug, Default)]
pub struct CheckpointWriter(Option<JoinHandle<Result<()>>>);

impl CheckpointWriter {
    /// Starts `job` once the one before it is done.
    ///
    /// # Errors
    /// What went wrong with the one before, which this one then does not follow.
    pub fn start(&mut self, job: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
        self.wait()?;
        let spawned = thread::Builder::new().name("checkpoint".into()).spawn(job);
        self.0 = Some(spawned.map_err(|e| {
            TrainError::output("checkpoint", format!("no thread to write it: {e}"), "raise the limit on threads")
        })?);
        Ok(())
    }

    /// Whether all went well so far; does not wait.
    ///
    /// # Errors
    /// What went wrong with a job that is over.
    pub fn poll(&mut self) -> Result<()> {
        if self.0.as_ref().is_some_and(JoinHandle::is_finished) { self.wait() } else { Ok(()) }
    }

    /// Waits for the job at hand.
    ///
    /// # Errors
    /// What went wrong with it.
    pub fn wait(&mut self) -> Result<()> {
        let Some(job) = self.0.take() else { return Ok(()) };
        let died = || TrainError::output("checkpoint", "writing it ended early", "report this as a defect");
        job.join().unwrap_or_else(|_| Err(died()))
    }
}

impl Drop for CheckpointWriter {
    fn drop(&mut self) {
        // The run ends with another error, which is the one to tell.
        let _ = self.wait();
    }
}

/// Whether a copy of so many bytes takes at most half of the memory that is free, of the machine and of the process's group. Where nobody
/// says what is free, it does not.
pub fn has_room_for(bytes: u64) -> bool {
    free_memory().is_some_and(|free| bytes <= free / 2)
}

fn free_memory() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let machine = line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10;
    let group = of_group("memory.max", "memory.current", "inactive_file")
        .or_else(|| of_group("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"));
    Some(group.map_or(machine, |group| group.min(machine)))
}

/// What is free below the limit of the process's group, if it has one. Files that are in memory for now are among what it uses.
fn of_group(limit: &str, used: &str, files: &str) -> Option<u64> {
    let root = Path::new("/sys/fs/cgroup");
    let number = |name: &str| fs::read_to_string(root.join(name)).ok()?.trim().parse::<u64>().ok();
    // A group without a limit says `max`.
    let (limit, used_path) = (number(limit)?, root.join(used));
    let stat = fs::read_to_string(used_path.with_file_name("memory.stat")).ok()?;
    let files = stat.lines().find_map(|line| line.strip_prefix(files)?.trim().parse::<u64>().ok());
    Some(limit.saturating_sub(number(used)?.saturating_sub(files.unwrap_or(0))))
}
