//! Decode steps: a token for each row, chosen on the device, from state that lies there; recorded once a batch size and replayed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use reel_model::qwen2_5_vl::Qwen25Vl;
use reel_model::text::{KvCache, TextDecoder};
use reel_runtime::device::{CapturedGraph, Download};
use reel_runtime::ops::{self, DecodeRows, RotaryFrequencies, SampledTokens, SamplingTable, Slot, SlotSampling};
use reel_runtime::{Cx, Kernels, Tensor};

use crate::error::Result;

/// Operations and bytes of a step's launches, on average, up to which a thread of the cpu takes rows of its own through the whole step: a
/// launch is then over, or its weights read a second time, about as soon as another thread knows of it.
const SMALL_FLOPS: f64 = 1e6;
/// See [`SMALL_FLOPS`].
const SMALL_BYTES: f64 = 256e3;

/// What rows and cache must have room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capacity {
    /// Rows.
    pub(crate) rows: usize,
    /// Cache blocks of a row.
    pub(crate) width: usize,
    /// Tokens of a row's history; 0: nobody needs it.
    pub(crate) history: usize,
    /// Cache blocks of all.
    pub(crate) blocks: usize,
    /// Tokens that a row may be kept from.
    pub(crate) banned_tokens: usize,
}

impl Capacity {
    /// Whether this is enough for `other`.
    fn covers(&self, other: &Capacity) -> bool {
        // A history that nobody needs costs time in every step.
        let history = if other.history == 0 { self.history == 0 } else { self.history >= other.history };
        let memory = self.rows >= other.rows && self.width >= other.width && self.blocks >= other.blocks;
        memory && history && self.banned_tokens >= other.banned_tokens
    }

    /// Widths that recordings can be used again with.
    fn rounded(&self) -> Capacity {
        let history = if self.history == 0 { 0 } else { self.history.next_power_of_two() };
        Capacity { rows: self.rows.next_power_of_two(), width: self.width.next_power_of_two(), history, ..*self }
    }
}

/// Everything that a step reads and writes beside the model.
#[derive(Clone, Debug)]
struct State {
    text: TextDecoder,
    rows: DecodeRows,
    choices: SamplingTable,
    chosen: SampledTokens,
    cache: Arc<KvCache>,
    turns: RotaryFrequencies,
    suppressed: Tensor, // i32 [n]
}

impl State {
    /// The step of its rows.
    fn step(&self, cx: &Cx) -> Result<()> {
        let logits = self.text.decode(cx, &self.rows, &self.turns, &self.cache)?;
        let State { rows, choices, chosen, suppressed, .. } = self;
        ops::sample(cx, &logits, choices, &rows.draws, rows.history(), suppressed, chosen)?;
        Ok(rows.advance(cx, &chosen.ids)?)
    }

    /// Some rows only.
    fn part(&self, first: usize, rows: usize) -> Result<State> {
        Ok(State {
            rows: self.rows.part(first, rows)?,
            choices: self.choices.part(first, rows)?,
            chosen: self.chosen.part(first, rows)?,
            ..self.clone()
        })
    }
}

/// A step that was asked for: what it chose, once it has run.
#[derive(Debug)]
pub(crate) struct PendingStep {
    ids: Download,
    log_prob: Download,
}

impl PendingStep {
    /// Waits for the tokens of the rows and their log-probabilities.
    pub(crate) fn wait(self) -> Result<(Vec<i32>, Vec<f32>)> {
        Ok((self.ids.wait()?, self.log_prob.wait()?))
    }
}

/// The rows of sequences that decode together.
#[derive(Debug)]
pub(crate) struct Decode {
    /// By number of rows; several share the rows between them. Before the memory that they use.
    recordings: BTreeMap<usize, Vec<CapturedGraph>>,
    /// Numbers of rows that have run once: what a first run makes ready must not happen inside of a recording.
    ran: BTreeSet<usize>,
    cx: Cx,
    room: Capacity,
    state: State,
    /// How many recordings were made.
    made: usize,
    record: bool,
}

