//! `POST /v1/chat/completions`.
//!
//! ```text
//! check     fields, model, limits of the server                      status 400, 404, 503
//! encode    chat template, media, tokens, on a blocking thread       status 400
//! engine    Job → Token, …, Finished | Failed
//! answer    one object, or with `stream` one server-sent event per piece of text
//! ```

use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use reel_engine::{
    Completion, CompletionStream, EngineError, FinishReason, SamplingParams, TokenText, completion_text,
};
use reel_model::ModelError;
use reel_model::input::ModelInput;
use reel_model::input::encode::encode;
use reel_model::input::messages::{ContentPart, Conversation, MediaSource, VideoSource};
use reel_model::input::request::ChatRequest;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::{ApiError, models, seconds_since_1970};
use crate::engine_thread::{Event, Job};
use crate::server::Shared;

/// What error messages call the body of a request.
const LOCATION: &str = "request";
/// Maximum number of completions of one request, as in OpenAI's API.
const MAX_COMPLETIONS: usize = 128;

/// The fields of a request that decide in which form it is answered, and by which model.
#[derive(Debug, Default, Deserialize)]
struct AnswerFields {
    model: Option<String>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
}

#[derive(Debug, Default, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

/// What all parts of an answer have in common.
#[derive(Debug)]
struct Answer {
    id: String,
    created: u64,
    model: String,
    prompt_tokens: usize,
    n: usize,
    stop: Vec<String>,
}

/// A request in the queue of the engine.
struct Queued {
    answer: Answer,
    events: UnboundedReceiver<Event>,
    /// Kept until the answer is complete: the number of permits limits the requests of the server.
    permit: OwnedSemaphorePermit,
}

/// `POST /v1/chat/completions`
pub(crate) async fn complete(
    State(shared): State<Arc<Shared>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let body = body.map_err(|e| ApiError::unreadable(e.status(), format!("{LOCATION}: {}", e.body_text())))?;
    let fields: AnswerFields = serde_json::from_slice(&body).map_err(|e| {
        ApiError::bad_request(format!("{LOCATION}: is not a request of this API ({e}); correct its JSON"), None)
    })?;
    if let Some(name) = fields.model.as_deref().filter(|name| *name != shared.model.name) {
        return Err(models::unknown_model(&shared, name));
    }
    let request = ChatRequest::parse(LOCATION, &body).map_err(wrong_request)?;
    let mut queued = enqueue(&shared, request).await?;
    if fields.stream == Some(true) {
        let include_usage = fields.stream_options.and_then(|options| options.include_usage) == Some(true);
        // The status of an answer is sent before its text, so the first event decides it.
        let first = queued.events.recv().await.ok_or_else(engine_ended)?;
        return match first {
            Event::Failed(e) => Err(failed(&e)),
            first => Ok(stream(&shared, queued, first, include_usage)),
        };
    }
    let completions = collect(&mut queued).await?;
    Ok(Json(queued.answer.whole(&shared, &completions)).into_response())
}

/// Encodes a request and adds it to the engine's queue.
async fn enqueue(shared: &Arc<Shared>, request: ChatRequest) -> Result<Queued, ApiError> {
    if !shared.is_ready() {
        return Err(ApiError::busy("the server is stopping and takes no further requests; try another one"));
    }
    let permit = shared.permits.clone().try_acquire_owned().map_err(|_| {
        ApiError::busy("too many requests are being answered or wait; try again later, or raise --max-requests")
    })?;
    let mut settings = request.settings.clone();
    // Without a seed, every request draws other random numbers.
    settings.seed.get_or_insert_with(random_seed);
    let n = settings.n.unwrap_or(1);
    if n > MAX_COMPLETIONS {
        return Err(ApiError::bad_request(format!("n: is {n}; give 1 to {MAX_COMPLETIONS}"), Some("n".into())));
    }
    let sampling = SamplingParams::from_settings(&settings, &shared.model.folder.generation);
    sampling.validate().map_err(|e| ApiError::bad_request(e.to_string(), None))?;
    let prompt = encode_on_blocking_thread(shared, request).await?;
    let max_new_tokens = new_tokens(shared, prompt.len(), settings.max_new_tokens)?;
    let answer = Answer {
        id: next_id(shared),
        created: seconds_since_1970(),
        model: shared.model.name.clone(),
        prompt_tokens: prompt.len(),
        n,
        stop: settings.stop.clone(),
    };
    let (sender, events) = unbounded_channel();
    shared.engine.send(Job { prompt, sampling, max_new_tokens, n, stop: settings.stop, events: sender });
    Ok(Queued { answer, events, permit })
}

