//! Training: rows of a data file become packed micro-batches, their losses gradients, the gradients new weights and the
//! weights a model folder. Everything that a run does follows from its options, its data and its seed, so that a run can
//! be stopped at any point and goes on to the same bits.

pub mod config_file;
pub mod data;
pub mod digest;
mod error;
pub mod feed;
pub mod events;
pub mod labels;
pub mod metrics;
pub mod options;
pub mod order;
pub mod progress;
pub mod prompts;
pub mod rows;

pub use error::{Result, TrainError};
pub use options::SftOptions;
