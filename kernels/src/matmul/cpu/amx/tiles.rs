//! The inner loops over k of a block of 32 × 32 sums: one assembler block each, so that no other code runs while the
//! tiles hold sums.
#![allow(unsafe_code)]

use std::arch::asm;
use std::mem::offset_of;
use std::ptr::null;

/// What a call prefetches: at each step, `lines` cache lines that are `stride` bytes apart. They begin at `at` in the
/// first step, and `advance` bytes further in every next one; when `change` steps are left, they begin at `next`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Prefetch {
    pub(super) at: *const u8,
    pub(super) stride: usize,
    pub(super) lines: usize,
    pub(super) advance: usize,
    pub(super) change: usize,
    pub(super) next: *const u8,
}

impl Prefetch {
    pub(super) const NONE: Prefetch = Prefetch { at: null(), stride: 0, lines: 0, advance: 0, change: 0, next: null() };
}

/// The operands of a block of 32 × 32 sums.
#[repr(C)]
pub(super) struct TileCall {
    /// The first of the two tiles of rows, 16 rows that are `row_stride` bytes apart, and the second.
    pub(super) rows: [*const u8; 2],
    pub(super) row_stride: usize,
    /// The two tiles of pairs, whose rows are 64 bytes apart. A step later, they are 1024 bytes further.
    pub(super) pairs: [*const u8; 2],
    pub(super) steps: usize,
    /// The two tiles of rows of one more step, whose rows are 64 bytes apart, one after the other; null if there is
    /// none.
    pub(super) tail: *const u8,
    /// Tiles of rows 0 and pairs 0, rows 0 and pairs 1, rows 1 and pairs 0, rows 1 and pairs 1.
    pub(super) sums: *mut f32,
    /// 1: the sums continue those in memory; 0: they start at 0.
    pub(super) add: usize,
    pub(super) prefetch: Prefetch,
}

/// One step along k of four tiles of sums.
macro_rules! four_tiles {
    () => {
        "
        tileloadd tmm4, [{r0} + {stride}*1]
        tileloadd tmm6, [{p0} + {line}*1]
        tdpbf16ps tmm0, tmm4, tmm6
        tileloadd tmm7, [{p1} + {line}*1]
        tdpbf16ps tmm1, tmm4, tmm7
        tileloadd tmm5, [{r1} + {stride}*1]
        tdpbf16ps tmm2, tmm5, tmm6
        tdpbf16ps tmm3, tmm5, tmm7
        "
    };
}

/// One step along k of tiles 0 and 2 of the sums, those of pairs 0.
macro_rules! two_tiles {
    () => {
        "
        tileloadd tmm4, [{r0} + {stride}*1]
        tileloadd tmm5, [{r1} + {stride}*1]
        tileloadd tmm6, [{p0} + {line}*1]
        tdpbf16ps tmm0, tmm4, tmm6
        tdpbf16ps tmm2, tmm5, tmm6
        "
    };
}

