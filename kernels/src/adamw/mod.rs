//! AdamW with torch's order of operations (Loshchilov and Hutter, arXiv 1711.05101), on f32 weights or on bf16
//! weights with an exact f32 master.
//!
//! With `g' = g · factor`: `w ← w (1 − lr · wd)`; `m ← m + (1 − β₁)(g' − m)`; `v ← β₂ v + (1 − β₂) g'²`; `w ← w − (lr
//! / bias1) · m / (√v / √bias2 + eps)` with `bias = 1 − βᵗ`. m, v, g are f32 `[n]`.
//!
//! **Split master weights.** `hi` is the f32 master rounded to bf16, ties away from zero; `low` is the signed 16-bit
//! remainder. So `master_bits = (hi << 16) + low` is exact for every finite f32, and the model reads `hi` as its
//! weight. (Ties to even would not be invertible: one remainder would stand for two masters.) A master within half a
//! bf16 step of f32's largest number gets an infinite `hi`. A NaN becomes the quiet NaN.
//!
//! **Small moments.** Moments may be bf16 or 8 bits, with either form of weights. A step widens them exactly, updates
//! them as above, computes w from the unrounded moments, and rounds them stochastically: up with probability (x −
//! below) / (above − below), so that the mean over random bits is the number itself. One call of Philox serves both
//! moments of eight weights: weights 8 k .. 8 k + 4 take its four words at index k of the stream, and the four after
//! them the same words mixed (`z ← z xor z ≫ 16`, `z ← z · 0x7feb352d`, `z ← z xor z ≫ 15`, from Wellons' lowbias32).
//! The lower half of a weight's word is for m, the upper half for v. Mixing is invertible, so each draw is uniform.
//! - bf16: m and v are bf16 `[n]`.
//! - 8 bits, in blocks of [`WEIGHTS_PER_SCALE`] weights with one scale each: `m = scale · sign(c) · (c / 127)²` with
//!   an i8 code c, `v = scale · (c / 255)⁴` with a u8 code c. The scale is the block's largest magnitude. Codes are
//!   denser near 0: the least nonzero m is 6e-5 of the largest, the least v 2e-10. A NaN makes its whole block NaN.
//!
//! Numerics: every operation of the first formula rounds to f32 once, as do decay, step size and √bias2, which are
//! computed in f64. Stochastic rounding has no bias: over 2²⁰ samples the mean equals the number within 4σ.
//!
//! One launch updates all parameters: tables have the addresses of their weights, moments and gradients, and a list has
//! their chunks of [`WEIGHTS_PER_CHUNK`] weights (`launch/table.rs`).
//!
//! Bound: memory; 28 bytes per weight, 20 with bf16 moments, 16 with 8-bit moments.

pub(crate) mod check;
mod cpu;
mod examples;
mod formula;
mod small;

pub use cpu::{from_bf16_and_remainder, to_bf16_and_remainder};

use half::bf16;
use reel_device::launch::{AddressTable, ArrayEntry, CType, Chunk, kernel_for_dtype};
use reel_device::{Addr, Cost, DType, Launch, kernel, params};

use crate::cuh;
use crate::folder::kernel_folder;

params! {
    /// The scalars of an AdamW step. [`StepHyperparameters::step_numbers`] computes them.
    pub struct StepNumbers {
        /// Learning rate.
        pub lr: f32,
        /// β₁
        pub beta1: f32,
        /// β₂
        pub beta2: f32,
        /// eps, added to the square root of the second moment.
        pub eps: f32,
        /// Decoupled weight decay.
        pub weight_decay: f32,
        /// 1 − β₁ᵗ
        pub bias1: f32,
        /// 1 − β₂ᵗ
        pub bias2: f32,
        /// 1 − β₁, computed in f64 and rounded to f32. Computing it from β₁ in f32 would give a relative error of 1e-7
        /// (for 1 − β₂: 5e-5).
        pub rest1: f32,
        /// 1 − β₂, computed in f64 and rounded to f32.
        pub rest2: f32,
        /// 0
        pub reserved: u32,
    }
}

impl CType for StepNumbers {
    const NAME: &'static str = "StepNumbers";
}

