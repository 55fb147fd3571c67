//! Fuzz targets for the server and its clients: requests over HTTP, the values that chat templates render, streamed
//! events.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result};
use reel_input::encode::MediaOptions;
use reel_media::worker::DecodeWorker;
use reel_model::init::init_model_folder;
use reel_serve::{ConnectionLimits, ServeOptions, ServedModel, ServedWeights, ServerLimits};
use reel_tools::loadgen::{AnswerReader, EventParser};
use serde_json::{Value, json};

use super::model::TINY_MODEL;
use super::{FuzzTarget, scratch_folder, text_of};
use crate::mutate::{PartFormat, Seed, split_into_parts};
use crate::random::{self, Random};
use crate::verdict::{Verdict, check_error_message, require, value_if_accepted, verdict_of};

/// Maximum time for the server's answer to an input. If an answer takes longer, the server's time limit of a request
/// (`request_time`) has no effect.
const MAX_ANSWER_TIME: Duration = Duration::from_secs(20);

const CHAT: &str = "/v1/chat/completions";

/// HTTP requests to a server in this process, from the bytes of the body to the last byte of the answer. An input is a
/// path and a body. The answer must be complete, or have a status that says that the request is wrong.
pub const REQUEST: FuzzTarget = FuzzTarget {
    name: "request",
    words: &[
        "messages",
        "role",
        "content",
        "prompt",
        "tokens",
        "type",
        "text",
        "image_url",
        "video_url",
        "max_tokens",
        "min_tokens",
        "n",
        "stop",
        "stop_token_ids",
        "stream",
        "stream_options",
        "include_usage",
        "continuous_usage_stats",
        "logprobs",
        "top_logprobs",
        "logit_bias",
        "response_format",
        "json_schema",
        "json_object",
        "schema",
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "structured_outputs",
        "(a|b)*c{2,9}",
        "[^\\x00-\\x7f]+?",
        "start: \"a\" start | \"b\"",
        "$ref",
        "$defs",
        "#/$defs/a",
        "anyOf",
        "pattern",
        "maxItems",
        "maxLength",
        "additionalProperties",
        "priority",
        "ignore_eos",
        "add_generation_prompt",
        "return_token_strs",
        "input",
        "function_call",
        "function_call_output",
        "reasoning",
        "allowed_tools",
        "data:image/png;base64,AA==",
        "data:video/mp4;base64,AA==",
        "file:///etc/passwd",
        "<|image_pad|>",
        "<|im_end|>",
        "\u{0}",
        "",
    ],
    seeds: || {
        let messages = json!([{"role": "system", "content": "s"}, {"role": "user", "content": "Why?"}]);
        let chat = |more: Value| {
            let mut body = json!({"messages": messages, "max_tokens": 3});
            body.as_object_mut()
                .into_iter()
                .for_each(|fields| fields.extend(more.as_object().cloned().unwrap_or_default()));
            (CHAT, body)
        };
        let schema = json!({
            "type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}},
            "required": ["a"], "additionalProperties": false,
        });
        let png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg==";
        let image = json!([{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{png}")}, "max_pixels": 3136},
            {"type": "text", "text": "?"},
        ]}]);
        let call = json!({"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"});
        let output = json!({"type": "function_call_output", "call_id": "c", "output": "x"});
        let items = json!([{"role": "user", "content": [{"type": "input_text", "text": "?"}]}, call, output]);
        let tool = json!({"type": "function", "name": "f", "parameters": schema, "strict": false});
        let seeds = [
            chat(
                json!({"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "n": 2, "seed": 1, "stop": ["END"]}),
            ),
            chat(json!({"stream": true, "stream_options": {"include_usage": true, "continuous_usage_stats": true}})),
            chat(
                json!({"logprobs": true, "top_logprobs": 2, "logit_bias": {"5": 1.5}, "min_tokens": 1, "priority": -1}),
            ),
            chat(json!({"presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1, "stream": true})),
            chat(json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}})),
            chat(json!({"guided_regex": "(yes|no) [0-9]{2,3}", "stop_token_ids": [7], "ignore_eos": true})),
            chat(json!({"structured_outputs": {"choice": ["red", "green"]}, "stream": true, "logprobs": true})),
            chat(json!({"guided_grammar": "start: \"a\" start | \"b\""})),
            (CHAT, json!({"messages": image, "max_tokens": 1})),
            ("/v1/completions", json!({"prompt": ["Once", "Twice"], "max_tokens": 2, "n": 2, "stream": true})),
            ("/v1/completions", json!({"prompt": [[1, 2, 3], [4]], "max_tokens": 2})),
            ("/v1/responses", json!({"input": items, "tools": [tool], "tool_choice": "auto", "max_output_tokens": 2})),
            (
                "/v1/responses",
                json!({"instructions": "s", "input": "x", "text": {"format": {"type": "json_object"}}, "stream": true}),
            ),
            ("/tokenize", json!({"prompt": "some words", "return_token_strs": true})),
            ("/tokenize", json!({"messages": messages, "add_generation_prompt": false})),
            ("/detokenize", json!({"tokens": [1, 2, 300]})),
            ("/v1/preview", json!({"messages": image})),
            ("/v1/models", Value::Null),
        ];
        let seed = |(path, body): (&str, Value)| {
            Seed::new(PartFormat::Fixed, path).with_part(PartFormat::Json, body.to_string())
        };
        Ok(seeds.into_iter().map(seed).collect())
    },
    open: || {
        let address = start_server()?;
        Ok(Box::new(move |input| {
            let parts = split_into_parts(input);
            let body = parts.get(1..).unwrap_or_default().join(crate::mutate::PART_SEPARATOR);
            let answer = exchange(address, &text_of(parts[0]), &body).map_err(|e| format!("no answer: {e}"))?;
            judge_answer(&answer)
        }))
    },
};

/// Makes a tiny model in `folder`. Returns it with the options of a server for it. Requests to this server may not name
/// files.
pub(super) fn tiny_model_and_options(folder: &Path) -> Result<(ServedModel, ServedWeights, ServeOptions)> {
    init_model_folder(&TINY_MODEL, folder)?;
    let (model, weights) = ServedModel::open_on_cpu(folder)?;
    let limits = ServerLimits {
        batch: 4,
        requests: 64,
        body_bytes: 2 << 20,
        encoders: 1,
        kv_bytes: 8 << 20,
        new_tokens: 4,
        request_time: Some(Duration::from_millis(500)),
    };
    let connections =
        ConnectionLimits { connections: 8, read_timeout: MAX_ANSWER_TIME, write_timeout: MAX_ANSWER_TIME };
    let mut decoder = DecodeWorker::from_this_program();
    decoder.program.timeout = Duration::from_secs(1);
    let media = MediaOptions { decoder, ..MediaOptions::default() };
    Ok((model, weights, ServeOptions::for_local_programs(limits, connections, media)))
}

/// Starts a server for a tiny model in this process, and returns its address.
fn start_server() -> Result<SocketAddr> {
    let (model, weights, options) = tiny_model_and_options(&scratch_folder()?.join("tiny"))?;
    let (listening, address) = mpsc::channel();
    std::thread::spawn(move || {
        let served = reel_serve::serve(model, weights, options, |address| {
            let _ = listening.send(address);
        });
        served.err().into_iter().for_each(|e| eprintln!("the server has ended: {e}"));
    });
    address.recv_timeout(MAX_ANSWER_TIME).context("the server does not start")
}

/// Sends a request and reads the whole answer.
fn exchange(address: SocketAddr, path: &str, body: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(MAX_ANSWER_TIME))?;
    let method = if path == "/v1/models" { "GET" } else { "POST" };
    let length = body.len();
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(&[head.as_bytes(), body].concat())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// Returns true for a complete answer, false for an error with a status that blames the client (4xx) or the time limit
/// (504). Any other answer is a failure.
fn judge_answer(answer: &[u8]) -> Verdict {
    let text = std::str::from_utf8(answer).map_err(|e| format!("the answer is not UTF-8: {e}"))?;
    let (head, body) =
        text.split_once("\r\n\r\n").ok_or_else(|| format!("the answer has no end of its headers: {text:?}"))?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    let head = head.to_ascii_lowercase();
    let body = match head.contains("transfer-encoding: chunked") {
        true => unchunked(body).ok_or_else(|| format!("the chunked body is incomplete: {body:?}"))?,
        false => body.to_string(),
    };
    if status == "200" && head.contains("text/event-stream") {
        return judge_stream(&body);
    }
    let value: Value = serde_json::from_str(&body).map_err(|e| format!("the answer is not JSON ({e}): {body:?}"))?;
    match status {
        "200" => Ok(true),
        "400" | "404" | "413" | "504" => judge_error(&value).map(|()| false),
        _ => Err(format!("status {status}: {body:?}")),
    }
}

fn judge_stream(body: &str) -> Verdict {
    let mut reader = AnswerReader::default();
    let (last, count) = match body.trim_end().rsplit_once("data: ") {
        Some((events, last)) => (last, events.matches("data: ").count()),
        None => ("", 0),
    };
    // A stream of the Responses API ends with an event that has the whole response.
    if let Ok(Value::String(status)) =
        serde_json::from_str(last).map(|event: Value| event["response"]["status"].clone())
    {
        require(count > 0 && status != "in_progress", || format!("the stream has no end: {body:?}"))?;
        return Ok(status != "failed");
    }
    require(last == "[DONE]" && count > 0, || format!("the stream has no end: {body:?}"))?;
    match reader.push(body.as_bytes(), 1.0) {
        Ok(_) => reader.finish().map(|_| true).map_err(|e| format!("{e}: {body:?}")),
        // An error event is allowed, because the time limit of a request can end it while its answer streams.
        Err(e) => check_error_message(&e.to_string()).map(|()| false),
    }
}

/// Checks OpenAI's error object.
pub(super) fn judge_error(value: &Value) -> Result<(), String> {
    let error = &value["error"];
    let message = error["message"].as_str().unwrap_or_default();
    require(!message.is_empty() && error["type"].is_string() && error["code"].is_string(), || value.to_string())?;
    check_error_message(message)
}

/// The body of an answer with `Transfer-Encoding: chunked`; `None` if its last chunk is missing.
fn unchunked(mut body: &str) -> Option<String> {
    let mut whole = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n")?;
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            return Some(whole);
        }
        whole.push_str(rest.get(..size)?);
        body = rest.get(size..)?.strip_prefix("\r\n")?;
    }
}

