//! The model's input as plain arrays, and its safetensors file (`reel preprocess` writes it, `reel score --inputs`
//! reads it).

use std::borrow::Cow;
use std::path::Path;

use crate::error::{Error, Result};
use crate::media::frames::FrameBuf;
use reel_support::diagnostic::input;

use crate::config::ModelConfig;
use crate::media_frames::MediaFrames;
use crate::mrope::{MediaGrids, rope_index};
use crate::tensor_file::{self, HeaderTensor, StoredTensor, write_safetensors};
use crate::tokenizer::TokenId;
use crate::window::GridThw;

/// One sequence of S tokens, ready for the model. In the shapes below, N is the number of patches of all images, or
/// of all videos; each patch has `patch_dim` values (`VisionConfig::patch_dim`).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ModelInput {
    /// Token ids `[S]`.
    pub input_ids: Vec<TokenId>,
    /// M-RoPE positions `[3][S]`: time, height, width.
    pub position_ids: [Vec<i64>; 3],
    /// The M-RoPE position of a token generated after this sequence is its index plus `rope_delta`.
    pub rope_delta: i64,
    /// Decoded images and videos; empty if `pixel_values` and `pixel_values_videos` are given instead.
    pub frames: MediaFrames,
    /// Pixels `[N, patch_dim]` of all images, in order.
    pub pixel_values: Option<Vec<f32>>,
    /// The grid (time, height, width in patches) of each image.
    pub image_grid_thw: Vec<GridThw>,
    /// Pixels `[N, patch_dim]` of all videos, in order.
    pub pixel_values_videos: Option<Vec<f32>>,
    /// The grid (time, height, width in patches) of each video.
    pub video_grid_thw: Vec<GridThw>,
    /// Seconds from one frame pair to the next, for each video.
    pub second_per_grid_ts: Vec<f32>,
    /// The indices of the sampled frames of all videos, one video after another.
    pub frame_indices: Vec<i64>,
}

/// One sequence, with its images and videos, in host memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sequence<'a> {
    /// Token ids `[S]`.
    pub input_ids: &'a [TokenId],
    /// M-RoPE positions `[3][S]`: time, height, width.
    pub position_ids: [&'a [i64]; 3],
    /// Pixels `[N, patch_dim]` of all images, in processor order. If not empty, used instead of the images in
    /// `frames`.
    pub pixel_values: &'a [f32],
    /// The grid of each image.
    pub image_grid_thw: &'a [GridThw],
    /// Pixels `[N, patch_dim]` of all videos, in processor order. If not empty, used instead of the videos in
    /// `frames`.
    pub pixel_values_videos: &'a [f32],
    /// The grid of each video.
    pub video_grid_thw: &'a [GridThw],
    /// Decoded images and videos.
    pub frames: Option<&'a MediaFrames>,
}

const HELP: &str = "give a file as `reel preprocess` writes it for this model";