params! {
    /// An entry of the table of model parameters: the addresses of the weights and the optimizer state of a parameter,
    /// or of a part of one. All arrays begin with the first weight of the part.
    pub struct ParameterEntry {
        /// f32 `[n]`, or bf16 `[n]` (the high halves of the master weights); updated.
        pub w: Addr,
        /// i16 `[n]`, the low halves of the master weights, updated; null with f32 weights.
        pub low: Addr,
        /// First moment: f32, bf16 or i8 `[n]`, updated.
        pub m: Addr,
        /// Second moment: f32, bf16 or u8 `[n]`, updated.
        pub v: Addr,
        /// f32 `[ceil(n / WEIGHTS_PER_SCALE), 2]`, scales of m and v, updated; null without 8-bit moments.
        pub scales: Addr,
        /// Number of weights.
        pub n: u64,
        /// Number of the parameter's weights before the part, a multiple of [`WEIGHTS_PER_SCALE`]; 0 for a whole
        /// parameter. The random bits of a weight depend on its index in the parameter, so updating a parameter in
        /// parts gives the same bits as updating it whole.
        pub first: u64,
    }
}

params! {
    /// The values of one model parameter that change from step to step: the random stream and the scalars.
    pub struct StepEntry {
        /// Number of the Philox stream of the random bits of stochastic rounding. Every parameter and step uses a
        /// different stream.
        pub stream: u64,
        /// The scalars of the step.
        pub numbers: StepNumbers,
    }
}

params! {
    /// Arguments of the kernel that does one AdamW step of all model parameters.
    pub struct Params {
        /// Table of [`ParameterEntry`], `[parameters]`.
        pub parameters: Addr,
        /// Table of [`ArrayEntry`], `[parameters]`: the gradients, f32 `[n]` each. A parameter whose gradient is null
        /// does not change.
        pub gradients: Addr,
        /// [`StepEntry`] `[parameters]`
        pub steps: Addr,
        /// `launch::Chunk` `[chunk_count]`: the model parameters, divided into chunks of [`WEIGHTS_PER_CHUNK`] weights.
        pub chunks: Addr,
        /// f32 `[2]`: gradient norm and clipping factor, as `reduce::clip` writes them; null: factor 1.
        pub clip: Addr,
        /// Seed of the random bits that stochastic rounding uses.
        pub seed: u64,
        /// Number of chunks.
        pub chunk_count: u64,
    }
}

/// Number of weights of a chunk, which one block of threads updates.
pub const WEIGHTS_PER_CHUNK: usize = 16 * 1024;

/// Number of weights whose 8-bit moments share a scale.
pub const WEIGHTS_PER_SCALE: usize = 256;

/// Hyperparameters of a step in f64, from which [`StepHyperparameters::step_numbers`] computes kernel parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepHyperparameters {
    /// Learning rate.
    pub lr: f64,
    /// β₁, for example 0.9.
    pub beta1: f64,
    /// β₂, for example 0.999.
    pub beta2: f64,
    /// eps, added to the square root of the second moment, for example 1e-8.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// The step's number, counted from 1.
    pub step: u64,
}

impl StepHyperparameters {
    /// Computes the scalars of the step in f64 and rounds each to f32.
    pub fn step_numbers(&self) -> StepNumbers {
        let bias = |beta: f64| (1.0 - beta.powf(self.step as f64)) as f32;
        StepNumbers {
            lr: self.lr as f32,
            beta1: self.beta1 as f32,
            beta2: self.beta2 as f32,
            eps: self.eps as f32,
            weight_decay: self.weight_decay as f32,
            bias1: bias(self.beta1),
            bias2: bias(self.beta2),
            rest1: (1.0 - self.beta1) as f32,
            rest2: (1.0 - self.beta2) as f32,
            reserved: 0,
        }
    }
}

params! {
    /// Parameters of [`split_master`], which makes a split master copy.
    pub struct SplitParams {
        /// bf16 `[n]`
        pub src: Addr,
        /// bf16 `[n]`, written; may be `src` itself.
        pub w: Addr,
        /// i16 `[n]`, written.
        pub low: Addr,
        /// Number of weights.
        pub n: u64,
    }
}

kernel_folder! {
    name: "adamw",
    params: [StepNumbers, ParameterEntry, ArrayEntry, StepEntry, Chunk, Params, SplitParams],
    traffic: traffic_launches,
}

