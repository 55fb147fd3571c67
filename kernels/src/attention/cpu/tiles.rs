//! Products of pairs on the tiles of AMX ([`reel_device::cpu::simd::amx`]): blocks of 32 × 32 sums in four tiles.
//!
//! ```text
//! for each 32 rows:     copy the rows of a into tiles, with zeros behind each row's length
//!     for each 32 columns:   tiles 0..3 = 0
//!         for each 16 words of the inner index:   tiles 4, 5 = a, tiles 6, 7 = b in place; four tdpbf16ps
//!         c = tiles 0..3, or c * alpha + tiles 0..3
//! ```
//!
//! **Order.** A step of 16 words adds one f32 to a sum: the products of the first elements of its pairs plus those of
//! the second ones. Steps begin at word 0. Zeros complete the last step, and a step of zeros changes no sum, so the
//! bits depend neither on the number of rows nor on the lengths of other rows.
//!
//! **Cost.** A step of a block loads 4 KiB for 65 536 operations: 64 cycles, 16 for each of its four instructions. The
//! copy of a takes a load and a store for each row and step, once for all columns. In a prompt of
//! 512 tokens (14 heads of 64 elements; table by op of `reel bench prefill --tokens 512`) attention ran at 300 GFLOP/s
//! on two cores, a twentieth of what tiles can do. What softmax, copies and products take of it has not been measured.
#![allow(unsafe_code)]
#![allow(unsafe_op_in_unsafe_fn)]

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::{MaybeUninit, offset_of};

use super::product::SmallProduct;
use super::vector::{AmxVector, LANES, Vector};

/// Words of a tile.
const TILE: usize = LANES * LANES;
/// Maximum number of steps of 16 words for which rows of `a` are copied at a time: a head of 256 elements.
const MAX_STEPS: usize = 8;

/// Memory for two AMX tiles for each step along the inner dimension.
#[repr(C, align(64))]
struct PackedRows([[MaybeUninit<[f32; TILE]>; MAX_STEPS]; 2]);

/// Memory for four tiles of sums.
#[repr(C, align(64))]
struct Sums([MaybeUninit<[f32; TILE]>; 4]);

/// Computes a product of [`WordContents::Pairs`](super::product::WordContents).
///
/// # Safety
/// The tiles of this thread are configured (`Tiles`), and the processor has AVX-512 F and BW; the
/// pointers cover what [`SmallProduct`] documents.
#[target_feature(enable = "avx512f,avx512bw")]
pub unsafe fn multiply_with_amx(p: &SmallProduct) {
    let mut packed = PackedRows([[MaybeUninit::uninit(); MAX_STEPS]; 2]);
    for row in (0..p.rows).step_by(2 * LANES) {
        let rows = (2 * LANES).min(p.rows - row);
        // Lengths do not decrease from row to row, so the last row has the longest sum.
        let steps = p.inner_length_of_row(row + rows - 1).div_ceil(2 * LANES);
        let all = steps <= MAX_STEPS;
        if all {
            pack(p, row, rows, 0, steps, &mut packed);
        }
        for col in (0..p.cols).step_by(2) {
            let mut sums = Sums([MaybeUninit::uninit(); 4]);
            let memory = sums.0.as_mut_ptr().cast::<f32>();
            // Whole tiles of a product that overwrites `c` are stored directly to `c`.
            let direct = p.alpha.is_null() && rows.is_multiple_of(LANES) && col + 1 < p.cols;
            let c = p.c.wrapping_add(row * p.c_row + col * LANES);
            let mut call = TileProductArgs {
                a: packed.0.each_ref().map(|tile| tile.as_ptr().cast()),
                b: [0, usize::from(col + 1 < p.cols)].map(|i| p.b.wrapping_add((col + i) * LANES)),
                b_row: 4 * p.b_row,
                b_step: 4 * p.b_row * LANES,
                steps,
                c: match direct {
                    true => [c, c.wrapping_add(LANES * p.c_row)],
                    false => [memory, memory.wrapping_add(2 * TILE)],
                },
                c_row: if direct { 4 * p.c_row } else { 8 * LANES },
                add: 0,
            };
            for first in (0..steps.max(1)).step_by(MAX_STEPS) {
                call.steps = MAX_STEPS.min(steps - first);
                if !all {
                    pack(p, row, rows, first, call.steps, &mut packed);
                }
                if rows > LANES {
                    multiply_two_tiles(&call)
                } else {
                    multiply_one_tile(&call)
                }
                call.b = call.b.map(|b| b.wrapping_add(MAX_STEPS * LANES * p.b_row));
                call.add = 1;
            }
            if !direct {
                combine(p, row, rows, col, memory);
            }
        }
    }
}

/// Copies `steps` steps of 16 words of some rows of `a`, from step `first` on, into tiles. Zeros take the place of
/// elements beyond a row's length and of missing rows.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn pack(p: &SmallProduct, row: usize, rows: usize, first: usize, steps: usize, packed: &mut PackedRows) {
    for (tile, to) in packed.0.iter_mut().enumerate().take(rows.div_ceil(LANES)) {
        let (row, rows) = (row + tile * LANES, LANES.min(rows - tile * LANES));
        for (step, to) in to.iter_mut().enumerate().take(steps) {
            let (to, word) = (to.as_mut_ptr().cast::<f32>(), (first + step) * LANES);
            if p.a_inner == 1 {
                for r in 0..LANES {
                    let left = if r < rows { p.inner_length_of_row(row + r).saturating_sub(2 * word) } else { 0 };
                    // The mask has one bit for each element of the row.
                    let mask = if left >= 32 { u32::MAX } else { (1 << left) - 1 };
                    let x = _mm512_maskz_loadu_epi16(mask, p.a.wrapping_add((row + r) * p.a_row + word).cast());
                    _mm512_store_si512(to.add(r * LANES).cast(), x);
                }
            } else {
                let mut square = [AmxVector::splat(0.0); LANES];
                for (i, line) in square.iter_mut().enumerate() {
                    if 2 * (word + i) < p.inner {
                        *line = AmxVector::load(p.a.add(row * p.a_row + (word + i) * p.a_inner));
                    }
                }
                for (r, line) in AmxVector::transpose(square).into_iter().enumerate() {
                    line.store(to.add(r * LANES));
                }
            }
        }
    }
}

