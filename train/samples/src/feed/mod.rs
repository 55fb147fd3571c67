//! Makes micro-batches of rows: groups the rows, skips unusable rows, and tracks the position in the data. Threads
//! prepare rows ahead of time, and the processes (ranks) of a run share this work. The micro-batches depend only on the
//! rows, not on the number of threads or ranks.

mod compose;
mod cursor;
mod prefetch;
mod preparer;
mod rank_loads;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use reel_support::ranks::Ranks;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result, RowFailureKind};
use crate::order::RowOrder;
use crate::skipped_row::SkippedRow;
use crate::token_limit::check_token_count;

use compose::{DraftPosition, MicroBatchComposer, MicroBatchDraft, RowOutcome};
use preparer::RowPreparer;

pub use cursor::StepRowCursor;
pub use prefetch::{Prefetcher, decoding_threads};
pub use rank_loads::{RankLoads, ranks_of_micro_batches};

/// A source of training samples: one sample for each row of the data. If [`is_row_error`] is true for an error, the
/// error concerns a single row, and the run can skip this row.
pub trait SampleSource: Send + Sync + 'static {
    /// The training sample made of a row, in the form that the training step needs.
    type Sample: Send + 'static;
    /// The number of rows of the data.
    fn row_count(&self) -> usize;
    /// Prepares row `row`, counted from 0: tokenizes its text and loads its media.
    fn sample(&self, row: usize) -> Result<Self::Sample>;
    /// Number of tokens of a sample.
    fn token_count(sample: &Self::Sample) -> usize;
    /// Returns where a row is in its file: `FILE:LINE` for messages, and the line number.
    fn location(&self, row: usize) -> (String, usize);
    /// The number of tokens that a training pass is expected to compute for row `row`. The ranks share micro-batches
    /// by this number ([`RankAssignment::ByExpectedLength`]). It is known without loading the row's media, and equal
    /// on all ranks.
    fn expected_length(&self, _row: usize) -> u64 {
        1
    }
}

/// Whether an error concerns a single row. If so, the run can skip that row.
pub fn is_row_error(e: &Error) -> bool {
    matches!(e.kind, Kind::Row(kind) if kind != RowFailureKind::MediaUnavailable)
}

/// Returns [`Error::interrupted`] when the run was interrupted.
pub fn error_if_stopped(stop: &AtomicBool) -> Result<()> {
    if stop.load(Ordering::Relaxed) { Err(Error::interrupted()) } else { Ok(()) }
}

/// The error for a data file without a usable row. `reason` is the error of the row at `location`; `used` tells
/// whether rows of the file were used earlier.
pub fn no_usable_row(location: &str, reason: &str, used: bool) -> Error {
    let what = if used { "no usable row is left" } else { "no row of the file can be used" };
    Error::data(location, what, format!("fix the rows; the error of this row is: {reason}"))
}

/// How rows are grouped into micro-batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MicroBatchOptions {
    /// Rows per micro-batch; ignored with packing.
    pub rows: usize,
    /// Whether each micro-batch is filled with rows up to `max_length` tokens in all.
    pub packing: bool,
    /// Maximum tokens of a row and, with packing, of a micro-batch.
    pub max_length: Option<usize>,
    /// The name of the flag that sets `max_length`, for messages.
    pub limit: &'static str,
    /// Number of rows, over all epochs, after which the feed ends; with `None` the feed never ends.
    pub end: Option<u64>,
    /// Whether the run fails at the first unusable row instead of skipping it.
    pub strict: bool,
}

/// The position of a run in its data, as a checkpoint stores it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataPosition {
    /// The number of rows that the run has passed so far, over all epochs and including skipped rows. It is also the
    /// index of the next row in the sequence of the rows of all epochs.
    pub slot: u64,
    /// Unusable rows found so far, in the order in which they were found. Later epochs do not try these rows again.
    pub skipped: Vec<usize>,
}

