//! Asynchronous downloads: copies to the host that are enqueued now and waited for later.
//!
//! ```text
//! let a = tensor.download_async()   enqueued after the launches so far; later launches may overwrite the tensor
//! launch(...)                       the device continues to work while the copy is in flight
//! a.wait()                          the values as they were when the download was enqueued
//! ```

use super::Device;
use crate::backend::PendingCopy;
use crate::error::Result;

/// An enqueued copy of device memory to the host.
pub struct Download {
    device: Device,
    bytes: usize,
    copy: Option<PendingCopy>,
}

impl std::fmt::Debug for Download {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes from {:?}", self.bytes, self.device)
    }
}

impl Download {
    pub(super) fn new(device: &Device, from: u64, bytes: usize) -> Result<Download> {
        device.check_not_capturing("copying to the host")?;
        let copy = match bytes {
            0 => PendingCopy::Ready(Vec::new()),
            _ => device.0.backend.download_async(from, bytes)?,
        };
        Ok(Download { device: device.clone(), bytes, copy: Some(copy) })
    }

    /// Waits for the copy and returns it as elements of `T`.
    ///
    /// # Errors
    /// A launch before the copy failed.
    ///
    /// # Panics
    /// The number of bytes is not a multiple of the size of `T`.
    pub fn wait<T: bytemuck::Pod>(mut self) -> Result<Vec<T>> {
        let mut out = vec![T::zeroed(); self.bytes / size_of::<T>()];
        let to: &mut [u8] = bytemuck::cast_slice_mut(&mut out);
        assert_eq!(to.len(), self.bytes, "whole elements");
        match self.copy.take() {
            Some(PendingCopy::Ready(bytes)) => to.copy_from_slice(&bytes),
            Some(PendingCopy::InFlight(handle)) => self.device.0.backend.finish_copy(handle, to)?,
            None => {}
        }
        Ok(out)
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        if let Some(PendingCopy::InFlight(handle)) = self.copy.take() {
            self.device.0.backend.discard_copy(handle);
        }
    }
}
