//! LoRA adapters of a batch: each row is multiplied by the matrices of its own adapter.
//!
//! - `down`: `y[i] = scale[a] · x[i] · w[a]ᵀ`; 0 for a row without an adapter
//! - `up`: `y[i] = y[i] + x[i] · w[a]ᵀ`; unchanged for a row without an adapter
//!
//! with `a = adapter[i]`; a number outside `0..adapters` means that the row has no adapter.
//!
//! Shapes: x `[m, k]`, w `[adapters, n, k]`, y `[m, n]`, all f32 or all bf16; adapter i32 `[m]`, scale f32
//! `[adapters]`. For `down` n is the rank and k the width of the layer's input, for `up` n is the width of its output
//! and k the rank. Adapters of a lower rank have rows of zeros in `down`'s w and columns of zeros in `up`'s.
//!
//! Numerics: products and sums are in f32, and each result is rounded once. On the CPU the products are those of
//! [`crate::matmul`], bit for bit, so a row's result does not depend on the other rows and adapters of the batch. In
//! CUDA the order of summation depends only on k.
//!
//! Tolerance as a multiple of one rounding error: bf16 2.5; f32 `2.5 (1 + ‖Σ|x w|‖ / ‖Σ x w‖)`, with |y| among the
//! terms of `up`.
//!
//! Memory-bound by reading the matrices: each row reads those of its adapter, from L2 if another row has the same one.

pub(crate) mod check;
mod cpu;
mod examples;
mod formula;

use reel_device::launch::kernel_for_dtype;
use reel_device::{Addr, Arch, Cost, DType, Kernel, Launch, Stage, kernel, params};

use crate::folder::kernel_folder;

params! {
    /// Parameters of the kernels.
    pub struct Params {
        /// f32 or bf16 `[m, k]`
        pub x: Addr,
        /// f32 or bf16 `[adapters, n, k]`
        pub w: Addr,
        /// i32 `[m]`: the number of each row's adapter.
        pub adapter: Addr,
        /// f32 `[adapters]`: the factors by which `down` multiplies its sums; null for `up`.
        pub scale: Addr,
        /// The result, f32 or bf16 `[m, n]`. The kernel `down` writes it, and `up` adds to it.
        pub y: Addr,
        /// Rows of x.
        pub m: u32,
        /// Rows of an adapter's matrix.
        pub n: u32,
        /// Length of the sums (the inner dimension of the product).
        pub k: u32,
        /// Number of adapters.
        pub adapters: u32,
    }
}

kernel_folder! {
    name: "lora_rows",
    params: [Params],
    traffic: traffic_launches,
}

kernel!(pub DOWN_BF16, "lora_rows_down_bf16", Params, cpu::down::<half::bf16>, &SOURCE, |p, _: &Arch| grid("lora_rows_down_bf16", p, 8));
kernel!(pub DOWN_F32, "lora_rows_down_f32", Params, cpu::down::<f32>, &SOURCE, |p, _: &Arch| grid("lora_rows_down_f32", p, 8));
kernel!(pub UP_BF16, "lora_rows_up_bf16", Params, cpu::up::<half::bf16>, &SOURCE, |p, _: &Arch| grid("lora_rows_up_bf16", p, 256));
kernel!(pub UP_F32, "lora_rows_up_f32", Params, cpu::up::<f32>, &SOURCE, |p, _: &Arch| grid("lora_rows_up_f32", p, 256));

/// Plans one block of 256 threads for each row of x and each `columns` columns of y.
fn grid(symbol: &'static str, p: &Params, columns: u32) -> Vec<Stage> {
    match p.m * p.n.div_ceil(columns) {
        0 => Vec::new(),
        blocks => vec![Stage::one_dimensional(symbol, blocks, 256)],
    }
}

/// Returns the launch that computes `y[i] = scale[a] · x[i] · w[a]ᵀ`; `dtype` is the type of x, w and y, F32 or BF16.
pub fn down(dtype: DType, params: &Params) -> Launch {
    launch(kernel_for_dtype(dtype, &DOWN_F32, &DOWN_BF16), dtype, params, 1.0)
}

/// Returns the launch that computes `y[i] += x[i] · w[a]ᵀ`; `dtype` is the type of x, w and y, F32 or BF16.
pub fn up(dtype: DType, params: &Params) -> Launch {
    launch(kernel_for_dtype(dtype, &UP_F32, &UP_BF16), dtype, params, 2.0)
}

/// Makes a launch. `passes` is the number of times that y is read or written. The cost assumes that every row has an
/// adapter, and that the rows use as many different adapters as possible.
fn launch(kernel: &'static Kernel, dtype: DType, p: &Params, passes: f64) -> Launch {
    let (m, n, k, size) = (p.m as f64, p.n as f64, p.k as f64, dtype.size() as f64);
    let matrices = p.m.min(p.adapters) as f64;
    let bytes = size * (matrices * n * k + m * k + passes * m * n) + 4.0 * m;
    Launch::kernel(kernel, p, Cost { flops: 2.0 * m * n * k, bytes })
}

/// Returns sizes (m, n, k, adapters) that tests and benches share. Some values of k are not a multiple of the 16-byte
/// units that threads load.
pub fn test_cases_m_n_k_adapters() -> Vec<(usize, usize, usize, usize)> {
    vec![
        (1, 1, 1, 1),
        (4, 8, 2064, 3),
        (9, 3, 31, 2),
        (2, 300, 8, 2),
        (5, 70, 16, 5),
        (17, 259, 4, 3),
        (3, 17, 1031, 4),
        (6, 513, 5, 1),
    ]
}
