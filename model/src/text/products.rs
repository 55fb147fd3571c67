//! Stores outputs of the decoder's matrix products and attention in generation, for reuse in training.
//!
//! On device `cpu` a row has the same bits in a decode step and in a pass over a whole sequence, in any batch. So
//! training would compute products again that generation has computed with the same weights. Instead, a pass that fills
//! the KV cache writes their outputs to [`StoredOutputs`], in the rows that [`OutputDestination`] names. Training reads
//! the rows of its batch ([`StoredOutputs::outputs_of_batch`]) and computes only the norms, the rotation and SwiGLU.

use std::cell::RefCell;

use reel_device::{DType, Device, MemoryCategory};
use reel_input::config::TextConfig;
use reel_runtime::{Cx, Tensor, ops};

use crate::error::Result;

/// How training computes matrix products that have the same input (q, k and v; gate and up).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatmulGrouping {
    /// One product for queries, keys and values, and one for gate and up, in layers whose weights are trained.
    Joined,
    /// One product for each weight, in layers with adapters and in frozen layers.
    Separate,
}

/// The outputs of a decoder layer that are stored: of matrix products and of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LayerOutput {
    /// Queries, keys and values before the rotation.
    Qkv,
    /// The output of attention.
    Attention,
    /// The log-sum-exp of each query head's scores, f32.
    Lse,
    /// The output of the output projection (o) of attention.
    O,
    /// The outputs of the MLP's projections gate and up.
    GateUp,
    /// The output of the MLP's projection down.
    Down,
}

const PRODUCTS: usize = 6;

/// Memory for the outputs of all matrix products of the decoder's layers. The owner decides which token each row is
/// for.
#[derive(Debug)]
pub struct StoredOutputs {
    /// For each layer and [`LayerOutput`], the outputs `[rows, columns]`: one tensor, or one for each separate
    /// product.
    layers: Vec<[Vec<Tensor>; PRODUCTS]>,
}

/// The stored outputs for a training batch. The forward pass takes each of them once.
#[derive(Debug)]
pub struct ReusedOutputs {
    layers: RefCell<Vec<[Vec<Tensor>; PRODUCTS]>>,
}

/// Where a forward pass stores the outputs of its matrix products.
#[derive(Clone, Debug)]
pub struct OutputDestination<'a> {
    /// The memory that the outputs are written to.
    pub products: &'a StoredOutputs,
    /// The rows of the memory for all tokens of the pass.
    pub tokens: RowDestinations,
    /// The rows of the memory for the tokens whose hidden states are needed. For all other tokens, the last layer
    /// computes only attention.
    pub needed: RowDestinations,
}

/// Assigns rows of an output to the rows of [`StoredOutputs`] that store them.
#[derive(Clone, Debug)]
pub struct RowDestinations {
    /// i32 `[m]`: the rows of the output to store; `None`: all rows in order.
    from: Option<Tensor>,
    /// i32 `[m]`: the row of [`StoredOutputs`] for each row in `from`, each at most once. A row with a negative
    /// number is not stored.
    to: Tensor,
}

impl RowDestinations {
    /// Assigns row i of the output to row `to[i]` (i32 `[m]`); it is not stored if `to[i]` is negative.
    pub fn of_all_rows(to: &Tensor) -> RowDestinations {
        RowDestinations { from: None, to: to.clone() }
    }

    /// Assigns rows by pairs (row of the output, row of [`StoredOutputs`]). A row of the output may occur several
    /// times.
    pub fn from_pairs(device: &Device, pairs: &[(usize, usize)]) -> Result<RowDestinations> {
        let column = |of: fn(&(usize, usize)) -> usize| {
            let column: Vec<i32> = pairs.iter().map(|pair| of(pair) as i32).collect();
            Tensor::from_i32(device, &[column.len()], &column)
        };
        Ok(RowDestinations { from: Some(column(|pair| pair.0)?), to: column(|pair| pair.1)? })
    }
}