impl ModelInput {
    /// Borrows this input as a [`Sequence`], from which a batch on a device is made.
    pub fn sequence(&self) -> Sequence<'_> {
        Sequence {
            input_ids: &self.input_ids,
            frames: Some(&self.frames),
            position_ids: self.position_ids.each_ref().map(Vec::as_slice),
            pixel_values: self.pixel_values.as_deref().unwrap_or_default(),
            image_grid_thw: &self.image_grid_thw,
            pixel_values_videos: self.pixel_values_videos.as_deref().unwrap_or_default(),
            video_grid_thw: &self.video_grid_thw,
        }
    }

    /// The pixels `[N, patch_dim]` of all images and the pixels of all videos, as given or computed from the frames.
    ///
    /// # Errors
    /// Frames that cannot be cut into patches; more pixels than fit in memory.
    pub fn image_and_video_pixels(&self) -> Result<[Option<Cow<'_, [f32]>>; 2]> {
        let kinds = [(&self.pixel_values, &self.frames.images), (&self.pixel_values_videos, &self.frames.videos)];
        let [images, videos] = kinds.map(|(given, frames)| match given {
            Some(values) => Ok(Some(Cow::Borrowed(&values[..]))),
            None if frames.is_empty() => Ok(None),
            None => self.frames.patch_pixel_values(frames).map(|cut| Some(Cow::Owned(cut))),
        });
        Ok([images?, videos?])
    }

    /// A sequence of text tokens without media.
    pub fn from_text_tokens(input_ids: Vec<TokenId>) -> Self {
        let plain: Vec<i64> = (0..input_ids.len() as i64).collect();
        Self { input_ids, position_ids: [plain.clone(), plain.clone(), plain], ..Self::default() }
    }

    /// Appends another sequence with its images and videos, which are given as frames, as when a conversation goes on.
    /// Computes the positions of the whole sequence; those of its first tokens do not change. `location` names the
    /// sequence in errors.
    ///
    /// # Errors
    /// Pad tokens that do not match the grids.
    pub fn append(&mut self, next: &ModelInput, config: &ModelConfig, location: &str) -> Result<()> {
        self.input_ids.extend_from_slice(&next.input_ids);
        self.frames.append(&next.frames);
        self.image_grid_thw.extend_from_slice(&next.image_grid_thw);
        self.video_grid_thw.extend_from_slice(&next.video_grid_thw);
        self.second_per_grid_ts.extend_from_slice(&next.second_per_grid_ts);
        self.frame_indices.extend_from_slice(&next.frame_indices);
        self.compute_positions(config, location)
    }

    /// The number of tokens.
    pub fn len(&self) -> usize {
        self.input_ids.len()
    }

    /// Whether the sequence has no tokens.
    pub fn is_empty(&self) -> bool {
        self.input_ids.is_empty()
    }

    /// The grids in the form that [`rope_index`] takes.
    pub fn media_grids(&self) -> MediaGrids<'_> {
        MediaGrids {
            image_grid_thw: &self.image_grid_thw,
            video_grid_thw: &self.video_grid_thw,
            second_per_grid_ts: &self.second_per_grid_ts,
        }
    }

    /// Computes `position_ids` and `rope_delta` from the token ids and grids.
    pub fn compute_positions(&mut self, config: &ModelConfig, location: &str) -> Result<()> {
        let index = rope_index(config, &self.input_ids, self.media_grids(), location)?;
        (self.position_ids, self.rope_delta) = (index.position_ids, index.rope_delta);
        Ok(())
    }

    /// Checks the arrays against each other and against the model. The number of vision tokens that the grids state
    /// must equal the number of pad tokens, and the number of patches must match the number of pixels. If there are no
    /// image grids, image pad tokens are text, as in a batch; likewise for videos. `location` (a file) names the input
    /// in error messages.
    pub fn check(&self, config: &ModelConfig, location: &str) -> Result<()> {
        let fault = |name: &str, what: String| Err(Error::input(format!("{location}: {name}"), what, HELP));
        if self.input_ids.is_empty() {
            return fault("input_ids", "has no tokens".to_string());
        }
        if let Some(axis) = self.position_ids.iter().find(|axis| axis.len() != self.len()) {
            return fault("position_ids", format!("has {} positions for {} tokens", axis.len(), self.len()));
        }
        if let Some(position) = self.position_ids.iter().flatten().find(|&&p| !(0..=i64::from(i32::MAX)).contains(&p)) {
            return fault("position_ids", format!("has {position}, expected 0 to 2^31 - 1"));
        }
        self.check_media(
            config,
            location,
            "image",
            config.tokens.image,
            &self.image_grid_thw,
            (self.pixel_values.as_deref(), &self.frames.images),
        )?;
        self.check_media(
            config,
            location,
            "video",
            config.tokens.video,
            &self.video_grid_thw,
            (self.pixel_values_videos.as_deref(), &self.frames.videos),
        )
    }

    fn check_media(
        &self,
        config: &ModelConfig,
        location: &str,
        kind: &str,
        pad: u32,
        grids: &[GridThw],
        (pixels, frames): (Option<&[f32]>, &[FrameBuf]),
    ) -> Result<()> {
        let pixel_name = if kind == "image" { "pixel_values" } else { "pixel_values_videos" };
        let fault = |name: &str, what: String| Err(Error::input(format!("{location}: {name}"), what, HELP));
        let merge = config.vision.spatial_merge_size;
        if let Some(grid) =
            grids.iter().find(|[t, h, w]| *t == 0 || *h == 0 || *w == 0 || h % merge != 0 || w % merge != 0)
        {
            return fault(
                &format!("{kind}_grid_thw"),
                format!("has {grid:?}; height and width must be multiples of {merge}"),
            );
        }
        let patches: usize = grids.iter().map(|grid| grid.iter().product::<usize>()).sum();
        let values = pixels.map_or(0, <[f32]>::len);
        if pixels.is_none() && !frames.is_empty() {
            let cut = frames.iter().map(|f| self.frames.grid_thw(f)).collect::<Result<Vec<GridThw>>>()?;
            if cut != grids {
                return fault(
                    &format!("{kind}_grid_thw"),
                    format!("is {grids:?}, but the decoded frames give the grids {cut:?}"),
                );
            }
        } else if values != patches * config.vision.patch_dim() {
            let rows = values / config.vision.patch_dim();
            return fault(pixel_name, format!("has {rows} patches, but {kind}_grid_thw gives {patches} patches"));
        }
        // Without grids, a user typed the pad tokens: they are text.
        if grids.is_empty() {
            return Ok(());
        }
        let pads = self.input_ids.iter().filter(|&&id| id == pad).count();
        let tokens = patches / config.vision.patches_per_vision_token();
        if pads != tokens {
            return fault(
                "input_ids",
                format!("has {pads} {kind} pad tokens but {kind}_grid_thw gives {tokens} vision tokens"),
            );
        }
        Ok(())
    }

    /// Writes the safetensors file of `reel preprocess`. The tensors have the names of transformers' processor; empty
    /// tensors are left out.
    pub fn write(&self, path: &Path, config: &ModelConfig) -> Result<()> {
        let ids: Vec<i64> = self.input_ids.iter().map(|&id| id.into()).collect();
        let positions: Vec<i64> = self.position_ids.concat();
        let delta = [self.rope_delta];
        let flat = |grids: &[GridThw]| grids.iter().flatten().map(|&x| x as i64).collect::<Vec<i64>>();
        let (image_grid, video_grid) = (flat(&self.image_grid_thw), flat(&self.video_grid_thw));
        let dim = config.vision.patch_dim();
        let mut tensors = vec![
            ints("input_ids", vec![self.len()], &ids),
            ints("position_ids", vec![3, self.len()], &positions),
            ints("rope_delta", vec![1], &delta),
        ];
        for (name, grid) in [("image_grid_thw", &image_grid), ("video_grid_thw", &video_grid)] {
            if !grid.is_empty() {
                tensors.push(ints(name, vec![grid.len() / 3, 3], grid));
            }
        }
        let pixels = self.image_and_video_pixels()?;
        for (name, pixels) in ["pixel_values", "pixel_values_videos"].into_iter().zip(&pixels) {
            if let Some(pixels) = pixels {
                tensors.push(floats(name, vec![pixels.len() / dim, dim], pixels));
            }
        }
        if !self.second_per_grid_ts.is_empty() {
            tensors.push(floats("second_per_grid_ts", vec![self.second_per_grid_ts.len()], &self.second_per_grid_ts));
        }
        if !self.frame_indices.is_empty() {
            tensors.push(ints("frame_indices", vec![self.frame_indices.len()], &self.frame_indices));
        }
        write_safetensors(path, &tensors)
    }

    /// Reads a safetensors file with the inputs of a model. `input_ids` is required; missing positions are computed;
    /// unknown tensors are ignored.
    pub fn read(path: &Path, config: &ModelConfig) -> Result<Self> {
        let bytes = input::read_file(path, input::MAX_ROWS_BYTES).map_err(|e| Error::cannot_read(path, e))?;
        let location = path.display().to_string();
        let file = InputFile { location: &location, tensors: tensor_file::read_header(path, &bytes)?, bytes: &bytes };
        let mut tokens = Self {
            input_ids: match file.ints("input_ids")? {
                Some((_, ids)) => token_ids(&ids, config, &location)?,
                None => return Err(Error::input(format!("{location}: input_ids"), "is missing", HELP)),
            },
            pixel_values: file.pixels("pixel_values", config)?,
            image_grid_thw: file.grids("image_grid_thw")?,
            pixel_values_videos: file.pixels("pixel_values_videos", config)?,
            video_grid_thw: file.grids("video_grid_thw")?,
            second_per_grid_ts: file.floats("second_per_grid_ts")?.map_or(Vec::new(), |(_, values)| values),
            frame_indices: file.ints("frame_indices")?.map_or(Vec::new(), |(_, values)| values),
            ..Self::default()
        };
        if let Some(seconds) = tokens.second_per_grid_ts.iter().find(|seconds| !(0.0..f32::INFINITY).contains(*seconds))
        {
            let what = format!("has {seconds}, expected seconds of 0 or more");
            return Err(Error::input(format!("{location}: second_per_grid_ts"), what, HELP));
        }
        match file.ints("position_ids")? {
            None => tokens.compute_positions(config, &location)?,
            Some((shape, positions)) => tokens.set_positions(&file, &shape, &positions)?,
        }
        tokens.check(config, &location)?;
        Ok(tokens)
    }

    fn set_positions(&mut self, file: &InputFile, shape: &[usize], positions: &[i64]) -> Result<()> {
        let length = self.len();
        if shape.first() != Some(&3) || positions.len() != 3 * length {
            let what = format!("has shape {shape:?}, not [3, {length}]");
            return Err(Error::input(format!("{}: position_ids", file.location), what, HELP));
        }
        for (axis, values) in self.position_ids.iter_mut().zip(positions.chunks(length.max(1))) {
            *axis = values.to_vec();
        }
        let largest = positions.iter().max().copied().unwrap_or(-1);
        self.rope_delta = match file.ints("rope_delta")? {
            None => largest + 1 - length as i64,
            Some((_, delta)) if delta.len() == 1 => delta[0],
            Some((shape, _)) => {
                let what = format!("has shape {shape:?}, not [1]");
                return Err(Error::input(format!("{}: rope_delta", file.location), what, HELP));
            }
        };
        Ok(())
    }
}

