//! Emulates AMX for tests on a processor without it: a handler of SIGILL that executes the instruction in software.
//! With the feature `emulate-amx` a whole program runs on the emulator.
//!
//! ```text
//! code of reel executes, say, `tdpbf16ps tmm0, tmm4, tmm6`     # the bytes that ship
//! processor without AMX: invalid opcode -> SIGILL -> handler:
//!     decode the bytes at rip (VEX prefix, opcode, ModRM, SIB, displacement)
//!     execute on eight tiles of this thread, with the registers of the signal's context
//!     rip = the next instruction; return
//! ```
//!
//! The emulator executes `ldtilecfg`, `sttilecfg`, `tilerelease`, `tilezero`, `tileloadd`, `tileloaddt1`, `tilestored`
//! and `tdpbf16ps` in 64-bit mode with 64-bit addresses. It checks what the processor checks: that tiles are configured
//! and that their sizes fit each other. Any other instruction, and one that fails these checks, gets the usual end of a
//! process that executes an invalid opcode. Limits: an address that cannot be accessed ends the process inside the
//! handler, so `start_row` is always 0; time says nothing about the hardware.
//!
//! Intel's manual defines `tdpbf16ps` with two sums, over the even and over the odd elements of k
//! ([`super::amx`] quotes it). Intel's guide to intrinsics writes one sum that takes even and odd in turns. The
//! emulator follows the manual; a test compares it with the instruction on a processor that has it.

#[cfg(test)]
mod tests;

use std::arch::asm;
use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

/// Rows of a tile.
const ROWS: usize = 16;
/// Bytes of a row of a tile.
const ROW_BYTES: usize = 64;

/// A row of a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
struct Row([u8; ROW_BYTES]);

const ZERO: Row = Row([0; ROW_BYTES]);

/// The configured size of a tile; 0 rows if the tile is not configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size {
    rows: usize,
    row_bytes: usize,
}

/// The tile registers of a thread.
#[derive(Clone, Debug, PartialEq, Eq)]
struct TileState {
    /// The operand of the last `ldtilecfg`; zeros if tiles are not configured.
    config: Row,
    tiles: [[Row; ROWS]; 8],
}

thread_local! {
    static STATE: RefCell<TileState> = const { RefCell::new(TileState::RELEASED) };
}

/// A decoded instruction, with its address if it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instruction {
    LoadConfig(usize),
    StoreConfig(usize),
    Release,
    Zero(usize),
    /// Number of the tile, address of the first row, bytes from one row to the next.
    Load(usize, usize, usize),
    /// As `Load`.
    Store(usize, usize, usize),
    /// Numbers of the tiles of sums, of the left operand's rows, and of the right operand's pairs.
    MultiplyBf16(usize, usize, usize),
}

/// Why an instruction is not executed: the processor would raise an exception.
type Fault = &'static str;

impl TileState {
    const RELEASED: TileState = TileState { config: ZERO, tiles: [[ZERO; ROWS]; 8] };

    fn size(&self, tile: usize) -> Result<Size, Fault> {
        let low = self.config.0[16 + 2 * tile];
        let size = Size { rows: self.config.0[48 + tile].into(), row_bytes: low.into() };
        if self.config.0[0] != 1 || size.rows == 0 || size.row_bytes == 0 {
            return Err("the tile is not configured");
        }
        if size.row_bytes.is_multiple_of(4) { Ok(size) } else { Err("a row is not a whole number of words") }
    }

