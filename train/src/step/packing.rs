//! Packs a micro-batch of groups into one batch, with the prompt of each group stored and computed once (a shared
//! prefix).
//!
//! Example: the prompt `a b c` with the completions `x y` and `z`. Each token predicts the next token, so the last
//! token of a completion is not an input, and each completion's sequence begins with the last token of the prompt:
//!
//! ```text
//! sequence   tokens   prefix     targets
//! 0          a b      -          -
//! 1          c x      0          x y
//! 2          c        0          z
//! ```
//!
//! A completion in which tools have written tokens has the images and videos of these tokens in its own sequence; the
//! tokens of tools are inputs, but no targets.
//!
//! A group of G completions with a prompt of P tokens and T learned tokens each takes P − 1 + G·T tokens. Without the
//! shared prefix (`--shared-prefix false`) each sequence repeats the prompt, `a b c x` and `a b c`: G·(P − 1) + G·T
//! tokens.

use std::ops::Range;
use std::sync::Arc;

use reel_device::Device;
use reel_input::config::ModelConfig;
use reel_input::{MediaFrames, ModelInput, Sequence, TokenId};
use reel_model::batch::Batch;
use reel_runtime::Tensor;
use reel_runtime::ops::CuSeqlens;

use crate::error::{Error, Result};
use crate::rollout::group::{CompletionTokens, Rollout};
use crate::step::checkpointing::BatchWithLearnedTokens;

/// A packed micro-batch of groups on the device: S input tokens, L of which predict a learned token.
#[derive(Debug)]
pub struct PackedGroups {
    /// The packed batch of all input tokens.
    pub batch: Batch,
    /// i32 `[L]`: indices of the input tokens that predict a learned token.
    pub positions: Tensor,
    /// i32 `[L]`: ids of the learned tokens.
    pub targets: Tensor,
    /// The offsets in `targets` at which each completion's learned tokens begin.
    pub completions: CuSeqlens,
}

impl PackedGroups {
    /// Returns the micro-batch and the tokens from which its loss is computed.
    pub fn learned_tokens(self) -> BatchWithLearnedTokens {
        BatchWithLearnedTokens { batch: self.batch, positions: self.positions, targets: self.targets }
    }
}

/// Token ids and M-RoPE positions of one sequence, and the input whose images and videos are in it, if any.
#[derive(Default)]
struct TokenRun {
    ids: Vec<TokenId>,
    positions: [Vec<i64>; 3],
    media: Option<Arc<ModelInput>>,
}

impl TokenRun {
    /// Copies the tokens `range` of a sequence, with their M-RoPE positions.
    fn of_range(tokens: &ModelInput, range: Range<usize>, media: Option<Arc<ModelInput>>) -> Self {
        let positions = tokens.position_ids.each_ref().map(|axis| axis[range.clone()].to_vec());
        Self { ids: tokens.input_ids[range].to_vec(), positions, media }
    }

    /// Appends the tokens `ids` of a completion. Their M-RoPE positions continue the positions of the prompt.
    fn append(&mut self, prompt: &ModelInput, ids: &[TokenId]) {
        for (index, &id) in (prompt.len() as i64..).zip(ids) {
            self.ids.push(id);
            self.positions.iter_mut().for_each(|axis| axis.push(index + prompt.rope_delta));
        }
    }

    /// Returns this sequence as model input.
    fn sequence(&self) -> Sequence<'_> {
        let media = self.media.as_deref().filter(|_| !self.ids.is_empty());
        let rest = media.map_or(Sequence::default(), ModelInput::sequence);
        Sequence { input_ids: &self.ids, position_ids: self.positions.each_ref().map(Vec::as_slice), ..rest }
    }
}

/// The sequences of a packed batch that belong to one group.
struct GroupSequences {
    /// The prompt without its last token, as a prefix that all completions share. `None` with
    /// `--shared-prefix false`.
    prompt: Option<TokenRun>,
    completions: Vec<TokenRun>,
}

