//! Sends chat requests and retries them.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::diagnostic::{Diagnostic, redact_urls};
use serde_json::Value;
use ureq::Agent;

use crate::client::budget::ReservationError;
use crate::client::pace::{RateLimiter, sleep};
use crate::client::reply::{ModelAnswer, describe_error, parse_answer};
use crate::client::request::PromptSize;
use crate::client::retry::{backoff_delay, is_retryable, parse_retry_after};
use crate::client::url::check_http_url;
use crate::client::{ChatRequest, ClientOptions};

/// Maximum length of a reply in bytes.
const MAX_REPLY_BYTES: u64 = 16 << 20;
/// The time that the caller waits beyond an attempt's deadline. Normally the attempt's own thread ends the attempt at
/// the deadline.
const DEADLINE_GRACE: Duration = Duration::from_secs(10);
/// Interval at which a wait checks the stop flag.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// The run is ended after this many consecutive requests have failed to reach the server.
const MAX_UNREACHED: u32 = 3;
/// The run is ended after this many consecutive requests have failed for any reason, because more requests would cost
/// time and money.
const MAX_FAILED: u32 = 100;
/// A wait that the server asks for (`Retry-After`) is printed if it is at least this long.
const MIN_PRINTED_WAIT: Duration = Duration::from_secs(2);

/// The answer to a request.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatAnswer {
    /// The text of the answer.
    pub text: String,
    /// The reasoning before the answer, if the server returns it separately (`reasoning_content`).
    pub reasoning: Option<String>,
    /// The reason why the answer ends: `stop`, `length`, ….
    pub finish_reason: Option<String>,
    /// The name of the answering model, as the server reports it.
    pub model: String,
    /// Number of tokens of the prompt; 0 if the server does not state it.
    pub prompt_tokens: u64,
    /// Number of tokens of the answer; 0 if the server does not state it.
    pub completion_tokens: u64,
    /// Cost of all attempts in dollars.
    pub cost: f64,
    /// Number of attempts, including the successful one.
    pub attempts: u32,
    /// Seconds from the first attempt to the answer, including waits.
    pub seconds: f64,
}

/// The reason why a request has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// Every attempt failed, the last one for a reason that may be temporary.
    Exhausted,
    /// The server rejects this request, and would reject it again.
    Refused,
    /// No request can succeed: the key, the URL or the model name is wrong, no server answers at the URL, or 100
    /// consecutive requests have failed.
    Unusable,
    /// The request may cost more than the unspent rest of the cap.
    Budget,
    /// The caller has set the stop flag.
    Stopped,
}

/// The failure of a request: it got no answer.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatFailure {
    /// The kind of the failure, which says whether other requests can succeed.
    pub kind: FailureKind,
    /// One line: the URL, what is wrong, and what to do.
    pub message: String,
    /// The number of attempts made.
    pub attempts: u32,
    /// Cost of all attempts in dollars.
    pub cost: f64,
}

impl fmt::Display for ChatFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ChatFailure {}

/// A client of one server. Threads can share a client.
#[derive(Debug)]
pub struct ChatClient {
    options: ClientOptions,
    /// The address of the API call: `URL/chat/completions`.
    address: String,
    agent: Agent,
    pace: RateLimiter,
    /// The model's name, once it is known.
    model: Mutex<Option<String>>,
    /// Number of consecutive requests that did not reach the server in any attempt.
    unreached: AtomicU32,
    /// Number of consecutive requests that failed.
    failed: AtomicU32,
    /// The largest ratio so far of the tokens that the server has counted in a prompt to the upper bound that was
    /// estimated for this prompt. The ratio is stored in thousandths and is at least 1000.
    bound_scale: AtomicU64,
}

/// The outcome of one attempt.
enum Attempt {
    Answer(ModelAnswer),
    /// The attempt failed, but a later attempt may succeed.
    Retry {
        what: String,
        help: &'static str,
        wait: Option<Duration>,
        reached: bool,
        may_be_charged: bool,
    },
    Fail {
        kind: FailureKind,
        what: String,
        help: &'static str,
    },
}

/// A request in progress, whose attempts are running or still to come.
struct Running<'r> {
    body: String,
    size: PromptSize,
    max_tokens: u32,
    begun: Instant,
    attempts: u32,
    cost: f64,
    stop: &'r AtomicBool,
}

impl<'r> Running<'r> {
    /// A request without a body, which costs nothing.
    fn without_body(stop: &'r AtomicBool) -> Self {
        let (body, size, begun) = (String::new(), PromptSize::default(), Instant::now());
        Self { body, size, max_tokens: 0, begun, attempts: 0, cost: 0.0, stop }
    }
}

