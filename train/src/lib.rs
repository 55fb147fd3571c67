//! Training of Qwen2.5-VL: supervised fine-tuning ([`sft`]) and GRPO ([`grpo`]). Rows of a data file become packed
//! micro-batches, these give a loss and gradients, and the updated weights become a model folder. A run is a function
//! of its options, data and seed: it can be stopped at any point, and a resumed run has the bits of an uninterrupted
//! one. Read `step/sft.rs` and `step/grpo.rs` first, then `run/mod.rs`. [`predict`] generates completions of the rows
//! of a data file.

pub mod data;
mod error;
pub mod files;
pub mod live_server;
pub mod metrics;
pub mod options;
pub mod plan;
pub mod predict;
pub mod reporting;
pub mod rollout;
pub mod run;
pub mod run_folder;
pub mod setup;
pub mod step;
#[cfg(test)]
mod testing;

pub use error::{Result, SkipCause, TrainError};
pub use options::config_file;
pub use options::{GrpoOptions, SftOptions};
pub use run::{grpo, replay, sft};
pub use setup::RunSetup;
