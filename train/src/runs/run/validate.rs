//! Checks the data before the first step: finds the rows that cannot be used, and the number of steps of the run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::Result;
use crate::options::{RunOptions, TrainingOptions};
use crate::setup::RunSetup;
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use reel_samples::SampleError;
use reel_samples::feed::SampleSource;
use reel_samples::length::{self, RowsToScan};
use reel_samples::order::RowOrder;
use reel_samples::quarantine::{self, ScanJournal};
use reel_samples::skipped_row::SkippedRow;
use reel_samples::source::{DataSource, row_order};

use super::{TrainLoop, agreement};
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

/// Checks every row including its media and writes the list of unusable rows, without training.
pub fn check_data<'a, W: TrainLoop<'a>>(setup: &RunSetup<'a, W::Options>) -> Result<DataCheckResult> {
    setup.options.validate()?;
    let rows = Arc::new(W::open_rows(setup)?);
    agreement::check_files(setup, &*rows, None)?;
    let order = row_order(true, &*rows, setup.seed);
    let unusable = scan_rows::<W>(setup, &rows, &order, Vec::new())?.unusable;
    let list = setup.options.quarantine_list_path();
    Ok(DataCheckResult { rows: rows.row_count(), bad: unusable.len(), list, validation: None })
}

/// Returns, in file order, the rows that are known to be unusable before media are loaded: rows in the `--quarantine`
/// list, and rows with invalid fields.
///
/// # Errors
/// No row is left for training; in a strict run, a row has wrong fields.
pub(crate) fn unusable_rows<R: DataSource>(options: &RunOptions, rows: &R) -> Result<Vec<SkippedRow>> {
    let all: Vec<usize> = (0..rows.row_count()).collect();
    let quarantine = options.quarantine.as_deref().filter(|_| !options.check_data);
    let found = unusable_rows_among(options, rows, &all, quarantine)?;
    let held_out = rows.held_out_rows();
    let of_training: Vec<&SkippedRow> = found.iter().filter(|bad| held_out.binary_search(&bad.row).is_err()).collect();
    match of_training.first() {
        Some(first) if of_training.len() == rows.row_count() - held_out.len() => {
            Err(SampleError::no_usable_row(&rows.location(first.row).0, &first.reason, false).into())
        }
        _ => Ok(found),
    }
}

/// Returns those rows of `among` (ascending row numbers) that are in the list `quarantine` or have invalid fields. In
/// a strict run, the first row with invalid fields is an error.
pub(super) fn unusable_rows_among<R: DataSource>(
    options: &RunOptions,
    rows: &R,
    among: &[usize],
    quarantine: Option<&Path>,
) -> Result<Vec<SkippedRow>> {
    let line_of = |row| (row < rows.row_count()).then(|| rows.location(row).1);
    let listed = quarantine.map(|list| quarantine::read_quarantine_list(list, line_of)).transpose()?;
    let mut found = listed.unwrap_or_default();
    found.retain(|bad| among.binary_search(&bad.row).is_ok());
    let listed: BTreeSet<usize> = found.iter().map(|bad| bad.row).collect();
    let all = || among.par_iter().copied().filter(|row| !listed.contains(row));
    let row_error = |row| rows.validate_row(row).err().map(|e| (row, e));
    let skipped = |(row, e): (usize, SampleError)| SkippedRow::new(row, rows.location(row).1, &e);
    if options.strict {
        return all().find_map_first(row_error).map_or(Ok(found), |(_, e)| Err(e.into()));
    }
    found.extend(all().filter_map(row_error).map(skipped).collect::<Vec<_>>());
    found.sort_by_key(|bad| bad.row);
    match found.first() {
        Some(first) if found.len() == among.len() => {
            Err(SampleError::no_usable_row(&rows.location(first.row).0, &first.reason, false).into())
        }
        _ => Ok(found),
    }
}

/// The maximum number of rows whose media are looked for before the model is loaded.
const MAX_ROWS_LOOKED_AT: usize = 1000;

/// Refuses data whose media files are missing, so that a wrong or missing `--media-root` is found before the model is
/// loaded. Looks at some rows, spread over the file, up to the first one whose files all exist. Malformed rows are left
/// out.
///
/// # Errors
/// Each of these rows names a media file that does not exist.
pub(super) fn refuse_missing_media<R: DataSource>(options: &RunOptions, rows: &R) -> Result<()> {
    let count = rows.row_count();
    let mut first = None;
    for row in (0..count).step_by(count.div_ceil(MAX_ROWS_LOOKED_AT).max(1)) {
        // A folder that cannot be read now is reported when the row is loaded.
        let is_missing = |path: &PathBuf| path.try_exists().is_ok_and(|exists| !exists);
        let Ok(files) = rows.media_files(row) else { continue };
        let Some(missing) = files.into_iter().find(is_missing) else { return Ok(()) };
        first.get_or_insert((row, missing));
    }
    let Some((row, missing)) = first else { return Ok(()) };
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or(path.to_path_buf());
    let (missing, root) = (absolute(&missing), absolute(&options.media_root().join(".")));
    let what = format!(
        "no row of the file can be used, because its media do not exist, such as {}; relative paths are below {}",
        missing.display(),
        root.display()
    );
    let help = "correct the paths, or give their folder by --media-root";
    Err(SampleError::data(rows.location(row).0, what, help).into())
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
    if every && !setup.quiet {
        reel_support::diagnostic::note!("checking {} rows", rows.row_count());
    }
    let scan = match every {
        true if options.check_data => {
            // Only rank 0 writes the list of unusable rows.
            let journal = match setup.ranks.is_none_or(|run| run.is_rank_0()) {
                true => {
                    let fingerprint = resume::data_check_fingerprint(setup, &**rows)?;
                    let list = options.quarantine_list_path();
                    Some(Box::new(ScanJournal::open(&list, &fingerprint, setup.quiet)?))
                }
                false => None,
            };
            RowsToScan::Checking(journal)
        }
        true => RowsToScan::AllBut(&known),
        false => RowsToScan::None,
    };
    // Several ranks can agree on `setup.stop` only between two steps.
    let (stop, ranks) = setup.ranks.map_or((setup.stop, None), |run| (run.interrupted, Some(&**run.ranks)));
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
