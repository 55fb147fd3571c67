//! The whole model: [`QwenVl::forward`] computes hidden states from a [`Batch`] in training, scoring and
//! generation.
//!
//! ```text
//! vision, deepstack = vision_tokens(images and videos)                 # [M, H] each, or from the cache
//! x      = embedding(ids), with vision tokens in place of pad tokens   # [S, H]
//! hidden = decoder(x, positions, packed sequences or KV cache, rows, deepstack)   # [R, H]
//! logits = hidden · lm_headᵀ                           # [R, V], for the rows (tokens) that need them
//! ```

use std::sync::Arc;

use reel_device::{DType, Device};
use reel_input::config::ModelConfig;
use reel_runtime::ops::KvPages;
use reel_runtime::{Cx, Tensor, ops};

use crate::batch::{Batch, VisionInput};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::features::{FeatureCache, VisionFeatures};
use crate::quantization::Quantization;
use crate::tensor_parallel::TensorParallel;
use crate::text::{AttentionContext, DeepStack, KvCache, TextDecoder};
use crate::units;
use crate::vision::{VisionTokens, VisionTower};
use crate::weights::{StoredWeights, WeightLoader, WeightSource};

/// The model with its weights on a device.
#[derive(Clone, Debug)]
pub struct QwenVl {
    /// The config: sizes of the vision tower and of the decoder, and ids of special tokens.
    pub config: ModelConfig,
    /// The vision tower.
    pub vision: VisionTower,
    /// The decoder.
    pub text: TextDecoder,
    /// The cache of vision tokens. It must be emptied when the weights of the vision tower change.
    pub features: Option<Arc<FeatureCache>>,
}

/// Options of [`QwenVl::forward`].
#[derive(Clone, Copy, Debug, Default)]
pub struct ForwardOptions<'a> {
    /// The vision tokens of the batch, if the caller has already computed them with [`QwenVl::vision_tokens`].
    pub vision: Option<&'a VisionTokens>,
    /// The KV cache. The keys and values of the batch are added to it, and tokens attend to the cached keys of their
    /// sequence. Without a cache, tokens attend only within the batch.
    pub cache: Option<(&'a KvCache, &'a KvPages)>,
    /// The tokens whose hidden states are needed, i32 `[R]`, each at most once; `None`: all tokens. The last layer
    /// computes its output projection and its MLP for these tokens only. On devices whose bits do not depend on the
    /// number of rows (`cpu`, `sim`), the result has the same bits as these rows of a pass for all tokens.
    pub rows: Option<&'a Tensor>,
}

impl QwenVl {
    /// Loads all weights.
    ///
    /// # Errors
    /// A tensor is missing or has another shape; out of memory.
    pub fn load(from: &WeightLoader, config: &ModelConfig) -> Result<QwenVl> {
        Ok(QwenVl {
            vision: VisionTower::load(from, &config.vision)?,
            text: TextDecoder::load(from, config, None)?,
            config: config.clone(),
            features: None,
        })
    }

    /// Loads the weights of a model folder for inference. Weights that the kernels can use in their stored dtype are
    /// read in place, without a copy.
    ///
    /// # Errors
    /// The errors of [`QwenVl::load`]; weights that do not match the config.
    pub fn open(device: &Device, files: &Checkpoint, config: &ModelConfig, dtype: DType) -> Result<QwenVl> {
        QwenVl::open_quantized(device, files, config, dtype, Quantization::None, None)
    }

    /// Like [`QwenVl::open`], but quantises the weights of the decoder's linear layers and of the output layer. With
    /// `parallel`, loads only this rank's part of the decoder.
    ///
    /// # Errors
    /// The errors of [`QwenVl::open`]; a NaN or an infinity in a weight that would be quantised.
    pub fn open_quantized(
        device: &Device,
        files: &Checkpoint,
        config: &ModelConfig,
        dtype: DType,
        quantization: Quantization,
        parallel: Option<&TensorParallel>,
    ) -> Result<QwenVl> {
        files.check(config)?;
        let source = WeightSource::Files(files);
        let from =
            WeightLoader { device, source, dtype, quantization, may_pad: true, trainable: &|_| false, deferred: None };
        Ok(QwenVl {
            vision: VisionTower::load(&from, &config.vision)?,
            text: TextDecoder::load(&from, config, parallel)?,
            config: config.clone(),
            features: None,
        })
    }

