//! Looking at the rows before the first step: which are left out, and how long the run is.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use rayon::prelude::*;

use super::{DataSource, RunSetup, TrainLoop, order};
use crate::data::feed::SampleSource;
use crate::data::length::{self, RowScan};
use crate::data::order::Order;
use crate::data::quarantine::{self, ScanJournal};
use crate::options::{RunOptions, TrainingOptions};
use crate::reporting::metrics::SkippedRow;
use crate::run_folder::resume;
use crate::{Result, TrainError};

/// What looking at every row told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataCheck {
    /// Rows.
    pub rows: usize,
    /// Those of them that cannot be used.
    pub bad: usize,
    /// The list of these.
    pub list: PathBuf,
}

/// Looks at every row, its media too, and writes the list of those that cannot be used; trains nothing.
pub fn check<'a, W: TrainLoop<'a>>(setup: &RunSetup<'a, W::Options>) -> Result<DataCheck> {
    setup.options.validate()?;
    let rows = Arc::new(W::open_rows(setup)?);
    let order = order(true, rows.rows(), setup.seed);
    let (_, bad) = plan_length::<W>(setup, &rows, &order, Vec::new())?;
    Ok(DataCheck { rows: rows.rows(), bad: bad.len(), list: setup.options.quarantine_list() })
}

/// Rows that are left out before any is opened, in the file's order: those that the options list, and those whose fields are wrong; in a
/// strict run the first of these is the error.
pub(crate) fn skipped_rows<R: DataSource>(options: &RunOptions, rows: &R) -> Result<Vec<SkippedRow>> {
    let line_of = |row| (row < rows.rows()).then(|| rows.location(row).1);
    let mut found = match &options.quarantine {
        Some(list) if !options.check_data => quarantine::read(list, line_of)?,
        _ => Vec::new(),
    };
    let listed: BTreeSet<usize> = found.iter().map(|bad| bad.row).collect();
    let all = || (0..rows.rows()).into_par_iter().filter(|row| !listed.contains(row));
    let fault = |row| rows.validate_row(row).err().map(|e| (row, e));
    let skipped = |(row, e): (usize, TrainError)| SkippedRow { row, line: rows.location(row).1, reason: e.to_string() };
    if options.strict {
        return all().find_map_first(fault).map_or(Ok(found), |(_, e)| Err(e));
    }
    found.extend(all().filter_map(fault).map(skipped).collect::<Vec<_>>());
    found.sort_by_key(|bad| bad.row);
    match found.first() {
        Some(first) if found.len() == rows.rows() => {
            Err(length::no_usable_row(&rows.location(first.row).0, &first.reason))
        }
        _ => Ok(found),
    }
}

/// Steps of the run, from its data where the options do not say it, and the rows that are left out: `known` ones or, where every row
/// is looked at, all that cannot be used.
pub(super) fn plan_length<'a, W: TrainLoop<'a>>(
    setup: &RunSetup<'a, W::Options>,
    rows: &Arc<W::DataSource>,
    order: &Order,
    known: Vec<SkippedRow>,
) -> Result<(u64, Vec<SkippedRow>)> {
    let options = setup.options;
    let batching = W::batching(options, rows.rows());
    let asked = options.fixed_steps();
    let every = W::must_scan_all_rows(options);
    if every && !setup.quiet {
        eprintln!("looking at {} rows", rows.rows());
    }
    let look = match every {
        true if options.check_data => {
            let list = options.quarantine_list();
            RowScan::Checking(ScanJournal::open(&list, &resume::scan(setup, &**rows)?, setup.quiet)?)
        }
        true => RowScan::AllBut(&known),
        false => RowScan::None,
    };
    let found = length::measure(&batching, asked.is_none(), look, rows, order, setup.stop)?;
    let skipped = if every { found.skipped } else { known };
    Ok((asked.unwrap_or_else(|| W::step_count(options, found.batches)), skipped))
}
