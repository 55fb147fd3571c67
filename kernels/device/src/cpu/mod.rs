//! Device `cpu`: launches run the Rust kernels on a thread team (`crate::Team`). The code of the kernels uses [`simd`].
#![allow(unsafe_code)]

mod kept_blocks;
pub mod large_pages;
pub mod simd;

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::sync::Mutex;

use self::kept_blocks::KeptBlocks;
use crate::backend::{Backend, Hardware};
use crate::capabilities::Kernels;
use crate::error::Result;
use crate::launch::run_on_cpu;
use crate::{Launch, Team};

const ALIGN: usize = 64;

/// Blocks of at least this many bytes get their own memory mapping on huge pages.
const HUGE_PAGE: usize = 2 << 20;

/// A multiple of every base page size that Linux has on x86-64 and arm64, in bytes.
#[cfg(target_os = "linux")]
const PAGE: usize = 64 << 10;

pub(crate) struct Cpu {
    team: Team,
    blocks: Mutex<KeptBlocks>,
}

impl Cpu {
    pub(crate) fn new(threads: usize) -> Cpu {
        let all = std::thread::available_parallelism().map_or(1, |n| n.get());
        Cpu { team: Team::new(if threads == 0 { all } else { threads }), blocks: Mutex::default() }
    }

    fn blocks(&self) -> std::sync::MutexGuard<'_, KeptBlocks> {
        self.blocks.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn free_to_system(&self, addr: u64, size: usize) {
        #[cfg(target_os = "linux")]
        if size >= HUGE_PAGE {
            return unmap(addr, size);
        }
        if let Some(layout) = layout(size) {
            // SAFETY: `addr` was allocated in `allocate` with this layout, and no buffer uses it any more.
            unsafe { dealloc(addr as *mut u8, layout) }
        }
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

    fn kernels(&self) -> Kernels {
        Kernels::Cpu
    }

    fn alloc(&self, bytes: usize) -> Option<u64> {
        let size = rounded(bytes)?;
        if let Some(addr) = self.blocks().take(size) {
            return Some(addr);
        }
        let addr = allocate(size).or_else(|| {
            self.return_kept_memory();
            allocate(size)
        })?;
        let returned = self.blocks().add_new(size);
        returned.into_iter().for_each(|(addr, size)| self.free_to_system(addr, size));
        Some(addr)
    }

    fn free(&self, addr: u64, bytes: usize) {
        let Some(size) = rounded(bytes) else { return };
        let returned = self.blocks().give_back(addr, size);
        if let Some((addr, size)) = returned {
            self.free_to_system(addr, size);
        }
    }

    fn return_kept_memory(&self) {
        let kept = self.blocks().drain();
        kept.for_each(|(addr, size)| self.free_to_system(addr, size));
    }

    #[cfg(target_os = "linux")]
    fn populate(&self, addr: u64, bytes: usize) {
        let (start, end) = ((addr as usize).next_multiple_of(PAGE), (addr as usize + bytes) / PAGE * PAGE);
        // Other threads cannot change memory mappings during a call of `madvise`, so each call is for one huge page.
        for part in (start..end).step_by(HUGE_PAGE) {
            let size = HUGE_PAGE.min(end - part);
            // SAFETY: the pages lie in a live block; this advice changes no contents, even if other threads write them.
            // Linux before 5.14 refuses it, and then pages come at their first access.
            unsafe { libc::madvise(part as *mut libc::c_void, size, libc::MADV_POPULATE_WRITE) };
        }
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        // SAFETY: addresses in a launch come from live tensors of this device, whose shapes the op that made it
        // checked; buffers that are written are not mapped files.
        unsafe { run_on_cpu(launch, &self.team) };
        Ok(())
    }

    /// The processor's name from /proc/cpuinfo.
    fn hardware(&self) -> Hardware {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let line = info.lines().find(|l| l.starts_with("model name"));
        let name = line.and_then(|l| l.split_once(':')).map_or("cpu", |(_, name)| name.trim());
        Hardware { name: name.into(), ..Hardware::default() }
    }

    fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        // SAFETY: `Buffer::upload` checked the range; the buffer is live and writable.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) }
        Ok(())
    }

    fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        // SAFETY: `Buffer::download` checked the range; memory is initialised from its allocation on.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) }
        Ok(())
    }
}

/// Allocates `size` bytes of zeroed memory, at least 64; returns `None` if the system has too little memory.
fn allocate(size: usize) -> Option<u64> {
    if size >= HUGE_PAGE {
        return map_zeros(size);
    }
    // SAFETY: the size is not 0.
    let p = unsafe { alloc_zeroed(layout(size)?) };
    (!p.is_null()).then_some(p as u64)
}

