//! The host's processor: launches run each kernel's cpu code on a team of threads.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::sync::Mutex;

use reel_kernels::launch::run_on_cpu;
use reel_kernels::{Launch, Team};

use super::Backend;
use crate::error::Result;

const ALIGN: usize = 64;

/// Freed blocks that are kept for the next allocation of about their size: fresh pages cost more than small kernels do.
const KEEP_BYTES: usize = 1 << 30;

pub(super) struct Cpu {
    team: Team,
    free: Mutex<FreeBlocks>,
}

#[derive(Default)]
struct FreeBlocks {
    by_size: BTreeMap<usize, Vec<u64>>,
    /// True sizes of live blocks that are larger than what was asked.
    sizes: std::collections::HashMap<u64, usize>,
    bytes: usize,
}

impl Cpu {
    pub(super) fn new(threads: usize) -> Cpu {
        let all = std::thread::available_parallelism().map_or(1, |n| n.get());
        Cpu { team: Team::new(if threads == 0 { all } else { threads }), free: Mutex::default() }
    }

    fn blocks(&self) -> std::sync::MutexGuard<'_, FreeBlocks> {
        self.free.lock().unwrap_or_else(|e| e.into_inner())
    }
}

fn rounded(bytes: usize) -> Option<usize> {
    bytes.checked_next_multiple_of(ALIGN)
}

fn layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes, ALIGN).ok()
}

impl Backend for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn threads(&self) -> usize {
        self.team.threads()
    }

    fn alloc(&self, bytes: usize) -> Option<u64> {
        let size = rounded(bytes)?;
        {
            let mut blocks = self.blocks();
            let found = blocks.by_size.range(size..=size + size / 8).next().map(|(&s, _)| s);
            if let Some(found) = found
                && let Some(list) = blocks.by_size.get_mut(&found)
                && let Some(addr) = list.pop()
            {
                if list.is_empty() {
                    blocks.by_size.remove(&found);
                }
                blocks.bytes -= found;
                if found != size {
                    blocks.sizes.insert(addr, found);
                }
                return Some(addr);
            }
        }
        // SAFETY: the size is not 0.
        let p = unsafe { alloc_zeroed(layout(size)?) };
        (!p.is_null()).then_some(p as u64)
    }

    fn free(&self, addr: u64, bytes: usize) {
        let Some(asked) = rounded(bytes) else { return };
        let mut blocks = self.blocks();
        let size = blocks.sizes.remove(&addr).unwrap_or(asked);
        if blocks.bytes + size <= KEEP_BYTES {
            blocks.bytes += size;
            blocks.by_size.entry(size).or_default().push(addr);
        } else {
            release(addr, size);
        }
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        // SAFETY: addresses in a launch come from live tensors of this device, whose shapes the op that made it checked;
        // buffers that are written are not mapped files.
        unsafe { run_on_cpu(launch, &self.team) };
        Ok(())
    }

    fn upload(&self, to: u64, from: &[u8]) {
        // SAFETY: `Buffer::upload` checked the range; the buffer is live and writable.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) }
    }

    fn download(&self, from: u64, to: &mut [u8]) {
        // SAFETY: `Buffer::download` checked the range; memory is initialised from its allocation on.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) }
    }
}

fn release(addr: u64, size: usize) {
    if let Some(layout) = layout(size) {
        // SAFETY: allocated in `alloc` with this layout.
        unsafe { dealloc(addr as *mut u8, layout) }
    }
}

impl Drop for Cpu {
    fn drop(&mut self) {
        for (size, list) in std::mem::take(&mut self.blocks().by_size) {
            list.into_iter().for_each(|addr| release(addr, size));
        }
    }
}
