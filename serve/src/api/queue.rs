//! The steps of all endpoints that generate text: checks, encoding, the engine's queue, and the answer.
//!
//! ```text
//! check     fields, model, limits of the server                      status 400, 404, 429, 503
//! encode    chat template, media, tokens, on a blocking thread       status 400
//! engine    GenerationJob → Token, …, Finished | Failed
//! answer    one object, or with `stream` one server-sent event per piece of text
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::Json;
use axum::response::{IntoResponse, Response};
use reel_engine::{Completion, TooLongReason, new_tokens_within_positions, resolve_sampling, validate_sampling};
use reel_input::ModelInput;
use reel_input::request::RequestSettings;
use reel_input::sampling::SamplingOptions;
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::unbounded_channel;

use super::answer::{AnswerBuilder, ApiKind, ToolCallRules};
use super::events::{ChoiceEvent, QueuedPrompt, RequestEvents};
use super::fields::{GivenFieldNames, MAX_COMPLETIONS, StreamFields};
use super::responses::ResponseWriter;
use super::shared::ServerState;
use super::stream::AnswerStream;
use super::{ApiError, REQUEST_LOCATION, encoding_error, grammars, models, seconds_since_1970, wrong_field};
use crate::engine_thread::GenerationJob;
use crate::http::{RequestLog, random_number};

/// A request with checked fields.
#[derive(Debug)]
pub(crate) struct CheckedRequest {
    form: ApiKind,
    model: String,
    stream: StreamFields,
    settings: RequestSettings,
    names: GivenFieldNames,
    calls: Option<ToolCallRules>,
    include_reasoning: Option<bool>,
    response: Option<Value>,
    begun: Instant,
    permit: OwnedSemaphorePermit,
    memory: Option<Arc<OwnedSemaphorePermit>>,
}

impl CheckedRequest {
    /// Checks the settings of a request with `prompts` prompts, and takes its permits from the server's limit of
    /// requests. `names` are the field names that the request used for two of the settings.
    ///
    /// # Errors
    /// The server is stopping or has too many requests; the settings are out of range.
    pub(crate) fn new(
        shared: &ServerState,
        form: ApiKind,
        model: String,
        stream: StreamFields,
        (settings, names): (RequestSettings, GivenFieldNames),
        prompts: usize,
    ) -> Result<Self, ApiError> {
        refuse_if_stopping(shared)?;
        if stream.stream && settings.prompt_log_probs.is_some() {
            return Err(wrong_field("prompt_logprobs", "cannot be streamed", "remove it, or set stream to false"));
        }
        let vocab_size = shared.model.folder.config.text.vocab_size;
        settings.check_token_ids(REQUEST_LOCATION, vocab_size).map_err(encoding_error)?;
        let n = settings.n.unwrap_or(1);
        if n * prompts > MAX_COMPLETIONS.min(shared.limits.requests.max(n)) {
            let what = format!("has {prompts} prompts with {n} completions each");
            let most = MAX_COMPLETIONS.min(shared.limits.requests.max(n)) / n;
            return Err(wrong_field(form.prompt_field(), &what, &format!("give {most} prompts or fewer at a time")));
        }
        let sampling = resolve_sampling(settings.sampling, &shared.model.folder.generation);
        validate_sampling(&sampling).map_err(|e| ApiError::bad_request(e.to_string(), None))?;
        let begun = Instant::now();
        let (calls, include_reasoning, response, permit) = (None, None, None, shared.request_permits(prompts)?);
        let memory = None;
        Ok(Self { form, model, stream, settings, names, calls, include_reasoning, response, begun, permit, memory })
    }

    /// Sets the permit for the memory of the request's body, which is held until the grammar is compiled.
    pub(crate) fn with_memory(self, memory: Option<Arc<OwnedSemaphorePermit>>) -> Self {
        Self { memory, ..self }
    }

    /// Sets the rules by which tool calls are found in the answers; `None` for answers of text only.
    pub(crate) fn with_tool_calls(self, calls: Option<ToolCallRules>) -> Self {
        Self { calls, ..self }
    }

    /// Sets where the reasoning of the answers goes: into a field of its own (true), nowhere (false), or into the text
    /// (`None`).
    pub(crate) fn with_reasoning(self, include_reasoning: Option<bool>) -> Self {
        Self { include_reasoning, ..self }
    }

