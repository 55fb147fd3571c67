//! Writes checkpoints on a background thread, one at a time, while the next steps run.

use std::thread::{self, JoinHandle};

use reel_device::{Device, free_host_bytes};

use crate::error::{Error, Result};

/// Handle of the background thread that writes checkpoints. Dropping the handle waits for the checkpoint in progress.
#[derive(Debug, Default)]
pub struct CheckpointWriter(Option<JoinHandle<Result<()>>>);

impl CheckpointWriter {
    /// Starts `job` on a background thread, after waiting for the previous job.
    ///
    /// # Errors
    /// The error of the previous job, in which case `job` is not started.
    pub fn start(&mut self, job: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
        self.wait()?;
        let spawned = thread::Builder::new().name("checkpoint".into()).spawn(job);
        self.0 = Some(spawned.map_err(|e| Error::cannot_start_thread("checkpoint", &e))?);
        Ok(())
    }

    /// Checks, without waiting, whether the job has ended, and returns its error if it failed.
    ///
    /// # Errors
    /// The error of the job.
    pub fn check_finished_job(&mut self) -> Result<()> {
        if self.0.as_ref().is_some_and(JoinHandle::is_finished) { self.wait() } else { Ok(()) }
    }

    /// Waits until the job has ended, if there is one.
    ///
    /// # Errors
    /// The error of the job.
    pub fn wait(&mut self) -> Result<()> {
        let Some(job) = self.0.take() else { return Ok(()) };
        let died = || Error::failed("checkpoint", "the writing thread panicked", "report this as a defect");
        job.join().unwrap_or_else(|_| Err(died()))
    }
}

impl Drop for CheckpointWriter {
    fn drop(&mut self) {
        // An error here is not reported, because the run is already ending with another error.
        let _ = self.wait();
    }
}

/// Whether `bytes` is at most half of the free host memory (of the machine, and of the cgroup if it has a limit). If
/// not, the device frees the memory that it keeps for the next step, and the check is repeated. False if the free
/// memory is unknown.
pub fn host_memory_has_room_for(device: &Device, bytes: u64) -> bool {
    let has_room = || free_host_bytes().is_some_and(|free| bytes <= free / 2);
    has_room() || {
        device.return_kept_memory();
        has_room()
    }
}
