//! Copies to the host that are asked for now and waited for later.

use super::Device;
use crate::error::Result;

/// Where the bytes of a copy are.
pub(super) enum PendingCopy {
    /// With the host.
    Here(Vec<u8>),
    /// On their way, under the backend's handle.
    Coming(u64),
}

/// Bytes that the host will have when what was launched so far is done.
pub struct Download {
    device: Device,
    bytes: usize,
    pending: Option<PendingCopy>,
}

impl std::fmt::Debug for Download {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes from {:?}", self.bytes, self.device)
    }
}

impl Download {
    pub(super) fn new(device: &Device, from: u64, bytes: usize) -> Result<Download> {
        device.not_recording("copying to the host")?;
        let pending = match bytes {
            0 => PendingCopy::Here(Vec::new()),
            _ => device.0.backend.download_async(from, bytes)?,
        };
        Ok(Download { device: device.clone(), bytes, pending: Some(pending) })
    }

    /// Waits for the bytes, as elements of `T`.
    ///
    /// # Errors
    /// What the device reports.
    ///
    /// # Panics
    /// When the bytes are not whole elements.
    pub fn wait<T: bytemuck::Pod>(mut self) -> Result<Vec<T>> {
        let mut out = vec![T::zeroed(); self.bytes / size_of::<T>()];
        let to: &mut [u8] = bytemuck::cast_slice_mut(&mut out);
        assert_eq!(to.len(), self.bytes, "whole elements");
        match self.pending.take() {
            Some(PendingCopy::Here(bytes)) => to.copy_from_slice(&bytes),
            Some(PendingCopy::Coming(handle)) => self.device.0.backend.land(handle, to)?,
            None => {}
        }
        Ok(out)
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        if let Some(PendingCopy::Coming(handle)) = self.pending.take() {
            self.device.0.backend.forget(handle);
        }
    }
}
