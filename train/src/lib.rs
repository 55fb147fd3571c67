//! Training: rows of a data file become packed micro-batches, their losses gradients, the gradients new weights and the
//! weights a model folder. Everything that a run does follows from its options, its data and its seed, so that a run can
//! be stopped at any point and goes on to the same bits.

pub mod data;
mod error;
pub mod options;
pub mod plan;
pub mod reporting;
pub mod rollout;
pub mod run;
pub mod run_folder;
pub mod step;
#[cfg(test)]
mod testing;

pub use error::{Result, TrainError};
pub use options::config_file;
pub use options::{GrpoOptions, SftOptions};
pub use run::{grpo, replay, sft};
