//! Simulated global memory: buffers at addresses, each with the shadow memory that race checks use.

use crate::layout;
use crate::order::{MemorySpace, ShadowMemory};

/// Unused address range after each buffer, in bytes: as far as a signed 32-bit index of 8-byte elements reaches, so
/// that an access with a bad index hits no other buffer.
const BUFFER_GAP_BYTES: u64 = 16 << 30;
/// From this address on the unused ranges between buffers are small, so that addresses stay within 47 bits.
const LARGE_GAPS_END: u64 = 1 << 46;

/// A buffer in global memory.
#[derive(Clone, Debug)]
pub struct Allocation {
    /// Address of the first byte.
    pub base: u64,
    /// The contents of the buffer.
    pub data: Vec<u8>,
    /// Shadow memory: the last writers and readers of the buffer's bytes.
    pub shadow: ShadowMemory,
    /// Whether kernels may write to the buffer.
    pub writable: bool,
    /// The name for messages: the name of a module's variable, or the name that [`SimMemory::name_buffer`] gave.
    name: Option<Box<str>>,
}

/// The reason why the host cannot read bytes of a buffer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The bytes do not all lie in one buffer.
    #[error("read outside of all buffers: {0}")]
    OutOfBounds(String),
    /// Neither the host nor a kernel has written the bytes.
    #[error("reads {of} bytes, of which byte {byte} was never written")]
    Uninitialized {
        /// Index of the first unwritten byte among the bytes to read.
        byte: u64,
        /// Number of bytes to read.
        of: u64,
    },
}

/// The global memory of a simulated GPU: the buffers that kernels see. No buffer has address 0, the null pointer.
#[derive(Clone, Debug)]
pub struct SimMemory {
    /// The buffers in the order of their addresses.
    allocations: Vec<Allocation>,
    next: u64,
}

impl Default for SimMemory {
    fn default() -> SimMemory {
        SimMemory::new()
    }
}

impl SimMemory {
    /// Creates a memory without buffers.
    pub fn new() -> SimMemory {
        SimMemory { allocations: Vec::new(), next: layout::HEAP_BASE }
    }

    /// Adds a buffer with these bytes, aligned to 256 bytes, and returns its address.
    pub fn alloc(&mut self, data: Vec<u8>) -> u64 {
        let base = self.reserve_address(data.len() as u64);
        self.insert(base, data, true);
        base
    }

    /// Adds a buffer of `bytes` bytes that are marked as unwritten, and returns its address.
    pub fn alloc_uninitialized(&mut self, bytes: usize) -> u64 {
        let base = self.reserve_address(bytes as u64);
        self.insert(base, vec![0xa5; bytes], false);
        base
    }

    /// Reserves an address for `bytes` bytes after the last buffer and its gap.
    fn reserve_address(&mut self, bytes: u64) -> u64 {
        let base = self.next;
        let gap = if base < LARGE_GAPS_END { BUFFER_GAP_BYTES } else { 4096 };
        self.next = (base + bytes + gap).next_multiple_of(4096);
        base
    }

    /// Adds a buffer like [`SimMemory::alloc_uninitialized`]; returns `None` if the host lacks memory for it.
    pub fn try_alloc_uninitialized(&mut self, bytes: usize) -> Option<u64> {
        let mut data = Vec::new();
        data.try_reserve_exact(bytes).ok()?;
        data.resize(bytes, 0xa5);
        let base = self.reserve_address(bytes as u64);
        self.insert(base, data, false);
        Some(base)
    }

    /// Forbids kernels to write to the buffer at `base` from now on.
    pub fn make_read_only(&mut self, base: u64) {
        if let Some(a) = self.buffer_index(base).and_then(|i| self.allocations.get_mut(i)) {
            a.writable = false;
        }
    }

    /// Moves the buffers that contain any of `addresses` into another `SimMemory`. Addresses outside of all buffers
    /// are ignored.
    pub fn split_off(&mut self, addresses: impl IntoIterator<Item = u64>) -> SimMemory {
        let mut part = SimMemory { allocations: Vec::new(), next: self.next };
        for address in addresses {
            if let Some(i) = self.buffer_index(address) {
                part.put(self.allocations.remove(i));
            }
        }
        part
    }

