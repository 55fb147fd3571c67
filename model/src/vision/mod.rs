//! The vision tower: from patches of images and videos to vision tokens. Each model family has its own tower, in a file
//! of its own: [`qwen2_5`] and [`qwen3`].
//!
//! `N` is the number of patches, `M` = N / merge² the number of vision tokens (each is a square of merge × merge
//! patches), `C` the width of the tower, `H` the width of the decoder.

mod qwen2_5;
mod qwen3;

use reel_device::MemoryCategory;
use reel_input::config::{Tower, VisionConfig};
use reel_runtime::ops::{self, RotaryTable};
use reel_runtime::{Cx, Tensor};

use crate::batch::{PatchSource, SequenceMedia};
use crate::error::Result;
use crate::linear::Linear;
use crate::weights::WeightLoader;

/// The base of the rotary frequencies. It is a constant in transformers and not part of the config.
const ROPE_THETA: f64 = 10_000.0;

/// The name of a tower's blocks in profiles and traces.
const STACK: &str = "vision";

/// The vision tower of a model, with its weights.
#[derive(Clone, Debug)]
pub enum VisionTower {
    /// The tower of Qwen2.5-VL.
    Qwen25(qwen2_5::VisionTower),
    /// The tower of Qwen3-VL.
    Qwen3(qwen3::VisionTower),
}

/// What the vision tower computes from images and videos with M vision tokens.
#[derive(Clone, Debug)]
pub struct VisionTokens {
    /// The vision tokens `[M, H]`, which take the place of the embeddings of pad tokens, in processor order.
    pub embeddings: Tensor,
    /// The DeepStack features of the vision tokens, `[M, H]` each: feature i is added to their hidden states after
    /// layer i of the decoder. Qwen2.5-VL has none.
    pub deepstack: Vec<Tensor>,
}

impl VisionTower {
    /// Loads the tensors `visual.*`.
    ///
    /// # Errors
    /// A tensor is missing or has another shape; out of memory.
    pub fn load(from: &WeightLoader, config: &VisionConfig) -> Result<VisionTower> {
        Ok(match &config.tower {
            Tower::Qwen25(own) => VisionTower::Qwen25(qwen2_5::VisionTower::load(from, config, own)?),
            Tower::Qwen3(own) => VisionTower::Qwen3(qwen3::VisionTower::load(from, config, own)?),
        })
    }

    /// All weights of the tower and all matrices of its LoRA adapters, each once.
    pub(crate) fn tensors(&self) -> Box<dyn Iterator<Item = &Tensor> + '_> {
        match self {
            VisionTower::Qwen25(tower) => Box::new(tower.tensors()),
            VisionTower::Qwen3(tower) => Box::new(tower.tensors()),
        }
    }

    /// The linear layers, which LoRA adapters can be added to.
    pub(crate) fn linear_layers_mut(&mut self) -> Box<dyn Iterator<Item = &mut Linear> + '_> {
        match self {
            VisionTower::Qwen25(tower) => Box::new(tower.linear_layers_mut()),
            VisionTower::Qwen3(tower) => Box::new(tower.linear_layers_mut()),
        }
    }

    /// Computes the vision tokens of `media`.
    pub(crate) fn forward(&self, cx: &Cx, media: &[SequenceMedia]) -> Result<VisionTokens> {
        match self {
            VisionTower::Qwen25(tower) => {
                Ok(VisionTokens { embeddings: tower.forward(cx, media)?, deepstack: Vec::new() })
            }
            VisionTower::Qwen3(tower) => tower.forward(cx, media),
        }
    }
}

/// The patch embedding: one product with the pixels of each patch.
#[derive(Clone, Debug)]
struct PatchEmbedding {
    weight: Tensor,       // [C, patch_dim]
    bias: Option<Tensor>, // [C]
}

impl PatchEmbedding {
    fn load(from: &WeightLoader, config: &VisionConfig, has_bias: bool) -> Result<PatchEmbedding> {
        let (c, side) = (config.hidden_size, config.patch_size);
        let stored = [c, config.in_channels, config.temporal_patch_size, side, side];
        Ok(PatchEmbedding {
            weight: from.load("visual.patch_embed.proj.weight", &stored, &[c, config.patch_dim()])?,
            bias: if has_bias { Some(from.load("visual.patch_embed.proj.bias", &[c], &[c])?) } else { None },
        })
    }

    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        [&self.weight].into_iter().chain(&self.bias)
    }

    /// The embeddings `[N, C]` of all patches of `media`, in the order `order` `[N]`, which has for each place the
    /// index of its patch in processor order; without `order`, in processor order.
    fn forward(&self, cx: &Cx, media: &[SequenceMedia], order: Option<&[i32]>) -> Result<Tensor> {
        let (mut values, mut frames) = (Vec::new(), Vec::new());
        for one in media {
            match &one.source {
                PatchSource::Values(v) => values.push(&v[..]),
                PatchSource::Frames(f) => frames.extend(f.iter().cloned()),
            }
        }
        let bias = self.bias.as_ref();
        if values.is_empty() {
            let embedded = ops::patch_embedding(cx, &frames, &self.weight, bias)?;
            return match order {
                Some(order) => {
                    let order = Tensor::from_i32(cx.device(), &[order.len()], order)?;
                    Ok(ops::gather_rows(cx, &embedded, &order)?)
                }
                None => Ok(embedded),
            };
        }
        let (mut values, dim) = (values.concat(), self.weight.shape()[1]);
        if let Some(order) = order {
            values = order.iter().flat_map(|&i| &values[i as usize * dim..][..dim]).copied().collect();
        }
        let shape = [values.len() / dim, dim];
        let pixels = Tensor::from_f32(cx.device(), &shape, cx.dtype(), &values, MemoryCategory::Inputs)?;
        Ok(ops::linear(cx, &pixels, &self.weight, bias)?)
    }
}

/// The rotary table for patches at `positions` i32 `[2, N]`, rows and columns: half of the frequencies rotate by the
/// row of the patch, half by its column.
fn rotary_table(cx: &Cx, positions: &Tensor, head_dim: usize) -> Result<RotaryTable> {
    let half = head_dim / 2;
    let quarter = half / 2;
    let inv = inverse_frequencies(ROPE_THETA, half);
    let inv_freq: Vec<f32> = inv.iter().chain(&inv).copied().collect();
    let axis: Vec<i32> = (0..half).map(|j| (j >= quarter) as i32).collect();
    Ok(ops::rotary_table(cx, positions, &inv_freq, &axis)?)
}

/// i32 `[2, N]`: the rows, then the columns of patches.
fn position_tensor(cx: &Cx, positions: &[[usize; 2]]) -> Result<Tensor> {
    let axis = |i: usize| positions.iter().map(move |p| p[i] as i32);
    Ok(Tensor::from_i32(cx.device(), &[2, positions.len()], &axis(0).chain(axis(1)).collect::<Vec<_>>())?)
}

/// `theta^(-2j / dim)` for j in `0 .. dim / 2`, rounded to f32 where torch rounds.
pub(crate) fn inverse_frequencies(theta: f64, dim: usize) -> Vec<f32> {
    (0..dim / 2).map(|j| 1.0 / (theta.powf((2 * j) as f32 as f64 / dim as f64) as f32)).collect()
}
