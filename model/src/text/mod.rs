//! The decoder: from the embeddings of tokens to hidden states.
//!
//! `S` is the number of tokens, `H` the hidden size, `D` head_dim. Each layer is grouped-query attention with M-RoPE
//! (three positions per token, see `input/mrope.rs`) followed by a gated MLP. `decode.rs` has the same computation
//! for one new token per sequence.
//!
//! ```text
//! for layer in layers:
//!     q, k, v = q(norm(x)), k(norm(x)), v(norm(x));  norm of each head of q and k (Qwen3-VL);  rotate q and k by position
//!     x, a = x, attention(q, k, v)                    # packed sequences, or keys and values in the KV cache
//!     if this is the last layer:  x, a = the rows of x and a whose hidden states are needed
//!     x = x + o(a)
//!     x = x + down(silu(gate(norm(x))) · up(norm(x)))
//!     x[vision tokens] += DeepStack feature           # after the first layers (Qwen3-VL)
//! return norm(x)
//! ```
//!
//! A decoder may be divided among several processes; see [`crate::tensor_parallel`] for what they gather.

mod decode;
mod kv_cache;

use std::sync::Arc;

use reel_device::in_layer;
use reel_device::{DType, Device};
use reel_input::config::{ModelConfig, TextConfig};
use reel_runtime::ops::{self, CuSeqlens, HeadNorms, KvDestination, KvPages, RotaryTable, UnrotatedRows};
use reel_runtime::{Checkpointing, Cx, RuntimeError, Tensor, WeightUnit};

use crate::error::{Error, Result};
use crate::linear::{JoinedWeights, Linear};
use crate::linear_inputs::{LinearInputs, SAME_INPUT};
use crate::linear_weight::Weight;
use crate::residual::Residual;
use crate::tensor_parallel::{RowShare, TensorParallel};
use crate::units;
use crate::vision::inverse_frequencies;
use crate::weights::WeightLoader;

pub use kv_cache::KvCache;

/// The name of the decoder's layers in profiles and traces.
const STACK: &str = "decoder";

/// The decoder with its weights.
#[derive(Clone, Debug)]
pub struct TextDecoder {
    /// The sizes, with the number of heads that this process computes.
    config: TextConfig,
    /// The embedding table `[V, H]`.
    pub embed_tokens: Tensor,
    layers: Vec<Arc<Layer>>,
    norm: Tensor, // [H]
    /// The weight of the output layer, `[V, H]`; with tied embeddings this is the embedding table, or its packed copy.
    head: Weight,
    /// The other processes that compute this decoder, if there are any.
    parallel: Option<TensorParallel>,
}

#[derive(Clone, Debug)]
struct Layer {
    index: usize,
    input_norm: Tensor, // [H]
    post_norm: Tensor,  // [H]
    q: Linear,
    k: Linear,
    v: Linear,
    /// The weights of q, k and v, if they are joined.
    qkv: Option<JoinedWeights>,
    /// The weights of the norms of each head of the queries and of the keys, `[D]` each.
    head_norms: Option<[Tensor; 2]>,
    o: Linear,
    gate: Linear,
    up: Linear,
    /// The weights of gate and up, if they are joined.
    gate_up: Option<JoinedWeights>,
    down: Linear,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    eps: f32,
    parallel: Option<TensorParallel>,
}

/// Which keys and values the tokens of a forward pass attend to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum AttentionContext<'a> {
    /// Keys and values of earlier tokens in the same packed sequence, and of its shared prefix (training, scoring).
    Packed { seqs: &'a CuSeqlens },
    /// Keys and values in the KV cache, including the keys and values of the new tokens (generation).
    Cached { cache: &'a KvCache, pages: &'a KvPages },
}

/// The DeepStack features of the vision tokens of a batch.
#[derive(Debug)]
pub(crate) struct DeepStack {
    /// i32 `[m]`: the indices of the tokens that get a row of each feature.
    pub(crate) rows: Tensor,
    /// The features, `[m, H]` each; feature i is added after layer i.
    pub(crate) features: Vec<Tensor>,
}

