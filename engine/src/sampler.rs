//! Sampling parameters of a request, and the sampling features that a sequence needs from a decode step.

use std::ops::RangeInclusive;

use reel_input::config::GenerationConfig;
use reel_input::request::RequestSettings;

use crate::error::{Error, Result};

/// The range of accepted repetition penalties. Outside of this range logits may overflow, and then all logits become
/// NaN.
const REPETITION_PENALTIES: RangeInclusive<f32> = 1e-3..=1e3;

/// Minimum temperature for sampling. A lower temperature counts as 0 (greedy).
const MIN_TEMPERATURE: f32 = 1e-20;

/// How the tokens of a completion are sampled. The fields have the names and meanings of transformers'
/// generation_config.json.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits. 0, or less than 1e-20, is greedy decoding: always the most likely token.
    pub temperature: f32,
    /// Samples only from the fewest most likely tokens whose probabilities add up to at least `top_p`; 1 keeps all
    /// tokens.
    pub top_p: f32,
    /// Samples only from the `top_k` most likely tokens; 0 keeps all tokens.
    pub top_k: u32,
    /// Samples only from tokens whose probability is at least `min_p` times that of the most likely token; 0 keeps
    /// all tokens.
    pub min_p: f32,
    /// Values above 1 make tokens less likely that occur in the prompt or in the completion so far. Range: 0.001 to
    /// 1000.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens that occur in the completion.
    pub presence_penalty: f32,
    /// Subtracted from the logit of a token once for each time that it occurs in the completion.
    pub frequency_penalty: f32,
    /// Seed of the random numbers. The random number of a token depends only on the seed and the token's index, so a
    /// completion is the same in any batch.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> SamplingParams {
        SamplingParams::GREEDY
    }
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

    /// Returns the sampling parameters of a request. Parameters that the request leaves out come from
    /// generation_config.json. As in transformers, decoding is greedy unless the request sets a temperature or the
    /// file has `do_sample`.
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
            min_p: settings.min_p.unwrap_or(0.0),
            presence_penalty: settings.presence_penalty.unwrap_or(0.0),
            frequency_penalty: settings.frequency_penalty.unwrap_or(0.0),
            repetition_penalty: settings.repetition_penalty.unwrap_or(penalty),
            seed: settings.seed.unwrap_or(0),
        }
    }

    /// Refuses values that are out of range.
    ///
    /// # Errors
    /// [`Kind::Request`](crate::error::Kind::Request), which names the parameter.
    pub fn validate(&self) -> Result<()> {
        let invalid = |name: &str, what: String, help: &str| Err(Error::request(name, what, help));
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            let what = format!("{} is negative or not finite", self.temperature);
            return invalid("temperature", what, "give 0 to always take the most likely token, or a number above 0");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return invalid("top-p", format!("{} is not in (0, 1]", self.top_p), "1 keeps all tokens");
        }
        if !REPETITION_PENALTIES.contains(&self.repetition_penalty) {
            let what = format!("{} is not in [0.001, 1000]", self.repetition_penalty);
            return invalid("repetition-penalty", what, "1 has no effect");
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return invalid("min_p", format!("{} is not in [0, 1]", self.min_p), "0 keeps all tokens");
        }
        for (name, value) in
            [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)]
        {
            if !value.is_finite() {
                return invalid(name, format!("{value} is not a number"), "0 has no effect");
            }
        }
        Ok(())
    }

    /// The temperature by which the kernel divides logits. A value below 1e-20 becomes 0 (greedy), because the
    /// division would overflow; sampling at 1e-20 is practically greedy already.
    pub(crate) fn kernel_temperature(&self) -> f32 {
        if self.temperature < MIN_TEMPERATURE { 0.0 } else { self.temperature }
    }

    /// Whether sampling depends on the preceding tokens, because a penalty is set.
    pub(crate) fn has_penalty(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
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
