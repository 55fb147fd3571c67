//! The inner loops over k of a block of 32 × 32 sums: one assembler block each, so that no other code runs while the
//! tiles hold sums.
//!
//! Macros put each function together from three parts: the products of a step along k, the layout of the tiles of
//! pairs, and the prefetches.
#![allow(unsafe_code)]

use std::arch::asm;
use std::mem::offset_of;
use std::ptr::null;

/// The prefetches of a call: at each step along k, `lines` cache lines that are `stride` bytes apart. The first of
/// these lines is at `at` in the first step, and `advance` bytes further in every next step; when `change` steps are
/// left, it is at `next`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct PrefetchPlan {
    pub(super) at: *const u8,
    pub(super) stride: usize,
    pub(super) lines: usize,
    pub(super) advance: usize,
    pub(super) change: usize,
    pub(super) next: *const u8,
}

impl PrefetchPlan {
    pub(super) const NONE: PrefetchPlan =
        PrefetchPlan { at: null(), stride: 0, lines: 0, advance: 0, change: 0, next: null() };
}

/// The operands of a block of 32 × 32 sums.
#[repr(C)]
pub(super) struct TileProductArgs {
    /// Addresses of the two tiles of rows: 16 rows each, `row_stride` bytes apart. The tiles of the next step along k
    /// are `row_step` bytes further. If f32 rows are split into bf16 parts, the high, middle and low parts of a step
    /// follow one another.
    pub(super) rows: [*const u8; 2],
    pub(super) row_stride: usize,
    pub(super) row_step: usize,
    /// Addresses of the two tiles of pairs (VNNI layout: a 32-bit word holds two bf16 that are neighbours along k).
    /// In packed pairs, the rows of a tile are 64 bytes apart, and the next step's tile is 1024 bytes further (3072
    /// with three bf16 parts). In groups of B, the distances are 128 and 2048 bytes.
    pub(super) pairs: [*const u8; 2],
    pub(super) steps: usize,
    /// The tiles of an incomplete last step along k, completed with zeros. Rows of these tiles are 64 bytes apart, or
    /// 128 for pairs in groups. Null if k is a multiple of a step.
    pub(super) tail_rows: [*const u8; 2],
    pub(super) tail_pairs: [*const u8; 2],
    /// Four tiles of 16 x 16 sums, one after the other: the products of row tile 0 with pair tiles 0 and 1, then of row
    /// tile 1 with pair tiles 0 and 1.
    pub(super) sums: *mut f32,
    /// 1: the products are added to the sums in memory; 0: the sums start at 0.
    pub(super) add: usize,
    pub(super) prefetch: PrefetchPlan,
}

/// Instructions of one step along k for all four tiles of sums.
macro_rules! four_tiles {
    () => {
        concat!(
            tiles_of_first_rows!(),
            "
            tileloadd tmm5, [{r1} + {stride}*1]
            tdpbf16ps tmm2, tmm5, tmm6
            tdpbf16ps tmm3, tmm5, tmm7
            "
        )
    };
}

