//! The server: its state, its routes, and its end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use reel_engine::TokenText;
use subtle::ConstantTimeEq;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::api::{self, ApiError};
use crate::engine_thread::{self, EngineQueue};
use crate::{Limits, RequestMedia, ServeError, ServeOptions, ServedModel};

/// How often the server looks whether it should stop.
const STOP_INTERVAL: Duration = Duration::from_millis(50);

/// What all handlers share.
pub(crate) struct Shared {
    pub(crate) model: Arc<ServedModel>,
    pub(crate) text: TokenText,
    pub(crate) media: RequestMedia,
    pub(crate) limits: Limits,
    pub(crate) engine: EngineQueue,
    /// One permit for each request that may be answered or wait.
    pub(crate) permits: Arc<Semaphore>,
    /// One permit for each request that may be encoded at the same time: decoding videos takes memory.
    pub(crate) encoders: Arc<Semaphore>,
    /// Seconds since 1970 at the start of the server.
    pub(crate) started: u64,
    api_keys: Vec<String>,
    stop: Arc<AtomicBool>,
}

impl Shared {
    /// Whether new requests are answered.
    pub(crate) fn is_ready(&self) -> bool {
        !self.stop.load(Ordering::SeqCst) && self.engine.is_alive()
    }

    /// Whether a request may be answered: it carries a valid key, or none is needed. The comparison takes the same
    /// time for every wrong key of the right length.
    fn accepts(&self, authorization: Option<&str>) -> bool {
        let given = authorization.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
        let is_given = |key: &String| bool::from(key.as_bytes().ct_eq(given.as_bytes()));
        self.api_keys.is_empty() || self.api_keys.iter().filter(|key| is_given(key)).count() > 0
    }
}

/// Serves a model until `options.stop` is set and all requests are answered. Calls `on_listening` with the address once
/// connections are accepted.
///
/// # Errors
/// The address cannot be listened on; the engine cannot start; the engine's thread has panicked.
pub fn serve(
    model: ServedModel,
    options: ServeOptions,
    on_listening: impl FnOnce(SocketAddr),
) -> Result<(), ServeError> {
    let model = Arc::new(model);
    let text = TokenText::new(&model.folder);
    let (engine, thread) = engine_thread::start(model.clone(), text.clone(), options.limits)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let encoders = std::thread::available_parallelism().map_or(1, usize::from);
    let shared = Arc::new(Shared {
        model,
        text,
        media: options.media,
        limits: options.limits,
        engine,
        permits: Arc::new(Semaphore::new(options.limits.requests)),
        encoders: Arc::new(Semaphore::new(encoders)),
        started: api::seconds_since_1970(),
        api_keys: options.api_keys,
        stop: options.stop,
    });
    let served = runtime.block_on(listen(options.address, shared, on_listening));
    // Ends what is left of the handlers, and with them the last clones of the queue; then the engine's thread ends.
    runtime.shutdown_timeout(STOP_INTERVAL);
    let engine = thread.join().map_err(|_| ServeError::EnginePanicked)?;
    served?;
    Ok(engine?)
}

async fn listen(
    address: SocketAddr,
    shared: Arc<Shared>,
    on_listening: impl FnOnce(SocketAddr),
) -> Result<(), ServeError> {
    let cannot_listen = |cause| ServeError::Address { address, cause };
    let listener = TcpListener::bind(address).await.map_err(cannot_listen)?;
    on_listening(listener.local_addr()?);
    let stopped = wait_for_stop(shared.clone());
    Ok(axum::serve(listener, routes(shared)).with_graceful_shutdown(stopped).await?)
}

/// Ends when the server is asked to stop, or when the engine's thread has ended.
async fn wait_for_stop(shared: Arc<Shared>) {
    while shared.is_ready() {
        tokio::time::sleep(STOP_INTERVAL).await;
    }
}

fn routes(shared: Arc<Shared>) -> Router {
    let with_key = Router::new()
        .route("/v1/models", get(api::models::list))
        .route("/v1/models/{*name}", get(api::models::one))
        .route("/v1/chat/completions", post(api::chat::complete))
        .layer(DefaultBodyLimit::max(shared.limits.body_bytes))
        .layer(middleware::from_fn_with_state(shared.clone(), check_key));
    Router::new()
        .route("/health", get(api::health::health))
        .route("/ready", get(api::health::ready))
        .merge(with_key)
        .fallback(api::unknown_path)
        .method_not_allowed_fallback(api::wrong_method)
        .with_state(shared)
}

async fn check_key(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let authorization = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    match shared.accepts(authorization) {
        true => next.run(request).await,
        false => ApiError::wrong_key().into_response(),
    }
}