/// One micro-batch: its rows and their samples. The micro-batch has no rows if the data ended and all remaining rows
/// were unusable.
#[derive(Debug)]
pub struct MicroBatch<S> {
    /// Row numbers in the data file, counted from 0.
    pub rows: Vec<usize>,
    /// The samples made of the rows `rows`, in the same order; empty if the micro-batch belongs to another rank.
    pub samples: Vec<S>,
    /// The rank to which the micro-batch belongs; 0 in a single process.
    pub rank: usize,
    /// Unusable rows found while this micro-batch was made.
    pub skipped: Vec<SkippedRow>,
    /// The data position after this micro-batch (see [`DataPosition::slot`]).
    pub slot: u64,
}

impl DataPosition {
    /// Moves the position past `batch` and adds the unusable rows that were found while the batch was made.
    pub fn advance_past<S>(&mut self, batch: &MicroBatch<S>) {
        self.slot = batch.slot;
        self.skipped.extend(batch.skipped.iter().map(|s| s.row));
    }
}

/// The processes (ranks) of a run. They share the micro-batches and the work of preparing rows. N ranks make the
/// micro-batches of a step in rounds: in each round of N micro-batches, every rank gets one.
#[derive(Clone, Debug)]
pub struct FeedRanks {
    /// The ranks of the run, for exchanging the outcomes of rows.
    pub ranks: Arc<Ranks>,
    /// Number of micro-batches of a step, of all ranks together.
    pub per_step: usize,
    /// How the micro-batches of a round are assigned to ranks.
    pub assignment: RankAssignment,
}

/// How the micro-batches of a round are assigned to ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RankAssignment {
    /// Micro-batch i of a step, counted from 0, belongs to rank i mod N.
    InTurn,
    /// The longest micro-batch belongs to the rank with the least load in this step ([`RankLoads`]). The length of a
    /// micro-batch is the sum of its rows' [`SampleSource::expected_length`].
    ByExpectedLength,
}

/// Iterates over the micro-batches of a run.
///
/// Several ranks make the same micro-batches, and each prepares only the rows of its own micro-batches:
///
/// ```text
/// repeat for the next N micro-batches of the step:
///     draft them, as if all rows that are not prepared yet could be used
///     prepare the rows of this rank's draft; send their token counts and errors to the other ranks
/// until each row of each draft has been prepared by the rank to which the draft belongs
/// ```
///
/// One repetition is enough unless a row is skipped or, with packing, has an unexpected number of tokens. Then the rows
/// after it can move to the micro-batch of another rank, which prepares them again.
pub struct MicroBatchFeed<S: SampleSource> {
    rows: RowPreparer<S>,
    batching: MicroBatchOptions,
    /// Number of rows that the threads prepare ahead.
    window: usize,
    composer: MicroBatchComposer<S>,
    ranks: Option<FeedRanks>,
    /// For each position in the data after the last finished micro-batch, the ranks that have prepared the row.
    prepared_by: BTreeMap<u64, BTreeSet<usize>>,
    /// Samples that this rank has prepared for micro-batches that are not finished, by position.
    samples: BTreeMap<u64, S::Sample>,
    /// The index, within its step, of the next micro-batch.
    index: usize,
    /// The loads of the ranks from the finished micro-batches of the step.
    loads: RankLoads,
    /// Finished micro-batches that have not been returned yet.
    finished: VecDeque<MicroBatch<S::Sample>>,
}

impl<S: SampleSource> MicroBatchFeed<S> {
    /// Creates a feed that starts at data position `from`. `threads` background threads prepare at most `window` rows
    /// ahead.
    pub fn new(
        source: Arc<S>,
        order: RowOrder,
        batching: MicroBatchOptions,
        from: &DataPosition,
        threads: usize,
        window: usize,
    ) -> Self {
        Self {
            rows: RowPreparer::new(source.clone(), threads),
            batching,
            window: window.max(1),
            composer: MicroBatchComposer::new(source, order, batching, from),
            ranks: None,
            prepared_by: BTreeMap::new(),
            samples: BTreeMap::new(),
            index: 0,
            loads: RankLoads::new(1),
            finished: VecDeque::new(),
        }
    }

