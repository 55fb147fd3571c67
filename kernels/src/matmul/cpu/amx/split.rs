//! The inner loop of a product of up to 32 rows of an f32 A with a group of an f32 B: while the tiles multiply one step
//! along k, the vector unit splits the next step of B into bf16 [`PARTS`](super::PARTS), so that B is read once and the
//! parts of all of B are never stored.
//!
//! ```text
//! split step 0 into buffer 0
//! for each step s but the last:  six products of buffer s mod 2, and between them the 16 lines of step s + 1, which go
//!                                to the other buffer
//! six products of the last step
//! ```
//!
//! **Cost.** A line of 2 k and 32 columns takes 36 vector instructions, two per cycle, so the 16 lines of a step take
//! 288 cycles. Its 12 products of tiles take up to 192, and 24, with more than 16 rows of A, up to 384.
#![allow(unsafe_code)]

use std::arch::asm;
use std::mem::offset_of;

/// Number of 32-bit words in the two buffers of split elements of B. Each buffer holds one step along k: two tiles of
/// three bf16 parts each.
pub(super) const SPLIT_BUFFER_WORDS: usize = 2 * STEP_BYTES / 4;
/// Bytes of a split step.
const STEP_BYTES: usize = 6144;

/// The operands of a block of up to 32 rows and 32 columns of sums.
#[repr(C)]
pub(super) struct SplitProductArgs {
    /// Addresses of A's packed rows, split into three bf16 parts: rows 0 to 15, and rows 16 to 31. The tiles of the
    /// next step along k are 3072 bytes further.
    pub(super) rows: [*const u8; 2],
    /// The first line of B. A line is 32 f32: one element along k of 32 columns. A step has 32 lines.
    pub(super) lines: *const f32,
    /// Steps, at least 1.
    pub(super) steps: usize,
    /// A copy of the lines of the last step, completed with zeros; null if the last step is complete and directly
    /// follows the other steps.
    pub(super) tail: *const f32,
    /// Room for the split elements of B: [`SPLIT_BUFFER_WORDS`] words, aligned to 64 bytes.
    pub(super) buffer: *mut u32,
    /// Four tiles of 16 x 16 sums, one after the other: rows 0 to 15 with columns 0 to 15, rows 0 to 15 with columns 16
    /// to 31, then rows 16 to 31 with either half of the columns.
    pub(super) sums: *mut f32,
}

/// Splits line `$x` of a step: reads 32 columns of two neighbouring k from `{$from}`, and writes them to `{$to}` as
/// pairs of bf16 parts. Prefetches the lines 1.5 KiB ahead to the first-level cache, and the lines 3 KiB ahead to the
/// second.
macro_rules! split_line {
    ($from:literal, $to:literal, $x:literal) => {
        concat!(
            split_line!(@load $from, $x, "0", "0"),
            split_line!(@load $from, $x, "64", "1"),
            split_line!(@load $from, $x, "128", "2"),
            split_line!(@load $from, $x, "192", "3"),
            split_line!(@pairs $to, $x, "0", "0", "2"),
            split_line!(@pairs $to, $x, "3072", "1", "3"),
        )
    };
    (@load $from:literal, $x:literal, $byte:literal, $to:literal) => {
        concat!(
            "vmovups zmm", $to, ", zmmword ptr [{", $from, "} + 256*", $x, " + ", $byte, "]\n",
            "prefetcht1 byte ptr [{", $from, "} + 256*", $x, " + 3072 + ", $byte, "]\n",
            "prefetcht0 byte ptr [{", $from, "} + 256*", $x, " + 1536 + ", $byte, "]\n",
        )
    };
    // Splits 16 columns of an even k (register `$even`) and of the next, odd k (register `$odd`).
    (@pairs $to:literal, $x:literal, $byte:literal, $even:literal, $odd:literal) => {
        concat!(
            split_line!(@part $to, $x, $byte, "0", $even, $odd),
            split_line!(@part $to, $x, $byte, "1024", $even, $odd),
            "vpsrld zmm", $even, ", zmm", $even, ", 16\n",
            "vmovdqu16 zmm", $even, "{{k1}}, zmm", $odd, "\n",
            "vmovups zmmword ptr [{", $to, "} + 64*", $x, " + 2048 + ", $byte, "], zmm", $even, "\n",
        )
    };
    // Rounds the elements of both registers to bf16, stores them as pairs, and leaves the rounding errors in the
    // registers.
    (@part $to:literal, $x:literal, $byte:literal, $part:literal, $even:literal, $odd:literal) => {
        concat!(
            "vpaddd zmm4, zmm", $even, ", zmm31\n",
            "vpaddd zmm5, zmm", $odd, ", zmm31\n",
            "vpandd zmm6, zmm4, zmm30\n",
            "vpandd zmm7, zmm5, zmm30\n",
            "vpsrld zmm4, zmm4, 16\n",
            "vsubps zmm", $even, ", zmm", $even, ", zmm6\n",
            "vsubps zmm", $odd, ", zmm", $odd, ", zmm7\n",
            "vmovdqu16 zmm4{{k1}}, zmm7\n",
            "vmovups zmmword ptr [{", $to, "} + 64*", $x, " + ", $part, " + ", $byte, "], zmm4\n",
        )
    };
}