/// Converts token ids from i64, as files store them. Fails if an id is negative or outside the vocabulary.
fn token_ids(ids: &[i64], config: &ModelConfig, location: &str) -> Result<Vec<TokenId>> {
    let vocab_size = config.text.vocab_size;
    let checked = |(i, &id): (usize, &i64)| match TokenId::try_from(id) {
        Ok(id) if (id as usize) < vocab_size => Ok(id),
        _ => Err(Error::input(
            format!("{location}: input_ids"),
            format!("has {id} at index {i}, outside the vocabulary of {vocab_size} tokens"),
            HELP,
        )),
    };
    ids.iter().enumerate().map(checked).collect()
}

fn ints<'a>(name: &'a str, shape: Vec<usize>, values: &'a [i64]) -> StoredTensor<'a> {
    StoredTensor { name, dtype: "I64", shape, bytes: bytemuck::cast_slice(values) }
}

fn floats<'a>(name: &'a str, shape: Vec<usize>, values: &'a [f32]) -> StoredTensor<'a> {
    StoredTensor { name, dtype: "F32", shape, bytes: bytemuck::cast_slice(values) }
}

/// A safetensors file with the inputs of a model, read into memory.
struct InputFile<'a> {
    location: &'a str,
    tensors: Vec<HeaderTensor>,
    bytes: &'a [u8],
}

