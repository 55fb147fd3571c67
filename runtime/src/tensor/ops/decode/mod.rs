//! The rows of a decode step, in device memory: what changes from step to step changes there, so that a step can be asked for, and replayed,
//! before the host has seen the one before.

use reel_kernels::paged_attention::BLOCK;
use reel_kernels::{Addr, DType, advance as kernel};

use super::attention::{CuSeqlens, KvPages};
use super::{History, size, want_dtype, want_shape};
use crate::device::Device;
use crate::error::{Result, shape_error};
use crate::tensor::Tensor;
use crate::tensor::cx::Cx;

/// A sequence that takes a row: where its next step begins.
#[derive(Clone, Copy, Debug)]
pub struct Slot<'a> {
    /// The token that the next step takes.
    pub id: i32,
    /// Its rotary position, the same on every axis.
    pub position: i32,
    /// Keys of the sequence with that token's.
    pub keys: usize,
    /// The most keys that the sequence may have: with as many the row ends after its next token.
    pub limit: usize,
    /// The cache blocks of its keys, for all of `limit`.
    pub blocks: &'a [i32],
    /// Number of the next draw.
    pub draw: i32,
    /// Tokens so far; left out where the rows have no history.
    pub history: &'a [i32],
}

/// `R` rows of a decode step. A row that no sequence has takes part without effect.
#[derive(Clone, Debug)]
pub struct DecodeRows {
    /// i32 `[R]`: the tokens that the next step takes.
    pub ids: Tensor,
    /// i32 `[1, R]`: their rotary positions.
    pub positions: Tensor,
    /// i32 `[R]`: numbers of the rows' draws.
    pub draws: Tensor,
    kv_lens: Tensor,                   // i32 [R]
    kv_limits: Tensor,                 // i32 [R]
    tables: Tensor,                    // i32 [R, width]
    slots: Tensor,                     // i32 [R]
    history: Option<(Tensor, Tensor)>, // i32 [R, longest], i32 [R]
    seqs: CuSeqlens,
}