impl DeepStack {
    /// Adds the feature of layer `layer`, if there is one, to the residual after this layer.
    fn add(&self, cx: &Cx, layer: usize, residual: Residual) -> Result<Residual> {
        let Some(feature) = self.features.get(layer) else { return Ok(residual) };
        Ok(Residual::new(&ops::add_rows(cx, residual.into_sum(cx)?, &self.rows, feature)?))
    }
}

impl TextDecoder {
    /// Loads the tensors `model.*` and `lm_head.weight`; with `parallel`, only this rank's part of them.
    ///
    /// # Errors
    /// A tensor is missing or has another shape; out of memory.
    pub fn load(from: &WeightLoader, config: &ModelConfig, parallel: Option<&TensorParallel>) -> Result<TextDecoder> {
        let text = &config.text;
        let share = parallel.map_or(RowShare::ALL_ROWS, TensorParallel::row_share);
        let table = [text.vocab_size, text.hidden_size];
        let name = "model.embed_tokens.weight";
        // The output layer reads its whole weight in every step, so it may be packed; an embedding reads one row.
        let (embed_tokens, head) = match config.tie_word_embeddings {
            true => match Weight::load(from, name, table, share)? {
                Weight::Dense(shared) if share == RowShare::ALL_ROWS => (shared.clone(), Weight::Dense(shared)),
                Weight::Dense(_) => {
                    let shared = from.load(name, &table, &table)?;
                    let own = share.row_range(text.vocab_size);
                    (shared.clone(), Weight::Dense(shared.rows(own.start, own.len())?))
                }
                packed => (from.load_embedding_table(name, &table)?, packed),
            },
            false => (from.load_embedding_table(name, &table)?, Weight::load(from, "lm_head.weight", table, share)?),
        };
        Ok(TextDecoder {
            layers: (0..text.num_hidden_layers)
                .map(|i| Layer::load(from, text, i, parallel).map(Arc::new))
                .collect::<Result<_>>()?,
            norm: from.load("model.norm.weight", &[text.hidden_size], &[text.hidden_size])?,
            embed_tokens,
            head,
            config: TensorParallel::config_of_one_rank(text, share.count),
            parallel: parallel.cloned(),
        })
    }

    /// Whether several processes compute this decoder, each a part of it.
    pub fn is_tensor_parallel(&self) -> bool {
        self.parallel.is_some()
    }

    /// The bytes of the keys and values of a KV block in all layers, on this process.
    pub fn kv_block_bytes(&self, dtype: DType) -> usize {
        let TextConfig { num_hidden_layers, num_key_value_heads, head_dim, .. } = self.config;
        2 * num_hidden_layers * num_key_value_heads * head_dim * KvPages::BLOCK_TOKENS * dtype.size()
    }

    /// Allocates a KV cache of `blocks` blocks for the heads that this process computes.
    ///
    /// # Errors
    /// Out of memory.
    pub fn kv_cache(&self, device: &Device, dtype: DType, blocks: usize) -> Result<KvCache> {
        KvCache::new(device, &self.config, dtype, blocks)
    }

    /// Computes logits, f32 `[R, V]`, of hidden states `[R, H]`. If `skinny` is true, uses the ops for decode steps.
    /// Has no backward rule.
    pub(crate) fn logits(&self, cx: &Cx, hidden: &Tensor, skinny: bool) -> Result<Tensor> {
        let own = self.head.logits(cx, hidden, skinny)?;
        match &self.parallel {
            Some(parallel) => parallel.gather(cx, "logits", &own),
            None => Ok(own),
        }
    }

    /// The weight of the output layer in the dtype of the model, `[V, H]`; with tied embeddings this is the embedding
    /// table.
    ///
    /// # Errors
    /// The layer is packed for inference.
    pub fn lm_head(&self) -> Result<&Tensor> {
        match &self.head {
            Weight::Dense(w) => Ok(w),
            Weight::Packed(_) | Weight::Quantized(_) => Err(Error::failed(
                "lm_head",
                "is quantised or packed, which only generation supports",
                "load the model for training",
            )),
        }
    }

