//! How the next token of each completion is chosen.

use reel_runtime::ops::{self, SampledTokens, SamplingTable, SlotSampling};
use reel_runtime::{Cx, Tensor};

use crate::error::{EngineError, Result};

/// Choice of tokens for one completion; the names and meanings are those of transformers' generation_config.json.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0: always the likeliest token.
    pub temperature: f32,
    /// Keeps the likeliest tokens up to this share of the probability; 1: all.
    pub top_p: f32,
    /// Keeps this many of the likeliest tokens; 0: all.
    pub top_k: u32,
    /// Above 1: makes tokens that already occurred (in the prompt too) less likely.
    pub repetition_penalty: f32,
    /// With the place of the token, decides every draw: the same seed gives the same completion in any batch.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> SamplingParams {
        SamplingParams { temperature: 0.0, top_p: 1.0, top_k: 0, repetition_penalty: 1.0, seed: 0 }
    }
}

impl SamplingParams {
    /// Refuses numbers without a meaning.
    ///
    /// # Errors
    /// Names the option.
    pub fn check(&self) -> Result<()> {
        let bad = |field, what: String| Err(EngineError::Request { field, what });
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return bad(
                "temperature",
                format!("{} is not a number from 0 up; 0 takes the likeliest token", self.temperature),
            );
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return bad("top-p", format!("{} is not in (0, 1]; 1 keeps all tokens", self.top_p));
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return bad("repetition-penalty", format!("{} is not above 0; 1 has no effect", self.repetition_penalty));
        }
        Ok(())
    }
}

/// One row to choose a token for.
#[derive(Debug)]
pub(crate) struct Row<'a> {
    pub(crate) sampling: SamplingParams,
    /// Which token of its sequence is chosen: the counter of the draw.
    pub(crate) position: usize,
    /// Every id so far, the prompt's too.
    pub(crate) history: &'a [i32],
    /// Tokens that it must not be.
    pub(crate) banned_tokens: &'a [u32],
}

impl SamplingParams {
    /// As the device takes it, with `bias` on some tokens.
    pub(crate) fn choice<'b>(&self, bias: &'b [(i32, f32)]) -> SlotSampling<'b> {
        SlotSampling {
            bias,
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
            ..SlotSampling::default()
        }
    }
}

/// The bias that keeps these tokens from being drawn.
pub(crate) fn banned_tokens(ids: &[u32]) -> Vec<(i32, f32)> {
    ids.iter().map(|&id| (id as i32, f32::NEG_INFINITY)).collect()
}

/// Tokens for rows of logits `[R, V]`, with their log-probabilities.
pub(crate) fn choose(cx: &Cx, logits: &Tensor, rows: &[Row], suppressed: &Tensor) -> Result<(Vec<i32>, Vec<f32>)> {
    let (device, n) = (cx.device(), rows.len());
    let choices = SamplingTable::new(device, n, rows.iter().map(|r| r.banned_tokens.len()).max().unwrap_or(0), None)?;
    let biases: Vec<Vec<(i32, f32)>> = rows.iter().map(|r| banned_tokens(r.banned_tokens)).collect();
    choices.set(0, &rows.iter().zip(&biases).map(|(r, bias)| r.sampling.choice(bias)).collect::<Vec<_>>())?;
    let i32s = |f: &dyn Fn(&Row) -> i32| Tensor::from_i32(device, &[n], &rows.iter().map(f).collect::<Vec<_>>());
    // Histories travel only where a penalty needs them.
    let seen = |r: &Row| if r.sampling.repetition_penalty == 1.0 { 0 } else { r.history.len() };
    let width = rows.iter().map(seen).max().unwrap_or(0);
    let mut history = vec![0i32; n * width];
    for (to, r) in history.chunks_exact_mut(width.max(1)).zip(rows) {
        to[..seen(r)].copy_from_slice(&r.history[..seen(r)]);
    }
    let history = (Tensor::from_i32(device, &[n, width], &history)?, i32s(&|r| seen(r) as i32)?);
    let draws = i32s(&|r| r.position as i32)?;
    let chosen = SampledTokens::new(device, n, false, 0)?;
    let known = (width > 0).then_some((&history.0, &history.1));
    ops::sample(cx, logits, &choices, &draws, known, suppressed, &chosen)?;
    Ok((chosen.ids.to_i32()?, chosen.log_prob.to_f32()?))
}
