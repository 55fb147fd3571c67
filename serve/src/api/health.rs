//! `/health`: the process answers. `/ready`: requests are answered.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;

use super::ApiError;
use crate::server::Shared;

/// Always status 200.
pub(crate) async fn health() -> StatusCode {
    StatusCode::OK
}

/// Status 200, or 503 while the server stops or after the engine has failed.
pub(crate) async fn ready(State(shared): State<Arc<Shared>>) -> Result<StatusCode, ApiError> {
    match shared.is_ready() {
        true => Ok(StatusCode::OK),
        false => Err(ApiError::busy("the server is stopping")),
    }
}
