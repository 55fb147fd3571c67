//! Qwen2.5-VL: what a model folder holds (config, weights, tokenizer, chat template), how a conversation becomes the model's inputs,
//! and the model itself; beside it SigLIP, which judges. A folder is read as the hub publishes it; nothing is converted.

pub mod batch;
pub mod checkpoint;
pub mod config;
pub mod error;
pub mod features;
pub mod hub;
pub mod init;
pub mod input;
mod linear;
pub mod lora;
pub mod qwen2_5_vl;
mod residual;
pub mod save;
pub mod siglip;
pub mod text;
pub mod vision;
pub mod weights;

pub use error::{ModelError, Result};
