//! Prompts are prefilled one by one, then their completions decode together, a token each a step; those that find no row wait for one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use reel_kernels::elementwise;
use reel_model::batch::{Batch, Sequence};
use reel_model::qwen2_5_vl::{ForwardOptions, Qwen25Vl};
use reel_model::text::KvCache;
use reel_runtime::ops::KvPages;
use reel_runtime::{Cx, Device, Tensor};

use crate::decode::{Capacity, Decode};
use crate::error::{EngineError, Result};
use crate::kv_blocks::BlockAllocator;
use crate::running::RunningBatch;
use crate::sampler::{Row, SamplingParams, choose};
use crate::scheduler::Scheduler;
use crate::stop::StopCondition;

/// A prompt and how it is to be continued.
#[derive(Debug)]
pub struct GenerationRequest<'a> {
    /// The prompt.
    pub prompt: Sequence<'a>,
    /// What to add to a token's place to get its position (see `rope_index`).
    pub rope_delta: i64,
    /// Choice of tokens.
    pub sampling: SamplingParams,
    /// Tokens at most.
    pub max_new_tokens: usize,
    /// Ids that end the completion; the one that did is its last.
    pub eos: &'a [u32],
    /// None of `eos` is drawn before there are this many tokens.
    pub min_new_tokens: usize,
    /// One a completion: how many of these there are is how many completions are made, all of the same prompt. Completion i
    /// draws with the seed plus i.
    pub stops: Vec<StopCondition>,
}

/// Why a completion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// An end token or a stop string.
    Stop,
    /// The limit of tokens.
    Length,
}

impl FinishReason {
    /// OpenAI's word for it.
    pub fn name(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        }
    }
}

/// What a prompt became.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// Which request.
    pub request: usize,
    /// Which of its completions.
    pub index: usize,
    /// The ids, the end token included.
    pub ids: Vec<u32>,
    /// `log softmax(logits / temperature)` of each id (temperature 0: of the logits), never restricted by top-p, top-k or penalties.
    pub log_probs: Vec<f32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// A token as it is made.
#[derive(Clone, Copy, Debug)]
pub struct TokenEvent {
    /// Which request.
    pub request: usize,
    /// Which of its completions.
    pub index: usize,
    /// The id.
    pub id: u32,
}

/// Where the time went, in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timing {
    /// Prompts, vision included.
    pub prefill: f64,
    /// All further tokens.
    pub decode: f64,
}

/// Completions that decode at the same time, at most, where nobody says otherwise.
const ROWS: usize = 256;

/// Generates with a model that lies on a device.
#[derive(Debug)]
pub struct Engine<'a> {
    /// Shares its weights with whoever gave it.
    model: Qwen25Vl,
    cx: Cx,
    suppressed: Tensor, // i32 [n]
    stop: Option<&'a AtomicBool>,
    rows: usize,
    ahead: usize,
    record: bool,
    /// Cache, rows and recordings of the last call, which the next one uses again where they have room for it.
    decode: Mutex<Option<Decode>>,
}

/// A completion in the making.
pub(crate) struct SequenceState {
    pub(crate) request: usize,
    pub(crate) index: usize,
    pub(crate) sampling: SamplingParams,
    pub(crate) stop: StopCondition,
    /// Prompt and completion.
    pub(crate) ids: Vec<i32>,
    pub(crate) prompt: usize,
    pub(crate) log_probs: Vec<f32>,
    pub(crate) blocks: Vec<i32>,
    pub(crate) finish: Option<FinishReason>,
}