    /// Makes the feed skip `rows` when it reaches them, for the reasons that an earlier process of the run recorded.
    pub fn skip_when_reached(mut self, rows: Vec<SkippedRow>) -> Self {
        self.composer.add_rows_to_skip(rows);
        self
    }

    /// Makes the feed share the rows with other ranks. The samples of a micro-batch are then present on the rank to
    /// which it belongs, and all ranks call [`Self::next_micro_batch`] together. The first call begins a step.
    pub fn share_among(mut self, ranks: Option<FeedRanks>) -> Self {
        self.ranks = ranks.filter(|shared| shared.ranks.size() > 1);
        self.loads = RankLoads::new(self.size());
        self
    }

    /// Tells the feed the numbers of tokens of rows that are not prepared yet. With packing, the ranks can then
    /// assign rows to micro-batches without preparing them.
    pub fn add_known_lengths(mut self, lengths: impl IntoIterator<Item = (usize, usize)>) -> Self {
        self.composer.add_known_lengths(lengths);
        self
    }

    /// Returns the next micro-batch, or `None` after the last row of the last epoch.
    ///
    /// # Errors
    /// No usable row is left; a row cannot be used in a strict run; another rank has failed.
    pub fn next_micro_batch(&mut self) -> Result<Option<MicroBatch<S::Sample>>> {
        self.next_micro_batch_or_stop(None)
    }

    /// Returns the next micro-batch as [`Self::next_micro_batch`] does. If `stop` becomes true while the feed looks for
    /// usable rows, returns [`Kind::Stopped`]. `stop` must become true on all ranks between the same two calls.
    pub fn next_micro_batch_or_stop(&mut self, stop: Option<&AtomicBool>) -> Result<Option<MicroBatch<S::Sample>>> {
        if self.finished.is_empty() {
            self.make_micro_batches(stop)?;
        }
        Ok(self.finished.pop_front())
    }

    /// Makes the next micro-batch of each rank. At the end of a step there may be fewer micro-batches than ranks, at
    /// the end of the data none.
    fn make_micro_batches(&mut self, stop: Option<&AtomicBool>) -> Result<()> {
        if self.index == 0 {
            self.loads = RankLoads::new(self.size());
        }
        let count = self.round_len(self.index);
        loop {
            stop.map_or(Ok(()), error_if_stopped)?;
            let mut at = self.composer.draft_start();
            let mut drafts = Vec::new();
            for _ in 0..count {
                let draft = self.composer.draft_micro_batch(&mut at);
                if draft.is_end_of_data() {
                    break;
                }
                let failed = draft.error.is_some();
                drafts.push(draft);
                if failed {
                    break;
                }
            }
            let mut loads = self.loads.clone();
            let ranks = self.ranks_of_round(self.index, &drafts, &mut loads);
            let missing = self.missing_rows(&drafts, &ranks);
            if missing.is_empty() {
                self.loads = loads;
                return self.finish(drafts, &ranks);
            }
            let own = missing.into_iter().filter(|(_, _, rank)| *rank == self.rank());
            let own: Vec<(u64, usize)> = own.map(|(slot, row, _)| (slot, row)).collect();
            let mut wanted: BTreeMap<u64, usize> = own.iter().copied().collect();
            self.add_rows_ahead(&mut wanted, at, self.index + drafts.len(), loads);
            self.rows.request_rows(wanted);
            let prepare = |(slot, row)| Ok((slot, row, self.prepare(slot, row)?));
            let own: Vec<(u64, usize, RowOutcome)> = own.into_iter().map(prepare).collect::<Result<_>>()?;
            self.exchange(own)?;
        }
    }

    /// The rows that `drafts` depend on and that are not prepared yet by the rank of their draft (`ranks`). Each
    /// entry is a position, a row number and that rank.
    fn missing_rows(&self, drafts: &[MicroBatchDraft], ranks: &[usize]) -> Vec<(u64, usize, usize)> {
        let mut rows = BTreeMap::new();
        for (i, draft) in drafts.iter().enumerate() {
            let next = || ranks.get(i + 1).copied().unwrap_or_else(|| self.rank_in_turn(self.index + i + 1));
            rows.extend(draft.next.map(|(slot, row)| (slot, (row, next()))));
            rows.extend(draft.rows.iter().map(|&(slot, row)| (slot, (row, ranks[i]))));
        }
        let is_prepared =
            |slot: u64, rank: usize| self.prepared_by.get(&slot).is_some_and(|ranks| ranks.contains(&rank));
        let rows = rows.into_iter().map(|(slot, (row, rank))| (slot, row, rank));
        rows.filter(|(slot, _, rank)| !is_prepared(*slot, *rank)).collect()
    }

