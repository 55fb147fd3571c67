//! A piece of device memory that is given back when the last user drops it.

use std::sync::Arc;

use super::captured_graph::Private;
use super::{Category, Device, Download, MappedFile};
use crate::error::Result;

/// Device memory, or a part of a mapped file.
pub struct Buffer {
    device: Device,
    addr: u64,
    bytes: usize,
    category: Category,
    /// Keeps a mapped file open; its memory is not ours to free.
    file: Option<Arc<MappedFile>>,
    /// The recording whose memory this is.
    home: Option<Arc<Private>>,
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes of {} on {:?}", self.bytes, self.category.name(), self.device)
    }
}

impl Buffer {
    pub(super) fn owned(device: Device, addr: u64, bytes: usize, category: Category) -> Buffer {
        Buffer { device, addr, bytes, category, file: None, home: None }
    }

    pub(super) fn mapped(device: Device, addr: u64, bytes: usize, file: Arc<MappedFile>) -> Buffer {
        Buffer { device, addr, bytes, category: Category::Weights, file: Some(file), home: None }
    }

    pub(super) fn recorded(device: Device, addr: u64, bytes: usize, category: Category, home: Arc<Private>) -> Buffer {
        Buffer { device, addr, bytes, category, file: None, home: Some(home) }
    }

    /// The device that it belongs to.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Its first address on the device.
    pub fn addr(&self) -> u64 {
        self.addr
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether it may be written: not when it is a mapped file.
    pub fn is_writable(&self) -> bool {
        self.file.is_none()
    }

    /// Copies from the host to `offset`.
    ///
    /// # Errors
    /// What the device reports.
    ///
    /// # Panics
    /// Beyond the buffer, or into a mapped file.
    pub fn upload(&self, offset: usize, from: &[u8]) -> Result<()> {
        assert!(
            self.is_writable() && offset + from.len() <= self.bytes,
            "upload of {} bytes at {offset} into {self:?}",
            from.len()
        );
        if from.is_empty() {
            return Ok(());
        }
        self.device.not_recording("copying from the host")?;
        self.device.0.backend.upload(self.addr + offset as u64, from)
    }

    /// Copies to the host from `offset`.
    ///
    /// # Errors
    /// What the device reports: bytes that nobody wrote, where it can tell.
    ///
    /// # Panics
    /// Beyond the buffer.
    pub fn download(&self, offset: usize, to: &mut [u8]) -> Result<()> {
        assert!(offset + to.len() <= self.bytes, "download of {} bytes at {offset} from {self:?}", to.len());
        if to.is_empty() {
            return Ok(());
        }
        self.device.not_recording("copying to the host")?;
        self.device.0.backend.download(self.addr + offset as u64, to)
    }

    /// Asks for a copy to the host of `bytes` from `offset`, as they are when what was launched so far is done.
    ///
    /// # Errors
    /// What the device reports.
    ///
    /// # Panics
    /// Beyond the buffer.
    pub fn download_async(&self, offset: usize, bytes: usize) -> Result<Download> {
        assert!(offset + bytes <= self.bytes, "download of {bytes} bytes at {offset} from {self:?}");
        Download::new(&self.device, self.addr + offset as u64, bytes)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            return home.give(self.addr, self.bytes);
        }
        self.device.0.memory.sub(self.category, self.bytes);
        let backend = &self.device.0.backend;
        match &self.file {
            _ if self.bytes == 0 => {}
            None => backend.free(self.addr, self.bytes),
            Some(_) => backend.unmap(self.addr, self.bytes),
        }
    }
}