    /// Puts back the buffers that [`SimMemory::split_off`] returned. Module variables that were mapped since then are
    /// dropped.
    pub fn merge(&mut self, part: SimMemory) {
        part.allocations.into_iter().filter(|a| a.base >= layout::HEAP_BASE).for_each(|a| self.put(a));
    }

    /// Adds a buffer at address `base` and removes buffers that overlap it.
    pub fn map_buffer(&mut self, base: u64, data: Vec<u8>, initialized: bool) {
        let end = base + data.len() as u64;
        self.allocations.retain(|a| a.base >= end || a.base + a.data.len() as u64 <= base);
        self.insert(base, data, initialized);
    }

    /// Adds a buffer for a constant or a variable of a PTX module.
    pub(crate) fn map_variable(&mut self, base: u64, data: Vec<u8>, constant: bool, name: &str) {
        self.insert(base, data, true);
        if let Some(a) = self.buffer_index(base).and_then(|i| self.allocations.get_mut(i)) {
            (a.writable, a.name) = (!constant, Some(name.into()));
        }
    }

    /// Gives the buffer at `base` a name for messages.
    pub fn name_buffer(&mut self, base: u64, name: &str) {
        if let Some(a) = self.buffer_index(base).and_then(|i| self.allocations.get_mut(i)) {
            a.name = Some(name.into());
        }
    }

    fn insert(&mut self, base: u64, data: Vec<u8>, initialized: bool) {
        let shadow = ShadowMemory::new(MemorySpace::Global, data.len() as u64, initialized);
        self.put(Allocation { base, data, shadow, writable: true, name: None });
    }

    fn put(&mut self, allocation: Allocation) {
        let at = self.allocations.partition_point(|a| a.base < allocation.base);
        self.allocations.insert(at, allocation);
    }

    /// Frees the buffer at `base`.
    pub fn free(&mut self, base: u64) {
        self.allocations.retain(|a| a.base != base);
    }

    /// Returns the contents of the buffer at `base`.
    pub fn buffer_bytes(&self, base: u64) -> Option<&[u8]> {
        let i = self.allocations.binary_search_by_key(&base, |a| a.base).ok()?;
        Some(&self.allocations[i].data)
    }

    /// Copies bytes from the host to `address`, which may be anywhere in a buffer. Returns false, and writes nothing,
    /// if the bytes do not fit into the buffer.
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> bool {
        let Some(i) = self.buffer_index(address) else { return false };
        let a = &mut self.allocations[i];
        let at = (address - a.base) as usize;
        let Some(slot) = a.data.get_mut(at..at + bytes.len()) else { return false };
        slot.copy_from_slice(bytes);
        a.shadow.mark_initialized(at as u64..(at + bytes.len()) as u64);
        true
    }

    /// Returns `bytes` bytes at `address`, which may be anywhere in a buffer.
    ///
    /// # Errors
    /// Returns an error if the bytes do not all lie in one buffer or if some of them were never written.
    pub fn read(&self, address: u64, bytes: usize) -> Result<&[u8], ReadError> {
        let outside = || {
            ReadError::OutOfBounds(format!(
                "cannot read {bytes} bytes at {address:#x}: {}",
                self.describe_nearest_buffer(address)
            ))
        };
        let a = self.buffer_index(address).map(|i| &self.allocations[i]).ok_or_else(outside)?;
        let at = (address - a.base) as usize;
        let data = at.checked_add(bytes).and_then(|end| a.data.get(at..end)).ok_or_else(outside)?;
        let written = |n: usize| a.shadow.is_initialized(at as u64..(at + n) as u64);
        if !written(bytes) {
            // Bisection finds the length of the longest prefix of written bytes.
            let (mut good, mut bad) = (0, bytes);
            while bad - good > 1 {
                let half = good + (bad - good) / 2;
                *(if written(half) { &mut good } else { &mut bad }) = half;
            }
            return Err(ReadError::Uninitialized { byte: good as u64, of: bytes as u64 });
        }
        Ok(data)
    }

    /// Returns the index of the buffer that holds `address`.
    #[inline]
    pub fn buffer_index(&self, address: u64) -> Option<usize> {
        let i = self.allocations.partition_point(|a| a.base <= address).checked_sub(1)?;
        let a = &self.allocations[i];
        (address - a.base < a.data.len() as u64).then_some(i)
    }

    /// Returns whether the buffer with this index holds `address`.
    #[inline]
    pub fn buffer_holds(&self, index: usize, address: u64) -> bool {
        self.allocations.get(index).is_some_and(|a| address.wrapping_sub(a.base) < a.data.len() as u64)
    }