/// The number of tokens to generate at most: what the request asks for, else the server's limit, as far as there are
/// positions after the prompt.
fn new_tokens(shared: &Shared, prompt_tokens: usize, asked: Option<usize>) -> Result<usize, ApiError> {
    let positions = shared.model.folder.config.text.max_position_embeddings;
    let left = positions.saturating_sub(prompt_tokens);
    match asked {
        _ if left == 0 => Err(ApiError::too_long(format!(
            "the prompt has {prompt_tokens} tokens, and the model has {positions} positions for prompt and answer; \
             shorten the prompt, or take fewer frames or pixels"
        ))),
        Some(asked) if asked > left => Err(ApiError::too_long(format!(
            "the prompt has {prompt_tokens} tokens, and {asked} more are asked for, but the model has {positions} \
             positions; shorten the prompt, or lower max_completion_tokens to {left}"
        ))),
        asked => Ok(asked.unwrap_or(shared.limits.new_tokens).min(left)),
    }
}

async fn encode_on_blocking_thread(shared: &Arc<Shared>, request: ChatRequest) -> Result<ModelInput, ApiError> {
    // A semaphore that is never closed always gives a permit.
    let permit = shared.encoders.clone().acquire_owned().await;
    let shared = shared.clone();
    let encoding = tokio::task::spawn_blocking(move || {
        // The thread goes on if the client is gone meanwhile, so it holds the permit itself.
        let _permit = permit;
        let root = shared.media.root.clone().unwrap_or_default();
        let conversation = Conversation::from_json(LOCATION, &request.messages, &root).map_err(wrong_request)?;
        if shared.media.root.is_none() {
            refuse_files(&conversation)?;
        }
        encode(&shared.model.folder, &conversation, &shared.media.options).map_err(wrong_request)
    });
    encoding
        .await
        .map_err(|_| ApiError::internal("encoding the request has panicked; its text is in the server's log"))?
}

/// Refuses a conversation that names files.
fn refuse_files(conversation: &Conversation) -> Result<(), ApiError> {
    let is_file = |source: &MediaSource| matches!(source, MediaSource::Path(_));
    let names_file = |part: &ContentPart| match part {
        ContentPart::Text(_) => false,
        ContentPart::Image(image) => is_file(&image.source),
        ContentPart::Video(video) => match &video.source {
            VideoSource::File(source) => is_file(source),
            VideoSource::Frames(frames) => frames.iter().any(is_file),
        },
    };
    match conversation.media_parts().any(names_file) {
        false => Ok(()),
        true => Err(ApiError::bad_request(
            "messages: name a file, and this server reads none; send the media as a data: URI, or start the server with \
             --media-root DIR",
            Some("messages".into()),
        )),
    }
}

/// Waits for all completions of a request.
async fn collect(queued: &mut Queued) -> Result<Vec<Completion>, ApiError> {
    let mut completions = Vec::with_capacity(queued.answer.n);
    while completions.len() < queued.answer.n {
        match queued.events.recv().await.ok_or_else(engine_ended)? {
            Event::Token { .. } => {}
            Event::Finished(completion) => completions.push(completion),
            Event::Failed(e) => return Err(failed(&e)),
        }
    }
    completions.sort_by_key(|completion| completion.index);
    Ok(completions)
}

/// An answer as server-sent events. If the client is gone, the task ends at the next piece of text; the channel of the
/// request is then closed, and the engine drops the request.
fn stream(shared: &Shared, queued: Queued, first: Event, include_usage: bool) -> Response {
    let (sender, receiver) = unbounded_channel();
    let text = shared.text.clone();
    tokio::spawn(async move {
        let Queued { answer, mut events, permit } = queued;
        // The receiver is gone if the client is.
        let _ = send_chunks(&answer, &text, first, &mut events, include_usage, &sender).await;
        drop(permit);
    });
    let events = UnboundedReceiverStream::new(receiver);
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}

type SseSender = UnboundedSender<Result<sse::Event, Infallible>>;

