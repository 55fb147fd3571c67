//! The ops: functions on tensors. Each op checks shapes, launches a kernel, and records its backward rule, all in one
//! file. An op fails if shapes or dtypes do not match or the device is out of memory; the docs name further conditions.
//!
//! Letters in shapes: `S` is the number of tokens of all packed sequences, `N` the number of patches, `H` the hidden
//! size, `V` the vocabulary size, `D` head_dim. A test compares the backward rule of every op in
//! [`OPS_WITH_BACKWARD`] with finite differences. [`super::cx`] shows the form of an op.

mod activation;
mod add;
mod attention;
mod decode;
mod embedding;
mod grpo_loss;
mod layer_norm;
mod linear;
mod linear_log_prob;
mod lora_rows;
mod loss;
mod norm;
mod packed;
mod patch_embedding;
mod quantized;
mod rotary;
mod rows;
mod sampling;
mod siglip;
mod skinny;
#[cfg(test)]
mod tests;
mod weighted_rows;

pub use super::tape::fill_zero;
pub use activation::{gelu, gelu_tanh, swiglu};
pub use add::add;
pub use attention::{
    CuSeqlens, HeadNorms, KvDestination, KvPages, SequencePages, UnrotatedRows, attention, copy_kv_blocks,
    paged_attention, rotate_and_cache,
};
pub use decode::{DecodeRows, DecodeSlot};
pub use embedding::{embedding, embedding_with_vision_tokens};
pub use grpo_loss::{EntropyTerm, GrpoInputs, RatioLevel, SamplingCorrection, grpo_loss};
pub use layer_norm::layer_norm;
pub use linear::{Lora, linear, linear_swiglu, lora_linear, matmul, swiglu_linear};
pub use linear_log_prob::{linear_log_prob, linear_log_prob_with_entropy, max_logit_rows};
pub use lora_rows::{LoraStack, RowAdapters};
pub use loss::{log_prob, weighted_sum};
pub use norm::{patch_merge, rms_norm, rms_norm_add, rms_norm_branch};
pub use packed::PackedWeight;
pub use patch_embedding::{DeviceFrames, PatchingParams, patch_embedding};
pub use quantized::{QuantizedMatrix, ScaleBlocks};
pub use rotary::{RotaryFrequencies, RotaryTable, apply_rotary, rotary_table, split_and_rotate};
pub use rows::{add_rows, gather_rows};
pub use sampling::{RowSampling, SampledTokens, SamplingParams, SamplingTable, TokenHistory, sample};
pub use siglip::{add_position_embeddings, normalise_rows, pool_attention};
pub use skinny::{
    DecodeWeight, InputNorm, skinny_linear, skinny_linear_with_row_adapters, skinny_logits, skinny_lora_linear,
    skinny_qkv, skinny_swiglu,
};
pub use weighted_rows::{RowLists, weighted_rows};

use reel_device::DType;

use super::cx::Cx;
use super::{Tensor, format_shape};
use crate::error::{Result, shape_error};

/// The names of all ops with a backward rule.
pub const OPS_WITH_BACKWARD: [&str; 24] = [
    "add",
    "add_rows",
    "attention",
    "embedding",
    "embedding_with_vision_tokens",
    "gather_rows",
    "gelu",
    "gelu_tanh",
    "grpo_loss",
    "layer_norm",
    "linear",
    "linear_log_prob",
    "lora_linear",
    "patch_embedding",
    "patch_merge",
    "rms_norm",
    "rms_norm_add",
    "rms_norm_branch",
    "rotary",
    "split_and_rotate",
    "swiglu",
    "swiglu_linear",
    "weighted_rows",
    "weighted_sum",
];

/// Returns an error if a training pass needs the gradient of an operand; `op` has no backward rule.
fn refuse_gradients(cx: &Cx, op: &'static str, operands: &[&Tensor]) -> Result<()> {
    if cx.is_training() && operands.iter().any(|x| x.needs_grad()) {
        return Err(shape_error(op, "an operand needs a gradient, which this op has no rule for; freeze the weights"));
    }
    Ok(())
}

/// Returns an error unless `x` has the dtype `dtype`.
fn want_dtype(op: &'static str, what: &str, x: &Tensor, dtype: DType) -> Result<()> {
    if x.dtype() == dtype {
        return Ok(());
    }
    Err(shape_error(op, format!("{what} has dtype {}, expected {dtype}", x.dtype())))
}

/// Returns an error unless `x` has the shape `shape`; `cause` is the likely cause for the message.
fn want_shape(op: &'static str, what: &str, x: &Tensor, shape: &[usize], cause: &str) -> Result<()> {
    if x.shape() == shape {
        return Ok(());
    }
    let cause = if cause.is_empty() { String::new() } else { format!(" ({cause})") };
    Err(shape_error(
        op,
        format!("{what} has shape {}, expected {}{cause}", format_shape(x.shape()), format_shape(shape)),
    ))
}

/// Returns an error unless two tensors have equal shape and dtype.
fn want_alike(op: &'static str, names: (&str, &str), a: &Tensor, b: &Tensor) -> Result<()> {
    want_shape(op, names.1, b, a.shape(), &format!("the shape of {}", names.0))?;
    want_dtype(op, names.1, b, a.dtype())
}

/// The size of x as a matrix: the product of all dimensions but the last, and the last dimension.
fn rows_cols(op: &'static str, what: &str, x: &Tensor) -> Result<(usize, usize)> {
    match x.shape() {
        [] => Err(shape_error(op, format!("{what} has no dimensions"))),
        [rows @ .., cols] => Ok((rows.iter().product(), *cols)),
    }
}

/// Converts a size to u32, as kernel parameters need it.
fn size(op: &'static str, n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| shape_error(op, format!("size {n} is larger than a kernel supports (2^32 - 1)")))
}
