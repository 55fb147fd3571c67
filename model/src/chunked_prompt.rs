//! A prompt that is computed in chunks: the forward pass over a range of its tokens, with the keys and values of
//! earlier tokens in the KV cache.
//!
//! [`PromptTokens`] is the checked prompt in host memory. [`QwenVl::forward_chunks`] computes ranges of several
//! prompts at once. The vision tokens of a prompt are computed once, by [`QwenVl::needed_vision_tokens`], for all of
//! its chunks.

use reel_input::config::ModelConfig;
use reel_input::window::GridThw;
use reel_input::{MediaFrames, Sequence};
use reel_runtime::ops::{CuSeqlens, KvPages, SequencePages};
use reel_runtime::{Cx, Tensor};

use crate::batch::{Batch, MediaHash, VisionInput, append_vision_indices, checked_token_id, images_and_videos};
use crate::error::{Error, Result};
use crate::qwen_vl::{ForwardOptions, QwenVl};
use crate::text::KvCache;
use crate::vision::VisionTokens;

/// The tokens of a prompt, checked against the model, in host memory.
#[derive(Clone, Debug)]
pub struct PromptTokens {
    /// Token ids `[S]`.
    pub ids: Vec<i32>,
    /// M-RoPE positions `[3][S]`: time, height, width.
    pub positions: [Vec<i32>; 3],
    /// For each token, the index of the vision token that replaces its embedding; -1 for text. `[S]`, or empty if the
    /// prompt has no media.
    pub vision_index: Vec<i32>,
    /// For each image and video, in the order of the vision tokens: its first vision token, and a hash of its content.
    pub media: Vec<(i32, MediaHash)>,
}

impl PromptTokens {
    /// Checks a prompt. Hashes the prompt's media if `with_hashes` is true; otherwise `media` is empty. `location`
    /// names the prompt in error messages.
    ///
    /// # Errors
    /// An id is outside the vocabulary; the number of positions, pad tokens or pixels does not match.
    pub fn new(config: &ModelConfig, prompt: &Sequence, with_hashes: bool, location: &str) -> Result<PromptTokens> {
        let ids =
            prompt.input_ids.iter().map(|&id| checked_token_id(id, config, location)).collect::<Result<Vec<i32>>>()?;
        if let Some(axis) = prompt.position_ids.iter().find(|axis| axis.len() != ids.len()) {
            let what = format!("has {} M-RoPE positions for {} token ids", axis.len(), ids.len());
            let help = "give one position for each token id on each axis";
            return Err(Error::input(format!("{location}: position_ids"), what, help));
        }
        let kinds = images_and_videos(prompt, config);
        let mut vision_index = Vec::new();
        let tokens = append_vision_indices(&mut vision_index, prompt, &kinds, 0, config, location)?;
        if tokens == 0 {
            vision_index = Vec::new();
        }
        let per_token = config.vision.patches_per_vision_token();
        let (mut media, mut first) = (Vec::new(), 0);
        for kind in kinds.iter().filter(|_| with_hashes) {
            for (grid, hash) in kind.grids.iter().zip(kind.item_hashes(config)) {
                media.push((first, hash));
                first += (grid.iter().product::<usize>() / per_token) as i32;
            }
        }
        let positions = prompt.position_ids.map(|axis| axis.iter().map(|&p| p as i32).collect());
        Ok(PromptTokens { ids, positions, vision_index, media })
    }

    /// Whether a token of the range is replaced by a vision token.
    pub fn has_vision_tokens(&self, range: std::ops::Range<usize>) -> bool {
        let end = range.end.min(self.vision_index.len());
        self.vision_index.get(range.start..end).is_some_and(|index| index.iter().any(|&i| i >= 0))
    }
}

/// The vision tokens of a prompt's last images and last videos.
#[derive(Clone, Debug)]
pub struct NeededVisionTokens {
    /// The vision tokens of these images, then of these videos.
    pub tokens: VisionTokens,
    /// The grids of these images and videos.
    pub grids: Vec<GridThw>,
    /// The number of vision tokens of all images of the prompt.
    first_of_videos: i32,
    /// The number of vision tokens of the images, and of the videos, that were left out.
    skipped: [i32; 2],
}

impl NeededVisionTokens {
    /// The index among these vision tokens of the vision token that has the index `index` in the prompt; -1 for text
    /// (-1).
    pub fn index_of(&self, index: i32) -> i32 {
        match index {
            ..0 => -1,
            _ if index < self.first_of_videos => index - self.skipped[0],
            _ => index - self.skipped[0] - self.skipped[1],
        }
    }
}

/// A range of the tokens of one sequence, for [`QwenVl::forward_chunks`].
#[derive(Clone, Debug)]
pub struct PromptChunk<'a> {
    /// Token ids `[s]`.
    pub ids: Vec<i32>,
    /// M-RoPE positions `[3][s]`.
    pub positions: [Vec<i32>; 3],
    /// The index of each token's vision token, -1 for text: `[s]`, or empty if the range has no vision tokens.
    pub vision_index: Vec<i32>,
    /// The vision tokens of the sequence; needed if `vision_index` is not empty.
    pub vision: Option<&'a VisionTokens>,
    /// The tokens before the range, which are in the KV cache, and the sequence's cache blocks.
    pub pages: SequencePages<'a>,
}

