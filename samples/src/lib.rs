//! From a data file to micro-batches of samples: rows are parsed, checked, ordered, turned into tokens and grouped.
//! No device is needed. Read [`rows`] for the fields of a row, [`sample`] for the training sample of a row, and [`feed`]
//! for the micro-batches. [`conversations`] has the rows as prompts, for predictions and curation; [`inspect`] checks
//! and describes data files.

pub mod conversations;
pub mod dataset;
mod error;
pub mod feed;
pub mod inspect;
pub mod labels;
pub mod length;
mod media_columns;
pub mod media_files;
pub mod order;
pub mod quarantine;
pub mod reward_columns;
pub mod rows;
pub mod sample;
pub mod skipped_row;
pub mod source;
pub mod token_limit;

pub use error::{Result, SampleError, SkipCause, error_if_stopped};
