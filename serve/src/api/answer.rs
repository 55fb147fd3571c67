//! Makes the JSON objects of an answer: one whole object, or one chunk for each piece of text.

use reel_engine::{Completion, FinishReason, TokenLogProbs, completion_text};
use reel_input::TokenId;
use reel_input::tokenizer::{Tokenizer, take_complete_text};
use serde_json::{Map, Value, json};

use super::fields::StreamFields;
use super::prompt_log_probs;
use super::reasoning::split_reasoning;
use super::tool_calls::{AnswerPiece, ToolCallParser};
use crate::http::random_number;

/// The API that an answer belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ApiKind {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Text,
}

impl ApiKind {
    /// The first part of the ids of answers.
    pub(crate) fn id_prefix(self) -> &'static str {
        match self {
            ApiKind::Chat => "chatcmpl",
            ApiKind::Text => "cmpl",
        }
    }

    /// Name of the request field that has the prompt, for error messages.
    pub(crate) fn prompt_field(self) -> &'static str {
        match self {
            ApiKind::Chat => "messages",
            ApiKind::Text => "prompt",
        }
    }

    fn object(self) -> &'static str {
        match self {
            ApiKind::Chat => "chat.completion",
            ApiKind::Text => "text_completion",
        }
    }

    fn chunk_object(self) -> &'static str {
        match self {
            ApiKind::Chat => "chat.completion.chunk",
            ApiKind::Text => "text_completion",
        }
    }
}

/// Counts the characters of a completion's text, to find the index of the character at which each token begins. The
/// text is counted before a stop string cuts it.
#[derive(Debug, Default)]
pub(crate) struct TextOffsets {
    /// The number of complete characters.
    characters: usize,
    /// The bytes of an incomplete character that follows the complete ones.
    pending: Vec<u8>,
}

impl TextOffsets {
    /// Adds the bytes of the next token. Returns the index of the character in which its first byte lies. For a token
    /// without bytes, returns the number of characters so far.
    fn push(&mut self, bytes: &[u8]) -> usize {
        let Some((&first, others)) = bytes.split_first() else { return self.characters };
        self.pending.push(first);
        self.characters += take_complete_text(&mut self.pending).chars().count();
        // The token's first byte lies in the last complete character, or in the incomplete character after it.
        let offset = self.characters - usize::from(self.pending.is_empty());
        self.pending.extend(others);
        self.characters += take_complete_text(&mut self.pending).chars().count();
        offset
    }
}

/// How tool calls are found in an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ToolCallRules {
    /// Whether only the first call of an answer is kept.
    pub(crate) one_call: bool,
    /// Whether the request names the function that must be called. As in OpenAI's API, the finish reason is then
    /// `stop`.
    pub(crate) is_named: bool,
}

/// Makes the JSON of one answer, from the values that the whole answer or all of its chunks share.
#[derive(Debug)]
pub(crate) struct AnswerBuilder {
    pub(crate) form: ApiKind,
    pub(crate) id: String,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) model: String,
    /// The number of tokens of all prompts.
    pub(crate) prompt_tokens: usize,
    /// Stop strings: a completion's text ends before the first of them.
    pub(crate) stop: Vec<String>,
    /// How tool calls are found; `None` if the answer is text only.
    pub(crate) calls: Option<ToolCallRules>,
    /// Where the reasoning of an answer goes: into a field of its own (true), nowhere (false), or into the text
    /// (`None`).
    pub(crate) include_reasoning: Option<bool>,
    /// Whether the prompt has begun the reasoning.
    pub(crate) is_reasoning_begun: bool,
    pub(crate) stream: StreamFields,
    /// Whether the log-probabilities of the prompt's tokens are part of the answer.
    pub(crate) prompt_log_probs: bool,
}