impl QwenVl {
    /// Computes the vision tokens of the images and videos that the prompt's tokens from index `from` on need, or takes
    /// them from the feature cache. Earlier images and videos, whose keys and values are in the KV cache, are left out.
    /// `None` if no image or video is needed. `tokens` are the tokens of `prompt`.
    ///
    /// # Errors
    /// Pixels that do not match the grids; out of memory.
    pub fn needed_vision_tokens(
        &self,
        cx: &Cx,
        prompt: &Sequence,
        tokens: &PromptTokens,
        from: usize,
    ) -> Result<Option<NeededVisionTokens>> {
        let (vision, pads) = (&self.config.vision, [self.config.tokens.image, self.config.tokens.video]);
        let grids = [prompt.image_grid_thw, prompt.video_grid_thw];
        let patches = |grids: &[GridThw]| grids.iter().map(|grid| grid.iter().product::<usize>()).sum::<usize>();
        let token_count = |grids: &[GridThw]| (patches(grids) / vision.patches_per_vision_token()) as i32;
        let first_of_videos = token_count(grids[0]);
        let is_video = |index: i32| index >= first_of_videos;
        let needed = tokens.vision_index.get(from..).unwrap_or_default().iter().copied().filter(|&index| index >= 0);
        // The needed images, and the needed videos, are the last ones of the prompt.
        let first_needed = |video: bool| needed.clone().filter(|&index| is_video(index) == video).min();
        let skip_count = |video: bool| {
            let (all, base) = (grids[usize::from(video)], if video { first_of_videos } else { 0 });
            let Some(first) = first_needed(video) else { return all.len() };
            (0..all.len()).take_while(|&n| base + token_count(&all[..=n]) <= first).count()
        };
        let skipped = [skip_count(false), skip_count(true)];
        let left = [0, 1].map(|kind| &grids[kind][skipped[kind]..]);
        if left.iter().all(|grids| grids.is_empty()) {
            return Ok(None);
        }
        let values = |kind: usize, all: &'_ [f32]| {
            let skipped = patches(&grids[kind][..skipped[kind]]) * vision.patch_dim();
            skipped.min(all.len())..all.len()
        };
        let frames = prompt.frames.map(|all| MediaFrames {
            images: all.images.get(skipped[0]..).unwrap_or_default().to_vec(),
            videos: all.videos.get(skipped[1]..).unwrap_or_default().to_vec(),
            video_times: Vec::new(),
            processor: all.processor,
        });
        let pad_ids = [0, 1].map(|kind| vec![pads[kind]; token_count(left[kind]) as usize]).concat();
        let of_needed = Sequence {
            input_ids: &pad_ids,
            pixel_values: &prompt.pixel_values[values(0, prompt.pixel_values)],
            image_grid_thw: left[0],
            pixel_values_videos: &prompt.pixel_values_videos[values(1, prompt.pixel_values_videos)],
            video_grid_thw: left[1],
            frames: frames.as_ref(),
            ..Sequence::default()
        };
        let Some(input) = VisionInput::new(cx.device(), &self.config, &[of_needed], "prompt")? else { return Ok(None) };
        Ok(Some(NeededVisionTokens {
            tokens: self.vision_tokens(cx, &input)?,
            grids: left.concat(),
            first_of_videos,
            skipped: [0, 1].map(|kind| token_count(&grids[kind][..skipped[kind]])),
        }))
    }

    /// Adds the keys and values of the tokens of all `chunks` to the KV cache. Returns the hidden states `[R, H]`
    /// after the last norm of the tokens `rows`: ascending indices into the tokens of all chunks, one chunk after the
    /// other. At most one chunk may have vision tokens.
    ///
    /// # Errors
    /// Several chunks with vision tokens; too few cache blocks; out of memory.
    pub fn forward_chunks(&self, cx: &Cx, cache: &KvCache, chunks: &[PromptChunk], rows: &[usize]) -> Result<Tensor> {
        let device = cx.device();
        let ids: Vec<i32> = chunks.iter().flat_map(|c| &c.ids).copied().collect();
        let positions: Vec<i32> =
            (0..3).flat_map(|axis| chunks.iter().flat_map(move |c| &c.positions[axis])).copied().collect();
        let lengths: Vec<usize> = chunks.iter().map(|c| c.ids.len()).collect();
        let vision = match chunks.iter().filter(|c| !c.vision_index.is_empty()).collect::<Vec<_>>()[..] {
            [] => None,
            [chunk] => chunk.vision,
            _ => {
                let what = "several chunks of one forward pass have vision tokens";
                return Err(Error::input("prompt chunks", what, "compute them one after the other"));
            }
        };
        let vision_index = || -> Vec<i32> {
            let of_chunk = |c: &PromptChunk| match c.vision_index.is_empty() {
                true => vec![-1; c.ids.len()],
                false => c.vision_index.clone(),
            };
            chunks.iter().flat_map(of_chunk).collect()
        };
        let vision_input = match vision {
            Some(tokens) => {
                let count = tokens.embeddings.shape()[0];
                Some(VisionInput::with_index(device, &self.config, &vision_index(), count, Vec::new())?)
            }
            None => None,
        };
        let pages: Vec<SequencePages> = chunks.iter().map(|c| c.pages).collect();
        let pages = KvPages::new(device, &pages)?;
        let batch = Batch {
            positions: Tensor::from_i32(device, &[3, ids.len()], &positions)?,
            ids: Tensor::from_i32(device, &[ids.len()], &ids)?,
            seqs: CuSeqlens::from_lengths(device, &lengths)?,
            vision: vision_input,
        };
        let rows: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
        let rows = match rows.len() == ids.len() {
            true => None,
            false => Some(Tensor::from_i32(device, &[rows.len()], &rows)?),
        };
        let cache = Some((cache, &pages));
        self.forward(cx, &batch, ForwardOptions { vision, cache, rows: rows.as_ref() })
    }
}
