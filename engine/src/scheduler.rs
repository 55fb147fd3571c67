//! Which completion has which row of the decode steps, and steps that were asked for and not read yet.
//!
//! A completion's end is noticed when its token is read, up to a step late where the device runs behind the host: what was computed for it
//! beyond is dropped. Nothing else depends on how far the host is ahead.

use std::collections::VecDeque;

use crate::decode::{Decode, PendingStep};
use crate::error::Result;

/// Rows, steps under way, and how far the host may be ahead.
pub(crate) struct Scheduler {
    /// The completion of each row.
    rows: Vec<Option<usize>>,
    /// Steps that were asked for, oldest first, with the completion of each of their rows.
    under_way: VecDeque<(Vec<Option<usize>>, PendingStep)>,
    ahead: usize,
}

impl Scheduler {
    /// `rows` empty rows; steps are read when more than `ahead` are under way.
    pub(crate) fn new(rows: usize, ahead: usize) -> Scheduler {
        Scheduler { rows: vec![None; rows], under_way: VecDeque::new(), ahead }
    }

    /// The first row that nobody has.
    pub(crate) fn free(&self) -> Option<usize> {
        self.rows.iter().position(Option::is_none)
    }

    pub(crate) fn take(&mut self, row: usize, completion: usize) {
        self.rows[row] = Some(completion);
    }

    /// Frees the row of a completion, and names it.
    pub(crate) fn leave(&mut self, completion: usize) -> Option<usize> {
        let row = self.rows.iter().position(|r| *r == Some(completion))?;
        self.rows[row] = None;
        Some(row)
    }

    /// Completions that have a row, with it.
    pub(crate) fn taken(&self) -> impl DoubleEndedIterator<Item = (usize, usize)> + '_ {
        self.rows.iter().enumerate().filter_map(|(row, c)| Some((row, (*c)?)))
    }

    /// Rows up to the last that somebody has.
    pub(crate) fn used(&self) -> usize {
        self.taken().next_back().map_or(0, |(row, _)| row + 1)
    }

    /// Steps under way that will bring a token of this completion.
    pub(crate) fn coming(&self, completion: usize) -> usize {
        self.under_way.iter().filter(|(rows, _)| rows.contains(&Some(completion))).count()
    }

    /// Whether a step must be read before another is asked for.
    pub(crate) fn is_far_ahead(&self) -> bool {
        self.under_way.len() > self.ahead
    }

    /// Asks for a step of all rows in use. `wants` says whose tokens will be taken.
    pub(crate) fn ask(&mut self, decode: &mut Decode, wants: impl Fn(usize) -> bool) -> Result<()> {
        let bucket = decode.bucket(self.used());
        let asked = decode.step(bucket)?;
        let mut rows = self.rows.clone();
        rows.resize(bucket, None);
        rows.iter_mut().for_each(|row| *row = row.filter(|&c| wants(c)));
        self.under_way.push_back((rows, asked));
        Ok(())
    }

    /// Waits for the oldest step: (completion, token, its log-probability) of each row. None where there is no step.
    pub(crate) fn read(&mut self) -> Result<Option<Vec<(usize, i32, f32)>>> {
        let Some((rows, asked)) = self.under_way.pop_front() else { return Ok(None) };
        let (ids, log_probs) = asked.wait()?;
        let tokens = rows.iter().zip(ids).zip(log_probs).filter_map(|((c, id), lp)| Some(((*c)?, id, lp)));
        Ok(Some(tokens.collect()))
    }
}
