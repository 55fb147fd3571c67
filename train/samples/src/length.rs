//! Counts the micro-batches of a run before it starts, and finds the rows that cannot be used.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rayon::prelude::*;
use reel_support::ranks::Ranks;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::feed::{self, MicroBatchOptions, SampleSource, is_row_error, no_usable_row};
use crate::order::RowOrder;
use crate::quarantine::{RowCheckResult, ScanJournal};
use crate::skipped_row::SkippedRow;
use crate::token_limit::check_token_count;

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
    /// All rows except those that the journal of an earlier, interrupted `--check-data` lists. With several
    /// processes, rank 0 has the journal and the other ranks have `None`.
    Checking(Option<Box<ScanJournal>>),
}

/// The time between two exchanges of results between processes. An interrupted check loses the results since the last
/// exchange. A signal to one process ends the other processes at the next exchange, after the rows that they are
/// reading.
const EXCHANGE_INTERVAL: Duration = Duration::from_secs(3);

/// Reads the rows that `look` selects and finds the unusable ones. If `count` is true, also counts the micro-batches
/// of all epochs. Returns an error when `stop` becomes true. With several processes (`ranks`), one process reads each
/// row, and all processes return the same result. If `stop` is true in one process, all processes stop.
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
    let (lengths, skipped) = scan_all_rows(batching, look, source, order, stop, ranks)?;
    let unusable = || skipped.iter().map(|skipped| skipped.row).collect();
    let batches = match count {
        true => feed::count_micro_batches(source.clone(), order.clone(), *batching, &lengths, unusable())?,
        false => 0,
    };
    Ok(RowScanResult { batches, skipped, lengths })
}

/// Reads the rows that `look` selects. Returns the token counts of the usable rows and the list of the unusable ones.
///
/// # Errors
/// No row of `order` can be used; in a strict run, a row cannot be used; `stop` is true; another rank has failed.
fn scan_all_rows<S: SampleSource>(
    batching: &MicroBatchOptions,
    look: RowsToScan,
    source: &Arc<S>,
    order: &RowOrder,
    stop: &AtomicBool,
    ranks: Option<&Ranks>,
) -> Result<(BTreeMap<usize, usize>, Vec<SkippedRow>)> {
    let (known, journal, checks) = match look {
        RowsToScan::Checking(journal) => (&[][..], journal, true),
        RowsToScan::AllBut(known) => (known, None, false),
        RowsToScan::None => (&[][..], None, false),
    };
    let mut found: BTreeMap<usize, RowCheckResult> = known.iter().map(|bad| (bad.row, Err(bad.clone()))).collect();
    if let Some(journal) = &journal {
        found.extend(journal.earlier_checks().clone());
    }
    if let (true, Some(ranks)) = (checks, ranks) {
        found = results_of_rank_0(ranks, found)?;
    }
    let scan = RowScan { batching, source, stop, checks, journal };
    let rest = (0..source.row_count()).filter(|row| !found.contains_key(row)).collect();
    let all = match ranks {
        None => scan.alone(found, rest)?,
        Some(ranks) => scan.with_others(ranks, found, rest)?,
    };
    let (mut lengths, mut skipped) = (BTreeMap::new(), Vec::new());
    for (row, looked) in all {
        match looked {
            Ok(tokens) => drop(lengths.insert(row, tokens)),
            Err(bad) => skipped.push(bad),
        }
    }
    if let Some(journal) = scan.journal {
        journal.finish(&skipped)?;
    }
    // Rows that are held back from training are scanned too, but they are not in the order.
    let is_any_usable = lengths.keys().any(|&row| order.contains(row));
    match skipped.iter().rfind(|bad| order.contains(bad.row)) {
        Some(last) if !is_any_usable => Err(no_usable_row(&source.location(last.row).0, &last.reason, false)),
        _ => Ok((lengths, skipped)),
    }
}

/// A scan of the rows of a data file.
struct RowScan<'a, S> {
    batching: &'a MicroBatchOptions,
    source: &'a Arc<S>,
    stop: &'a AtomicBool,
    /// Whether `--check-data` runs this scan.
    checks: bool,
    journal: Option<Box<ScanJournal>>,
}

/// The results of a rank since the last exchange.
#[derive(Serialize, Deserialize)]
struct Exchanged {
    looked: Vec<(usize, Result<RowCheckResult>)>,
    /// Whether the rank was interrupted.
    is_interrupted: bool,
    /// Number of rows that the rank has not read yet.
    rest: usize,
}

