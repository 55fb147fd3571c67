//! The validation rows of `sft` (`--eval-file`, `--val-size`): prepares them and computes their loss between two steps.
//!
//! The rows are used in file order, in micro-batches like those of training. Their media are decoded ahead by
//! background threads. With several processes (ranks), micro-batch i belongs to rank i mod N.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::error::{Error, Kind, Result, RowFailureKind};
use crate::metrics::ValidationLoss;
use crate::options::SftOptions;
use crate::setup::RunControl;
use crate::step::validation::{RowLoss, ValidationLossPass, validation_loss};
use reel_samples::feed::{DataPosition, FeedRanks, MicroBatchFeed, MicroBatchOptions, RankAssignment, SampleSource};
use reel_samples::length::{self, RowsToScan};
use reel_samples::order::RowOrder;
use reel_samples::sample::SftSampleSource;
use reel_samples::skipped_row::SkippedRow;
use reel_samples::source::DataSource;
use reel_support::files::fingerprint::bytes_fingerprint;

use super::unusable_rows::unusable_rows_among;

/// Time between two progress lines.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// The result of `--check-data` for the rows of `--eval-file`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidationCheckResult {
    /// Number of validation rows.
    pub rows: usize,
    /// The rows that cannot be used, in file order.
    pub unusable: Vec<SkippedRow>,
}

impl ValidationCheckResult {
    /// Prints a note for each row that cannot be used, unless `quiet` is true.
    pub fn print_unusable(&self, quiet: bool) {
        for row in self.unusable.iter().filter(|_| !quiet) {
            reel_support::diagnostic::note!("--eval-file: {}", row.reason);
        }
    }
}

/// The validation rows of a run.
#[derive(Clone)]
pub struct ValidationRows<'a> {
    /// The option that names the rows, for messages.
    flag: &'static str,
    control: RunControl<'a>,
    source: Arc<SftSampleSource>,
    /// The row numbers in `source`, in ascending order.
    rows: Vec<usize>,
    /// Rows that are known to be unusable without loading media.
    unusable: Vec<SkippedRow>,
    batching: MicroBatchOptions,
    /// Number of threads that load images and videos.
    threads: usize,
    /// Number of rows that are prepared ahead.
    window: usize,
    fingerprint: String,
}