impl<'a> Engine<'a> {
    /// An engine that computes in the dtype of `cx`. Ids that would need media behind them are never generated.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(model: &Qwen25Vl, cx: &Cx) -> Result<Engine<'a>> {
        let t = &model.config.tokens;
        let media = [t.vision_start, t.vision_end, t.image, t.video].map(|id| id as i32);
        let suppressed = Tensor::from_i32(cx.device(), &[media.len()], &media)?;
        Ok(Engine {
            model: model.clone(),
            cx: cx.without_tape(),
            suppressed,
            stop: None,
            rows: ROWS,
            ahead: usize::from(cx.device().is_async()),
            record: true,
            decode: Mutex::default(),
        })
    }

    /// At most this many completions decode at the same time (at least one); the others wait. Results do not depend on it.
    pub fn rows_at_most(mut self, rows: usize) -> Engine<'a> {
        self.rows = rows.max(1);
        self
    }

    /// Asks for this many steps before it reads the first one's tokens, in place of what suits the device. Results do not depend on it.
    pub fn lookahead(mut self, steps: usize) -> Engine<'a> {
        self.ahead = steps;
        self
    }

    /// Asks for the launches of each step one by one instead of replaying a recording of them. Results do not depend on it.
    pub fn without_recordings(mut self) -> Engine<'a> {
        self.record = false;
        self
    }

    /// Recordings of decode steps that were made so far and are still of use.
    pub fn recordings_made(&self) -> usize {
        self.decode.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map_or(0, Decode::recordings_made)
    }

    /// Gives back what the last call left on the device for the next: cache, rows and recordings.
    pub fn release(&self) {
        *self.decode.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Gives up with [`EngineError::Interrupted`] soon after `flag` is set.
    pub fn stop_when(mut self, flag: &'a AtomicBool) -> Engine<'a> {
        self.stop = Some(flag);
        self
    }

    /// Completes every request; `on_token` is given each token as it is made. Completions come in the order of requests.
    ///
    /// # Errors
    /// A request without a meaning; out of memory; logits that are no numbers.
    pub fn generate(
        &self,
        requests: Vec<GenerationRequest>,
        mut on_token: impl FnMut(TokenEvent),
    ) -> Result<(Vec<Completion>, Timing)> {
        let mut kept = self.decode.lock().unwrap_or_else(PoisonError::into_inner);
        let decode = self.room_for(&requests, &mut kept)?;
        let mut blocks = BlockAllocator::new(decode.room().blocks);
        let mut timing = Timing::default();
        let mut all = Vec::new();
        let limits: Vec<Limit> = requests.iter().map(Limit::of).collect();
        let start = Instant::now();
        for (request, r) in requests.into_iter().enumerate() {
            self.interrupted()?;
            r.sampling.check()?;
            if r.prompt.input_ids.is_empty() {
                return Err(EngineError::Request { field: "prompt", what: "has no tokens; give it some text".into() });
            }
            all.extend(self.prefill(request, r, &limits[request], decode.cache(), &mut blocks, &mut on_token)?);
        }
        timing.prefill = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let seats = Scheduler::new(decode.room().rows.min(self.rows), self.ahead);
        let mut running = RunningBatch { all: &mut all, limits: &limits, blocks: &mut blocks, decode, seats };
        running.finish(|| self.interrupted(), &mut on_token)?;
        timing.decode = start.elapsed().as_secs_f64();
        Ok((all.into_iter().map(SequenceState::completion).collect(), timing))
    }

    /// Cache and rows for these requests: those of the last call, empty, or larger ones.
    fn room_for<'b>(&self, requests: &[GenerationRequest], kept: &'b mut Option<Decode>) -> Result<&'b mut Decode> {
        let tokens = |r: &GenerationRequest| r.prompt.input_ids.len() + r.max_new_tokens;
        let penalised = requests.iter().filter(|r| r.sampling.repetition_penalty != 1.0);
        let room = Capacity {
            rows: requests.iter().map(|r| r.stops.len()).sum::<usize>().clamp(1, self.rows),
            width: requests.iter().map(|r| BlockAllocator::needed(tokens(r))).max().unwrap_or(0).max(1),
            history: penalised.map(tokens).max().unwrap_or(0),
            banned_tokens: requests.iter().filter(|r| r.min_new_tokens > 0).map(|r| r.eos.len()).max().unwrap_or(0),
            blocks: requests.iter().map(|r| blocks(r.stops.len(), r.prompt.input_ids.len(), tokens(r))).sum(),
        };
        if kept.as_ref().is_some_and(|d| !d.covers(&room)) {
            // What was there goes before its successor comes.
            *kept = None;
        }
        let decode = match kept {
            Some(decode) => decode,
            none => none.insert(Decode::new(&self.model, &self.cx, &self.suppressed, room, self.record)?),
        };
        decode.clear(0, decode.room().rows)?;
        Ok(decode)
    }

    fn device(&self) -> &Device {
        self.cx.device()
    }

    fn interrupted(&self) -> Result<()> {
        match self.stop {
            Some(flag) if flag.load(Ordering::Relaxed) => Err(EngineError::Interrupted),
            _ => Ok(()),
        }
    }

    /// Computes the prompt once, for every completion, and chooses their first tokens. Blocks that the prompt fills belong to all of
    /// them; of the last one, to which they add their own keys, each has a copy.
    fn prefill(
        &self,
        request: usize,
        r: GenerationRequest,
        limit: &Limit,
        cache: &KvCache,
        blocks: &mut BlockAllocator,
        on_token: &mut impl FnMut(TokenEvent),
    ) -> Result<Vec<SequenceState>> {
        let ids: Vec<i32> = r.prompt.input_ids.iter().map(|&id| id as i32).collect();
        let mut all: Vec<SequenceState> = (0..)
            .zip(r.stops)
            .map(|(index, stop)| SequenceState {
                request,
                index,
                sampling: SamplingParams { seed: r.sampling.seed.wrapping_add(index as u64), ..r.sampling },
                stop,
                prompt: ids.len(),
                ids: ids.clone(),
                log_probs: Vec::new(),
                blocks: Vec::new(),
                finish: if r.max_new_tokens == 0 { Some(FinishReason::Length) } else { None },
            })
            .collect();
        let Some(first) = all.first_mut() else { return Ok(all) };
        if first.finish.is_some() {
            return Ok(all);
        }
        // Every block at once: the device goes from one to the next by itself.
        cover(blocks, &mut first.blocks, ids.len() + r.max_new_tokens)?;
        let from = first.blocks[..BlockAllocator::needed(ids.len())].to_vec();
        let last = self.last_hidden(&r.prompt, &from, cache)?;
        let logits = self.model.logits(&self.cx, &last)?;
        for s in &mut all[1..] {
            let full = ids.len() / KvPages::BLOCK;
            blocks.share(&from[..full], &mut s.blocks);
            cover(blocks, &mut s.blocks, ids.len() + r.max_new_tokens)?;
            self.copy_blocks(cache, &from[full..], &s.blocks[full..], ids.len() % KvPages::BLOCK)?;
        }
        for s in &mut all {
            let banned_tokens = if limit.bars_ends(0) { &limit.eos[..] } else { &[] };
            let rows = [Row { sampling: s.sampling, position: s.ids.len(), history: &s.ids, banned_tokens }];
            let (ids, log_probs) = choose(&self.cx, &logits, &rows, &self.suppressed)?;
            s.take(ids[0], log_probs[0], limit, on_token)?;
            if s.finish.is_some() {
                blocks.give_back(&mut s.blocks);
            }
        }
        Ok(all)
    }

    /// The hidden state `[1, H]` of the last token of a prompt whose keys go to `held`.
    fn last_hidden(&self, prompt: &Sequence, held: &[i32], cache: &KvCache) -> Result<Tensor> {
        let n = prompt.input_ids.len();
        let batch = Batch::new(self.device(), &self.model.config, &[*prompt], "prompt")?;
        let pages = KvPages::new(self.device(), &[(0, n, held)])?;
        let hidden = self.model.forward(
            &self.cx,
            &batch,
            ForwardOptions { cache: Some((cache, &pages)), ..Default::default() },
        )?;
        Ok(hidden.rows(n - 1, 1)?)
    }

    /// Copies the keys and values of `tokens` tokens from some blocks to others; what lies behind them nobody has written.
    fn copy_blocks(&self, cache: &KvCache, from: &[i32], to: &[i32], tokens: usize) -> Result<()> {
        for tensor in cache.tensors() {
            for (i, (&a, &b)) in from.iter().zip(to).enumerate() {
                let (src, dst) = (tensor.rows(a as usize, 1)?, tensor.rows(b as usize, 1)?);
                let filled = (tokens - i * KvPages::BLOCK).min(KvPages::BLOCK);
                let bytes = (src.bytes() / KvPages::BLOCK * filled) as u64;
                let params = elementwise::CopyParams { src: src.addr(), dst: dst.addr(), bytes };
                self.cx.launch(&elementwise::copy(&params))?;
            }
        }
        Ok(())
    }
}

