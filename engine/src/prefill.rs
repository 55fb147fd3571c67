//! Prefill: the forward pass over a prompt, which fills its KV blocks and gives the logits of the first token.
//!
//! A prompt is computed in chunks, one or more per step, so that running sequences continue to decode between the
//! chunks. Tokens whose blocks are in the prefix cache are skipped. A preempted sequence is resumed in the same way:
//! its prompt and all its generated tokens except the last are computed again.

use std::ops::Range;

use reel_device::Device;
use reel_model::chunked_prompt::{NeededVisionTokens, PromptChunk};
use reel_model::qwen_vl::QwenVl;
use reel_runtime::ops::{self, SampledTokens, SamplingTable, SequencePages};
use reel_runtime::{Cx, Tensor};

use crate::block_hash::BlockHash;
use crate::error::Result;
use crate::prompt_log_probs::{LOGIT_ROWS_PER_PASS, PromptTokenLogProbs};
use crate::request::MAX_TOP_LOG_PROBS;
use crate::running_batch::PendingStep;
use crate::sampler::SamplingFeatures;
use crate::sequence::{SampledToken, SequenceState};

/// Tokens whose keys and values must be computed before sequences can decode.
#[derive(Debug)]
pub(crate) struct PrefillJob {
    /// The scheduler's keys of the sequences that continue from these tokens: all completions of a new request, or one
    /// sequence after a preemption.
    pub(crate) keys: Vec<usize>,
    /// The number of tokens of this prefill job.
    pub(crate) tokens: usize,
    /// The number of tokens that are computed or were found in the prefix cache.
    pub(crate) computed: usize,
    /// The KV blocks of the tokens; `None` until blocks are allocated for the job.
    pub(crate) block_table: Option<Vec<i32>>,
    /// The hashes of the full blocks of the job's tokens.
    pub(crate) hashes: Vec<BlockHash>,
    /// The vision tokens of the prompt from the first one that is needed; `None` before the first chunk that needs them.
    pub(crate) vision: Option<NeededVisionTokens>,
    /// The log-probabilities of the computed tokens, if the request asked for them.
    pub(crate) log_probs: Vec<PromptTokenLogProbs>,
}

impl PrefillJob {
    pub(crate) fn new(keys: Vec<usize>, tokens: usize) -> PrefillJob {
        let (hashes, log_probs) = (Vec::new(), Vec::new());
        PrefillJob { keys, tokens, computed: 0, block_table: None, hashes, vision: None, log_probs }
    }

    /// The input of the forward pass over a range of the job's tokens. `sequence` is one of the job's sequences.
    pub(crate) fn chunk<'j>(&'j self, sequence: &SequenceState, range: Range<usize>) -> PromptChunk<'j> {
        let tokens = sequence.tokens();
        let vision_index = match tokens.prompt.has_vision_tokens(range.clone()) {
            true => {
                let shift = |index: i32| self.vision.as_ref().map_or(index, |vision| vision.index_of(index));
                range.clone().map(|i| shift(tokens.prompt.vision_index.get(i).copied().unwrap_or(-1))).collect()
            }
            false => Vec::new(),
        };
        PromptChunk {
            ids: tokens.ids[range.clone()].to_vec(),
            positions: [0, 1, 2].map(|axis| range.clone().map(|i| tokens.position(axis, i)).collect()),
            vision_index,
            vision: self.vision.as_ref().map(|vision| &vision.tokens),
            pages: SequencePages {
                cached_tokens: range.start,
                new_tokens: range.len(),
                blocks: self.block_table.as_deref().unwrap_or_default(),
            },
        }
    }
}

/// Selects the tokens of a forward pass over several chunks whose hidden states are needed.
#[derive(Debug, Default)]
pub(crate) struct NeededHiddenStates {
    /// Indices of the needed tokens. Tokens are counted over all chunks, one chunk after the other.
    pub(crate) rows: Vec<usize>,
    /// For each chunk, the range of `rows` with its needed tokens; may be empty.
    pub(crate) of_chunks: Vec<Range<usize>>,
    /// The total number of tokens of all chunks.
    tokens: usize,
}

impl NeededHiddenStates {
    /// Adds a chunk of `tokens` tokens. `all` and `last` say whether the hidden states of all its tokens, or of its
    /// last token, are needed. Returns the chunk's range of `rows`.
    pub(crate) fn add_chunk(&mut self, tokens: usize, all: bool, last: bool) -> Range<usize> {
        let count = if all { tokens } else { usize::from(last) };
        let (first, end) = (self.rows.len(), self.tokens + tokens);
        self.rows.extend(end - count..end);
        self.of_chunks.push(first..self.rows.len());
        self.tokens = end;
        first..self.rows.len()
    }
}

