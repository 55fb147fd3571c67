//! The server: its routes, its start and its end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_ENCODING};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use reel_support::diagnostic::Diagnostic;
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::{Builder, Runtime};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::api::allowed_hosts::{AllowedHosts, refuse_foreign_hosts};
use crate::api::media_turns::MediaTurns;
use crate::api::shared::{MAX_COMPILATIONS, ServerState};
use crate::api::{self, ApiError, adapters};
use crate::engine_thread::{self, EngineQueue};
use crate::hardware_gauges::HardwareGauges;
use crate::http::{
    AccessLog, ConnectionLimits, observe_request, return_free_memory, serve_connections, usable_connections,
};
use crate::metrics::Metrics;
use crate::settings::{ServeError, ServeOptions, ServedModel, ServedWeights, ServerLimits};

/// How often the server checks whether it should stop.
const STOP_INTERVAL: Duration = Duration::from_millis(50);

/// The time between two returns of freed memory to the system.
const RETURN_INTERVAL: Duration = Duration::from_secs(2);

/// Number of blocking threads beyond those that decode media and compile grammars. They encode texts.
const SPARE_THREADS: usize = 2;

/// Maximum number of clients that wait for their connection to be accepted. The system allows fewer if
/// net.core.somaxconn is lower.
const BACKLOG: u32 = 4096;

/// Serves a model until `options.stop` is set and all requests are answered. Calls `on_listening` with the address once
/// connections are accepted.
///
/// # Errors
/// The server cannot listen on the address; the engine cannot start; the engine's thread has panicked.
pub fn serve(
    model: ServedModel,
    weights: ServedWeights,
    options: ServeOptions,
    on_listening: impl FnOnce(SocketAddr),
) -> Result<(), ServeError> {
    serve_with_engine(model, weights, options, |address, _| on_listening(address))
}

/// Serves a model as [`serve`] does, and passes the queue to the engine to `on_listening`.
pub(crate) fn serve_with_engine(
    model: ServedModel,
    weights: ServedWeights,
    options: ServeOptions,
    on_listening: impl FnOnce(SocketAddr, &EngineQueue),
) -> Result<(), ServeError> {
    let model = Arc::new(model);
    let positions = model.folder.config.text.max_position_embeddings;
    let metrics =
        Arc::new(Metrics::new(&model.name, positions, HardwareGauges::new(&model, options.peak_flops_per_second)));
    let gauges = metrics.engine.clone();
    let (engine, thread) = engine_thread::start(model.clone(), weights.weights, options.limits, gauges)?;
    let runtime = start_runtime(options.limits)?;
    let log = if options.access_log { Some(AccessLog::start()?) } else { None };
    let shared = Arc::new(ServerState::new(model, weights.name, &options, engine, metrics));
    let routes = router(shared.clone(), &options, log.as_ref().map(AccessLog::sender));
    let served = runtime.block_on(async {
        let cannot_listen = |cause| ServeError::Address { address: options.address, cause };
        let listener = listen(options.address).map_err(cannot_listen)?;
        for (name, folder) in &options.adapters {
            let loaded = adapters::load_from_folder(&shared, name, folder, false).await;
            loaded.map_err(|cause| ServeError::Adapter { name: name.clone(), cause: cause.message().into() })?;
        }
        let limits = reported_limits(options.connections);
        on_listening(listener.local_addr()?, &shared.engine);
        serve_connections(listener, routes, limits, options.tls, wait_for_stop(shared)).await;
        Ok::<(), ServeError>(())
    });
    // Drops the remaining handlers. They hold the last clones of the queue, so the engine's thread ends.
    runtime.shutdown_timeout(STOP_INTERVAL);
    let engine = thread.join();
    if let Some(log) = log {
        log.finish();
    }
    served?;
    Ok(engine.map_err(|_| ServeError::EnginePanicked)??)
}

/// Starts the threads that handle requests.
pub(crate) fn start_runtime(limits: ServerLimits) -> std::io::Result<Runtime> {
    let mut threads = Builder::new_multi_thread();
    // The number of threads is limited, because each thread keeps memory of the size of the largest request that it
    // encoded.
    let blocking = MediaTurns::max_decoding(limits.encoders) + MAX_COMPILATIONS + SPARE_THREADS;
    threads.worker_threads(1).max_blocking_threads(blocking).enable_all().build()
}

/// The endpoints with the checks that all requests pass. `log` takes the lines of the access log.
pub(crate) fn router(shared: Arc<ServerState>, options: &ServeOptions, log: Option<SyncSender<String>>) -> Router {
    let mut routes = routes(shared);
    if !options.allowed_origins.is_empty() {
        routes = routes.layer(cors(&options.allowed_origins));
    }
    let hosts = AllowedHosts::new(options).map(Arc::new);
    routes
        .layer(middleware::from_fn_with_state(hosts, refuse_foreign_hosts))
        .layer(middleware::from_fn_with_state(log, observe_request))
}

