//! Packs sequences with their images and videos into one batch on a device.
//!
//! In: [`Sequence`]s in host memory (token ids, M-RoPE positions, decoded frames or pixel values). Out: a [`Batch`],
//! the input of [`QwenVl::forward`](crate::qwen_vl::QwenVl::forward). Sequences of 3 and 2 tokens become one row
//! of 5 tokens with `cu_seqlens` `[0, 3, 5]`, without padding. Images and videos keep processor order here;
//! [`crate::vision`] reorders their patches.

use reel_device::Device;
use reel_input::config::ModelConfig;
use reel_input::media::frames::FrameBuf;
use reel_input::media::patches::ImageProcessorSettings;
use reel_input::window::GridThw;
use reel_input::{MediaFrames, Sequence, TokenId};
use reel_runtime::Tensor;
use reel_runtime::ops::{self, CuSeqlens};
use sha2::{Digest, Sha256};
use twox_hash::xxhash3_128;

use crate::error::{Error, Result};

/// A collision-resistant hash (SHA-256) of the kind, the grid and the pixels of an image or video.
pub type MediaHash = [u8; 32];

/// All images of a sequence, or all its videos.
#[derive(Clone, Copy)]
pub(crate) struct ImagesOrVideos<'a> {
    pub(crate) grids: &'a [GridThw],
    values: &'a [f32],
    frames: &'a [FrameBuf],
    /// The object that holds `frames`, and the settings for cutting them into patches.
    media: Option<&'a MediaFrames>,
    pad_id: TokenId,
    /// The name of these pixels in the output of transformers' processor; used in error messages and in the cache
    /// key.
    name: &'static str,
}

/// The images of a sequence, and its videos.
pub(crate) fn images_and_videos<'a>(sequence: &Sequence<'a>, config: &ModelConfig) -> [ImagesOrVideos<'a>; 2] {
    let (images, videos) = sequence.frames.map_or((&[][..], &[][..]), |f| (&f.images[..], &f.videos[..]));
    let kind = |grids, values: &'a [f32], frames, pad_id, name| {
        let frames: &[FrameBuf] = if values.is_empty() { frames } else { &[] };
        ImagesOrVideos { grids, values, frames, media: sequence.frames, pad_id, name }
    };
    let (image, video) = (config.tokens.image, config.tokens.video);
    [
        kind(sequence.image_grid_thw, sequence.pixel_values, images, image, "pixel_values"),
        kind(sequence.video_grid_thw, sequence.pixel_values_videos, videos, video, "pixel_values_videos"),
    ]
}

impl ImagesOrVideos<'_> {
    /// Checks the grids against the pixels, and against `pads`, the number of pad tokens that stand for vision
    /// tokens.
    fn check(&self, config: &ModelConfig, pads: usize, location: &str) -> Result<()> {
        let (grids, merge) = (self.grids, config.vision.spatial_merge_size);
        if let Some(g) = grids.iter().find(|g| g[1] % merge != 0 || g[2] % merge != 0 || g.contains(&0)) {
            return Err(Error::input(
                location,
                format!(
                    "grid {g:?} (patches along time, height, width) has a side of 0, or a height or width that is not a multiple of {merge}"
                ),
                "make the input with `reel preprocess`",
            ));
        }
        let patches: usize = grids.iter().map(|g| g.iter().product::<usize>()).sum();
        let (dim, frame_grids) = (config.vision.patch_dim(), self.frame_grids()?);
        if frame_grids.is_empty() && self.values.len() != patches * dim {
            let what =
                format!("{} pixel values, but the grids need {patches} patches of {dim} values", self.values.len());
            return Err(Error::input(location, what, "make the input with `reel preprocess`"));
        }
        if !frame_grids.is_empty() && frame_grids != grids {
            return Err(Error::input(
                location,
                format!("the frames have the grids {frame_grids:?}, but the given grids are {grids:?}"),
                "give the grids of these frames",
            ));
        }
        let tokens = patches / config.vision.patches_per_vision_token();
        if pads != tokens {
            let what =
                format!("the token ids have {pads} pad tokens, but the images or videos give {tokens} vision tokens");
            return Err(Error::input(location, what, "give the token ids and the media of the same sequence"));
        }
        Ok(())
    }

    /// A collision-resistant hash of each image or video: its kind, grid and pixels. If all items are given as one
    /// array of pixels in processor order, each item is a consecutive range of the array.
    pub(crate) fn item_hashes(&self, config: &ModelConfig) -> Vec<MediaHash> {
        let (mut values, mut hashes) = (self.values, Vec::with_capacity(self.grids.len()));
        for (i, grid) in self.grids.iter().enumerate() {
            let mut hash = Sha256::new();
            hash.update(self.name.as_bytes());
            grid.iter().for_each(|side| hash.update((*side as u64).to_le_bytes()));
            match self.frames.get(i) {
                Some(f) => {
                    [f.frames, f.height, f.width].iter().for_each(|n| hash.update((*n as u64).to_le_bytes()));
                    hash.update(&f.data[..]);
                }
                None => {
                    let len = grid.iter().product::<usize>() * config.vision.patch_dim();
                    let (own, rest) = values.split_at(len.min(values.len()));
                    hash.update(bytemuck::cast_slice::<f32, u8>(own));
                    values = rest;
                }
            }
            hashes.push(hash.finalize().into());
        }
        hashes
    }

    /// The grid of each image or video in `frames`.
    fn frame_grids(&self) -> Result<Vec<GridThw>> {
        let Some(media) = self.media else { return Ok(Vec::new()) };
        self.frames.iter().map(|f| media.grid_thw(f)).collect()
    }

    /// Appends the pixels of all these images or videos to `to`, cut into patches in processor order.
    fn append_pixels(&self, to: &mut Vec<f32>) -> Result<()> {
        match self.media {
            Some(media) if !self.frames.is_empty() => to.append(&mut media.patch_pixel_values(self.frames)?),
            _ => to.extend_from_slice(self.values),
        }
        Ok(())
    }

    /// Copies the decoded frames to the device.
    fn append_frames(&self, device: &Device, to: &mut Vec<ops::DeviceFrames>) -> Result<()> {
        let Some(media) = self.media else { return Ok(()) };
        let patching = patching(&media.processor);
        for f in self.frames {
            to.push(ops::DeviceFrames::new(device, &f.data, [f.frames, f.height, f.width], &patching)?);
        }
        Ok(())
    }
}