impl StoredOutputs {
    /// Allocates `rows` rows for each matrix product. `dtype` is the dtype of activations.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(
        device: &Device,
        config: &TextConfig,
        grouping: MatmulGrouping,
        dtype: DType,
        rows: usize,
    ) -> Result<StoredOutputs> {
        let one = |(columns, dtype)| Ok(Tensor::empty(device, &[rows, columns], dtype, MemoryCategory::Activations)?);
        let layer =
            |_| try_map(columns(config, grouping, dtype), |of_product| of_product.into_iter().map(one).collect());
        Ok(StoredOutputs { layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()? })
    }

    /// The bytes that [`StoredOutputs::new`] allocates.
    pub fn bytes(config: &TextConfig, grouping: MatmulGrouping, dtype: DType, rows: usize) -> u64 {
        let all = columns(config, grouping, dtype).into_iter().flatten();
        let row_bytes = all.map(|(columns, dtype)| columns * dtype.size()).sum::<usize>();
        (rows as u64).saturating_mul((row_bytes * config.num_hidden_layers) as u64)
    }

    /// All outputs, `[rows, columns]` each.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.layers.iter().flatten().flatten()
    }

    /// Moves the rows `from`, which ascend, to the first rows. The other rows lose their content.
    ///
    /// # Errors
    /// Out of memory.
    pub fn compact_rows(&self, cx: &Cx, from: &[i32]) -> Result<()> {
        let cx = cx.without_tape();
        let stay = (0..).zip(from).take_while(|&(to, &from)| to == from).count();
        let moved = &from[stay..];
        if moved.is_empty() {
            return Ok(());
        }
        let to: Vec<i32> = (stay as i32..).take(moved.len()).collect();
        let [from, to] = [moved, &to].map(|rows| Tensor::from_i32(cx.device(), &[rows.len()], rows));
        let (from, to) = (from?, to?);
        for output in self.tensors() {
            ops::write_rows(&cx, &ops::gather_rows(&cx, output, &from)?, &to, output, 0)?;
        }
        Ok(())
    }

    /// Returns the stored outputs for a training batch. `tokens` has the row of each token, and `needed` the rows of
    /// the tokens whose hidden states are needed, for the last layer. Consecutive rows are not copied.
    ///
    /// # Errors
    /// Out of memory.
    pub fn outputs_of_batch(&self, cx: &Cx, tokens: &[i32], needed: &[i32]) -> Result<ReusedOutputs> {
        let cx = cx.without_tape();
        let (tokens, needed) = (Rows::new(&cx, tokens)?, Rows::new(&cx, needed)?);
        let of_layer = |(index, outputs): (usize, &[Vec<Tensor>; PRODUCTS])| {
            let is_last = index + 1 == self.layers.len();
            try_map(std::array::from_fn(|product| (product, &outputs[product])), |(product, outputs)| {
                let is_after_attention = product > LayerOutput::Lse as usize;
                let rows = if is_last && is_after_attention { &needed } else { &tokens };
                outputs.iter().map(|output| rows.of(&cx, output)).collect()
            })
        };
        let layers = self.layers.iter().enumerate().map(of_layer).collect::<Result<_>>()?;
        Ok(ReusedOutputs { layers: RefCell::new(layers) })
    }
}

impl ReusedOutputs {
    /// Takes the outputs of a matrix product. A second call for the same product returns none.
    pub(crate) fn take_outputs(&self, layer: usize, product: LayerOutput) -> Vec<Tensor> {
        let mut layers = self.layers.borrow_mut();
        layers.get_mut(layer).map(|outputs| std::mem::take(&mut outputs[product as usize])).unwrap_or_default()
    }
}

impl OutputDestination<'_> {
    /// Stores the outputs `parts` of a matrix product. The rows of the outputs are all tokens of the pass; with
    /// `of_needed`, only the tokens whose hidden states are needed.
    pub(crate) fn write(
        &self,
        cx: &Cx,
        (layer, product): (usize, LayerOutput),
        parts: &[&Tensor],
        of_needed: bool,
    ) -> Result<()> {
        let RowDestinations { from, to } = if of_needed { &self.needed } else { &self.tokens };
        if to.count() == 0 {
            return Ok(());
        }
        let outputs = &self.products.layers[layer][product as usize];
        let (mut output, mut column) = (0, 0);
        for part in parts {
            if column == outputs[output].shape()[1] && output + 1 < outputs.len() {
                (output, column) = (output + 1, 0);
            }
            let rows = part.shape()[0];
            let part = part.reshape(&[rows, part.count() / rows.max(1)])?;
            let width = part.shape()[1];
            let part = match from {
                Some(from) => ops::gather_rows(cx, &part, from)?,
                None => part,
            };
            ops::write_rows(cx, &part, to, &outputs[output], column)?;
            column += width;
        }
        Ok(())
    }
}

/// The number of columns and the dtype of each product's outputs; `dtype` is the dtype of activations.
fn columns(config: &TextConfig, grouping: MatmulGrouping, dtype: DType) -> [Vec<(usize, DType)>; PRODUCTS] {
    let (h, inner, heads) = (config.hidden_size, config.intermediate_size, config.num_attention_heads);
    let [q, kv] = [heads, config.num_key_value_heads].map(|heads| heads * config.head_dim);
    let of_products = |columns: &[usize]| match grouping {
        MatmulGrouping::Joined => vec![(columns.iter().sum(), dtype)],
        MatmulGrouping::Separate => columns.iter().map(|&columns| (columns, dtype)).collect(),
    };
    let one = |columns| vec![(columns, dtype)];
    [of_products(&[q, kv, kv]), one(q), vec![(heads, DType::F32)], one(h), of_products(&[inner, inner]), one(h)]
}

/// The results of `f` for all elements, or its first error.
fn try_map<T, U: Default, const N: usize>(of: [T; N], mut f: impl FnMut(T) -> Result<U>) -> Result<[U; N]> {
    let mut failed = None;
    let results = of.map(|x| {
        f(x).unwrap_or_else(|e| {
            failed.get_or_insert(e);
            U::default()
        })
    });
    failed.map_or(Ok(results), Err)
}

/// Some rows of a tensor.
enum Rows {
    /// Consecutive rows, as the first row and the number of rows.
    Range(usize, usize),
    /// A list of row indices, i32 `[m]`.
    Listed(Tensor),
}

impl Rows {
    fn new(cx: &Cx, rows: &[i32]) -> Result<Rows> {
        let first = rows.first().copied().unwrap_or(0);
        match (first..).zip(rows).all(|(next, &row)| next == row) {
            true => Ok(Rows::Range(first as usize, rows.len())),
            false => Ok(Rows::Listed(Tensor::from_i32(cx.device(), &[rows.len()], rows)?)),
        }
    }

    fn of(&self, cx: &Cx, t: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Rows::Range(first, count) => t.rows(*first, *count)?,
            Rows::Listed(rows) => ops::gather_rows(cx, t, rows)?,
        })
    }
}