/// Cache blocks of so many completions of a prompt, `tokens` long with it.
fn blocks(completions: usize, prompt: usize, tokens: usize) -> usize {
    let (shared, each) = (prompt / KvPages::BLOCK, BlockAllocator::needed(tokens));
    if completions == 0 { 0 } else { shared + completions * (each - shared) }
}

fn cover(blocks: &mut BlockAllocator, held: &mut Vec<i32>, tokens: usize) -> Result<()> {
    if blocks.cover(held, tokens) {
        return Ok(());
    }
    // The cache was sized for every request at its limit.
    Err(EngineError::Request { field: "kv cache", what: "has no free block; lower the number of completions".into() })
}

/// Where a request's completions end.
pub(crate) struct Limit {
    pub(crate) max_new_tokens: usize,
    min_new_tokens: usize,
    pub(crate) eos: Vec<u32>,
    pub(crate) rope_delta: i64,
}

impl Limit {
    fn of(r: &GenerationRequest) -> Limit {
        Limit {
            max_new_tokens: r.max_new_tokens,
            min_new_tokens: r.min_new_tokens,
            eos: r.eos.to_vec(),
            rope_delta: r.rope_delta,
        }
    }

    /// Whether a completion of `made` tokens may not end with the next.
    pub(crate) fn bars_ends(&self, made: usize) -> bool {
        made < self.min_new_tokens
    }
}

