//! The rows of a decode step, one row per sequence, in device memory. Everything that changes from step to step
//! (token, position, length, block table) is updated in device memory, so the host can enqueue a step, or replay it
//! as a captured graph, before it has read the tokens of the previous step.

use reel_device::launch::RowKeyCounts;
use reel_device::{Addr, DType, Device, in_op};
use reel_kernels::advance as kernel;
use reel_kernels::paged_attention::{BLOCK_TOKENS, counters_per_token};

use super::attention::{CuSeqlens, KvPages, UnrotatedRows};
use super::{TokenHistory, size, want_dtype, want_shape};
use crate::error::{Result, shape_error};
use crate::tensor::Tensor;
use crate::tensor::cx::Cx;

/// The state of a sequence when it is assigned to a row of the decode step.
#[derive(Clone, Copy, Debug)]
pub struct DecodeSlot<'a> {
    /// The input token of the next step.
    pub id: i32,
    /// The rotary position of the input token; text has the same position on every axis.
    pub position: i32,
    /// The number of cached keys, including the key of the input token, which the next step writes.
    pub keys: usize,
    /// Maximum number of keys of the sequence. Once it has this many keys, the token sampled next is its last.
    pub limit: usize,
    /// The cache blocks of the sequence. They cover one key more than `keys`, or `limit` keys; later blocks are added
    /// by [`DecodeRows::set_blocks`].
    pub blocks: &'a [i32],
    /// The index of the row's next random draw. The same seed and index always give the same random number.
    pub draw: i32,
    /// All tokens of the sequence so far, for penalties. Ignored if the rows were allocated without a history.
    pub history: &'a [i32],
    /// The number of the sequence's LoRA adapter, -1 for none. Ignored if the rows keep no adapter numbers.
    pub adapter: i32,
}

/// The `R` rows of a decode step. A row without a sequence is computed too, but its result has no effect.
#[derive(Clone, Debug)]
pub struct DecodeRows {
    /// i32 `[R]`: the input tokens of the next step.
    pub ids: Tensor,
    /// i32 `[1, R]`: the rotary positions of the input tokens.
    pub positions: Tensor,
    /// i32 `[R]`: the index of each row's next random draw. The same seed and index always give the same random
    /// number.
    pub draws: Tensor,
    kv_lens: Tensor,                   // i32 [R]
    kv_limits: Tensor,                 // i32 [R]
    tables: Tensor,                    // i32 [R, max_blocks]
    slots: Tensor,                     // i32 [R]
    history: Option<(Tensor, Tensor)>, // i32 [R, longest], i32 [R]
    adapters: Option<Tensor>,          // i32 [R]
    counters: Option<Tensor>,          // i32 [R, counters_per_token]
    unrotated: Option<UnrotatedRows>,  // for layers with head norms
    seqs: CuSeqlens,
    keys: RowKeyCounts, // as `kv_lens`, on the host
}

impl DecodeRows {
    /// Allocates `rows` unused rows with at most `max_blocks` cache blocks each. `max_history` is the maximum number
    /// of tokens that a row keeps for penalties; 0 keeps no history.
    pub fn new(device: &Device, rows: usize, max_blocks: usize, max_history: usize) -> Result<DecodeRows> {
        let zeros = |shape: &[usize]| Tensor::from_i32(device, shape, &vec![0; shape.iter().product()]);
        Ok(DecodeRows {
            ids: zeros(&[rows])?,
            positions: zeros(&[1, rows])?,
            draws: zeros(&[rows])?,
            kv_lens: zeros(&[rows])?,
            kv_limits: zeros(&[rows])?,
            tables: zeros(&[rows, max_blocks])?,
            slots: Tensor::from_i32(device, &[rows], &vec![-1; rows])?,
            history: if max_history > 0 { Some((zeros(&[rows, max_history])?, zeros(&[rows])?)) } else { None },
            adapters: None,
            counters: None,
            unrotated: None,
            seqs: CuSeqlens::from_lengths(device, &vec![1; rows])?,
            keys: RowKeyCounts::new(rows),
        })
    }

    /// Keeps a history of at most `max_history` tokens per row for penalties. All rows must be assigned again.
    pub fn enable_history(&mut self, device: &Device, max_history: usize) -> Result<()> {
        let zeros = |shape: &[usize]| Tensor::from_i32(device, shape, &vec![0; shape.iter().product()]);
        self.history = Some((zeros(&[self.rows(), max_history])?, zeros(&[self.rows()])?));
        Ok(())
    }

