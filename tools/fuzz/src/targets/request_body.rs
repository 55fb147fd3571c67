//! Fuzz target for whole bodies of requests, from their bytes to what is put into the engine's queue.

use reel_input::encode::ModelFolder;
use reel_serve::{QueuedRequest, ReadRequest, RequestReader};
use serde_json::{Value, json};

use super::FuzzTarget;
use super::serve::{self, judge_error, tiny_model_and_options};
use crate::mutate::{PartFormat, Seed, split_into_parts};
use crate::verdict::{Verdict, require};

/// Maximum number of completions of a request.
const MAX_COMPLETIONS: usize = 128;
/// Maximum number of log-probabilities of a streamed answer.
const MAX_LOG_PROBS: usize = 1 << 21;

/// Bodies of all endpoints that take JSON. An input is a path and a body. The body must be refused with a message, or
/// what it puts into the queue must be within the limits of the model and of a request.
pub const REQUEST_BODY: FuzzTarget = FuzzTarget {
    name: "request-body",
    words: serve::REQUEST.words,
    seeds: || {
        let messages = json!([{"role": "user", "content": "Why?"}]);
        let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}});
        let more = [
            ("/v1/chat/completions", json!({"messages": messages, "tools": [tool], "tool_choice": "required", "n": 3})),
            (
                "/v1/chat/completions",
                json!({"messages": messages, "logprobs": true, "top_logprobs": 20, "n": 9, "max_tokens": 1000}),
            ),
            ("/v1/completions", json!({"prompt": ["a", "b"], "prompt_logprobs": 1, "logprobs": 5, "n": 4})),
            ("/v1/responses", json!({"input": "x", "top_logprobs": 3, "max_output_tokens": 90})),
        ];
        let seed = |(path, body): (&str, Value)| {
            Seed::new(PartFormat::Fixed, path).with_part(PartFormat::Json, body.to_string())
        };
        let mut seeds = (serve::REQUEST.seeds)()?;
        // A request without a body.
        seeds.retain(|seed| seed.0[0].1 != b"/v1/models");
        seeds.extend(more.into_iter().map(seed));
        Ok(seeds)
    },
    open: || {
        let path = super::scratch_folder()?.join("tiny");
        let (model, _, options) = tiny_model_and_options(&path)?;
        // The reader owns the model, so the checks read the configuration again.
        let folder = ModelFolder::open(&path)?;
        let reader = RequestReader::new(model, &options)?;
        Ok(Box::new(move |input| {
            let parts = split_into_parts(input);
            let body = parts.get(1..).unwrap_or_default().join(crate::mutate::PART_SEPARATOR);
            judge(&reader.post(&super::text_of(parts[0]), body)?, &folder)
        }))
    },
};

/// Returns true if the request was answered or put into the queue, false if it was refused.
fn judge(read: &ReadRequest, folder: &ModelFolder) -> Verdict {
    let text = String::from_utf8_lossy(&read.body);
    let value: Value =
        serde_json::from_slice(&read.body).map_err(|e| format!("the answer is not JSON ({e}): {text}"))?;
    match read.status {
        200 if read.queued.is_empty() => Ok(true),
        500 if !read.queued.is_empty() && text.contains("the engine has ended") => {
            check_queued(&read.queued, folder).map(|()| true)
        }
        400 | 404 | 405 | 413 if read.queued.is_empty() => judge_error(&value).map(|()| false),
        status => Err(format!("status {status} with {} prompts in the queue: {text}", read.queued.len())),
    }
}

/// Checks that the prompts of a request and their settings are within the limits.
fn check_queued(queued: &[QueuedRequest], folder: &ModelFolder) -> Result<(), String> {
    let (text, tokens) = (&folder.config.text, &folder.config.tokens);
    let mut log_probs = 0usize;
    for QueuedRequest { prompt, settings } in queued {
        let broken = |what: &str| format!("{what}: {} prompt tokens, {settings:?}", prompt.len());
        let new_tokens = settings.max_new_tokens.ok_or_else(|| broken("no limit of new tokens"))?;
        let n = settings.n.unwrap_or(1);
        let fits = !prompt.is_empty() && prompt.len().saturating_add(new_tokens) <= text.max_position_embeddings;
        require(fits, || broken("more tokens than positions"))?;
        require(n >= 1 && n * queued.len() <= MAX_COMPLETIONS, || broken("too many completions"))?;
        require(settings.min_new_tokens <= new_tokens, || broken("min_tokens above max_tokens"))?;
        let biased = settings.logit_bias.iter().map(|(id, _)| id);
        let mut ids = prompt.input_ids.iter().chain(&settings.stop_token_ids).chain(biased);
        require(ids.all(|&id| (id as usize) < text.vocab_size), || broken("an unknown token"))?;
        let numbers = [settings.temperature, settings.top_p, settings.min_p, settings.repetition_penalty];
        require(numbers.iter().flatten().all(|x| x.is_finite() && *x >= 0.0), || broken("a number out of range"))?;
        for (pad, grids) in [(tokens.image, &prompt.image_grid_thw), (tokens.video, &prompt.video_grid_thw)] {
            let pads = prompt.input_ids.iter().filter(|id| **id == pad).count();
            let patches: usize = grids.iter().map(|grid| grid.iter().product::<usize>()).sum();
            let unit = folder.config.vision.patches_per_vision_token();
            require(grids.is_empty() || pads == patches / unit, || broken("pads without patches"))?;
        }
        let count = |tokens: usize, top: Option<usize>| top.map_or(0, |top| tokens * n * (top + 1));
        log_probs += count(new_tokens, settings.top_log_probs) + count(prompt.len(), settings.prompt_log_probs);
    }
    require(log_probs <= MAX_LOG_PROBS, || format!("{log_probs} log-probabilities"))
}