/// Loads one part (high, middle or low) of 32 columns of B: two tiles of pairs.
macro_rules! load_columns {
    ($part:literal) => {
        concat!(
            "tileloadd tmm6, [{now} + {line}*1 + ",
            $part,
            "]\n",
            "tileloadd tmm7, [{now} + {line}*1 + 3072 + ",
            $part,
            "]\n",
        )
    };
}

/// Loads one part (high, middle or low) of up to 16 rows of A.
macro_rules! load_one {
    ($part:literal) => {
        concat!("tileloadd tmm4, [{r0} + {line}*1 + ", $part, "]\n")
    };
}

/// Loads one part (high, middle or low) of up to 32 rows of A.
macro_rules! load_two {
    ($part:literal) => {
        concat!(load_one!($part), "tileloadd tmm5, [{r1} + {line}*1 + ", $part, "]\n")
    };
}

/// Multiplies the loaded tile of up to 16 rows with both tiles of columns.
macro_rules! multiply_one {
    () => {
        "
        tdpbf16ps tmm0, tmm4, tmm6
        tdpbf16ps tmm1, tmm4, tmm7
        "
    };
}

/// Multiplies the loaded tiles of up to 32 rows with both tiles of columns.
macro_rules! multiply_two {
    () => {
        concat!(
            multiply_one!(),
            "
        tdpbf16ps tmm2, tmm5, tmm6
        tdpbf16ps tmm3, tmm5, tmm7
        "
        )
    };
}

/// One step along k: the six products of bf16 parts, in the order that the documentation of [`super`] gives. Between
/// the products, 16 lines of the next step are split, if there is a next step. The first tiles are loaded after five
/// of these lines, when the stores of the previous step have reached the cache.
macro_rules! step {
    ($load:ident, $multiply:ident, $line:ident) => {
        concat!(
            $line!("0"),
            $line!("1"),
            $line!("2"),
            $line!("3"),
            $line!("4"),
            $load!("0"),
            load_columns!("2048"),
            $multiply!(),
            $line!("5"),
            $line!("6"),
            load_columns!("1024"),
            $multiply!(),
            $line!("7"),
            $line!("8"),
            $load!("1024"),
            $multiply!(),
            $line!("9"),
            $line!("10"),
            load_columns!("0"),
            $multiply!(),
            $line!("11"),
            $line!("12"),
            $load!("0"),
            $multiply!(),
            $line!("13"),
            $line!("14"),
            $load!("2048"),
            $multiply!(),
            $line!("15"),
        )
    };
}

/// A line of the next step.
macro_rules! next_line {
    ($x:literal) => {
        split_line!("lines", "next", $x)
    };
}

