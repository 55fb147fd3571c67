//! Checks the data before the first step: finds the rows that cannot be used, and the number of steps of the run.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::Result;
use crate::options::TrainingOptions;
use crate::setup::RunSetup;
use rayon::{ThreadPool, ThreadPoolBuilder};
use reel_samples::feed::SampleSource;
use reel_samples::length::{self, RowsToScan};
use reel_samples::order::RowOrder;
use reel_samples::quarantine::ScanJournal;
use reel_samples::skipped_row::SkippedRow;
use reel_samples::source::row_order;

use super::{TrainLoop, ValidationCheckResult, agreement};
use crate::runs::folder::resume;

/// The result of `--check-data`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataCheckResult {
    /// Number of rows of the data.
    pub rows: usize,
    /// Number of rows that cannot be used.
    pub bad: usize,
    /// The file that lists the unusable rows.
    pub list: PathBuf,
    /// The result for the rows of `--eval-file`, if the option is given.
    pub validation: Option<ValidationCheckResult>,
}

/// Checks every row including its media and writes the list of unusable rows, without training.
pub fn check_data<'a, W: TrainLoop<'a>>(setup: &RunSetup<'a, W::Options>) -> Result<DataCheckResult> {
    setup.options.validate()?;
    let rows = Arc::new(W::open_rows(setup.options, &setup.data)?);
    agreement::check_files(setup, &*rows, None)?;
    let order = row_order(true, &*rows, setup.data.seed);
    let unusable = scan_rows::<W>(setup, &rows, &order, Vec::new())?.unusable;
    let list = setup.options.quarantine_list_path();
    Ok(DataCheckResult { rows: rows.row_count(), bad: unusable.len(), list, validation: None })
}

/// What a run finds out about its data before the first step.
pub(super) struct ScannedRows {
    /// The run's number of steps: `--max-steps` or, without it, the number computed from the data.
    pub steps: u64,
    /// All unusable rows if the command reads every row before the first step, else the rows in `known` of
    /// [`scan_rows`].
    pub unusable: Vec<SkippedRow>,
    /// The number of tokens of each usable row if the command reads every row before the first step, else empty.
    pub lengths: BTreeMap<usize, usize>,
}

/// Computes the run's number of steps. Reads every row before the first step if the command requires it. `known` are
/// the rows that are known to be unusable.
pub(super) fn scan_rows<'a, W: TrainLoop<'a>>(
    setup: &RunSetup<'a, W::Options>,
    rows: &Arc<W::DataSource>,
    order: &RowOrder,
    known: Vec<SkippedRow>,
) -> Result<ScannedRows> {
    let options = setup.options;
    let batching = W::batching(options, order.rows_per_pass());
    let fixed = options.requested_step_count();
    let every = W::must_scan_all_rows(options);
    if every && !setup.reports.quiet {
        reel_support::diagnostic::note!("checking {} rows", rows.row_count());
    }
    let scan = match every {
        true if options.check_data => {
            // Only rank 0 writes the list of unusable rows.
            let journal = match setup.control.is_rank_0() {
                true => {
                    let fingerprint = resume::data_check_fingerprint(setup, &**rows)?;
                    let list = options.quarantine_list_path();
                    Some(Box::new(ScanJournal::open(&list, &fingerprint, setup.reports.quiet)?))
                }
                false => None,
            };
            RowsToScan::Checking(journal)
        }
        true => RowsToScan::AllBut(&known),
        false => RowsToScan::None,
    };
    let (stop, ranks) = setup.control.stop_and_ranks();
    let scan = || length::scan_and_count_batches(&batching, fixed.is_none(), scan, rows, order, stop, ranks);
    let found = match ranks.and_then(|ranks| thread_pool_of_one(ranks.world().local_size)) {
        Some(threads) => threads.install(scan)?,
        None => scan()?,
    };
    let unusable = if every { found.skipped } else { known };
    let steps = fixed.unwrap_or_else(|| W::step_count(options, found.batches));
    Ok(ScannedRows { steps, unusable, lengths: found.lengths })
}

/// Returns a thread pool for one of the `processes` processes on this machine, with its share of the CPU cores;
/// `None` if the threads cannot be started.
fn thread_pool_of_one(processes: usize) -> Option<ThreadPool> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    ThreadPoolBuilder::new().num_threads((cores / processes).max(1)).build().ok()
}