    /// Returns the buffer with this index.
    #[inline]
    pub fn buffer(&self, index: usize) -> &Allocation {
        &self.allocations[index]
    }

    /// Returns the buffer with this index (mutable).
    #[inline]
    pub fn buffer_mut(&mut self, index: usize) -> &mut Allocation {
        &mut self.allocations[index]
    }

    /// Iterates over all buffers in the order of their addresses.
    pub fn iter(&self) -> impl Iterator<Item = &Allocation> {
        self.allocations.iter()
    }

    /// Records that all accesses so far happen before all later accesses, because the kernel has ended.
    pub fn end_launch(&mut self) {
        self.allocations.iter_mut().for_each(|a| a.shadow.forget_accesses());
    }

    /// Describes, for a message about an `address` outside of all buffers, where the nearest buffer lies.
    pub(crate) fn describe_nearest_buffer(&self, address: u64) -> String {
        let near = self.allocations.iter().min_by_key(|a| {
            let end = a.base + a.data.len() as u64;
            if address < a.base { a.base - address } else { address.saturating_sub(end) }
        });
        match near {
            None => "there is no buffer".into(),
            Some(a) => {
                let end = a.base + a.data.len() as u64;
                let (name, len) = (self.displayed_name(a), a.data.len());
                if address >= end && address - end < BUFFER_GAP_BYTES {
                    format!("{} bytes past the end of {name}, which has {len} bytes", address - end)
                } else if address < a.base && a.base - address < BUFFER_GAP_BYTES {
                    format!("{} bytes before {name}, which has {len} bytes", a.base - address)
                } else {
                    "no buffer is near".into()
                }
            }
        }
    }

    /// Returns the name of the buffer with this index for messages. A buffer without a name is shown by its number;
    /// module variables are not counted.
    pub(crate) fn displayed_buffer_name(&self, index: usize) -> String {
        self.displayed_name(&self.allocations[index])
    }

    fn displayed_name(&self, buffer: &Allocation) -> String {
        let buffers = self.allocations.iter().filter(|a| a.base >= layout::HEAP_BASE && a.base < buffer.base);
        buffer.name.as_ref().map_or_else(|| format!("buffer {}", buffers.count()), |name| name.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_reads_written_bytes_only() {
        let mut memory = SimMemory::new();
        let at = memory.alloc_uninitialized(10_000);
        for n in [0, 1, 63, 64, 4095, 4096, 4097, 9_999] {
            let written: Vec<u8> = (0..n).map(|i| i as u8).collect();
            assert!(memory.write(at, &written));
            assert_eq!(memory.read(at, n).unwrap(), written);
            let want = ReadError::Uninitialized { byte: n as u64, of: n as u64 + 1 };
            assert_eq!(memory.read(at, n + 1).unwrap_err(), want);
        }
        assert!(matches!(memory.read(at + 9_000, 1_001), Err(ReadError::OutOfBounds(_))));
        assert!(matches!(memory.read(at - 1, 1), Err(ReadError::OutOfBounds(_))));
    }

    #[test]
    fn taken_buffers_can_be_put_back() {
        let mut memory = SimMemory::new();
        let at: Vec<u64> = (0..4).map(|i| memory.alloc(vec![i; 100])).collect();
        let mut part = memory.split_off([at[2] + 50, at[0], at[2], at[1] + 100]);
        assert_eq!(part.iter().map(|a| a.base).collect::<Vec<_>>(), [at[0], at[2]]);
        assert_eq!(memory.iter().map(|a| a.base).collect::<Vec<_>>(), [at[1], at[3]]);
        assert!(part.write(at[2], &[9]));
        part.map_variable(layout::MODULE_BASE, vec![1], false, "variable");
        memory.merge(part);
        assert_eq!(memory.iter().map(|a| a.base).collect::<Vec<_>>(), at);
        assert_eq!(memory.buffer_bytes(at[2]).unwrap()[..2], [9, 2]);
        assert!(memory.alloc(vec![1]) > at[3]);
    }

    #[test]
    fn refuses_impossible_sizes() {
        assert_eq!(SimMemory::new().try_alloc_uninitialized(usize::MAX), None);
        assert_eq!(SimMemory::new().try_alloc_uninitialized(1 << 60), None);
    }
}