impl ChatClient {
    /// Creates a client with these options. Sends nothing yet.
    ///
    /// # Errors
    /// The URL is not an HTTP URL, the API key is empty or has characters that a header cannot have, a rate is not a
    /// positive number, or the number of attempts is 0.
    pub fn new(options: ClientOptions) -> Result<Self, ChatFailure> {
        let invalid = |location: &str, what: String, help: &str| ChatFailure {
            kind: FailureKind::Unusable,
            message: Diagnostic::new(location, what, help).to_string(),
            attempts: 0,
            cost: 0.0,
        };
        check_http_url(&options.url).map_err(|(what, help)| invalid("the URL of the server", what, help))?;
        if options.api_key.as_deref().is_some_and(|key| key.is_empty() || !key.bytes().all(|b| b.is_ascii_graphic())) {
            let what = "is empty or has characters that a header cannot have".to_string();
            return Err(invalid("the API key", what, "give the API key exactly as the server's operator issued it"));
        }
        let rates =
            [("requests per minute", options.requests_per_minute), ("tokens per minute", options.tokens_per_minute)];
        for (name, rate) in rates {
            if rate.is_some_and(|rate| !rate.is_finite() || rate <= 0.0) {
                return Err(invalid(name, format!("is {}", rate.unwrap_or_default()), "give a number above 0"));
            }
        }
        if options.max_attempts == 0 {
            return Err(invalid("attempts", "is 0".into(), "give 1 or more"));
        }
        let config =
            Agent::config_builder().timeout_global(Some(options.timeout)).http_status_as_error(false).max_redirects(0);
        Ok(Self {
            address: format!("{}/chat/completions", options.url.trim_end_matches('/')),
            agent: config.build().into(),
            pace: RateLimiter::new(options.requests_per_minute, options.tokens_per_minute),
            model: Mutex::new(options.model.clone()),
            unreached: AtomicU32::new(0),
            failed: AtomicU32::new(0),
            bound_scale: AtomicU64::new(1000),
            options,
        })
    }

    /// The name of the model: the name in the options, else the name of the first model that the server lists.
    ///
    /// # Errors
    /// The server does not answer, or lists no model.
    pub fn model(&self, stop: &AtomicBool) -> Result<String, ChatFailure> {
        // The lock is held during the request to the server, so that only one thread sends it.
        let mut model = self.model.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(name) = &*model {
            return Ok(name.clone());
        }
        let models = self.list_models(self.options.max_attempts, stop)?;
        let Some(name) = models.pointer("/data/0/id").and_then(Value::as_str) else {
            let (what, help) = ("lists no model (GET /models)", "give the model's name");
            return Err(self.failure(&Running::without_body(stop), FailureKind::Unusable, what, help));
        };
        *model = Some(name.to_string());
        Ok(name.to_string())
    }

    /// The entry of the model `name` in the server's list of models; null if the server has no list, or no such entry.
    pub fn model_entry(&self, name: &str, stop: &AtomicBool) -> Value {
        let models = self.list_models(1, stop).unwrap_or_default();
        let mut entries = models["data"].as_array().into_iter().flatten();
        entries.find(|entry| entry["id"] == name).cloned().unwrap_or_default()
    }

    /// The largest cost in dollars that one attempt of a request can have.
    pub fn max_cost(&self, request: &ChatRequest) -> f64 {
        self.max_attempt_cost(PromptSize::of_messages(&request.messages), request.max_tokens)
    }

    /// Returns the answer to a request.
    ///
    /// # Errors
    /// The request got no answer, for one of the reasons in [`FailureKind`].
    pub fn chat(&self, request: &ChatRequest, stop: &AtomicBool) -> Result<ChatAnswer, ChatFailure> {
        self.chat_parsed(request, stop, |_| Ok(())).map(|(_, answer)| answer)
    }