    /// All weights and LoRA matrices of the decoder, each once, in the order in which a forward pass uses them.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let head = self.head.tensors().filter(|t| t.id() != self.embed_tokens.id());
        let layers = self.layers.iter().flat_map(|layer| {
            let linears = layer.linear_layers().into_iter().flat_map(Linear::tensors);
            [&layer.input_norm, &layer.post_norm].into_iter().chain(layer.head_norms.iter().flatten()).chain(linears)
        });
        [&self.embed_tokens].into_iter().chain(layers).chain([&self.norm]).chain(head)
    }

    /// The linear layers, all of which can have LoRA adapters.
    pub(crate) fn linear_layers(&self) -> impl Iterator<Item = &Linear> {
        self.layers.iter().flat_map(|layer| layer.linear_layers())
    }

    /// The layers of [`Self::linear_layers`], as mutable references.
    pub(crate) fn linear_layers_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.layers.iter_mut().flat_map(|layer| {
            let l = Arc::make_mut(layer);
            [&mut l.q, &mut l.k, &mut l.v, &mut l.o, &mut l.gate, &mut l.up, &mut l.down]
        })
    }

    /// Makes linear layers record their inputs in forward passes that are no decode steps, see [`LinearInputs`].
    pub fn record_linear_inputs(&mut self) -> LinearInputs {
        let is_recorded = |linear: &&mut Linear| SAME_INPUT.iter().any(|(layers, _)| linear.name.ends_with(layers[0]));
        let layers = self.linear_layers_mut().filter(is_recorded);
        layers.map(|linear| (linear.name.to_string(), linear.inputs.insert(Arc::default()).clone())).collect()
    }

    /// The bytes of the weights that [`Self::with_packed_copies`] copies.
    pub(crate) fn packed_copy_bytes(&self) -> u64 {
        let copied = self.linear_layers().filter_map(Linear::tensor_to_pack).chain(self.head.tensor_to_pack());
        copied.map(|w| w.bytes() as u64).sum()
    }

    /// Returns a decoder for generation, with packed copies of the trained weights where the device reads packed
    /// weights faster. The new decoder shares all other weights. Later changes of the trained weights do not change
    /// the copies.
    ///
    /// # Errors
    /// Out of memory.
    pub(crate) fn with_packed_copies(&self, cx: &Cx) -> Result<TextDecoder> {
        let mut packed = self.clone();
        packed.linear_layers_mut().try_for_each(|linear| linear.pack_trained_weight(cx))?;
        packed.layers.iter_mut().map(Arc::make_mut).for_each(Layer::forget_joined_weights);
        packed.head.packed_copy(cx)?.into_iter().for_each(|head| packed.head = head);
        Ok(packed)
    }

    /// Computes hidden states `[R, H]` after the last norm from embeddings x `[S, H]` and positions i32 `[3, S]`, for
    /// the tokens `rows` i32 `[R]` or, without `rows`, for all tokens.
    pub(crate) fn forward(
        &self,
        cx: &Cx,
        x: &Tensor,
        positions: &Tensor,
        context: AttentionContext,
        rows: Option<&Tensor>,
        deepstack: Option<&DeepStack>,
    ) -> Result<Tensor> {
        self.forward_rotated(cx, x, &self.rotary(cx, positions)?, context, rows, deepstack)
    }

    /// Like [`Self::forward`], with the rotary table in place of the positions.
    fn forward_rotated(
        &self,
        cx: &Cx,
        x: &Tensor,
        rotary: &RotaryTable,
        context: AttentionContext,
        rows: Option<&Tensor>,
        deepstack: Option<&DeepStack>,
    ) -> Result<Tensor> {
        let mut residual = Residual::new(x);
        // The last layer computes only the needed rows, unless a DeepStack feature is added after it.
        let selects_late = deepstack.is_some_and(|deepstack| deepstack.features.len() >= self.layers.len());
        for layer in &self.layers {
            let _layer = in_layer(STACK, layer.index);
            let rows = rows.filter(|_| layer.index + 1 == self.layers.len() && !selects_late);
            residual = cx.with_weight_unit(units::decoder_layer(layer.index), || match context {
                AttentionContext::Packed { seqs } if cx.checkpointing() == Checkpointing::Full => {
                    // A layer that the backward pass computes again takes one input tensor, so the residual and the
                    // previous layer's output are added here, not in the next norm. The bits are the same.
                    let (layer, rotary, seqs, rows) = (layer.clone(), rotary.clone(), seqs.clone(), rows.cloned());
                    let f = move |cx: &Cx, x: &[Tensor]| {
                        let _layer = in_layer(STACK, layer.index);
                        let context = AttentionContext::Packed { seqs: &seqs };
                        let out = layer.forward(cx, Residual::new(&x[0]), &rotary, context, rows.as_ref());
                        out.and_then(|out| out.into_sum(cx)).map_err(RuntimeError::from)
                    };
                    Ok(Residual::new(&cx.recompute(&[&residual.into_sum(cx)?], f)?))
                }
                context => layer.forward(cx, residual, rotary, context, rows),
            })?;
            if let Some(deepstack) = deepstack {
                residual = deepstack.add(cx, layer.index, residual)?;
            }
        }
        if let Some(rows) = rows.filter(|_| selects_late) {
            residual = Residual::new(&ops::gather_rows(cx, &residual.into_sum(cx)?, rows)?);
        }
        if rows.is_some_and(|rows| rows.count() == 0) {
            return residual.into_sum(cx);
        }
        let eps = self.config.rms_norm_eps as f32;
        cx.with_weight_unit(self.output_unit(), || residual.norm_after_last_layer(cx, &self.norm, eps))
    }

    /// The unit of the last norm and the output layer.
    fn output_unit(&self) -> WeightUnit {
        units::output_layer(self.head.tensors().any(|t| t.id() == self.embed_tokens.id()))
    }

    /// Calls `f` with the weight of the output layer ([`Self::lm_head`]). The weight is in memory during `f` and
    /// during the backward pass over the ops of `f`.
    ///
    /// # Errors
    /// The layer is packed for inference; the errors of [`Cx::with_weight_unit`].
    pub fn with_lm_head<T>(&self, cx: &Cx, f: impl FnOnce(&Tensor) -> reel_runtime::Result<T>) -> Result<T> {
        let head = self.lm_head()?;
        Ok(cx.with_weight_unit(self.output_unit(), || f(head))?)
    }

    /// The M-RoPE table for positions i32 `[3, S]`: each frequency rotates by the time, height or width position,
    /// depending on its section.
    fn rotary(&self, cx: &Cx, positions: &Tensor) -> Result<RotaryTable> {
        let inv_freq = inverse_frequencies(self.config.rope_theta, self.config.head_dim);
        Ok(ops::rotary_table(cx, positions, &inv_freq, &self.config.frequency_axes())?)
    }
}