    /// Sets the form of the answer: with `response`, that of the Responses API. `response` has the fields of the
    /// request that the answer repeats.
    pub(crate) fn with_response(self, response: Option<Value>) -> Self {
        Self { response, ..self }
    }

    /// Puts the encoded prompts into the engine's queue, and answers with their completions. A request without a limit
    /// gets `default_tokens` new tokens.
    pub(crate) async fn answer(
        self,
        shared: &Arc<ServerState>,
        log: Arc<RequestLog>,
        prompts: Vec<ModelInput>,
        default_tokens: usize,
    ) -> Result<Response, ApiError> {
        let Self {
            form,
            model,
            stream,
            mut settings,
            names,
            calls,
            include_reasoning,
            response,
            begun,
            permit,
            memory,
        } = self;
        let n = settings.n.unwrap_or(1);
        let grammar = match settings.grammar.clone() {
            Some(spec) => Some(grammars::compile(shared, (spec, memory), names.grammar, n * prompts.len()).await?),
            None => {
                drop(memory);
                None
            }
        };
        // Only the other processes that compute the model need the text of the grammar, which may be long.
        settings.grammar.take_if(|_| shared.model.divided.is_none());
        let deadline = shared.limits.request_time.map(|time| begun + time);
        let prompt_tokens = prompts.iter().map(ModelInput::len).sum();
        let asked = settings.sampling.max_new_tokens.map(|number| (names.max_tokens, number));
        let limit = |prompt: &ModelInput| {
            let limit = new_tokens(shared, form, prompt.len(), asked, default_tokens)?;
            settings.check_min_tokens(REQUEST_LOCATION, limit, names.max_tokens).map_err(encoding_error)?;
            Ok(limit)
        };
        let limits = prompts.iter().map(limit).collect::<Result<Vec<usize>, ApiError>>()?;
        // The last event of a streamed response has the whole response.
        let is_streamed = response.is_none().then_some(stream.stream);
        refuse_many_log_probs(form, &settings, prompt_tokens, limits.iter().sum(), is_streamed)?;
        log.add_prompt_tokens(prompt_tokens);
        let folder = &shared.model.folder;
        let is_reasoning_begun = prompts.first().is_some_and(|p| !folder.begun_thought(&p.input_ids).is_empty());
        // The adapter may have been replaced or unloaded while the prompt was encoded.
        let adapter = models::adapter_of(shared, &model)?;
        let queued: Vec<QueuedPrompt> = prompts
            .into_iter()
            .zip(limits)
            .map(|(prompt, limit)| {
                let sampling = SamplingOptions { max_new_tokens: Some(limit), ..settings.sampling };
                let settings = RequestSettings { sampling, ..settings.clone() };
                enqueue(shared, GenerationJob { prompt, settings, adapter, grammar: grammar.clone(), deadline })
            })
            .collect();
        let choices = n * queued.len();
        let sampling = resolve_sampling(settings.sampling, &shared.model.folder.generation);
        let answer = AnswerBuilder {
            form,
            id: next_id(shared, form),
            created: seconds_since_1970(),
            model,
            prompt_tokens,
            prompt_log_probs: settings.prompt_log_probs.is_some(),
            stop: settings.stop,
            calls,
            include_reasoning,
            is_reasoning_begun,
            stream,
        };
        let response = response.map(|fields| ResponseWriter::new(fields, &answer, &sampling));
        let mut events = RequestEvents::new(queued, n, begun, shared.metrics.clone(), log, form.prompt_field(), permit);
        if stream.stream {
            // Waits for the first event, because an error in it can still change the HTTP status, which is sent
            // before the text.
            let first = events.recv().await?;
            return Ok(AnswerStream::new(answer, response, shared, choices, events).into_response(first));
        }
        if response.is_some() {
            let whole = AnswerStream::new(answer, response, shared, choices, events).whole_response().await?;
            return Ok(Json(whole).into_response());
        }
        let completions = collect(events, choices).await?;
        Ok(Json(answer.whole_answer(&shared.model.folder.tokenizer, &completions)).into_response())
    }
}

/// Maximum number of log-probabilities of an answer. In the JSON of an answer, each takes some 600 bytes of memory.
const MAX_LOG_PROBS: usize = 1 << 18;
/// The maximum for an answer that is streamed, whose log-probabilities take 8 bytes each.
const MAX_STREAMED_LOG_PROBS: usize = 1 << 21;

