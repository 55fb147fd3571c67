//! Dequantises the weight of a linear layer: `y[n, k] = T(f32((value(code[n, k]) − zero[b]) · scale[b]))`, b the block of
//! the weight.
//!
//! Shapes: codes `[n, k]` of 4 bits (rows of `⌈k / 2⌉` bytes, the first code in the lower half) or of 8 bits, y T `[n, k]`,
//! T f32 or bf16. Each block has a scale, f32, and a zero point, f32, or all zero points are 0. [`Params`] says which
//! weights form a block, [`CodeValues`] which value a code has. All quantised formats of model folders are a case of it.
//!
//! Numerics: the difference of an integer and its zero point is exact, and other values have no zero points; the product
//! is rounded to f32 and then to T. A code of [`CodeValues::E4m3`] must not be NaN. Memory-bound: codes, scales and zero
//! points are read once, y is written once.

pub(crate) mod check;
pub(crate) mod cpu;
mod examples;
mod formula;

use reel_device::launch::kernel_for_dtype;
use reel_device::{Addr, Cost, DType, Launch, kernel, params};

use crate::cuh;
use crate::folder::kernel_folder;

params! {
    /// Parameters of the kernel.
    pub struct Params {
        /// u8 `[n, ⌈k / 2⌉]` or `[n, k]`
        pub codes: Addr,
        /// f32 `[16]`: the value of each code of 4 bits; null for codes of 8 bits.
        pub values: Addr,
        /// f32, the scale of each block.
        pub scales: Addr,
        /// f32, the zero point of each block; null: all are 0.
        pub zeros: Addr,
        /// i32 `[k]`: the block in its row of blocks of each column; null: a block has consecutive columns.
        pub column_blocks: Addr,
        /// T `[n, k]`; the kernel writes it.
        pub y: Addr,
        /// Rows of the weight.
        pub n: u32,
        /// Columns of the weight.
        pub k: u32,
        /// Rows of a block; 0: a block has consecutive weights of the whole matrix.
        pub block_rows: u32,
        /// Columns of a block.
        pub block_columns: u32,
        /// Blocks side by side; not used if `block_rows` is 0.
        pub blocks: u32,
        /// The values of codes of 8 bits: 0 [`CodeValues::U8`], 1 [`CodeValues::I8`], 2 [`CodeValues::E4m3`].
        pub kind: u32,
    }
}

impl Params {
    /// Number of scales.
    pub fn scale_count(&self) -> usize {
        let [n, k, columns] = [self.n, self.k, self.block_columns].map(|size| size as usize);
        match self.block_rows {
            0 => (n * k).div_ceil(columns.max(1)),
            rows => n.div_ceil(rows as usize) * self.blocks as usize,
        }
    }
}

/// The values of codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CodeValues {
    /// Codes of 4 bits, with the values of this table.
    Table([f32; 16]),
    /// Codes of 8 bits: integers without a sign.
    U8,
    /// Codes of 8 bits: integers with a sign.
    I8,
    /// Codes of 8 bits: floats with 4 bits of exponent and 3 bits of mantissa (OCP 8-bit Floating Point Specification).
    E4m3,
}

impl CodeValues {
    /// Bytes of a row of `k` codes.
    pub fn row_bytes(&self, k: usize) -> usize {
        if matches!(self, CodeValues::Table(_)) { k.div_ceil(2) } else { k }
    }

    /// The number of codes that differ: 16 or 256.
    pub fn count(&self) -> usize {
        if matches!(self, CodeValues::Table(_)) { 16 } else { 256 }
    }

    /// The value of a code.
    pub fn value(&self, code: u8) -> f32 {
        match self {
            CodeValues::Table(values) => values[usize::from(code & 15)],
            CodeValues::U8 => f32::from(code),
            CodeValues::I8 => f32::from(code as i8),
            CodeValues::E4m3 => {
                let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
                let size = match (exponent, code & 7) {
                    (15, 7) => f32::NAN,
                    (0, _) => mantissa * 2f32.powi(-9),
                    _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
                };
                if code & 0x80 != 0 { -size } else { size }
            }
        }
    }

    /// [`Params::kind`].
    pub fn kind(&self) -> u32 {
        match self {
            CodeValues::Table(_) | CodeValues::U8 => 0,
            CodeValues::I8 => 1,
            CodeValues::E4m3 => 2,
        }
    }
}

kernel_folder! {
    name: "dequantize",
    params: [Params],
    traffic: traffic_launches,
}

kernel!(pub FOUR_F32, "dequantize_4_f32", Params, cpu::dequantize::<f32>, &SOURCE, |p, _| cuh::plan_row_copy("dequantize_4_f32", p.n.into(), p.k.into(), 4));
kernel!(pub FOUR_BF16, "dequantize_4_bf16", Params, cpu::dequantize::<half::bf16>, &SOURCE, |p, _| cuh::plan_row_copy("dequantize_4_bf16", p.n.into(), p.k.into(), 8));
kernel!(pub EIGHT_F32, "dequantize_8_f32", Params, cpu::dequantize::<f32>, &SOURCE, |p, _| cuh::plan_row_copy("dequantize_8_f32", p.n.into(), p.k.into(), 4));
kernel!(pub EIGHT_BF16, "dequantize_8_bf16", Params, cpu::dequantize::<half::bf16>, &SOURCE, |p, _| cuh::plan_row_copy("dequantize_8_bf16", p.n.into(), p.k.into(), 8));

/// Returns the launch; `dtype` is that of y, F32 or BF16. Codes have 4 bits if the parameters have a table of values.
///
/// # Panics
/// For any other dtype.
pub fn dequantize(dtype: DType, params: &Params) -> Launch {
    let has_table = !params.values.is_null();
    let kernel = match has_table {
        true => kernel_for_dtype(dtype, &FOUR_F32, &FOUR_BF16),
        false => kernel_for_dtype(dtype, &EIGHT_F32, &EIGHT_BF16),
    };
    let (n, k) = (params.n as usize, params.k as usize);
    let code_bytes = n * if has_table { k.div_ceil(2) } else { k };
    let of_blocks = params.scale_count() * if params.zeros.is_null() { 4 } else { 8 };
    let of_columns = if params.column_blocks.is_null() { 0 } else { 4 * k };
    let bytes = code_bytes + of_blocks + of_columns + n * k * dtype.size();
    Launch::kernel(kernel, params, Cost { flops: 2.0 * (n * k) as f64, bytes: bytes as f64 })
}

/// Shapes and blocks of the checks: rows, columns, rows of a block (0: consecutive weights), columns of a block, and
/// whether columns name their blocks.
pub fn test_cases() -> Vec<(usize, usize, usize, usize, bool)> {
    vec![
        (1, 1, 1, 1, false),
        (5, 64, 1, 32, false),
        (9, 40, 1, 40, false),
        (3, 37, 1, 8, false),
        (17, 200, 16, 24, false),
        (7, 96, 0, 64, false),
        (4, 33, 0, 6, false),
        (6, 128, 1, 16, true),
        (3, 1032, 2, 128, true),
        (0, 8, 1, 8, false),
    ]
}
