//! Where the finished lines of a prediction run go: the predictions file with a progress bar, or nowhere.

use std::time::Instant;

use reel_train::runs::reporting::progress::Progress;
use serde::Serialize;

use crate::error::{Error, Kind, Result};
use crate::predict::file::PredictionFile;

/// The result of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PredictionSummary {
    /// Number of rows with a line in the predictions file, including rows of an earlier run that this run continued.
    pub rows: usize,
    /// Number of rows that an earlier run had written.
    pub resumed_after: usize,
    /// Number of rows that got a line with an error instead of an output.
    pub errors: usize,
    /// The error of the first row with an error.
    pub first_error: Option<String>,
    /// Number of tokens that this run generated, on all ranks.
    pub completion_tokens: u64,
    /// Seconds from the start of this run to its last line.
    pub seconds: f64,
    /// Rows of this run per second.
    pub rows_per_second: f64,
    /// Tokens that this run generated per second.
    pub tokens_per_second: f64,
}

impl PredictionSummary {
    /// The summary of a run that found `resumed_after` lines in `file`, then answered `answered` rows and generated
    /// `tokens` tokens in `seconds`.
    fn new(file: &PredictionFile, resumed_after: usize, answered: usize, tokens: u64, seconds: f64) -> Self {
        let (errors, first_error) = file.error_count_and_first_error();
        Self {
            rows: file.line_count(),
            resumed_after,
            errors,
            first_error: first_error.map(String::from),
            completion_tokens: tokens,
            seconds,
            rows_per_second: answered as f64 / seconds.max(1e-9),
            tokens_per_second: tokens as f64 / seconds.max(1e-9),
        }
    }

    /// Returns the summary if an earlier run has written all rows, so that nothing is left to do; else `None`.
    pub fn of_complete_file(file: &PredictionFile) -> Option<Self> {
        file.is_complete().then(|| Self::new(file, file.line_count(), 0, 0, 0.0))
    }
}

/// The destination of finished lines.
pub(super) trait LineSink {
    /// Accepts the line of a row; rows come in any order. `error` is the row's error if it could not be answered.
    ///
    /// # Errors
    /// The line cannot be written.
    fn write_line(&mut self, row: usize, line: Vec<u8>, error: Option<String>) -> Result<()>;

    /// Reports progress after each decode step. `tokens` is the number of tokens that the loop has generated so far.
    fn step_done(&mut self, tokens: u64);
}

/// The predictions file and the progress of a run.
pub(super) struct FileWithProgress {
    pub(super) file: PredictionFile,
    progress: Progress,
    begun: Instant,
    /// Number of lines that the predictions file had at the start of the run.
    resumed_after: usize,
    /// Number of rows that had no line at the start of the run.
    missing: usize,
}

impl FileWithProgress {
    /// Creates the predictions file, or opens an incomplete file to continue it.
    pub(super) fn begin(mut file: PredictionFile, quiet: bool) -> Result<Self> {
        let (begun, resumed_after, missing) = (Instant::now(), file.line_count(), file.rows_without_line().len());
        file.create_or_continue()?;
        let progress = Progress::for_rows(quiet, file.settings().row_count() as u64, file.line_count() as u64);
        Ok(Self { file, progress, begun, resumed_after, missing })
    }

    /// Gives the complete predictions file its final name. `tokens` is the number of tokens that the run has
    /// generated.
    pub(super) fn finish(mut self, tokens: u64) -> Result<PredictionSummary> {
        self.file.finish()?;
        let seconds = self.begun.elapsed().as_secs_f64();
        Ok(PredictionSummary::new(&self.file, self.resumed_after, self.missing, tokens, seconds))
    }
}

impl LineSink for FileWithProgress {
    fn write_line(&mut self, row: usize, line: Vec<u8>, error: Option<String>) -> Result<()> {
        self.file.write_line(row, line, error).map(drop)
    }

    fn step_done(&mut self, tokens: u64) {
        let rate = tokens as f64 / self.begun.elapsed().as_secs_f64().max(1e-9);
        self.progress.show_rows(self.file.line_count() as u64, rate, self.file.error_count_and_first_error().0);
    }
}

impl Drop for FileWithProgress {
    fn drop(&mut self) {
        self.progress.finish();
    }
}

/// Discards lines, on ranks other than 0 of a divided model. Rank 0 computes the same lines and writes them.
pub(super) struct DiscardedLines;

impl LineSink for DiscardedLines {
    fn write_line(&mut self, _row: usize, _line: Vec<u8>, _error: Option<String>) -> Result<()> {
        Ok(())
    }

    fn step_done(&mut self, _tokens: u64) {}
}

/// Whether an error says that a run was interrupted.
pub(super) fn is_interruption(e: &Error) -> bool {
    matches!(e.kind, Kind::Interrupted | Kind::Stopped)
}