impl Layer {
    /// Drops the joined unpacked weights of packed layers, so that their products read the packed weights.
    fn forget_joined_weights(&mut self) {
        let is_packed = |linear: &Linear| linear.weight_widths().is_none();
        self.qkv.take_if(|_| is_packed(&self.q));
        self.gate_up.take_if(|_| is_packed(&self.gate));
    }

    fn load(
        from: &WeightLoader,
        config: &TextConfig,
        index: usize,
        parallel: Option<&TensorParallel>,
    ) -> Result<Layer> {
        let share = parallel.map_or(RowShare::ALL_ROWS, TensorParallel::row_share);
        let own = TensorParallel::config_of_one_rank(config, share.count);
        let (h, inner) = (config.hidden_size, config.intermediate_size);
        let (q_dim, kv_dim) = (config.query_width(), config.key_value_width());
        let has_bias = config.has_qkv_bias;
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let names =
            ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"].map(name);
        let [q, k, v, gate, up] = names.each_ref().map(String::as_str);
        // The rotation reads joined queries and keys, but the norms of heads need them apart.
        let joined = match config.has_head_norms {
            true => None,
            false => Linear::load_joined(from, [(q, q_dim), (k, kv_dim), (v, kv_dim)], h, has_bias)?,
        };
        let (q, k, v, qkv) = match joined {
            Some(([q, k, v], joined)) => (q, k, v, Some(joined)),
            None => {
                let load = |name: &str, dim| Linear::load_decoder(from, name, [dim, h], has_bias, share);
                (load(q, q_dim)?, load(k, kv_dim)?, load(v, kv_dim)?, None)
            }
        };
        let (gate, up, gate_up) = match Linear::load_joined(from, [(gate, inner), (up, inner)], h, false)? {
            Some(([gate, up], joined)) => (gate, up, Some(joined)),
            None => {
                let load = |name: &str| Linear::load_decoder(from, name, [inner, h], false, share);
                (load(gate)?, load(up)?, None)
            }
        };
        let head_norm = |part: &str| from.load(&name(part), &[config.head_dim], &[config.head_dim]);
        let head_norms = match config.has_head_norms {
            true => Some([head_norm("self_attn.q_norm.weight")?, head_norm("self_attn.k_norm.weight")?]),
            false => None,
        };
        Ok(Layer {
            index,
            input_norm: from.load(&name("input_layernorm.weight"), &[h], &[h])?,
            post_norm: from.load(&name("post_attention_layernorm.weight"), &[h], &[h])?,
            q,
            k,
            v,
            qkv,
            head_norms,
            o: Linear::load_decoder(from, &name("self_attn.o_proj"), [h, q_dim], false, share)?,
            gate,
            up,
            gate_up,
            down: Linear::load_decoder(from, &name("mlp.down_proj"), [h, inner], false, share)?,
            heads: own.num_attention_heads,
            kv_heads: own.num_key_value_heads,
            head_dim: config.head_dim,
            eps: config.rms_norm_eps as f32,
            parallel: parallel.cloned(),
        })
    }