    fn rank(&self) -> usize {
        self.ranks.as_ref().map_or(0, |shared| shared.ranks.rank())
    }

    fn size(&self) -> usize {
        self.ranks.as_ref().map_or(1, |shared| shared.ranks.size())
    }

    /// The number of micro-batches of the round that begins with micro-batch `index` of a step.
    fn round_len(&self, index: usize) -> usize {
        self.ranks.as_ref().map_or(1, |shared| shared.ranks.size().min(shared.per_step - index % shared.per_step))
    }

    /// The rank of micro-batch `index` of a step if the ranks take turns.
    fn rank_in_turn(&self, index: usize) -> usize {
        self.ranks.as_ref().map_or(0, |shared| index % shared.per_step % shared.ranks.size())
    }

    /// The ranks of the micro-batches of a round. `drafts[0]` is micro-batch `index` of the step. Adds the lengths of
    /// the micro-batches to `loads`.
    fn ranks_of_round(&self, index: usize, drafts: &[MicroBatchDraft], loads: &mut RankLoads) -> Vec<usize> {
        match &self.ranks {
            Some(FeedRanks { assignment: RankAssignment::ByExpectedLength, .. }) => {
                let expected = |&(_, row): &(u64, usize)| self.rows.source().expected_length(row);
                let lengths: Vec<u64> = drafts.iter().map(|draft| draft.rows.iter().map(expected).sum()).collect();
                loads.assign_round(&lengths)
            }
            _ => (index..index + drafts.len()).map(|index| self.rank_in_turn(index)).collect(),
        }
    }

    /// Adds rows of this rank's later micro-batches to `wanted`, at most `window` rows. `at` is the position before
    /// micro-batch `index`, counted from the start of the step, and `loads` are the loads at this position.
    fn add_rows_ahead(
        &mut self,
        wanted: &mut BTreeMap<u64, usize>,
        mut at: DraftPosition,
        mut index: usize,
        mut loads: RankLoads,
    ) {
        let enough = wanted.len() + self.window;
        let end = index + self.size() * self.window;
        while index < end {
            if self.ranks.as_ref().is_some_and(|shared| index.is_multiple_of(shared.per_step)) {
                loads = RankLoads::new(self.size());
            }
            let count = self.round_len(index);
            let drafts = || self.composer.draft_micro_batch(&mut at);
            let usable = |draft: &MicroBatchDraft| !draft.is_end_of_data() && draft.error.is_none();
            let drafts: Vec<MicroBatchDraft> = std::iter::repeat_with(drafts).take(count).take_while(usable).collect();
            let ranks = self.ranks_of_round(index, &drafts, &mut loads);
            for (draft, _) in drafts.iter().zip(ranks).filter(|(_, rank)| *rank == self.rank()) {
                let missing = draft.rows.iter().filter(|(slot, _)| !self.samples.contains_key(slot));
                wanted.extend(missing.copied().take(enough - wanted.len()));
            }
            if wanted.len() >= enough || drafts.len() < count {
                return;
            }
            index += count;
        }
    }

    /// Waits until this rank has prepared `row`, which is at position `slot`. Returns the outcome.
    fn prepare(&mut self, slot: u64, row: usize) -> Result<RowOutcome> {
        let MicroBatchOptions { limit, max_length, .. } = self.batching;
        let sample = self.rows.take_sample(slot, row).and_then(|sample| {
            let location = || self.rows.source().location(row).0;
            check_token_count(location, S::token_count(&sample), limit, max_length)?;
            Ok(sample)
        });
        match sample {
            Err(e) if matches!(e.kind, Kind::Row(_)) => Ok(RowOutcome::Failed(e)),
            // The error is about this process, such as a worker that cannot be started.
            Err(e) => Err(e),
            Ok(sample) => {
                let tokens = S::token_count(&sample);
                self.samples.insert(slot, sample);
                Ok(RowOutcome::Usable(tokens))
            }
        }
    }