/// Defines a function that computes a block of sums. `$row_step` is the distance of the tiles of rows of neighbouring
/// steps in bytes; `$prefetch` the instruction that prefetches.
macro_rules! tile_function {
    ($name:ident, $step:ident, $row_step:literal, $prefetch:literal) => {
        /// # Safety
        /// The tiles of this thread are configured; the tiles of all steps are readable; `sums` has room for four
        /// tiles.
        pub(super) unsafe fn $name(call: &TileCall) {
            // SAFETY: the instructions access the tiles of the call and change no register that is not named. A
            // prefetch may name any address.
            unsafe {
                asm!(
                    "mov {line}, 64",
                    "mov {r0}, qword ptr [{call} + {rows}]",
                    "mov {r1}, qword ptr [{call} + {rows} + 8]",
                    "mov {stride}, qword ptr [{call} + {row_stride}]",
                    "mov {p0}, qword ptr [{call} + {pairs}]",
                    "mov {p1}, qword ptr [{call} + {pairs} + 8]",
                    "mov {left}, qword ptr [{call} + {steps}]",
                    "mov {ahead}, qword ptr [{call} + {ahead_at}]",
                    "cmp qword ptr [{call} + {add}], 0",
                    "jne 2f",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "jmp 3f",
                    "2:",
                    "mov {x}, qword ptr [{call} + {sums}]",
                    "tileloadd tmm0, [{x} + {line}*1]",
                    "tileloadd tmm1, [{x} + {line}*1 + 1024]",
                    "tileloadd tmm2, [{x} + {line}*1 + 2048]",
                    "tileloadd tmm3, [{x} + {line}*1 + 3072]",
                    "3:",
                    "test {left}, {left}",
                    "jz 8f",
                    "4:",
                    $step!(),
                    concat!("add {r0}, ", $row_step),
                    concat!("add {r1}, ", $row_step),
                    "add {p0}, 1024",
                    "add {p1}, 1024",
                    "mov {lines}, qword ptr [{call} + {ahead_lines}]",
                    "test {lines}, {lines}",
                    "jz 7f",
                    "cmp {left}, qword ptr [{call} + {ahead_change}]",
                    "jne 5f",
                    "mov {ahead}, qword ptr [{call} + {ahead_next}]",
                    "5:",
                    "mov {x}, {ahead}",
                    "6:",
                    concat!($prefetch, " byte ptr [{x}]"),
                    "add {x}, qword ptr [{call} + {ahead_stride}]",
                    "dec {lines}",
                    "jnz 6b",
                    "add {ahead}, qword ptr [{call} + {ahead_advance}]",
                    "7:",
                    "dec {left}",
                    "jnz 4b",
                    "8:",
                    "mov {r0}, qword ptr [{call} + {tail}]",
                    "test {r0}, {r0}",
                    "jz 9f",
                    "lea {r1}, [{r0} + 1024]",
                    "mov {stride}, {line}",
                    $step!(),
                    "9:",
                    "mov {x}, qword ptr [{call} + {sums}]",
                    "tilestored [{x} + {line}*1], tmm0",
                    "tilestored [{x} + {line}*1 + 1024], tmm1",
                    "tilestored [{x} + {line}*1 + 2048], tmm2",
                    "tilestored [{x} + {line}*1 + 3072], tmm3",
                    call = in(reg) std::ptr::from_ref(call),
                    rows = const offset_of!(TileCall, rows),
                    row_stride = const offset_of!(TileCall, row_stride),
                    pairs = const offset_of!(TileCall, pairs),
                    steps = const offset_of!(TileCall, steps),
                    tail = const offset_of!(TileCall, tail),
                    sums = const offset_of!(TileCall, sums),
                    add = const offset_of!(TileCall, add),
                    ahead_at = const offset_of!(TileCall, prefetch.at),
                    ahead_stride = const offset_of!(TileCall, prefetch.stride),
                    ahead_lines = const offset_of!(TileCall, prefetch.lines),
                    ahead_advance = const offset_of!(TileCall, prefetch.advance),
                    ahead_change = const offset_of!(TileCall, prefetch.change),
                    ahead_next = const offset_of!(TileCall, prefetch.next),
                    line = out(reg) _,
                    r0 = out(reg) _,
                    r1 = out(reg) _,
                    stride = out(reg) _,
                    p0 = out(reg) _,
                    p1 = out(reg) _,
                    left = out(reg) _,
                    ahead = out(reg) _,
                    lines = out(reg) _,
                    x = out(reg) _,
                    out("tmm0") _,
                    out("tmm1") _,
                    out("tmm2") _,
                    out("tmm3") _,
                    out("tmm4") _,
                    out("tmm5") _,
                    out("tmm6") _,
                    out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

// B's rows in place, with many rows of A: the next panel goes to the second-level cache.
tile_function!(multiply_in_place, four_tiles, "64", "prefetcht1");
// Packed tiles of rows.
tile_function!(multiply_packed, four_tiles, "1024", "prefetcht1");
// B's rows in place, with 17 to 32 rows of A, or up to 16: what follows goes to the first-level cache.
tile_function!(thin_two, four_tiles, "64", "prefetcht0");
tile_function!(thin_one, two_tiles, "64", "prefetcht0");