    /// Returns the answer to a request, and the result of `parse` for its text. If `parse` returns an error, the
    /// request is sent again. The error of `parse` completes the message `gave an answer that …`, for example "is not
    /// a JSON object".
    ///
    /// # Errors
    /// The request got no answer, for one of the reasons in [`FailureKind`]. If `parse` returns an error at the last
    /// attempt, the kind is [`FailureKind::Exhausted`].
    pub fn chat_parsed<T>(
        &self,
        request: &ChatRequest,
        stop: &AtomicBool,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<(T, ChatAnswer), ChatFailure> {
        let model = self.model(stop)?;
        let mut running = Running {
            body: request.request_body(&model).to_string(),
            size: PromptSize::of_messages(&request.messages),
            max_tokens: request.max_tokens,
            begun: Instant::now(),
            attempts: 0,
            cost: 0.0,
            stop,
        };
        let mut reached_once = false;
        loop {
            let (what, help, wait) = match self.attempt(&mut running)? {
                Attempt::Answer(reply) => {
                    self.unreached.store(0, Ordering::Relaxed);
                    reached_once = true;
                    match parse(&reply.text) {
                        Ok(parsed) => {
                            self.failed.store(0, Ordering::Relaxed);
                            return Ok((parsed, running.answer(reply, &model)));
                        }
                        Err(reason) => {
                            let help = match reply.finish_reason.as_deref() {
                                Some("length") => "allow it more tokens",
                                _ => "check that the model follows its prompt",
                            };
                            (format!("gave an answer that {reason}"), help, None)
                        }
                    }
                }
                Attempt::Fail { kind, what, help } => return Err(self.failed(&running, kind, &what, help)),
                Attempt::Retry { what, help, wait, reached, .. } => {
                    reached_once |= reached;
                    (what, help, wait)
                }
            };
            if running.attempts >= self.options.max_attempts {
                return Err(self.exhausted(&running, reached_once, &what, help));
            }
            match wait {
                // All requests of this client pause, not only this one.
                Some(wait) if !wait.is_zero() => {
                    let is_longer = self.pace.pause(wait);
                    if is_longer && self.options.prints_waits && wait >= MIN_PRINTED_WAIT {
                        let (url, seconds) = (&self.options.url, wait.as_secs_f64().ceil());
                        crate::diagnostic::note!("{}: asks to wait {seconds} s (Retry-After)", redact_urls(url));
                    }
                }
                _ if sleep(backoff_delay(self.options.first_wait, running.attempts), stop) => {}
                _ => return Err(self.stopped(&running)),
            }
        }
    }

    /// Makes one attempt as soon as the rate limits and the cap on cost allow it, and charges its cost.
    fn attempt(&self, running: &mut Running<'_>) -> Result<Attempt, ChatFailure> {
        let options = &self.options;
        let bound = self.max_attempt_cost(running.size, running.max_tokens);
        let tokens = running.size.estimated_tokens(options.image_tokens) + u64::from(running.max_tokens);
        if !self.pace.wait_for_permission(tokens as f64, running.stop) {
            return Err(self.stopped(running));
        }
        let reservation = options.budget.reserve(bound, running.stop).map_err(|reason| match reason {
            ReservationError::Stopped => self.stopped(running),
            ReservationError::CapReached => {
                let (spent, cap) = (options.budget.spent(), options.budget.cap().unwrap_or_default());
                let what =
                    format!("gets no further request: of ${cap}, ${spent:.6} are spent, and the next request may cost up to ${bound:.6}");
                self.failure(running, FailureKind::Budget, &what, "raise the cap, or ask for fewer tokens")
            }
        })?;
        running.attempts += 1;
        let Some(attempt) = self.post(running) else {
            reservation.charge(bound);
            running.cost += bound;
            return Err(self.stopped(running));
        };
        let cost = match &attempt {
            Attempt::Answer(reply) => match reply.usage {
                Some((prompt, completion)) => {
                    self.pace.correct_token_estimate(tokens as f64, (prompt + completion) as f64);
                    self.note_prompt_tokens(running.size, prompt);
                    options.prices.cost(prompt, completion)
                }
                None => bound,
            },
            Attempt::Retry { may_be_charged: true, .. } => bound,
            Attempt::Retry { .. } | Attempt::Fail { .. } => {
                self.pace.correct_token_estimate(tokens as f64, 0.0);
                0.0
            }
        };
        reservation.charge(cost);
        running.cost += cost;
        Ok(attempt)
    }

    /// Returns an upper bound of the cost of an attempt in dollars. A prompt with more tokens than its bound raises
    /// the bounds of later prompts.
    fn max_attempt_cost(&self, size: PromptSize, max_tokens: u32) -> f64 {
        let scale = self.bound_scale.load(Ordering::Relaxed) as f64 / 1000.0;
        let prompt = (size.max_tokens(self.options.image_tokens) as f64 * scale).ceil() as u64;
        self.options.prices.cost(prompt, u64::from(max_tokens))
    }

    fn note_prompt_tokens(&self, size: PromptSize, tokens: u64) {
        let bound = size.max_tokens(self.options.image_tokens).max(1);
        self.bound_scale.fetch_max(tokens.saturating_mul(1000).div_ceil(bound), Ordering::Relaxed);
    }

    /// Sends the request once. Returns `None` if the stop flag was set before the reply arrived.
    fn post(&self, running: &Running<'_>) -> Option<Attempt> {
        let (address, body) = (self.address.clone(), running.body.clone());
        let result = self.send(running.stop, move |agent, key| {
            let mut request = agent.post(&address).header("content-type", "application/json");
            if let Some(key) = key {
                request = request.header("authorization", format!("Bearer {key}"));
            }
            read_reply(request.send(&body))
        });
        match result {
            Ok(reply) => Some(judge(reply)),
            Err(SendError::Stopped) => None,
            Err(SendError::Transport { what, reached, help }) => {
                Some(Attempt::Retry { what, help, wait: None, reached, may_be_charged: reached })
            }
        }
    }

    /// Sends a request on another thread, so that the stop flag can end the wait for the reply. That thread ends when
    /// the request ends, at the latest at the request's deadline.
    fn send(
        &self,
        stop: &AtomicBool,
        request: impl FnOnce(&Agent, Option<&str>) -> Result<Reply, SendError> + Send + 'static,
    ) -> Result<Reply, SendError> {
        let (sender, receiver) = sync_channel(1);
        let (agent, key) = (self.agent.clone(), self.options.api_key.clone());
        std::thread::Builder::new()
            .name("chat request".into())
            .spawn(move || drop(sender.send(request(&agent, key.as_deref()))))
            .map_err(|e| SendError::Transport {
                what: format!("cannot be requested: {e}"),
                reached: false,
                help: "free some memory, or lower the number of concurrent requests",
            })?;
        let deadline = Instant::now() + self.options.timeout + DEADLINE_GRACE;
        loop {
            match receiver.recv_timeout(STOP_CHECK_INTERVAL) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Timeout) if stop.load(Ordering::Relaxed) => return Err(SendError::Stopped),
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                Err(_) => return Err(timed_out()),
            }
        }
    }

    /// Gets the server's list of models.
    fn list_models(&self, max_attempts: u32, stop: &AtomicBool) -> Result<Value, ChatFailure> {
        let address = format!("{}/models", self.options.url.trim_end_matches('/'));
        let running = Running::without_body(stop);
        let unusable = |what: &str, help: &str| self.failure(&running, FailureKind::Unusable, what, help);
        for attempt in 1.. {
            let address = address.clone();
            let result = self.send(stop, move |agent, key| {
                let mut request = agent.get(&address);
                if let Some(key) = key {
                    request = request.header("authorization", format!("Bearer {key}"));
                }
                read_reply(request.call())
            });
            let is_last = attempt >= max_attempts;
            match result {
                Ok(Reply { status: 200, body, .. }) => return Ok(serde_json::from_str(&body).unwrap_or_default()),
                Ok(reply) if is_last || !is_retryable(reply.status) => match judge(reply) {
                    Attempt::Retry { what, help, .. } | Attempt::Fail { what, help, .. } => {
                        return Err(unusable(&format!("{what} (GET /models)"), help));
                    }
                    Attempt::Answer(_) => {}
                },
                Err(SendError::Stopped) => return Err(self.stopped(&running)),
                Err(SendError::Transport { what, help, .. }) if is_last => return Err(unusable(&what, help)),
                Ok(_) | Err(SendError::Transport { .. }) => {}
            }
            if !sleep(backoff_delay(self.options.first_wait, attempt), stop) {
                break;
            }
        }
        Err(self.stopped(&running))
    }

    /// Returns the failure for a request whose last attempt failed.
    fn exhausted(&self, running: &Running<'_>, reached: bool, what: &str, help: &str) -> ChatFailure {
        let unreached = match reached {
            true => {
                self.unreached.store(0, Ordering::Relaxed);
                0
            }
            false => self.unreached.fetch_add(1, Ordering::Relaxed) + 1,
        };
        let kind = if unreached >= MAX_UNREACHED { FailureKind::Unusable } else { FailureKind::Exhausted };
        let what = match running.attempts {
            1 => what.to_string(),
            attempts => format!("{what} (the last of {attempts} attempts)"),
        };
        self.failed(running, kind, &what, help)
    }

    /// Returns the failure for a request, and counts it. After `MAX_FAILED` consecutive failures the run is ended
    /// (`FailureKind::Unusable`).
    fn failed(&self, running: &Running<'_>, kind: FailureKind, what: &str, help: &str) -> ChatFailure {
        let failed = self.failed.fetch_add(1, Ordering::Relaxed) + 1;
        match kind {
            FailureKind::Exhausted | FailureKind::Refused if failed >= MAX_FAILED => {
                let what = format!("{what}; {failed} requests in a row have failed");
                self.failure(running, FailureKind::Unusable, &what, help)
            }
            _ => self.failure(running, kind, what, help),
        }
    }

    fn stopped(&self, running: &Running<'_>) -> ChatFailure {
        self.failure(running, FailureKind::Stopped, "was stopped before it answered", "start the run again")
    }

    fn failure(&self, running: &Running<'_>, kind: FailureKind, what: &str, help: &str) -> ChatFailure {
        let message = Diagnostic::new(&self.options.url, what, help).to_string();
        ChatFailure { kind, message, attempts: running.attempts, cost: running.cost }
    }
}