impl AnswerBuilder {
    fn object(&self, kind: &str, choices: Value) -> Value {
        json!({"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices})
    }

    fn usage(&self, tokens: usize) -> Value {
        let prompt = self.prompt_tokens;
        json!({"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens})
    }

    /// The answer as one object; the completions are in the order of the choices.
    pub(crate) fn whole_answer(&self, tokenizer: &Tokenizer, completions: &[Completion]) -> Value {
        let choice = |(index, completion): (usize, &Completion)| {
            let text = completion_text(tokenizer, &completion.ids, &self.stop);
            let tokens: Vec<(TokenId, TokenLogProbs)> =
                completion.ids.iter().copied().zip(completion.token_log_probs.iter().cloned()).collect();
            let log_probs = self.log_probs(tokenizer, &tokens, &mut TextOffsets::default());
            match self.form {
                ApiKind::Chat => {
                    let message = self.message(text);
                    let reason = self.finish_reason(completion.finish_reason, message.get("tool_calls").is_some());
                    json!({"index": index, "message": message, "logprobs": log_probs, "finish_reason": reason})
                }
                ApiKind::Text => {
                    let reason = completion.finish_reason.openai_name();
                    json!({"index": index, "text": text, "logprobs": log_probs, "finish_reason": reason})
                }
            }
        };
        let mut choices: Vec<Value> = completions.iter().enumerate().map(choice).collect();
        let mut of_prompt = None;
        if self.prompt_log_probs {
            let mut of_prompts =
                completions.iter().map(|c| prompt_log_probs::prompt_log_probs_json(tokenizer, &c.prompt_log_probs));
            match self.form {
                // All choices have one prompt.
                ApiKind::Chat => of_prompt = of_prompts.next(),
                ApiKind::Text => {
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

    /// The chat message of an answer's text, with its reasoning and its tool calls in separate fields. As in vLLM, a
    /// message with nothing but reasoning has no content. The reasoning is also in `reasoning_content`, for older
    /// clients.
    fn message(&self, text: String) -> Value {
        let Some(is_shown) = self.include_reasoning else { return self.message_with_calls(text) };
        let (reasoning, text) = split_reasoning(&text, self.is_reasoning_begun);
        let mut message = self.message_with_calls(text);
        if self.calls.is_none() && message["content"] == "" {
            message["content"] = Value::Null;
        }
        if is_shown {
            (message["reasoning"], message["reasoning_content"]) = (json!(reasoning), json!(reasoning));
        }
        message
    }

    fn message_with_calls(&self, text: String) -> Value {
        let Some(rules) = self.calls else { return json!({"role": "assistant", "content": text}) };
        let mut parser = ToolCallParser::new(rules.one_call);
        let pieces = parser.push(&text).into_iter().chain(parser.finish());
        let (mut content, mut calls) = (None, Vec::<(String, String)>::new());
        for piece in pieces {
            match piece {
                // No piece of reasoning occurs here, because the reasoning was split off before.
                AnswerPiece::Text(text) | AnswerPiece::Reasoning(text) => {
                    content.get_or_insert_with(String::new).push_str(&text)
                }
                AnswerPiece::Call { name, .. } => calls.push((name, String::new())),
                AnswerPiece::Arguments { index, text } => calls[index].1.push_str(&text),
            }
        }
        if calls.is_empty() {
            return json!({"role": "assistant", "content": text});
        }
        let call = |(name, arguments): &(String, String)| json!({"id": call_id(), "type": "function", "function": {"name": name, "arguments": arguments}});
        json!({"role": "assistant", "content": content, "tool_calls": calls.iter().map(call).collect::<Value>()})
    }

    /// The finish reason of a choice.
    fn finish_reason(&self, reason: FinishReason, has_calls: bool) -> &'static str {
        match (reason, self.calls) {
            (FinishReason::Stop, Some(rules)) if has_calls && !rules.is_named => "tool_calls",
            _ => reason.openai_name(),
        }
    }

    /// The log-probabilities of `tokens` in the form of the API; null without tokens. `offsets` has counted the
    /// characters of the completion's earlier tokens, and this function adds the characters of `tokens`.
    pub(crate) fn log_probs(
        &self,
        tokenizer: &Tokenizer,
        tokens: &[(TokenId, TokenLogProbs)],
        offsets: &mut TextOffsets,
    ) -> Value {
        let text = |id: TokenId| String::from_utf8_lossy(&tokenizer.token_bytes(id)).into_owned();
        if tokens.is_empty() {
            return Value::Null;
        }
        match self.form {
            ApiKind::Chat => {
                let one = |id: TokenId, log_prob: f32| json!({"token": text(id), "logprob": log_prob, "bytes": tokenizer.token_bytes(id)});
                let token = |(id, token): &(TokenId, TokenLogProbs)| {
                    let mut object = one(*id, token.log_prob);
                    object["top_logprobs"] = token.top.iter().map(|&(id, log_prob)| one(id, log_prob)).collect();
                    object
                };
                json!({"content": tokens.iter().map(token).collect::<Value>()})
            }
            ApiKind::Text => {
                // Special tokens have no bytes, because they are not part of the text.
                let bytes = |id: TokenId| if tokenizer.is_special(id) { Vec::new() } else { tokenizer.token_bytes(id) };
                let text_offsets: Vec<usize> = tokens.iter().map(|(id, _)| offsets.push(&bytes(*id))).collect();
                let top = |(_, token): &(TokenId, TokenLogProbs)| -> Map<String, Value> {
                    token.top.iter().map(|&(id, log_prob)| (text(id), json!(log_prob))).collect()
                };
                json!({
                    "tokens": tokens.iter().map(|(id, _)| text(*id)).collect::<Vec<_>>(),
                    "token_logprobs": tokens.iter().map(|(_, token)| token.log_prob).collect::<Vec<_>>(),
                    "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
                    "text_offset": text_offsets,
                })
            }
        }
    }

    /// The first chunk of a choice, which names the role. The completions API has no such chunk.
    pub(crate) fn first_chunk(&self, index: usize) -> Option<Value> {
        let content = if self.may_have_no_text() { Value::Null } else { json!("") };
        match self.form {
            ApiKind::Chat => {
                Some(self.chunk(index, json!({"role": "assistant", "content": content}), Value::Null, None, 0))
            }
            ApiKind::Text => None,
        }
    }

    /// Whether `content` may be absent (not merely empty), because the answer may consist of tool calls or reasoning.
    fn may_have_no_text(&self) -> bool {
        self.calls.is_some() || self.include_reasoning.is_some()
    }

    /// The chunk for a piece of an answer. `piece` is `None` for a token that adds no text. `tokens` is the number of
    /// tokens generated so far, of all choices.
    pub(crate) fn piece_chunk(
        &self,
        index: usize,
        piece: Option<AnswerPiece>,
        log_probs: Value,
        tokens: usize,
    ) -> Value {
        let call = |call: Value| json!({"tool_calls": [call]});
        let content = match (self.form, piece) {
            (ApiKind::Chat, None) if self.may_have_no_text() => json!({}),
            (ApiKind::Chat, None) => json!({"content": ""}),
            (ApiKind::Chat, Some(AnswerPiece::Text(text))) => json!({"content": text}),
            (ApiKind::Chat, Some(AnswerPiece::Reasoning(text))) => {
                json!({"reasoning": text, "reasoning_content": text})
            }
            (ApiKind::Text, Some(AnswerPiece::Text(text))) => json!(text),
            (ApiKind::Text, _) => json!(""),
            (ApiKind::Chat, Some(AnswerPiece::Call { index, name })) => {
                let function = json!({"name": name, "arguments": ""});
                call(json!({"index": index, "id": call_id(), "type": "function", "function": function}))
            }
            (ApiKind::Chat, Some(AnswerPiece::Arguments { index, text })) => {
                call(json!({"index": index, "function": {"arguments": text}}))
            }
        };
        self.chunk(index, content, log_probs, None, tokens)
    }

    /// The chunk that ends a choice. `has_calls` is true if tool calls were found in the choice.
    pub(crate) fn last_chunk(&self, index: usize, reason: FinishReason, has_calls: bool, tokens: usize) -> Value {
        let reason = self.finish_reason(reason, has_calls);
        match self.form {
            ApiKind::Chat => self.chunk(index, json!({}), Value::Null, Some(reason), tokens),
            ApiKind::Text => self.chunk(index, json!(""), Value::Null, Some(reason), tokens),
        }
    }

    /// The chunk with the usage, which is sent after all other chunks.
    pub(crate) fn usage_chunk(&self, tokens: usize) -> Value {
        let mut object = self.object(self.form.chunk_object(), json!([]));
        object["usage"] = self.usage(tokens);
        object
    }

    /// A chunk of choice `index`. `content` is the delta of a chat message, or a text.
    fn chunk(&self, index: usize, content: Value, log_probs: Value, reason: Option<&str>, tokens: usize) -> Value {
        let key = if self.form == ApiKind::Chat { "delta" } else { "text" };
        let choices = json!([{"index": index, key: content, "logprobs": log_probs, "finish_reason": reason}]);
        let mut object = self.object(self.form.chunk_object(), choices);
        if self.stream.continuous_usage {
            object["usage"] = self.usage(tokens);
        } else if self.stream.include_usage {
            // Only the last chunk has the usage; in all other chunks, `usage` is null.
            object["usage"] = Value::Null;
        }
        object
    }
}

/// A random id for a tool call. The message with the call's result names this id.
pub(crate) fn call_id() -> String {
    format!("call_{:016x}", random_number())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets(tokens: &[&[u8]]) -> Vec<usize> {
        let mut offsets = TextOffsets::default();
        tokens.iter().map(|bytes| offsets.push(bytes)).collect()
    }

    #[test]
    fn text_offsets_are_the_characters_that_tokens_begin_in() {
        let bytes: Vec<[u8; 1]> = "世界!".bytes().map(|byte| [byte]).collect();
        let mut tokens: Vec<&[u8]> = bytes.iter().map(|byte| &byte[..]).collect();
        // The end token has no text.
        tokens.push(b"");
        assert_eq!(offsets(&tokens), [0, 0, 0, 1, 1, 1, 2, 3]);
        assert_eq!(offsets(&[b"", b"", b""]), [0, 0, 0]);
        assert_eq!(offsets(&["Once".as_bytes(), " é".as_bytes(), b"", b"!"]), [0, 4, 6, 6]);
    }

    #[test]
    fn invalid_bytes_are_characters_of_the_text() {
        for tokens in [
            &[&b"\xc9"[..], b"c", b"d"][..],
            &[b"a\xe4", b"\xb8", b"b", b"c"],
            &[b"\xff", b"\xe4", b"\xff", b"\xe4", b"\xe4\xb8\x96", b"x"],
        ] {
            let mut text = Vec::new();
            for (bytes, offset) in tokens.iter().zip(offsets(tokens)) {
                // The offset of a token is the index of the character in which its first byte lies.
                text.extend_from_slice(&bytes[..1]);
                assert_eq!(offset, String::from_utf8_lossy(&text).chars().count() - 1, "{tokens:?}");
                text.extend_from_slice(&bytes[1..]);
            }
        }
    }
}