/// Sequences packed into one row on a device, with `S` tokens in total.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Token ids, i32 `[S]`.
    pub ids: Tensor,
    /// M-RoPE positions, i32 `[3, S]`.
    pub positions: Tensor,
    /// Where each sequence begins in the batch, and which earlier tokens it attends to as a shared prefix.
    pub seqs: CuSeqlens,
    /// The images and videos, if there are any.
    pub vision: Option<VisionInput>,
}

/// The images and videos of a batch, `M` vision tokens in all.
#[derive(Clone, Debug)]
pub struct VisionInput {
    /// i32 `[S]`: for each token of the batch, the index of the vision token that replaces its embedding (in
    /// processor order); -1 for a text token.
    pub vision_index: Tensor,
    /// The places of the vision tokens among the tokens of the batch, for a model with DeepStack features.
    pub(crate) places: Option<VisionPlaces>,
    /// The media of each sequence that has images or videos, in the order of the sequences in the batch.
    pub sequences: Vec<SequenceMedia>,
}

/// The places of vision tokens among the tokens of a batch.
#[derive(Clone, Debug)]
pub(crate) struct VisionPlaces {
    /// i32 `[m]`: the indices of the tokens that are vision tokens, in the order of the vision tokens.
    pub(crate) rows: Tensor,
    /// i32 `[m]`: the index of the vision token at each of these places; `None` if they are all M vision tokens.
    pub(crate) tokens: Option<Tensor>,
}

/// The media of one sequence: all images, then all videos.
#[derive(Clone, Debug)]
pub struct SequenceMedia {
    /// The grid (time, height, width in patches) of each image and video, in processor order.
    pub(crate) grids: Vec<GridThw>,
    pub(crate) source: PatchSource,
    /// A hash of the media's kinds (image or video), grids and pixels: the key of [`crate::features::FeatureCache`].
    pub(crate) key: u128,
}

/// The source of the patches that the vision tower's patch embedding reads. All sequences of a [`VisionInput`] have
/// the same variant.
#[derive(Clone, Debug)]
pub(crate) enum PatchSource {
    /// Pixels of N patches, `[N, patch_dim]` in host memory, in the order of Qwen's image processor.
    Values(Vec<f32>),
    /// Decoded frames on the device, whose patches the kernel reads in the order of Qwen's image processor.
    Frames(Vec<ops::DeviceFrames>),
}

