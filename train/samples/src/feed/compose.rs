//! Decides which rows each micro-batch has. The decision depends only on the outcomes of preparing the rows, so all
//! processes (ranks) of a run make the same micro-batches. A row that is not prepared yet is assumed to be usable.
//! The resulting micro-batch is a [`MicroBatchDraft`]; it says which rows to prepare next.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{DataPosition, MicroBatchOptions, SampleSource, is_row_error, no_usable_row};
use crate::error::{Error, Result};
use crate::order::RowOrder;
use crate::skipped_row::SkippedRow;

/// Groups rows into drafts of micro-batches.
pub(super) struct MicroBatchComposer<S> {
    source: Arc<S>,
    order: RowOrder,
    batching: MicroBatchOptions,
    /// The position in the data after the last finished micro-batch.
    slot: u64,
    /// Rows of the order that are known to be unusable at the position `slot`.
    bad: BTreeSet<usize>,
    /// Whether any row has been used so far, by this process or, in a resumed run, by an earlier one.
    used: bool,
    /// Rows to skip when the feed reaches them, without preparing them.
    expected: BTreeMap<usize, SkippedRow>,
    /// The known outcomes of preparing rows, by position in the data, from `slot` on.
    outcomes: BTreeMap<u64, RowOutcome>,
    /// With packing, the number of tokens of each row that has been prepared.
    lengths: HashMap<usize, usize>,
    /// The sum of all numbers in `lengths`.
    total_length: usize,
}

/// The outcome of preparing a row: whether the row can be used, and its number of tokens. The micro-batches depend
/// only on these outcomes, which the processes (ranks) of a run send each other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum RowOutcome {
    /// The row can be used and has this number of tokens.
    Usable(usize),
    /// The row cannot be used.
    Failed(Error),
}

/// The position in the data where the next draft begins.
#[derive(Debug)]
pub(super) struct DraftPosition {
    slot: u64,
    /// Rows that the drafts before this position skip.
    skipped: BTreeSet<usize>,
    /// Whether any row is used before this position.
    used: bool,
}

/// A proposed micro-batch. It is final if the outcomes of all rows that it depends on are known.
#[derive(Debug, Default)]
pub(super) struct MicroBatchDraft {
    /// The position in the data and the number of each row.
    pub rows: Vec<(u64, usize)>,
    /// With packing, the position and the number of the row that no longer fits. The next micro-batch begins with
    /// this row.
    pub next: Option<(u64, usize)>,
    /// Unusable rows that were found while the draft was made.
    pub skipped: Vec<SkippedRow>,
    /// The position in the data after the draft.
    pub slot: u64,
    /// The error that ends the run, if one of its rows has one.
    pub error: Option<Error>,
}

impl MicroBatchDraft {
    /// Whether the data has no rows for this draft, because the data ended before it.
    pub fn is_end_of_data(&self) -> bool {
        self.rows.is_empty() && self.skipped.is_empty() && self.error.is_none()
    }
}

impl<S: SampleSource> MicroBatchComposer<S> {
    pub fn new(source: Arc<S>, order: RowOrder, batching: MicroBatchOptions, from: &DataPosition) -> Self {
        // The order never reaches some rows, such as rows that are held back from training, so they are left out
        // here.
        let bad = from.skipped.iter().copied().filter(|&row| order.contains(row)).collect();
        Self {
            source,
            order,
            batching,
            slot: from.slot,
            bad,
            used: from.slot > 0,
            expected: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            lengths: HashMap::new(),
            total_length: 0,
        }
    }

    /// Adds rows to skip when the feed reaches them.
    pub fn add_rows_to_skip(&mut self, rows: Vec<SkippedRow>) {
        self.expected.extend(rows.into_iter().map(|row| (row.row, row)));
    }

    /// Adds numbers of tokens of rows that are not prepared yet.
    pub fn add_known_lengths(&mut self, lengths: impl IntoIterator<Item = (usize, usize)>) {
        for (row, tokens) in lengths {
            if self.lengths.insert(row, tokens).is_none() {
                self.total_length += tokens;
            }
        }
    }

    /// Adds the outcome of preparing `row`, which is at the position `slot` in the data. If several ranks have
    /// prepared the row, it counts as failed if it failed on any rank.
    pub fn add_outcome(&mut self, slot: u64, row: usize, outcome: RowOutcome) {
        if let (RowOutcome::Usable(tokens), true) = (&outcome, self.batching.packing) {
            self.add_known_lengths([(row, *tokens)]);
        }
        if matches!(self.outcomes.get(&slot), None | Some(RowOutcome::Usable(_))) {
            self.outcomes.insert(slot, outcome);
        }
    }

    /// The position in the data after the last finished micro-batch, where the next draft begins.
    pub fn draft_start(&self) -> DraftPosition {
        DraftPosition { slot: self.slot, skipped: BTreeSet::new(), used: self.used }
    }