    /// Checks the operand of `ldtilecfg` and configures the tiles by it.
    fn configure(&mut self, config: Row) -> Result<(), Fault> {
        let bytes = &config.0;
        if bytes[0] == 0 {
            *self = Self::RELEASED;
            return Ok(());
        }
        let reserved = bytes[2..16].iter().chain(&bytes[32..48]).chain(&bytes[56..]);
        if bytes[0] != 1 || bytes[1] != 0 || reserved.into_iter().any(|&x| x != 0) {
            return Err("ldtilecfg: unknown palette, start row, or reserved bytes that are not 0");
        }
        for tile in 0..8 {
            let row_bytes = u16::from_le_bytes([bytes[16 + 2 * tile], bytes[17 + 2 * tile]]) as usize;
            let rows = bytes[48 + tile] as usize;
            if row_bytes > ROW_BYTES || rows > ROWS || (rows == 0) != (row_bytes == 0) {
                return Err("ldtilecfg: a tile is too large, or has rows without bytes or bytes without rows");
            }
        }
        *self = Self { config, ..Self::RELEASED };
        Ok(())
    }

    /// # Safety
    /// The addresses of the instruction are readable, or writable for a store.
    unsafe fn execute(&mut self, instruction: Instruction) -> Result<(), Fault> {
        match instruction {
            // SAFETY: 64 bytes are readable at the address.
            Instruction::LoadConfig(at) => self.configure(Row(unsafe { (at as *const [u8; 64]).read() })),
            Instruction::StoreConfig(at) => {
                // SAFETY: 64 bytes are writable at the address.
                unsafe { (at as *mut [u8; 64]).write(self.config.0) };
                Ok(())
            }
            Instruction::Release => {
                *self = Self::RELEASED;
                Ok(())
            }
            Instruction::Zero(tile) => {
                self.size(tile)?;
                self.tiles[tile] = [ZERO; ROWS];
                Ok(())
            }
            Instruction::Load(tile, at, stride) => {
                let size = self.size(tile)?;
                self.tiles[tile] = [ZERO; ROWS];
                for (i, row) in self.tiles[tile].iter_mut().enumerate().take(size.rows) {
                    let from = at.wrapping_add(i.wrapping_mul(stride)) as *const u8;
                    // SAFETY: each configured row has `row_bytes` readable bytes; the tile is no memory of the program.
                    unsafe { std::ptr::copy_nonoverlapping(from, row.0.as_mut_ptr(), size.row_bytes) };
                }
                Ok(())
            }
            Instruction::Store(tile, at, stride) => {
                let size = self.size(tile)?;
                for (i, row) in self.tiles[tile].iter().enumerate().take(size.rows) {
                    let to = at.wrapping_add(i.wrapping_mul(stride)) as *mut u8;
                    // SAFETY: each configured row has `row_bytes` writable bytes; the tile is no memory of the program.
                    unsafe { std::ptr::copy_nonoverlapping(row.0.as_ptr(), to, size.row_bytes) };
                }
                Ok(())
            }
            Instruction::MultiplyBf16(sums, rows, pairs) => self.multiply_bf16(sums, rows, pairs),
        }
    }

    fn multiply_bf16(&mut self, sums: usize, rows: usize, pairs: usize) -> Result<(), Fault> {
        if sums == rows || sums == pairs || rows == pairs {
            return Err("tdpbf16ps: two operands are the same tile");
        }
        let (c, a, b) = (self.size(sums)?, self.size(rows)?, self.size(pairs)?);
        if c.rows != a.rows || c.row_bytes != b.row_bytes || a.row_bytes / 4 != b.rows {
            return Err("tdpbf16ps: the sizes of the tiles do not fit each other");
        }
        let (a_tile, b_tile) = (self.tiles[rows], self.tiles[pairs]);
        for (row, a) in self.tiles[sums].iter_mut().zip(&a_tile).take(c.rows) {
            // SAFETY: the emulator is used only where the processor has AVX-512 F.
            unsafe { multiply_row(row, a, &b_tile, b.rows) };
            row.0[c.row_bytes..].fill(0);
        }
        self.tiles[sums][c.rows..].fill(ZERO);
        Ok(())
    }
}

