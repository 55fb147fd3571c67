//! SigLIP: embeds texts and images as vectors of length 1, whose dot product is their similarity. It is the reward
//! model of the semantic reward and is never trained.
//!
//! Reads model folders of transformers (`SiglipModel`: config.json, *.safetensors, tokenizer.json,
//! preprocessor_config.json). Source of the model: arXiv 2303.15343 and transformers' `modeling_siglip.py`.

pub mod config;
mod encoder;
mod image;
mod tensors;
#[cfg(test)]
mod tests;
pub mod text;
pub mod tokenizer;
pub mod vision;

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use reel_device::{DType, Device};
use reel_input::media::frames::FrameView;
use reel_runtime::{Cx, Tensor, ops};

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::quantization::Quantization;
use crate::weights::{WeightLoader, WeightSource};

pub use config::SiglipConfig;
pub use image::SiglipProcessor;
pub use tensors::{expected_tensors, is_optional_tensor};
pub use text::SiglipText;
pub use tokenizer::SiglipTokenizer;
pub use vision::SiglipVision;

/// The largest number of tokens or patches that a tower computes in one pass, so that activations need little memory.
const MAX_TOKENS_PER_PASS: usize = 4096;

/// A SigLIP model on a device.
pub struct Siglip {
    /// The sizes of both towers.
    pub config: SiglipConfig,
    folder: PathBuf,
    tokenizer: SiglipTokenizer,
    processor: SiglipProcessor,
    text: SiglipText,
    vision: SiglipVision,
    device: Device,
    dtype: DType,
}

impl std::fmt::Debug for Siglip {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Siglip").field("folder", &self.folder).field("config", &self.config).finish_non_exhaustive()
    }
}

impl Siglip {
    /// Loads a model folder; activations have dtype `dtype` (f32 or bf16).
    ///
    /// # Errors
    /// A file is missing, damaged or of another model; out of memory.
    pub fn open(device: &Device, folder: &Path, dtype: DType) -> Result<Siglip> {
        let config = SiglipConfig::open(folder)?;
        let tokenizer = SiglipTokenizer::open(folder, config.text.vocab_size, config.text.positions)?;
        let processor = SiglipProcessor::open(folder, &config.vision)?;
        let files = Checkpoint::open(folder)?;
        files.check_tensor_list(&expected_tensors(&config), is_optional_tensor)?;
        let from = WeightLoader {
            device,
            source: WeightSource::Files(&files),
            dtype,
            quantization: Quantization::None,
            may_pad: true,
            trainable: &|_| false,
            deferred: None,
        };
        Ok(Siglip {
            text: SiglipText::load(&from, &config.text)?,
            vision: SiglipVision::load(&from, &config.vision)?,
            device: device.clone(),
            dtype,
            folder: folder.to_path_buf(),
            config,
            tokenizer,
            processor,
        })
    }

    /// The number of images in one pass of the vision tower.
    pub fn images_per_pass(&self) -> usize {
        (MAX_TOKENS_PER_PASS / self.config.vision.patch_count()).max(1)
    }

    /// Computes one embedding per text, normalised to Euclidean length 1.
    ///
    /// # Errors
    /// Embeddings that are not finite; an error of the tokenizer or the device.
    pub fn embed_texts(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        let at_once = (MAX_TOKENS_PER_PASS / self.config.text.positions).max(1);
        let mut all = Vec::with_capacity(texts.len());
        for texts in texts.chunks(at_once) {
            let ids = texts.iter().map(|text| self.tokenizer.encode(text)).collect::<Result<Vec<_>>>()?;
            all.extend(self.vectors(&self.text.forward(&self.cx(), &ids.concat())?)?);
        }
        Ok(all)
    }

    /// Computes one embedding per frame, normalised to Euclidean length 1, in the order of `frames`. With `negative`,
    /// every byte v of the frames is first replaced by `(256 - v) % 256`.
    ///
    /// # Errors
    /// A frame that cannot be resized; embeddings that are not finite; a device error.
    pub fn embed_frames(&self, frames: &[FrameView<'_>], negative: bool) -> Result<Vec<Vec<f32>>> {
        let one = |frame, (height, width)| FrameView::new(frame, 1, height, width);
        let frames = frames.iter().flat_map(|view| view.iter().map(|frame| one(frame, view.height_and_width())));
        let frames = frames.collect::<Result<Vec<_>>>()?;
        let seen = self.processor.cropped_side();
        let mut all = Vec::with_capacity(frames.len());
        for some in frames.chunks(self.images_per_pass()) {
            let squares = some
                .par_iter()
                .map(|frame| self.processor.resize_and_crop(*frame, negative))
                .collect::<reel_input::Result<Vec<_>>>()?;
            let size = [some.len(), seen, seen];
            let images =
                ops::DeviceFrames::new(&self.device, &squares.concat(), size, &self.processor.patch_settings())?;
            all.extend(self.vectors(&self.vision.forward(&self.cx(), &images)?)?);
        }
        Ok(all)
    }

    /// The context of a forward pass.
    fn cx(&self) -> Cx {
        Cx::inference(&self.device, self.dtype)
    }

    /// Copies T embeddings of E elements, a tensor `[T, E]`, to the host.
    fn vectors(&self, x: &Tensor) -> Result<Vec<Vec<f32>>> {
        let flat = x.to_f32()?;
        if flat.iter().any(|x| !x.is_finite()) {
            let what = "its weights give embeddings that are not finite numbers";
            return Err(Error::failed(self.folder.display().to_string(), what, "copy or download the folder again"));
        }
        Ok(flat.chunks_exact(self.config.text.projection_size).map(<[f32]>::to_vec).collect())
    }
}