impl DecodeRows {
    /// Room for `rows` rows of up to `width` cache blocks, and of up to `history` tokens of history where that is not 0; none is in use.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(device: &Device, rows: usize, width: usize, history: usize) -> Result<DecodeRows> {
        let zeros = |shape: &[usize]| Tensor::from_i32(device, shape, &vec![0; shape.iter().product()]);
        Ok(DecodeRows {
            ids: zeros(&[rows])?,
            positions: zeros(&[1, rows])?,
            draws: zeros(&[rows])?,
            kv_lens: zeros(&[rows])?,
            kv_limits: zeros(&[rows])?,
            tables: zeros(&[rows, width])?,
            slots: Tensor::from_i32(device, &[rows], &vec![-1; rows])?,
            history: if history > 0 { Some((zeros(&[rows, history])?, zeros(&[rows])?)) } else { None },
            seqs: CuSeqlens::from_lengths(device, &vec![1; rows])?,
        })
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.ids.count()
    }

    /// Cache blocks that a row may have.
    pub fn width(&self) -> usize {
        self.tables.shape()[1]
    }

    /// Tokens of history that a row may have; 0: none is kept.
    pub fn longest(&self) -> usize {
        self.history.as_ref().map_or(0, |h| h.0.shape()[1])
    }

    /// The history, for [`super::sample`].
    pub fn history(&self) -> Option<History<'_>> {
        self.history.as_ref().map(|(tokens, lens)| (tokens, lens))
    }

    /// `rows` of them from `first` on, in the same memory.
    ///
    /// # Errors
    /// More than there are.
    pub fn part(&self, first: usize, rows: usize) -> Result<DecodeRows> {
        let part = |t: &Tensor| t.rows(first, rows);
        let flat = self.positions.reshape(&[self.rows()])?;
        let history = |(tokens, lens): &(Tensor, Tensor)| Ok((part(tokens)?, part(lens)?));
        Ok(DecodeRows {
            ids: part(&self.ids)?,
            positions: part(&flat)?.reshape(&[1, rows])?,
            draws: part(&self.draws)?,
            kv_lens: part(&self.kv_lens)?,
            kv_limits: part(&self.kv_limits)?,
            tables: part(&self.tables)?,
            slots: part(&self.slots)?,
            history: self.history.as_ref().map(history).transpose()?,
            // One token each, whichever they are.
            seqs: self.seqs.first(rows)?,
        })
    }

    /// Where the step's keys go and which it sees. Its cost counts every row as long as may be.
    pub fn pages(&self) -> KvPages {
        let longest = self.width() * BLOCK;
        KvPages::of_rows(&self.seqs, longest, [&self.kv_lens, &self.tables, &self.slots])
    }

    /// Gives the rows from `first` on to sequences, behind the launches so far.
    ///
    /// # Errors
    /// Rows beyond the last; blocks or histories that do not fit.
    pub fn assign(&self, first: usize, seats: &[Slot]) -> Result<()> {
        const OP: &str = "decode rows";
        let (n, width, longest) = (seats.len(), self.width(), self.longest());
        let (mut tables, mut history) = (vec![0i32; n * width], vec![0i32; n * longest]);
        for (row, s) in seats.iter().enumerate() {
            let blocks = s.limit.div_ceil(BLOCK);
            if s.keys == 0 || s.keys > s.limit || blocks > width || s.blocks.len() < blocks {
                let what = format!("{} keys of {} in {} blocks, rows have {width}", s.keys, s.limit, s.blocks.len());
                return Err(shape_error(OP, what));
            }
            tables[row * width..][..blocks].copy_from_slice(&s.blocks[..blocks]);
            if longest > 0 {
                let to = history[row * longest..][..longest].get_mut(..s.history.len());
                let what = || shape_error(OP, format!("a history of {}, rows have {longest}", s.history.len()));
                to.ok_or_else(what)?.copy_from_slice(s.history);
            }
        }
        let write = |to: &Tensor, f: &dyn Fn(&Slot) -> i32| {
            to.rows(first, n)?.write(&seats.iter().map(f).collect::<Vec<i32>>())
        };
        let last = |s: &Slot| s.blocks[(s.keys - 1) / BLOCK] * BLOCK as i32 + ((s.keys - 1) % BLOCK) as i32;
        write(&self.ids, &|s| s.id)?;
        write(&self.positions.reshape(&[self.rows()])?, &|s| s.position)?;
        write(&self.draws, &|s| s.draw)?;
        write(&self.kv_lens, &|s| s.keys as i32)?;
        write(&self.kv_limits, &|s| s.limit as i32)?;
        write(&self.slots, &last)?;
        self.tables.rows(first, n)?.write(&tables)?;
        if let Some((tokens, lens)) = &self.history {
            write(lens, &|s| s.history.len() as i32)?;
            tokens.rows(first, n)?.write(&history)?;
        }
        Ok(())
    }

    /// Takes `rows` rows from `first` on out of use, behind the launches so far.
    ///
    /// # Errors
    /// Rows beyond the last.
    pub fn clear(&self, first: usize, rows: usize) -> Result<()> {
        self.kv_lens.rows(first, rows)?.write(&vec![0i32; rows])?;
        self.slots.rows(first, rows)?.write(&vec![-1i32; rows])
    }

    /// Ends a step: every row in use takes its token of `chosen` (i32 `[R]`), see [`reel_kernels::advance`].
    ///
    /// # Errors
    /// A shape that does not fit.
    pub fn advance(&self, cx: &Cx, chosen: &Tensor) -> Result<()> {
        const OP: &str = "advance";
        want_shape(OP, "chosen", chosen, &[self.rows()], "one for each row")?;
        want_dtype(OP, "chosen", chosen, DType::I32)?;
        let of = |f: fn(&(Tensor, Tensor)) -> &Tensor| self.history.as_ref().map_or(Addr::NULL, |h| f(h).addr());
        let params = kernel::Params {
            chosen: chosen.addr(),
            ids: self.ids.addr(),
            positions: self.positions.addr(),
            kv_lens: self.kv_lens.addr(),
            kv_limits: self.kv_limits.addr(),
            block_tables: self.tables.addr(),
            slots: self.slots.addr(),
            draws: self.draws.addr(),
            history: of(|h| &h.0),
            history_lens: of(|h| &h.1),
            rows: size(OP, self.rows())?,
            max_blocks: size(OP, self.width())?,
            page: BLOCK as u32,
            history_cols: size(OP, self.longest())?,
        };
        cx.launch(&kernel::advance(&params))
    }
}

/// Fills a tensor of floats with zeros.
///
/// # Errors
/// What the device reports.
pub fn fill_zero(x: &Tensor) -> Result<()> {
    crate::tensor::tape::zero(x)
}

#[cfg(test)]
mod tests;
