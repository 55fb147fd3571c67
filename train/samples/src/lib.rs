//! Turns a data file into micro-batches of samples: parses, checks, orders, tokenizes and groups the rows. No GPU or
//! other device is needed. Read [`rows`] for the fields of a row, [`sample`] for the training sample of a row, and
//! [`feed`] for the micro-batches. [`conversations`] turns rows into prompts, for predictions and curation; [`inspect`]
//! checks and describes data files. [`prompts`] has the texts around a question, and [`rewards`] scores completions.

pub mod conversations;
pub mod dataset;
pub mod feed;
pub mod inspect;
pub mod labels;
pub mod length;
mod media_columns;
pub mod media_files;
pub mod order;
pub mod prompts;
pub mod quarantine;
pub mod reward_columns;
pub mod rewards;
pub mod rows;
pub mod sample;
pub mod skipped_row;
pub mod source;
pub mod token_limit;
pub mod token_runs;
mod turn_marks;

pub use feed::{error_if_stopped, no_usable_row};
pub use reel_support::error::{self, Result};