impl<S: SampleSource> RowScan<'_, S> {
    /// Reads the rows `rest` in a single process, and adds the results to `found`. Returns the error of the first row
    /// that ends the scan, if any.
    fn alone(
        &self,
        mut found: BTreeMap<usize, RowCheckResult>,
        rest: Vec<usize>,
    ) -> Result<BTreeMap<usize, RowCheckResult>> {
        let look = |row: usize| match self.stop.load(Ordering::Relaxed) {
            true => (row, Err(self.stopped_at(row))),
            false => (row, self.look_and_record(row)),
        };
        for (row, looked) in rest.into_par_iter().map(look).collect::<Vec<_>>() {
            found.insert(row, looked?);
        }
        Ok(found)
    }

    /// Reads a share of the rows `rest` as one of several ranks, and adds the results of all ranks to `found`. The
    /// ranks exchange results every few seconds, so that rank 0 can record them, and so that an interruption of one
    /// rank stops all ranks.
    fn with_others(
        &self,
        ranks: &Ranks,
        mut found: BTreeMap<usize, RowCheckResult>,
        rest: Vec<usize>,
    ) -> Result<BTreeMap<usize, RowCheckResult>> {
        let mut own: Vec<usize> = rest.into_iter().skip(ranks.rank()).step_by(ranks.size()).collect();
        let mut failed: BTreeMap<usize, Error> = BTreeMap::new();
        loop {
            let begun = Instant::now();
            let goes_on = || begun.elapsed() < EXCHANGE_INTERVAL && !self.stop.load(Ordering::Relaxed);
            let look = |row: usize| (row, goes_on().then(|| self.look_and_record(row)));
            let (mut looked, mut unread) = (Vec::new(), Vec::new());
            for (row, result) in own.into_par_iter().map(look).collect::<Vec<_>>() {
                match result {
                    None => unread.push(row),
                    Some(Ok(result)) => looked.push((row, Ok(result))),
                    Some(Err(e)) if matches!(e.kind, Kind::Row(_)) => looked.push((row, Err(e))),
                    Some(Err(e)) => return Err(e),
                }
            }
            own = unread;
            let is_interrupted = self.stop.load(Ordering::Relaxed);
            let here = Exchanged { looked, is_interrupted, rest: own.len() };
            let of_ranks = feed::all_gather(ranks, "checked rows", &here)?;
            let is_interrupted = of_ranks.iter().any(|of_rank| of_rank.is_interrupted);
            let is_done = of_ranks.iter().all(|of_rank| of_rank.rest == 0);
            for (rank, Exchanged { looked, .. }) in of_ranks.into_iter().enumerate() {
                for (row, result) in looked {
                    match result {
                        Ok(result) => {
                            if rank != ranks.rank() {
                                self.record(row, &result)?;
                            }
                            found.insert(row, result);
                        }
                        Err(failure) => drop(failed.insert(row, failure)),
                    }
                }
            }
            if is_done {
                return failed.into_values().next().map_or(Ok(found), Err);
            }
            if is_interrupted {
                return Err(self.stopped_at(own.first().copied().unwrap_or(0)));
            }
        }
    }

    /// Reads a row. Returns its token count or the reason for skipping it, and records the result in the journal.
    fn look_and_record(&self, row: usize) -> Result<RowCheckResult> {
        let MicroBatchOptions { limit, max_length, strict, .. } = *self.batching;
        let length = || {
            let tokens = S::token_count(&self.source.sample(row)?);
            check_token_count(|| self.source.location(row).0, tokens, limit, max_length)?;
            Ok(tokens)
        };
        let looked = match length() {
            Ok(tokens) => Ok(tokens),
            Err(e) if is_row_error(&e) && !strict => Err(SkippedRow::new(row, self.source.location(row).1, &e)),
            Err(e) => return Err(e),
        };
        self.record(row, &looked)?;
        Ok(looked)
    }

    fn record(&self, row: usize, looked: &RowCheckResult) -> Result<()> {
        self.journal.as_ref().map_or(Ok(()), |journal| journal.record(row, looked, self.source.row_count()))
    }

    /// The error of a scan that was stopped before row `row`.
    fn stopped_at(&self, row: usize) -> Error {
        let help = match self.checks {
            true => "run the command again: it continues after the checked rows",
            false => "run the command again",
        };
        Error::stopped(self.source.location(row).0, "stopped before the first step", help)
    }
}

/// Sends the results that rank 0 passes to all ranks, and returns them.
fn results_of_rank_0(ranks: &Ranks, found: BTreeMap<usize, RowCheckResult>) -> Result<BTreeMap<usize, RowCheckResult>> {
    let own: Vec<(usize, RowCheckResult)> = if ranks.rank() == 0 { found.into_iter().collect() } else { Vec::new() };
    let of_ranks = feed::all_gather(ranks, "rows that were checked before", &own)?;
    Ok(of_ranks.into_iter().flatten().collect())
}
