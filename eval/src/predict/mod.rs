//! Predictions: completions of every row of a data file, written to a file that `reel eval --score-only` reads.
//!
//! ```text
//! until each row has a line:
//!     for each next row in file order, while the batch has room and other threads have decoded the row's media:
//!         add the row's prompt to the batch
//!     do one decode step over the batch
//!     for each row whose completions are all finished:
//!         write the row with its output to the file, as soon as all earlier rows are written
//! ```
//!
//! A row's line depends only on the row, the model and the options. It does not depend on the other rows of the
//! batch, and a run that was killed and resumed writes the same line. So several processes may share the rows: the
//! file has the same bytes as that of a single process. [`RowPrompts`] makes prompts, [`PredictionFile`] writes lines
//! and continues an unfinished file, [`PredictionOutput`] divides the rows among processes, [`PredictionRun`] is the
//! loop.

mod endpoint;
mod exchange;
mod file;
mod line;
mod output;
mod prompts;
mod requests;
mod run;
mod settings;
mod sink;
#[cfg(test)]
mod tests;

pub use endpoint::{EndpointRun, EndpointSummary};
pub use file::{ExistingOutput, PredictionFile, companion_paths};
pub use output::PredictionOutput;
pub use prompts::RowPrompts;
pub use requests::{ChatRequests, RequestVideoFormat};
pub use run::{PredictionRun, SamplingSettings};
pub use settings::{FingerprintedInput, PredictionSettings};
pub use sink::PredictionSummary;
