//! Counts the micro-batches of a run before it starts, and finds the rows that cannot be used.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use reel_diagnostic::Diagnostic;
use reel_ranks::Ranks;

use crate::feed::{self, MicroBatchOptions, RowFailure, SampleSource, is_row_error};
use crate::order::RowOrder;
use crate::quarantine::{RowCheckResult, ScanJournal};
use crate::skipped_row::SkippedRow;
use crate::token_limit::check_token_count;
use crate::{Result, SampleError};

/// Result of scanning the rows: the number of micro-batches in all epochs, and the rows that cannot be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowScanResult {
    /// Number of micro-batches in all epochs; 0 if they were not counted.
    pub batches: u64,
    /// Unusable rows in file order; empty if the rows were not scanned.
    pub skipped: Vec<SkippedRow>,
    /// Number of tokens of each usable row; empty if the rows were not scanned.
    pub lengths: BTreeMap<usize, usize>,
}

/// The rows that a scan reads, with their images and videos, before the first step, to find unusable rows.
#[derive(Debug)]
pub enum RowsToScan<'a> {
    /// No rows. The number of micro-batches is then computed as if all rows were usable.
    None,
    /// All rows except these, which are already known to be unusable.
    AllBut(&'a [SkippedRow]),
    /// All rows except those that the journal of an earlier, interrupted `--check-data` lists.
    Checking(Box<ScanJournal>),
}

/// Reads the rows that `look` selects and finds the unusable ones. If `count` is true, also counts the micro-batches of
/// all epochs. Returns an error when `stop` becomes true. With several processes (`ranks`), each row is read by one of
/// them, and all return the same result.
pub fn scan_and_count_batches<S: SampleSource>(
    batching: &MicroBatchOptions,
    count: bool,
    look: RowsToScan,
    source: &Arc<S>,
    order: &RowOrder,
    stop: &AtomicBool,
    ranks: Option<&Ranks>,
) -> Result<RowScanResult> {
    if matches!(look, RowsToScan::None) {
        let batches = batching.end.map_or(0, |end| end.div_ceil(batching.rows as u64));
        return Ok(RowScanResult { batches, ..RowScanResult::default() });
    }
    let (lengths, skipped) = scan_all_rows(batching, look, source, stop, ranks)?;
    let unusable = || skipped.iter().map(|skipped| skipped.row).collect();
    let batches = match count {
        true => feed::count_micro_batches(source.clone(), order.clone(), *batching, &lengths, unusable())?,
        false => 0,
    };
    Ok(RowScanResult { batches, skipped, lengths })
}

/// Reads the rows that `look` selects. Returns the token counts of the usable rows and the list of the unusable ones.
fn scan_all_rows<S: SampleSource>(
    batching: &MicroBatchOptions,
    look: RowsToScan,
    source: &Arc<S>,
    stop: &AtomicBool,
    ranks: Option<&Ranks>,
) -> Result<(BTreeMap<usize, usize>, Vec<SkippedRow>)> {
    let (known, journal) = match look {
        RowsToScan::Checking(journal) => (&[][..], Some(journal)),
        RowsToScan::AllBut(known) => (known, None),
        RowsToScan::None => (&[][..], None),
    };
    let known: BTreeMap<usize, &SkippedRow> = known.iter().map(|bad| (bad.row, bad)).collect();
    let length = |row: usize| -> Result<usize> {
        let tokens = S::token_count(&source.sample(row)?);
        check_token_count(|| source.location(row).0, tokens, batching.limit, batching.max_length)?;
        Ok(tokens)
    };
    let looked = |row: usize| -> Result<RowCheckResult> {
        let before = || journal.as_ref().and_then(|journal| journal.earlier_check(row).cloned());
        if let Some(looked) = known.get(&row).map(|bad| Err((*bad).clone())).or_else(before) {
            return Ok(looked);
        }
        if stop.load(Ordering::Relaxed) {
            let help = match journal {
                Some(_) => "run the command again: it continues after the checked rows",
                None => "run the command again",
            };
            return Err(SampleError::Stopped(Diagnostic::new(
                source.location(row).0,
                "stopped before the first step",
                help,
            )));
        }
        let looked = match length(row) {
            Ok(tokens) => Ok(tokens),
            Err(e) if is_row_error(&e) && !batching.strict => Err(SkippedRow::new(row, source.location(row).1, &e)),
            Err(e) => return Err(e),
        };
        if let Some(journal) = &journal {
            journal.record(row, &looked, source.row_count())?;
        }
        Ok(looked)
    };
    let (rank, size) = ranks.map_or((0, 1), |ranks| (ranks.rank(), ranks.size()));
    let own: Vec<usize> = (rank..source.row_count()).step_by(size).collect();
    let own: Vec<Result<RowCheckResult>> = own.into_par_iter().map(looked).collect();
    let all = match ranks {
        None => own,
        Some(ranks) => results_of_all_ranks(ranks, own)?,
    };
    let (mut lengths, mut skipped) = (BTreeMap::new(), Vec::new());
    for (row, looked) in all.into_iter().enumerate() {
        match looked? {
            Ok(tokens) => drop(lengths.insert(row, tokens)),
            Err(bad) => skipped.push(bad),
        }
    }
    if let Some(journal) = journal {
        journal.finish(&skipped)?;
    }
    match skipped.last() {
        Some(last) if lengths.is_empty() => {
            Err(SampleError::no_usable_row(&source.location(last.row).0, &last.reason, false))
        }
        _ => Ok((lengths, skipped)),
    }
}

/// Gathers the results for all rows, in the order of the rows. On rank r, `own` has the results for the rows r, r + N,
/// r + 2 N, ….
///
/// # Errors
/// A rank has failed, or an error of this rank is not about a row.
fn results_of_all_ranks(ranks: &Ranks, own: Vec<Result<RowCheckResult>>) -> Result<Vec<Result<RowCheckResult>>> {
    let portable = |result: Result<RowCheckResult>| match result {
        Ok(looked) => Ok(Ok(looked)),
        Err(e) => RowFailure::new(e).map(Err),
    };
    let own: Vec<Result<RowCheckResult, RowFailure>> = own.into_iter().map(portable).collect::<Result<_>>()?;
    let of_ranks = feed::all_gather(ranks, "checked rows", &own)?;
    let mut of_ranks: Vec<_> = of_ranks.into_iter().map(Vec::into_iter).collect();
    let count: usize = of_ranks.iter().map(ExactSizeIterator::len).sum();
    let results = (0..count).filter_map(|row| of_ranks[row % ranks.size()].next());
    Ok(results.map(|result| result.map_err(|failure| failure.to_error())).collect())
}