/// Computes one row of `tdpbf16ps`: 16 sums over `count` pairs, as [`super::amx`] defines them. Uses AVX-512
/// instructions, with an MXCSR that rounds to nearest and treats denormals as zero.
///
/// # Safety
/// The processor has AVX-512 F; `count` is 1 to 16.
unsafe fn multiply_row(sums: &mut Row, a: &Row, b: &[Row; ROWS], count: usize) {
    // Round to nearest even, all exceptions masked, FTZ (bit 15), DAZ (bit 6).
    let mxcsr = [0x9fc0_u32, 0];
    // SAFETY: the loop reads `count` words of `a` and rows of `b`, which exist, and writes the 64 bytes of `sums`. It
    // stores the old MXCSR in the second word and puts it back.
    unsafe {
        asm!(
            "stmxcsr [{mxcsr} + 4]",
            "ldmxcsr [{mxcsr}]",
            "mov {word:e}, 0xffff0000",
            "vpbroadcastd zmm7, {word:e}",
            "vpxord zmm0, zmm0, zmm0",
            "vpxord zmm1, zmm1, zmm1",
            "2:",
            "vmovdqu32 zmm2, [{b}]",
            "vpslld zmm3, zmm2, 16",
            "vpandd zmm4, zmm2, zmm7",
            "vpbroadcastd zmm5, dword ptr [{a}]",
            "vpslld zmm6, zmm5, 16",
            "vpandd zmm5, zmm5, zmm7",
            "vfmadd231ps zmm0, zmm6, zmm3",
            "vfmadd231ps zmm1, zmm5, zmm4",
            "add {a}, 4",
            "add {b}, 64",
            "dec {count}",
            "jnz 2b",
            "vaddps zmm0, zmm0, zmm1",
            "vmovups zmm1, [{sums}]",
            "vaddps zmm0, zmm1, zmm0",
            "vmovups [{sums}], zmm0",
            "ldmxcsr [{mxcsr} + 4]",
            mxcsr = in(reg) &raw const mxcsr,
            word = out(reg) _,
            a = inout(reg) a.0.as_ptr() => _,
            b = inout(reg) b.as_ptr() => _,
            sums = in(reg) sums.0.as_mut_ptr(),
            count = inout(reg) count => _,
            out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _,
            out("zmm4") _, out("zmm5") _, out("zmm6") _, out("zmm7") _,
            options(nostack),
        );
    }
}

/// The general registers of the interrupted code, in the order of their numbers in instructions.
type Registers = [usize; 16];

