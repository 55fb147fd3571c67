//! The KV cache of a decoder.

use reel_device::{DType, Device, MemoryCategory};
use reel_input::config::TextConfig;
use reel_runtime::ops::{self, KvPages};
use reel_runtime::{Cx, Tensor};

use crate::error::Result;

/// The KV cache: keys and values of past tokens, in blocks of [`KvPages::BLOCK_TOKENS`] tokens. A block table assigns
/// blocks to sequences.
#[derive(Debug)]
pub struct KvCache {
    /// Keys and values of each layer, each `[blocks, BLOCK_TOKENS, Hkv, D]`.
    pub(super) layers: Vec<(Tensor, Tensor)>,
    blocks: usize,
}

impl KvCache {
    /// Allocates memory for `blocks` blocks of keys and values in every layer.
    pub fn new(device: &Device, config: &TextConfig, dtype: DType, blocks: usize) -> Result<KvCache> {
        let shape = [blocks, KvPages::BLOCK_TOKENS, config.num_key_value_heads, config.head_dim];
        let one = || -> Result<Tensor> {
            let tensor = Tensor::empty(device, &shape, dtype, MemoryCategory::KvCache)?;
            if device.capabilities().reads_unused_kv_rows && dtype == DType::BF16 {
                ops::fill_zero(&tensor)?;
            }
            Ok(tensor)
        };
        let layers = (0..config.num_hidden_layers).map(|_| Ok((one()?, one()?))).collect::<Result<_>>()?;
        Ok(KvCache { layers, blocks })
    }

    /// Makes the operating system provide the physical memory of all blocks now; see [`Tensor::prefault_pages`].
    pub fn prefault_pages(&self) {
        self.tensors().for_each(Tensor::prefault_pages);
    }

    /// The keys and the values of each layer: `[blocks, BLOCK_TOKENS, Hkv, D]`.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.layers.iter().flat_map(|(k, v)| [k, v])
    }

    /// Copies the keys and values of the first `tokens` tokens of one block to another, for each pair (from, to). No
    /// block may be written twice, or both read and written.
    pub fn copy_blocks(&self, cx: &Cx, pairs: &[(i32, i32)], tokens: usize) -> Result<()> {
        let blocks: Vec<i32> = pairs.iter().flat_map(|&(from, to)| [from, to]).collect();
        let pairs = Tensor::from_i32(cx.device(), &[pairs.len(), 2], &blocks)?;
        self.layers.iter().try_for_each(|(k, v)| Ok(ops::copy_kv_blocks(cx, (k, v), &pairs, tokens)?))
    }

    /// The number of blocks in each layer.
    pub fn block_count(&self) -> usize {
        self.blocks
    }

    /// Fills the cache with zeros, for benchmarks of attention to keys that were never computed.
    pub fn fill_with_zeros(&self) -> Result<()> {
        Ok(self.tensors().try_for_each(ops::fill_zero)?)
    }
}