    /// Returns a model whose weights are uninitialised memory, for device `dry`. The sizes of the weights are those
    /// of files that store the weights as `stored` says.
    ///
    /// # Errors
    /// The errors of [`QwenVl::load`].
    pub fn uninitialised<'a>(
        device: &Device,
        stored: impl Into<StoredWeights<'a>>,
        config: &ModelConfig,
        dtype: DType,
        quantization: Quantization,
    ) -> Result<QwenVl> {
        let source = WeightSource::Uninitialised(stored.into());
        QwenVl::load(
            &WeightLoader { device, source, dtype, quantization, may_pad: true, trainable: &|_| false, deferred: None },
            config,
        )
    }

    /// The trained tensors; each has a name ([`Tensor::parameter_name`]).
    pub fn parameters(&self) -> impl Iterator<Item = &Tensor> {
        self.vision.tensors().chain(self.text.tensors()).filter(|t| t.parameter_name().is_some())
    }

    /// Whether any tensor of the vision tower or its merger is trained.
    pub fn trains_vision(&self) -> bool {
        self.vision.tensors().any(|t| t.parameter_name().is_some())
    }

    /// The size in bytes of the weights that [`Self::with_packed_copies`] copies; the copies have about the same size.
    pub fn packed_copy_bytes(&self) -> u64 {
        self.text.packed_copy_bytes()
    }

    /// Returns a model for generation, with packed copies of the decoder's trained weights where the device reads
    /// packed weights faster. The new model shares all other weights, and its results have the same bits. Later
    /// changes of the trained weights do not change the copies.
    ///
    /// # Errors
    /// Out of memory.
    pub fn with_packed_copies(&self, cx: &Cx) -> Result<QwenVl> {
        Ok(QwenVl { text: self.text.with_packed_copies(cx)?, ..self.clone() })
    }

    /// Computes hidden states after the last norm, `[S, H]`, or `[R, H]` with [`ForwardOptions::rows`].
    pub fn forward(&self, cx: &Cx, batch: &Batch, options: ForwardOptions) -> Result<Tensor> {
        let (x, deepstack) = self.embed(cx, batch, &options)?;
        let context = match options.cache {
            Some((cache, pages)) => AttentionContext::Cached { cache, pages },
            None => AttentionContext::Packed { seqs: &batch.seqs },
        };
        self.text.forward(cx, &x, &batch.positions, context, options.rows, deepstack.as_ref())
    }

    /// Embeddings `[S, H]`, with vision tokens in place of pad tokens, and the DeepStack features, if the model has
    /// any.
    fn embed(&self, cx: &Cx, batch: &Batch, options: &ForwardOptions) -> Result<(Tensor, Option<DeepStack>)> {
        let table = &self.text.embed_tokens;
        let Some(input) = &batch.vision else {
            cx.begin_weight_unit(units::EMBEDDING)?;
            return Ok((ops::embedding(cx, table, &batch.ids)?, None));
        };
        let tokens = match options.vision {
            Some(tokens) => tokens.clone(),
            None => self.vision_tokens(cx, input)?,
        };
        cx.begin_weight_unit(units::EMBEDDING)?;
        let VisionTokens { embeddings, deepstack } = tokens;
        let x = ops::embedding_with_vision_tokens(cx, table, &batch.ids, &embeddings, &input.vision_index)?;
        let Some(places) = &input.places else { return Ok((x, None)) };
        let placed = |feature: Tensor| match &places.tokens {
            Some(tokens) => ops::gather_rows(cx, &feature, tokens),
            None => Ok(feature),
        };
        let features = deepstack.into_iter().map(placed).collect::<reel_runtime::Result<_>>()?;
        Ok((x, Some(DeepStack { rows: places.rows.clone(), features })))
    }

    /// Computes the vision tokens of the images and videos of a batch, in processor order.
    ///
    /// A vision tower that is trained runs over all media at once, and the autograd tape records it. A frozen tower
    /// is not recorded. With a feature cache, it runs only over media that are not cached, and over the media of one
    /// sequence at a time, so that a cached result depends on these media alone.
    pub fn vision_tokens(&self, cx: &Cx, input: &VisionInput) -> Result<VisionTokens> {
        if cx.is_training() && self.trains_vision() {
            return self.vision.forward(cx, &input.sequences);
        }
        let cx = cx.without_tape();
        let Some(cache) = &self.features else { return self.vision.forward(&cx, &input.sequences) };
        let mut found: Vec<(u128, Arc<VisionFeatures>)> = Vec::new();
        for media in &input.sequences {
            // Two sequences of this batch may have the same media. The results of this batch are searched too,
            // because a small cache may have evicted the entry already.
            let in_batch = || found.iter().find(|(key, _)| *key == media.key).map(|(_, features)| features.clone());
            let features = match cache.get(media.key).or_else(in_batch) {
                Some(features) => features,
                None => {
                    let tokens = self.vision.forward(&cx, std::slice::from_ref(media))?;
                    let features = Arc::new(VisionFeatures::copy_to_host(&tokens)?);
                    cache.insert(media.key, &features);
                    features
                }
            };
            found.push((media.key, features));
        }
        VisionFeatures::concatenate_on_device(
            cx.device(),
            &found.into_iter().map(|(_, features)| features).collect::<Vec<_>>(),
        )
    }

    /// Computes logits, f32 `[R, V]`, of hidden states `[R, H]`. Has no backward rule.
    pub fn logits(&self, cx: &Cx, hidden: &Tensor) -> Result<Tensor> {
        self.text.logits(cx, hidden, false)
    }
}
