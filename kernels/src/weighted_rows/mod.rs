//! Weighted sums of rows, by lists: `y[i] = Σ_e weight[e] · x[index[e]]` over the entries e of list i, which are
//! `offsets[i] .. offsets[i + 1]`. With `add`, `y[i] = T(sum) + add[i]`, as if an addition followed.
//!
//! This resamples the position table of Qwen3-VL's vision tower: each patch has four table rows with bilinear weights.
//! The gradient of x is the same sum with the transposed lists (list r has the patches that use row r) and `add` the
//! gradient so far, so its order is fixed.
//!
//! Shapes: x X `[rows_x, cols]`, y and add T `[rows, cols]`, X and T f32 or bf16 (not f32 to bf16); i32 `[rows + 1]`
//! offsets, which ascend from 0 to `entries`; index i32 and weight f32 `[entries]`, with indices below `rows_x`, which
//! callers check. An empty list gives 0. y may be the same array as add; it may not overlap other inputs.
//!
//! Numerics: f32, one fused or separate product and addition for each entry, in the order of the list. The sum rounds
//! to T once; with `add`, the second sum rounds to T once more.
//!
//! Memory-bound. Each list reads its rows of x; rows that several lists share are counted once in the cost, because an
//! x as small as the position table (5 MB) stays in L2.

pub(crate) mod check;
mod cpu;
mod examples;
mod formula;

use half::bf16;
use reel_device::launch::kernel_for_dtype;
use reel_device::{Addr, Cost, DType, Launch, Stage, kernel, params};

use crate::cuh;
use crate::folder::kernel_folder;

params! {
    /// Parameters of the kernel.
    pub struct Params {
        /// X `[rows_x, cols]`
        pub x: Addr,
        /// i32 `[rows + 1]`: index of the first entry of each list; the last element is the number of entries.
        pub offsets: Addr,
        /// i32 `[entries]`: the row of x of each entry.
        pub index: Addr,
        /// f32 `[entries]`: the weight of each entry.
        pub weight: Addr,
        /// T `[rows, cols]`, which is added to the rounded sums; null: nothing is added. It may be the same array as y.
        pub add: Addr,
        /// T `[rows, cols]`, written.
        pub y: Addr,
        /// Number of lists, which is the number of rows of y.
        pub rows: u32,
        /// Number of elements of a row.
        pub cols: u32,
        /// Number of rows of x.
        pub rows_x: u32,
        /// Number of entries of all lists together.
        pub entries: u32,
    }
}

kernel_folder! {
    name: "weighted_rows",
    params: [Params],
    traffic: traffic_launches,
}

kernel!(pub F32_F32, "weighted_rows_f32", Params, cpu::weighted_rows::<f32, f32>, &SOURCE, |p, _| plan_rows("weighted_rows_f32", p, 4));
kernel!(pub BF16_BF16, "weighted_rows_bf16", Params, cpu::weighted_rows::<bf16, bf16>, &SOURCE, |p, _| plan_rows("weighted_rows_bf16", p, 8));
kernel!(pub BF16_F32, "weighted_rows_bf16_f32", Params, cpu::weighted_rows::<bf16, f32>, &SOURCE, |p, _| plan_rows("weighted_rows_bf16_f32", p, 4));

/// Plans the grid; `vector` is the number of elements of y in 16 bytes. As many threads as a row has vectors compute a
/// row, from 8 to 256: the lists of a gradient are long, so rows alone would give too few threads.
fn plan_rows(symbol: &'static str, p: &Params, vector: u32) -> Vec<Stage> {
    let threads = p.cols.div_ceil(vector).next_power_of_two().clamp(8, 256);
    let mut stages = cuh::plan_blocks(symbol, u64::from(p.rows.div_ceil(256 / threads)), 256);
    stages.iter_mut().for_each(|stage| stage.block = [threads, 256 / threads, 1]);
    stages
}

/// Returns the launch; `x` is the dtype of x, `y` that of y and add: F32 or BF16 both, or BF16 and F32.
///
/// # Panics
/// If x is f32 and y is not.
pub fn weighted_rows(x: DType, y: DType, params: &Params) -> Launch {
    let kernel = match x {
        DType::BF16 => kernel_for_dtype(y, &BF16_F32, &BF16_BF16),
        _ => {
            assert_eq!((x, y), (DType::F32, DType::F32), "weighted_rows: dtypes of x and y");
            &F32_F32
        }
    };
    let (rows, cols, entries) = (f64::from(params.rows), f64::from(params.cols), f64::from(params.entries));
    let read = entries.min(f64::from(params.rows_x)) * cols * x.size() as f64 + 4.0 * rows + 8.0 * entries;
    let written = if params.add.is_null() { 1.0 } else { 2.0 } * rows * cols * y.size() as f64;
    Launch::kernel(kernel, params, Cost { flops: 2.0 * entries * cols, bytes: read + written })
}

/// Returns, for each case of the checks: rows of x, lists, and columns.
pub fn test_cases_rows_x_rows_cols() -> Vec<(usize, usize, usize)> {
    vec![(1, 1, 1), (5, 0, 4), (19, 300, 23), (3, 7, 8191), (300, 19, 72), (40, 33, 1152)]
}
