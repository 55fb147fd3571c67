//! Completions decoding together: who has a row, who waits for one, who has ended.

use reel_runtime::ops::Slot;

use crate::decode::Decode;
use crate::engine::{Limit, SequenceState, TokenEvent};
use crate::error::Result;
use crate::kv_blocks::BlockAllocator;
use crate::sampler::banned_tokens;
use crate::scheduler::Scheduler;

/// Completions whose first token is known, and what they decode with.
pub(crate) struct RunningBatch<'a> {
    pub(crate) all: &'a mut [SequenceState],
    /// By request.
    pub(crate) limits: &'a [Limit],
    pub(crate) blocks: &'a mut BlockAllocator,
    pub(crate) decode: &'a mut Decode,
    pub(crate) seats: Scheduler,
}

impl RunningBatch<'_> {
    /// Token by token to the end of every completion. `go_on` is asked before each step.
    pub(crate) fn finish(
        &mut self,
        go_on: impl Fn() -> Result<()>,
        on_token: &mut impl FnMut(TokenEvent),
    ) -> Result<()> {
        let waiting: Vec<usize> = (0..self.all.len()).filter(|&i| self.all[i].finish.is_none()).collect();
        let mut waiting = waiting.into_iter().peekable();
        loop {
            go_on()?;
            while let Some(row) = self.seats.free()
                && let Some(i) = waiting.next()
            {
                self.seat(row, i)?;
            }
            let wants: Vec<bool> = (0..self.all.len()).map(|i| self.left(i) > self.seats.coming(i)).collect();
            if self.seats.taken().any(|(_, i)| wants[i]) {
                self.free_ends()?;
                self.seats.ask(self.decode, |i| wants[i])?;
                if !self.seats.is_far_ahead() {
                    continue;
                }
            }
            if !self.read(on_token)? {
                return Ok(());
            }
            // Rows that are free go to those who wait; where nobody does, fewer rows may be enough.
            let few = self.seats.taken().count();
            if waiting.peek().is_none() && self.decode.bucket(few.max(1)) < self.decode.bucket(self.seats.used()) {
                while self.read(on_token)? {}
                self.close_ranks()?;
            }
        }
    }

    /// Tokens that a completion may still have.
    fn left(&self, i: usize) -> usize {
        self.all[i].left(&self.limits[self.all[i].request])
    }

    /// Completions that are long enough may end from the next step on.
    fn free_ends(&mut self) -> Result<()> {
        let coming = |i: usize| self.all[i].made() + self.seats.coming(i);
        let freed = |i: usize| {
            let limit = &self.limits[self.all[i].request];
            coming(i) > 0 && limit.bars_ends(coming(i) - 1) && !limit.bars_ends(coming(i))
        };
        let rows: Vec<(usize, usize)> = self.seats.taken().filter(|&(_, i)| freed(i)).collect();
        rows.into_iter().try_for_each(|(row, i)| self.decode.choose(row, &[self.all[i].sampling.choice(&[])]))
    }

    /// Takes the tokens of the oldest step under way; false where there is none.
    fn read(&mut self, on_token: &mut impl FnMut(TokenEvent)) -> Result<bool> {
        let Some(tokens) = self.seats.read()? else { return Ok(false) };
        for (i, id, log_prob) in tokens {
            let s = &mut self.all[i];
            // Else it was computed before the end was known.
            if s.finish.is_none() {
                s.take(id, log_prob, &self.limits[s.request], on_token)?;
                if s.finish.is_some() {
                    self.blocks.give_back(&mut s.blocks);
                    self.leave(i)?;
                }
            }
        }
        Ok(true)
    }

    /// Gives a row to a completion, whose keys are all there but its last token's.
    fn seat(&mut self, row: usize, i: usize) -> Result<()> {
        let s = &self.all[i];
        let limit = &self.limits[s.request];
        let keys = s.ids.len();
        let seat = Slot {
            id: s.ids.last().copied().unwrap_or(0),
            position: (keys as i64 - 1 + limit.rope_delta) as i32,
            keys,
            limit: s.prompt + limit.max_new_tokens - 1,
            blocks: &s.blocks,
            draw: keys as i32,
            // Only a penalty looks at it.
            history: if s.sampling.repetition_penalty != 1.0 { &s.ids } else { &[] },
        };
        let bias = if limit.bars_ends(s.made()) { banned_tokens(&limit.eos) } else { Vec::new() };
        self.decode.seat(row, &[seat], &[s.sampling.choice(&bias)])?;
        self.seats.take(row, i);
        Ok(())
    }

    fn leave(&mut self, i: usize) -> Result<()> {
        self.seats.leave(i).map_or(Ok(()), |row| self.decode.clear(row, 1))
    }

    /// Moves completions to the first rows, while no step is under way.
    fn close_ranks(&mut self) -> Result<()> {
        let taken: Vec<(usize, usize)> = self.seats.taken().collect();
        for &(row, i) in taken.iter().rev() {
            let Some(free) = self.seats.free().filter(|&free| free < row) else { break };
            self.leave(i)?;
            self.seat(free, i)?;
        }
        Ok(())
    }
}
