//! One streamed answer: reads its events and notes their times.
//!
//! ```text
//! data: {"choices": [{"delta": {"role": "assistant"}}]}      a part of the answer, without a token
//! data: {"choices": [{"delta": {"content": "Hel"}}]}         a token event: the first one ends the time to first token
//! data: {"choices": [{"delta": {"content": ""}}]}            a token event, too: the token holds a part of a character
//! data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}
//! data: {"choices": [], "usage": {"completion_tokens": 17}}
//! data: [DONE]
//! ```

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

use crate::loadgen::error::{FailureKind, RequestFailure};
use crate::loadgen::sse::EventParser;

/// The measured times and token counts of one complete answer. Times are in seconds after its request was sent.
#[derive(Clone, Debug, PartialEq)]
pub struct MeasuredAnswer {
    /// Tokens of the prompt; `None` if the server does not report them.
    pub prompt_tokens: Option<u64>,
    /// Number of tokens of all completions of the answer. If the server does not report it, the number of token
    /// events.
    pub output_tokens: u64,
    /// True if [`MeasuredAnswer::output_tokens`] was reported by the server.
    pub has_usage: bool,
    /// Number of completions.
    pub completions: u64,
    /// TTFT: time until the first token event. For an answer without tokens, the time until its first event.
    pub time_to_first_token: f64,
    /// E2EL: time until the last event that belongs to a completion.
    pub latency: f64,
    /// ITL: times between the token events of a completion. A server may put several tokens into one event.
    pub gaps: Vec<f64>,
}

impl MeasuredAnswer {
    /// TPOT: seconds per token after the first one; `None` if no completion has a second token.
    pub fn time_per_output_token(&self) -> Option<f64> {
        let tokens = self.output_tokens as f64 / self.completions as f64;
        (tokens > 1.0).then(|| (self.latency - self.time_to_first_token) / (tokens - 1.0))
    }
}