    fn linear_layers(&self) -> [&Linear; 7] {
        [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down]
    }

    /// Computes the residual after this layer, for the tokens `rows` i32 `[R]` or, without `rows`, for all tokens.
    fn forward(
        &self,
        cx: &Cx,
        residual: Residual,
        rotary: &RotaryTable,
        context: AttentionContext,
        rows: Option<&Tensor>,
    ) -> Result<Residual> {
        let s = residual.row_count();
        let (x, normed) = residual.sum_and_norm(cx, &self.input_norm, self.eps)?;
        let o = match context {
            AttentionContext::Packed { seqs } => {
                let [q, k, v] = self.rotated_q_k_v(cx, normed, rotary)?;
                ops::attention(cx, &q, &k, &v, seqs, true)?
            }
            AttentionContext::Cached { cache, pages } => {
                let [q, k, v] = self.q_k_v(cx, &normed)?;
                drop(normed);
                let (keys, values) = &cache.layers[self.index];
                let caches = (keys, values);
                let q = ops::rotate_and_cache(cx, q, (&k, &v), self.kv_destination(rotary, caches, pages, None))?;
                drop((k, v));
                if rows.is_some_and(|rows| rows.count() == 0) {
                    return Ok(Residual::new(&cx.empty(&[0, x.shape()[1]], x.dtype())?));
                }
                ops::paged_attention(cx, &q, caches, pages)?
            }
        };
        let o = o.reshape(&[s, self.heads * self.head_dim])?;
        let (x, o) = match rows {
            Some(rows) => (ops::gather_rows(cx, &x, rows)?, ops::gather_rows(cx, &o, rows)?),
            None => (x, o),
        };
        let o = self.gathered(cx, "attention", o)?;
        let o = self.o.forward(cx, &o)?;
        let o = self.gathered(cx, "o_proj", o)?;
        let (x, normed) = Residual::with_delta(x, o).sum_and_norm(cx, &self.post_norm, self.eps)?;
        if self.parallel.is_some() {
            return Ok(Residual::with_delta(x, self.divided_mlp(cx, normed)?));
        }
        let mlp = [&self.gate, &self.up, &self.down];
        Ok(Residual::with_delta(x, Linear::gated_mlp(cx, normed, mlp, self.gate_up.as_ref())?))
    }

