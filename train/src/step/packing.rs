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
//! A group of G completions with a prompt of P tokens and T learned tokens each takes P − 1 + G·T tokens. Without the
//! shared prefix (`--shared-prefix false`) each sequence repeats the prompt, `a b c x` and `a b c`: G·(P − 1) + G·T
//! tokens.

use reel_device::Device;
use reel_input::config::ModelConfig;
use reel_input::{ModelInput, Sequence, TokenId};
use reel_model::batch::Batch;
use reel_runtime::Tensor;
use reel_runtime::ops::CuSeqlens;

use crate::Result;
use crate::rollout::group::Rollout;
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

/// Token ids and M-RoPE positions of one sequence.
#[derive(Default)]
struct TokenRun {
    ids: Vec<TokenId>,
    positions: [Vec<i64>; 3],
}

impl TokenRun {
    /// Copies the tokens `range` of a prompt, with their M-RoPE positions.
    fn of_prompt(tokens: &ModelInput, range: std::ops::Range<usize>) -> Self {
        let positions = tokens.position_ids.each_ref().map(|axis| axis[range.clone()].to_vec());
        Self { ids: tokens.input_ids[range].to_vec(), positions }
    }

    /// Appends the tokens `ids` of a completion. Their M-RoPE positions continue the positions of the prompt.
    fn append(&mut self, prompt: &ModelInput, ids: &[TokenId]) {
        for (index, &id) in (prompt.len() as i64..).zip(ids) {
            self.ids.push(id);
            self.positions.iter_mut().for_each(|axis| axis.push(index + prompt.rope_delta));
        }
    }

    /// Returns this sequence as model input. `media` is the prompt whose images and videos are in the sequence, if any.
    fn sequence<'a>(&'a self, media: Option<&'a ModelInput>) -> Sequence<'a> {
        let rest = media.filter(|_| !self.ids.is_empty()).map_or(Sequence::default(), ModelInput::sequence);
        Sequence { input_ids: &self.ids, position_ids: self.positions.each_ref().map(Vec::as_slice), ..rest }
    }
}

/// The sequences of a packed batch that belong to one group.
struct GroupSequences<'a> {
    tokens: &'a ModelInput,
    /// The prompt without its last token, as a prefix that all completions share. `None` with
    /// `--shared-prefix false`.
    prompt: Option<TokenRun>,
    completions: Vec<TokenRun>,
}

impl<'a> GroupSequences<'a> {
    fn new(group: &'a Rollout, shared: bool) -> Self {
        let tokens = &group.prompt.tokens;
        let (last, end) = (tokens.len() - 1, tokens.len());
        let completion = |learned: &[TokenId]| {
            let Some((_, inputs)) = learned.split_last() else { return TokenRun::default() };
            let mut run = TokenRun::of_prompt(tokens, if shared { last..end } else { 0..end });
            run.append(tokens, inputs);
            run
        };
        Self {
            tokens,
            prompt: shared.then(|| TokenRun::of_prompt(tokens, 0..last)),
            completions: group.completions.iter().map(|c| completion(c.learned_tokens())).collect(),
        }
    }

    fn sequences(&self) -> impl Iterator<Item = Sequence<'_>> {
        let media = self.prompt.is_none().then_some(self.tokens);
        let prompt = self.prompt.iter().map(|run| run.sequence(Some(self.tokens)));
        prompt.chain(self.completions.iter().map(move |run| run.sequence(media)))
    }
}

impl PackedGroups {
    /// Packs the groups of a micro-batch. With `shared` the completions of a group share their prompt as a prefix.
    pub fn new(device: &Device, config: &ModelConfig, groups: &[Rollout], shared: bool) -> Result<Self> {
        let all: Vec<GroupSequences> = groups.iter().map(|group| GroupSequences::new(group, shared)).collect();
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
                positions.extend((offset - completion.learned_len..offset).map(|row| row as i32));
            }
        }
        let completions = || groups.iter().flat_map(|group| &group.completions);
        let targets: Vec<i32> = completions().flat_map(|c| c.learned_tokens()).map(|&id| id as i32).collect();
        let lengths: Vec<usize> = completions().map(|c| c.learned_len).collect();
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
