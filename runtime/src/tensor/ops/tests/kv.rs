//! A small KV cache for tests of ops that write to it.

use reel_device::{DType, MemoryCategory};

use super::pseudo_random_numbers;
use crate::error::Result;
use crate::tensor::Tensor;
use crate::tensor::cx::Cx;
use crate::tensor::ops::{KvDestination, KvPages, RotaryTable, SequencePages, rotary_table};

/// A KV cache of one sequence that has no keys yet, and the rotation angles of the sequence's new tokens.
pub(crate) struct SmallKvCache {
    rotary: RotaryTable,
    keys: Tensor,
    values: Tensor,
    pages: KvPages,
}

impl SmallKvCache {
    /// Makes a cache for `tokens` new tokens with `kv_heads` heads of `head_dim` elements.
    pub(crate) fn new(cx: &Cx, dtype: DType, [tokens, kv_heads, head_dim]: [usize; 3]) -> SmallKvCache {
        let device = cx.device();
        let positions: Vec<i32> = (0..tokens as i32).map(|t| 3 * t + 1).collect();
        let positions = Tensor::from_i32(device, &[1, tokens], &positions).unwrap();
        let inv_freq: Vec<f32> = (0..head_dim / 2).map(|i| 0.7f32.powi(i as i32)).collect();
        let blocks: Vec<i32> = (0..tokens.div_ceil(KvPages::BLOCK_TOKENS) as i32).rev().collect();
        let cache = |seed| {
            let shape = [blocks.len(), KvPages::BLOCK_TOKENS, kv_heads, head_dim];
            let values = pseudo_random_numbers(shape.iter().product(), seed);
            Tensor::from_f32(device, &shape, dtype, &values, MemoryCategory::KvCache).unwrap()
        };
        let sequence = SequencePages { cached_tokens: 0, new_tokens: tokens, blocks: &blocks };
        SmallKvCache {
            rotary: rotary_table(cx, &positions, &inv_freq, &vec![0; head_dim / 2]).unwrap(),
            keys: cache(31),
            values: cache(32),
            pages: KvPages::new(device, &[sequence]).unwrap(),
        }
    }

    pub(crate) fn destination(&self) -> KvDestination<'_> {
        let caches = (&self.keys, &self.values);
        KvDestination { rotary: &self.rotary, caches, pages: &self.pages, head_norms: None }
    }

    /// The elements of q and of both caches after `op` has written q and the caches.
    pub(crate) fn results(&self, op: impl FnOnce(KvDestination) -> Result<Tensor>) -> [Vec<f32>; 3] {
        let q = op(self.destination()).unwrap();
        [&q, &self.keys, &self.values].map(|t| t.to_f32().unwrap())
    }
}
