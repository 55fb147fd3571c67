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
    /// The number of tokens of the prompt that were in the prefix cache.
    pub(crate) cached_tokens: usize,
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
        Self {
            object,
            open,
            log_probs,
            reasoning_tokens,
            prompt_tokens: answer.prompt_tokens,
            cached_tokens: 0,
            events: 0,
        }
    }

    /// Announces the response.
    pub(crate) fn begin(&mut self, ready: &mut VecDeque<Value>) {
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
        ready: &mut VecDeque<Value>,
    ) {
        let earlier = self.log_probs.len();
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
            if self.open.is_some() {
                // The tokens between two items, such as the end tag of a call, belong to neither of them.
                self.log_probs.drain(..earlier);
            }
            self.open(kind, Value::Null, ready);
        }
        self.append(&text, ready);
    }

    /// Ends the answer after so many `tokens`.
    pub(crate) fn finish(&mut self, reason: FinishReason, tokens: usize, ready: &mut VecDeque<Value>) {
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
            "input_tokens": self.prompt_tokens, "input_tokens_details": {"cached_tokens": self.cached_tokens},
            "output_tokens": tokens, "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
            "total_tokens": self.prompt_tokens + tokens,
        });
        self.send(ready, &format!("response.{status}"), json!({"response": self.object}));
    }

    /// Ends the answer with an error.
    pub(crate) fn fail(&mut self, e: &ApiError, ready: &mut VecDeque<Value>) {
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
    fn open(&mut self, kind: ItemKind, more: Value, ready: &mut VecDeque<Value>) {
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
    fn append(&mut self, text: &str, ready: &mut VecDeque<Value>) {
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
    fn close(&mut self, status: &str, ready: &mut VecDeque<Value>) {
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
    fn send_part(&mut self, open: &OpenItem, name: &str, mut event: Value, ready: &mut VecDeque<Value>) {
        (event["item_id"], event["output_index"]) = (json!(open.id), json!(self.output().len() - 1));
        if open.kind != ItemKind::Call {
            event["content_index"] = 0.into();
        }
        self.send(ready, name, event);
    }

    fn send(&mut self, ready: &mut VecDeque<Value>, name: &str, mut event: Value) {
        (event["type"], event["sequence_number"]) = (json!(name), json!(self.events));
        self.events += 1;
        ready.push_back(event);
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::api::answer::ApiKind;
    use crate::api::fields::StreamFields;

    fn writer() -> ResponseWriter {
        let answer = AnswerBuilder {
            form: ApiKind::Chat,
            id: String::new(),
            created: 1,
            model: "tiny".into(),
            prompt_tokens: 7,
            stop: Vec::new(),
            calls: None,
            include_reasoning: None,
            is_reasoning_begun: false,
            stream: StreamFields::default(),
            prompt_log_probs: false,
        };
        let sampling = SamplingParams::GREEDY;
        ResponseWriter::new(json!({"metadata": {"a": "b"}}), &answer, &sampling)
    }

    /// Rebuilds the output from the events as a client does. Checks their order and their indices.
    fn output_of_events(events: &VecDeque<Value>) -> Vec<Value> {
        let mut output: Vec<Value> = Vec::new();
        let (mut text, mut log_probs) = (String::new(), Vec::new());
        let mut last = "";
        for (i, event) in events.iter().enumerate() {
            assert_eq!(event["sequence_number"], i, "{event}");
            let name = event["type"].as_str().unwrap().strip_prefix("response.").unwrap();
            let is_call = output.last().is_some_and(|item| item["type"] == "function_call");
            if !event["item_id"].is_null() {
                assert_eq!(
                    (&event["item_id"], &event["output_index"]),
                    (&output.last().unwrap()["id"], &json!(output.len() - 1))
                );
                assert_eq!(event["content_index"].is_null(), is_call, "{event}");
            }
            let (step, before): (&str, &[&str]) = match name {
                "created" => ("begin", &[""]),
                "in_progress" => ("begin", &["begin"]),
                "output_item.added" => {
                    assert_eq!(
                        (&event["item"]["status"], &event["output_index"]),
                        (&json!("in_progress"), &json!(output.len()))
                    );
                    output.push(event["item"].clone());
                    (text, log_probs) = Default::default();
                    ("added", &["begin", "item done"])
                }
                "content_part.added" => ("part", &["added"]),
                "content_part.done" => {
                    assert_eq!(event["part"]["text"], text);
                    ("part done", &["text done"])
                }
                "output_item.done" => {
                    *output.last_mut().unwrap() = event["item"].clone();
                    ("item done", if is_call { &["text done"] } else { &["part done"] })
                }
                "completed" | "incomplete" => ("end", &["item done"]),
                "failed" => ("end", &["begin", "item done"]),
                name if name.ends_with(".delta") => {
                    text += event["delta"].as_str().unwrap();
                    log_probs.extend(event["logprobs"].as_array().into_iter().flatten().cloned());
                    ("delta", if is_call { &["added", "delta"] } else { &["part", "delta"] })
                }
                name => {
                    assert!(name.ends_with(".done"), "{name}");
                    let key = if is_call { "arguments" } else { "text" };
                    assert_eq!(event[key], text);
                    assert_eq!(event["logprobs"].as_array().cloned().unwrap_or_default(), log_probs);
                    ("text done", &["delta", "part", "added"])
                }
            };
            assert!(before.contains(&last), "{name} after {last}");
            last = step;
        }
        assert_eq!(last, "end");
        output
    }

    /// Log-probabilities of one token in the form of the chat API.
    fn log_probs(token: usize) -> Value {
        json!({"content": [{"token": token.to_string(), "logprob": -1.0}]})
    }

    fn piece() -> impl Strategy<Value = Option<AnswerPiece>> {
        let text = "[a-cé]{0,3}";
        prop_oneof![
            Just(None),
            text.prop_map(|text| Some(AnswerPiece::Text(text))),
            "[a-c]{1,3}".prop_map(|name| Some(AnswerPiece::Call { index: 0, name })),
            "[{}]{1,3}".prop_map(|text| Some(AnswerPiece::Arguments { index: 0, text })),
        ]
    }

    proptest! {
        #[test]
        fn events_and_object_have_the_same_items(
            reasoning in prop::collection::vec("[a-c]{1,3}", 0..3),
            pieces in prop::collection::vec(piece(), 0..12),
            is_cut in any::<bool>(),
            fails in any::<bool>(),
        ) {
            let reasoning_pieces = reasoning.iter().map(|text| Some(AnswerPiece::Reasoning(text.clone())));
            let pieces: Vec<Option<AnswerPiece>> = reasoning_pieces.chain(pieces).collect();
            let (mut writer, mut ready) = (writer(), VecDeque::new());
            writer.begin(&mut ready);
            let (mut texts, mut tokens, mut in_call) = ([const { String::new() }; 3], 0, false);
            // The tokens before the first text or call, if there is reasoning.
            let (mut reasoning_tokens, mut in_reasoning) = (0, !reasoning.is_empty());
            for piece in pieces {
                match &piece {
                    // The arguments of a call follow its name.
                    Some(AnswerPiece::Arguments { .. }) if !in_call => continue,
                    Some(AnswerPiece::Text(text)) => in_call &= text.is_empty(),
                    Some(AnswerPiece::Call { .. }) => in_call = true,
                    _ => {}
                }
                match &piece {
                    Some(AnswerPiece::Reasoning(text)) => texts[0] += text,
                    Some(AnswerPiece::Text(text)) => texts[1] += text,
                    Some(AnswerPiece::Arguments { text, .. }) => texts[2] += text,
                    _ => {}
                }
                let empty = Some(AnswerPiece::Text(String::new()));
                in_reasoning &= piece.is_none() || piece == empty || matches!(piece, Some(AnswerPiece::Reasoning(_)));
                reasoning_tokens += usize::from(in_reasoning);
                tokens += 1;
                writer.add(piece, log_probs(tokens), tokens, &mut ready);
            }
            if fails {
                writer.fail(&ApiError::internal("x"), &mut ready);
            } else {
                writer.finish(if is_cut { FinishReason::Length } else { FinishReason::Stop }, tokens, &mut ready);
            }
            let output = output_of_events(&ready);
            let last = ready.pop_back().unwrap();
            let object = writer.into_object();
            prop_assert_eq!(&last["response"], &object);
            prop_assert_eq!(&object["output"], &json!(output));
            let status = if fails { "failed" } else if is_cut { "incomplete" } else { "completed" };
            let message = if fails { json!("x") } else { Value::Null };
            prop_assert_eq!((&object["status"], &object["error"]["message"]), (&json!(status), &message));
            let of_kind = |kind: &str, text: fn(&Value) -> &Value| -> String {
                output.iter().filter(|item| item["type"] == kind).filter_map(|item| text(item).as_str()).collect()
            };
            let text: fn(&Value) -> &Value = |item| &item["content"][0]["text"];
            let arguments = of_kind("function_call", |item| &item["arguments"]);
            let joined = [of_kind("reasoning", text), of_kind("message", text), arguments];
            prop_assert_eq!(joined, texts);
            if !fails {
                prop_assert!(!output.is_empty() && object["usage"]["total_tokens"] == 7 + tokens);
                prop_assert_eq!(&object["usage"]["output_tokens_details"]["reasoning_tokens"], reasoning_tokens);
                let (last, others) = output.split_last().unwrap();
                prop_assert!(last["status"] == status && others.iter().all(|item| item["status"] == "completed"));
            }
        }
    }

    #[test]
    fn log_probabilities_belong_to_the_message_of_their_token() {
        let text = |text: &str| Some(AnswerPiece::Text(text.into()));
        let call = Some(AnswerPiece::Call { index: 0, name: "f".into() });
        let arguments = Some(AnswerPiece::Arguments { index: 0, text: "{}".into() });
        // The tokens 2 to 5 are those of a call with its tags; the others that add no text belong to a message.
        let pieces = [None, text("a"), None, call, arguments, None, text("b"), None];
        let (mut writer, mut ready) = (writer(), VecDeque::new());
        writer.begin(&mut ready);
        for (i, piece) in pieces.into_iter().enumerate() {
            writer.add(piece, log_probs(i), i + 1, &mut ready);
        }
        writer.finish(FinishReason::Stop, 8, &mut ready);
        output_of_events(&ready);
        let object = writer.into_object();
        let tokens = |item: usize| -> Vec<&str> {
            let tokens = object["output"][item]["content"][0]["logprobs"].as_array().unwrap();
            tokens.iter().map(|token| token["token"].as_str().unwrap()).collect()
        };
        assert_eq!((tokens(0), tokens(2)), (vec!["0", "1"], vec!["6", "7"]));
    }
}