/// Refuses a request whose answer may have too many log-probabilities. `new_tokens` is the largest number of generated
/// tokens for one completion of each prompt. `is_streamed` is `None` if streaming saves no memory.
fn refuse_many_log_probs(
    form: ApiKind,
    settings: &RequestSettings,
    prompt_tokens: usize,
    new_tokens: usize,
    is_streamed: Option<bool>,
) -> Result<(), ApiError> {
    let n = settings.n.unwrap_or(1);
    let count = |tokens: usize, top: Option<usize>| top.map_or(0, |top| tokens.saturating_mul(n * (top + 1)));
    let of_prompt = count(prompt_tokens, settings.prompt_log_probs);
    let generated = count(new_tokens, settings.top_log_probs);
    let all = of_prompt.saturating_add(generated);
    let most = if is_streamed == Some(true) { MAX_STREAMED_LOG_PROBS } else { MAX_LOG_PROBS };
    if all <= most {
        return Ok(());
    }
    let (field, lower) = match (of_prompt > generated, form) {
        (true, _) => ("prompt_logprobs", "shorten the prompt, or lower prompt_logprobs or n"),
        (false, ApiKind::Chat) => ("top_logprobs", "lower max_tokens, n or top_logprobs"),
        (false, ApiKind::Text) => ("logprobs", "lower max_tokens, n or logprobs, or send fewer prompts"),
    };
    let what = format!("asks for up to {all} log-probabilities, and an answer has at most {most}");
    let helps = is_streamed == Some(false) && all <= MAX_STREAMED_LOG_PROBS && of_prompt == 0;
    let streamed = if helps { ", or set stream" } else { "" };
    Err(wrong_field(field, &what, &format!("{lower}{streamed}")))
}

/// Returns an error if the server takes no further requests.
pub(crate) fn refuse_if_stopping(shared: &ServerState) -> Result<(), ApiError> {
    match shared.is_ready() {
        true => Ok(()),
        false => Err(ApiError::service_unavailable(
            "the server is stopping and takes no further requests; try another server",
        )),
    }
}

fn enqueue(shared: &ServerState, mut job: GenerationJob) -> QueuedPrompt {
    // A prompt without a seed gets a random one.
    job.settings.sampling.seed.get_or_insert_with(random_number);
    let (sender, events) = unbounded_channel();
    let tokens = job.prompt.len();
    shared.engine.send_request(job, sender);
    QueuedPrompt { tokens, events }
}

/// The maximum number of tokens to generate: the number that the request gives, otherwise the default, but at most
/// the positions that the prompt leaves. `asked` is the name and the value of the request's field.
fn new_tokens(
    shared: &ServerState,
    form: ApiKind,
    prompt_tokens: usize,
    asked: Option<(&str, usize)>,
    default_tokens: usize,
) -> Result<usize, ApiError> {
    let positions = shared.max_positions();
    let (field, number) = asked.unzip();
    new_tokens_within_positions(positions, prompt_tokens, number, default_tokens).map_err(|e| {
        let message = match e {
            TooLongReason::Prompt => format!(
                ". However, the prompt has {prompt_tokens} tokens, which leaves none for an answer; shorten the prompt, or take \
                 fewer frames or pixels"
            ),
            TooLongReason::NewTokens { left } => {
                let asked = number.unwrap_or_default();
                format!(
                    ". However, you requested {} tokens ({prompt_tokens} in the {}, {asked} in the completion); shorten the \
                     prompt, or lower {} to {left}",
                    prompt_tokens.saturating_add(asked),
                    form.prompt_field(),
                    field.unwrap_or_default()
                )
            }
        };
        ApiError::prompt_too_long(positions, &message, form.prompt_field())
    })
}

/// Waits for all completions of a request; returns them in the order of the choices.
async fn collect(mut events: RequestEvents, choices: usize) -> Result<Vec<Completion>, ApiError> {
    let mut completions = vec![None; choices];
    while events.unfinished_count() > 0 {
        if let ChoiceEvent::Finished { choice, completion } = events.recv().await? {
            completions[choice] = Some(completion);
        }
    }
    Ok(completions.into_iter().flatten().collect())
}

/// The id of the next answer of this server: a prefix and a running number.
fn next_id(shared: &ServerState, form: ApiKind) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{}-{:x}-{number:x}", form.id_prefix(), shared.started)
}
