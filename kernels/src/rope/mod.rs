//! Rotary position embedding (RoPE): the table of cosines and sines, and the rotation of queries and keys.
//!
//! Table: `angle[t, f] = positions[axis[f], t] * inv_freq[f]`, rounded to f32 as the reference implementations do,
//! then its cosine and sine. With one axis this is plain RoPE; three axes (time, height, width), one for each
//! frequency, make M-RoPE; two axes (height, width) make the vision tower's embedding.
//!
//! Rotation (rotate-half): with `h = head_dim / 2`, `y[i] = x[i] cos[i] - x[i + h] sin[i]` and `y[i + h] = x[i + h]
//! cos[i] + x[i] sin[i]`. The gradient is the rotation by the negative angle (`inverse`).
//!
//! One launch rotates or copies up to three parts: for example, it rotates queries and keys and copies values. Part i
//! goes from x_i to y_i and has `heads_i` heads of each token. The rows of a part may be columns of a wider matrix, so
//! one launch splits a fused projection of queries, keys and values, and one launch joins its gradient.
//!
//! Shapes: positions `[axes, tokens]`, tables `[tokens, head_dim / 2]` in f32, x and y `[tokens, heads, head_dim]` in
//! f32 or bf16, with the given distances between tokens; y may be x if the distances are equal. Numerics: the angle is
//! reduced in f64, so cosine and sine are within one unit in the last place of f32 at any position; the rotation is
//! f32, two products and their sum, with one rounding at the store. Memory-bound: the rotation reads and writes each
//! element once. In CUDA a thread rotates up to ten heads with a cosine and a sine that it reads once. The table has
//! one thread for each frequency and eight tokens; its threads read each position again from L1: 13 bytes per element,
//! 8 of them written.

pub(crate) mod check;
pub(crate) mod cpu;
mod examples;
mod formula;

use reel_device::launch::kernel_for_dtype;
use reel_device::{Addr, Cost, DType, Launch, Stage, kernel, params};

use crate::cuh;
use crate::folder::kernel_folder;

params! {
    /// Parameters of the table kernel.
    pub struct TableParams {
        /// i32 `[axes, tokens]`
        pub positions: Addr,
        /// f32 `[half]`
        pub inv_freq: Addr,
        /// i32 `[half]`: the axis of each frequency, which is the row of `positions` that the frequency is multiplied
        /// with.
        pub axis: Addr,
        /// f32 `[tokens, half]`, written.
        pub cos: Addr,
        /// f32 `[tokens, half]`, written.
        pub sin: Addr,
        /// Number of tokens.
        pub tokens: u32,
        /// Number of frequencies: head_dim / 2.
        pub half: u32,
    }
}

params! {
    /// Parameters of the rotation kernel.
    pub struct ApplyParams {
        /// The first input tensor (part), `[tokens, heads0, head_dim]`.
        pub x0: Addr,
        /// The second input tensor (part), `[tokens, heads1, head_dim]`.
        pub x1: Addr,
        /// The third input tensor (part), `[tokens, heads2, head_dim]`.
        pub x2: Addr,
        /// The result for `x0`, `[tokens, heads0, head_dim]`; the kernel writes it. It may be the same array as `x0`.
        pub y0: Addr,
        /// The result for `x1`, `[tokens, heads1, head_dim]`; the kernel writes it. It may be the same array as `x1`.
        pub y1: Addr,
        /// The result for `x2`, `[tokens, heads2, head_dim]`; the kernel writes it. It may be the same array as `x2`.
        pub y2: Addr,
        /// f32 `[tokens, head_dim / 2]`
        pub cos: Addr,
        /// f32 `[tokens, head_dim / 2]`
        pub sin: Addr,
        /// Number of heads of the first input tensor.
        pub heads0: u32,
        /// Number of heads of the second input tensor; 0: there is no second tensor.
        pub heads1: u32,
        /// Number of heads of the third input tensor; 0: there is no third tensor.
        pub heads2: u32,
        /// Stride of x0: number of elements from one token to the next.
        pub x_stride0: u32,
        /// Stride of x1: number of elements from one token to the next.
        pub x_stride1: u32,
        /// Stride of x2: number of elements from one token to the next.
        pub x_stride2: u32,
        /// Stride of y0: number of elements from one token to the next.
        pub y_stride0: u32,
        /// Stride of y1: number of elements from one token to the next.
        pub y_stride1: u32,
        /// Stride of y2: number of elements from one token to the next.
        pub y_stride2: u32,
        /// Number of input tensors that are rotated. They come first; the other tensors are copied.
        pub rotated: u32,
        /// Number of tokens.
        pub tokens: u32,
        /// Number of elements of a head; even.
        pub head_dim: u32,
        /// 1: rotate by the negative angle, for the gradient; 0: forward.
        pub inverse: u32,
        /// 0
        pub reserved: u32,
    }
}

/// A part of a rotation.
#[derive(Clone, Copy, Debug)]
pub struct RopeTensor {
    /// `[tokens, heads, head_dim]`
    pub x: Addr,
    /// Stride of x: number of elements from one token to the next.
    pub x_stride: u32,
    /// The result, `[tokens, heads, head_dim]`; the kernel writes it.
    pub y: Addr,
    /// Stride of y: number of elements from one token to the next.
    pub y_stride: u32,
    /// Number of heads.
    pub heads: u32,
}

