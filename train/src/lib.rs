//! Training of Qwen2.5-VL and Qwen3-VL: the steps of supervised fine-tuning ([`step::sft`]) and of GRPO
//! ([`step::grpo`]), and the rollouts on which GRPO steps train ([`rollout`]). A step is a function of its samples, the
//! weights and the seed.
//! [`runs`] manages the run around the steps: output folder, checkpoints, logs, resuming and replay.
//!
//! Read `step/sft.rs` and `step/grpo.rs` first.

pub mod exchange;
pub mod file_names;
pub mod hardware_metrics;
pub mod metrics;
pub mod options;
pub mod rollout;
pub mod runs;
pub mod setup;
pub mod step;
pub mod tensor_bytes;

pub use options::{GrpoOptions, SftOptions};
pub use reel_support::error::{self, Result};
pub use setup::RunSetup;
