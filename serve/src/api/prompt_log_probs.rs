//! The field `prompt_logprobs` of an answer, in vLLM's form: for each token of the prompt an object that maps token ids
//! to log-probabilities; null for the first token, which has no token before it.

use reel_engine::PromptTokenLogProbs;
use reel_input::TokenId;
use reel_input::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

/// The value of the field `prompt_logprobs`. `tokens` are all tokens of the prompt except the first one.
pub(super) fn prompt_log_probs_json(tokenizer: &Tokenizer, tokens: &[PromptTokenLogProbs]) -> Value {
    let entry = |id: TokenId, log_prob: f32, rank: usize| {
        let text = String::from_utf8_lossy(&tokenizer.token_bytes(id)).into_owned();
        (id.to_string(), json!({"logprob": log_prob, "rank": rank, "decoded_token": text}))
    };
    let of_token = |token: &PromptTokenLogProbs| {
        let top = token.top.iter().enumerate().map(|(i, &(id, log_prob))| entry(id, log_prob, i + 1));
        let mut all: Map<String, Value> = top.collect();
        if !all.contains_key(&token.id.to_string()) {
            all.extend([entry(token.id, token.log_prob, token.rank)]);
        }
        Value::Object(all)
    };
    std::iter::once(Value::Null).chain(tokens.iter().map(of_token)).collect()
}
