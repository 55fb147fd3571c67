//! Sampling of the next token of each row, on the device: temperature, top-p, top-k, min-p, penalties, biases and
//! masks.

use reel_device::{Addr, DType, Device, Kernels, MemoryCategory, in_op};
use reel_kernels::sample as kernel;

use super::{size, want_dtype, want_shape};
use crate::error::{Result, shape_error};
use crate::tensor::cx::Cx;
use crate::tensor::{Tensor, format_shape};

/// How the tokens of a completion are sampled. [`reel_kernels::sample`] defines each parameter and the order in which
/// they apply.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits. 0 (in the engine, less than 1e-20) is greedy decoding: always the most likely token.
    pub temperature: f32,
    /// Samples only from the fewest most likely tokens whose probabilities add up to at least `top_p`; 1 keeps all
    /// tokens.
    pub top_p: f32,
    /// Samples only from the `top_k` most likely tokens; 0 keeps all tokens.
    pub top_k: u32,
    /// Samples only from tokens whose probability is at least `min_p` times that of the most likely token; 0 keeps
    /// all tokens.
    pub min_p: f32,
    /// Divides positive logits and multiplies negative logits of tokens in the history: values above 1 make tokens
    /// less likely that occur in the prompt or in the completion so far.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens that occur in the completion.
    pub presence_penalty: f32,
    /// Subtracted from the logit of a token once for each time that it occurs in the completion.
    pub frequency_penalty: f32,
    /// Seed of the random numbers. The random number of a token depends only on the seed and the token's index, so a
    /// completion is the same in any batch.
    pub seed: u64,
}

impl SamplingParams {
    /// Greedy decoding without penalties.
    pub const GREEDY: SamplingParams = SamplingParams {
        temperature: 0.0,
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        seed: 0,
    };

    /// Whether sampling depends on the preceding tokens, because a penalty is set.
    pub fn has_penalty(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

impl Default for SamplingParams {
    fn default() -> SamplingParams {
        SamplingParams::GREEDY
    }
}

/// What the sampling of one row depends on besides its logits.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowSampling<'a> {
    /// The sampling parameters.
    pub params: SamplingParams,
    /// The index in the history at which the completion begins; frequency and presence penalties count tokens from
    /// there.
    pub counted_from: usize,
    /// Pairs of a token and a number that is added to the token's logit; at most `max_biased` pairs (see
    /// [`SamplingTable::new`]).
    pub bias: &'a [(i32, f32)],
    /// A bit mask of the tokens that may be sampled: 32 tokens per u32, lowest bit first; empty: all tokens.
    pub allowed: &'a [u32],
}

/// The sampling parameters of `R` rows, in device memory, for a vocabulary of `V` tokens.
#[derive(Clone, Debug)]
pub struct SamplingTable {
    temperature: Tensor,     // f32 [R]
    top_p: Tensor,           // f32 [R]
    top_k: Tensor,           // i32 [R]
    min_p: Tensor,           // f32 [R]
    penalty: Tensor,         // f32 [R]
    frequency: Tensor,       // f32 [R]
    presence: Tensor,        // f32 [R]
    counted_from: Tensor,    // i32 [R]
    seed: Tensor,            // u64 as i32 [R, 2]
    bias_ids: Tensor,        // i32 [R, bias]
    bias: Tensor,            // f32 [R, bias]
    allowed: Option<Tensor>, // u32 as i32 [R, ceil(V / 32)]
}

impl SamplingTable {
    /// Allocates the parameters of `rows` rows with at most `max_biased` biased tokens each. `mask_vocab` is the
    /// vocabulary size if rows may have a mask of allowed tokens. All rows are greedy until
    /// [`SamplingTable::set_rows`].
    pub fn new(device: &Device, rows: usize, max_biased: usize, mask_vocab: Option<usize>) -> Result<SamplingTable> {
        let f32s =
            |cols: &[usize]| Tensor::empty(device, &[&[rows], cols].concat(), DType::F32, MemoryCategory::Inputs);
        let i32s =
            |cols: &[usize]| Tensor::empty(device, &[&[rows], cols].concat(), DType::I32, MemoryCategory::Inputs);
        let choices = SamplingTable {
            temperature: f32s(&[])?,
            top_p: f32s(&[])?,
            top_k: i32s(&[])?,
            min_p: f32s(&[])?,
            penalty: f32s(&[])?,
            frequency: f32s(&[])?,
            presence: f32s(&[])?,
            counted_from: i32s(&[])?,
            seed: i32s(&[2])?,
            bias_ids: i32s(&[max_biased])?,
            bias: f32s(&[max_biased])?,
            allowed: mask_vocab.map(|vocab| i32s(&[vocab.div_ceil(32)])).transpose()?,
        };
        choices.set_rows(0, &vec![RowSampling::default(); rows])?;
        Ok(choices)
    }