impl SequenceState {
    /// Tokens that it has.
    pub(crate) fn made(&self) -> usize {
        self.ids.len() - self.prompt
    }

    /// Tokens that it may still have.
    pub(crate) fn left(&self, limit: &Limit) -> usize {
        if self.finish.is_some() { 0 } else { limit.max_new_tokens.saturating_sub(self.ids.len() - self.prompt) }
    }

    pub(crate) fn take(
        &mut self,
        id: i32,
        log_prob: f32,
        limit: &Limit,
        on_token: &mut impl FnMut(TokenEvent),
    ) -> Result<()> {
        let made = self.ids.len() - self.prompt;
        let Ok(token) = u32::try_from(id) else {
            return Err(EngineError::NotANumber { row: self.index, step: made });
        };
        self.ids.push(id);
        self.log_probs.push(log_prob);
        on_token(TokenEvent { request: self.request, index: self.index, id: token });
        if limit.eos.contains(&token) || self.stop.push(token) {
            self.finish = Some(FinishReason::Stop);
        } else if made + 1 >= limit.max_new_tokens {
            self.finish = Some(FinishReason::Length);
        }
        Ok(())
    }

    fn completion(self) -> Completion {
        Completion {
            request: self.request,
            index: self.index,
            ids: self.ids[self.prompt..].iter().map(|&id| id as u32).collect(),
            log_probs: self.log_probs,
            finish_reason: self.finish.unwrap_or(FinishReason::Length),
        }
    }
}
