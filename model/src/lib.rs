//! Qwen2.5-VL: reads a model folder (config, weights, tokenizer, chat template), turns a conversation into the model's
//! input, and runs the model. Also SigLIP, the reward model of the semantic reward. Model folders are read as the hub
//! publishes them, without conversion.
//!
//! Read [`input`] for the way from messages to [`input::ModelInput`], [`batch`] for packing, and [`qwen2_5_vl`] for the
//! forward pass.

pub mod batch;
pub mod checkpoint;
pub mod chunked_prompt;
pub mod config;
pub mod error;
pub mod features;
pub mod hub;
pub mod init;
pub mod input;
mod linear;
pub mod linear_weight;
pub mod lora;
pub mod network;
pub mod qwen2_5_vl;
mod residual;
pub mod save;
pub mod siglip;
pub mod text;
mod tokenizer_json;
pub mod vision;
pub mod weights;

pub use error::{ModelError, Result};

/// The id of a token, which is the index of its row in the embedding table.
pub type TokenId = u32;