impl Batch {
    /// Packs `sequences` into one batch; `location` names the input in error messages.
    ///
    /// # Errors
    /// Ids outside the vocabulary; a number of pad tokens that does not match the grids, if there are any; pixels that
    /// do not match the grids; out of memory.
    pub fn new(device: &Device, config: &ModelConfig, sequences: &[Sequence], location: &str) -> Result<Batch> {
        let lengths: Vec<usize> = sequences.iter().map(|s| s.input_ids.len()).collect();
        let ids = sequences
            .iter()
            .flat_map(|s| s.input_ids)
            .map(|&id| checked_token_id(id, config, location))
            .collect::<Result<Vec<i32>>>()?;
        let mut positions = Vec::with_capacity(3 * ids.len());
        for axis in 0..3 {
            for s in sequences {
                if s.position_ids[axis].len() != s.input_ids.len() {
                    let what = format!(
                        "has {} M-RoPE positions for {} token ids",
                        s.position_ids[axis].len(),
                        s.input_ids.len()
                    );
                    return Err(Error::input(
                        format!("{location}: position_ids"),
                        what,
                        "give one position for each token id on each axis",
                    ));
                }
                positions.extend(s.position_ids[axis].iter().map(|&p| p as i32));
            }
        }
        Ok(Batch {
            positions: Tensor::from_i32(device, &[3, ids.len()], &positions)?,
            ids: Tensor::from_i32(device, &[ids.len()], &ids)?,
            seqs: CuSeqlens::from_lengths(device, &lengths)?,
            vision: VisionInput::new(device, config, sequences, location)?,
        })
    }

    /// The number of tokens of all sequences.
    pub fn token_count(&self) -> usize {
        self.ids.count()
    }

    /// The number of patches of all images and videos.
    pub fn patch_count(&self) -> usize {
        self.grids().iter().map(|grid| grid.iter().product::<usize>()).sum()
    }

    /// The grid (time, height, width in patches) of each image and video.
    pub fn grids(&self) -> Vec<GridThw> {
        self.vision.iter().flat_map(|vision| &vision.sequences).flat_map(|media| &media.grids).copied().collect()
    }
}

pub(crate) fn checked_token_id(id: TokenId, config: &ModelConfig, location: &str) -> Result<i32> {
    if (id as usize) < config.text.vocab_size {
        return Ok(id as i32);
    }
    let what = format!("token id {id} is outside the vocabulary of {} tokens", config.text.vocab_size);
    Err(Error::input(format!("{location}: input_ids"), what, "use the tokenizer of this model"))
}

impl VisionInput {
    /// The media of all `sequences`; `None` if no sequence has an image or video.
    pub(crate) fn new(
        device: &Device,
        config: &ModelConfig,
        sequences: &[Sequence],
        location: &str,
    ) -> Result<Option<VisionInput>> {
        let mut vision_index = Vec::with_capacity(sequences.iter().map(|s| s.input_ids.len()).sum());
        let mut next = 0;
        let mut all_kinds = Vec::with_capacity(sequences.len());
        for s in sequences {
            let kinds = images_and_videos(s, config);
            next = append_vision_indices(&mut vision_index, s, &kinds, next, config, location)?;
            all_kinds.push(kinds);
        }
        if next == 0 {
            return Ok(None);
        }
        let as_values = all_kinds.iter().flatten().any(|kind| !kind.values.is_empty());
        let with_media = all_kinds.iter().filter(|kinds| kinds.iter().any(|kind| !kind.grids.is_empty()));
        let media = with_media.map(|kinds| SequenceMedia::new(device, kinds, as_values)).collect::<Result<_>>()?;
        VisionInput::with_index(device, config, &vision_index, next as usize, media).map(Some)
    }

    /// The media `sequences` of a batch whose tokens have the vision tokens `vision_index` `[S]`, out of `count`; -1
    /// for text.
    ///
    /// # Errors
    /// Out of memory.
    pub(crate) fn with_index(
        device: &Device,
        config: &ModelConfig,
        vision_index: &[i32],
        count: usize,
        sequences: Vec<SequenceMedia>,
    ) -> Result<VisionInput> {
        let index_tensor = |index: &[i32]| Tensor::from_i32(device, &[index.len()], index);
        let places = || {
            let mut placed: Vec<(i32, i32)> = vision_index
                .iter()
                .zip(0..)
                .filter(|(token, _)| **token >= 0)
                .map(|(&token, row)| (token, row))
                .collect();
            placed.sort_unstable();
            let (tokens, rows): (Vec<i32>, Vec<i32>) = placed.into_iter().unzip();
            let tokens = if tokens.len() == count { None } else { Some(index_tensor(&tokens)?) };
            Ok::<_, Error>(VisionPlaces { rows: index_tensor(&rows)?, tokens })
        };
        Ok(VisionInput {
            vision_index: index_tensor(vision_index)?,
            places: if config.vision.deepstack_blocks().is_empty() { None } else { Some(places()?) },
            sequences,
        })
    }
}

