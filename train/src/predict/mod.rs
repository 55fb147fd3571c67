//! Predictions: completions of every row of a data file, written to a file that `reel eval --score-only` reads.
//!
//! ```text
//! for each row, in file order, while the batch has room:     media are decoded ahead of time by other threads
//!     add the row's prompt to the batch
//! one decode step; for each row whose completions are all finished:
//!     the row with its output becomes a line of the file, once the lines of all earlier rows are written
//! ```
//!
//! A row's line depends on the row, the model and the options only: not on the other rows, nor on a kill and a resume.
//! [`RowPrompts`] makes prompts, [`PredictionFile`] writes lines and continues an unfinished file, [`PredictionRun`] is
//! the loop.

mod file;
mod line;
mod prompts;
mod run;
mod settings;
#[cfg(test)]
mod tests;

pub use file::{ExistingOutput, PredictionFile, paths_beside};
pub use prompts::{RowPrompts, UnusableRows};
pub use run::{PredictionRun, PredictionSummary, SamplingSettings};
pub use settings::PredictionSettings;
