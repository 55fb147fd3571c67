//! A decode step: the forward pass of one new token per sequence, for `R` sequences. It only launches kernels and
//! copies nothing from the host, so it can be captured as a CUDA graph and replayed.

use reel_device::{Device, in_layer};
use reel_runtime::ops::{self, DecodeRows, InputNorm, KvDestination, RotaryFrequencies};
use reel_runtime::{Cx, Tensor};

use super::{KvCache, Layer, STACK, TextDecoder};
use crate::error::Result;
use crate::linear::Linear;
use crate::vision::inverse_frequencies;

impl TextDecoder {
    /// The rotary frequencies for decode steps. A generated token has the same position on all three axes, so one
    /// position per sequence is enough: `[1, R]`.
    pub fn text_rotary_frequencies(&self, device: &Device) -> Result<RotaryFrequencies> {
        let inv_freq = inverse_frequencies(self.config.rope_theta, self.config.head_dim);
        Ok(RotaryFrequencies::new(device, &inv_freq, &vec![0; inv_freq.len()], 1)?)
    }

    /// Allocates the device state of `rows` decode slots, all free, with at most `max_blocks` KV blocks each and
    /// without token histories (which penalties need).
    pub fn decode_rows(&self, device: &Device, rows: usize, max_blocks: usize) -> Result<DecodeRows> {
        let mut rows = DecodeRows::new(device, rows, max_blocks, 0)?;
        rows.allocate_attention_counters(device, self.config.num_attention_heads, self.config.num_key_value_heads)?;
        if self.config.has_head_norms {
            rows.allocate_for_head_norms(device, self.config.head_dim)?;
        }
        Ok(rows)
    }

    /// Computes the logits f32 `[R, V]` for the tokens that follow the current tokens. Adds the keys and values of
    /// the current tokens to the cache.
    ///
    /// # Errors
    /// Out of memory.
    pub fn decode(
        &self,
        cx: &Cx,
        rows: &DecodeRows,
        frequencies: &RotaryFrequencies,
        cache: &KvCache,
    ) -> Result<Tensor> {
        let rotary = frequencies.cos_sin_table(cx, &rows.positions)?;
        let pages = rows.kv_pages();
        let mut x = ops::embedding(cx, &self.embed_tokens, &rows.ids)?;
        for (layer, (k, v)) in self.layers.iter().zip(&cache.layers) {
            let _layer = in_layer(STACK, layer.index);
            let to = layer.kv_destination(&rotary, (k, v), &pages, rows.unrotated());
            x = layer.decode(cx, &x, rows.adapter_numbers(), to)?;
        }
        let x = ops::rms_norm(cx, &x, &self.norm, self.config.rms_norm_eps as f32)?;
        self.logits(cx, &x, true)
    }
}

impl Layer {
    fn decode(&self, cx: &Cx, x: &Tensor, adapters: Option<&Tensor>, to: KvDestination) -> Result<Tensor> {
        let r = x.shape()[0];
        let norm = |weight| InputNorm { weight, eps: self.eps };
        let q = Linear::qkv_skinny(cx, x, norm(&self.input_norm), adapters, [&self.q, &self.k, &self.v], to)?;
        let o = ops::paged_attention(cx, &q, to.caches, to.pages)?.reshape(&[r, self.heads * self.head_dim])?;
        drop(q);
        let o = self.gathered(cx, "attention", o)?;
        let x = self.add_skinny(cx, "o_proj", x, &o, adapters, &self.o)?;
        let inner = Linear::swiglu_skinny(cx, &x, norm(&self.post_norm), adapters, &self.gate, &self.up)?;
        let inner = self.gathered(cx, "gate_proj and up_proj", inner)?;
        self.add_skinny(cx, "down_proj", &x, &inner, adapters, &self.down)
    }

    /// Returns x `[R, H]` plus the output of a linear layer for `input`.
    fn add_skinny(
        &self,
        cx: &Cx,
        name: &str,
        x: &Tensor,
        input: &Tensor,
        adapters: Option<&Tensor>,
        linear: &Linear,
    ) -> Result<Tensor> {
        let Some(parallel) = &self.parallel else { return linear.forward_skinny(cx, input, adapters, Some(x)) };
        let own = parallel.columns_of_this_rank(cx, x)?;
        parallel.gather(cx, name, &linear.forward_skinny(cx, input, adapters, Some(&own))?)
    }
}
