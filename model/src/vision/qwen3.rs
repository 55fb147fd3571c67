//! The vision tower of Qwen3-VL. Sizes are named as in [`super`].
//!
//! ```text
//! x = pixels [N, patch_dim] · W + b                    # patch embedding, [N, C], in processor order
//! x = x + resampled position table                     # see input/interpolation.rs
//! for block in blocks:                                 # attention within whole frames
//!     x = x + proj(attention(rotary(qkv(norm1(x)))))
//!     x = x + fc2(gelu_tanh(fc1(norm2(x))))
//!     deepstack += [fc2(gelu(fc1(norm(join(x)))))]     # after a few of the blocks; joins 4 patches: [M, 4 C]
//! return fc2(gelu(fc1(join(norm(x))))), deepstack      # [M, H] each
//! ```

use std::sync::Arc;

use reel_device::in_layer;
use reel_input::config::{Qwen3Tower, VisionConfig};
use reel_input::interpolation::position_taps;
use reel_input::window::{GridThw, patch_rows_and_columns};
use reel_runtime::ops::{self, CuSeqlens, RotaryTable, RowLists};
use reel_runtime::{Checkpointing, Cx, RuntimeError, Tensor};

use super::{PatchEmbedding, STACK, VisionTokens, position_tensor, rotary_table};
use crate::batch::SequenceMedia;
use crate::error::Result;
use crate::linear::Linear;
use crate::units;
use crate::weights::WeightLoader;

/// The vision tower with its weights.
#[derive(Clone, Debug)]
pub struct VisionTower {
    config: VisionConfig,
    own: Qwen3Tower,
    patch_embed: PatchEmbedding,
    position_table: Tensor, // [side², C]
    blocks: Vec<Arc<Block>>,
    merger: Merger,
    /// The mergers of the DeepStack features, in the order of their blocks.
    deepstack_mergers: Vec<Merger>,
}

/// A LayerNorm.
#[derive(Clone, Debug)]
struct Norm {
    weight: Tensor, // [width]
    bias: Tensor,   // [width]
    eps: f32,
}

#[derive(Clone, Debug)]
struct Block {
    norm1: Norm, // of width C
    norm2: Norm, // of width C
    qkv: Linear,
    proj: Linear,
    fc1: Linear,
    fc2: Linear,
    heads: usize,
    head_dim: usize,
}

/// From patches to vision tokens: joins the patches of each square, and two linear layers.
#[derive(Clone, Debug)]
struct Merger {
    /// Over the C elements of a patch, or over the 4 C elements of a square if the patches are joined first.
    norm: Norm,
    fc1: Linear,
    fc2: Linear,
    /// The width of a joined square, 4 C.
    joined: usize,
}

impl VisionTower {
    pub(super) fn load(from: &WeightLoader, config: &VisionConfig, own: &Qwen3Tower) -> Result<VisionTower> {
        let (c, positions) = (config.hidden_size, own.position_side * own.position_side);
        let joined = c * config.patches_per_vision_token();
        let deepstack = |i: usize| Merger::load(from, config, &format!("visual.deepstack_merger_list.{i}"), joined);
        Ok(VisionTower {
            patch_embed: PatchEmbedding::load(from, config, true)?,
            position_table: from.load("visual.pos_embed.weight", &[positions, c], &[positions, c])?,
            blocks: (0..config.depth).map(|i| Block::load(from, config, i).map(Arc::new)).collect::<Result<_>>()?,
            merger: Merger::load(from, config, "visual.merger", c)?,
            deepstack_mergers: (0..own.deepstack_block_indexes.len()).map(deepstack).collect::<Result<_>>()?,
            config: config.clone(),
            own: own.clone(),
        })
    }