    /// Rows `first .. first + rows`, in the same memory.
    ///
    /// # Errors
    /// A range beyond the last row.
    pub fn row_range(&self, first: usize, rows: usize) -> Result<SamplingTable> {
        let part = |t: &Tensor| t.rows(first, rows);
        Ok(SamplingTable {
            temperature: part(&self.temperature)?,
            top_p: part(&self.top_p)?,
            top_k: part(&self.top_k)?,
            min_p: part(&self.min_p)?,
            penalty: part(&self.penalty)?,
            frequency: part(&self.frequency)?,
            presence: part(&self.presence)?,
            counted_from: part(&self.counted_from)?,
            seed: part(&self.seed)?,
            bias_ids: part(&self.bias_ids)?,
            bias: part(&self.bias)?,
            allowed: self.allowed.as_ref().map(part).transpose()?,
        })
    }

    /// Returns the same table for steps in which no row has a bias.
    ///
    /// # Errors
    /// Out of memory.
    pub fn without_bias(&self) -> Result<SamplingTable> {
        let rows = self.temperature.count();
        let (ids, bias) = (self.bias_ids.reshape(&[self.bias_ids.count()])?, self.bias.reshape(&[self.bias.count()])?);
        let none = |t: Tensor| t.rows(0, 0)?.reshape(&[rows, 0]);
        Ok(SamplingTable { bias_ids: none(ids)?, bias: none(bias)?, ..self.clone() })
    }

    /// Returns the same table for steps in which no row has a mask.
    pub fn without_masks(&self) -> SamplingTable {
        SamplingTable { allowed: None, ..self.clone() }
    }

