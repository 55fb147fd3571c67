//! The vision tower of Qwen2.5-VL. Sizes are named as in [`super`].
//!
//! ```text
//! x = pixels [N, patch_dim] · W                        # patch embedding, [N, C]
//! x = x[window order]                                  # see input/window.rs
//! for block in blocks:                                 # attention within windows, in a few blocks within whole frames
//!     x = x + proj(attention(rotary(qkv(norm1(x)))))
//!     x = x + down(silu(gate(norm2(x))) · up(norm2(x)))
//! y = patch_merge(x)                                   # undo the window order, norm, join 4 patches: [M, 4 C]
//! return merge_out(gelu(merge_in(y)))                  # [M, H], in processor order
//! ```

use std::sync::Arc;

use reel_device::in_layer;
use reel_input::config::{Qwen25Tower, VisionConfig};
use reel_input::window::{GridThw, WindowOrder, patch_rows_and_columns_in_window_order};
use reel_runtime::ops::{self, CuSeqlens, RotaryTable};
use reel_runtime::{Checkpointing, Cx, RuntimeError, Tensor};

use super::{PatchEmbedding, STACK, position_tensor, rotary_table};
use crate::batch::SequenceMedia;
use crate::error::Result;
use crate::linear::{JoinedWeights, Linear};
use crate::residual::Residual;
use crate::units;
use crate::weights::WeightLoader;

/// The vision tower with its weights.
#[derive(Clone, Debug)]
pub struct VisionTower {
    config: VisionConfig,
    own: Qwen25Tower,
    patch_embed: PatchEmbedding,
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
    /// The weights of gate and up, if they are joined.
    gate_up: Option<JoinedWeights>,
    down: Linear,
    heads: usize,
    head_dim: usize,
    eps: f32,
}

impl VisionTower {
    pub(super) fn load(from: &WeightLoader, config: &VisionConfig, own: &Qwen25Tower) -> Result<VisionTower> {
        let c = config.hidden_size;
        let merged = c * config.patches_per_vision_token();
        Ok(VisionTower {
            patch_embed: PatchEmbedding::load(from, config, false)?,
            blocks: (0..config.depth).map(|i| Block::load(from, config, i).map(Arc::new)).collect::<Result<_>>()?,
            ln_q: from.load("visual.merger.ln_q.weight", &[c], &[c])?,
            merge_in: Linear::load(from, "visual.merger.mlp.0", merged, merged, true)?,
            merge_out: Linear::load(from, "visual.merger.mlp.2", config.out_hidden_size, merged, true)?,
            config: config.clone(),
            own: own.clone(),
        })
    }

    pub(super) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let blocks = self.blocks.iter().flat_map(|block| {
            let linears = [&block.qkv, &block.proj, &block.gate, &block.up, &block.down];
            [&block.norm1, &block.norm2].into_iter().chain(linears.into_iter().flat_map(Linear::tensors))
        });
        let merger = [&self.merge_in, &self.merge_out].into_iter().flat_map(Linear::tensors);
        self.patch_embed.tensors().chain([&self.ln_q]).chain(blocks).chain(merger)
    }

    pub(super) fn linear_layers_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let blocks = self.blocks.iter_mut().flat_map(|block| {
            let b = Arc::make_mut(block);
            [&mut b.qkv, &mut b.proj, &mut b.gate, &mut b.up, &mut b.down]
        });
        blocks.chain([&mut self.merge_in, &mut self.merge_out])
    }

    /// Computes the vision tokens `[M, H]` of `media`, in processor order.
    pub(super) fn forward(&self, cx: &Cx, media: &[SequenceMedia]) -> Result<Tensor> {
        let layout = PatchLayout::new(cx, media, &self.config, self.own.window_size)?;
        let rotary = rotary_table(cx, &layout.positions, self.config.head_dim)?;
        cx.begin_weight_unit(units::PATCH_EMBEDDING)?;
        let mut residual = Residual::new(&self.patch_embed.forward(cx, media, Some(&layout.window_order))?);
        for (i, block) in self.blocks.iter().enumerate() {
            let _layer = in_layer(STACK, i);
            let seqs = if self.own.is_full_attention(i) { &layout.frames } else { &layout.windows };
            residual = cx.with_weight_unit(units::vision_block(i), || {
                if cx.checkpointing() != Checkpointing::Full {
                    return block.forward(cx, residual, &rotary, seqs);
                }
                // A block that the backward pass computes again takes one input tensor, so the residual and the
                // previous block's output are added here, not in the next norm. The bits are the same.
                let (block, rotary, seqs) = (block.clone(), rotary.clone(), seqs.clone());
                let f = move |cx: &Cx, x: &[Tensor]| {
                    let _layer = in_layer(STACK, i);
                    let out = block.forward(cx, Residual::new(&x[0]), &rotary, &seqs);
                    out.and_then(|out| out.into_sum(cx)).map_err(RuntimeError::from)
                };
                Ok(Residual::new(&cx.recompute(&[&residual.into_sum(cx)?], f)?))
            })?;
        }
        let x = residual.into_sum(cx)?;
        let (eps, square) = (self.config.norm_eps as f32, self.config.patches_per_vision_token());
        cx.with_weight_unit(units::MERGER, || {
            let x = ops::patch_merge(cx, &x, &layout.processor_order, &self.ln_q, eps, square)?;
            self.merge_out.forward(cx, &ops::gelu(cx, &self.merge_in.forward(cx, &x)?)?)
        })
    }
}