/// Instructions of one step along k for sum tiles 0 and 2: the products of both row tiles with pair tile 0 (VNNI
/// layout).
macro_rules! tiles_of_first_pairs {
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

/// Instructions of one step along k for sum tiles 0 and 1: the products of row tile 0 with both pair tiles (VNNI
/// layout).
macro_rules! tiles_of_first_rows {
    () => {
        "
        tileloadd tmm4, [{r0} + {stride}*1]
        tileloadd tmm6, [{p0} + {line}*1]
        tdpbf16ps tmm0, tmm4, tmm6
        tileloadd tmm7, [{p1} + {line}*1]
        tdpbf16ps tmm1, tmm4, tmm7
        "
    };
}

/// Loads one bf16 part of both tiles of rows. The parts are at bytes 0 (high), 1024 (middle) and 2048 (low).
macro_rules! load_rows {
    ($part:literal) => {
        concat!(
            "\ntileloadd tmm4, [{r0} + {stride}*1 + ",
            $part,
            "]",
            "\ntileloadd tmm5, [{r1} + {stride}*1 + ",
            $part,
            "]\n",
        )
    };
}

/// Loads one bf16 part (high, middle or low) of both tiles of pairs (VNNI layout).
macro_rules! load_pairs {
    ($part:literal) => {
        concat!(
            "\ntileloadd tmm6, [{p0} + {line}*1 + ",
            $part,
            "]",
            "\ntileloadd tmm7, [{p1} + {line}*1 + ",
            $part,
            "]\n",
        )
    };
}

/// Adds the products of the loaded tiles to four tiles of sums.
macro_rules! products {
    () => {
        "
        tdpbf16ps tmm0, tmm4, tmm6
        tdpbf16ps tmm1, tmm4, tmm7
        tdpbf16ps tmm2, tmm5, tmm6
        tdpbf16ps tmm3, tmm5, tmm7
        "
    };
}

/// The six products of two operands that are split into three bf16 parts each, in the order that [`super`] gives.
/// `$load_a` and `$load_b` load one part of A and of B. Each product after the first one loads a new part of one
/// operand only.
macro_rules! six_products {
    ($load_a:ident, $load_b:ident) => {
        concat!(
            $load_a!(0),
            $load_b!(2048),
            products!(),
            $load_b!(1024),
            products!(),
            $load_a!(1024),
            products!(),
            $load_b!(0),
            products!(),
            $load_a!(0),
            products!(),
            $load_a!(2048),
            products!(),
        )
    };
}

/// The three products of a bf16 operand with an f32 operand that is split into three bf16 parts. `$load_whole` loads
/// the bf16 operand, `$load_parts` loads one part of the f32 operand.
macro_rules! three_products {
    ($load_whole:ident, $load_parts:ident) => {
        concat!(
            $load_whole!(0),
            $load_parts!(2048),
            products!(),
            $load_parts!(1024),
            products!(),
            $load_parts!(0),
            products!(),
        )
    };
}

/// One step along k for four tiles of sums. Both operands are f32, split into three bf16 parts. A's tiles are stored
/// as rows and B's as pairs (VNNI layout).
macro_rules! six_products_a_is_rows {
    () => {
        six_products!(load_rows, load_pairs)
    };
}

/// One step along k for four tiles of sums. Both operands are f32, split into three bf16 parts. A's tiles are stored
/// as pairs (VNNI layout) and B's as rows.
macro_rules! six_products_a_is_pairs {
    () => {
        six_products!(load_pairs, load_rows)
    };
}

/// One step along k for four tiles of sums. The tiles of rows are f32 in three bf16 parts, the tiles of pairs (VNNI
/// layout) are bf16.
macro_rules! three_parts_of_rows {
    () => {
        three_products!(load_pairs, load_rows)
    };
}

/// One step along k for sum tiles 0 and 1 (row tile 0). The row tile is f32 in three bf16 parts, the tiles of pairs
/// (VNNI layout) are bf16.
macro_rules! three_parts_of_first_rows {
    () => {
        concat!(load_pairs!(0), parts_of_first_rows!(2048), parts_of_first_rows!(1024), parts_of_first_rows!(0),)
    };
}

/// One step along k for sum tiles 0 and 2 (pair tile 0). The tiles of rows are bf16, the tile of pairs (VNNI layout)
/// is f32 in three bf16 parts.
macro_rules! three_parts_of_first_pairs {
    () => {
        concat!(load_rows!(0), parts_of_first_pairs!(2048), parts_of_first_pairs!(1024), parts_of_first_pairs!(0),)
    };
}

/// Loads one bf16 part of pair tile 0 (VNNI layout), and adds its products with the loaded rows to sum tiles 0 and 2.
macro_rules! parts_of_first_pairs {
    ($part:literal) => {
        concat!(
            "\ntileloadd tmm6, [{p0} + {line}*1 + ",
            $part,
            "]\ntdpbf16ps tmm0, tmm4, tmm6\ntdpbf16ps tmm2, tmm5, tmm6\n",
        )
    };
}

/// Loads one bf16 part of row tile 0, and adds its products with the loaded pairs (VNNI layout) to sum tiles 0 and 1.
macro_rules! parts_of_first_rows {
    ($part:literal) => {
        concat!(
            "\ntileloadd tmm4, [{r0} + {stride}*1 + ",
            $part,
            "]\ntdpbf16ps tmm0, tmm4, tmm6\ntdpbf16ps tmm1, tmm4, tmm7\n",
        )
    };
}

/// One step along k for four tiles of sums. The tiles of rows are bf16, the tiles of pairs (VNNI layout) are f32 in
/// three bf16 parts.
macro_rules! three_parts_of_pairs {
    () => {
        three_products!(load_rows, load_pairs)
    };
}

/// Prefetches the lines that [`TileProductArgs::prefetch`] describes: for each line, the cache lines at offsets `$byte`
/// from its address.
macro_rules! prefetch_lines {
    ($instruction:literal, $($byte:literal)*) => {
        concat!(
            "
            mov {lines}, qword ptr [{call} + {ahead_lines}]
            test {lines}, {lines}
            jz 7f
            cmp {left}, qword ptr [{call} + {ahead_change}]
            jne 5f
            mov {ahead}, qword ptr [{call} + {ahead_next}]
            5:
            mov {x}, {ahead}
            6:
            ",
            $($instruction, " byte ptr [{x} + ", $byte, "]\n",)*
            "add {x}, qword ptr [{call} + {ahead_stride}]
            dec {lines}
            jnz 6b
            add {ahead}, qword ptr [{call} + {ahead_advance}]
            7:
            "
        )
    };
}

/// Prefetches 32 cache lines of a group of B, which is read at `{p0}`: the lines 1.5 KiB ahead to the first-level
/// cache, and the lines 3 KiB ahead to the second. `asm!` requires every operand in its text, so an assembler comment
/// names the operands that only [`prefetch_lines`] uses.
macro_rules! prefetch_stream {
    () => {
        prefetch_stream!(
            0 64 128 192 256 320 384 448 512 576 640 704 768 832 896 960
            1024 1088 1152 1216 1280 1344 1408 1472 1536 1600 1664 1728 1792 1856 1920 1984
        )
    };
    ($($line:literal)*) => {
        concat!(
            "/* {ahead_lines} {ahead_change} {ahead_next} {ahead_stride} {ahead_advance} {lines} */\n",
            $("prefetcht1 byte ptr [{p0} + 3072 + ", $line, "]\nprefetcht0 byte ptr [{p0} + 1536 + ", $line, "]\n",)*
        )
    };
}

/// Defines a function that computes a block of sums. The arguments are the instructions of a step along k (`step`), the
/// bytes between rows (`line`) and between steps (`pair_step`) of the pairs, and the instructions that prefetch.
macro_rules! tile_function {
    (
        $name:ident, $step:ident, line: $line:literal, pair_step: $pair_step:literal, prefetch: $prefetch:expr
    ) => {
        /// # Safety
        /// The tiles of this thread are configured; the tiles of all steps are readable; `sums` has room for four
        /// tiles.
        pub(super) unsafe fn $name(call: &TileProductArgs) {
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
                    concat!("mov {line}, ", $line),
                    "test {left}, {left}",
                    "jz 8f",
                    "4:",
                    $prefetch,
                    $step!(),
                    "add {r0}, qword ptr [{call} + {row_step}]",
                    "add {r1}, qword ptr [{call} + {row_step}]",
                    concat!("add {p0}, ", $pair_step),
                    concat!("add {p1}, ", $pair_step),
                    "dec {left}",
                    "jnz 4b",
                    "8:",
                    "mov {r0}, qword ptr [{call} + {tail_rows}]",
                    "test {r0}, {r0}",
                    "jz 9f",
                    "mov {r1}, qword ptr [{call} + {tail_rows} + 8]",
                    "mov {p0}, qword ptr [{call} + {tail_pairs}]",
                    "mov {p1}, qword ptr [{call} + {tail_pairs} + 8]",
                    "mov {stride}, 64",
                    $step!(),
                    "9:",
                    "mov {line}, 64",
                    "mov {x}, qword ptr [{call} + {sums}]",
                    "tilestored [{x} + {line}*1], tmm0",
                    "tilestored [{x} + {line}*1 + 1024], tmm1",
                    "tilestored [{x} + {line}*1 + 2048], tmm2",
                    "tilestored [{x} + {line}*1 + 3072], tmm3",
                    call = in(reg) std::ptr::from_ref(call),
                    rows = const offset_of!(TileProductArgs, rows),
                    row_stride = const offset_of!(TileProductArgs, row_stride),
                    row_step = const offset_of!(TileProductArgs, row_step),
                    pairs = const offset_of!(TileProductArgs, pairs),
                    steps = const offset_of!(TileProductArgs, steps),
                    tail_rows = const offset_of!(TileProductArgs, tail_rows),
                    tail_pairs = const offset_of!(TileProductArgs, tail_pairs),
                    sums = const offset_of!(TileProductArgs, sums),
                    add = const offset_of!(TileProductArgs, add),
                    ahead_at = const offset_of!(TileProductArgs, prefetch.at),
                    ahead_stride = const offset_of!(TileProductArgs, prefetch.stride),
                    ahead_lines = const offset_of!(TileProductArgs, prefetch.lines),
                    ahead_advance = const offset_of!(TileProductArgs, prefetch.advance),
                    ahead_change = const offset_of!(TileProductArgs, prefetch.change),
                    ahead_next = const offset_of!(TileProductArgs, prefetch.next),
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

/// Defines functions for packed tiles of pairs, of one bf16 part or of three.
macro_rules! functions_of_packed_pairs {
    ($($name:ident, $step:ident, $pair_step:literal, $prefetch:expr;)*) => {
        $(tile_function!($name, $step, line: 64, pair_step: $pair_step, prefetch: $prefetch);)*
    };
}

/// Defines functions for tiles of pairs that are read in place from groups of B.
macro_rules! functions_of_groups {
    ($($name:ident, $step:ident, $prefetch:expr;)*) => {
        $(tile_function!($name, $step, line: 128, pair_step: 2048, prefetch: $prefetch);)*
    };
}

functions_of_packed_pairs! {
    // Functions for many rows of A. They prefetch the operands of later steps into the second-level cache.
    multiply, four_tiles, 1024, prefetch_lines!("prefetcht1", 0);
    // Functions for 17 to 32 rows of A (`*_two`) or up to 16 rows (`*_one`). They prefetch the rows of later steps
    // into the first-level cache.
    thin_two, four_tiles, 1024, prefetch_lines!("prefetcht0", 0);
    thin_one, tiles_of_first_pairs, 1024, prefetch_lines!("prefetcht0", 0);
    thin_f32_pairs_two, three_parts_of_pairs, 3072, prefetch_lines!("prefetcht0", 0);
    thin_f32_pairs_one, three_parts_of_first_pairs, 3072, prefetch_lines!("prefetcht0", 0);
    // Functions for two f32 operands, or for one f32 and one bf16 operand.
    multiply_f32_a_is_rows, six_products_a_is_rows, 3072, prefetch_lines!("prefetcht1", 0 64);
    multiply_f32_a_is_pairs, six_products_a_is_pairs, 3072, prefetch_lines!("prefetcht1", 0 64);
    multiply_f32_rows, three_parts_of_rows, 1024, prefetch_lines!("prefetcht1", 0);
    multiply_f32_pairs, three_parts_of_pairs, 3072, prefetch_lines!("prefetcht1", 0);
}

functions_of_groups! {
    multiply_groups, four_tiles, prefetch_lines!("prefetcht1", 0);
    multiply_f32_rows_and_groups, three_parts_of_rows, prefetch_lines!("prefetcht1", 0);
    // Functions for 17 to 32 rows of A (`*_two`) or up to 16 rows (`*_one`).
    thin_groups_two, four_tiles, prefetch_stream!();
    thin_groups_one, tiles_of_first_rows, prefetch_stream!();
    thin_f32_and_groups_two, three_parts_of_rows, prefetch_stream!();
    thin_f32_and_groups_one, three_parts_of_first_rows, prefetch_stream!();
}