    /// All tensors, in the order in which a forward pass uses them.
    pub(super) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let blocks = self.blocks.iter().enumerate().flat_map(|(i, block)| {
            block.tensors().chain(self.deepstack_merger(i).into_iter().flat_map(Merger::tensors))
        });
        self.patch_embed.tensors().chain([&self.position_table]).chain(blocks).chain(self.merger.tensors())
    }

    /// The DeepStack merger that reads the output of block `block`; `None` if no merger does.
    fn deepstack_merger(&self, block: usize) -> Option<&Merger> {
        let feature = self.own.deepstack_block_indexes.iter().position(|&other| other == block)?;
        self.deepstack_mergers.get(feature)
    }

    pub(super) fn linear_layers_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let blocks = self.blocks.iter_mut().flat_map(|block| {
            let b = Arc::make_mut(block);
            [&mut b.qkv, &mut b.proj, &mut b.fc1, &mut b.fc2]
        });
        let mergers = [&mut self.merger].into_iter().chain(&mut self.deepstack_mergers);
        blocks.chain(mergers.flat_map(|merger| [&mut merger.fc1, &mut merger.fc2]))
    }

    /// Computes the vision tokens of `media`, in processor order.
    pub(super) fn forward(&self, cx: &Cx, media: &[SequenceMedia]) -> Result<VisionTokens> {
        let grids: Vec<GridThw> = media.iter().flat_map(|m| &m.grids).copied().collect();
        let positions = patch_rows_and_columns(&grids, self.config.spatial_merge_size);
        let frame_lengths: Vec<usize> = grids.iter().flat_map(|&[t, h, w]| std::iter::repeat_n(h * w, t)).collect();
        let frames = CuSeqlens::from_lengths(cx.device(), &frame_lengths)?;
        let rotary = rotary_table(cx, &position_tensor(cx, &positions)?, self.config.head_dim)?;
        cx.begin_weight_unit(units::PATCH_EMBEDDING)?;
        let mut x = self.embed(cx, media, &grids)?;
        let mut deepstack = Vec::new();
        for (i, block) in self.blocks.iter().enumerate() {
            let _layer = in_layer(STACK, i);
            x = cx.with_weight_unit(units::vision_block(i), || {
                let x = match cx.checkpointing() {
                    Checkpointing::Full => {
                        let (block, rotary, frames) = (block.clone(), rotary.clone(), frames.clone());
                        let f = move |cx: &Cx, x: &[Tensor]| {
                            let _layer = in_layer(STACK, i);
                            block.forward(cx, x[0].clone(), &rotary, &frames).map_err(RuntimeError::from)
                        };
                        cx.recompute(&[&x], f)?
                    }
                    _ => block.forward(cx, x.clone(), &rotary, &frames)?,
                };
                if let Some(merger) = self.deepstack_merger(i) {
                    deepstack.push(merger.forward(cx, &x)?);
                }
                Ok::<_, crate::error::Error>(x)
            })?;
        }
        let embeddings = cx.with_weight_unit(units::MERGER, || self.merger.forward(cx, &x))?;
        Ok(VisionTokens { embeddings, deepstack })
    }

    /// Patch embeddings plus learned positions, `[N, C]` in processor order.
    fn embed(&self, cx: &Cx, media: &[SequenceMedia], grids: &[GridThw]) -> Result<Tensor> {
        let embedded = self.patch_embed.forward(cx, media, None)?;
        let side = self.own.position_side;
        let (index, weight) = position_taps(grids, self.config.spatial_merge_size, side);
        let offsets: Vec<i32> = (0..=index.len() as i32).step_by(4).collect();
        let lists = RowLists::new(cx, &offsets, &index, &weight, side * side)?;
        Ok(ops::weighted_rows(cx, &self.position_table, &lists, Some(&embedded))?)
    }
}

impl Norm {
    fn load(from: &WeightLoader, name: &str, width: usize, eps: f64) -> Result<Norm> {
        let load = |part: &str| from.load(&format!("{name}.{part}"), &[width], &[width]);
        Ok(Norm { weight: load("weight")?, bias: load("bias")?, eps: eps as f32 })
    }

