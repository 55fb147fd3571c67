//! Global memory: buffers at addresses, each with its shadow.

use crate::layout;
use crate::order::{MemorySpace, ShadowMemory};

/// Between buffers: what a signed 32-bit index of 8-byte elements reaches.
const FAR: u64 = 16 << 30;
/// Beyond this address there is less room between buffers, so that addresses stay within 47 bits.
const FAR_APART_BELOW: u64 = 1 << 46;

/// A buffer.
#[derive(Clone, Debug)]
pub struct Allocation {
    /// Address of its first byte.
    pub base: u64,
    /// Its bytes.
    pub data: Vec<u8>,
    /// Who touched them.
    pub shadow: ShadowMemory,
    /// Whether kernels may write there.
    pub writable: bool,
}

/// Why the host cannot read bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// They are not all in one buffer.
    #[error("reads outside of every buffer: {0}")]
    OutOfBounds(String),
    /// Nobody wrote them.
    #[error("reads byte {byte} of {of}, which nobody wrote")]
    Uninitialized {
        /// The first such byte, from the first one read.
        byte: u64,
        /// Bytes read.
        of: u64,
    },
}

/// The buffers that kernels see.
#[derive(Clone, Debug, Default)]
pub struct SimMemory {
    /// By address.
    allocations: Vec<Allocation>,
    next: u64,
}

impl SimMemory {
    /// None yet.
    pub fn new() -> SimMemory {
        SimMemory { allocations: Vec::new(), next: layout::HEAP }
    }

    /// A new buffer with these bytes, aligned to 256; its address.
    pub fn alloc(&mut self, data: Vec<u8>) -> u64 {
        let base = self.place(data.len() as u64);
        self.insert(base, data, true);
        base
    }

    /// A new buffer of `bytes` that nobody has written.
    pub fn alloc_uninitialized(&mut self, bytes: usize) -> u64 {
        let base = self.place(bytes as u64);
        self.insert(base, vec![0xa5; bytes], false);
        base
    }

    /// An address for `bytes` bytes, so far from the last buffer that a 32-bit index past its end does not hit this one.
    fn place(&mut self, bytes: u64) -> u64 {
        let base = self.next;
        let gap = if base < FAR_APART_BELOW { FAR } else { 4096 };
        self.next = (base + bytes + gap).next_multiple_of(4096);
        base
    }

    /// As [`SimMemory::alloc_uninitialized`], but `None` where this machine has no room.
    pub fn try_alloc_uninitialized(&mut self, bytes: usize) -> Option<u64> {
        let mut data = Vec::new();
        data.try_reserve_exact(bytes).ok()?;
        data.resize(bytes, 0xa5);
        let base = self.place(bytes as u64);
        self.insert(base, data, false);
        Some(base)
    }

    /// From now on no kernel may write to this buffer.
    pub fn protect(&mut self, base: u64) {
        if let Some(a) = self.find(base).and_then(|i| self.allocations.get_mut(i)) {
            a.writable = false;
        }
    }

    /// Takes the buffers that hold any of `addresses` out, into a memory of their own. Addresses in no buffer are passed over.
    pub fn take(&mut self, addresses: impl IntoIterator<Item = u64>) -> SimMemory {
        let mut part = SimMemory { allocations: Vec::new(), next: self.next };
        for address in addresses {
            if let Some(i) = self.find(address) {
                part.put(self.allocations.remove(i));
            }
        }
        part
    }

    /// Puts buffers back that [`SimMemory::take`] gave. Variables of modules that were mapped beside them in between are dropped.
    pub fn give(&mut self, part: SimMemory) {
        part.allocations.into_iter().filter(|a| a.base >= layout::HEAP).for_each(|a| self.put(a));
    }

    /// A buffer at an address of the caller's choice. Whatever overlapped it is gone.
    pub fn map(&mut self, base: u64, data: Vec<u8>, initialized: bool) {
        let end = base + data.len() as u64;
        self.allocations.retain(|a| a.base >= end || a.base + a.data.len() as u64 <= base);
        self.insert(base, data, initialized);
    }

    /// Adds the constants and variables of a module.
    pub(crate) fn map_variable(&mut self, base: u64, data: Vec<u8>, constant: bool) {
        self.insert(base, data, true);
        if let Some(a) = self.find(base).and_then(|i| self.allocations.get_mut(i)) {
            a.writable = !constant;
        }
    }

    fn insert(&mut self, base: u64, data: Vec<u8>, initialized: bool) {
        let shadow = ShadowMemory::new(MemorySpace::Global, data.len() as u64, initialized);
        self.put(Allocation { base, data, shadow, writable: true });
    }

    fn put(&mut self, allocation: Allocation) {
        let at = self.allocations.partition_point(|a| a.base < allocation.base);
        self.allocations.insert(at, allocation);
    }

    /// Frees a buffer.
    pub fn free(&mut self, base: u64) {
        self.allocations.retain(|a| a.base != base);
    }

