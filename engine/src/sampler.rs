//! Sampling parameters of a request, and the sampling features that a sequence needs from a decode step.

use std::ops::RangeInclusive;

use reel_input::config::GenerationConfig;
use reel_input::sampling::SamplingOptions;
use reel_runtime::ops::SamplingParams;

use crate::error::{Error, Result};

/// The range of accepted repetition penalties. Outside of this range logits may overflow, and then all logits become
/// NaN.
const REPETITION_PENALTIES: RangeInclusive<f32> = 1e-3..=1e3;

/// Returns the sampling parameters of a request. Parameters that the request leaves out come from
/// generation_config.json. As in transformers, decoding is greedy unless the request sets a temperature or the file has
/// `do_sample`.
pub fn resolve_sampling(options: SamplingOptions, config: &GenerationConfig) -> SamplingParams {
    let (own, temperature) = match config.do_sample {
        Some(true) => (config.sampling, 1.0),
        _ => {
            let repetition_penalty = config.sampling.repetition_penalty;
            (SamplingOptions { repetition_penalty, ..SamplingOptions::default() }, 0.0)
        }
    };
    let (given, default) = (options.or(own), SamplingParams { temperature, ..SamplingParams::GREEDY });
    SamplingParams {
        temperature: given.temperature.unwrap_or(default.temperature),
        top_p: given.top_p.unwrap_or(default.top_p),
        top_k: given.top_k.unwrap_or(default.top_k),
        min_p: given.min_p.unwrap_or(default.min_p),
        presence_penalty: given.presence_penalty.unwrap_or(default.presence_penalty),
        frequency_penalty: given.frequency_penalty.unwrap_or(default.frequency_penalty),
        repetition_penalty: given.repetition_penalty.unwrap_or(default.repetition_penalty),
        seed: given.seed.unwrap_or(default.seed),
    }
}

/// Refuses parameters that are out of range.
///
/// # Errors
/// [`Kind::Request`](crate::error::Kind::Request): the first such parameter, by its name.
pub fn validate_sampling(params: &SamplingParams) -> Result<()> {
    let invalid = |name: &str, what: String, help: &str| Err(Error::request(name, what, help));
    if !(params.temperature >= 0.0 && params.temperature.is_finite()) {
        let what = format!("{} is negative or not finite", params.temperature);
        return invalid("temperature", what, "give 0 to always take the most likely token, or a number above 0");
    }
    if !(params.top_p > 0.0 && params.top_p <= 1.0) {
        return invalid("top-p", format!("{} is not in (0, 1]", params.top_p), "1 keeps all tokens");
    }
    if !REPETITION_PENALTIES.contains(&params.repetition_penalty) {
        let what = format!("{} is not in [0.001, 1000]", params.repetition_penalty);
        return invalid("repetition-penalty", what, "1 has no effect");
    }
    if !(0.0..=1.0).contains(&params.min_p) {
        return invalid("min_p", format!("{} is not in [0, 1]", params.min_p), "0 keeps all tokens");
    }
    for (name, value) in
        [("presence_penalty", params.presence_penalty), ("frequency_penalty", params.frequency_penalty)]
    {
        if !value.is_finite() {
            return invalid(name, format!("{value} is not a number"), "0 has no effect");
        }
    }
    Ok(())
}

/// The features that the sampling of a sequence needs beyond temperature, top-p, top-k and min-p. A decode step
/// computes only features that at least one of its sequences needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SamplingFeatures {
    /// Whether a penalty is set, so that sampling reads the preceding tokens.
    pub(crate) history: bool,
    /// The number of tokens whose logits are changed by a bias.
    pub(crate) biased_tokens: usize,
    /// Whether a grammar restricts the allowed tokens.
    pub(crate) grammar: bool,
    /// Whether the most likely tokens are listed with their log-probabilities.
    pub(crate) likeliest: bool,
}

impl SamplingFeatures {
    /// Returns the features that `self` or `other` needs.
    pub(crate) fn union(self, other: SamplingFeatures) -> SamplingFeatures {
        SamplingFeatures {
            history: self.history || other.history,
            biased_tokens: self.biased_tokens.max(other.biased_tokens),
            grammar: self.grammar || other.grammar,
            likeliest: self.likeliest || other.likeliest,
        }
    }
}