/// The shape and the values of a tensor.
type ShapeAndValues<T> = (Vec<usize>, Vec<T>);

impl InputFile<'_> {
    fn find(&self, name: &str) -> Option<(&HeaderTensor, &[u8])> {
        let tensor = self.tensors.iter().find(|tensor| tensor.name == name)?;
        Some((tensor, self.bytes.get(tensor.begin..tensor.end)?))
    }

    fn wrong_dtype(&self, tensor: &HeaderTensor, wanted: &str) -> Error {
        Error::input(format!("{}: {}", self.location, tensor.name), format!("is {}, not {wanted}", tensor.dtype), HELP)
    }

    fn ints(&self, name: &str) -> Result<Option<ShapeAndValues<i64>>> {
        let Some((tensor, bytes)) = self.find(name) else { return Ok(None) };
        let values = match tensor.dtype.as_str() {
            "I64" => bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
            "I32" => bytes.as_chunks().0.iter().map(|b| i64::from(i32::from_le_bytes(*b))).collect(),
            _ => return Err(self.wrong_dtype(tensor, "I64")),
        };
        Ok(Some((tensor.shape.clone(), values)))
    }

    fn floats(&self, name: &str) -> Result<Option<ShapeAndValues<f32>>> {
        let Some((tensor, bytes)) = self.find(name) else { return Ok(None) };
        let values = match tensor.dtype.as_str() {
            "F32" => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            "F64" => bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
            "BF16" => bytes.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
            "F16" => bytes.as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
            _ => return Err(self.wrong_dtype(tensor, "F32")),
        };
        Ok(Some((tensor.shape.clone(), values)))
    }

    fn pixels(&self, name: &str, config: &ModelConfig) -> Result<Option<Vec<f32>>> {
        let dim = config.vision.patch_dim();
        match self.floats(name)? {
            None => Ok(None),
            Some((shape, _)) if shape.len() != 2 || shape[1] != dim => {
                let what = format!("has shape {shape:?}, not [number of patches, {dim}]");
                Err(Error::input(format!("{}: {name}", self.location), what, HELP))
            }
            Some((_, values)) if values.is_empty() => Ok(None),
            Some((_, values)) => Ok(Some(values)),
        }
    }

    fn grids(&self, name: &str) -> Result<Vec<GridThw>> {
        let Some((shape, values)) = self.ints(name)? else { return Ok(Vec::new()) };
        let fault = |what: String| Error::input(format!("{}: {name}", self.location), what, HELP);
        if shape.len() != 2 || shape[1] != 3 {
            return Err(fault(format!("has shape {shape:?}, not [number of grids, 3]")));
        }
        let length = |x: i64| match usize::try_from(x) {
            Ok(x) if x <= 1 << 20 => Ok(x),
            _ => Err(fault(format!("has {x}, expected 0 to 2^20 patches"))),
        };
        values.as_chunks().0.iter().map(|&[t, h, w]| Ok([length(t)?, length(h)?, length(w)?])).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::tiny_config;

    /// An input with one image and one video between text tokens.
    fn sample(config: &ModelConfig) -> ModelInput {
        let t = &config.tokens;
        let mut ids = vec![1, t.vision_start];
        ids.extend([t.image; 2]);
        ids.extend([t.vision_end, 2, t.vision_start]);
        ids.extend([t.video; 6]);
        ids.extend([t.vision_end, 3]);
        let mut tokens = ModelInput {
            input_ids: ids,
            pixel_values: Some((0..8 * 1176).map(|x| x as f32).collect()),
            image_grid_thw: vec![[1, 2, 4]],
            pixel_values_videos: Some(vec![0.5; 24 * 1176]),
            video_grid_thw: vec![[3, 4, 2]],
            second_per_grid_ts: vec![0.75],
            frame_indices: vec![0, 3, 7, 10, 13, 16],
            ..ModelInput::default()
        };
        tokens.compute_positions(config, "sample").unwrap();
        tokens
    }

    #[test]
    fn written_file_reads_back_equal() {
        let config = tiny_config();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("inputs.safetensors");
        for tokens in [sample(&config), ModelInput::from_text_tokens(vec![5, 6, 7])] {
            tokens.write(&path, &config).unwrap();
            assert_eq!(ModelInput::read(&path, &config).unwrap(), tokens);
        }
    }

    #[test]
    fn reads_a_file_with_ids_only() {
        let config = tiny_config();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("i.safetensors");
        let ids = [5i64, 6, 7];
        let mask = [1u8; 3];
        let other = StoredTensor { name: "attention_mask", dtype: "BOOL", shape: vec![3], bytes: &mask };
        write_safetensors(&path, &[ints("input_ids", vec![1, 3], &ids), other]).unwrap();
        assert_eq!(ModelInput::read(&path, &config).unwrap(), ModelInput::from_text_tokens(vec![5, 6, 7]));
    }

    #[test]
    fn errors_name_the_wrong_tensor() {
        let config = tiny_config();
        let good = sample(&config);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("inputs.safetensors");
        let refuse = |change: &dyn Fn(&mut ModelInput), field: &str| {
            let mut tokens = good.clone();
            change(&mut tokens);
            tokens.write(&path, &config).unwrap();
            let error = ModelInput::read(&path, &config).unwrap_err().to_string();
            assert!(error.contains(&format!("inputs.safetensors: {field}")), "{error}");
        };
        refuse(&|t| t.input_ids[0] = 432, "input_ids: has 432 at index 0");
        refuse(&|t| t.input_ids[0] = config.tokens.image, "input_ids: has 3 image pad tokens");
        refuse(&|t| t.image_grid_thw[0] = [1, 3, 4], "image_grid_thw");
        refuse(&|t| t.image_grid_thw[0] = [1, 4, 4], "pixel_values: has 8 patches");
        refuse(&|t| t.video_grid_thw[0] = [2, 4, 2], "pixel_values_videos");
        refuse(&|t| t.pixel_values = None, "pixel_values");
        refuse(&|t| t.position_ids[1][2] = -4, "position_ids");
        refuse(&|t| *t = ModelInput::default(), "input_ids: has no tokens");
        let f = [0f32; 3];
        write_safetensors(&path, &[ints("input_ids", vec![2], &[5, -1])]).unwrap();
        assert!(ModelInput::read(&path, &config).unwrap_err().to_string().contains("input_ids: has -1 at index 1"));
        write_safetensors(&path, &[floats("input_ids", vec![3], &f)]).unwrap();
        assert!(ModelInput::read(&path, &config).unwrap_err().to_string().contains("input_ids: is F32, not I64"));
        write_safetensors(&path, &[floats("x", vec![3], &f)]).unwrap();
        assert!(ModelInput::read(&path, &config).unwrap_err().to_string().contains("input_ids: is missing"));
        std::fs::write(&path, b"text").unwrap();
        assert!(ModelInput::read(&path, &config).unwrap_err().to_string().contains("not a safetensors file"));
    }
}
