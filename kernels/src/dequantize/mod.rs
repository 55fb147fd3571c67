//! Dequantises the weight of a linear layer: `y[n, k] = T(f32((values[code[n, k]] − zero[b]) · scale[b]))`, b the block
//! of the weight.
//!
//! Shapes: codes `[n, k]` of 4 bits (rows of `⌈k / 2⌉` bytes, the first code in the lower half) or of 8 bits, values f32
//! `[16]` or `[256]`, y T `[n, k]`, T f32 or bf16. [`Blocks`] says which weights form a block. Each block has a scale,
//! f32, and a zero point, f32, or all zero points are 0. All quantised formats that model folders have are a case of it:
//! `values` are the integers, the numbers of an 8-bit float, or the table of nf4.
//!
//! Numerics: the difference of an integer code and its zero point is exact, and the values of floats have no zero
//! points; the product is rounded to f32 and then to T. Memory-bound: codes, scales and zero points are read once, y is
//! written once.

pub(crate) mod check;
mod cpu;
mod examples;
mod formula;

use reel_device::{Addr, Cost, DType, Launch, kernel, params};

use crate::cuh;
use crate::folder::kernel_folder;

params! {
    /// Parameters of the kernel.
    pub struct Params {
        /// u8 `[n, ⌈k / 2⌉]` or `[n, k]`
        pub codes: Addr,
        /// f32 `[16]` or `[256]`: the value of each code.
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
        /// Blocks side by side; not used with `column_blocks` = null and `block_rows` = 0.
        pub blocks: u32,
        /// 0
        pub reserved: u32,
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

/// The size of a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeBits {
    /// 4 bits.
    Four,
    /// 8 bits.
    Eight,
}

impl CodeBits {
    /// Bytes of a row of `k` codes.
    pub fn row_bytes(self, k: usize) -> usize {
        if self == CodeBits::Four { k.div_ceil(2) } else { k }
    }

    /// Number of codes that differ.
    pub fn values(self) -> usize {
        if self == CodeBits::Four { 16 } else { 256 }
    }
}

kernel_folder! {
    name: "dequantize",
    params: [Params],
    traffic: traffic_launches,
}

kernel!(pub FOUR_F32, "dequantize_4_f32", Params, cpu::four::<f32>, &SOURCE, |p, _| cuh::plan_row_copy("dequantize_4_f32", p.n.into(), p.k.into(), 4));
kernel!(pub FOUR_BF16, "dequantize_4_bf16", Params, cpu::four::<half::bf16>, &SOURCE, |p, _| cuh::plan_row_copy("dequantize_4_bf16", p.n.into(), p.k.into(), 8));
kernel!(pub EIGHT_F32, "dequantize_8_f32", Params, cpu::eight::<f32>, &SOURCE, |p, _| cuh::plan_row_copy("dequantize_8_f32", p.n.into(), p.k.into(), 4));
kernel!(pub EIGHT_BF16, "dequantize_8_bf16", Params, cpu::eight::<half::bf16>, &SOURCE, |p, _| cuh::plan_row_copy("dequantize_8_bf16", p.n.into(), p.k.into(), 8));

/// Returns the launch; `dtype` is that of y, F32 or BF16.
///
/// # Panics
/// For any other dtype.
pub fn dequantize(bits: CodeBits, dtype: DType, params: &Params) -> Launch {
    let kernel = match (bits, dtype) {
        (CodeBits::Four, DType::F32) => &FOUR_F32,
        (CodeBits::Four, DType::BF16) => &FOUR_BF16,
        (CodeBits::Eight, DType::F32) => &EIGHT_F32,
        (CodeBits::Eight, DType::BF16) => &EIGHT_BF16,
        (_, other) => panic!("dequantize: the result must be f32 or bf16, not {other}"),
    };
    let (n, k) = (params.n as usize, params.k as usize);
    let of_blocks = params.scale_count() * if params.zeros.is_null() { 4 } else { 8 };
    let of_columns = if params.column_blocks.is_null() { 0 } else { 4 * k };
    let bytes = n * bits.row_bytes(k) + of_blocks + of_columns + n * k * dtype.size();
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
