//! Tensor parallelism: N processes (ranks) compute one model, each with 1/N of the decoder's weights and KV cache.
//!
//! Every matrix product is divided by its output columns, so a rank has whole rows of each weight `[n, k]`. No sum
//! over k is divided: the ranks gather outputs and never add them. Each element is computed by the same kernel and in
//! the same order of k as in a single process, so the bits do not depend on N.
//!
//! ```text
//! q, k, v = x · the rows of this rank's heads              [S, heads / N · D]
//! a       = gather(attention(q, k, v))                     [S, heads · D]
//! x       = x + gather(a · own rows of o)                  [S, H]
//! inner   = gather(silu(x · own rows of gate) · (x · own rows of up))
//! x       = x + gather(inner · own rows of down)           [S, H]
//! logits  = gather(x · own rows of the head)               [R, V]
//! ```
//!
//! The vision tower, the embedding table and the norms are whole on every rank.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use reel_input::config::{ModelConfig, TextConfig};
use reel_runtime::{Cx, Tensor, ops};
use reel_support::diagnostic::Diagnostic;

use crate::error::{Error, Kind, Result};

/// Each rank's part of a width is a multiple of this number of columns, so that rows of bf16 begin at multiples of 16
/// bytes, as kernels with bulk tensor copies need.
const COLUMN_STEP: usize = 8;

/// Gathers of at most this many rows keep their index tensors for the next gather. Decode steps have so few rows.
const MAX_KEPT_ROWS: usize = 256;

/// The maximum number of possible rank counts that an error message lists.
const MAX_LISTED_RANKS: usize = 16;

/// Exchanges of tensors between the ranks that compute a model together. All ranks make the same calls in the same
/// order.
pub trait ShardExchange: std::fmt::Debug + Send + Sync {
    /// The number of this rank, counted from 0.
    fn rank(&self) -> usize;

    /// The number of ranks.
    fn size(&self) -> usize;

    /// Fills `parts[r]` with the tensor `own` of rank r, for all ranks including this rank. `name` appears in
    /// messages.
    ///
    /// # Errors
    /// Another rank has failed; a device error.
    fn all_gather(&self, name: &str, own: &Tensor, parts: &[Tensor]) -> Result<(), Diagnostic>;
}

/// The part of the rows of a weight that a rank has: part `index` of `count` equal parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowShare {
    pub(crate) index: usize,
    pub(crate) count: usize,
}

impl RowShare {
    /// The share that has all rows.
    pub(crate) const ALL_ROWS: RowShare = RowShare { index: 0, count: 1 };

    /// The rows of this part, of `rows` in total.
    pub(crate) fn row_range(self, rows: usize) -> Range<usize> {
        rows * self.index / self.count..rows * (self.index + 1) / self.count
    }

    /// The shape of this part of a tensor of shape `whole`, whose rows are its first dimension.
    pub(crate) fn shape_of_part<const D: usize>(self, mut whole: [usize; D]) -> [usize; D] {
        whole.iter_mut().take(1).for_each(|rows| *rows = self.row_range(*rows).len());
        whole
    }
}

/// The index tensors for gathers of R rows among N ranks.
#[derive(Clone, Debug)]
struct GatherIndices {
    /// i32 `[R · N]`: for each row and rank, the row of the staging buffer `[N · R, columns / N]`.
    join: Tensor,
    /// i32 `[R]`: for each row, the row of `[R · N, columns / N]` that has this rank's columns.
    own: Tensor,
}

/// The division of a model among ranks, from the view of one rank.
#[derive(Clone, Debug)]
pub struct TensorParallel {
    exchange: Arc<dyn ShardExchange>,
    indices: Arc<Mutex<BTreeMap<usize, GatherIndices>>>,
}

impl TensorParallel {
    /// Divides a model among the ranks of `exchange`.
    ///
    /// # Errors
    /// A size in `config` cannot be divided among so many ranks; the error names the field.
    pub fn new(exchange: Arc<dyn ShardExchange>, config: &ModelConfig) -> Result<TensorParallel> {
        Self::check(config, exchange.size())?;
        Ok(TensorParallel { exchange, indices: Arc::default() })
    }

    /// Checks that the decoder can be divided among `ranks` ranks.
    ///
    /// # Errors
    /// A size in `config` cannot be divided; the error names the field and the numbers of ranks that are possible.
    pub fn check(config: &ModelConfig, ranks: usize) -> Result<()> {
        let Some((field, size, step)) = indivisible(&config.text, ranks) else { return Ok(()) };
        let possible: Vec<String> = (1..=MAX_LISTED_RANKS)
            .filter(|&ranks| indivisible(&config.text, ranks).is_none())
            .map(|ranks| ranks.to_string())
            .collect();
        let unit = if step > 1 { format!(" in multiples of {step}") } else { String::new() };
        let what = format!("is {size}, which {ranks} processes cannot share equally{unit}");
        Err(Error::input(
            format!("config.json: {field}"),
            what,
            format!("give --tensor-parallel-size {}", possible.join(" or ")),
        ))
    }

    /// The part of each weight's rows that this rank has.
    pub(crate) fn row_share(&self) -> RowShare {
        RowShare { index: self.exchange.rank(), count: self.exchange.size() }
    }

    /// The number of ranks.
    pub fn rank_count(&self) -> usize {
        self.exchange.size()
    }

