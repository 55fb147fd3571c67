//! Qwen2.5-VL and Qwen3-VL on a device: reads the weights of a model folder, packs inputs (of the crate `reel-input`)
//! into batches, and runs the model. Also SigLIP, the reward model of the semantic reward. Model folders are read as
//! the hub publishes them, without conversion.
//!
//! Read [`batch`] for packing, and [`qwen_vl`] for the forward pass.

pub mod batch;
pub mod checkpoint;
pub mod chunked_prompt;
pub mod features;
pub mod flops;
pub mod init;
mod linear;
pub mod linear_inputs;
pub mod linear_weight;
pub mod lora;
pub mod quantization;
pub mod qwen_vl;
mod residual;
pub mod save;
pub mod siglip;
pub mod tensor_parallel;
#[cfg(test)]
mod testing;
pub mod text;
pub mod units;
pub mod vision;
pub mod weights;
pub mod widen;

pub use reel_support::error::{self, Result};