    /// Where the keys and values of this layer go, after the norms of heads and the rotation. `unrotated` is for decode
    /// steps.
    fn kv_destination<'a>(
        &'a self,
        rotary: &'a RotaryTable,
        caches: (&'a Tensor, &'a Tensor),
        pages: &'a KvPages,
        unrotated: Option<&'a UnrotatedRows>,
    ) -> KvDestination<'a> {
        let head_norms = self.head_norms.as_ref().map(|[q, k]| HeadNorms { q, k, eps: self.eps, unrotated });
        KvDestination { rotary, caches, pages, head_norms }
    }

    /// Returns `part` of all processes side by side, or `part` itself if there is one process.
    fn gathered(&self, cx: &Cx, name: &str, part: Tensor) -> Result<Tensor> {
        match &self.parallel {
            Some(parallel) => parallel.gather(cx, name, &part),
            None => Ok(part),
        }
    }

    /// Computes the MLP together with the other processes.
    fn divided_mlp(&self, cx: &Cx, normed: Tensor) -> Result<Tensor> {
        let inner = match Linear::fused_swiglu(cx, &normed, &self.gate, &self.up)? {
            Some(inner) => inner,
            None => {
                let (gate, up) = (self.gate.forward(cx, &normed)?, self.up.forward(cx, &normed)?);
                drop(normed);
                ops::swiglu(cx, &gate, &up)?
            }
        };
        let inner = self.gathered(cx, "gate_proj and up_proj", inner)?;
        let down = self.down.forward(cx, &inner)?;
        drop(inner);
        self.gathered(cx, "down_proj", down)
    }

    /// Computes queries `[S, heads, D]`, keys and values `[S, kv_heads, D]`, without norms of heads and rotation.
    fn q_k_v(&self, cx: &Cx, normed: &Tensor) -> Result<[Tensor; 3]> {
        let s = normed.shape()[0];
        let of = |linear: &Linear, heads| -> Result<Tensor> {
            Ok(linear.forward(cx, normed)?.reshape(&[s, heads, self.head_dim])?)
        };
        Ok([of(&self.q, self.heads)?, of(&self.k, self.kv_heads)?, of(&self.v, self.kv_heads)?])
    }

    /// Like [`Self::q_k_v`], but with the norms of heads and the rotation of queries and keys. Frees `normed` and the
    /// results before the rotation, unless the tape keeps them.
    fn rotated_q_k_v(&self, cx: &Cx, normed: Tensor, rotary: &RotaryTable) -> Result<[Tensor; 3]> {
        let layers = [&self.q, &self.k, &self.v];
        if let Some(fused) = JoinedWeights::forward(self.qkv.as_ref(), &layers, cx, &normed)? {
            drop(normed);
            return Ok(ops::split_and_rotate(cx, &fused, [self.heads, self.kv_heads], rotary)?);
        }
        let [mut q, mut k, v] = self.q_k_v(cx, &normed)?;
        drop(normed);
        if let Some([of_q, of_k]) = &self.head_norms {
            (q, k) = (ops::rms_norm(cx, &q, of_q, self.eps)?, ops::rms_norm(cx, &k, of_k, self.eps)?);
        }
        let (q, k) = ops::apply_rotary(cx, &q, &k, rotary)?;
        Ok([q, k, v])
    }
}