impl<'a> ValidationRows<'a> {
    /// Makes validation rows from the rows `rows` of a source, which the option `flag` names. `batching` says how they
    /// are grouped into micro-batches.
    ///
    /// # Errors
    /// The fields of all rows or, in a strict run, of one row cannot be used.
    pub fn new(
        options: &SftOptions,
        control: RunControl<'a>,
        source: Arc<SftSampleSource>,
        (flag, rows): (&'static str, Vec<usize>),
        batching: MicroBatchOptions,
        (threads, window): (usize, usize),
    ) -> Result<Self> {
        let is_of_data = options.eval_file.is_none();
        let quarantine = options.quarantine.as_deref().filter(|_| is_of_data);
        let unusable = unusable_rows_among(options, &*source, &rows, quarantine).map_err(|e| with_flag(e, flag))?;
        let batching = MicroBatchOptions { end: Some(rows.len() as u64), ..batching };
        let fingerprint = bytes_fingerprint(format!("{} {rows:?}", source.fingerprint()).as_bytes());
        Ok(Self { flag, control, source, rows, unusable, batching, threads, window, fingerprint })
    }

    /// Reads every row, including its media, and returns which rows are unusable. All ranks call it together and get
    /// the same result.
    ///
    /// # Errors
    /// No row or, in a strict run, one row cannot be used; the check was interrupted.
    pub fn check_rows(&self) -> Result<ValidationCheckResult> {
        let order = RowOrder::file_order(self.rows.len()).restricted_to(self.rows.iter().copied());
        let (stop, ranks) = self.control.stop_and_ranks();
        let scan = RowsToScan::Checking(None);
        let found = length::scan_and_count_batches(&self.batching, false, scan, &self.source, &order, stop, ranks)
            .map_err(|e| with_flag(e, self.flag))?;
        Ok(ValidationCheckResult { rows: self.rows.len(), unusable: found.skipped })
    }

    /// Fingerprint of the set of validation rows.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Returns a feed of the rows in micro-batches.
    pub fn feed(&self) -> MicroBatchFeed<SftSampleSource> {
        let order = RowOrder::file_order(self.rows.len()).restricted_to(self.rows.iter().copied());
        let from = DataPosition { slot: 0, skipped: self.unusable.iter().map(|row| row.row).collect() };
        let ranks = self.control.ranks.map(|run| FeedRanks {
            ranks: run.ranks.clone(),
            // All validation rows belong to a single step.
            per_step: usize::MAX,
            assignment: RankAssignment::InTurn,
        });
        MicroBatchFeed::new(self.source.clone(), order, self.batching, &from, self.threads, self.window)
            .share_among(ranks)
    }

    /// Computes the loss of all rows with the weights of `pass`, which has begun. `print` gets progress lines. All ranks
    /// call it together and get the same result.
    ///
    /// # Errors
    /// [`Kind::Stopped`] when the run was interrupted; no row can be used or has a learned token; in a strict
    /// run, a row cannot be used; the loss of a row is not finite.
    pub fn loss(&self, mut pass: ValidationLossPass, print: &dyn Fn(&str)) -> Result<ValidationLoss> {
        let (rank, size) = self.control.ranks.map_or((0, 1), |run| (run.ranks.rank(), run.ranks.size()));
        let mut feed = self.feed();
        let (mut used, mut skipped) = (Vec::new(), self.unusable.clone());
        let mut shown = Instant::now();
        print(&format!("computing the loss of {} validation rows", self.rows.len()));
        loop {
            if self.is_interrupted()? {
                return Err(Error::interrupted());
            }
            let mut micro_batches = 0;
            while micro_batches < size {
                let next = feed.next_micro_batch_or_stop(Some(self.control.stop));
                let next = next.map_err(|e| with_flag(e, self.flag))?;
                let Some(mut batch) = next else { break };
                micro_batches += 1;
                used.extend(batch.rows);
                skipped.append(&mut batch.skipped);
                if batch.rank == rank && !batch.samples.is_empty() {
                    pass.add(&batch.samples)?;
                }
            }
            if micro_batches == 0 {
                break;
            }
            pass.end_round()?;
            if shown.elapsed() >= PROGRESS_INTERVAL {
                shown = Instant::now();
                print(&format!("{} of {} validation rows", used.len() + skipped.len(), self.rows.len()));
            }
        }
        let losses: Vec<RowLoss> = pass.finish()?.concat();
        if let Some((&row, loss)) = used.iter().zip(&losses).find(|(_, loss)| !loss.sum.is_finite()) {
            return Err(self.not_finite(row, loss));
        }
        let skipped_rows: BTreeSet<usize> = skipped.iter().map(|row| row.row).collect();
        if let Some(first) = skipped.first() {
            let share = format!("{} of {} validation rows", skipped_rows.len(), self.rows.len());
            print(&format!("{share} are skipped; the first: {}", first.reason));
        }
        validation_loss(&losses, skipped_rows.len(), &self.fingerprint).ok_or_else(|| self.no_learned_token())
    }

    /// Whether any rank was interrupted. All ranks call it together and get the same result.
    fn is_interrupted(&self) -> Result<bool> {
        let Some(run) = self.control.ranks else { return Ok(self.control.stop.load(Ordering::Relaxed)) };
        let own = [u8::from(run.interrupted.load(Ordering::Relaxed))];
        let flags = run.ranks.all_gather("interruptions", &own)?;
        let is_any = flags.concat().contains(&1);
        if is_any {
            self.control.stop.store(true, Ordering::Relaxed);
        }
        Ok(is_any)
    }

    fn no_learned_token(&self) -> Error {
        let what = format!("none of the {} validation rows has a token to learn", self.rows.len());
        Error::data(self.flag, what, "give rows with answers, or leave the option out")
    }

    fn not_finite(&self, row: usize, loss: &RowLoss) -> Error {
        Error::failed(
            self.source.location(row).0,
            format!("has the validation loss {}", loss.sum),
            "look at this row; in training, lower --learning-rate: the checkpoint of this step has the weights",
        )
    }
}

/// Puts `flag` before the location of an error about the data. Without `flag`, the error would look like an error
/// about the training rows. Other errors are returned unchanged.
fn with_flag(mut e: Error, flag: &str) -> Error {
    if e.kind == Kind::Row(RowFailureKind::Data) {
        e.diagnostic.location = format!("{flag}: {}", e.diagnostic.location);
    }
    e
}