/// The data of an event. Fields that are not measured are skipped.
#[derive(Debug, Deserialize)]
struct Chunk {
    choices: Option<Vec<Choice>>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    #[serde(default)]
    index: u64,
    delta: Option<Delta>,
    text: Option<String>,
    finish_reason: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Delta {
    role: Option<Value>,
    content: Option<String>,
    reasoning_content: Option<String>,
    reasoning: Option<String>,
    tool_calls: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Usage {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
}

impl Choice {
    /// Whether the event stands for a generated token. A token can have no text if it holds a part of a character or
    /// is a special token. An event without text that only names the role or the finish reason is not a token event.
    fn is_token(&self) -> bool {
        let filled = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        let is_last = self.finish_reason.is_some();
        let Some(delta) = &self.delta else { return filled(&self.text) || !is_last };
        let has_text = filled(&delta.content) || filled(&delta.reasoning_content) || filled(&delta.reasoning);
        has_text || delta.tool_calls.is_some() || (delta.role.is_none() && !is_last)
    }
}

/// The state of one completion while its answer is read.
#[derive(Debug, Default)]
struct CompletionState {
    last_token: Option<f64>,
    is_finished: bool,
}

/// Reads the body of one answer.
#[derive(Debug, Default)]
pub struct AnswerReader {
    parser: EventParser,
    completions: HashMap<u64, CompletionState>,
    first_part: Option<f64>,
    first_token: Option<f64>,
    last_part: f64,
    token_events: u64,
    gaps: Vec<f64>,
    usage: Option<Usage>,
    is_done: bool,
}

impl AnswerReader {
    /// Reads bytes that arrived `seconds` after the request was sent. Returns true after the last event.
    ///
    /// # Errors
    /// An event is not what OpenAI's API defines, or holds an error of the server.
    pub fn push(&mut self, bytes: &[u8], seconds: f64) -> Result<bool, RequestFailure> {
        let events = self.parser.push(bytes);
        let events =
            events.map_err(|_| RequestFailure::new(FailureKind::Malformed, "an event is longer than 16 MiB"))?;
        for data in events {
            if data == "[DONE]" {
                self.is_done = true;
                return Ok(true);
            }
            self.read_chunk(&data, seconds)?;
        }
        Ok(false)
    }

    fn read_chunk(&mut self, data: &str, seconds: f64) -> Result<(), RequestFailure> {
        let malformed = |why: &str| RequestFailure::new(FailureKind::Malformed, format!("an event {why}: {data}"));
        let chunk: Chunk =
            serde_json::from_str(data).map_err(|e| malformed(&format!("is not a completion chunk ({e})")))?;
        if let Some(error) = chunk.error {
            return Err(RequestFailure::new(FailureKind::ErrorEvent, error_message(&error)));
        }
        if chunk.choices.is_none() && chunk.usage.is_none() {
            return Err(malformed("has neither choices nor usage"));
        }
        self.usage = chunk.usage.or(self.usage.take());
        for choice in chunk.choices.unwrap_or_default() {
            self.first_part.get_or_insert(seconds);
            self.last_part = seconds;
            let is_token = choice.is_token();
            let state = self.completions.entry(choice.index).or_default();
            state.is_finished |= choice.finish_reason.is_some();
            if is_token {
                self.token_events += 1;
                self.first_token.get_or_insert(seconds);
                self.gaps.extend(state.last_token.replace(seconds).map(|last| seconds - last));
            }
        }
        Ok(())
    }

    /// The answer, after the end of the response body.
    ///
    /// # Errors
    /// The body ended before all completions were finished, or has no completion.
    pub fn finish(self) -> Result<MeasuredAnswer, RequestFailure> {
        let is_complete = self.is_done || self.completions.values().all(|state| state.is_finished);
        let Some(first_part) = self.first_part.filter(|_| is_complete) else {
            return Err(match self.is_done || self.first_part.is_none() {
                true => RequestFailure::new(FailureKind::Empty, "the answer has no completion"),
                false => {
                    RequestFailure::new(FailureKind::Closed, "the answer ended before its completion was finished")
                }
            });
        };
        let tokens = self.usage.as_ref().and_then(|usage| usage.completion_tokens);
        Ok(MeasuredAnswer {
            prompt_tokens: self.usage.as_ref().and_then(|usage| usage.prompt_tokens),
            output_tokens: tokens.unwrap_or(self.token_events),
            has_usage: tokens.is_some(),
            completions: self.completions.len() as u64,
            time_to_first_token: self.first_token.unwrap_or(first_part),
            latency: self.last_part,
            gaps: self.gaps,
        })
    }
}

/// The text of OpenAI's error object, or of the JSON that other servers send in place of this object.
pub(crate) fn error_message(error: &Value) -> String {
    let message = [error.pointer("/error/message"), error.get("message"), error.get("error"), error.get("detail")];
    let text = message.into_iter().flatten().find_map(Value::as_str);
    text.map_or_else(|| error.to_string(), str::to_string)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Reads a stream of events, of which one arrives per second.
    fn read(events: &[&str]) -> Result<MeasuredAnswer, RequestFailure> {
        let mut reader = AnswerReader::default();
        for (i, event) in events.iter().enumerate() {
            reader.push(format!("data: {event}\n\n").as_bytes(), (i + 1) as f64)?;
        }
        reader.finish()
    }

    fn failure(events: &[&str]) -> FailureKind {
        read(events).unwrap_err().kind
    }

    const ROLE: &str = r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#;
    const TEXT: &str = r#"{"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}],"usage":null}"#;
    const EMPTY: &str = r#"{"choices":[{"index":0,"delta":{"content":""}}]}"#;
    const NO_CONTENT: &str = r#"{"choices":[{"index":0,"delta":{},"finish_reason":null}]}"#;
    const END: &str = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}"#;
    const USAGE: &str = r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13}}"#;

    #[test]
    fn failures_quote_the_server_without_control_characters() {
        let failure = read(&["\u{1b}[2J{\u{7f}\0"]).unwrap_err();
        assert!(failure.message.contains("\\u{1b}[2J{") && !failure.message.contains(char::is_control), "{failure}");
    }

    #[test]
    fn times_are_those_of_token_events() {
        let answer = read(&[ROLE, TEXT, EMPTY, TEXT, END, USAGE, "[DONE]"]).unwrap();
        let wanted = MeasuredAnswer {
            prompt_tokens: Some(9),
            output_tokens: 4,
            has_usage: true,
            completions: 1,
            time_to_first_token: 2.0,
            latency: 5.0,
            gaps: vec![1.0, 1.0],
        };
        assert_eq!(answer, wanted);
        assert_eq!(answer.time_per_output_token(), Some(1.0));
        // If the server reports no usage, token events are counted; if it sends no `[DONE]`, the finish reason ends the
        // answer.
        let answer = read(&[ROLE, TEXT, TEXT, END]).unwrap();
        assert_eq!((answer.prompt_tokens, answer.output_tokens, answer.has_usage), (None, 2, false));
        // Tokens without text.
        let answer = read(&[ROLE, EMPTY, NO_CONTENT, EMPTY, END, "[DONE]"]).unwrap();
        assert_eq!((answer.output_tokens, answer.gaps), (3, vec![1.0, 1.0]));
        // An answer without tokens.
        let answer = read(&[ROLE, END, "[DONE]"]).unwrap();
        assert_eq!((answer.time_to_first_token, answer.latency, answer.output_tokens), (1.0, 2.0, 0));
        assert_eq!(answer.time_per_output_token(), None);
    }

    #[test]
    fn completions_of_one_answer_are_kept_apart() {
        let chunk = |index: u64, text: &str| json!({"choices": [{"index": index, "text": text}]}).to_string();
        let end = |index: u64| json!({"choices": [{"index": index, "text": "", "finish_reason": "stop"}]}).to_string();
        let events = [chunk(0, "a"), chunk(1, "b"), chunk(0, "c"), chunk(1, ""), end(0), end(1), USAGE.to_string()];
        let answer = read(&events.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        assert_eq!((answer.completions, answer.gaps.as_slice()), (2, &[2.0, 2.0][..]));
        assert_eq!((answer.time_to_first_token, answer.latency), (1.0, 6.0));
        // Both completions have two tokens, so each has one token after the first.
        assert_eq!(answer.time_per_output_token(), Some(5.0));
        let unfinished = &events[..5].iter().map(String::as_str).collect::<Vec<_>>();
        assert_eq!(failure(unfinished), FailureKind::Closed);
    }

    #[test]
    fn wrong_streams_are_failures_of_their_kind() {
        for (events, kind) in [
            (&[ROLE, TEXT][..], FailureKind::Closed),
            (&[], FailureKind::Empty),
            (&["[DONE]"], FailureKind::Empty),
            (&[USAGE, "[DONE]"], FailureKind::Empty),
            (&[ROLE, "{\"choices\":"], FailureKind::Malformed),
            (&[ROLE, "7"], FailureKind::Malformed),
            (&[ROLE, "{\"id\":1}"], FailureKind::Malformed),
            (&[ROLE, "{\"choices\":[{\"index\":-1}]}"], FailureKind::Malformed),
            (&[TEXT, "{\"error\":{\"message\":\"out of memory\"}}", "[DONE]"], FailureKind::ErrorEvent),
        ] {
            assert_eq!(failure(events), kind, "{events:?}");
        }
        let e = read(&["{\"error\":{\"message\":\"out\\nof memory\"}}"]).unwrap_err();
        assert_eq!(e.message, "out of memory");
        let long = format!("{{\"error\":{{\"message\":\"{}\"}}}}", "é".repeat(5000));
        assert_eq!(read(&[&long]).unwrap_err().message.chars().count(), 301);
    }
}