impl GroupSequences {
    fn new(group: &Rollout, shared: bool) -> Result<Self> {
        let tokens = &group.prompt.tokens;
        let (last, end) = (tokens.len() - 1, tokens.len());
        let begin = if shared { last } else { 0 };
        let completion = |completion: &CompletionTokens| {
            let Some((_, inputs)) = completion.ids[..completion.learned_len].split_last() else {
                return Ok(TokenRun::default());
            };
            if completion.tool_turns.is_empty() {
                let mut run = TokenRun::of_range(tokens, begin..end, (!shared).then(|| tokens.clone()));
                run.append(tokens, inputs);
                return Ok(run);
            }
            let Some(whole) = &completion.sequence else {
                let what = "has a completion whose tools' images and videos were not loaded";
                return Err(Error::failed(&*group.prompt.location, what, "report this error"));
            };
            let media = if shared { Arc::new(media_after(whole, tokens)) } else { whole.clone() };
            Ok(TokenRun::of_range(whole, begin..end + inputs.len(), Some(media)))
        };
        Ok(Self {
            prompt: shared.then(|| TokenRun::of_range(tokens, 0..last, Some(tokens.clone()))),
            completions: group.completions.iter().map(completion).collect::<Result<_>>()?,
        })
    }

    fn sequences(&self) -> impl Iterator<Item = Sequence<'_>> {
        self.prompt.iter().chain(&self.completions).map(TokenRun::sequence)
    }
}

/// The images and videos of `whole` that follow those of its beginning `prompt`.
fn media_after(whole: &ModelInput, prompt: &ModelInput) -> ModelInput {
    let (images, videos) = (prompt.image_grid_thw.len(), prompt.video_grid_thw.len());
    ModelInput {
        frames: MediaFrames {
            images: whole.frames.images[images..].to_vec(),
            videos: whole.frames.videos[videos..].to_vec(),
            video_times: Vec::new(),
            processor: whole.frames.processor,
        },
        image_grid_thw: whole.image_grid_thw[images..].to_vec(),
        video_grid_thw: whole.video_grid_thw[videos..].to_vec(),
        ..ModelInput::default()
    }
}

impl PackedGroups {
    /// Packs the groups of a micro-batch. With `shared` the completions of a group share their prompt as a prefix.
    pub fn new(device: &Device, config: &ModelConfig, groups: &[Rollout], shared: bool) -> Result<Self> {
        let all: Vec<GroupSequences> =
            groups.iter().map(|group| GroupSequences::new(group, shared)).collect::<Result<_>>()?;
        let sequences: Vec<Sequence> = all.iter().flat_map(GroupSequences::sequences).collect();
        let (mut prefixes, mut positions) = (Vec::new(), Vec::new());
        let mut offset = 0;
        for (group, parts) in groups.iter().zip(&all) {
            let prefix = parts.prompt.as_ref().map_or((0, 0), |run| (offset, run.ids.len()));
            if parts.prompt.is_some() {
                prefixes.push((0, 0));
                offset += prefix.1;
            }
            for (run, completion) in parts.completions.iter().zip(&group.completions) {
                prefixes.push(prefix);
                offset += run.ids.len();
                // The token before a learned token predicts it.
                let first = offset - completion.learned_len;
                positions.extend(completion.learned_indices().map(|index| (first + index) as i32));
            }
        }
        let completions = || groups.iter().flat_map(|group| &group.completions);
        let targets: Vec<i32> = completions().flat_map(|c| c.learned_indices().map(|i| c.ids[i] as i32)).collect();
        let lengths: Vec<usize> = completions().map(CompletionTokens::learned_count).collect();
        let mut batch = Batch::new(device, config, &sequences, "micro-batch")?;
        if shared {
            batch.seqs = batch.seqs.with_prefixes(&prefixes)?;
        }
        Ok(Self {
            batch,
            positions: Tensor::from_i32(device, &[positions.len()], &positions)?,
            targets: Tensor::from_i32(device, &[targets.len()], &targets)?,
            completions: CuSeqlens::from_lengths(device, &lengths)?,
        })
    }
}