/// Server-sent events as the load generator reads them from a server. The parsed events must not depend on where the
/// bytes are cut, and events that are written and parsed again must be equal.
pub const EVENTS: FuzzTarget = FuzzTarget {
    name: "events",
    words: &[
        "data: ",
        "data",
        ":",
        "\n\n",
        "\r\n",
        "\r",
        "\u{feff}",
        "[DONE]",
        "event: x",
        "id: 1",
        "retry: 9",
        "{\"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"}}]}",
        "\"finish_reason\":\"stop\"",
        "\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}",
        "{\"error\":{\"message\":\"m\"}}",
        "null",
        "\u{0}",
        "\\ud800",
    ],
    seeds: || {
        let chunk = |content: &str, end: &str| {
            format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{{content}}},\"finish_reason\":{end}}}]}}\n\n")
        };
        let text = chunk("\"role\":\"assistant\",\"content\":\"\"", "null")
            + &chunk("\"content\":\"é日\"", "null")
            + ": keep-alive\n\n"
            + &chunk("", "\"stop\"")
            + "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":4}}\n\ndata: [DONE]\n\n";
        let plain = "\u{feff}event: x\r\ndata: {\"choices\":[{\"index\":1,\"text\":\"a\",\r\ndata:\"finish_reason\":\"length\"}]}\r\n\r\n";
        Ok(vec![Seed::new(PartFormat::Text, text), Seed::new(PartFormat::Text, plain)])
    },
    open: || {
        Ok(Box::new(|input| {
            let mut random = Random::new(&[random::hash(input)]);
            let whole = events_of(&[input])?;
            let mut cuts: Vec<usize> = (0..random.length_up_to(20)).map(|_| random.below(input.len() + 1)).collect();
            cuts.extend([0, input.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &input[cut[0]..cut[1]]).collect();
            let bytes: Vec<&[u8]> = input.chunks(1).collect();
            for cut in [&pieces, &bytes] {
                require(events_of(cut)? == whole, || "the events depend on how the bytes are split".to_string())?;
            }
            let lines =
                |event: &String| event.split('\n').map(|line| format!("data: {line}\n")).collect::<String>() + "\n";
            let again: String = whole.iter().map(lines).collect();
            let has_returns = again.contains('\r');
            require(has_returns || events_of(&[again.as_bytes()])? == whole, || format!("read again: {again:?}"))?;
            let mut reader = AnswerReader::default();
            for (i, piece) in pieces.iter().enumerate() {
                match value_if_accepted(reader.push(piece, i as f64))? {
                    None => return Ok(false),
                    Some(true) => break,
                    Some(false) => {}
                }
            }
            verdict_of(reader.finish())
        }))
    },
};

fn events_of(pieces: &[&[u8]]) -> Result<Vec<String>, String> {
    let mut parser = EventParser::default();
    let mut events = Vec::new();
    for piece in pieces {
        events.extend(parser.push(piece).map_err(|_| "an input of 1 MiB is too long".to_string())?);
    }
    Ok(events)
}