    /// The bytes of a buffer.
    pub fn bytes(&self, base: u64) -> Option<&[u8]> {
        let i = self.allocations.binary_search_by_key(&base, |a| a.base).ok()?;
        Some(&self.allocations[i].data)
    }

    /// Overwrites a buffer's bytes from the host, at `address` anywhere in it; false if that is outside.
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> bool {
        let Some(i) = self.find(address) else { return false };
        let a = &mut self.allocations[i];
        let at = (address - a.base) as usize;
        let Some(slot) = a.data.get_mut(at..at + bytes.len()) else { return false };
        slot.copy_from_slice(bytes);
        a.shadow.initialize(at as u64..(at + bytes.len()) as u64);
        true
    }

    /// `bytes` bytes at `address`, anywhere in a buffer, as the host reads them.
    ///
    /// # Errors
    /// Bytes outside of the buffer, or that nobody wrote.
    pub fn read(&self, address: u64, bytes: usize) -> Result<&[u8], ReadError> {
        let outside = || ReadError::OutOfBounds(format!("{bytes} bytes at {address:#x}: {}", self.describe(address)));
        let a = self.find(address).map(|i| &self.allocations[i]).ok_or_else(outside)?;
        let at = (address - a.base) as usize;
        let data = at.checked_add(bytes).and_then(|end| a.data.get(at..end)).ok_or_else(outside)?;
        let written = |n: usize| a.shadow.is_initialized(at as u64..(at + n) as u64);
        if !written(bytes) {
            // The longest prefix that was written.
            let (mut good, mut bad) = (0, bytes);
            while bad - good > 1 {
                let half = good + (bad - good) / 2;
                *(if written(half) { &mut good } else { &mut bad }) = half;
            }
            return Err(ReadError::Uninitialized { byte: good as u64, of: bytes as u64 });
        }
        Ok(data)
    }

    /// The buffer that holds `address`.
    #[inline]
    pub fn find(&self, address: u64) -> Option<usize> {
        let i = self.allocations.partition_point(|a| a.base <= address).checked_sub(1)?;
        let a = &self.allocations[i];
        (address - a.base < a.data.len() as u64).then_some(i)
    }

    /// Whether the `index`-th buffer holds `address`.
    #[inline]
    pub fn holds(&self, index: usize, address: u64) -> bool {
        self.allocations.get(index).is_some_and(|a| address.wrapping_sub(a.base) < a.data.len() as u64)
    }

    /// The `index`-th buffer.
    #[inline]
    pub fn get(&self, index: usize) -> &Allocation {
        &self.allocations[index]
    }

    /// The `index`-th buffer.
    #[inline]
    pub fn get_mut(&mut self, index: usize) -> &mut Allocation {
        &mut self.allocations[index]
    }

    /// All buffers, by address.
    pub fn iter(&self) -> impl Iterator<Item = &Allocation> {
        self.allocations.iter()
    }

    /// A kernel has ended: all that it did is ordered before what comes.
    pub fn end_launch(&mut self) {
        self.allocations.iter_mut().for_each(|a| a.shadow.settle());
    }

    /// The nearest buffer to a wild address, in words.
    pub(crate) fn describe(&self, address: u64) -> String {
        let near = self.allocations.iter().min_by_key(|a| {
            let end = a.base + a.data.len() as u64;
            if address < a.base { a.base - address } else { address.saturating_sub(end) }
        });
        match near {
            None => "there is no buffer at all".into(),
            Some(a) => {
                let end = a.base + a.data.len() as u64;
                let (n, len) = (self.allocations.iter().position(|b| b.base == a.base).unwrap_or(0), a.data.len());
                if address >= end && address - end < FAR {
                    format!("{} bytes past the end of buffer {n} of {len} bytes", address - end)
                } else if address < a.base && a.base - address < FAR {
                    format!("{} bytes before buffer {n} of {len} bytes", a.base - address)
                } else {
                    "no buffer is near".into()
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_reads_what_was_written_and_nothing_else() {
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
    fn buffers_are_taken_out_and_put_back() {
        let mut memory = SimMemory::new();
        let at: Vec<u64> = (0..4).map(|i| memory.alloc(vec![i; 100])).collect();
        let mut part = memory.take([at[2] + 50, at[0], at[2], at[1] + 100]);
        assert_eq!(part.iter().map(|a| a.base).collect::<Vec<_>>(), [at[0], at[2]]);
        assert_eq!(memory.iter().map(|a| a.base).collect::<Vec<_>>(), [at[1], at[3]]);
        assert!(part.write(at[2], &[9]));
        part.map_variable(layout::MODULE, vec![1], false);
        memory.give(part);
        assert_eq!(memory.iter().map(|a| a.base).collect::<Vec<_>>(), at);
        assert_eq!(memory.bytes(at[2]).unwrap()[..2], [9, 2]);
        assert!(memory.alloc(vec![1]) > at[3]);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert_eq!(SimMemory::new().try_alloc_uninitialized(usize::MAX), None);
        assert_eq!(SimMemory::new().try_alloc_uninitialized(1 << 60), None);
    }
}
