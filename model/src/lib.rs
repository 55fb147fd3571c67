//! Qwen2.5-VL: what a model folder holds (config, weights, tokenizer, chat template), how a conversation becomes the model's inputs,
//! and the model itself. A folder is read as the hub publishes it; nothing is converted.

pub mod checkpoint;
pub mod config;
pub mod error;
pub mod input;
pub mod save;

pub use error::{ModelError, Result};

#[path = "../../runtime/src/device/mapped_file.rs"]
pub mod mapped_file;
