//! A micro-batch of groups as one packed row.
//!
//! A group's prompt of P tokens is there once: its first P − 1 tokens are a sequence, and each completion of T learned tokens is one of
//! T tokens that has that sequence as its prefix: the prompt's last token, which the first learned token follows, and the learned tokens but
//! the last, which nothing follows. So every row of a completion's sequence predicts one learned token, and a group of G is
//! P − 1 + Σ T tokens. Without sharing, each completion's sequence begins with the whole prompt: G (P − 1) + Σ T tokens.

use reel_model::TokenId;
use reel_model::batch::{Batch, Sequence};
use reel_model::config::ModelConfig;
use reel_model::input::ModelInput;
use reel_runtime::ops::CuSeqlens;
use reel_runtime::{Device, Tensor};

use crate::Result;
use crate::rollout::group::Group;

/// S tokens, of which L predict a learned one.
#[derive(Debug)]
pub(crate) struct PackedGroups {
    /// The sequences one after the other.
    pub(crate) batch: Batch,
    /// i32 `[L]`: the rows that predict.
    pub(crate) positions: Tensor,
    /// i32 `[L]`: what they are to predict.
    pub(crate) targets: Tensor,
    /// Where each completion's learned tokens begin among the L.
    pub(crate) completions: CuSeqlens,
}

/// Ids and positions of a sequence without media.
#[derive(Default)]
struct TokenRun {
    ids: Vec<TokenId>,
    positions: [Vec<i64>; 3],
}

impl TokenRun {
    /// Some tokens of a prompt.
    fn of_prompt(tokens: &ModelInput, range: std::ops::Range<usize>) -> Self {
        let positions = tokens.position_ids.each_ref().map(|axis| axis[range.clone()].to_vec());
        Self { ids: tokens.input_ids[range].to_vec(), positions }
    }

    /// Adds text that follows a prompt.
    fn say(&mut self, tokens: &ModelInput, ids: &[i32]) {
        for (location, &id) in (tokens.len() as i64..).zip(ids) {
            self.ids.push(id as TokenId);
            self.positions.iter_mut().for_each(|axis| axis.push(location + tokens.rope_delta));
        }
    }

    /// As the model packs it, with the media of `tokens` where it begins with their prompt.
    fn sequence<'a>(&'a self, media: Option<&'a ModelInput>) -> Sequence<'a> {
        let rest = media.filter(|_| !self.ids.is_empty()).map_or(Sequence::default(), ModelInput::sequence);
        Sequence { input_ids: &self.ids, position_ids: self.positions.each_ref().map(Vec::as_slice), ..rest }
    }
}

/// The sequences of a group.
struct GroupSequences<'a> {
    tokens: &'a ModelInput,
    /// What all completions have before them, where it is shared.
    prompt: Option<TokenRun>,
    completions: Vec<TokenRun>,
}

impl<'a> GroupSequences<'a> {
    fn new(group: &'a Group, shared: bool) -> Self {
        let tokens = &group.prompt.tokens;
        let (last, end) = (tokens.len() - 1, tokens.len());
        let completion = |learned: &[i32]| {
            let Some((_, said)) = learned.split_last() else { return TokenRun::default() };
            let mut words = TokenRun::of_prompt(tokens, if shared { last..end } else { 0..end });
            words.say(tokens, said);
            words
        };
        Self {
            tokens,
            prompt: shared.then(|| TokenRun::of_prompt(tokens, 0..last)),
            completions: group.completions.iter().map(|c| completion(c.learned())).collect(),
        }
    }

    fn sequences(&self) -> impl Iterator<Item = Sequence<'_>> {
        let media = self.prompt.is_none().then_some(self.tokens);
        let prompt = self.prompt.iter().map(|words| words.sequence(Some(self.tokens)));
        prompt.chain(self.completions.iter().map(move |words| words.sequence(media)))
    }
}

impl PackedGroups {
    /// Packs groups of a micro-batch. `shared`: their prompts are there once.
    pub(crate) fn new(device: &Device, config: &ModelConfig, groups: &[Group], shared: bool) -> Result<Self> {
        let parts: Vec<GroupSequences> = groups.iter().map(|group| GroupSequences::new(group, shared)).collect();
        let sequences: Vec<Sequence> = parts.iter().flat_map(GroupSequences::sequences).collect();
        let (mut prefixes, mut positions) = (Vec::new(), Vec::new());
        let mut at = 0;
        for (group, parts) in groups.iter().zip(&parts) {
            let prefix = parts.prompt.as_ref().map_or((0, 0), |words| (at, words.ids.len()));
            if parts.prompt.is_some() {
                prefixes.push((0, 0));
                at += prefix.1;
            }
            for (words, completion) in parts.completions.iter().zip(&group.completions) {
                prefixes.push(prefix);
                at += words.ids.len();
                positions.extend((at - completion.counted..at).map(|row| row as i32));
            }
        }
        let completions = || groups.iter().flat_map(|group| &group.completions);
        let targets: Vec<i32> = completions().flat_map(|c| c.learned()).copied().collect();
        let lengths: Vec<usize> = completions().map(|c| c.counted).collect();
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
