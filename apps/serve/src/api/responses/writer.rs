//! Writes an answer in the form of the Responses API: a list of items (reasoning, messages, calls of functions) in the
//! order in which the model wrote them, and the events that announce them.
//!
//! ```text
//! response.created, response.in_progress
//! response.output_item.added                 an item begins, with the status `in_progress`
//!   response.content_part.added              its text begins (not in a call)
//!   response.output_text.delta …             pieces of its text, or of its arguments
//!   response.output_text.done, response.content_part.done
//! response.output_item.done                  the complete item
//! response.completed                         or response.incomplete, response.failed: the whole response object
//! ```
//! An answer that is not streamed is the object of the last event.

use std::collections::VecDeque;

use axum::response::sse;
use reel_engine::{FinishReason, SamplingParams};
use serde_json::{Value, json};

use crate::api::answer::{AnswerBuilder, call_id};
use crate::api::tool_calls::AnswerPiece;
use crate::api::{ApiError, seconds_since_1970};
use crate::http::random_number;

/// The kind of an item of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ItemKind {
    Reasoning,
    Message,
    Call,
}

impl ItemKind {
    /// The event for a piece of the item's text (`delta`), or for its end (`done`).
    fn text_event(self, step: &str) -> String {
        let text = match self {
            ItemKind::Reasoning => "reasoning_text",
            ItemKind::Message => "output_text",
            ItemKind::Call => "function_call_arguments",
        };
        format!("response.{text}.{step}")
    }
}

/// The item that the answer is in. Its object is the last one of the output.
#[derive(Debug)]
struct OpenItem {
    kind: ItemKind,
    id: String,
    text: String,
    /// The log-probabilities of the tokens of a message.
    log_probs: Vec<Value>,
}

/// Writes the answer to one request.
#[derive(Debug)]
pub(crate) struct ResponseWriter {
    /// The response object.
    object: Value,
    open: Option<OpenItem>,
    /// The log-probabilities of tokens whose text has not come yet.
    log_probs: Vec<Value>,
    /// The number of tokens of the reasoning, once it has ended.
    reasoning_tokens: Option<usize>,
    prompt_tokens: usize,
    /// The number of events so far.
    events: usize,
}

impl ResponseWriter {
    /// Creates the response object. It has the fields `repeated` of the request, and the sampling parameters in use.
    pub(crate) fn new(repeated: Value, answer: &AnswerBuilder, sampling: &SamplingParams) -> Self {
        let mut object = json!({
            "id": format!("resp_{}", random_digits()), "object": "response", "created_at": answer.created,
            "completed_at": null, "status": "in_progress", "model": answer.model, "output": [], "error": null,
            "incomplete_details": null, "usage": null,
            "temperature": shortest(sampling.temperature), "top_p": shortest(sampling.top_p),
        });
        repeated.as_object().into_iter().flatten().for_each(|(name, value)| object[name] = value.clone());
        let (open, log_probs, reasoning_tokens) = (None, Vec::new(), None);
        Self { object, open, log_probs, reasoning_tokens, prompt_tokens: answer.prompt_tokens, events: 0 }
    }

    /// Announces the response.
    pub(crate) fn begin(&mut self, ready: &mut VecDeque<sse::Event>) {
        for name in ["response.created", "response.in_progress"] {
            self.send(ready, name, json!({"response": self.object}));
        }
    }

    /// Adds a piece of the answer; `piece` is `None` for a token that adds no text. `tokens` is the number of tokens so
    /// far. `log_probs` are those of the tokens since the last piece, in the form of the chat API.
    pub(crate) fn add(
        &mut self,
        piece: Option<AnswerPiece>,
        mut log_probs: Value,
        tokens: usize,
        ready: &mut VecDeque<sse::Event>,
    ) {
        if let Some(Value::Array(more)) = log_probs.get_mut("content").map(Value::take) {
            self.log_probs.extend(more);
        }
        let Some(piece) = piece.filter(|piece| *piece != AnswerPiece::Text(String::new())) else { return };
        if self.reasoning_tokens.is_none() && !matches!(piece, AnswerPiece::Reasoning(_)) {
            // The token of this piece is the first one after the reasoning.
            self.reasoning_tokens = Some(if self.output().is_empty() { 0 } else { tokens - 1 });
        }
        let (kind, text) = match piece {
            AnswerPiece::Reasoning(text) => (ItemKind::Reasoning, text),
            AnswerPiece::Text(text) => (ItemKind::Message, text),
            AnswerPiece::Arguments { text, .. } => (ItemKind::Call, text),
            AnswerPiece::Call { name, .. } => {
                let call = json!({"call_id": call_id(), "name": name, "arguments": ""});
                return self.open(ItemKind::Call, call, ready);
            }
        };
        if self.open.as_ref().is_none_or(|open| open.kind != kind) {
            self.open(kind, Value::Null, ready);
        }
        self.append(&text, ready);
    }

    /// Ends the answer after so many `tokens`.
    pub(crate) fn finish(&mut self, reason: FinishReason, tokens: usize, ready: &mut VecDeque<sse::Event>) {
        if self.output().is_empty() {
            self.open(ItemKind::Message, Value::Null, ready);
        }
        // The last tokens may have no text, such as the end token.
        if !self.log_probs.is_empty() && self.open.as_ref().is_some_and(|open| open.kind == ItemKind::Message) {
            self.append("", ready);
        }
        let is_complete = reason == FinishReason::Stop;
        let status = if is_complete { "completed" } else { "incomplete" };
        self.close(status, ready);
        let is_reasoning = self.output().first().is_some_and(|item| item["type"] == "reasoning");
        let reasoning_tokens = self.reasoning_tokens.unwrap_or(if is_reasoning { tokens } else { 0 });
        self.object["status"] = status.into();
        match is_complete {
            true => self.object["completed_at"] = seconds_since_1970().into(),
            false => self.object["incomplete_details"] = json!({"reason": "max_output_tokens"}),
        }
        self.object["usage"] = json!({
            "input_tokens": self.prompt_tokens, "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": tokens, "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
            "total_tokens": self.prompt_tokens + tokens,
        });
        self.send(ready, &format!("response.{status}"), json!({"response": self.object}));
    }