/// Writes up to four tiles of sums, rows of 32 words, to `c`.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn combine(p: &SmallProduct, row: usize, rows: usize, col: usize, sums: *const f32) {
    for r in 0..rows {
        for i in 0..2.min(p.cols - col) {
            let to = p.c.add((row + r) * p.c_row + (col + i) * LANES);
            let mut sum = _mm512_load_ps(sums.add(r * 2 * LANES + i * LANES));
            if !p.alpha.is_null() {
                sum = _mm512_fmadd_ps(_mm512_loadu_ps(to), _mm512_set1_ps(p.alpha.add(row + r).read()), sum);
            }
            _mm512_storeu_ps(to, sum);
        }
    }
}

/// The operands of a block of sums. Distances are in bytes.
#[repr(C)]
struct TileProductArgs {
    /// The two tiles of rows of `a` for the first step. The tiles of later steps follow without gaps.
    a: [*const f32; 2],
    /// The two tiles of pairs of the first step. `b_row`: distance of two rows of a tile; `b_step`: distance of the
    /// tiles of two steps.
    b: [*const f32; 2],
    b_row: usize,
    b_step: usize,
    steps: usize,
    /// Address of the sums of each of the two tiles of rows (32 columns, two tiles side by side). `c_row`: distance of
    /// two rows.
    c: [*mut f32; 2],
    c_row: usize,
    /// 1: the products are added to the sums in memory; 0: the sums start at 0.
    add: usize,
}

/// Defines a function that computes a block of sums. Its arguments are the instructions for the second tile of rows, or
/// empty texts if the block has only one tile.
macro_rules! tile_function {
    ($name:ident, $load_second:literal, $multiply_second:literal, $store_second:literal) => {
        /// # Safety
        /// The tiles of this thread are configured; the tiles of all steps are readable, and the memory of the sums is
        /// writable.
        unsafe fn $name(call: &TileProductArgs) {
            // SAFETY: the instructions access the tiles of the call and change no register that is not named.
            unsafe {
                asm!(
                    "mov {line}, 64",
                    "mov {a0}, qword ptr [{call} + {a}]",
                    "mov {a1}, qword ptr [{call} + {a} + 8]",
                    "mov {b0}, qword ptr [{call} + {b}]",
                    "mov {b1}, qword ptr [{call} + {b} + 8]",
                    "mov {b_row}, qword ptr [{call} + {b_row_at}]",
                    "mov {c0}, qword ptr [{call} + {c}]",
                    "mov {c1}, qword ptr [{call} + {c} + 8]",
                    "mov {c_row}, qword ptr [{call} + {c_row_at}]",
                    "mov {left}, qword ptr [{call} + {steps}]",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "cmp qword ptr [{call} + {add}], 0",
                    "je 2f",
                    "tileloadd tmm0, [{c0} + {c_row}*1]",
                    "tileloadd tmm1, [{c0} + {c_row}*1 + 64]",
                    $load_second,
                    "2:",
                    "test {left}, {left}",
                    "jz 4f",
                    "3:",
                    "tileloadd tmm4, [{a0} + {line}*1]",
                    "tileloadd tmm6, [{b0} + {b_row}*1]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{b1} + {b_row}*1]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    $multiply_second,
                    "add {a0}, 1024",
                    "add {a1}, 1024",
                    "add {b0}, qword ptr [{call} + {b_step}]",
                    "add {b1}, qword ptr [{call} + {b_step}]",
                    "dec {left}",
                    "jnz 3b",
                    "4:",
                    "tilestored [{c0} + {c_row}*1], tmm0",
                    "tilestored [{c0} + {c_row}*1 + 64], tmm1",
                    $store_second,
                    call = in(reg) std::ptr::from_ref(call),
                    a = const offset_of!(TileProductArgs, a),
                    b = const offset_of!(TileProductArgs, b),
                    b_row_at = const offset_of!(TileProductArgs, b_row),
                    b_step = const offset_of!(TileProductArgs, b_step),
                    steps = const offset_of!(TileProductArgs, steps),
                    c = const offset_of!(TileProductArgs, c),
                    c_row_at = const offset_of!(TileProductArgs, c_row),
                    add = const offset_of!(TileProductArgs, add),
                    line = out(reg) _,
                    a0 = out(reg) _,
                    a1 = out(reg) _,
                    b0 = out(reg) _,
                    b1 = out(reg) _,
                    b_row = out(reg) _,
                    c0 = out(reg) _,
                    c1 = out(reg) _,
                    c_row = out(reg) _,
                    left = out(reg) _,
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

tile_function!(
    multiply_two_tiles,
    "tileloadd tmm2, [{c1} + {c_row}*1]
     tileloadd tmm3, [{c1} + {c_row}*1 + 64]",
    "tileloadd tmm5, [{a1} + {line}*1]
     tdpbf16ps tmm2, tmm5, tmm6
     tdpbf16ps tmm3, tmm5, tmm7",
    "tilestored [{c1} + {c_row}*1], tmm2
     tilestored [{c1} + {c_row}*1 + 64], tmm3"
);
tile_function!(multiply_one_tile, "", "", "");
