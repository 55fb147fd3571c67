//! The outputs of the decoder's matrix products and attention, which generation can keep for training.
//!
//! Where the bits of a row depend neither on the batch around it nor on whether it is decoded or computed with a whole
//! sequence (device `cpu`), training computes products that generation has computed before with the same weights.
//! A pass that fills the KV cache writes their outputs to [`KeptProducts`] as [`KeepRows`] says. Training picks the
//! rows of its batch ([`KeptProducts::of_batch`]) and computes only what is between the products: norms, rotation and
//! SwiGLU.

use std::cell::RefCell;

use reel_device::{DType, Device, MemoryCategory};
use reel_input::config::TextConfig;
use reel_runtime::{Cx, Tensor, ops};

use crate::error::Result;

/// How training computes the products that have the same input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProductLayout {
    /// One product for queries, keys and values, and one for gate and up: layers whose weights are trained.
    Joined,
    /// Each alone: layers with adapters, and frozen ones.
    Separate,
}

/// Products of a layer, or other outputs of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LayerProduct {
    /// Queries, keys and values before the rotation.
    Qkv,
    /// Attention.
    Attention,
    /// The log-sum-exp of each query head's scores, f32.
    Lse,
    /// The output projection of attention.
    O,
    /// Gate and up.
    GateUp,
    /// The output of the MLP.
    Down,
}

const PRODUCTS: usize = 6;

/// Memory for the outputs of all products of the decoder's layers. What the rows stand for is up to its owner.
#[derive(Debug)]
pub struct KeptProducts {
    /// The outputs of each layer by [`LayerProduct`], `[rows, columns]` each: one, or one for each of several products.
    layers: Vec<[Vec<Tensor>; PRODUCTS]>,
}

/// The outputs of the products of a batch, each until the forward pass takes it.
#[derive(Debug)]
pub struct KnownProducts {
    layers: RefCell<Vec<[Vec<Tensor>; PRODUCTS]>>,
}

/// Where a forward pass keeps the outputs of its products.
#[derive(Clone, Debug)]
pub struct KeepRows<'a> {
    /// The memory.
    pub products: &'a KeptProducts,
    /// The rows of all tokens of the pass.
    pub tokens: RowPlaces,
    /// The rows of the tokens whose hidden states are needed, if these are not all: the last layer computes only
    /// attention of the other ones.
    pub needed: RowPlaces,
}

/// The rows of [`KeptProducts`] to which rows of an output go.
#[derive(Clone, Debug)]
pub struct RowPlaces {
    /// i32 `[m]`: rows of the output; `None`: all in order.
    from: Option<Tensor>,
    /// i32 `[m]`: where each of them goes, nowhere if negative. No row of the memory occurs twice.
    to: Tensor,
}

impl RowPlaces {
    /// Row i of the output goes to row `to[i]` (i32 `[m]`), or nowhere if that is negative.
    pub fn of_all(to: &Tensor) -> RowPlaces {
        RowPlaces { from: None, to: to.clone() }
    }

    /// The places of pairs (row of the output, row of the memory). A row of the output may occur several times.
    pub fn of_pairs(device: &Device, pairs: &[(usize, usize)]) -> Result<RowPlaces> {
        let column = |of: fn(&(usize, usize)) -> usize| {
            let column: Vec<i32> = pairs.iter().map(|pair| of(pair) as i32).collect();
            Tensor::from_i32(device, &[column.len()], &column)
        };
        Ok(RowPlaces { from: Some(column(|pair| pair.0)?), to: column(|pair| pair.1)? })
    }
}

impl KeptProducts {
    /// Allocates `rows` rows for each product. `dtype` is that of activations.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(
        device: &Device,
        config: &TextConfig,
        layout: ProductLayout,
        dtype: DType,
        rows: usize,
    ) -> Result<KeptProducts> {
        let one = |(columns, dtype)| Ok(Tensor::empty(device, &[rows, columns], dtype, MemoryCategory::Activations)?);
        let layer = |_| try_map(columns(config, layout, dtype), |of_product| of_product.into_iter().map(one).collect());
        Ok(KeptProducts { layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()? })
    }

    /// The bytes that [`KeptProducts::new`] allocates.
    pub fn bytes(config: &TextConfig, layout: ProductLayout, dtype: DType, rows: usize) -> u64 {
        let all = columns(config, layout, dtype).into_iter().flatten();
        let row_bytes = all.map(|(columns, dtype)| columns * dtype.size()).sum::<usize>();
        (rows as u64).saturating_mul((row_bytes * config.num_hidden_layers) as u64)
    }

    /// All outputs, `[rows, columns]` each.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.layers.iter().flatten().flatten()
    }

    /// The outputs of the products of a batch: `tokens` has the row of each token, and `needed` those of the tokens
    /// whose hidden states are needed, for the last layer. Rows that follow each other are not copied.
    ///
    /// # Errors
    /// Out of memory.
    pub fn of_batch(&self, cx: &Cx, tokens: &[i32], needed: &[i32]) -> Result<KnownProducts> {
        let cx = cx.without_tape();
        let (tokens, needed) = (Rows::new(&cx, tokens)?, Rows::new(&cx, needed)?);
        let of_layer = |(index, outputs): (usize, &[Vec<Tensor>; PRODUCTS])| {
            let is_last = index + 1 == self.layers.len();
            try_map(std::array::from_fn(|product| (product, &outputs[product])), |(product, outputs)| {
                let is_after_attention = product > LayerProduct::Lse as usize;
                let rows = if is_last && is_after_attention { &needed } else { &tokens };
                outputs.iter().map(|output| rows.of(&cx, output)).collect()
            })
        };
        let layers = self.layers.iter().enumerate().map(of_layer).collect::<Result<_>>()?;
        Ok(KnownProducts { layers: RefCell::new(layers) })
    }
}

impl KnownProducts {
    /// Returns the outputs of a product, once; then none.
    pub(crate) fn take(&self, layer: usize, product: LayerProduct) -> Vec<Tensor> {
        let mut layers = self.layers.borrow_mut();
        layers.get_mut(layer).map(|outputs| std::mem::take(&mut outputs[product as usize])).unwrap_or_default()
    }
}

impl KeepRows<'_> {
    /// Keeps the outputs `parts` of a product, of the tokens whose hidden states are needed or of all.
    pub(crate) fn write(
        &self,
        cx: &Cx,
        (layer, product): (usize, LayerProduct),
        parts: &[&Tensor],
        of_needed: bool,
    ) -> Result<()> {
        let RowPlaces { from, to } = if of_needed { &self.needed } else { &self.tokens };
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

/// The number of columns of each product's outputs, and their dtype; that of activations is `dtype`.
fn columns(config: &TextConfig, layout: ProductLayout, dtype: DType) -> [Vec<(usize, DType)>; PRODUCTS] {
    let (h, inner, heads) = (config.hidden_size, config.intermediate_size, config.num_attention_heads);
    let [q, kv] = [heads, config.num_key_value_heads].map(|heads| heads * config.head_dim);
    let of_products = |columns: &[usize]| match layout {
        ProductLayout::Joined => vec![(columns.iter().sum(), dtype)],
        ProductLayout::Separate => columns.iter().map(|&columns| (columns, dtype)).collect(),
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
    /// Rows that follow each other: the first one and their number.
    Range(usize, usize),
    /// i32 `[m]`
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
