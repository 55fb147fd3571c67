//! Times a rollout: the completions of one prompt, sampled as a GRPO step samples them.

use std::time::Instant;

use reel_engine::{Engine, GenerationRequest, SamplingParams, StopCondition};
use reel_input::{ModelInput, TokenId};
use reel_model::qwen_vl::QwenVl;
use reel_runtime::Cx;

use crate::error::{Error, Result};

/// Sizes of a rollout.
#[derive(Clone, Copy, Debug)]
pub struct RolloutShape {
    /// Tokens of the prompt.
    pub context: usize,
    /// Number of completions of the prompt.
    pub completions: usize,
    /// Number of tokens of each completion. Every completion has exactly this many, because no token ends it.
    pub tokens: usize,
}

/// Samples the completions of one prompt at temperature 1 and returns the seconds that this took.
///
/// Each rollout allocates its own KV cache, decode slots and captured graphs. Training does the same, because it
/// needs the memory for the training step between two rollouts. The device's profile gets the parts `prefill` and
/// `decode`.
///
/// # Errors
/// The engine fails, or a completion ends before its last token.
pub fn time_rollout(model: &QwenVl, cx: &Cx, shape: RolloutShape) -> Result<f64> {
    let (ids, at): (Vec<TokenId>, Vec<i64>) = (0..shape.context as u32).map(|i| ((i * 37) % 97, i64::from(i))).unzip();
    let prompt = ModelInput { input_ids: ids, position_ids: [at.clone(), at.clone(), at], ..ModelInput::default() };
    let engine = Engine::new(model, cx)?;
    let request = GenerationRequest {
        sampling: SamplingParams { temperature: 1.0, ..SamplingParams::default() },
        max_new_tokens: shape.tokens,
        // No token ends a completion, so all rounds do the same work.
        eos_token_ids: Vec::new(),
        stop_conditions: (0..shape.completions).map(|_| StopCondition::none()).collect(),
        ..GenerationRequest::new(prompt)
    };
    let profile = cx.device().profiler();
    profile.set_work_part("prefill");
    let (begun, mut sampled) = (Instant::now(), 0);
    let (completions, _) = engine.generate(vec![request], |_| {
        sampled += 1;
        // The first token of each completion is sampled from the prompt's logits. Decoding starts once all completions
        // have their first token.
        if sampled == shape.completions {
            profile.set_work_part("decode");
        }
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    profile.set_work_part("");
    match completions.iter().all(|c| c.ids.len() == shape.tokens) {
        true => Ok(seconds),
        false => Err(Error::failed(
            "rollout",
            "a completion ended early",
            "report this defect of reel, with the command that you ran",
        )),
    }
}