impl Decode {
    pub(crate) fn new(model: &Qwen25Vl, cx: &Cx, suppressed: &Tensor, room: Capacity, record: bool) -> Result<Decode> {
        let (device, room) = (cx.device(), room.rounded());
        let cache = Arc::new(KvCache::new(device, &model.config.text, cx.dtype(), room.blocks)?);
        let state = State {
            text: model.text.clone(),
            rows: DecodeRows::new(device, room.rows, room.width, room.history)?,
            choices: SamplingTable::new(device, room.rows, room.banned_tokens, None)?,
            chosen: SampledTokens::new(device, room.rows, false, 0)?,
            cache,
            turns: model.text.text_rotary_frequencies(device)?,
            suppressed: suppressed.clone(),
        };
        let (recordings, ran) = (BTreeMap::new(), BTreeSet::new());
        Ok(Decode { recordings, ran, cx: cx.without_tape(), room, state, made: 0, record })
    }

    /// Whether it has room for this.
    pub(crate) fn covers(&self, room: &Capacity) -> bool {
        self.room.covers(room)
    }

    pub(crate) fn room(&self) -> Capacity {
        self.room
    }

    pub(crate) fn cache(&self) -> &KvCache {
        &self.state.cache
    }

    /// How many recordings were made so far.
    pub(crate) fn recordings_made(&self) -> usize {
        self.made
    }

    /// Rows that a step of `rows` sequences has: on a GPU a power of two, so that few recordings serve all; the cpu computes no row in vain.
    pub(crate) fn bucket(&self, rows: usize) -> usize {
        match self.cx.device().kernels() {
            Kernels::Cuda => rows.next_power_of_two().min(self.room.rows),
            Kernels::Cpu => rows,
        }
    }

    /// Chooses the tokens of rows from `first` on in another way; the next step is the first that does.
    pub(crate) fn choose(&self, first: usize, choices: &[SlotSampling]) -> Result<()> {
        Ok(self.state.choices.set(first, choices)?)
    }

    /// Gives rows from `first` on to sequences; the next step is the first that sees them.
    pub(crate) fn seat(&self, first: usize, seats: &[Slot], choices: &[SlotSampling]) -> Result<()> {
        self.state.choices.set(first, choices)?;
        Ok(self.state.rows.assign(first, seats)?)
    }

    /// Takes rows out of use; the next step is the first without them.
    pub(crate) fn clear(&self, first: usize, rows: usize) -> Result<()> {
        Ok(self.state.rows.clear(first, rows)?)
    }

    /// Records a step of the first `bucket` rows, which are `state`: of all together, or, where the launches of that are too small to be
    /// shared, of each thread's own.
    fn record(&self, state: &State, bucket: usize) -> Result<Vec<CapturedGraph>> {
        let device = self.cx.device();
        let record = |state: &State| device.record(state.clone(), || state.step(&self.cx));
        let whole = record(state)?;
        let threads = if device.kernels() == Kernels::Cpu { device.threads().min(bucket) } else { 1 };
        let (cost, launches) = (whole.cost(), whole.launches() as f64);
        if threads < 2 || cost.flops > SMALL_FLOPS * launches || cost.bytes > SMALL_BYTES * launches {
            return Ok(vec![whole]);
        }
        drop(whole);
        let ends = (0..=threads).map(|i| i * bucket / threads).collect::<Vec<_>>();
        ends.windows(2).map(|w| record(&self.state.part(w[0], w[1] - w[0])?)).collect()
    }

    /// Asks for a step of the first `bucket` rows.
    pub(crate) fn step(&mut self, bucket: usize) -> Result<PendingStep> {
        let device = self.cx.device().clone();
        let state = self.state.part(0, bucket)?;
        if self.record && !self.recordings.contains_key(&bucket) && self.ran.contains(&bucket) {
            if device.kernels() == Kernels::Cpu {
                // Sizes come and go one by one there; each would keep its memory.
                self.recordings.clear();
            }
            let recordings = self.record(&state, bucket)?;
            self.recordings.insert(bucket, recordings);
            self.made += 1;
        }
        match self.recordings.get(&bucket) {
            Some(recordings) => device.replay_together(recordings)?,
            None => state.step(&self.cx)?,
        }
        self.ran.insert(bucket);
        Ok(PendingStep { ids: state.chosen.ids.download_async()?, log_prob: state.chosen.log_prob.download_async()? })
    }
}
