//! What all handlers share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use reel_engine::GrammarCompiler;
use reel_input::TokenId;
use subtle::ConstantTimeEq;
use tokio::sync::{Mutex as AsyncMutex, OwnedSemaphorePermit, Semaphore};

use super::media_turns::MediaTurns;
use super::named_adapters::AdapterNames;
use super::{ApiError, seconds_since_1970};
use crate::engine_thread::EngineQueue;
use crate::http::BodyMemory;
use crate::metrics::Metrics;
use crate::settings::{RequestMedia, ServeOptions, ServedModel, ServerLimits, ServerProfiler};

/// The maximum number of grammars that are compiled at the same time.
pub(crate) const MAX_COMPILATIONS: usize = 2;

/// What all handlers share.
pub(crate) struct ServerState {
    pub(crate) model: Arc<ServedModel>,
    /// The compiler of grammars, which the first request with a grammar creates.
    pub(crate) grammar_compiler: OnceLock<GrammarCompiler>,
    /// Semaphore with one permit for each grammar that may be compiled at the same time.
    pub(crate) grammar_permits: Arc<Semaphore>,
    pub(crate) media: RequestMedia,
    pub(crate) limits: ServerLimits,
    pub(crate) bodies: BodyMemory,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) engine: EngineQueue,
    /// The LoRA adapters that requests can name.
    pub(crate) adapters: AdapterNames,
    /// Semaphore with one permit. A request that replaces the weights or loads an adapter must hold the permit.
    pub(crate) weight_changes: Arc<Semaphore>,
    /// The name of the folder of the weights in service, and the seconds since 1970 when they were loaded.
    pub(crate) weights: Mutex<(String, u64)>,
    /// Semaphore with one permit for each request that may run or wait at the same time.
    pub(crate) permits: Arc<Semaphore>,
    /// The turns of requests with media, of which a limited number is encoded at the same time, because decoding videos
    /// takes memory.
    pub(crate) media_turns: MediaTurns,
    /// The length of the longest token in bytes. A text of n bytes has at least n divided by this length tokens.
    pub(crate) longest_token_bytes: usize,
    /// Seconds since 1970 at the start of the server.
    pub(crate) started: u64,
    /// The valid API keys. If the list is empty, requests need no key.
    pub(crate) api_keys: Vec<String>,
    /// Records profiles; `None` if the server was started without a folder for them.
    pub(crate) profiler: Option<Arc<dyn ServerProfiler>>,
    /// Whether a profile is being recorded.
    pub(crate) is_profiling: AsyncMutex<bool>,
    /// Whether the server is to stop.
    pub(crate) stop: Arc<AtomicBool>,
}

impl ServerState {
    /// The state of a server that starts with the weights of a folder `weights`.
    pub(crate) fn new(
        model: Arc<ServedModel>,
        weights: String,
        options: &ServeOptions,
        engine: EngineQueue,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (limits, started) = (options.limits, seconds_since_1970());
        let tokenizer = &model.folder.tokenizer;
        let token_lengths = (0..model.folder.config.text.vocab_size as u32).map(|id| tokenizer.token_bytes(id).len());
        let longest_token_bytes = token_lengths.max().unwrap_or(0).max(1);
        Self {
            model,
            grammar_compiler: OnceLock::new(),
            grammar_permits: Arc::new(Semaphore::new(MAX_COMPILATIONS)),
            media: options.media.clone(),
            limits,
            bodies: BodyMemory::new(limits.body_bytes, options.connections.read_timeout),
            metrics,
            engine,
            adapters: AdapterNames::default(),
            weight_changes: Arc::new(Semaphore::new(1)),
            weights: Mutex::new((weights, started)),
            permits: Arc::new(Semaphore::new(limits.requests)),
            media_turns: MediaTurns::new(limits.encoders),
            longest_token_bytes,
            started,
            api_keys: options.api_keys.clone(),
            profiler: options.profiler.clone(),
            is_profiling: AsyncMutex::new(false),
            stop: options.stop.clone(),
        }
    }

    /// Whether the server accepts new requests.
    pub(crate) fn is_ready(&self) -> bool {
        !self.stop.load(Ordering::SeqCst) && self.engine.is_alive()
    }

    /// The number of positions for prompt and answer.
    pub(crate) fn max_positions(&self) -> usize {
        self.model.folder.config.text.max_position_embeddings
    }

    /// Takes `n` permits of the server's limit of running and waiting requests. Dropping the result returns them.
    pub(crate) fn request_permits(&self, n: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        let n = u32::try_from(n).unwrap_or(u32::MAX);
        self.permits.clone().try_acquire_many_owned(n).map_err(|_| {
            ApiError::too_many_requests(
                "too many requests are running or waiting; try again later, or raise --max-requests",
            )
        })
    }

    /// The name of the folder of the weights in service, and the seconds since 1970 when they were loaded.
    pub(crate) fn weights_name_and_load_time(&self) -> (String, u64) {
        self.weights.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Records that the weights in service are now those of the folder `name`.
    pub(crate) fn set_weights_name(&self, name: String) {
        *self.weights.lock().unwrap_or_else(PoisonError::into_inner) = (name, seconds_since_1970());
    }

    /// Refuses token ids that the model does not have. `field` is the request field with the ids.
    pub(crate) fn check_token_ids(&self, field: &str, ids: &[TokenId]) -> Result<(), ApiError> {
        let size = self.model.folder.config.text.vocab_size;
        match ids.iter().find(|&&id| id as usize >= size) {
            None => Ok(()),
            Some(id) => {
                let what =
                    format!("{field}: has the token id {id}, but the model has {size} tokens; give ids below {size}");
                Err(ApiError::bad_request(what, Some(field.into())))
            }
        }
    }

    /// Whether a request may be answered: it carries a valid key, or the server has no keys. A comparison with a wrong
    /// key of the right length always takes the same time.
    pub(crate) fn is_authorized(&self, authorization: Option<&str>) -> bool {
        let parts = authorization.and_then(|value| value.split_once(' '));
        let given = parts.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("Bearer")).map_or("", |(_, key)| key.trim());
        let is_given = |key: &String| bool::from(key.as_bytes().ct_eq(given.as_bytes()));
        self.api_keys.is_empty() || self.api_keys.iter().filter(|key| is_given(key)).count() > 0
    }
}
