//! The vision tower of SigLIP: patch and position embeddings, layers, and attention pooling with one learned query.
//!
//! `T` is the number of images, `P` the number of patches of each, `C` the width of the tower.

use reel_runtime::ops::{self, CuSeqlens, DeviceFrames};
use reel_runtime::{Cx, Tensor};

use super::config::SiglipVisionConfig;
use super::encoder::{Encoder, LayerNorm, Mlp};
use crate::error::Result;
use crate::linear::Linear;
use crate::weights::WeightLoader;

/// The vision tower with its weights.
#[derive(Clone, Debug)]
pub struct SiglipVision {
    patch_weight: Tensor, // [C, patch_dim]
    patch_bias: Tensor,   // [C]
    positions: Tensor,    // [P, C]
    encoder: Encoder,
    post_norm: LayerNorm,
    head: Head,
    patches: usize,
}

impl SiglipVision {
    /// Loads the tensors `vision_model.*`.
    ///
    /// # Errors
    /// A tensor is missing or has another shape; out of memory.
    pub fn load(from: &WeightLoader, config: &SiglipVisionConfig) -> Result<SiglipVision> {
        let (c, p, side) = (config.encoder.hidden_size, config.patch_count(), config.patch_size);
        let name = |part: &str| format!("vision_model.embeddings.{part}");
        let stored = [c, 3, side, side];
        // The position embeddings are loaded as a vector, because vectors are converted to the dtype of activations,
        // which `add_position_embeddings` needs.
        let positions = from.load(&name("position_embedding.weight"), &[p, c], &[p * c])?;
        Ok(SiglipVision {
            patch_weight: from.load(&name("patch_embedding.weight"), &stored, &[c, config.patch_dim()])?,
            patch_bias: from.load(&name("patch_embedding.bias"), &[c], &[c])?,
            positions: positions.reshape(&[p, c])?,
            encoder: Encoder::load(from, "vision_model", &config.encoder)?,
            post_norm: LayerNorm::load(from, "vision_model.post_layernorm", &config.encoder)?,
            head: Head::load(from, config)?,
            patches: p,
        })
    }

    /// Computes one embedding per image, `[T, C]`, normalised to Euclidean length 1.
    ///
    /// # Errors
    /// Images with another number of patches; out of memory; a device error.
    pub fn forward(&self, cx: &Cx, images: &DeviceFrames) -> Result<Tensor> {
        let x = ops::patch_embedding(cx, std::slice::from_ref(images), &self.patch_weight, Some(&self.patch_bias))?;
        let x = ops::add_position_embeddings(cx, &x, &self.positions)?;
        let lengths = vec![self.patches; images.patch_count() / self.patches];
        let seqs = CuSeqlens::from_lengths(cx.device(), &lengths)?;
        let x = self.encoder.forward(cx, x, &seqs)?;
        let pooled = self.head.forward(cx, &self.post_norm.forward(cx, &x)?, &seqs)?;
        Ok(ops::normalise_rows(cx, &pooled)?)
    }
}

/// Attention pooling: a learned query attends to all patches of an image, followed by an MLP with a residual.
#[derive(Clone, Debug)]
struct Head {
    probe: Tensor,     // [1, C]
    in_weight: Tensor, // [3 C, C]: of query, keys, values
    in_bias: Tensor,   // [3 C]
    out: Linear,
    norm: LayerNorm,
    mlp: Mlp,
    heads: usize,
    head_dim: usize,
}

impl Head {
    fn load(from: &WeightLoader, config: &SiglipVisionConfig) -> Result<Head> {
        let c = config.encoder.hidden_size;
        let name = |part: &str| format!("vision_model.head.{part}");
        Ok(Head {
            probe: from.load(&name("probe"), &[1, 1, c], &[c])?.reshape(&[1, c])?,
            in_weight: from.load(&name("attention.in_proj_weight"), &[3 * c, c], &[3 * c, c])?,
            in_bias: from.load(&name("attention.in_proj_bias"), &[3 * c], &[3 * c])?,
            out: Linear::load(from, &name("attention.out_proj"), c, c, true)?,
            norm: LayerNorm::load(from, &name("layernorm"), &config.encoder)?,
            mlp: Mlp::load(from, &name("mlp"), &config.encoder)?,
            heads: config.encoder.heads,
            head_dim: config.encoder.head_dim(),
        })
    }

    /// Pools the patches x `[T P, C]` of T images to one vector per image, `[T, C]`.
    fn forward(&self, cx: &Cx, x: &Tensor, seqs: &CuSeqlens) -> Result<Tensor> {
        let q = self.project(cx, 0, &self.probe)?.reshape(&[self.heads, self.head_dim])?;
        let o = ops::pool_attention(cx, &q, &self.project(cx, 1, x)?, &self.project(cx, 2, x)?, seqs)?;
        let x = self.out.forward(cx, &o.reshape(&[seqs.sequence_count(), self.heads * self.head_dim])?)?;
        let more = self.mlp.forward(cx, &self.norm.forward(cx, &x)?)?;
        Ok(ops::add(cx, &x, &more)?)
    }

    /// Projects `x` to queries (`which` = 0), keys (1) or values (2): `[rows of x, heads, D]`.
    fn project(&self, cx: &Cx, which: usize, x: &Tensor) -> Result<Tensor> {
        let c = self.heads * self.head_dim;
        let (weight, bias) = (self.in_weight.rows(which * c, c)?, self.in_bias.rows(which * c, c)?);
        let y = ops::linear(cx, x, &weight, Some(&bias))?;
        Ok(y.reshape(&[x.shape()[0], self.heads, self.head_dim])?)
    }
}
