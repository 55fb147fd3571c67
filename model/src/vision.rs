//! The vision tower: patches to vision tokens, through blocks that attend within windows or within frames.
//!
//! `N` patches, `M` = N / merge² tokens, `C` the tower's width, `H` the decoder's.

use std::sync::Arc;

use reel_runtime::ops::{self, CuSeqlens, RotaryTable};
use reel_runtime::{Cx, Tensor};

use crate::batch::{PatchSource, Reverse, VisionInput};
use crate::config::VisionConfig;
use crate::error::Result;
use crate::linear::Linear;
use crate::residual::Residual;
use crate::weights::WeightLoader;

/// Base of the rotary frequencies (fixed in the model's code, not in its config).
const ROPE_THETA: f64 = 10_000.0;

/// The tower with its weights.
#[derive(Clone, Debug)]
pub struct VisionTower {
    config: VisionConfig,
    patch_embed: Tensor, // [C, patch_dim]
    blocks: Vec<Arc<Block>>,
    ln_q: Tensor, // [C]
    merge_in: Linear,
    merge_out: Linear,
}

#[derive(Clone, Debug)]
struct Block {
    norm1: Tensor, // [C]
    norm2: Tensor, // [C]
    qkv: Linear,
    proj: Linear,
    gate: Linear,
    up: Linear,
    down: Linear,
    heads: usize,
    head_dim: usize,
    eps: f32,
}

impl VisionTower {
    /// Loads the tensors `visual.*`.
    ///
    /// # Errors
    /// Those of [`WeightLoader::load`].
    pub fn load(from: &WeightLoader, config: &VisionConfig) -> Result<VisionTower> {
        let c = config.hidden_size;
        let side = config.patch_size;
        let stored = [c, config.in_channels, config.temporal_patch_size, side, side];
        let merged = c * config.merge_unit();
        Ok(VisionTower {
            patch_embed: from.load("visual.patch_embed.proj.weight", &stored, &[c, config.patch_dim()])?,
            blocks: (0..config.depth).map(|i| Block::load(from, config, i).map(Arc::new)).collect::<Result<_>>()?,
            ln_q: from.load("visual.merger.ln_q.weight", &[c], &[c])?,
            merge_in: Linear::load(from, "visual.merger.mlp.0", merged, merged, true)?,
            merge_out: Linear::load(from, "visual.merger.mlp.2", config.out_hidden_size, merged, true)?,
            config: config.clone(),
        })
    }

    /// Every tensor, each once.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let blocks = self.blocks.iter().flat_map(|block| {
            let linears = [&block.qkv, &block.proj, &block.gate, &block.up, &block.down];
            [&block.norm1, &block.norm2].into_iter().chain(linears.into_iter().flat_map(Linear::tensors))
        });
        let merger = [&self.merge_in, &self.merge_out].into_iter().flat_map(Linear::tensors);
        [&self.patch_embed, &self.ln_q].into_iter().chain(blocks).chain(merger)
    }

    /// The layers that an adapter can be put on.
    pub(crate) fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let blocks = self.blocks.iter_mut().flat_map(|block| {
            let b = Arc::make_mut(block);
            [&mut b.qkv, &mut b.proj, &mut b.gate, &mut b.up, &mut b.down]
        });
        blocks.chain([&mut self.merge_in, &mut self.merge_out])
    }

    /// Vision tokens `[M, H]` in processor order. `checkpoint`: keep only each block's input for the gradient.
    ///
    /// # Errors
    /// Those of the ops.
    pub fn forward(&self, cx: &Cx, media: &VisionInput, checkpoint: bool) -> Result<Tensor> {
        let rotary = self.rotary(cx, media)?;
        let mut stream = Residual::new(&self.embed(cx, &media.pixels)?);
        for (i, block) in self.blocks.iter().enumerate() {
            let seqs = if self.config.is_full_attention(i) { &media.frames } else { &media.windows };
            stream = if cx.is_training() {
                // As in the decoder: a block ends with its sum, with or without checkpoints.
                let (block, rotary, seqs) = (block.clone(), rotary.clone(), seqs.clone());
                let f = move |cx: &Cx, x: &[Tensor]| {
                    let out = block.forward(cx, Residual::new(&x[0]), &rotary, &seqs);
                    out.and_then(|out| out.sum(cx)).map_err(into_runtime)
                };
                let x = stream.sum(cx)?;
                Residual::new(&if checkpoint { cx.recompute(&[&x], f)? } else { f(cx, &[x])? })
            } else {
                block.forward(cx, stream, &rotary, seqs)?
            };
        }
        let merged = self.config.hidden_size * self.config.merge_unit();
        let x = stream.sum(cx)?;
        let eps = self.config.rms_norm_eps as f32;
        let x = match &media.reverse {
            Reverse::Patches(index) => ops::merger_norm(cx, &x, index, &self.ln_q, eps)?,
            Reverse::Tokens(_) => ops::rms_norm(cx, &x, &self.ln_q, eps)?,
        };
        let x = x.reshape(&[x.count() / merged, merged])?;
        let x = self.merge_out.forward(cx, &ops::gelu(cx, &self.merge_in.forward(cx, &x)?)?)?;
        Ok(match &media.reverse {
            Reverse::Patches(_) => x,
            Reverse::Tokens(index) => ops::gather_rows(cx, &x, index)?,
        })
    }

    /// `[N, C]` in the tower's order.
    fn embed(&self, cx: &Cx, pixels: &PatchSource) -> Result<Tensor> {
        Ok(match pixels {
            PatchSource::Values(values) => ops::linear(cx, values, &self.patch_embed, None)?,
            PatchSource::Frames(frames, order) => {
                ops::gather_rows(cx, &ops::patch_embedding(cx, frames, &self.patch_embed, None)?, order)?
            }
        })
    }

    /// Half of a head's pairs turn with the row of the patch, half with its column.
    fn rotary(&self, cx: &Cx, media: &VisionInput) -> Result<RotaryTable> {
        let half = self.config.head_dim / 2;
        let quarter = half / 2;
        let inv = inverse_frequencies(ROPE_THETA, half);
        let inv_freq: Vec<f32> = inv.iter().chain(&inv).copied().collect();
        let axis: Vec<i32> = (0..half).map(|j| (j >= quarter) as i32).collect();
        Ok(ops::rotary_table(cx, &media.positions, &inv_freq, &axis)?)
    }
}

