//! SigLIP: texts and pictures as vectors of length 1 whose products say how well they agree. It judges, and is never
//! trained.
//!
//! A folder is read as transformers writes it (`SiglipModel`: config.json, *.safetensors, tokenizer.json,
//! preprocessor_config.json). Source of the model: arXiv 2303.15343 and transformers' `modeling_siglip.py`.

pub mod config;
mod encoder;
mod picture;
mod tensors;
#[cfg(test)]
mod tests;
pub mod text;
pub mod tokenizer;
pub mod vision;

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use reel_media::frames::FrameView;
use reel_runtime::{Cx, DType, Device, Tensor, ops};

use crate::checkpoint::Checkpoint;
use crate::error::{ModelError, Result};
use crate::weights::{WeightLoader, WeightSource};

pub use config::SiglipConfig;
pub use picture::SiglipProcessor;
pub use tensors::{expected_tensors, is_optional};
pub use text::SiglipText;
pub use tokenizer::SiglipTokenizer;
pub use vision::SiglipVision;

/// Tokens, or patches, that go through a tower at once: what bounds the memory of activations.
const AT_ONCE: usize = 4096;

/// A folder's model on a device.
pub struct Siglip {
    /// Its shape.
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
    /// Opens a folder; computes in `dtype` (f32 or bf16).
    ///
    /// # Errors
    /// A file that is missing, damaged or of another model; out of memory.
    pub fn open(device: &Device, folder: &Path, dtype: DType) -> Result<Siglip> {
        let config = SiglipConfig::open(folder)?;
        let tokenizer = SiglipTokenizer::open(folder, config.text.vocab_size, config.text.positions)?;
        let processor = SiglipProcessor::open(folder, &config.vision)?;
        let files = Checkpoint::open(folder)?;
        files.check_list(&expected_tensors(&config), is_optional)?;
        let from = WeightLoader { device, source: WeightSource::Files(&files), dtype, trainable: &|_| false };
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

    /// Pictures that go through the vision tower at once.
    pub fn pictures_at_once(&self) -> usize {
        (AT_ONCE / self.config.vision.patches()).max(1)
    }

    /// An embedding of length 1 for each text.
    ///
    /// # Errors
    /// Weights that give no numbers; what the tokenizer or the device reports.
    pub fn embed_texts(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        let at_once = (AT_ONCE / self.config.text.positions).max(1);
        let mut all = Vec::with_capacity(texts.len());
        for texts in texts.chunks(at_once) {
            let ids = texts.iter().map(|text| self.tokenizer.encode(text)).collect::<Result<Vec<_>>>()?;
            all.extend(self.vectors(&self.text.forward(&self.cx(), &ids.concat())?)?);
        }
        Ok(all)
    }

    /// An embedding of length 1 for each frame of each view, in order. `negative`: the model is shown `(256 - v) % 256`
    /// of every byte.
    ///
    /// # Errors
    /// A frame that cannot be resized; weights that give no numbers; what the device reports.
    pub fn embed_frames(&self, frames: &[FrameView<'_>], negative: bool) -> Result<Vec<Vec<f32>>> {
        let one = |frame, (height, width)| Ok(FrameView::new(frame, 1, height, width)?);
        let frames = frames.iter().flat_map(|view| view.iter().map(|frame| one(frame, view.size())));
        let frames = frames.collect::<Result<Vec<_>>>()?;
        let seen = self.processor.seen();
        let mut all = Vec::with_capacity(frames.len());
        for some in frames.chunks(self.pictures_at_once()) {
            let squares =
                some.par_iter().map(|frame| self.processor.square(*frame, negative)).collect::<Result<Vec<_>>>()?;
            let size = [some.len(), seen, seen];
            let pictures = ops::DeviceFrames::new(&self.device, &squares.concat(), size, &self.processor.patching())?;
            all.extend(self.vectors(&self.vision.forward(&self.cx(), &pictures)?)?);
        }
        Ok(all)
    }

    /// Computes without gradients.
    fn cx(&self) -> Cx {
        Cx::inference(&self.device, self.dtype)
    }

    /// The rows of `[T, E]` on the host.
    fn vectors(&self, x: &Tensor) -> Result<Vec<Vec<f32>>> {
        let flat = x.to_f32()?;
        if flat.iter().any(|x| !x.is_finite()) {
            let what = "its weights give embeddings that are not finite numbers";
            return Err(ModelError::weights(
                self.folder.display().to_string(),
                what,
                "copy or download the folder again",
            ));
        }
        Ok(flat.chunks_exact(self.config.text.projection_size).map(<[f32]>::to_vec).collect())
    }
}
