//! The objects of an answer: whole, or one chunk for each piece of text.

use reel_engine::{Completion, FinishReason, TokenLogProbs, completion_text};
use reel_model::TokenId;
use reel_model::input::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

use super::fields::StreamFields;
use super::prompt_log_probs;

/// Which API an answer belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Text,
}

impl Form {
    /// The first part of the ids of answers.
    pub(crate) fn id_prefix(self) -> &'static str {
        match self {
            Form::Chat => "chatcmpl",
            Form::Text => "cmpl",
        }
    }

    /// The field that has the prompt, which errors name.
    pub(crate) fn prompt_field(self) -> &'static str {
        match self {
            Form::Chat => "messages",
            Form::Text => "prompt",
        }
    }

    fn object(self) -> &'static str {
        match self {
            Form::Chat => "chat.completion",
            Form::Text => "text_completion",
        }
    }

    fn chunk_object(self) -> &'static str {
        match self {
            Form::Chat => "chat.completion.chunk",
            Form::Text => "text_completion",
        }
    }
}

/// What all parts of an answer have in common.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) form: Form,
    pub(crate) id: String,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) model: String,
    /// The number of tokens of all prompts.
    pub(crate) prompt_tokens: usize,
    /// Strings before which a completion is cut.
    pub(crate) stop: Vec<String>,
    pub(crate) stream: StreamFields,
    /// Whether the log-probabilities of the prompt's tokens are part of the answer.
    pub(crate) prompt_log_probs: bool,
}

impl Answer {
    fn object(&self, kind: &str, choices: Value) -> Value {
        json!({"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices})
    }

    fn usage(&self, tokens: usize) -> Value {
        let prompt = self.prompt_tokens;
        json!({"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens})
    }

    /// The answer as one object; the completions are in the order of the choices.
    pub(crate) fn whole(&self, tokenizer: &Tokenizer, completions: &[Completion]) -> Value {
        let choice = |(index, completion): (usize, &Completion)| {
            let text = completion_text(tokenizer, &completion.ids, &self.stop);
            let reason = completion.finish_reason.openai_name();
            let tokens: Vec<(TokenId, TokenLogProbs)> =
                completion.ids.iter().copied().zip(completion.token_log_probs.iter().cloned()).collect();
            let (log_probs, _) = self.log_probs(tokenizer, &tokens, 0);
            match self.form {
                Form::Chat => json!({
                    "index": index, "message": {"role": "assistant", "content": text}, "logprobs": log_probs,
                    "finish_reason": reason,
                }),
                Form::Text => json!({"index": index, "text": text, "logprobs": log_probs, "finish_reason": reason}),
            }
        };
        let mut choices: Vec<Value> = completions.iter().enumerate().map(choice).collect();
        let mut of_prompt = None;
        if self.prompt_log_probs {
            let mut of_prompts = completions.iter().map(|c| prompt_log_probs::value(tokenizer, &c.prompt_log_probs));
            match self.form {
                // All choices have one prompt.
                Form::Chat => of_prompt = of_prompts.next(),
                Form::Text => {
                    choices.iter_mut().zip(of_prompts).for_each(|(choice, value)| choice["prompt_logprobs"] = value);
                }
            }
        }
        let mut object = self.object(self.form.object(), choices.into());
        if let Some(value) = of_prompt {
            object["prompt_logprobs"] = value;
        }
        object["usage"] = self.usage(completions.iter().map(|completion| completion.ids.len()).sum());
        object
    }

    /// The log-probabilities of tokens in the form of the API; null if there are none. `offset` is the number of
    /// characters of the tokens before; also returns that number after the last token.
    pub(crate) fn log_probs(
        &self,
        tokenizer: &Tokenizer,
        tokens: &[(TokenId, TokenLogProbs)],
        offset: usize,
    ) -> (Value, usize) {
        let text = |id: TokenId| String::from_utf8_lossy(&tokenizer.token_bytes(id)).into_owned();
        let lengths = tokens.iter().map(|(id, _)| text(*id).chars().count());
        let end = offset + lengths.clone().sum::<usize>();
        if tokens.is_empty() {
            return (Value::Null, end);
        }
        let value = match self.form {
            Form::Chat => {
                let one = |id: TokenId, log_prob: f32| json!({"token": text(id), "logprob": log_prob, "bytes": tokenizer.token_bytes(id)});
                let token = |(id, token): &(TokenId, TokenLogProbs)| {
                    let mut object = one(*id, token.log_prob);
                    object["top_logprobs"] = token.top.iter().map(|&(id, log_prob)| one(id, log_prob)).collect();
                    object
                };
                json!({"content": tokens.iter().map(token).collect::<Value>()})
            }
            Form::Text => {
                let offsets = lengths.scan(offset, |at, length| {
                    *at += length;
                    Some(*at - length)
                });
                let top = |(_, token): &(TokenId, TokenLogProbs)| -> Map<String, Value> {
                    token.top.iter().map(|&(id, log_prob)| (text(id), json!(log_prob))).collect()
                };
                json!({
                    "tokens": tokens.iter().map(|(id, _)| text(*id)).collect::<Vec<_>>(),
                    "token_logprobs": tokens.iter().map(|(_, token)| token.log_prob).collect::<Vec<_>>(),
                    "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
                    "text_offset": offsets.collect::<Vec<_>>(),
                })
            }
        };
        (value, end)
    }

    /// The first chunk of a choice, which names the role; the API for texts has none.
    pub(crate) fn first_chunk(&self, index: usize) -> Option<Value> {
        match self.form {
            Form::Chat => Some(self.chunk(index, json!({"role": "assistant", "content": ""}), Value::Null, None, 0)),
            Form::Text => None,
        }
    }

    /// A piece of text. `tokens` is the number of tokens that were generated so far, of all choices.
    pub(crate) fn text_chunk(&self, index: usize, text: &str, log_probs: Value, tokens: usize) -> Value {
        match self.form {
            Form::Chat => self.chunk(index, json!({"content": text}), log_probs, None, tokens),
            Form::Text => self.chunk(index, json!(text), log_probs, None, tokens),
        }
    }

    /// The end of a choice.
    pub(crate) fn last_chunk(&self, index: usize, reason: FinishReason, tokens: usize) -> Value {
        match self.form {
            Form::Chat => self.chunk(index, json!({}), Value::Null, Some(reason), tokens),
            Form::Text => self.chunk(index, json!(""), Value::Null, Some(reason), tokens),
        }
    }

    /// The chunk with the usage, after all others.
    pub(crate) fn usage_chunk(&self, tokens: usize) -> Value {
        let mut object = self.object(self.form.chunk_object(), json!([]));
        object["usage"] = self.usage(tokens);
        object
    }

    /// `content` is the delta of a message, or a text.
    fn chunk(
        &self,
        index: usize,
        content: Value,
        log_probs: Value,
        reason: Option<FinishReason>,
        tokens: usize,
    ) -> Value {
        let key = if self.form == Form::Chat { "delta" } else { "text" };
        let reason = reason.map(FinishReason::openai_name);
        let choices = json!([{"index": index, key: content, "logprobs": log_probs, "finish_reason": reason}]);
        let mut object = self.object(self.form.chunk_object(), choices);
        if self.stream.continuous_usage {
            object["usage"] = self.usage(tokens);
        } else if self.stream.include_usage {
            // The last chunk has the usage; the others say that they have none.
            object["usage"] = Value::Null;
        }
        object
    }
}