/// The order in which the tower computes patches, and which patches attend to each other.
struct PatchLayout {
    /// `[N]`, in host memory: for each index of the window order, the patch's index in processor order.
    window_order: Vec<i32>,
    /// i32 `[N]`: for each patch in processor order, its index in window order.
    processor_order: Tensor,
    /// i32 `[2, N]`: row and column of each patch in its frame, in window order.
    positions: Tensor,
    /// The cumulative lengths of frames, for blocks with full attention.
    frames: CuSeqlens,
    /// The cumulative lengths of windows, for all other blocks.
    windows: CuSeqlens,
}

impl PatchLayout {
    fn new(cx: &Cx, media: &[SequenceMedia], config: &VisionConfig, window_size: usize) -> Result<PatchLayout> {
        let (device, unit) = (cx.device(), config.patches_per_vision_token());
        let grids: Vec<GridThw> = media.iter().flat_map(|m| &m.grids).copied().collect();
        let plan = WindowOrder::from_grids(&grids, config, window_size);
        let at = patch_rows_and_columns_in_window_order(&grids, config, &plan);
        let to_i32 = |v: &[usize]| v.iter().map(|&x| x as i32).collect::<Vec<i32>>();
        // Converts an order of squares (merge × merge patches each) to the order of their patches.
        let of_patches = |squares: &[usize]| -> Vec<i32> {
            squares.iter().flat_map(|&i| i * unit..(i + 1) * unit).map(|i| i as i32).collect()
        };
        Ok(PatchLayout {
            window_order: of_patches(&plan.window_index),
            processor_order: Tensor::from_i32(device, &[at.len()], &of_patches(&plan.reverse_index))?,
            positions: position_tensor(cx, &at)?,
            frames: CuSeqlens::new(device, &to_i32(&plan.cu_seqlens))?,
            windows: CuSeqlens::new(device, &to_i32(&plan.cu_window_seqlens))?,
        })
    }
}

impl Block {
    fn load(from: &WeightLoader, config: &VisionConfig, index: usize) -> Result<Block> {
        let (c, inner) = (config.hidden_size, from.mlp_width(config.intermediate_size));
        let name = |part: &str| format!("visual.blocks.{index}.{part}");
        let (gate, up) = (name("mlp.gate_proj"), name("mlp.up_proj"));
        let (gate, up, gate_up) = match Linear::load_joined(from, [(&gate, inner), (&up, inner)], c, true)? {
            Some(([gate, up], joined)) => (gate, up, Some(joined)),
            None => (Linear::load(from, &gate, inner, c, true)?, Linear::load(from, &up, inner, c, true)?, None),
        };
        Ok(Block {
            norm1: from.load(&name("norm1.weight"), &[c], &[c])?,
            norm2: from.load(&name("norm2.weight"), &[c], &[c])?,
            qkv: Linear::load(from, &name("attn.qkv"), 3 * c, c, true)?,
            proj: Linear::load(from, &name("attn.proj"), c, c, true)?,
            gate,
            up,
            gate_up,
            down: Linear::load(from, &name("mlp.down_proj"), c, inner, true)?,
            heads: config.num_heads,
            head_dim: config.head_dim,
            eps: config.norm_eps as f32,
        })
    }

    fn forward(&self, cx: &Cx, residual: Residual, rotary: &RotaryTable, seqs: &CuSeqlens) -> Result<Residual> {
        let (n, c) = (residual.row_count(), self.heads * self.head_dim);
        let (x, normed) = residual.sum_and_norm(cx, &self.norm1, self.eps)?;
        let fused = self.qkv.forward(cx, &normed)?;
        drop(normed);
        let [q, k, v] = ops::split_and_rotate(cx, &fused, [self.heads, self.heads], rotary)?;
        drop(fused);
        let o = ops::attention(cx, &q, &k, &v, seqs, false)?;
        drop((q, k, v));
        let o = self.proj.forward(cx, &o.reshape(&[n, c])?)?;
        let (x, normed) = Residual::with_delta(x, o).sum_and_norm(cx, &self.norm2, self.eps)?;
        let mlp = [&self.gate, &self.up, &self.down];
        Ok(Residual::with_delta(x, Linear::gated_mlp(cx, normed, mlp, self.gate_up.as_ref())?))
    }
}
