//! `/health`: whether the process answers. `/ready`: whether the server accepts requests. `/version` and `/metrics`.

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

/// Always status 200.
pub(crate) async fn health() -> StatusCode {
    StatusCode::OK
}

/// Status 200, or 503 while the server stops or after the engine has failed.
pub(crate) async fn ready(State(shared): State<Arc<ServerState>>) -> Result<StatusCode, ApiError> {
    refuse_if_stopping(&shared).map(|()| StatusCode::OK)
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
