//! A decode step: one new token of each of `R` sequences, from launches alone. Nothing is copied from the host, so that the step can be
//! recorded and replayed.

use reel_runtime::ops::{self, DecodeRows, KvPages, RotaryFrequencies, RotaryTable};
use reel_runtime::{Cx, Device, Tensor};

use super::{KvCache, Layer, TextDecoder};
use crate::error::Result;
use crate::linear::Linear;
use crate::vision::inverse_frequencies;

impl TextDecoder {
    /// The rotary frequencies of text, whose position is the same on every axis: tables of positions `[1, S]`.
    ///
    /// # Errors
    /// Out of memory.
    pub fn text_rotary_frequencies(&self, device: &Device) -> Result<RotaryFrequencies> {
        let inv_freq = inverse_frequencies(self.config.rope_theta, self.config.head_dim);
        Ok(RotaryFrequencies::new(device, &inv_freq, &vec![0; inv_freq.len()], 1)?)
    }

    /// Logits f32 `[R, V]` behind the rows' tokens, whose keys and values are added to the cache.
    ///
    /// # Errors
    /// Those of the ops.
    pub fn decode(&self, cx: &Cx, rows: &DecodeRows, turns: &RotaryFrequencies, cache: &KvCache) -> Result<Tensor> {
        let rotary = turns.table(cx, &rows.positions)?;
        let pages = rows.pages();
        let mut x = ops::embedding(cx, &self.embed_tokens, &rows.ids)?;
        for (layer, (k, v)) in self.layers.iter().zip(&cache.layers) {
            x = layer.decode(cx, &x, &rotary, (k, v), &pages)?;
        }
        let x = ops::rms_norm(cx, &x, &self.norm, self.config.rms_norm_eps as f32)?;
        Ok(ops::skinny_logits(cx, &x, &self.lm_head)?)
    }
}

impl KvCache {
    /// Fills it with zeros, for measurements that attend to keys which nobody computed.
    ///
    /// # Errors
    /// What the device reports.
    pub fn clear(&self) -> Result<()> {
        Ok(self.tensors().try_for_each(ops::fill_zero)?)
    }
}

impl Layer {
    fn decode(
        &self,
        cx: &Cx,
        x: &Tensor,
        rotary: &RotaryTable,
        caches: (&Tensor, &Tensor),
        pages: &KvPages,
    ) -> Result<Tensor> {
        let r = x.shape()[0];
        let (heads, kv_heads) = ([r, self.heads, self.head_dim], [r, self.kv_heads, self.head_dim]);
        let normed = ops::rms_norm(cx, x, &self.input_norm, self.eps)?;
        let q = ops::rotary(cx, &self.q.thin(cx, &normed, None)?.reshape(&heads)?, rotary)?;
        let k = ops::rotary(cx, &self.k.thin(cx, &normed, None)?.reshape(&kv_heads)?, rotary)?;
        let v = self.v.thin(cx, &normed, None)?.reshape(&kv_heads)?;
        ops::kv_write(cx, &k, &v, caches, pages)?;
        let o = ops::paged_attention(cx, &q, caches, pages)?.reshape(&[r, self.heads * self.head_dim])?;
        drop((normed, q, k, v));
        let x = self.o.thin(cx, &o, Some(x))?;
        let normed = ops::rms_norm(cx, &x, &self.post_norm, self.eps)?;
        let inner = Linear::thin_gated(cx, &normed, &self.gate, &self.up)?;
        self.down.thin(cx, &inner, Some(&x))
    }
}
