//! `/health`: whether the process answers, with all processes of a divided model. `/ready`: whether the server accepts
//! requests. `/version` and `/metrics`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use serde_json::{Value, json};

use super::ApiError;
use super::queue::refuse_if_stopping;
use super::shared::ServerState;

/// Status 200, or 503 if another process of a divided model has failed or sends no heartbeats.
pub(crate) async fn health(State(shared): State<Arc<ServerState>>) -> Result<StatusCode, ApiError> {
    let heartbeats = shared.model.divided.as_ref().map_or(Ok(()), |divided| divided.ranks.check_heartbeats());
    heartbeats.map(|()| StatusCode::OK).map_err(|e| ApiError::service_unavailable(&e.to_string()))
}

/// Status 200, or 503 while the server stops, after the engine has failed, and where `/health` is 503.
pub(crate) async fn ready(state: State<Arc<ServerState>>) -> Result<StatusCode, ApiError> {
    refuse_if_stopping(&state.0)?;
    health(state).await
}

/// The version of this program.
pub(crate) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// The metrics in the text format of Prometheus.
pub(crate) async fn metrics(State(shared): State<Arc<ServerState>>) -> Result<impl IntoResponse, ApiError> {
    let text = tokio::task::spawn_blocking(move || shared.metrics.prometheus_text()).await;
    let text = text.map_err(|_| ApiError::internal("reading the metrics has panicked"))?;
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text))
}