    /// Keeps the number of each row's LoRA adapter. All rows must be assigned again.
    pub fn enable_adapters(&mut self, device: &Device) -> Result<()> {
        self.adapters = Some(Tensor::from_i32(device, &[self.rows()], &vec![-1; self.rows()])?);
        Ok(())
    }

    /// Allocates the counters that attention needs if several blocks of threads share the keys of a row, for these
    /// numbers of query and key heads. The counters are 0 between launches.
    pub fn allocate_attention_counters(&mut self, device: &Device, heads: usize, kv_heads: usize) -> Result<()> {
        const OP: &str = "decode rows";
        let per_row = counters_per_token(size(OP, heads)?, size(OP, kv_heads)?) as usize;
        self.counters = Some(Tensor::from_i32(device, &[self.rows(), per_row], &vec![0; self.rows() * per_row])?);
        Ok(())
    }

    /// Allocates what layers with norms of heads of `head_dim` elements need.
    pub fn allocate_for_head_norms(&mut self, device: &Device, head_dim: usize) -> Result<()> {
        self.unrotated = Some(UnrotatedRows::new(device, self.rows(), head_dim)?);
        Ok(())
    }

    /// What layers with norms of heads need; `None` if it was not allocated.
    pub fn unrotated(&self) -> Option<&UnrotatedRows> {
        self.unrotated.as_ref()
    }

    /// i32 `[R]`: the number of each row's LoRA adapter, -1 for none; `None` if the rows keep no adapter numbers.
    pub fn adapter_numbers(&self) -> Option<&Tensor> {
        self.adapters.as_ref()
    }

    /// Returns the same rows for steps that neither read nor extend the token histories.
    pub fn without_history(&self) -> DecodeRows {
        DecodeRows { history: None, ..self.clone() }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.ids.count()
    }

    /// Maximum number of cache blocks per row.
    pub fn max_blocks(&self) -> usize {
        self.tables.shape()[1]
    }

    /// Maximum number of history tokens per row; 0 if no history is kept.
    pub fn max_history(&self) -> usize {
        self.history.as_ref().map_or(0, |h| h.0.shape()[1])
    }