    /// The sizes of this rank's part of the decoder: the number of its heads instead of all heads.
    pub fn config_of_one_rank(text: &TextConfig, ranks: usize) -> TextConfig {
        TextConfig {
            num_attention_heads: text.num_attention_heads / ranks,
            num_key_value_heads: text.num_key_value_heads / ranks,
            ..text.clone()
        }
    }

    /// Returns the parts `[R, columns / N]` of all ranks side by side, `[R, columns]`. `part` is the part of this rank.
    ///
    /// # Errors
    /// Another rank has failed; out of memory.
    pub(crate) fn gather(&self, cx: &Cx, name: &str, part: &Tensor) -> Result<Tensor> {
        let (rows, columns, ranks) = (part.shape()[0], part.shape()[1], self.exchange.size());
        if rows == 0 {
            return Ok(cx.empty(&[0, columns * ranks], part.dtype())?);
        }
        let staged = cx.empty(&[ranks * rows, columns], part.dtype())?;
        let parts = (0..ranks).map(|rank| staged.rows(rank * rows, rows)).collect::<Result<Vec<_>, _>>()?;
        self.exchange.all_gather(name, part, &parts).map_err(|d| Kind::Rank.error(d))?;
        // The parts of a single row follow each other already.
        let joined = match rows {
            1 => staged,
            _ => ops::gather_rows(cx, &staged, &self.indices(cx, rows)?.join)?,
        };
        Ok(joined.reshape(&[rows, columns * ranks])?)
    }

    /// The columns of x `[R, columns]` that belong to this rank, `[R, columns / N]`.
    ///
    /// # Errors
    /// Out of memory.
    pub(crate) fn columns_of_this_rank(&self, cx: &Cx, x: &Tensor) -> Result<Tensor> {
        let (rows, ranks) = (x.shape()[0], self.exchange.size());
        let cut = x.reshape(&[rows * ranks, x.shape()[1] / ranks])?;
        Ok(match rows {
            1 => cut.rows(self.exchange.rank(), 1)?,
            _ => ops::gather_rows(cx, &cut, &self.indices(cx, rows)?.own)?,
        })
    }

    fn indices(&self, cx: &Cx, rows: usize) -> Result<GatherIndices> {
        let mut kept = self.indices.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(indices) = kept.get(&rows) {
            return Ok(indices.clone());
        }
        let (rank, ranks) = (self.exchange.rank(), self.exchange.size());
        let join: Vec<i32> = (0..rows).flat_map(|row| (0..ranks).map(move |r| (r * rows + row) as i32)).collect();
        let own: Vec<i32> = (0..rows).map(|row| (row * ranks + rank) as i32).collect();
        let indices = GatherIndices {
            join: Tensor::from_i32(cx.device(), &[join.len()], &join)?,
            own: Tensor::from_i32(cx.device(), &[own.len()], &own)?,
        };
        if rows <= MAX_KEPT_ROWS {
            kept.insert(rows, indices.clone());
        }
        Ok(indices)
    }
}

/// The first config field whose value cannot be divided among `ranks` ranks. Returns the field's name, its value, and
/// the step: each rank's part must be a multiple of the step.
fn indivisible(text: &TextConfig, ranks: usize) -> Option<(&'static str, usize, usize)> {
    let fields = [
        ("num_attention_heads", text.num_attention_heads, 1),
        ("num_key_value_heads", text.num_key_value_heads, 1),
        ("hidden_size", text.hidden_size, COLUMN_STEP),
        ("intermediate_size", text.intermediate_size, COLUMN_STEP),
        ("vocab_size", text.vocab_size, COLUMN_STEP),
    ];
    fields.into_iter().find(|(_, size, step)| ranks > 1 && !size.is_multiple_of(ranks * step))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::{InitOptions, Preset, preset_config};

    fn config(preset: Preset) -> ModelConfig {
        preset_config(&InitOptions { preset, layers: None, vocab: None, dtype: None, seed: 0 }).unwrap()
    }

    #[test]
    fn an_error_names_the_field_and_the_numbers_of_ranks_that_work() {
        let error = |preset, ranks| TensorParallel::check(&config(preset), ranks).map_err(|e| e.to_string());
        let of_3b = "config.json: num_key_value_heads: is 2, which 4 processes cannot share equally; \
                     give --tensor-parallel-size 1 or 2";
        assert_eq!(error(Preset::B3, 4).unwrap_err(), of_3b);
        let of_7b = "config.json: num_attention_heads: is 28, which 3 processes cannot share equally; \
                     give --tensor-parallel-size 1 or 2 or 4";
        assert_eq!(error(Preset::B7, 3).unwrap_err(), of_7b);
        assert_eq!(error(Preset::B32, 8), Ok(()));
        assert_eq!(error(Preset::B72, 8), Ok(()));
        for preset in [Preset::Qwen3B2, Preset::Qwen3B4, Preset::Qwen3B8, Preset::Qwen3B32] {
            assert_eq!(error(preset, 8), Ok(()), "{preset:?}");
        }
    }

    #[test]
    fn the_parts_of_all_ranks_are_all_rows() {
        let parts: Vec<Range<usize>> = (0..4).map(|index| RowShare { index, count: 4 }.row_range(24)).collect();
        assert_eq!(parts, [0..6, 6..12, 12..18, 18..24]);
        assert_eq!(RowShare::ALL_ROWS.row_range(7), 0..7);
        assert_eq!(RowShare { index: 1, count: 2 }.shape_of_part([8, 3]), [4, 3]);
    }
}