    /// Ends the answer with an error.
    pub(crate) fn fail(&mut self, e: &ApiError, ready: &mut VecDeque<sse::Event>) {
        self.close("incomplete", ready);
        self.object["status"] = "failed".into();
        self.object["error"] = json!({"code": "server_error", "message": e.message()});
        self.send(ready, "response.failed", json!({"response": self.object}));
    }

    /// The response object.
    pub(crate) fn into_object(self) -> Value {
        self.object
    }

    fn output(&self) -> &[Value] {
        self.object["output"].as_array().map_or(&[], Vec::as_slice)
    }

    /// Begins an item, after the end of the one before it. `more` has the fields that only a call has.
    fn open(&mut self, kind: ItemKind, more: Value, ready: &mut VecDeque<sse::Event>) {
        self.close("completed", ready);
        if kind != ItemKind::Message {
            self.log_probs.clear();
        }
        let digits = random_digits();
        let (id, mut item) = match kind {
            ItemKind::Reasoning => (format!("rs_{digits}"), json!({"type": "reasoning", "summary": [], "content": []})),
            ItemKind::Message => {
                (format!("msg_{digits}"), json!({"type": "message", "role": "assistant", "content": []}))
            }
            ItemKind::Call => (format!("fc_{digits}"), json!({"type": "function_call"})),
        };
        (item["id"], item["status"]) = (json!(id), json!("in_progress"));
        more.as_object().into_iter().flatten().for_each(|(name, value)| item[name] = value.clone());
        let index = self.output().len();
        self.send(ready, "response.output_item.added", json!({"output_index": index, "item": item}));
        if let Some(output) = self.object["output"].as_array_mut() {
            output.push(item);
        }
        let open = OpenItem { kind, id, text: String::new(), log_probs: Vec::new() };
        if kind != ItemKind::Call {
            self.send_part(&open, "response.content_part.added", json!({"part": open.part()}), ready);
        }
        self.open = Some(open);
    }

    /// Adds text to the open item, with the log-probabilities that wait if the item is a message.
    fn append(&mut self, text: &str, ready: &mut VecDeque<sse::Event>) {
        let log_probs = std::mem::take(&mut self.log_probs);
        let Some(mut open) = self.open.take() else { return };
        open.text.push_str(text);
        let mut event = json!({"delta": text});
        if open.kind == ItemKind::Message {
            open.log_probs.extend_from_slice(&log_probs);
            event["logprobs"] = log_probs.into();
        }
        self.send_part(&open, &open.kind.text_event("delta"), event, ready);
        self.open = Some(open);
    }

    /// Ends the open item.
    fn close(&mut self, status: &str, ready: &mut VecDeque<sse::Event>) {
        let Some(open) = self.open.take() else { return };
        let event = match open.kind {
            ItemKind::Call => json!({"arguments": open.text}),
            ItemKind::Message => json!({"text": open.text, "logprobs": open.log_probs}),
            ItemKind::Reasoning => json!({"text": open.text}),
        };
        self.send_part(&open, &open.kind.text_event("done"), event, ready);
        let part = open.part();
        if open.kind != ItemKind::Call {
            self.send_part(&open, "response.content_part.done", json!({"part": part}), ready);
        }
        let index = self.output().len() - 1;
        let item = &mut self.object["output"][index];
        item["status"] = status.into();
        match open.kind {
            ItemKind::Call => item["arguments"] = open.text.into(),
            _ => item["content"] = json!([part]),
        }
        let item = item.clone();
        self.send(ready, "response.output_item.done", json!({"output_index": index, "item": item}));
    }

    /// Sends an event about the text of the open item.
    fn send_part(&mut self, open: &OpenItem, name: &str, mut event: Value, ready: &mut VecDeque<sse::Event>) {
        (event["item_id"], event["output_index"]) = (json!(open.id), json!(self.output().len() - 1));
        if open.kind != ItemKind::Call {
            event["content_index"] = 0.into();
        }
        self.send(ready, name, event);
    }

    fn send(&mut self, ready: &mut VecDeque<sse::Event>, name: &str, mut event: Value) {
        (event["type"], event["sequence_number"]) = (json!(name), json!(self.events));
        self.events += 1;
        ready.push_back(sse::Event::default().event(name).data(event.to_string()));
    }
}

impl OpenItem {
    /// The content part of a message or of reasoning.
    fn part(&self) -> Value {
        match self.kind {
            ItemKind::Reasoning => json!({"type": "reasoning_text", "text": self.text}),
            _ => json!({
                "type": "output_text", "text": self.text, "annotations": [], "logprobs": self.log_probs,
            }),
        }
    }
}

/// The number with the fewest digits that is read as `x`: 0.7, not 0.699999988079071.
fn shortest(x: f32) -> Value {
    serde_json::from_str(&x.to_string()).unwrap_or(Value::Null)
}

/// Random digits for an id.
fn random_digits() -> String {
    format!("{:016x}{:016x}", random_number(), random_number())
}
