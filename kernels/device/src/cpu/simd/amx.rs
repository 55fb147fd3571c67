//! The tile unit of Intel's AMX: permission to use it, and the tiles of a thread.
//!
//! A tile is a register of up to 16 rows of 64 bytes; there are eight. `tdpbf16ps` multiplies a tile of 16 rows of 32
//! bf16 with a tile of 16 rows of 16 pairs of bf16 and adds the products to a tile of 16 × 16 f32. For each sum it
//! computes, by the manual's definition (denormals count as zero, every step rounds to nearest even, MXCSR is ignored):
//!
//! ```text
//! even = odd = 0
//! for pair in 0 .. 16:  even = fma(a[pair].0, b[pair].0, even);  odd = fma(a[pair].1, b[pair].1, odd)
//! sum = sum + (even + odd)
//! ```
//!
//! Linux gives tiles to a process that has asked for them (`arch_prctl`, 5.16 or later). Tiles must be configured in
//! each thread; [`Tiles`] releases them when it is dropped.
#![allow(unsafe_code)]

use std::arch::asm;
use std::arch::x86_64::CpuidResult;
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Executes CPUID.
pub(super) fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    // SAFETY: every x86-64 processor has CPUID. The function is safe in newer versions of the standard library.
    #[allow(unused_unsafe)]
    unsafe {
        std::arch::x86_64::__cpuid_count(leaf, subleaf)
    }
}

/// Returns `Ok` if this process may use AMX with bf16, else the reason why not. The first call asks the system for
/// permission, which then holds for the whole process.
pub(super) fn support() -> Result<(), &'static str> {
    static SUPPORT: OnceLock<Result<(), &'static str>> = OnceLock::new();
    *SUPPORT.get_or_init(|| {
        const AMX_BF16_AND_TILE: u32 = 1 << 22 | 1 << 24;
        if cpuid(0, 0).eax < 7 || cpuid(7, 0).edx & AMX_BF16_AND_TILE != AMX_BF16_AND_TILE {
            return Err("the processor lacks it");
        }
        const OSXSAVE: u32 = 1 << 27;
        const TILE_STATE: u32 = 1 << 17 | 1 << 18;
        if cpuid(1, 0).ecx & OSXSAVE == 0 || xcr0() & TILE_STATE != TILE_STATE {
            return Err("the operating system does not save the AMX registers");
        }
        if !permitted() {
            return Err("the operating system does not permit AMX; Linux 5.16 or later does");
        }
        Ok(())
    })
}

/// Returns the lower half of XCR0, the register that says which registers the system saves. The processor must have
/// OSXSAVE.
fn xcr0() -> u32 {
    let low: u32;
    // SAFETY: the caller has found OSXSAVE, which makes `xgetbv` available to programs.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _, options(nomem, nostack, preserves_flags)) };
    low
}

/// Asks the system for permission to use tiles.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and accesses no memory of the process.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// The shapes of the eight tiles: the operand of `ldtilecfg`.
#[repr(C, align(64))]
pub struct TileShape {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

impl TileShape {
    /// Eight tiles of 16 rows of 64 bytes.
    const FULL: TileShape = TileShape {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        bytes_per_row: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
        rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
    };

    /// The tile shapes for products of `rows` rows, 1 to 32. Tile 4 holds the first 16 rows and tile 5 the others;
    /// tiles 0 and 1 hold the sums of tile 4, tiles 2 and 3 those of tile 5. A tile without rows is given one row.
    pub fn with_rows(rows: usize) -> TileShape {
        let mut shape = Self::FULL;
        let (first, second) = (rows.clamp(1, 16) as u8, rows.clamp(17, 32) as u8 - 16);
        shape.rows[..6].copy_from_slice(&[first, first, second, second, first, second]);
        shape
    }
}

static FULL_TILES: TileShape = TileShape::FULL;

/// The eight tiles of this thread, configured while this value lives. Dropping the value releases the tiles, so that
/// the system need not save them and later code of the thread does not find them in use.
pub struct Tiles(PhantomData<*const ()>);

impl Tiles {
    /// Configures the tiles of this thread to their full size.
    ///
    /// # Safety
    /// The process may use AMX ([`super::Isa::Amx`] is an instruction set of this machine), or the emulator of the
    /// tests is installed. The thread has no other `Tiles`.
    pub unsafe fn configure() -> Tiles {
        // SAFETY: the conditions of this function.
        unsafe { Self::configure_as(&FULL_TILES) }
    }

    /// Configures the tiles of this thread to the shapes in `shape`.
    ///
    /// # Safety
    /// The conditions of [`Tiles::configure`] hold.
    pub unsafe fn configure_as(shape: &TileShape) -> Tiles {
        // SAFETY: the process may use AMX; the operand is a valid configuration of 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const *shape, options(nostack, preserves_flags)) };
        Tiles(PhantomData)
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: `configure` has executed an instruction of AMX in this thread.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags)) };
    }
}