impl Running<'_> {
    fn answer(&self, reply: ModelAnswer, model: &str) -> ChatAnswer {
        let (prompt_tokens, completion_tokens) = reply.usage.unwrap_or_default();
        ChatAnswer {
            text: reply.text,
            reasoning: reply.reasoning,
            finish_reason: reply.finish_reason,
            model: reply.model.unwrap_or_else(|| model.to_string()),
            prompt_tokens,
            completion_tokens,
            cost: self.cost,
            attempts: self.attempts,
            seconds: self.begun.elapsed().as_secs_f64(),
        }
    }
}

/// Decides by status and body whether a reply is an answer, a failure that may be temporary, or a final failure.
fn judge(reply: Reply) -> Attempt {
    let Reply { status, body, wait } = reply;
    if status == 200 {
        return match parse_answer(&body) {
            Ok(answer) => Attempt::Answer(answer),
            Err((what, help)) => Attempt::Retry { what, help, wait: None, reached: true, may_be_charged: true },
        };
    }
    let said = describe_error(&body);
    let said = if said.is_empty() { said } else { format!(": {said}") };
    let what = format!("replied with status {status}{said}");
    if is_retryable(status) {
        let help = if status == 429 {
            "lower the rate limits or the number of concurrent requests"
        } else {
            "check the log of the server"
        };
        return Attempt::Retry { what, help, wait, reached: true, may_be_charged: false };
    }
    let (kind, help) = match status {
        401 | 403 => (FailureKind::Unusable, "check the API key"),
        402 => (FailureKind::Unusable, "check that the account at the server's operator has credit"),
        300..=399 => (FailureKind::Unusable, "give the URL that the server redirects to"),
        404 | 405 => (FailureKind::Unusable, "check the URL (it often ends in /v1) and the model's name"),
        _ => (FailureKind::Refused, "check the request against the server's limits"),
    };
    Attempt::Fail { kind, what, help }
}

