//! Sampling parameters of a request, and the sampling of a completion's first token from the logits of the prefill.

use reel_diagnostic::Diagnostic;
use reel_model::config::GenerationConfig;
use reel_model::input::request::RequestSettings;
use reel_runtime::ops::{self, RowSampling, SampledTokens, SamplingTable};
use reel_runtime::{Cx, Tensor};

use crate::error::{EngineError, Result};
use crate::sequence::SequenceState;

/// How the tokens of a completion are sampled. Names and meanings are those of transformers' generation_config.json.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits. 0 is greedy decoding: always the most likely token.
    pub temperature: f32,
    /// Samples only from the fewest most likely tokens whose probabilities add up to at least `top_p`; 1 keeps all
    /// tokens.
    pub top_p: f32,
    /// Samples only from the `top_k` most likely tokens; 0 keeps all tokens.
    pub top_k: u32,
    /// Values above 1 make tokens of the prompt and of the completion so far less likely.
    pub repetition_penalty: f32,
    /// Seed of the random numbers. The random number of a token depends only on the seed and the token's index, so a
    /// completion is the same in any batch.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> SamplingParams {
        SamplingParams { temperature: 0.0, top_p: 1.0, top_k: 0, repetition_penalty: 1.0, seed: 0 }
    }
}

impl SamplingParams {
    /// The parameters that a request sets; those that it leaves out come from generation_config.json. Greedy unless
    /// the request sets a temperature or the file has `do_sample`, as in transformers.
    pub fn from_settings(settings: &RequestSettings, config: &GenerationConfig) -> SamplingParams {
        let samples = config.do_sample == Some(true);
        let own = |value: Option<f64>| value.filter(|_| samples).map(|v| v as f32);
        let usual = if samples { 1.0 } else { 0.0 };
        let top_k = config.top_k.filter(|_| samples).map_or(0, |k| u32::try_from(k).unwrap_or(0));
        let penalty = config.repetition_penalty.map_or(1.0, |p| p as f32);
        SamplingParams {
            temperature: settings.temperature.or(own(config.temperature)).unwrap_or(usual),
            top_p: settings.top_p.or(own(config.top_p)).unwrap_or(1.0),
            top_k: settings.top_k.unwrap_or(top_k),
            repetition_penalty: settings.repetition_penalty.unwrap_or(penalty),
            seed: settings.seed.unwrap_or(0),
        }
    }

    /// Refuses values that are out of range.
    ///
    /// # Errors
    /// [`EngineError::Request`], which names the parameter.
    pub fn validate(&self) -> Result<()> {
        let invalid =
            |name: &str, what: String, help: &str| Err(EngineError::Request(Diagnostic::new(name, what, help)));
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            let what = format!("{} is negative or not finite", self.temperature);
            return invalid("temperature", what, "give 0 to always take the most likely token, or a number above 0");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return invalid("top-p", format!("{} is not in (0, 1]", self.top_p), "1 keeps all tokens");
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            let what = format!("{} is not above 0", self.repetition_penalty);
            return invalid("repetition-penalty", what, "1 has no effect");
        }
        Ok(())
    }

    /// The parameters in the form that the sampling kernel takes. `bias` has pairs of a token id and the number that
    /// is added to the logit of that token.
    pub(crate) fn with_bias<'b>(&self, bias: &'b [(i32, f32)]) -> RowSampling<'b> {
        RowSampling {
            bias,
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
            ..RowSampling::default()
        }
    }
}

/// Returns logit biases that ban the tokens `ids`: −∞ for each.
pub(crate) fn logit_biases_that_ban(ids: &[u32]) -> Vec<(i32, f32)> {
    ids.iter().map(|&id| (id as i32, f32::NEG_INFINITY)).collect()
}

/// Samples the next token of a sequence from logits `[1, vocab]`, never one of `suppressed` (i32 `[n]`). Returns the
/// token and its log-probability.
pub(crate) fn sample_token(
    cx: &Cx,
    logits: &Tensor,
    sequence: &SequenceState,
    suppressed: &Tensor,
) -> Result<(i32, f32)> {
    let device = cx.device();
    let banned = sequence.banned_eos_biases();
    let sampling = SamplingTable::new(device, 1, banned.len(), None)?;
    sampling.set_rows(0, &[sequence.sampling().with_bias(&banned)])?;
    let ids = sequence.penalty_history();
    let history = Tensor::from_i32(device, &[1, ids.len()], ids)?;
    let history_len = Tensor::from_i32(device, &[1], &[ids.len() as i32])?;
    let draw_number = Tensor::from_i32(device, &[1], &[sequence.next_draw_number()])?;
    let sampled = SampledTokens::new(device, 1, false, 0)?;
    let history = (!ids.is_empty()).then_some((&history, &history_len));
    ops::sample(cx, logits, &sampling, &draw_number, history, suppressed, &sampled)?;
    Ok((sampled.ids.to_i32()?[0], sampled.log_prob.to_f32()?[0]))
}