kernel!(pub STEP_F32, "adamw_f32", Params, cpu::step::<cpu::PlainWeights>, &SOURCE, |p, _| cuh::plan_chunks("adamw_f32", p.chunk_count));
kernel!(pub STEP_BF16, "adamw_bf16", Params, cpu::step::<cpu::SplitWeights>, &SOURCE, |p, _| cuh::plan_chunks("adamw_bf16", p.chunk_count));
kernel!(pub STEP_BF16_MOMENTS_F32, "adamw_bf16_moments_f32", Params, small::step_bf16_moments::<small::PlainWeights>, &SOURCE, |p, _| cuh::plan_chunks("adamw_bf16_moments_f32", p.chunk_count));
kernel!(pub STEP_BF16_MOMENTS_BF16, "adamw_bf16_moments_bf16", Params, small::step_bf16_moments::<small::SplitWeights>, &SOURCE, |p, _| cuh::plan_chunks("adamw_bf16_moments_bf16", p.chunk_count));
kernel!(pub STEP_8BIT_F32, "adamw_8bit_f32", Params, small::step_8bit::<small::PlainWeights>, &SOURCE, |p, _| cuh::plan_chunks("adamw_8bit_f32", p.chunk_count));
kernel!(pub STEP_8BIT_BF16, "adamw_8bit_bf16", Params, small::step_8bit::<small::SplitWeights>, &SOURCE, |p, _| cuh::plan_chunks("adamw_8bit_bf16", p.chunk_count));
kernel!(pub SPLIT_BF16, "split_master_bf16", SplitParams, cpu::split, &SOURCE, |p, _| cuh::plan_elementwise("split_master_bf16", p.n));

/// The tables of a step.
#[derive(Clone, Debug)]
pub struct StepTables {
    /// The table of model parameters; its entries are [`ParameterEntry`].
    pub parameters: AddressTable,
    /// The table of gradients; its entries are [`ArrayEntry`].
    pub gradients: AddressTable,
}

/// The storage type of the moments that a step reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moments {
    /// f32
    F32,
    /// bf16
    Bf16,
    /// 8-bit codes with scales.
    Int8,
}

/// Launches one step of all parameters whose weights have this dtype: F32, or BF16 with low halves. Parameters of
/// another dtype or without a gradient do not change. `weights` is the number of weights that change.
pub fn step(dtype: DType, moments: Moments, params: &Params, tables: StepTables, weights: u64) -> Launch {
    let n = weights as f64;
    let (kernel, flops, bytes) = match moments {
        Moments::F32 => (kernel_for_dtype(dtype, &STEP_F32, &STEP_BF16), 16.0, 28.0),
        Moments::Bf16 => (kernel_for_dtype(dtype, &STEP_BF16_MOMENTS_F32, &STEP_BF16_MOMENTS_BF16), 16.0, 20.0),
        Moments::Int8 => {
            (kernel_for_dtype(dtype, &STEP_8BIT_F32, &STEP_8BIT_BF16), 40.0, 16.0 + 16.0 / WEIGHTS_PER_SCALE as f64)
        }
    };
    let tables = vec![("parameters", tables.parameters), ("gradients", tables.gradients)];
    Launch::kernel_with_tables(kernel, params, Cost { flops: flops * n, bytes: bytes * n }, tables)
}

/// Splits bf16 weights into bf16 high halves, the weights themselves, and 16-bit low halves, which are 0.
pub fn split_master(params: &SplitParams) -> Launch {
    Launch::kernel(&SPLIT_BF16, params, Cost { flops: 0.0, bytes: 6.0 * params.n as f64 })
}

/// Returns the bytes of a [`StepEntry`] as 32-bit words, for benchmarks.
pub(crate) fn example_step_words() -> Vec<u32> {
    let scalars = StepHyperparameters { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, step: 2 };
    bytemuck::cast_slice(&[StepEntry { stream: 0, numbers: scalars.step_numbers() }]).to_vec()
}

/// Returns the numbers of weights that the checks use.
pub fn test_weight_counts() -> Vec<usize> {
    vec![0, 1, 17, 8191, 3 * 8192 + 5]
}

/// Type of the high half of a split weight. The model reads this half.
pub(crate) type SplitWeightHighHalf = bf16;
