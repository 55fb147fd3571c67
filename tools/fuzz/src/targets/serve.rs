//! Fuzz targets for the server and its clients: requests over HTTP, request bodies, grammars, streamed events.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result};
use reel_engine::{GrammarCompiler, GrammarSpec};
use reel_input::encode::ModelFolder;
use reel_input::media::worker::DecodeWorker;
use reel_input::media_loading::MediaOptions;
use reel_model::init::{init_model_folder, init_without_weights};
use reel_serve::{ConnectionLimits, QueuedRequest, RequestReader, ServeOptions, ServedModel, ServedWeights};
use reel_support::worker::{WorkerProgram, set_worker_program};
use reel_tools::loadgen::{AnswerReader, EventParser};
use serde_json::Value;

use super::model::TINY_MODEL;
use super::{Runner, accepted, check_error_message, first_part_of, random_of, run};

/// Maximum time for the server's answer to an input. If an answer takes longer, the server's time limit of a request
/// (`request_time`) has no effect.
const MAX_ANSWER_TIME: Duration = Duration::from_secs(20);

/// Maximum number of completions of a request.
const MAX_COMPLETIONS: usize = 128;
/// Maximum number of log-probabilities of a streamed answer.
const MAX_LOG_PROBS: usize = 1 << 21;

/// HTTP requests to a server in this process, from the bytes of the body to the last byte of the answer. An input is a
/// path and a body. The answer must be complete, or have a status that says that the request is wrong.
pub fn request(folder: PathBuf) -> Result<Runner> {
    let address = start_server(folder)?;
    let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(MAX_ANSWER_TIME));
    let agent = ureq::Agent::from(config.build());
    run(move |input| {
        let (path, body) = path_and_body(input);
        let answer = agent.post(format!("http://{address}{path}")).send(body);
        let mut answer = answer.expect("the server answers");
        let is_stream = answer.headers().get("content-type").is_some_and(|kind| kind == "text/event-stream");
        let text = answer.body_mut().read_to_string().expect("a complete answer in UTF-8");
        match answer.status().as_u16() {
            200 if is_stream => check_stream(&text),
            200 => serde_json::from_str::<Value>(&text).map(drop).ok().or_else(|| panic!("not JSON: {text:?}")),
            400 | 404 | 405 | 413 | 504 => check_error(&text),
            status => panic!("status {status}: {text:?}"),
        }
    })
}

/// Splits an input into a path, which is one of the server's, and a body.
fn path_and_body(input: &[u8]) -> (&'static str, &[u8]) {
    const PATHS: [&str; 6] =
        ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize", "/detokenize", "/v1/preview"];
    let (path, body) = first_part_of(input);
    (PATHS.iter().find(|known| known.as_bytes() == path).unwrap_or(&PATHS[0]), body)
}

/// Makes a tiny model in `folder`. Returns it with the options of a server for it. Requests to this server may not name
/// files.
fn tiny_model_and_options(folder: &Path) -> Result<(ServedModel, ServedWeights, ServeOptions)> {
    init_model_folder(&TINY_MODEL, folder)?;
    let (model, weights) = ServedModel::open_on_cpu(folder)?;
    let limits = reel_serve::ServerLimits {
        batch: 4,
        requests: 64,
        body_bytes: 2 << 20,
        encoders: 1,
        kv_bytes: 8 << 20,
        new_tokens: 4,
        request_time: Some(Duration::from_millis(500)),
    };
    let (read_timeout, write_timeout) = (MAX_ANSWER_TIME, MAX_ANSWER_TIME);
    let connections = ConnectionLimits { connections: 8, read_timeout, write_timeout };
    let mut decoder = DecodeWorker::from_this_program();
    decoder.program.timeout = Duration::from_secs(1);
    let media = MediaOptions { decoder, ..MediaOptions::default() };
    Ok((model, weights, ServeOptions::for_local_programs(limits, connections, media)))
}

/// Starts a server for a tiny model in this process, and returns its address.
fn start_server(folder: PathBuf) -> Result<std::net::SocketAddr> {
    let (model, weights, options) = tiny_model_and_options(&folder)?;
    let (listening, address) = mpsc::channel();
    std::thread::spawn(move || {
        let served = reel_serve::serve(model, weights, options, |address| {
            let _ = listening.send(address);
        });
        panic!("the server has ended: {:?}", served.err());
    });
    address.recv_timeout(MAX_ANSWER_TIME).context("the server does not start")
}

/// Checks a stream of events. Returns `None` if it ends with an error, as at the time limit of a request.
fn check_stream(body: &str) -> Option<()> {
    let (events, last) = body.trim_end().rsplit_once("data: ").unwrap_or_default();
    // A stream of the Responses API ends with an event that has the whole response.
    let event: Value = serde_json::from_str(last).unwrap_or_default();
    if let Value::String(status) = &event["response"]["status"] {
        assert!(events.contains("data: ") && status != "in_progress", "the stream has no end: {body:?}");
        return (status != "failed").then_some(());
    }
    assert!(last == "[DONE]" && events.contains("data: "), "the stream has no end: {body:?}");
    let mut reader = AnswerReader::default();
    accepted(reader.push(body.as_bytes(), 1.0))?;
    assert!(reader.finish().is_ok(), "the stream lacks something: {body:?}");
    Some(())
}

/// Checks OpenAI's error object.
fn check_error(body: &str) -> Option<()> {
    let value: Value = serde_json::from_str(body).unwrap_or_default();
    let error = &value["error"];
    let message = error["message"].as_str().unwrap_or_default();
    assert!(!message.is_empty() && error["type"].is_string() && error["code"].is_string(), "{body:?}");
    check_error_message(message);
    None
}

