//! Qwen2.5-VL whole: the vision tower's tokens placed among the text's, and the decoder over both.

use std::sync::Arc;

use reel_runtime::{Cx, DType, Device, Tensor, ops};

use crate::batch::{Batch, Sequence, VisionInput};
use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::features::{FeatureCache, VisionFeatures};
use crate::text::{AttentionContext, KvCache, TextDecoder};
use crate::vision::VisionTower;
use crate::weights::{WeightLoader, WeightSource};

/// The model with its weights on a device.
#[derive(Clone, Debug)]
pub struct Qwen25Vl {
    /// Its shape.
    pub config: ModelConfig,
    /// Pictures and films to vision tokens.
    pub vision: VisionTower,
    /// Tokens to hidden states.
    pub text: TextDecoder,
    /// Keeps what the tower made of media, where it is one that does not change.
    pub features: Option<Arc<FeatureCache>>,
}

impl Qwen25Vl {
    /// Loads every weight as `from` says.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape; out of memory.
    pub fn load(from: &WeightLoader, config: &ModelConfig) -> Result<Qwen25Vl> {
        Ok(Qwen25Vl {
            vision: VisionTower::load(from, &config.vision)?,
            text: TextDecoder::load(from, config)?,
            config: config.clone(),
            features: None,
        })
    }

    /// Loads a checkpoint for inference, in place where its dtype allows.
    ///
    /// # Errors
    /// As [`Qwen25Vl::load`]; weights that do not belong to the config.
    pub fn open(device: &Device, files: &Checkpoint, config: &ModelConfig, dtype: DType) -> Result<Qwen25Vl> {
        files.check(config)?;
        Qwen25Vl::load(
            &WeightLoader { device, source: WeightSource::Files(files), dtype, trainable: &|_| false },
            config,
        )
    }

    /// The tensors that are trained, each under its name ([`Tensor::parameter`]).
    pub fn parameters(&self) -> impl Iterator<Item = &Tensor> {
        self.vision.tensors().chain(self.text.tensors()).filter(|t| t.parameter().is_some())
    }

    /// Whether anything of the vision tower or its merger is trained.
    pub fn trains_vision(&self) -> bool {
        self.vision.tensors().any(|t| t.parameter().is_some())
    }

    /// Vision tokens `[M, H]` of a batch's media, in processor order.
    ///
    /// # Errors
    /// Those of the ops.
    pub fn vision_tokens(&self, cx: &Cx, media: &VisionInput, checkpoint: bool) -> Result<Tensor> {
        let Some(cache) = self.features.as_ref().filter(|_| !cx.is_training()) else {
            return self.vision.forward(cx, media, checkpoint);
        };
        if let Some(kept) = cache.get(media.key)
            && let Some(tokens) = VisionFeatures::join(cx.device(), &[kept])?
        {
            return Ok(tokens);
        }
        let tokens = self.vision.forward(cx, media, false)?;
        cache.put(media.key, &Arc::new(VisionFeatures::of(&tokens)?));
        Ok(tokens)
    }

    /// Vision tokens `[ΣM, H]` of the media of sequences, one sequence after the other; none where there are no media. The tower sees the
    /// media of one sequence at a time, so that what it makes of them depends on nothing else; those that are kept it does not see at all.
    ///
    /// # Errors
    /// Those of the ops; media that do not match their ids.
    pub fn vision_features(&self, cx: &Cx, sequences: &[Sequence]) -> Result<Option<Tensor>> {
        let mut all = Vec::new();
        for sequence in sequences {
            let Some(key) = VisionInput::key_of(sequence, &self.config) else { continue };
            let known = || self.features.as_ref().and_then(|cache| cache.get(key));
            let known =
                known().or_else(|| all.iter().find(|(other, _)| *other == key).map(|(_, kept)| Arc::clone(kept)));
            let kept = match known {
                Some(kept) => kept,
                None => {
                    let one = VisionInput::new(cx.device(), &self.config, cx.dtype(), &[*sequence], "media")?;
                    let Some(media) = one else { continue };
                    let kept =
                        Arc::new(VisionFeatures::of(&self.vision.forward(&cx.without_tape(), &media, false)?)?);
                    self.features.iter().for_each(|cache| cache.put(key, &kept));
                    kept
                }
            };
            all.push((key, kept));
        }
        VisionFeatures::join(cx.device(), &all.into_iter().map(|(_, kept)| kept).collect::<Vec<_>>())
    }

    /// Embeddings `[S, H]`, those of vision pads replaced by the vision tokens.
    ///
    /// # Errors
    /// Those of the ops.
    pub fn embed(&self, cx: &Cx, batch: &Batch, vision: Option<&Tensor>) -> Result<Tensor> {
        let table = &self.text.embed_tokens;
        Ok(match (&batch.media, vision) {
            (Some(media), Some(tokens)) => ops::embedding_with(cx, table, &batch.ids, tokens, &media.slots)?,
            _ => ops::embedding(cx, table, &batch.ids)?,
        })
    }

    /// Hidden states `[S, H]` of packed sequences, after the last norm. `checkpoint`: keep only each layer's input for the
    /// gradient and compute the rest again.
    ///
    /// # Errors
    /// Those of the ops.
    pub fn hidden(&self, cx: &Cx, batch: &Batch, checkpoint: bool) -> Result<Tensor> {
        let vision = match &batch.media {
            Some(media) => Some(self.vision_tokens(cx, media, checkpoint)?),
            None => None,
        };
        let x = self.embed(cx, batch, vision.as_ref())?;
        drop(vision);
        self.text.forward(cx, &x, &batch.positions, AttentionContext::Packed(&batch.seqs), checkpoint)
    }

    /// Hidden states `[S, H]` of new tokens, whose keys and values are added to the cache.
    ///
    /// # Errors
    /// Those of the ops.
    pub fn hidden_cached(&self, cx: &Cx, batch: &Batch, cache: &KvCache, pages: &ops::KvPages) -> Result<Tensor> {
        let vision = match &batch.media {
            Some(media) => Some(self.vision_tokens(cx, media, false)?),
            None => None,
        };
        let x = self.embed(cx, batch, vision.as_ref())?;
        drop(vision);
        self.text.forward(cx, &x, &batch.positions, AttentionContext::Cached(cache, pages), false)
    }

    /// Logits, f32 `[R, V]`, of rows of hidden states `[R, H]`. No gradient passes.
    ///
    /// # Errors
    /// Those of the ops.
    pub fn logits(&self, cx: &Cx, hidden: &Tensor) -> Result<Tensor> {
        Ok(ops::matmul(cx, hidden, &self.text.lm_head, DType::F32)?)
    }
}