    fn tensors(&self) -> [&Tensor; 2] {
        [&self.weight, &self.bias]
    }

    fn forward(&self, cx: &Cx, x: &Tensor) -> Result<Tensor> {
        Ok(ops::layer_norm(cx, x, &self.weight, &self.bias, self.eps)?)
    }
}

impl Block {
    fn load(from: &WeightLoader, config: &VisionConfig, index: usize) -> Result<Block> {
        let (c, inner) = (config.hidden_size, config.intermediate_size);
        let name = |part: &str| format!("visual.blocks.{index}.{part}");
        let norm = |part: &str| Norm::load(from, &name(part), c, config.norm_eps);
        Ok(Block {
            norm1: norm("norm1")?,
            norm2: norm("norm2")?,
            qkv: Linear::load(from, &name("attn.qkv"), 3 * c, c, true)?,
            proj: Linear::load(from, &name("attn.proj"), c, c, true)?,
            fc1: Linear::load(from, &name("mlp.linear_fc1"), inner, c, true)?,
            fc2: Linear::load(from, &name("mlp.linear_fc2"), c, inner, true)?,
            heads: config.num_heads,
            head_dim: config.head_dim,
        })
    }

    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let linears = [&self.qkv, &self.proj, &self.fc1, &self.fc2];
        [&self.norm1, &self.norm2]
            .into_iter()
            .flat_map(Norm::tensors)
            .chain(linears.into_iter().flat_map(Linear::tensors))
    }

    fn forward(&self, cx: &Cx, x: Tensor, rotary: &RotaryTable, frames: &CuSeqlens) -> Result<Tensor> {
        let (n, c) = (x.shape()[0], self.heads * self.head_dim);
        let fused = self.qkv.forward(cx, &self.norm1.forward(cx, &x)?)?;
        let [q, k, v] = ops::split_and_rotate(cx, &fused, [self.heads, self.heads], rotary)?;
        drop(fused);
        let o = ops::attention(cx, &q, &k, &v, frames, false)?;
        drop((q, k, v));
        let x = ops::add(cx, &x, &self.proj.forward(cx, &o.reshape(&[n, c])?)?)?;
        let inner = self.fc1.forward(cx, &self.norm2.forward(cx, &x)?)?;
        let inner = ops::gelu_tanh(cx, &inner)?;
        Ok(ops::add(cx, &x, &self.fc2.forward(cx, &inner)?)?)
    }
}

impl Merger {
    /// Loads the merger `name`, whose norm has `norm_width` elements.
    fn load(from: &WeightLoader, config: &VisionConfig, name: &str, norm_width: usize) -> Result<Merger> {
        let joined = config.hidden_size * config.patches_per_vision_token();
        Ok(Merger {
            norm: Norm::load(from, &format!("{name}.norm"), norm_width, config.norm_eps)?,
            fc1: Linear::load(from, &format!("{name}.linear_fc1"), joined, joined, true)?,
            fc2: Linear::load(from, &format!("{name}.linear_fc2"), config.out_hidden_size, joined, true)?,
            joined,
        })
    }

    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.norm.tensors().into_iter().chain([&self.fc1, &self.fc2].into_iter().flat_map(Linear::tensors))
    }

    /// Vision tokens `[M, H]` of patches x `[N, C]`. Patches are in processor order, so those of a square follow each
    /// other.
    fn forward(&self, cx: &Cx, x: &Tensor) -> Result<Tensor> {
        let norm_width = self.norm.weight.count();
        let normed = self.norm.forward(cx, &x.reshape(&[x.count() / norm_width, norm_width])?)?;
        let joined = normed.reshape(&[x.count() / self.joined, self.joined])?;
        self.fc2.forward(cx, &ops::gelu(cx, &self.fc1.forward(cx, &joined)?)?)
    }
}
