//! `/v1/models`: the model that the server answers with.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use super::ApiError;
use crate::server::Shared;

fn model(shared: &Shared) -> Value {
    let (root, created) = shared.weights();
    json!({
        "id": shared.model.name, "object": "model", "created": created, "owned_by": "reel", "root": root,
        "max_model_len": shared.model.folder.config.text.max_position_embeddings,
    })
}

/// `GET /v1/models`
pub(crate) async fn list(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!({"object": "list", "data": [model(&shared)]}))
}

/// `GET /v1/models/NAME`
pub(crate) async fn one(State(shared): State<Arc<Shared>>, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    match name == shared.model.name {
        true => Ok(Json(model(&shared))),
        false => Err(unknown_model(&shared, &name)),
    }
}

/// The error of a request that names another model.
pub(crate) fn unknown_model(shared: &Shared, name: &str) -> ApiError {
    let message = format!("model: there is no model {name:?} here; this server has {:?}", shared.model.name);
    ApiError::not_found(message, Some("model".into()))
}