    /// Sends the outcomes of this rank's prepared rows to the other ranks, and adds the outcomes of all ranks.
    fn exchange(&mut self, own: Vec<(u64, usize, RowOutcome)>) -> Result<()> {
        let of_ranks = match &self.ranks {
            None => vec![own],
            Some(shared) => all_gather(&shared.ranks, "rows of micro-batches", &own)?,
        };
        for (rank, outcomes) in of_ranks.into_iter().enumerate() {
            for (slot, row, outcome) in outcomes {
                self.prepared_by.entry(slot).or_default().insert(rank);
                self.composer.add_outcome(slot, row, outcome);
            }
        }
        Ok(())
    }

    /// Finishes the micro-batches of drafts whose rows are prepared. `ranks` are the ranks to which they belong.
    fn finish(&mut self, drafts: Vec<MicroBatchDraft>, ranks: &[usize]) -> Result<()> {
        for (draft, &rank) in drafts.into_iter().zip(ranks) {
            if let Some(error) = draft.error {
                return Err(error);
            }
            self.composer.finish(&draft);
            let is_own = rank == self.rank();
            let samples = draft.rows.iter().filter(|_| is_own).filter_map(|(slot, _)| self.samples.remove(slot));
            self.finished.push_back(MicroBatch {
                samples: samples.collect(),
                rank,
                rows: draft.rows.into_iter().map(|(_, row)| row).collect(),
                skipped: draft.skipped,
                slot: draft.slot,
            });
            self.samples = self.samples.split_off(&draft.slot);
            self.prepared_by = self.prepared_by.split_off(&draft.slot);
            self.rows.drop_samples_before(draft.slot);
        }
        let made = self.finished.len();
        self.index = self.ranks.as_ref().map_or(0, |shared| (self.index + made) % shared.per_step);
        Ok(())
    }
}

/// Counts the micro-batches of a run. `lengths` has the number of tokens of each usable row, `unusable` has the
/// unusable rows.
pub(crate) fn count_micro_batches<S: SampleSource>(
    source: Arc<S>,
    order: RowOrder,
    batching: MicroBatchOptions,
    lengths: &BTreeMap<usize, usize>,
    unusable: Vec<usize>,
) -> Result<u64> {
    let from = DataPosition { slot: 0, skipped: unusable };
    let mut composer = MicroBatchComposer::new(source, order, batching, &from);
    composer.add_known_lengths(lengths.iter().map(|(row, tokens)| (*row, *tokens)));
    let (mut at, mut count) = (composer.draft_start(), 0);
    loop {
        match composer.draft_micro_batch(&mut at) {
            MicroBatchDraft { error: Some(error), .. } => return Err(error),
            draft if draft.is_end_of_data() => return Ok(count),
            _ => count += 1,
        }
    }
}

/// Exchanges a value of each rank. Returns the values of all ranks, by rank. `name` names the call in messages.
///
/// # Errors
/// A rank has failed, or runs another version of the program.
pub(crate) fn all_gather<T: Serialize + DeserializeOwned>(ranks: &Ranks, name: &str, own: &T) -> Result<Vec<T>> {
    let bytes = serde_json::to_vec(own).map_err(|e| other_version(ranks.rank(), &e))?;
    let gathered = ranks.all_gather(name, &bytes)?;
    let read = |(rank, bytes): (usize, &Vec<u8>)| serde_json::from_slice(bytes).map_err(|e| other_version(rank, &e));
    gathered.iter().enumerate().map(read).collect()
}

fn other_version(rank: usize, e: &serde_json::Error) -> Error {
    let what = format!("sent data about its rows that this rank cannot read: {e}");
    Error::failed(format!("rank {rank}"), what, "start all ranks with the same version of the program")
}

#[cfg(test)]
mod tests;