/// Listens on an address, even if connections of an earlier server on the same port have not timed out yet.
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The limits that the system allows. Prints a note if they are lower than `wanted`.
fn reported_limits(wanted: ConnectionLimits) -> ConnectionLimits {
    let connections = usable_connections(wanted.connections);
    if connections < wanted.connections {
        let wanted = wanted.connections;
        reel_support::diagnostic::note!(
            "--max-connections: is {wanted}, but the limit of open files allows {connections}; raise it with ulimit -n"
        );
    }
    ConnectionLimits { connections, ..wanted }
}

/// Lets web pages of these origins use the server.
fn cors(origins: &[String]) -> CorsLayer {
    let origins: Vec<HeaderValue> = origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()).collect();
    let origin = match origins.iter().any(|origin| origin == "*") {
        true => AllowOrigin::any(),
        false => AllowOrigin::list(origins),
    };
    // The page sends its API key in a header that it sets itself, so browsers need not send credentials (cookies).
    CorsLayer::new()
        .allow_origin(origin)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([HeaderName::from_static("x-request-id")])
}

/// Waits until the server is asked to stop, or until the engine's thread has ended. Meanwhile returns the memory of
/// large bodies to the system.
async fn wait_for_stop(shared: Arc<ServerState>) {
    let mut returned = Instant::now();
    while shared.is_ready() {
        tokio::time::sleep(STOP_INTERVAL).await;
        if returned.elapsed() > RETURN_INTERVAL && shared.bodies.has_freed_much() {
            returned = Instant::now();
            drop(tokio::task::spawn_blocking(return_free_memory));
        }
    }
}

/// The endpoints and their handlers. As in vLLM, endpoints that show neither texts nor the model's answers need no API
/// key.
fn routes(shared: Arc<ServerState>) -> Router {
    let with_key = Router::new()
        .route("/v1/models", get(api::models::list_models))
        .route("/v1/models/{*name}", get(api::models::get_model))
        .route("/v1/chat/completions", post(api::chat::create_chat_completion))
        .route("/v1/responses", post(api::responses::create_response))
        .route("/v1/responses/{id}", get(api::responses::unknown_response).delete(api::responses::unknown_response))
        .route("/v1/completions", post(api::completions::create_completion))
        .route("/tokenize", post(api::tokenize::tokenize))
        .route("/detokenize", post(api::tokenize::detokenize))
        .route("/v1/preview", post(api::preview::preview))
        .layer(middleware::from_fn(refuse_encoded_body))
        .layer(middleware::from_fn_with_state(shared.clone(), check_key));
    let local = Router::new()
        .route("/admin/weights", post(api::admin::replace_weights))
        .route("/v1/load_lora_adapter", post(api::adapters::load_adapter))
        .route("/start_profile", post(api::profile::start_profile))
        .route("/stop_profile", post(api::profile::stop_profile))
        .route("/v1/unload_lora_adapter", post(api::adapters::unload_adapter))
        .layer(middleware::from_fn(refuse_encoded_body))
        .layer(middleware::from_fn_with_state(shared.clone(), check_key))
        // This outer layer runs before the check of the key, so a client on another machine cannot find out whether
        // its key is valid.
        .layer(middleware::from_fn(api::admin::refuse_remote_clients));
    Router::new()
        .route("/health", get(api::health::health))
        .route("/ready", get(api::health::ready))
        .route("/version", get(api::health::version))
        .route("/metrics", get(api::health::metrics))
        .route("/openapi.json", get(api::document::openapi_json))
        .route("/docs", get(api::document::openapi_page))
        .merge(api::page::routes())
        .merge(with_key)
        .merge(local)
        .fallback(api::unknown_path)
        .method_not_allowed_fallback(api::method_not_allowed)
        .with_state(shared)
}

/// Refuses a request with a compressed body, because the server does not decompress bodies.
async fn refuse_encoded_body(request: Request, next: Next) -> Response {
    let codings = request.headers().get_all(CONTENT_ENCODING).into_iter().map(|value| value.as_bytes());
    match codings.into_iter().find(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity")) {
        None => next.run(request).await,
        Some(coding) => {
            let what = format!("is {}, which this server does not decode", String::from_utf8_lossy(coding));
            let diagnostic = Diagnostic::new("header Content-Encoding", what, "send the body as it is, without it");
            ApiError::unreadable_body(StatusCode::UNSUPPORTED_MEDIA_TYPE, diagnostic.to_string()).into_response()
        }
    }
}

async fn check_key(State(shared): State<Arc<ServerState>>, request: Request, next: Next) -> Response {
    let authorization = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    match shared.is_authorized(authorization) {
        true => next.run(request).await,
        false => ApiError::unauthorized().into_response(),
    }
}