    /// Sets the parameters of the rows from `first` on. Takes effect after the launches made so far.
    ///
    /// # Errors
    /// A range beyond the last row; more biased tokens than allocated; a mask of another length, or a table without
    /// masks.
    pub fn set_rows(&self, first: usize, choices: &[RowSampling]) -> Result<()> {
        const OP: &str = "sampling table";
        let (n, cols) = (choices.len(), self.bias.shape()[1]);
        let words = self.allowed.as_ref().map(|t| t.shape()[1]);
        let (mut bias_ids, mut bias, mut allowed) = (vec![-1i32; n * cols], vec![0f32; n * cols], Vec::new());
        for (row, c) in choices.iter().enumerate() {
            if c.bias.len() > cols {
                return Err(shape_error(
                    OP,
                    format!("got {} biased tokens for one row; the table allows at most {cols} per row", c.bias.len()),
                ));
            }
            for (i, &(id, value)) in c.bias.iter().enumerate() {
                (bias_ids[row * cols + i], bias[row * cols + i]) = (id, value);
            }
            match words {
                Some(words) if c.allowed.is_empty() => allowed.resize(allowed.len() + words, u32::MAX),
                Some(words) if c.allowed.len() == words => allowed.extend_from_slice(c.allowed),
                None if c.allowed.is_empty() => {}
                _ => {
                    let room = words.unwrap_or(0);
                    return Err(shape_error(
                        OP,
                        format!("got a mask of {} u32 words for one row, expected {room}", c.allowed.len()),
                    ));
                }
            }
        }
        let f32s = |to: &Tensor, f: &dyn Fn(&RowSampling) -> f32| {
            to.rows(first, n)?.write(&choices.iter().map(f).collect::<Vec<f32>>())
        };
        let i32s = |to: &Tensor, f: &dyn Fn(&RowSampling) -> usize| {
            let values = choices.iter().map(|c| i32::try_from(f(c)).unwrap_or(i32::MAX));
            to.rows(first, n)?.write(&values.collect::<Vec<i32>>())
        };
        f32s(&self.temperature, &|c| c.params.temperature)?;
        f32s(&self.top_p, &|c| c.params.top_p)?;
        f32s(&self.min_p, &|c| c.params.min_p)?;
        f32s(&self.penalty, &|c| c.params.repetition_penalty)?;
        f32s(&self.frequency, &|c| c.params.frequency_penalty)?;
        f32s(&self.presence, &|c| c.params.presence_penalty)?;
        i32s(&self.top_k, &|c| c.params.top_k as usize)?;
        i32s(&self.counted_from, &|c| c.counted_from)?;
        let seeds: Vec<u32> =
            choices.iter().flat_map(|c| [c.params.seed as u32, (c.params.seed >> 32) as u32]).collect();
        self.seed.rows(first, n)?.write(&seeds)?;
        self.bias_ids.rows(first, n)?.write(&bias_ids)?;
        self.bias.rows(first, n)?.write(&bias)?;
        self.allowed.as_ref().map_or(Ok(()), |t| t.rows(first, n)?.write(&allowed))
    }
}

/// The sampled tokens of `R` rows.
#[derive(Clone, Debug)]
pub struct SampledTokens {
    /// i32 `[R]`: the sampled tokens; −1 if all logits of the row are NaN.
    pub ids: Tensor,
    /// f32 `[R]`: the log-probability of each sampled token under softmax(logits / temperature).
    pub log_prob: Tensor,
    /// f32 `[R]`: the log-probability of each sampled token under softmax(logits).
    pub raw_log_prob: Option<Tensor>,
    /// i32 and f32 `[R, n]`: the n most likely tokens and their log-probabilities under softmax(logits).
    pub tops: Option<(Tensor, Tensor)>,
}

impl SampledTokens {
    /// Allocates the results of `rows` rows. `raw_log_probs`: also log-probabilities under softmax(logits). `tops`:
    /// the number of most likely tokens to return.
    ///
    /// # Errors
    /// More most likely tokens than the kernel supports; out of memory.
    pub fn new(device: &Device, rows: usize, raw_log_probs: bool, tops: usize) -> Result<SampledTokens> {
        if tops > kernel::MAX_TOP_TOKENS as usize {
            return Err(shape_error(
                "sample",
                format!("cannot return {tops} most likely tokens; at most {} are supported", kernel::MAX_TOP_TOKENS),
            ));
        }
        let one = |shape: &[usize], dtype| Tensor::empty(device, shape, dtype, MemoryCategory::Inputs);
        let likeliest = || -> Result<_> { Ok((one(&[rows, tops], DType::I32)?, one(&[rows, tops], DType::F32)?)) };
        Ok(SampledTokens {
            ids: one(&[rows], DType::I32)?,
            log_prob: one(&[rows], DType::F32)?,
            raw_log_prob: if raw_log_probs { Some(one(&[rows], DType::F32)?) } else { None },
            tops: if tops > 0 { Some(likeliest()?) } else { None },
        })
    }

    /// Returns the same results without the most likely tokens and without the log-probabilities under
    /// softmax(logits).
    pub fn ids_and_log_probs(&self) -> SampledTokens {
        SampledTokens { raw_log_prob: None, tops: None, ..self.clone() }
    }

