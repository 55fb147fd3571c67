//! The text tower of SigLIP: token and position embeddings, layers without an attention mask, and a linear head on
//! the last position.
//!
//! `T` is the number of texts, `L` the number of tokens of each, `C` the width of the tower, `E` the width of an
//! embedding.

use reel_runtime::ops::{self, CuSeqlens};
use reel_runtime::{Cx, Tensor};

use super::config::SiglipTextConfig;
use super::encoder::{Encoder, LayerNorm};
use crate::error::{Error, Result};
use crate::linear::Linear;
use crate::weights::WeightLoader;

/// The text tower with its weights.
#[derive(Clone, Debug)]
pub struct SiglipText {
    tokens: Tensor,    // [V, C]
    positions: Tensor, // [L, C]
    encoder: Encoder,
    norm: LayerNorm,
    head: Linear,
    length: usize,
}

impl SiglipText {
    /// Loads the tensors `text_model.*`.
    ///
    /// # Errors
    /// A tensor is missing or has another shape; out of memory.
    pub fn load(from: &WeightLoader, config: &SiglipTextConfig) -> Result<SiglipText> {
        let (v, l, c) = (config.vocab_size, config.positions, config.encoder.hidden_size);
        let name = |part: &str| format!("text_model.embeddings.{part}.weight");
        // The position embeddings are loaded as a vector, because vectors are converted to the dtype of activations,
        // which `add_position_embeddings` needs.
        let positions = from.load(&name("position_embedding"), &[l, c], &[l * c])?;
        Ok(SiglipText {
            tokens: from.load(&name("token_embedding"), &[v, c], &[v, c])?,
            positions: positions.reshape(&[l, c])?,
            encoder: Encoder::load(from, "text_model", &config.encoder)?,
            norm: LayerNorm::load(from, "text_model.final_layer_norm", &config.encoder)?,
            head: Linear::load(from, "text_model.head", config.projection_size, c, true)?,
            length: l,
        })
    }

    /// Computes embeddings `[T, E]`, normalised to Euclidean length 1, of T texts with exactly L ids each, including
    /// padding.
    ///
    /// # Errors
    /// A number of ids that is not a multiple of L; out of memory; a device error.
    pub fn forward(&self, cx: &Cx, ids: &[i32]) -> Result<Tensor> {
        let (texts, rest) = (ids.len() / self.length, ids.len() % self.length);
        if texts == 0 || rest != 0 {
            let what =
                format!("has {} token ids, which is not a multiple of the text length {}", ids.len(), self.length);
            return Err(Error::input("siglip: ids", what, "pad every text to that length"));
        }
        let device = cx.device();
        let ids = Tensor::from_i32(device, &[ids.len()], ids)?;
        let x = ops::embedding(cx, &self.tokens, &ids)?;
        let x = ops::add_position_embeddings(cx, &x, &self.positions)?;
        let seqs = CuSeqlens::from_lengths(device, &vec![self.length; texts])?;
        let x = self.encoder.forward(cx, x, &seqs)?;
        let last: Vec<i32> = (1..=texts).map(|t| (t * self.length - 1) as i32).collect();
        // Only the last position of each text is needed. It is selected before LayerNorm, which then has fewer rows
        // to compute.
        let x = ops::gather_rows(cx, &x, &Tensor::from_i32(device, &[texts], &last)?)?;
        let x = self.head.forward(cx, &self.norm.forward(cx, &x)?)?;
        Ok(ops::normalise_rows(cx, &x)?)
    }
}