/// A reply of the server, with any HTTP status.
struct Reply {
    status: u16,
    body: String,
    /// The wait that the reply's `Retry-After` header asks for.
    wait: Option<Duration>,
}

enum SendError {
    Stopped,
    /// No reply arrived. `reached` is true if the request may have reached the server.
    Transport {
        what: String,
        reached: bool,
        help: &'static str,
    },
}

fn timed_out() -> SendError {
    let help = "allow more time for a request, or check that the server runs";
    SendError::Transport { what: "timed out".into(), reached: true, help }
}

fn read_reply(result: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Reply, SendError> {
    let mut response = result.map_err(transport_error)?;
    let wait = response.headers().get("retry-after").and_then(|value| value.to_str().ok());
    let wait = wait.and_then(|value| parse_retry_after(value, SystemTime::now()));
    let status = response.status().as_u16();
    let body = response.body_mut().with_config().limit(MAX_REPLY_BYTES).lossy_utf8(true).read_to_string();
    Ok(Reply { status, body: body.map_err(transport_error)?, wait })
}

fn transport_error(e: ureq::Error) -> SendError {
    let help = "check the URL, and that the server runs";
    let not_reached = match &e {
        ureq::Error::Timeout(ureq::Timeout::Resolve | ureq::Timeout::Connect) | ureq::Error::HostNotFound => true,
        ureq::Error::ConnectionFailed => true,
        ureq::Error::Io(io) => io.kind() == std::io::ErrorKind::ConnectionRefused,
        _ => false,
    };
    match e {
        ureq::Error::Timeout(_) if !not_reached => timed_out(),
        e => {
            let what =
                if not_reached { format!("cannot be reached ({e})") } else { format!("broke the connection ({e})") };
            SendError::Transport { what, reached: !not_reached, help }
        }
    }
}
