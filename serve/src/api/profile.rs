//! `POST /start_profile` and `POST /stop_profile`, as in vLLM: records a trace of the time between the two requests.
//! The bodies are not read.
//!
//! ```text
//! start    between two steps of the engine: ranges and launches are recorded from now on    status 404, 409
//! stop     between two steps: the recording ends; a blocking thread writes the file         status 404, 409
//! ```

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::ApiError;
use super::queue::refuse_if_stopping;
use super::shared::ServerState;
use crate::settings::ServerProfiler;

/// `POST /start_profile`
pub(crate) async fn start_profile(State(shared): State<Arc<ServerState>>) -> Result<Json<Value>, ApiError> {
    refuse_if_stopping(&shared)?;
    let profiler = profiler(&shared)?;
    finished(tokio::spawn(begin(shared, profiler))).await
}

/// `POST /stop_profile`
pub(crate) async fn stop_profile(State(shared): State<Arc<ServerState>>) -> Result<Json<Value>, ApiError> {
    let profiler = profiler(&shared)?;
    finished(tokio::spawn(end(shared, profiler))).await
}

/// Waits for a separate task. The task continues even if the client disconnects.
async fn finished(task: JoinHandle<Result<Json<Value>, ApiError>>) -> Result<Json<Value>, ApiError> {
    task.await.map_err(|_| ApiError::internal("the profiler has panicked"))?
}

async fn begin(shared: Arc<ServerState>, profiler: Arc<dyn ServerProfiler>) -> Result<Json<Value>, ApiError> {
    let mut is_profiling = shared.is_profiling.lock().await;
    if *is_profiling {
        return Err(ApiError::conflict("a profile is being recorded already; end it with POST /stop_profile"));
    }
    let model = shared.model.clone();
    on_engine_thread(&shared, move || profiler.start(&model.device, model.dtype)).await?;
    *is_profiling = true;
    Ok(Json(json!({"profiling": true})))
}

async fn end(shared: Arc<ServerState>, profiler: Arc<dyn ServerProfiler>) -> Result<Json<Value>, ApiError> {
    let mut is_profiling = shared.is_profiling.lock().await;
    if !*is_profiling {
        return Err(ApiError::conflict("no profile is being recorded; begin one with POST /start_profile"));
    }
    *is_profiling = false;
    let model = shared.model.clone();
    let write = on_engine_thread(&shared, move || profiler.stop(&model.device)).await?;
    let written = tokio::task::spawn_blocking(write).await;
    let file = written.map_err(|_| ApiError::internal("writing the profile has panicked"))?;
    Ok(Json(json!({"profiling": false, "trace": file.map_err(ApiError::internal)?})))
}

fn profiler(shared: &ServerState) -> Result<Arc<dyn ServerProfiler>, ApiError> {
    let help = "this server records no profiles; start it with --profile-dir DIR";
    shared.profiler.clone().ok_or_else(|| ApiError::not_found(help.into(), None))
}

/// Calls `f` on the engine's thread, between two steps.
async fn on_engine_thread<T: Send + 'static>(
    shared: &ServerState,
    f: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, ApiError> {
    let (done, result) = oneshot::channel();
    // Sending fails only if the request that waits for the result is gone.
    shared.engine.run_on_engine_thread(Box::new(move || drop(done.send(f()))));
    let ended = || ApiError::internal("the engine has ended; start the server again");
    result.await.map_err(|_| ended())?.map_err(ApiError::internal)
}
