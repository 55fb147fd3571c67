//! Loads and unloads LoRA adapters: `POST /v1/load_lora_adapter` and `POST /v1/unload_lora_adapter`, with the same
//! fields as in vLLM, and the adapters that a server loads when it starts.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use reel_model::lora::Adapter;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::admin::weight_files_error;
use super::fields::RequestFields;
use super::models::{own_model_error, unknown_adapter_error};
use super::named_adapters::NamedAdapter;
use super::queue::refuse_if_stopping;
use super::shared::ServerState;
use super::{ApiError, seconds_since_1970, wrong_field};
use crate::engine_thread::LoadAdapterCommand;
use crate::http::read_body;

/// Maximum number of bytes of an adapter's name.
const MAX_NAME_BYTES: usize = 256;

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
        load_from_folder(&loading, &of, &path, replace).await
    });
    loaded.await.map_err(|_| ApiError::internal("loading the adapter has panicked"))??;
    let seconds = begun.elapsed().as_secs_f64();
    Ok(Json(json!({"lora_name": name, "lora_path": folder, "seconds": seconds})))
}

/// Checks that an adapter may get this name. The name of a loaded adapter is allowed only with `replace`.
fn check_name(shared: &ServerState, name: &str, replace: bool) -> Result<(), ApiError> {
    let wrong = |what: String, help: &str| Err(wrong_field("lora_name", &what, help));
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
        let help = "give a text of 1 to 256 bytes without control characters";
        return wrong(format!("{name:?} is not a name"), help);
    }
    if name == shared.model.name || shared.model.aliases.iter().any(|alias| alias == name) {
        return wrong(format!("{name:?} is the name of the model"), "give the adapter another name");
    }
    if !replace && shared.adapters.get(name).is_some() {
        return wrong(format!("{name:?} is loaded already"), "unload it first, or set load_inplace");
    }
    Ok(())
}

/// Loads the adapter in `folder` under a name. If the name belonged to another adapter, requests that already use
/// that adapter finish with it. The caller holds the permit for changes of the weights.
///
/// # Errors
/// The name is taken; a file is missing, damaged, or does not fit the model; the device is out of memory. After an
/// error, the server's adapters are unchanged.
pub(crate) async fn load_from_folder(
    shared: &Arc<ServerState>,
    name: &str,
    folder: &Path,
    replace: bool,
) -> Result<(), ApiError> {
    check_name(shared, name, replace)?;
    let (path, model) = (folder.to_path_buf(), shared.model.clone());
    let checked = tokio::task::spawn_blocking(move || {
        let adapter = Adapter::open(&path)?;
        adapter.check_shared(&model.folder.config)?;
        Ok(adapter)
    });
    let checked = checked.await.map_err(|_| ApiError::internal("checking the adapter has panicked"))?;
    let adapter = checked.map_err(|e| weight_files_error(e, "lora_path"))?;
    let (done, loaded) = oneshot::channel();
    shared.engine.load_adapter(LoadAdapterCommand {
        folder: folder.to_path_buf(),
        open: Box::new(|| Ok(adapter)),
        done,
    });
    let loaded = loaded.await.map_err(|_| ApiError::internal("the engine has ended; start the server again"))?;
    let id = loaded.map_err(|e| weight_files_error(e, "lora_path"))?;
    let adapter = NamedAdapter { id, folder: folder.to_path_buf(), created: seconds_since_1970() };
    if let Some(replaced) = shared.adapters.insert(name.to_string(), adapter) {
        shared.engine.unload_adapter(replaced.id);
    }
    Ok(())
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