/// Returns the rows of `x` `[S, H]` with the indices `numbers`, which are in ascending order.
pub(crate) fn select_needed_rows(cx: &Cx, x: &Tensor, numbers: &[usize]) -> Result<Tensor> {
    match numbers {
        _ if numbers.len() == x.shape()[0] => Ok(x.clone()),
        &[row] => Ok(x.rows(row, 1)?),
        _ => select_rows(cx, x, numbers),
    }
}

fn select_rows(cx: &Cx, x: &Tensor, rows: &[usize]) -> Result<Tensor> {
    let rows: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
    Ok(ops::gather_rows(cx, x, &Tensor::from_i32(cx.device(), &[rows.len()], &rows)?)?)
}

/// Samples the first token of each sequence. `sequences` pairs a sequence with the row of `hidden` `[ends, H]` for the
/// last token of its prompt. The ids in `suppressed` (i32 `[n]`) are never sampled.
pub(crate) fn sample_first_tokens(
    cx: &Cx,
    model: &QwenVl,
    suppressed: &Tensor,
    hidden: &Tensor,
    sequences: &[(usize, &SequenceState)],
) -> Result<Vec<SampledToken>> {
    let mut tokens = Vec::with_capacity(sequences.len());
    for part in sequences.chunks(LOGIT_ROWS_PER_PASS) {
        // The sequences of one prompt are neighbours in the list and share a row of logits.
        let mut ends: Vec<usize> = part.iter().map(|(row, _)| *row).collect();
        ends.dedup();
        let logits = model.logits(cx, &hidden.rows(ends[0], ends.len())?)?;
        let logits = match ends.len() == part.len() {
            true => logits,
            false => select_rows(cx, &logits, &part.iter().map(|(row, _)| row - ends[0]).collect::<Vec<_>>())?,
        };
        let sequences: Vec<&SequenceState> = part.iter().map(|(_, sequence)| *sequence).collect();
        tokens.extend(sample_tokens(cx, &logits, &sequences, suppressed)?);
    }
    Ok(tokens)
}

/// Samples the next token of each sequence from its row of the logits `[sequences, vocab]`, never one of `suppressed`
/// (i32 `[n]`).
fn sample_tokens(
    cx: &Cx,
    logits: &Tensor,
    sequences: &[&SequenceState],
    suppressed: &Tensor,
) -> Result<Vec<SampledToken>> {
    let (device, rows) = (cx.device(), sequences.len());
    let features = sequences.iter().map(|s| s.sampling_features()).reduce(SamplingFeatures::union).unwrap_or_default();
    let biases: Vec<Vec<(i32, f32)>> = sequences.iter().map(|s| s.logit_biases()).collect();
    let sampling: Vec<_> = sequences.iter().zip(&biases).map(|(s, bias)| s.row_sampling(bias)).collect();
    let vocab = logits.shape().last().copied().filter(|_| features.grammar);
    let table = SamplingTable::new(device, rows, biases.iter().map(Vec::len).max().unwrap_or(0), vocab)?;
    table.set_rows(0, &sampling)?;
    let draws: Vec<i32> = sequences.iter().map(|s| s.next_random_index()).collect();
    let history = match features.history {
        true => Some(histories(device, sequences)?),
        false => None,
    };
    let tops = if features.likeliest { MAX_TOP_LOG_PROBS } else { 0 };
    let sampled = SampledTokens::new(device, rows, features.likeliest, tops)?;
    let history = history.as_ref().map(|(ids, lens)| (ids, lens));
    ops::sample(cx, logits, &table, &Tensor::from_i32(device, &[rows], &draws)?, history, suppressed, &sampled)?;
    PendingStep::start_download(&sampled)?.wait_for_tokens()
}

/// Returns the tokens that penalties count, i32 `[sequences, longest]`, and their number for each sequence, i32
/// `[sequences]`. The number is 0 for a sequence without penalties.
fn histories(device: &Device, sequences: &[&SequenceState]) -> Result<(Tensor, Tensor)> {
    let histories: Vec<&[i32]> = sequences.iter().map(|s| s.penalty_history()).collect();
    let longest = histories.iter().map(|ids| ids.len()).max().unwrap_or(0);
    let mut all = vec![0; sequences.len() * longest];
    for (row, ids) in histories.iter().enumerate() {
        all[row * longest..][..ids.len()].copy_from_slice(ids);
    }
    let lens: Vec<i32> = histories.iter().map(|ids| ids.len() as i32).collect();
    let rows = sequences.len();
    Ok((Tensor::from_i32(device, &[rows, longest], &all)?, Tensor::from_i32(device, &[rows], &lens)?))
}
