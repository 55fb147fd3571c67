//! The sampling options that a request, a command line or generation_config.json may set.

use clap::Args;
use serde::{Deserialize, Serialize};

/// Sampling options; `None` means that the option is not given. The engine adds the defaults. A command may show other
/// help texts by `mut_arg`.
#[derive(Args, Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[command(next_help_heading = "Sampling options")]
pub struct SamplingOptions {
    /// Maximum number of tokens to generate [default: 1024, or as many as the prompt leaves of the model's positions]
    #[arg(long, value_name = "N")]
    pub max_new_tokens: Option<usize>,
    /// Sampling temperature; 0 is greedy decoding [default: generation_config.json, else greedy]
    #[arg(long, value_name = "T")]
    pub temperature: Option<f32>,
    /// Nucleus sampling: sample from the most likely tokens whose probabilities add up to P [default:
    /// generation_config.json, else 1]
    #[arg(long, value_name = "P")]
    pub top_p: Option<f32>,
    /// Sample from the K most likely tokens; 0 and -1 are all [default: generation_config.json, else 0]
    #[arg(long, value_name = "K", value_parser = parse_top_k)]
    pub top_k: Option<u32>,
    /// Repetition penalty; a value above 1 lowers the probability of tokens that have already occurred [default:
    /// generation_config.json, else 1]
    #[arg(long, value_name = "R")]
    pub repetition_penalty: Option<f32>,
    /// Only tokens with at least this share of the most likely token's probability are sampled; 0 means all tokens.
    #[arg(skip)]
    pub min_p: Option<f32>,
    /// The number that is subtracted from the logits of tokens that occur in the completion.
    #[arg(skip)]
    pub presence_penalty: Option<f32>,
    /// The number that is subtracted from a token's logit once for each time that the token occurs in the completion.
    #[arg(skip)]
    pub frequency_penalty: Option<f32>,
    /// The random seed.
    #[arg(skip)]
    pub seed: Option<u64>,
}

impl SamplingOptions {
    /// Takes each option from `self`, or from `fallback` if `self` has `None`.
    pub fn or(self, fallback: Self) -> Self {
        Self {
            max_new_tokens: self.max_new_tokens.or(fallback.max_new_tokens),
            temperature: self.temperature.or(fallback.temperature),
            top_p: self.top_p.or(fallback.top_p),
            top_k: self.top_k.or(fallback.top_k),
            repetition_penalty: self.repetition_penalty.or(fallback.repetition_penalty),
            min_p: self.min_p.or(fallback.min_p),
            presence_penalty: self.presence_penalty.or(fallback.presence_penalty),
            frequency_penalty: self.frequency_penalty.or(fallback.frequency_penalty),
            seed: self.seed.or(fallback.seed),
        }
    }
}

/// Parses `--top-k`. -1 stands for all tokens in vLLM, as 0 does.
fn parse_top_k(text: &str) -> Result<u32, String> {
    let number = match text.parse::<i128>().map_err(|e| e.to_string())? {
        -1 => 0,
        number => number,
    };
    u32::try_from(number).map_err(|_| format!("{number} is not in 0..={}", u32::MAX))
}