    /// Rows `first .. first + rows`, in the same memory.
    ///
    /// # Errors
    /// A range beyond the last row.
    pub fn row_range(&self, first: usize, rows: usize) -> Result<SampledTokens> {
        let part = |t: &Tensor| t.rows(first, rows);
        let tops = |(ids, values): &(Tensor, Tensor)| -> Result<_> { Ok((part(ids)?, part(values)?)) };
        Ok(SampledTokens {
            ids: part(&self.ids)?,
            log_prob: part(&self.log_prob)?,
            raw_log_prob: self.raw_log_prob.as_ref().map(part).transpose()?,
            tops: self.tops.as_ref().map(tops).transpose()?,
        })
    }
}

/// The token history of `R` rows, for penalties: token ids i32 `[R, max]`, and the number of valid ids in each row,
/// i32 `[R]`.
pub type TokenHistory<'a> = (&'a Tensor, &'a Tensor);

/// Samples a token for each row of logits `[R, V]` (f32) and writes it to `chosen`. Tokens in `suppressed` (i32
/// `[n]`) are never sampled. `draws` (i32 `[R]`) is the index of each row's random draw: the same seed and index give
/// the same random number on every device and in every batch. Penalties have no effect without a history.
pub fn sample(
    cx: &Cx,
    logits: &Tensor,
    choices: &SamplingTable,
    draws: &Tensor,
    history: Option<TokenHistory>,
    suppressed: &Tensor,
    chosen: &SampledTokens,
) -> Result<()> {
    let _op = in_op("sample");
    const OP: &str = "sample";
    let &[rows, vocab] = logits.shape() else {
        return Err(shape_error(
            OP,
            format!("logits have shape {}, expected [rows, vocabulary]", format_shape(logits.shape())),
        ));
    };
    want_dtype(OP, "logits", logits, DType::F32)?;
    want_shape(OP, "sampling table", &choices.temperature, &[rows], "a row for each row of logits")?;
    want_shape(OP, "draws", draws, &[rows], "one index for each row of logits")?;
    want_dtype(OP, "draws", draws, DType::I32)?;
    want_shape(OP, "chosen", &chosen.ids, &[rows], "one token for each row of logits")?;
    want_dtype(OP, "suppressed", suppressed, DType::I32)?;
    if let Some(allowed) = &choices.allowed {
        want_shape(OP, "allowed", allowed, &[rows, vocab.div_ceil(32)], "a bit for each token")?;
    }
    let longest = match history {
        Some((tokens, lens)) => {
            want_shape(OP, "history lengths", lens, &[rows], "one length for each row of logits")?;
            want_dtype(OP, "history", tokens, DType::I32)?;
            let longest = tokens.shape().last().copied().unwrap_or(0);
            want_shape(OP, "history", tokens, &[rows, longest], "a row for each row of logits")?;
            longest
        }
        None => 0,
    };
    let some = |t: Option<&Tensor>| t.filter(|t| t.count() > 0).map_or(Addr::NULL, Tensor::addr);
    let bias_cols = choices.bias.shape()[1];
    let tops = chosen.tops.as_ref();
    let params = kernel::Params {
        logits: logits.addr(),
        temperature: choices.temperature.addr(),
        top_p: choices.top_p.addr(),
        top_k: choices.top_k.addr(),
        penalty: choices.penalty.addr(),
        seed: choices.seed.addr(),
        position: draws.addr(),
        history: some(history.map(|h| h.0)),
        history_len: some(history.map(|h| h.1)),
        suppressed: some(Some(suppressed)),
        frequency_penalty: choices.frequency.addr(),
        presence_penalty: choices.presence.addr(),
        counted_from: choices.counted_from.addr(),
        min_p: choices.min_p.addr(),
        bias_ids: some(Some(&choices.bias_ids)),
        bias: some(Some(&choices.bias)),
        allowed: some(choices.allowed.as_ref()),
        workspace: Addr::NULL,
        ids: chosen.ids.addr(),
        log_prob: chosen.log_prob.addr(),
        raw_log_prob: some(chosen.raw_log_prob.as_ref()),
        top_ids: some(tops.map(|t| &t.0)),
        top_log_probs: some(tops.map(|t| &t.1)),
        rows: size(OP, rows)?,
        vocab: size(OP, vocab)?,
        history_cols: size(OP, longest)?,
        suppressed_count: size(OP, suppressed.count())?,
        bias_cols: size(OP, bias_cols)?,
        tops: size(OP, tops.map_or(0, |t| t.0.shape()[1]))?,
    };
    // The CPU kernel allocates its working copy of the logits itself.
    let bytes = if cx.device().kernels() == Kernels::Cpu { 0 } else { kernel::workspace_bytes(&params) };
    let workspace = match bytes {
        0 => None,
        bytes => Some(Tensor::empty(cx.device(), &[bytes / 4], DType::F32, MemoryCategory::Workspace)?),
    };
    let params = kernel::Params { workspace: workspace.as_ref().map_or(Addr::NULL, Tensor::addr), ..params };
    cx.launch(&kernel::sample(&params))
}