/// Sends the chunks of an answer.
///
/// # Errors
/// The client is gone.
async fn send_chunks(
    answer: &Answer,
    text: &TokenText,
    first: Event,
    events: &mut UnboundedReceiver<Event>,
    include_usage: bool,
    client: &SseSender,
) -> Result<(), ()> {
    let send = |data: String| client.send(Ok(sse::Event::default().data(data))).map_err(drop);
    let mut texts: Vec<Option<CompletionStream<TokenText>>> =
        (0..answer.n).map(|_| Some(CompletionStream::new(text.clone(), &answer.stop))).collect();
    for index in 0..answer.n {
        send(answer.chunk(index, json!({"role": "assistant", "content": ""}), None, include_usage).to_string())?;
    }
    let (mut unfinished, mut tokens, mut next) = (answer.n, 0, Some(first));
    while unfinished > 0 {
        let event = match next.take() {
            Some(event) => Some(event),
            None => events.recv().await,
        };
        match event {
            Some(Event::Token { index, id }) => {
                let piece = texts[index].as_mut().map_or(String::new(), |text| text.push(id));
                if !piece.is_empty() {
                    send(answer.chunk(index, json!({"content": piece}), None, include_usage).to_string())?;
                }
            }
            Some(Event::Finished(completion)) => {
                let index = completion.index;
                let rest = texts[index].take().map_or(String::new(), CompletionStream::finish);
                if !rest.is_empty() {
                    send(answer.chunk(index, json!({"content": rest}), None, include_usage).to_string())?;
                }
                let reason = Some(completion.finish_reason);
                send(answer.chunk(index, json!({}), reason, include_usage).to_string())?;
                tokens += completion.ids.len();
                unfinished -= 1;
            }
            Some(Event::Failed(e)) => return send(failed(&e).to_json().to_string()).and_then(|()| send(DONE.into())),
            None => return send(engine_ended().to_json().to_string()).and_then(|()| send(DONE.into())),
        }
    }
    if include_usage {
        let mut chunk = answer.object("chat.completion.chunk", json!([]));
        chunk["usage"] = answer.usage(tokens);
        send(chunk.to_string())?;
    }
    send(DONE.into())
}

/// The last event of a streamed answer.
const DONE: &str = "[DONE]";

impl Answer {
    fn object(&self, kind: &str, choices: Value) -> Value {
        json!({"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices})
    }

    fn usage(&self, tokens: usize) -> Value {
        let prompt = self.prompt_tokens;
        json!({"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens})
    }

    /// The answer as one object.
    fn whole(&self, shared: &Shared, completions: &[Completion]) -> Value {
        let choice = |completion: &Completion| {
            let text = completion_text(&shared.model.folder.tokenizer, &completion.ids, &self.stop);
            json!({
                "index": completion.index, "message": {"role": "assistant", "content": text}, "logprobs": null,
                "finish_reason": completion.finish_reason.openai_name(),
            })
        };
        let mut object = self.object("chat.completion", completions.iter().map(choice).collect());
        object["usage"] = self.usage(completions.iter().map(|completion| completion.ids.len()).sum());
        object
    }

    /// One piece of a streamed answer. With `has_usage`, the last chunk has the usage, and this one has null.
    fn chunk(&self, index: usize, delta: Value, reason: Option<FinishReason>, has_usage: bool) -> Value {
        let reason = reason.map(FinishReason::openai_name);
        let choices = json!([{"index": index, "delta": delta, "logprobs": null, "finish_reason": reason}]);
        let mut object = self.object("chat.completion.chunk", choices);
        if has_usage {
            object["usage"] = Value::Null;
        }
        object
    }
}

/// A random number from the system's source.
fn random_seed() -> u64 {
    RandomState::new().hash_one(())
}

/// A number for each answer of this server.
fn next_id(shared: &Shared) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("chatcmpl-{:x}-{:x}", shared.started, NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The error of a request that cannot be encoded. A failure of the device is not the request's fault.
fn wrong_request(e: ModelError) -> ApiError {
    if matches!(e, ModelError::Runtime(_)) {
        return ApiError::internal(e.to_string());
    }
    let diagnostic = e.into_diagnostic();
    let param = diagnostic.location.strip_prefix(LOCATION).map(|field| field.trim_start_matches(": ").to_string());
    ApiError::bad_request(diagnostic.to_string(), param.filter(|field| !field.is_empty()))
}

fn failed(e: &EngineError) -> ApiError {
    ApiError::internal(e.to_string())
}

fn engine_ended() -> ApiError {
    ApiError::internal("the engine has ended; start the server again")
}
