//! `/v1/models`: the model that the server answers with, and its LoRA adapters.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use reel_engine::AdapterId;
use reel_support::diagnostic::Diagnostic;
use serde_json::{Value, json};

use super::named_adapters::NamedAdapter;
use super::shared::ServerState;
use super::{ApiError, wrong_field};

/// The adapter that answers requests for the model `model`; `None` for the server's own model.
///
/// # Errors
/// The server has no model or adapter with this name.
pub(crate) fn adapter_of(shared: &ServerState, model: &str) -> Result<Option<AdapterId>, ApiError> {
    match shared.adapters.get(model) {
        Some(adapter) => Ok(Some(adapter.id)),
        None if shared.model.is_named(model) => Ok(None),
        None => Err(unknown_model_error(shared, model)),
    }
}

fn entry(shared: &ServerState, name: &str, root: &str, created: u64) -> Value {
    json!({
        "id": name, "object": "model", "created": created, "owned_by": "reel", "root": root,
        "model_type": shared.model.folder.config.family(),
        "max_model_len": shared.model.folder.config.text.max_position_embeddings,
    })
}

fn own_model(shared: &ServerState) -> Value {
    let (root, created) = shared.weights_name_and_load_time();
    entry(shared, &shared.model.name, &root, created)
}

fn adapter(shared: &ServerState, name: &str, adapter: &NamedAdapter) -> Value {
    let mut entry = entry(shared, name, &adapter.folder.display().to_string(), adapter.created);
    entry["parent"] = shared.model.name.clone().into();
    entry
}

/// `GET /v1/models`
pub(crate) async fn list_models(State(shared): State<Arc<ServerState>>) -> Json<Value> {
    let adapters = shared.adapters.all();
    let adapters = adapters.iter().map(|(name, named)| adapter(&shared, name, named));
    let (root, created) = shared.weights_name_and_load_time();
    let aliases = shared.model.aliases.iter().map(|name| entry(&shared, name, &root, created));
    let all = std::iter::once(own_model(&shared)).chain(aliases).chain(adapters);
    Json(json!({"object": "list", "data": all.collect::<Vec<_>>()}))
}

/// `GET /v1/models/NAME`
pub(crate) async fn get_model(
    State(shared): State<Arc<ServerState>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    let Path(name) = name.map_err(|_| {
        let diagnostic = Diagnostic::new("model", "its name in the path is not UTF-8", "percent-encode it as UTF-8");
        ApiError::bad_request(diagnostic.to_string(), Some("model".into()))
    })?;
    match shared.adapters.get(&name) {
        Some(named) => Ok(Json(adapter(&shared, &name, &named))),
        None if shared.model.is_named(&name) => Ok(Json(own_model(&shared))),
        None => Err(unknown_model_error(&shared, &name)),
    }
}

/// The error of a request for a model that the server does not have.
pub(crate) fn unknown_model_error(shared: &ServerState, name: &str) -> ApiError {
    let names: Vec<String> = shared.adapters.all().into_iter().map(|(name, _)| format!(", {name:?}")).collect();
    let (what, own) = (format!("the model {name:?} does not exist"), &shared.model.name);
    let diagnostic = Diagnostic::new("model", what, format!("this server has {own:?}{}", names.concat()));
    ApiError::model_not_found(diagnostic.to_string())
}

/// The error of a request to unload an adapter that names the server's own model.
pub(crate) fn own_model_error(name: &str) -> ApiError {
    wrong_field("lora_name", &format!("{name:?} is the model itself, not an adapter"), "give the name of an adapter")
}

/// The error of a request to unload an adapter that the server does not have.
pub(crate) fn unknown_adapter_error(shared: &ServerState, name: &str) -> ApiError {
    let names: Vec<String> = shared.adapters.all().into_iter().map(|(name, _)| format!("{name:?}")).collect();
    let help = match names.is_empty() {
        true => "this server has no adapters".to_string(),
        false => format!("this server has {}", names.join(", ")),
    };
    let diagnostic = Diagnostic::new("lora_name", format!("there is no adapter {name:?} here"), help);
    ApiError::not_found(diagnostic.to_string(), Some("lora_name".into()))
}
