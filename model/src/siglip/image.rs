//! The image processor of SigLIP: resizes each image to a square by Pillow's bicubic filter, and crops the square to
//! whole patches.

use std::path::Path;

use reel_input::config::fields::JsonFields;
use reel_input::media::frames::FrameView;
use reel_input::media::resize::pillow_bicubic;
use reel_runtime::ops::PatchingParams;
use reel_support::diagnostic::input;

use super::config::SiglipVisionConfig;
use crate::error::{Error, Result};

const HELP: &str = "use the preprocessor_config.json that was published with these weights";

/// The settings of the image processor. All published models use the default settings.
#[derive(Debug, Clone, PartialEq)]
pub struct SiglipProcessor {
    rescale: f64,
    mean: [f32; 3],
    std: [f32; 3],
    size: usize,
    patch: usize,
}

impl SiglipProcessor {
    /// Reads `preprocessor_config.json` of a folder, if it exists, and checks it against the vision tower.
    ///
    /// # Errors
    /// A key of the wrong type, or with an unsupported value.
    pub fn open(folder: &Path, config: &SiglipVisionConfig) -> Result<Self> {
        let path = folder.join("preprocessor_config.json");
        match input::read_text(&path, input::MAX_CONFIG_BYTES) {
            Ok(text) => Self::parse_preprocessor_config(&path.display().to_string(), &text, config),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Self::with_published_settings(config)),
            Err(e) => Err(Error::cannot_read(&path, e)),
        }
    }

    /// The published settings: pixel values are normalised as `(x / 255 - 0.5) / 0.5`.
    pub fn with_published_settings(config: &SiglipVisionConfig) -> Self {
        Self { rescale: 1.0 / 255.0, mean: [0.5; 3], std: [0.5; 3], size: config.image_size, patch: config.patch_size }
    }

    /// Parses the text of a preprocessor_config.json; `file` names its source in error messages.
    ///
    /// # Errors
    /// A key of the wrong type, or with an unsupported value.
    pub fn parse_preprocessor_config(file: &str, text: &str, config: &SiglipVisionConfig) -> Result<Self> {
        let fields = JsonFields::parse(file, text, HELP)?;
        let standard = Self::with_published_settings(config);
        for key in ["do_resize", "do_rescale", "do_normalize"] {
            if fields.opt_bool(key)? == Some(false) {
                return Err(fields.error(key, "is false; only true is supported"));
            }
        }
        if let Some(filter) = fields.opt_int("resample")?.filter(|&filter| filter != 3) {
            return Err(fields.error("resample", format!("is {filter}; only 3 (bicubic) is supported")));
        }
        if let Some(size) = fields.opt_object("size")? {
            for key in ["height", "width"] {
                let side = size.positive_int(key)?;
                if side != config.image_size {
                    let what = format!("is {side}, but config.json has an image_size of {}", config.image_size);
                    return Err(size.error(key, what));
                }
            }
        }
        let rescale =
            if fields.has_key("rescale_factor") { fields.positive_f64("rescale_factor")? } else { standard.rescale };
        let (mean, std) = (three(&fields, "image_mean")?, three(&fields, "image_std")?);
        if !std.iter().all(|&s| s > 0.0) {
            return Err(fields.error("image_std", "must be above 0 for every channel"));
        }
        Ok(Self { rescale, mean, std, ..standard })
    }

    /// How u8 frames are normalised and cut into patches.
    pub(super) fn patch_settings(&self) -> PatchingParams {
        PatchingParams {
            rescale: self.rescale,
            mean: self.mean,
            std: self.std,
            patch: self.patch,
            temporal: 1,
            merge: 1,
        }
    }

    /// The side of the cropped square, in pixels.
    pub(super) fn cropped_side(&self) -> usize {
        self.size / self.patch * self.patch
    }

    /// Resizes a frame to a square and crops it to whole patches. The result is u8 `[side, side, 3]`, where `side` is
    /// [`Self::cropped_side`]. With `negative`, every byte v of the frame is first replaced by `(256 - v) % 256`.
    ///
    /// # Errors
    /// A frame that cannot be resized.
    pub(super) fn resize_and_crop(&self, frame: FrameView<'_>, negative: bool) -> Result<Vec<u8>> {
        let (height, width) = frame.height_and_width();
        let square = if negative {
            let turned: Vec<u8> = frame.data().iter().map(|v| v.wrapping_neg()).collect();
            pillow_bicubic(FrameView::new(&turned, frame.frame_count(), height, width)?, (self.size, self.size))?
        } else {
            pillow_bicubic(frame, (self.size, self.size))?
        };
        let seen = self.cropped_side();
        let rows = square.data.chunks_exact(3 * self.size).take(seen).map(|row| &row[..3 * seen]);
        Ok(rows.collect::<Vec<_>>().concat())
    }
}

/// The three numbers (one per colour channel) under a key; 0.5 for each if the key is missing.
fn three(fields: &JsonFields, key: &str) -> Result<[f32; 3]> {
    let Some(numbers) = fields.opt_f64_list(key)? else { return Ok([0.5; 3]) };
    match numbers[..] {
        [r, g, b] => Ok([r as f32, g as f32, b as f32]),
        _ => Err(fields.error(key, format!("has {} numbers, not 3", numbers.len()))),
    }
}