    /// The histories of all rows, in the form that [`super::sample`] takes.
    pub fn history(&self) -> Option<TokenHistory<'_>> {
        self.history.as_ref().map(|(tokens, lens)| (tokens, lens))
    }

    /// Rows `first .. first + rows`, in the same memory.
    ///
    /// # Errors
    /// A range beyond the last row.
    pub fn row_range(&self, first: usize, rows: usize) -> Result<DecodeRows> {
        let part = |t: &Tensor| t.rows(first, rows);
        let flat = self.positions.reshape(&[self.rows()])?;
        let history = |(tokens, lens): &(Tensor, Tensor)| -> Result<_> { Ok((part(tokens)?, part(lens)?)) };
        Ok(DecodeRows {
            ids: part(&self.ids)?,
            positions: part(&flat)?.reshape(&[1, rows])?,
            draws: part(&self.draws)?,
            kv_lens: part(&self.kv_lens)?,
            kv_limits: part(&self.kv_limits)?,
            tables: part(&self.tables)?,
            slots: part(&self.slots)?,
            history: self.history.as_ref().map(history).transpose()?,
            adapters: self.adapters.as_ref().map(part).transpose()?,
            counters: self.counters.as_ref().map(part).transpose()?,
            unrotated: self.unrotated.as_ref().map(|unrotated| unrotated.first_rows(rows)).transpose()?,
            // Every row has one new token.
            seqs: self.seqs.first_sequences(rows)?,
            keys: self.keys.range(first, rows),
        })
    }

    /// The block tables of the rows. The costs of launches that use these tables change with the rows' numbers of keys.
    pub fn kv_pages(&self) -> KvPages {
        let max_keys = self.max_blocks() * BLOCK_TOKENS;
        let rows = [&self.kv_lens, &self.tables, &self.slots];
        KvPages::for_decode_rows(&self.seqs, (max_keys, &self.keys), rows, self.counters.as_ref())
    }

    /// Assigns sequences to the rows from `first` on. Takes effect after the launches made so far.
    ///
    /// # Errors
    /// A range beyond the last row; too few or too many blocks; a history that is too long.
    pub fn assign_rows(&self, first: usize, slots: &[DecodeSlot]) -> Result<()> {
        const OP: &str = "decode rows";
        let (n, width, longest) = (slots.len(), self.max_blocks(), self.max_history());
        let (mut tables, mut history) = (vec![0i32; n * width], vec![0i32; n * longest]);
        for (row, s) in slots.iter().enumerate() {
            let (most, needed) = (s.limit.div_ceil(BLOCK_TOKENS), (s.keys + 1).min(s.limit).div_ceil(BLOCK_TOKENS));
            if s.keys == 0 || s.keys > s.limit || most > width || s.blocks.len() < needed {
                let what = format!(
                    "{} keys (maximum {}) in {} cache blocks: a row needs 1 to maximum keys, and {needed} blocks for \
                     them and the next one; the maximum needs {most} blocks, at most {width}",
                    s.keys,
                    s.limit,
                    s.blocks.len()
                );
                return Err(shape_error(OP, what));
            }
            let blocks = s.blocks.len().min(most);
            tables[row * width..][..blocks].copy_from_slice(&s.blocks[..blocks]);
            if longest > 0 {
                let to = history[row * longest..][..longest].get_mut(..s.history.len());
                let what = || {
                    shape_error(
                        OP,
                        format!("the history has {} tokens, but a row keeps at most {longest}", s.history.len()),
                    )
                };
                to.ok_or_else(what)?.copy_from_slice(s.history);
            }
        }
        let write = |to: &Tensor, f: &dyn Fn(&DecodeSlot) -> i32| {
            to.rows(first, n)?.write(&slots.iter().map(f).collect::<Vec<i32>>())
        };
        let last = |s: &DecodeSlot| {
            s.blocks[(s.keys - 1) / BLOCK_TOKENS] * BLOCK_TOKENS as i32 + ((s.keys - 1) % BLOCK_TOKENS) as i32
        };
        write(&self.ids, &|s| s.id)?;
        write(&self.positions.reshape(&[self.rows()])?, &|s| s.position)?;
        write(&self.draws, &|s| s.draw)?;
        write(&self.kv_lens, &|s| s.keys as i32)?;
        write(&self.kv_limits, &|s| s.limit as i32)?;
        write(&self.slots, &last)?;
        self.tables.rows(first, n)?.write(&tables)?;
        if let Some(adapters) = &self.adapters {
            write(adapters, &|s| s.adapter)?;
        }
        self.keys.range(first, n).assign(slots.iter().map(|s| (s.keys, s.limit)));
        if let Some((tokens, lens)) = &self.history {
            write(lens, &|s| s.history.len() as i32)?;
            tokens.rows(first, n)?.write(&history)?;
        }
        Ok(())
    }

    /// Writes cache blocks into the block table of a row, from entry `index` on. Takes effect after the launches made
    /// so far.
    ///
    /// # Errors
    /// A row or an entry beyond the last one.
    pub fn set_blocks(&self, row: usize, index: usize, blocks: &[i32]) -> Result<()> {
        let width = self.max_blocks();
        if row >= self.rows() || index + blocks.len() > width {
            let what = format!(
                "cannot write {} cache blocks from entry {index} of the block table of row {row}",
                blocks.len()
            );
            return Err(shape_error(
                "decode rows",
                format!("{what}; there are {} rows with {width} entries each", self.rows()),
            ));
        }
        let entries = self.tables.reshape(&[self.rows() * width])?;
        entries.rows(row * width + index, blocks.len())?.write(blocks)
    }

    /// Marks `rows` rows of the batch, from row `first` on, as having no sequence. Takes effect after the launches made
    /// so far.
    ///
    /// # Errors
    /// A range beyond the last row.
    pub fn clear_rows(&self, first: usize, rows: usize) -> Result<()> {
        self.kv_lens.rows(first, rows)?.write(&vec![0i32; rows])?;
        self.keys.range(first, rows).assign(std::iter::repeat_n((0, 0), rows));
        self.slots.rows(first, rows)?.write(&vec![-1i32; rows])
    }

    /// Counts a step over these rows that was enqueued with [`Self::advance`], directly or as part of a captured
    /// graph. The cost estimates of the next step's launches then include one more key for each row in use.
    pub fn count_enqueued_step(&self) {
        self.keys.advance();
    }

    /// Ends a step: appends the sampled tokens `chosen` (i32 `[R]`) to the rows that have a sequence, see
    /// [`reel_kernels::advance`].
    ///
    /// # Errors
    /// A shape that does not match.
    pub fn advance(&self, cx: &Cx, chosen: &Tensor) -> Result<()> {
        let _op = in_op("advance");
        const OP: &str = "advance";
        want_shape(OP, "chosen", chosen, &[self.rows()], "one token for each row")?;
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
            max_blocks: size(OP, self.max_blocks())?,
            page_tokens: BLOCK_TOKENS as u32,
            history_cols: size(OP, self.max_history())?,
        };
        cx.launch(&kernel::advance(&params))
    }
}

#[cfg(test)]
mod tests;