/// Bodies of all endpoints that take JSON, from their bytes to what is put into the engine's queue. The body must be
/// refused with a message, or what it puts into the queue must be within the limits of the model and of a request.
pub fn request_body(folder: PathBuf) -> Result<Runner> {
    let (model, _, options) = tiny_model_and_options(&folder)?;
    // The reader owns the model, so the checks read the configuration again.
    let (folder, reader) = (ModelFolder::open(&folder)?, RequestReader::new(model, &options)?);
    run(move |input| {
        let (path, body) = path_and_body(input);
        let read = reader.post(path, body.to_vec()).expect("an answer");
        let text = String::from_utf8_lossy(&read.body);
        match read.status {
            200 if read.queued.is_empty() => Some(()),
            500 if !read.queued.is_empty() && text.contains("the engine has ended") => {
                check_queued(&read.queued, &folder);
                Some(())
            }
            400 | 404 | 405 | 413 if read.queued.is_empty() => check_error(&text),
            status => panic!("status {status} with {} prompts in the queue: {text}", read.queued.len()),
        }
    })
}

/// Checks that the prompts of a request and their settings are within the limits.
fn check_queued(queued: &[QueuedRequest], folder: &ModelFolder) {
    let (text, tokens) = (&folder.config.text, &folder.config.tokens);
    let mut log_probs = 0usize;
    for QueuedRequest { prompt, settings } in queued {
        let sampling = &settings.sampling;
        let new_tokens = sampling.max_new_tokens.expect("a limit of new tokens");
        let n = settings.n.unwrap_or(1);
        let fits = !prompt.is_empty() && prompt.len().saturating_add(new_tokens) <= text.max_position_embeddings;
        assert!(fits, "{} prompt tokens exceed the positions: {settings:?}", prompt.len());
        assert!(n >= 1 && n * queued.len() <= MAX_COMPLETIONS, "too many completions: {settings:?}");
        assert!(settings.min_new_tokens <= new_tokens, "min_tokens above max_tokens: {settings:?}");
        let biased = settings.logit_bias.iter().map(|(id, _)| id);
        let mut ids = prompt.input_ids.iter().chain(&settings.stop_token_ids).chain(biased);
        assert!(ids.all(|&id| (id as usize) < text.vocab_size), "an unknown token: {settings:?}");
        let numbers = [sampling.temperature, sampling.top_p, sampling.min_p, sampling.repetition_penalty];
        assert!(numbers.iter().flatten().all(|x| x.is_finite() && *x >= 0.0), "a number out of range: {settings:?}");
        for (pad, grids) in [(tokens.image, &prompt.image_grid_thw), (tokens.video, &prompt.video_grid_thw)] {
            let pads = prompt.input_ids.iter().filter(|id| **id == pad).count();
            let patches: usize = grids.iter().map(|grid| grid.iter().product::<usize>()).sum();
            let unit = folder.config.vision.patches_per_vision_token();
            assert!(grids.is_empty() || pads == patches / unit, "pads without patches: {settings:?}");
        }
        let count = |tokens: usize, top: Option<usize>| top.map_or(0, |top| tokens * n * (top + 1));
        log_probs += count(new_tokens, settings.top_log_probs) + count(prompt.len(), settings.prompt_log_probs);
    }
    assert!(log_probs <= MAX_LOG_PROBS, "{log_probs} log-probabilities");
}

/// A [`GrammarSpec`] as JSON: JSON schemas, regular expressions, choices, grammars in Lark's syntax, tool calls. A
/// worker process compiles it, then this process; then a completion of random allowed tokens follows it.
pub fn grammar(folder: PathBuf) -> Result<Runner> {
    set_worker_program(WorkerProgram::of_current_executable());
    init_without_weights(&TINY_MODEL, &folder)?;
    let compiler = GrammarCompiler::new(&ModelFolder::open(&folder)?)?;
    run(move |input| {
        let mut completion = accepted(compiler.compile(&serde_json::from_slice::<GrammarSpec>(input).ok()?))?.clone();
        let mut random = random_of(input);
        for _ in 0..24 {
            let mask = completion.allowed_token_mask();
            let ids: Vec<u32> =
                (0..32 * mask.len() as u32).filter(|i| mask[*i as usize / 32] >> (i % 32) & 1 == 1).collect();
            assert!(!ids.is_empty(), "no token is allowed");
            let id = ids[random.usize(..ids.len())];
            if completion.is_end_token(id) || accepted(completion.accept(id)).is_none() {
                break;
            }
        }
        Some(())
    })
}

/// Server-sent events as the load generator reads them from a server. The parsed events must not depend on where the
/// bytes are cut, and events that are written and parsed again must be equal.
pub fn events(_: PathBuf) -> Result<Runner> {
    run(|input| {
        let (mut random, whole) = (random_of(input), events_of([input]));
        let pieces: Vec<&[u8]> = input.chunks(random.usize(1..=input.len().max(1))).collect();
        assert_eq!(events_of(pieces.iter().copied()), whole, "the events depend on how the bytes are split");
        assert_eq!(events_of(input.chunks(1)), whole, "the events depend on how the bytes are split");
        let lines = |event: &String| event.split('\n').map(|line| format!("data: {line}\n")).collect::<String>() + "\n";
        let again: String = whole.iter().map(lines).collect();
        assert!(again.contains('\r') || events_of([again.as_bytes()]) == whole, "read again: {again:?}");
        let mut reader = AnswerReader::default();
        for piece in pieces {
            if accepted(reader.push(piece, 1.0))? {
                break;
            }
        }
        accepted(reader.finish()).map(drop)
    })
}

fn events_of<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<String> {
    let mut parser = EventParser::default();
    pieces.into_iter().flat_map(|piece| parser.push(piece).expect("an input of 1 MiB is not too long")).collect()
}
