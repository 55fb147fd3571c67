//! Global memory: buffers at addresses, each with its shadow.

use crate::layout;
use crate::order::{Shadow, Space};

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
    pub shadow: Shadow,
    /// Whether kernels may write there.
    pub writable: bool,
}

/// The buffers that kernels see.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// By address.
    allocations: Vec<Allocation>,
    next: u64,
}

impl Memory {
    /// None yet.
    pub fn new() -> Memory {
        Memory { allocations: Vec::new(), next: layout::HEAP }
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
        let shadow = Shadow::new(Space::Global, data.len() as u64, initialized);
        let at = self.allocations.partition_point(|a| a.base < base);
        self.allocations.insert(at, Allocation { base, data, shadow, writable: true });
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
