//! `POST /v1/load_lora_adapter` and `POST /v1/unload_lora_adapter`, with the same fields as in vLLM.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use serde_json::{Value, json};

use super::ApiError;
use super::fields::{RequestFields, wrong_field};
use super::models::{own_model_error, unknown_adapter_error};
use super::named_adapters;
use super::queue::refuse_if_stopping;
use super::shared::ServerState;
use crate::http::read_body;

/// `POST /v1/load_lora_adapter`
pub(crate) async fn load_adapter(State(shared): State<Arc<ServerState>>, body: Body) -> Result<Json<Value>, ApiError> {
    let begun = Instant::now();
    refuse_if_stopping(&shared)?;
    let mut fields = RequestFields::of_object(&shared, read_body(&shared.bodies, body).await?)?;
    let name = take_name(&mut fields)?;
    let Some(folder) = fields.take_field::<PathBuf>("lora_path", "the path of a folder")? else {
        return Err(wrong_field("lora_path", "is missing", "give the folder of an adapter"));
    };
    let replace = fields.take_field("load_inplace", "true or false")?.unwrap_or(false);
    fields.refuse_remaining_fields()?;
    let (loading, path, of) = (shared.clone(), folder.clone(), name.clone());
    // The adapter is loaded in a separate task. Otherwise a client that disconnects would stop the loading half-way.
    let loaded = tokio::spawn(async move {
        // The semaphore is never closed.
        let _turn = loading.weight_changes.acquire().await;
        named_adapters::load_adapter(&loading, &of, &path, replace).await
    });
    loaded.await.map_err(|_| ApiError::internal("loading the adapter has panicked"))??;
    let seconds = begun.elapsed().as_secs_f64();
    Ok(Json(json!({"lora_name": name, "lora_path": folder, "seconds": seconds})))
}

/// `POST /v1/unload_lora_adapter`
pub(crate) async fn unload_adapter(
    State(shared): State<Arc<ServerState>>,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    refuse_if_stopping(&shared)?;
    let mut fields = RequestFields::of_object(&shared, read_body(&shared.bodies, body).await?)?;
    let name = take_name(&mut fields)?;
    // `lora_int_id` is vLLM's number of an adapter. It is ignored: the name identifies the adapter.
    fields.take_value("lora_int_id");
    fields.refuse_remaining_fields()?;
    match shared.adapters.remove(&name) {
        Some(adapter) => {
            shared.engine.unload_adapter(adapter.id);
            Ok(Json(json!({"lora_name": name, "lora_path": adapter.folder})))
        }
        None if shared.model.is_named(&name) => Err(own_model_error(&name)),
        None => Err(unknown_adapter_error(&shared, &name)),
    }
}

fn take_name(fields: &mut RequestFields) -> Result<String, ApiError> {
    let name = fields.take_field::<String>("lora_name", "the name of an adapter")?;
    name.ok_or_else(|| {
        wrong_field("lora_name", "is missing", "give the name by which requests will name this adapter in `model`")
    })
}