/// The rotation that a launch applies to all of its input tensors.
#[derive(Clone, Copy, Debug)]
pub struct Rotation {
    /// f32 `[tokens, head_dim / 2]`
    pub cos: Addr,
    /// f32 `[tokens, head_dim / 2]`
    pub sin: Addr,
    /// Number of tokens.
    pub tokens: u32,
    /// Number of elements of a head; even.
    pub head_dim: u32,
    /// Whether to rotate by the negative angle, for the gradient.
    pub inverse: bool,
}

impl ApplyParams {
    /// Returns the parameters of a launch for one to three tensors (`parts`). It rotates the first `rotated` tensors
    /// and copies the others.
    ///
    /// # Panics
    /// If there are more than three parts.
    pub fn new(rotation: &Rotation, parts: &[RopeTensor], rotated: u32) -> ApplyParams {
        assert!(parts.len() <= 3, "a launch rotates up to three parts");
        let none = RopeTensor { x: Addr::NULL, x_stride: 0, y: Addr::NULL, y_stride: 0, heads: 0 };
        let [a, b, c] = std::array::from_fn(|i| parts.get(i).copied().unwrap_or(none));
        let Rotation { cos, sin, tokens, head_dim, inverse } = *rotation;
        ApplyParams {
            x0: a.x,
            x1: b.x,
            x2: c.x,
            y0: a.y,
            y1: b.y,
            y2: c.y,
            cos,
            sin,
            heads0: a.heads,
            heads1: b.heads,
            heads2: c.heads,
            x_stride0: a.x_stride,
            x_stride1: b.x_stride,
            x_stride2: c.x_stride,
            y_stride0: a.y_stride,
            y_stride1: b.y_stride,
            y_stride2: c.y_stride,
            rotated,
            tokens,
            head_dim,
            inverse: inverse.into(),
            reserved: 0,
        }
    }

    fn parts(&self) -> [RopeTensor; 3] {
        [
            RopeTensor {
                x: self.x0,
                x_stride: self.x_stride0,
                y: self.y0,
                y_stride: self.y_stride0,
                heads: self.heads0,
            },
            RopeTensor {
                x: self.x1,
                x_stride: self.x_stride1,
                y: self.y1,
                y_stride: self.y_stride1,
                heads: self.heads1,
            },
            RopeTensor {
                x: self.x2,
                x_stride: self.x_stride2,
                y: self.y2,
                y_stride: self.y_stride2,
                heads: self.heads2,
            },
        ]
    }

    /// Returns the number of groups of up to [`HEADS`] heads in all input tensors together.
    fn groups(&self) -> u32 {
        self.parts().iter().map(|part| part.heads.div_ceil(HEADS)).sum()
    }
}

kernel_folder! {
    name: "rope",
    params: [TableParams, ApplyParams],
    traffic: traffic_launches,
}

kernel!(pub TABLE, "rope_table_f32", TableParams, cpu::cos_sin_table, &SOURCE, |p, _| plan_table(p));
kernel!(pub APPLY_F32, "rope_apply_f32", ApplyParams, cpu::apply::<f32>, &SOURCE, |p, _| plan_apply("rope_apply_f32", p, 4));
kernel!(pub APPLY_BF16, "rope_apply_bf16", ApplyParams, cpu::apply::<half::bf16>, &SOURCE, |p, _| plan_apply("rope_apply_bf16", p, 8));

/// TOKENS is the number of tokens that a thread of the table kernel computes. HEADS is the number of heads that a
/// thread of the rotation kernel rotates. Both equal the constants in sm80.cu.
const TOKENS: u32 = 8;
const HEADS: u32 = 10;

fn plan_table(p: &TableParams) -> Vec<Stage> {
    let threads = u64::from(p.tokens.div_ceil(TOKENS)) * u64::from(p.half);
    cuh::plan_blocks("rope_table_f32", threads.div_ceil(256), 256)
}

/// Plans the grid of the rotation; `vector` is the number of elements in 16 bytes.
fn plan_apply(symbol: &'static str, p: &ApplyParams, vector: u32) -> Vec<Stage> {
    let half = p.head_dim / 2;
    let chunks = if half.is_multiple_of(vector) { half / vector } else { half };
    let threads = u64::from(p.tokens) * u64::from(p.groups()) * u64::from(chunks);
    cuh::plan_blocks(symbol, threads.div_ceil(256), 256)
}

/// Returns the launch that computes the table of cosines and sines.
pub fn cos_sin_table(params: &TableParams) -> Launch {
    let n = params.tokens as f64 * params.half as f64;
    Launch::kernel(&TABLE, params, Cost { flops: 40.0 * n, bytes: 8.0 * n })
}

/// Returns the launch of the rotation; `dtype` is that of all input tensors, F32 or BF16.
pub fn apply(dtype: DType, params: &ApplyParams) -> Launch {
    let kernel = kernel_for_dtype(dtype, &APPLY_F32, &APPLY_BF16);
    let table = params.tokens as f64 * params.head_dim as f64;
    let heads = params.parts().map(|part| part.heads as f64);
    let (n, rotated) = (table * heads.iter().sum::<f64>(), heads.iter().take(params.rotated as usize).sum::<f64>());
    Launch::kernel(
        kernel,
        params,
        Cost { flops: 3.0 * table * rotated, bytes: 2.0 * n * dtype.size() as f64 + 4.0 * table },
    )
}

/// Returns shapes (tokens, heads, head_dim, largest position) that the checks use.
pub fn test_cases_tokens_heads_head_dim_max_position() -> Vec<(usize, usize, usize, i32)> {
    vec![(1, 1, 2, 7), (17, 3, 12, 100), (65, 14, 64, 100_000), (130, 4, 80, 3000), (33, 2, 256, 2_000_000_000)]
}