/// Maps zeroed memory, on huge pages if the system has them. With small pages, each first access to a page is a page
/// fault, which takes longer than many kernels take to fill the page.
#[cfg(target_os = "linux")]
fn map_zeros(size: usize) -> Option<u64> {
    let (read_write, anonymous) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let whole = size.checked_next_multiple_of(PAGE)?.checked_add(HUGE_PAGE)?;
    // SAFETY: the kernel chooses the address of this new anonymous mapping, so it replaces no other memory.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), whole, read_write, anonymous, -1, 0) };
    if base == libc::MAP_FAILED {
        return None;
    }
    // Unmaps the part before the first huge page and the part after the block.
    let start = (base as usize).next_multiple_of(HUGE_PAGE);
    let (before, end) = (start - base as usize, start + size.next_multiple_of(PAGE));
    // SAFETY: both unmapped ranges are whole pages of the mapping above and outside of the block; advice changes no
    // contents.
    unsafe {
        if before > 0 {
            libc::munmap(base, before);
        }
        libc::munmap(end as *mut libc::c_void, base as usize + whole - end);
        libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE);
    }
    Some(start as u64)
}

#[cfg(not(target_os = "linux"))]
fn map_zeros(size: usize) -> Option<u64> {
    // SAFETY: the size is not 0.
    let p = unsafe { alloc_zeroed(layout(size)?) };
    (!p.is_null()).then_some(p as u64)
}

/// Unmaps a block of [`map_zeros`] that nothing uses any more.
#[cfg(target_os = "linux")]
fn unmap(addr: u64, size: usize) {
    // SAFETY: `addr` was mapped in `map_zeros` with this size, and nothing uses it any more.
    unsafe { libc::munmap(addr as *mut libc::c_void, size.next_multiple_of(PAGE)) };
}

impl Drop for Cpu {
    fn drop(&mut self) {
        self.return_kept_memory();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_aligned_zeroed_and_reused() {
        for bytes in [1, 64, 1000, HUGE_PAGE - 64, HUGE_PAGE, HUGE_PAGE + 1, 5 * HUGE_PAGE + 777] {
            let cpu = Cpu::new(1);
            let addr = cpu.alloc(bytes).unwrap();
            assert_eq!(addr % ALIGN as u64, 0);
            let mut out = vec![1u8; bytes];
            cpu.download(addr, &mut out).unwrap();
            assert!(out.iter().all(|b| *b == 0), "{bytes}");
            cpu.upload(addr, &vec![7u8; bytes]).unwrap();
            cpu.free(addr, bytes);
            assert_eq!(cpu.alloc(bytes), Some(addr), "the freed block of {bytes} bytes is not used again");
            cpu.free(addr, bytes);
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn populated_memory_is_resident_and_keeps_its_contents() {
        let cpu = Cpu::new(1);
        let bytes = 3 * HUGE_PAGE;
        let addr = cpu.alloc(bytes).unwrap();
        cpu.upload(addr + 100, b"kept").unwrap();
        cpu.populate(addr, bytes);
        let mut pages = vec![0u8; bytes / 4096];
        // SAFETY: the range is mapped, and `pages` has an element for each page of 4 KiB or more.
        let result = unsafe { libc::mincore(addr as *mut libc::c_void, bytes, pages.as_mut_ptr()) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        // SAFETY: sysconf has no preconditions.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        assert!(pages[..bytes / page].iter().all(|page| page & 1 == 1), "Linux 5.14 or later provides all pages");
        let mut kept = [0; 4];
        cpu.download(addr + 100, &mut kept).unwrap();
        assert_eq!(&kept, b"kept");
        // Parts of pages are left out.
        cpu.populate(addr + 1, 10);
        cpu.free(addr, bytes);
    }

    #[test]
    fn small_blocks_serve_allocations_of_half_their_size_and_large_ones_of_eight_ninths() {
        for (bytes, smallest) in [(64 << 10, 32 << 10), (9 << 20, 8 << 20)] {
            let cpu = Cpu::new(1);
            let addr = cpu.alloc(bytes).unwrap();
            cpu.free(addr, bytes);
            let below = cpu.alloc(smallest - 64).unwrap();
            assert_ne!(below, addr, "{bytes}");
            assert_eq!(cpu.alloc(smallest), Some(addr), "{bytes}");
            cpu.free(addr, smallest);
            assert_eq!(cpu.alloc(bytes), Some(addr), "a block that served a smaller allocation keeps its size");
        }
    }

    #[test]
    fn refuses_impossible_sizes() {
        let cpu = Cpu::new(1);
        assert_eq!(cpu.alloc(usize::MAX), None);
        assert_eq!(cpu.alloc(1 << 55), None);
    }
}