/// Appends the index of the vision token that replaces the embedding of each token of `s`, or -1 for text. The vision
/// tokens of the sequence are numbered from `first` on: those of all images, then those of all videos. Returns the
/// number after the last one.
///
/// If the sequence has no images, its image pad tokens are text that a user typed: they keep their own embedding, as
/// in transformers. The same holds for videos.
///
/// # Errors
/// Pixels or pad tokens whose number does not match the grids.
pub(crate) fn append_vision_indices(
    to: &mut Vec<i32>,
    s: &Sequence,
    kinds: &[ImagesOrVideos],
    first: i32,
    config: &ModelConfig,
    location: &str,
) -> Result<i32> {
    let start = to.len();
    to.resize(start + s.input_ids.len(), -1);
    let mut next = first;
    for kind in kinds {
        let first = next;
        let is_pad = |id: TokenId| id == kind.pad_id && !kind.grids.is_empty();
        for (index, _) in to[start..].iter_mut().zip(s.input_ids).filter(|(_, id)| is_pad(**id)) {
            *index = next;
            next += 1;
        }
        kind.check(config, (next - first) as usize, &format!("{location}: {}", kind.name))?;
    }
    Ok(next)
}

impl SequenceMedia {
    fn new(device: &Device, kinds: &[ImagesOrVideos], as_values: bool) -> Result<SequenceMedia> {
        let (mut values, mut frames) = (Vec::new(), Vec::new());
        for kind in kinds {
            match as_values {
                true => kind.append_pixels(&mut values)?,
                false => kind.append_frames(device, &mut frames)?,
            }
        }
        Ok(SequenceMedia {
            grids: kinds.iter().flat_map(|kind| kind.grids).copied().collect(),
            source: if as_values { PatchSource::Values(values) } else { PatchSource::Frames(frames) },
            key: content_hash(kinds),
        })
    }
}

/// A hash of the kinds, grids and pixels of a sequence's media, in order.
fn content_hash(kinds: &[ImagesOrVideos]) -> u128 {
    let mut hash = xxhash3_128::Hasher::new();
    for kind in kinds.iter().filter(|kind| !kind.grids.is_empty()) {
        hash.write(kind.name.as_bytes());
        kind.grids.iter().flatten().for_each(|side| hash.write(&(*side as u64).to_le_bytes()));
        hash.write(bytemuck::cast_slice(kind.values));
        for f in kind.frames {
            [f.frames, f.height, f.width].iter().for_each(|side| hash.write(&(*side as u64).to_le_bytes()));
            hash.write(&f.data);
        }
    }
    hash.finish_128()
}

fn patching(p: &ImageProcessorSettings) -> ops::PatchingParams {
    ops::PatchingParams {
        rescale: p.rescale_factor,
        mean: p.image_mean,
        std: p.image_std,
        patch: p.patch_size,
        temporal: p.temporal_patch_size,
        merge: p.merge_size,
    }
}

#[cfg(test)]
mod tests {
    use reel_input::model_input::ModelInput;

    use super::*;
    use crate::testing::tiny_config;

    #[test]
    fn typed_pads_without_media_keep_their_embeddings() {
        let config = tiny_config();
        let (image, video, start) = (config.tokens.image, config.tokens.video, config.tokens.vision_start);
        let device = Device::cpu(1);
        let text = ModelInput::from_text_tokens(vec![1, image, start, video, 2]);
        text.check(&config, "typed").unwrap();
        assert!(Batch::new(&device, &config, &[text.sequence()], "typed").unwrap().vision.is_none());

        // The input has an image of two vision tokens and no video, so the video pad is text.
        let mut mixed = ModelInput {
            input_ids: vec![video, start, image, image, 1],
            pixel_values: Some(vec![0.5; 8 * config.vision.patch_dim()]),
            image_grid_thw: vec![[1, 2, 4]],
            ..ModelInput::default()
        };
        mixed.compute_positions(&config, "mixed").unwrap();
        mixed.check(&config, "mixed").unwrap();
        let batch = Batch::new(&device, &config, &[text.sequence(), mixed.sequence()], "mixed").unwrap();
        let vision = batch.vision.unwrap();
        assert_eq!(vision.vision_index.to_i32().unwrap(), [-1, -1, -1, -1, -1, -1, -1, 0, 1, -1]);
        assert_eq!(vision.sequences.len(), 1);

        // If the input has an image, each image pad must have a vision token.
        mixed.input_ids[0] = image;
        let error = Batch::new(&device, &config, &[mixed.sequence()], "mixed").unwrap_err().to_string();
        assert!(error.starts_with("mixed: pixel_values: the token ids have 3 pad tokens"), "{error}");
    }
}