    /// Makes the draft that begins at position `at`, and moves `at` to the end of the draft.
    pub fn draft_micro_batch(&mut self, at: &mut DraftPosition) -> MicroBatchDraft {
        let mut draft = MicroBatchDraft { slot: at.slot, ..MicroBatchDraft::default() };
        let (mut filled, mut slot) = (0, at.slot);
        // Without this check, the loop below would search for a usable row forever.
        if self.is_no_row_left(at) && !self.is_full(&draft, slot, filled) {
            draft.error = Some(self.all_rows_skipped_before(slot));
            return draft;
        }
        while !self.is_full(&draft, slot, filled) {
            let row = self.order.row_at(slot);
            if self.bad.contains(&row) || at.skipped.contains(&row) {
                slot += 1;
                continue;
            }
            match self.tokens_or_skip(slot, row) {
                Err(error) => {
                    draft.error = Some(error);
                    break;
                }
                Ok(Err(skipped)) => {
                    at.skipped.insert(row);
                    draft.error = self.error_if_no_row_is_left(at, &skipped);
                    if draft.error.is_some() {
                        break;
                    }
                    draft.skipped.push(skipped);
                }
                Ok(Ok(tokens)) => {
                    filled += tokens;
                    if self.exceeds_max_length(&draft, filled) {
                        draft.next = Some((slot, row));
                        break;
                    }
                    at.used = true;
                    draft.rows.push((slot, row));
                }
            }
            slot += 1;
            draft.slot = slot;
        }
        // Rows that are skipped at the end of a run are no error if the run has used other rows.
        if draft.error.is_none() && draft.rows.is_empty() && !at.used {
            draft.error = Some(self.no_row_before_the_end(&draft));
        }
        at.slot = draft.slot;
        draft
    }

    /// Makes a draft final. The outcomes of all rows that it depends on must be known.
    pub fn finish(&mut self, draft: &MicroBatchDraft) {
        self.slot = draft.slot;
        self.used |= !draft.rows.is_empty();
        for skipped in &draft.skipped {
            self.bad.insert(skipped.row);
            self.expected.remove(&skipped.row);
        }
        self.outcomes = self.outcomes.split_off(&self.slot);
    }

    fn is_full(&self, draft: &MicroBatchDraft, slot: u64, filled: usize) -> bool {
        let MicroBatchOptions { rows, packing, max_length, end, .. } = self.batching;
        let ended = end.is_some_and(|end| slot >= end);
        ended || if packing { max_length.is_some_and(|max| filled >= max) } else { draft.rows.len() >= rows }
    }

    fn exceeds_max_length(&self, draft: &MicroBatchDraft, filled: usize) -> bool {
        self.batching.packing && !draft.rows.is_empty() && self.batching.max_length.is_some_and(|m| filled > m)
    }

    /// The number of tokens of the row at position `slot`, or the reason why the row is skipped.
    fn tokens_or_skip(&self, slot: u64, row: usize) -> Result<Result<usize, SkippedRow>> {
        if let Some(skipped) = self.expected.get(&row) {
            return Ok(Err(skipped.clone()));
        }
        let failure = match self.outcomes.get(&slot) {
            None => return Ok(Ok(self.expected_tokens(row))),
            Some(RowOutcome::Usable(tokens)) => return Ok(Ok(*tokens)),
            Some(RowOutcome::Failed(failure)) => failure.clone(),
        };
        match is_row_error(&failure) && !self.batching.strict {
            true => Ok(Err(SkippedRow::new(row, self.source.location(row).1, &failure))),
            false => Err(failure),
        }
    }

    /// The assumed number of tokens of a row that is not prepared yet: the number in an earlier epoch or, if there is
    /// none, the mean of the known numbers.
    fn expected_tokens(&self, row: usize) -> usize {
        let mean = self.total_length.checked_div(self.lengths.len());
        self.lengths.get(&row).copied().or(mean).or(self.batching.max_length).unwrap_or(1)
    }

    /// Whether all rows of the order are known to be unusable.
    fn is_no_row_left(&self, at: &DraftPosition) -> bool {
        self.bad.len() + at.skipped.len() >= self.order.row_count()
    }

    /// The error of a feed without usable rows, if all rows of the order were known to be unusable from the start: an
    /// earlier process skipped them, or the `--quarantine` list names them.
    fn all_rows_skipped_before(&mut self, slot: u64) -> Error {
        let row = self.order.row_at(slot);
        let help = "fix the rows; skipped.jsonl or the --quarantine list says what is wrong with each";
        Error::data(self.source.location(row).0, "no usable row is left: all rows were skipped before", help)
    }

    /// The error of a feed that ends during its first epoch without a usable row. `draft` is its first draft.
    fn no_row_before_the_end(&mut self, draft: &MicroBatchDraft) -> Error {
        let first = self.source.location(self.order.row_at(0)).0;
        let (location, what, reason) = match draft.skipped.last() {
            Some(last) => (
                self.source.location(last.row).0,
                "no row that the run reads can be used",
                format!("; the error of this row is: {}", last.reason),
            ),
            None => (first, "no row that the run reads can be used: all were skipped before", String::new()),
        };
        Error::data(location, what, format!("fix the rows, or let the run read more of the file{reason}"))
    }

    fn error_if_no_row_is_left(&self, at: &DraftPosition, last: &SkippedRow) -> Option<Error> {
        self.is_no_row_left(at).then(|| no_usable_row(&self.source.location(last.row).0, &last.reason, at.used))
    }
}