/// No line: after the last step.
macro_rules! no_line {
    ($x:literal) => {
        ""
    };
}

macro_rules! split_function {
    ($name:ident, $load:ident, $multiply:ident, $store:expr) => {
        /// # Safety
        /// The tiles of this thread have the shape of the rows; the rows and the lines of all steps are readable; the
        /// buffer and the sums are writable.
        pub(super) unsafe fn $name(call: &SplitProductArgs) {
            // SAFETY: the instructions access the operands of the call and change no register that is not named. A
            // prefetch may name any address.
            unsafe {
                asm!(
                    "mov {line}, 64",
                    "mov {x:e}, 0x8000",
                    "vpbroadcastd zmm31, {x:e}",
                    "mov {x:e}, 0xffff0000",
                    "vpbroadcastd zmm30, {x:e}",
                    "mov {x:e}, 0xaaaaaaaa",
                    "kmovd k1, {x:e}",
                    "mov {r0}, qword ptr [{call} + {rows}]",
                    "mov {r1}, qword ptr [{call} + {rows} + 8]",
                    "mov {lines}, qword ptr [{call} + {lines_at}]",
                    "mov {left}, qword ptr [{call} + {steps}]",
                    "mov {now}, qword ptr [{call} + {buffer}]",
                    "lea {next}, [{now} + {step_bytes}]",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    // The first step, line by line.
                    "mov {x}, 16",
                    "2:",
                    split_line!("lines", "now", "0"),
                    "add {lines}, 256",
                    "add {now}, 64",
                    "dec {x}",
                    "jnz 2b",
                    "sub {now}, 1024",
                    "dec {left}",
                    "jz 4f",
                    "3:",
                    // If the last step is incomplete, its lines are read from the copy at `tail`.
                    "cmp {left}, 1",
                    "jne 5f",
                    "mov {x}, qword ptr [{call} + {tail}]",
                    "test {x}, {x}",
                    "cmovnz {lines}, {x}",
                    "5:",
                    step!($load, $multiply, next_line),
                    "xchg {now}, {next}",
                    "add {lines}, 4096",
                    "add {r0}, 3072",
                    "add {r1}, 3072",
                    "dec {left}",
                    "jnz 3b",
                    "4:",
                    step!($load, $multiply, no_line),
                    "mov {x}, qword ptr [{call} + {sums}]",
                    $store,
                    "vzeroupper",
                    call = in(reg) std::ptr::from_ref(call),
                    rows = const offset_of!(SplitProductArgs, rows),
                    lines_at = const offset_of!(SplitProductArgs, lines),
                    steps = const offset_of!(SplitProductArgs, steps),
                    tail = const offset_of!(SplitProductArgs, tail),
                    buffer = const offset_of!(SplitProductArgs, buffer),
                    sums = const offset_of!(SplitProductArgs, sums),
                    step_bytes = const STEP_BYTES,
                    line = out(reg) _,
                    r0 = out(reg) _,
                    r1 = out(reg) _,
                    lines = out(reg) _,
                    left = out(reg) _,
                    now = out(reg) _,
                    next = out(reg) _,
                    x = out(reg) _,
                    out("k1") _,
                    out("zmm0") _,
                    out("zmm1") _,
                    out("zmm2") _,
                    out("zmm3") _,
                    out("zmm4") _,
                    out("zmm5") _,
                    out("zmm6") _,
                    out("zmm7") _,
                    out("zmm30") _,
                    out("zmm31") _,
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

split_function!(
    split_one,
    load_one,
    multiply_one,
    "
    tilestored [{x} + {line}*1], tmm0
    tilestored [{x} + {line}*1 + 1024], tmm1
    "
);
split_function!(
    split_two,
    load_two,
    multiply_two,
    "
    tilestored [{x} + {line}*1], tmm0
    tilestored [{x} + {line}*1 + 1024], tmm1
    tilestored [{x} + {line}*1 + 2048], tmm2
    tilestored [{x} + {line}*1 + 3072], tmm3
    "
);
