//! One folder a kernel: maths, shapes and limits (`mod.rs`), the definition in f64 (`formula.rs`), what the cpu device
//! runs (`cpu.rs`), what a GPU and the simulator run (`sm80.cu`) and what holds one to the other (`check.rs`).
//!
//! A kernel is launched through a [`launch::Launch`]: plain data that a device executes. Nothing here owns memory.

pub mod bench;
pub mod catalogue;
pub mod checks;
pub mod compare;
pub mod compile;
pub mod cost;
pub mod cuda;
pub mod cuh;
pub mod dtype;
pub mod launch;
pub mod limits;
pub mod simd;
pub mod simulate;
pub mod team;
pub mod view;

pub mod adamw;
pub mod advance;
pub mod attention;
pub mod block_copy;
pub mod column_sum;
pub mod columns;
pub mod elementwise;
pub mod embedding;
pub mod fingerprint;
pub mod gelu;
pub mod grpo_loss;
pub mod kv_write;
pub mod layer_norm;
pub mod linear_log_prob;
pub mod log_prob;
pub mod matmul;
pub mod merger_norm;
pub mod normalise;
pub mod paged_attention;
pub mod patch_embedding;
pub mod patches;
pub mod philox;
pub mod pool_attention;
pub mod position_add;
pub mod reduce;
pub mod rms_norm;
pub mod rope;
pub mod rows;
pub mod sample;
pub mod skinny;
pub mod swiglu;

/// Every CUDA source, in alphabetical order.
pub const SOURCES: &[&Source] = &[
    &adamw::SOURCE,
    &advance::SOURCE,
    &attention::SOURCE,
    &block_copy::SOURCE,
    &column_sum::SOURCE,
    &columns::SOURCE,
    &elementwise::SOURCE,
    &embedding::SOURCE,
    &fingerprint::SOURCE,
    &gelu::SOURCE,
    &grpo_loss::SOURCE,
    &kv_write::SOURCE,
    &layer_norm::SOURCE,
    &linear_log_prob::SOURCE,
    &log_prob::SOURCE,
    &merger_norm::SOURCE,
    &normalise::SOURCE,
    &paged_attention::SOURCE,
    &patch_embedding::SOURCE,
    &patches::SOURCE,
    &pool_attention::SOURCE,
    &position_add::SOURCE,
    &reduce::SOURCE,
    &rms_norm::SOURCE,
    &rope::SOURCE,
    &rows::SOURCE,
    &sample::SOURCE,
    &skinny::SOURCE,
    &swiglu::SOURCE,
];

pub use cost::Cost;
pub use dtype::{DType, Element};
pub use launch::{Addr, Arch, Kernel, KernelLaunch, Launch, Source, Stage};
pub use team::Team;