/// `theta^(-2j / dim)` for j in `0 .. dim / 2`, rounded to f32 where torch rounds.
pub(crate) fn inverse_frequencies(theta: f64, dim: usize) -> Vec<f32> {
    (0..dim / 2).map(|j| 1.0 / (theta.powf((2 * j) as f32 as f64 / dim as f64) as f32)).collect()
}

/// Inside a recomputed block only the runtime's errors can occur.
pub(crate) fn into_runtime(e: crate::ModelError) -> reel_runtime::RuntimeError {
    match e {
        crate::ModelError::Runtime(e) => e,
        other => reel_runtime::RuntimeError::Device(other.to_string()),
    }
}

impl Block {
    fn load(from: &WeightLoader, config: &VisionConfig, index: usize) -> Result<Block> {
        let (c, inner) = (config.hidden_size, config.intermediate_size);
        let name = |part: &str| format!("visual.blocks.{index}.{part}");
        Ok(Block {
            norm1: from.load(&name("norm1.weight"), &[c], &[c])?,
            norm2: from.load(&name("norm2.weight"), &[c], &[c])?,
            qkv: Linear::load(from, &name("attn.qkv"), 3 * c, c, true)?,
            proj: Linear::load(from, &name("attn.proj"), c, c, true)?,
            gate: Linear::load(from, &name("mlp.gate_proj"), inner, c, true)?,
            up: Linear::load(from, &name("mlp.up_proj"), inner, c, true)?,
            down: Linear::load(from, &name("mlp.down_proj"), c, inner, true)?,
            heads: config.num_heads,
            head_dim: config.head_dim,
            eps: config.rms_norm_eps as f32,
        })
    }

    fn forward(&self, cx: &Cx, stream: Residual, rotary: &RotaryTable, seqs: &CuSeqlens) -> Result<Residual> {
        let (n, c) = (stream.rows(), self.heads * self.head_dim);
        let heads = [n, self.heads, self.head_dim];
        let (x, normed) = stream.norm(cx, &self.norm1, self.eps)?;
        let parts = ops::split_columns(cx, &self.qkv.forward(cx, &normed)?, &[c, c, c])?;
        drop(normed);
        let q = ops::rotary(cx, &parts[0].reshape(&heads)?, rotary)?;
        let k = ops::rotary(cx, &parts[1].reshape(&heads)?, rotary)?;
        let o = ops::attention(cx, &q, &k, &parts[2].reshape(&heads)?, seqs, false)?;
        drop((parts, q, k));
        let o = self.proj.forward(cx, &o.reshape(&[n, c])?)?;
        let (x, normed) = Residual::sum_of(x, o).norm(cx, &self.norm2, self.eps)?;
        let (gate, up) = (self.gate.forward(cx, &normed)?, self.up.forward(cx, &normed)?);
        drop(normed);
        let inner = ops::swiglu(cx, &gate, &up)?;
        drop((gate, up));
        Ok(Residual::sum_of(x, self.down.forward(cx, &inner)?))
    }
}