/// Decodes the instruction of AMX at `code`, the bytes from address `rip` on, and returns it with its length. `None` if
/// the bytes are another instruction or an incomplete one.
fn decode(code: &[u8], rip: usize, registers: &Registers) -> Option<(Instruction, usize)> {
    let &[0xc4, p1, p2, opcode, modrm, ..] = code else { return None };
    // The second byte of the VEX prefix has the inverted upper bits of the three register numbers and the opcode map,
    // which is 0F 38. The third byte has W (0), the inverted number of the third register, L (0) and the code of a
    // legacy prefix.
    let (high_reg, high_index, high_base) = (p1 & 0x80 == 0, p1 & 0x40 == 0, p1 & 0x20 == 0);
    if p1 & 0x1f != 2 || p2 & 0x84 != 0 {
        return None;
    }
    let third = usize::from(!p2 >> 3 & 15);
    let prefix = p2 & 3;
    let (mode, reg, rm) = (modrm >> 6, usize::from(modrm >> 3 & 7), usize::from(modrm & 7));
    if mode == 3 {
        let registers_fit = !high_reg && !high_base && third < 8;
        let instruction = match (opcode, prefix) {
            (0x49, 0) if modrm == 0xc0 && third == 0 => Instruction::Release,
            (0x49, 3) if rm == 0 && third == 0 => Instruction::Zero(reg),
            (0x5c, 2) => Instruction::MultiplyBf16(reg, rm, third),
            _ => return None,
        };
        return registers_fit.then_some((instruction, 5));
    }
    let mut length = 5;
    let mut take = |count: usize| {
        let bytes = code.get(length..length + count)?;
        length += count;
        Some(bytes)
    };
    let number = |low: usize, high: bool| low + if high { 8 } else { 0 };
    let mut index = None;
    let base = if rm == 4 {
        let sib = take(1)?[0];
        let number_of_index = number(usize::from(sib >> 3 & 7), high_index);
        index = (number_of_index != 4).then(|| registers[number_of_index] << (sib >> 6));
        let low = usize::from(sib & 7);
        (mode != 0 || low != 5).then(|| registers[number(low, high_base)])
    } else {
        (mode != 0 || rm != 5).then(|| registers[number(rm, high_base)])
    };
    let displacement = match (mode, base) {
        (0, Some(_)) => 0,
        (1, _) => i32::from(take(1)?[0] as i8),
        _ => i32::from_le_bytes(take(4)?.try_into().ok()?),
    };
    // Without a base and without a SIB byte, an address is relative to the next instruction.
    let base = base.unwrap_or(if rm == 4 { 0 } else { rip.wrapping_add(length) });
    let at = base.wrapping_add(displacement as isize as usize);
    let with_index = at.wrapping_add(index.unwrap_or(0));
    let tile_fits = !high_reg && rm == 4 && third == 0;
    let instruction = match (opcode, prefix) {
        (0x49, 0) if reg == 0 && third == 0 => Instruction::LoadConfig(with_index),
        (0x49, 1) if reg == 0 && third == 0 => Instruction::StoreConfig(with_index),
        // `tileloadd` and `tileloaddt1`: the index register, times its scale, is the distance of rows.
        (0x4b, 3 | 1) if tile_fits => Instruction::Load(reg, at, index.unwrap_or(0)),
        (0x4b, 2) if tile_fits => Instruction::Store(reg, at, index.unwrap_or(0)),
        _ => return None,
    };
    Some((instruction, length))
}

/// Makes instructions of AMX work in this process: by the processor, or else by the emulator. Returns false if neither
/// is possible, because the processor lacks AVX-512 BF16.
pub fn install() -> bool {
    static INSTALLED: OnceLock<bool> = OnceLock::new();
    *INSTALLED.get_or_init(|| {
        if super::amx::support().is_ok() {
            return true;
        }
        if !is_x86_feature_detected!("avx512bf16") {
            return false;
        }
        // SAFETY: an all-zero `sigaction` is valid; the handler has the signature that SA_SIGINFO asks for.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()) == 0
        }
    })
}

/// Indices of the general registers in the signal's context, in the order of the registers' numbers in instructions.
const SAVED: [c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// The handler of SIGILL. It calls nothing that a handler must not call: it neither allocates nor locks.
extern "C" fn handle(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the system passes the context of the interrupted code, which nothing else accesses.
    let saved = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let registers = SAVED.map(|number| saved[number as usize] as usize);
    let rip = saved[libc::REG_RIP as usize] as usize;
    // SAFETY: the bytes of the instruction are readable. The longest form that `decode` knows has 10 bytes; fewer may
    // be readable at the end of a page of code, but the code of a program does not end with an instruction of AMX.
    let code = unsafe { std::slice::from_raw_parts(rip as *const u8, 10) };
    let done = decode(code, rip, &registers).ok_or("unknown").and_then(|(instruction, length)| {
        // SAFETY: the addresses are those that the interrupted code accesses; if it must not, the process ends.
        STATE.with_borrow_mut(|state| unsafe { state.execute(instruction) }).map(|()| length)
    });
    match done {
        Ok(length) => saved[libc::REG_RIP as usize] = (rip + length) as i64,
        // After the handler the processor executes the instruction again; SIGILL then has its default effect.
        // SAFETY: `signal` may be called in a handler.
        Err(_) => unsafe {
            libc::signal(libc::SIGILL, libc::SIG_DFL);
        },
    }
}
