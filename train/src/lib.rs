//! Training: rows of a data file become packed micro-batches, their losses gradients, the gradients new weights and the
//! weights a model folder. Everything that a run does follows from its options, its data and its seed, so that a run can
//! be stopped at any point and goes on to the same bits.

pub mod best;
pub mod checkpoint;
pub mod config_file;
pub mod data;
pub mod digest;
mod error;
pub mod events;
pub mod feed;
pub mod grpo;
pub mod hashes;
pub mod labels;
pub mod length;
pub mod metrics;
pub mod options;
pub mod order;
pub mod output;
pub mod plan;
pub mod progress;
pub mod prompts;
pub mod protobuf;
pub mod quarantine;
pub mod recipe;
pub mod replay;
pub mod resume;
pub mod rows;
pub mod run;
pub mod sample;
pub mod sft;
pub mod siglip;
pub mod step;
#[cfg(test)]
mod testing;
pub mod trainer;
pub mod wandb;
pub mod watch;

pub use error::{Result, TrainError};
pub use options::{GrpoOptions, SftOptions};
