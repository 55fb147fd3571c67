//! A buffer of device memory, which is freed when the buffer is dropped.

use std::sync::Arc;

use super::captured_graph::GraphMemory;
use super::{Device, Download};
use crate::error::Result;
use crate::mapped_file::MappedFile;
use crate::memory::MemoryCategory;

/// A buffer: an owned piece of device memory, or a part of a mapped file.
pub struct Buffer {
    device: Device,
    addr: u64,
    bytes: usize,
    category: MemoryCategory,
    /// The mapped file, if the buffer is a part of one. The file stays mapped as long as the buffer exists. Dropping
    /// the buffer frees no memory then.
    file: Option<Arc<MappedFile>>,
    /// The memory of a captured graph, if the buffer was allocated during its capture.
    graph: Option<Arc<GraphMemory>>,
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes of {} on {:?}", self.bytes, self.category.name(), self.device)
    }
}

impl Buffer {
    pub(super) fn owned(device: Device, addr: u64, bytes: usize, category: MemoryCategory) -> Buffer {
        Buffer { device, addr, bytes, category, file: None, graph: None }
    }

    pub(super) fn mapped(device: Device, addr: u64, bytes: usize, file: Arc<MappedFile>) -> Buffer {
        Buffer { device, addr, bytes, category: MemoryCategory::Weights, file: Some(file), graph: None }
    }

    pub(super) fn allocated_in_graph(
        device: Device,
        addr: u64,
        bytes: usize,
        category: MemoryCategory,
        graph: Arc<GraphMemory>,
    ) -> Buffer {
        Buffer { device, addr, bytes, category, file: None, graph: Some(graph) }
    }

    /// The device that owns the memory.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The device address of the first byte.
    pub fn addr(&self) -> u64 {
        self.addr
    }

    /// The size of the buffer in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether the buffer may be written: false for a mapped file.
    pub fn is_writable(&self) -> bool {
        self.file.is_none()
    }

    /// Makes the operating system provide the buffer's memory now. Without this call, a CPU gets each page at the
    /// first access. The contents do not change, so other threads may use the buffer during the call.
    pub fn prefault_pages(&self) {
        if self.is_writable() {
            self.device.0.backend.populate(self.addr, self.bytes);
        }
    }

    /// Copies bytes from the host to the buffer, from byte `offset` on.
    ///
    /// # Errors
    /// The device is capturing a graph, or an earlier launch failed.
    ///
    /// # Panics
    /// The range goes beyond the buffer's end, or the buffer is a mapped file.
    pub fn upload(&self, offset: usize, from: &[u8]) -> Result<()> {
        assert!(
            self.is_writable() && offset + from.len() <= self.bytes,
            "cannot upload {} bytes at offset {offset} into {self:?}",
            from.len()
        );
        if from.is_empty() {
            return Ok(());
        }
        self.device.check_not_capturing("copying from the host")?;
        self.device.0.backend.upload(self.addr + offset as u64, from)
    }

    /// Copies bytes of the buffer, from byte `offset` on, to the host.
    ///
    /// # Errors
    /// The device is capturing a graph, or an earlier launch failed. Device `sim` also returns an error for bytes
    /// that were never written.
    ///
    /// # Panics
    /// The range goes beyond the buffer's end.
    pub fn download(&self, offset: usize, to: &mut [u8]) -> Result<()> {
        assert!(offset + to.len() <= self.bytes, "cannot download {} bytes at offset {offset} from {self:?}", to.len());
        if to.is_empty() {
            return Ok(());
        }
        self.device.check_not_capturing("copying to the host")?;
        self.device.0.backend.download(self.addr + offset as u64, to)
    }

    /// Enqueues a copy of `bytes` bytes of the buffer, from byte `offset` on, to the host. The copy runs after all
    /// launches that are already enqueued.
    ///
    /// # Errors
    /// The device is capturing a graph, or an earlier launch failed.
    ///
    /// # Panics
    /// The range goes beyond the buffer's end.
    pub fn download_async(&self, offset: usize, bytes: usize) -> Result<Download> {
        assert!(offset + bytes <= self.bytes, "cannot download {bytes} bytes at offset {offset} from {self:?}");
        Download::new(&self.device, self.addr + offset as u64, bytes)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(graph) = &self.graph {
            return graph.free_block(self.addr, self.bytes);
        }
        self.device.0.memory.subtract(self.category, self.bytes);
        let backend = &self.device.0.backend;
        match &self.file {
            _ if self.bytes == 0 => {}
            None => backend.free(self.addr, self.bytes),
            Some(_) => backend.unmap(self.addr, self.bytes),
        }
    }
}
