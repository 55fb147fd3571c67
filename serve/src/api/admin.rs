//! `POST /admin/weights`: replaces the weights in service by the weights in another folder, without a restart.
//!
//! ```text
//! check    local client, key, one replacement at a time           status 403, 401, 409
//! files    config, tokenizer, all weights, on a blocking thread    status 400; requests continue meanwhile
//! engine   loads the weights, then continues with them             the old weights stay if this fails
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use reel_model::lora::is_adapter_folder;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::fields::RequestFields;
use super::queue::refuse_if_stopping;
use super::shared::ServerState;
use super::{ApiError, wrong_field};
use crate::engine_thread::ReplaceWeightsCommand;
use crate::error::{Error, Kind};
use crate::http::{PeerAddress, read_body};
use crate::new_weights::CheckedWeightFiles;
use crate::settings::folder_name;

/// Headers that are added by a proxy, or by a browser to a request from another server's web page. In addition, all
/// headers with `forwarded` in their name are added by proxies.
const HEADERS_OF_OTHERS: [&str; 9] = [
    "via",
    "origin",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-original-host",
    "x-envoy-external-address",
    "true-client-ip",
    "cf-connecting-ip",
];

/// Whether a header says that a request comes through a proxy or from a web page. Names are compared with `-` for `_`,
/// because some proxies write `X_Forwarded_For`.
fn is_of_others(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace('_', "-");
    name.contains("forwarded") || HEADERS_OF_OTHERS.contains(&&*name)
}

/// Refuses requests that do not come from a program on this machine, even if they carry a valid key.
pub(crate) async fn refuse_remote_clients(request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<PeerAddress>();
    match refusal(peer, request.headers()) {
        None => next.run(request).await,
        Some(what) => ApiError::forbidden(format!("{}: {what}", request.uri().path())).into_response(),
    }
}

/// Returns the reason to refuse an admin request that comes from another machine or from a web page. `None` if the
/// request is allowed.
fn refusal(peer: Option<&PeerAddress>, headers: &HeaderMap) -> Option<String> {
    // A server that listens on an IPv6 address sees IPv4 clients as ::ffff:a.b.c.d.
    if !peer.is_some_and(|peer| peer.0.ip().to_canonical().is_loopback()) {
        let what = "is only for clients on the server's machine; send the request there, to 127.0.0.1 or ::1";
        return Some(what.to_string());
    }
    let header = headers.keys().find(|name| is_of_others(name.as_str()))?;
    Some(format!("takes no request with the header {header}; send it directly, not through a proxy or a web page"))
}

/// `POST /admin/weights`
pub(crate) async fn replace_weights(
    State(shared): State<Arc<ServerState>>,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let begun = Instant::now();
    refuse_if_stopping(&shared)?;
    let body = read_body(&shared.bodies, body).await?;
    let mut fields = RequestFields::of_object(&shared, body)?;
    let Some(folder) = fields.take_field::<PathBuf>("model", "the path of a folder")? else {
        return Err(wrong_field("model", "is missing", "give the folder of a model or of a checkpoint"));
    };
    fields.refuse_remaining_fields()?;
    refuse_second_adapter(&shared, &folder)?;
    let Ok(turn) = shared.weight_changes.clone().try_acquire_owned() else {
        return Err(ApiError::conflict(
            "the weights or an adapter are being changed already; try again when that is done",
        ));
    };
    // The weights are replaced in a separate task. Otherwise a client that disconnects would stop the replacement
    // half-way.
    let replacing = tokio::spawn(replace(shared, folder.clone(), turn));
    let requests = replacing.await.map_err(|_| ApiError::internal("replacing the weights has panicked"))??;
    Ok(Json(json!({
        "model": folder, "seconds": begun.elapsed().as_secs_f64(), "requests_recomputed": requests,
    })))
}

/// Refuses a folder with a base model and an adapter while other adapters are loaded, because a layer can apply only
/// one adapter.
fn refuse_second_adapter(shared: &ServerState, folder: &Path) -> Result<(), ApiError> {
    let names: Vec<String> = shared.adapters.all().into_iter().map(|(name, _)| format!("{name:?}")).collect();
    if names.is_empty() || !is_adapter_folder(folder) {
        return Ok(());
    }
    let what = format!(
        "is the folder of a LoRA adapter, which cannot replace the weights while the adapters {} are loaded",
        names.join(", ")
    );
    let help = "unload them first (/v1/unload_lora_adapter), or load this adapter beside them (/v1/load_lora_adapter)";
    Err(wrong_field("model", &what, help))
}

/// Replaces the weights. Returns the number of unfinished requests that continue with the new weights.
async fn replace(shared: Arc<ServerState>, folder: PathBuf, turn: OwnedSemaphorePermit) -> Result<usize, ApiError> {
    let _turn = turn;
    let (path, model) = (folder.clone(), shared.model.clone());
    let check = move || {
        let files = CheckedWeightFiles::open(&path, &model)?;
        files.check_values()?;
        Ok(files)
    };
    let checked = tokio::task::spawn_blocking(check);
    let checked = checked.await.map_err(|_| ApiError::internal("checking the files has panicked"))?;
    let files = checked.map_err(|e| weight_files_error(e, "model"))?;
    let (done, replaced) = oneshot::channel();
    let load = Box::new(move |device: &_, dtype| files.load(device, dtype));
    shared.engine.replace_weights(ReplaceWeightsCommand { folder: folder.clone(), load, done });
    let ended = || ApiError::internal("the engine has ended; start the server again");
    let requests = replaced.await.map_err(|_| ended())?.map_err(|e| weight_files_error(e, "model"))?;
    shared.set_weights_name(folder_name(&folder));
    shared.metrics.record_weight_replacement();
    Ok(requests)
}

/// The error about weights that cannot be loaded. `field` is the field of the request that named them. The old weights
/// stay in service.
pub(crate) fn weight_files_error(e: Error, field: &str) -> ApiError {
    match e.kind {
        Kind::Device | Kind::OutOfMemory | Kind::Request => ApiError::of_engine(&e),
        _ => ApiError::bad_request(e.to_string(), Some(field.into())),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn refused(address: &str, header: Option<&str>) -> Option<String> {
        let value = (HeaderValue::from_static("x"), header.map(|name| name.parse::<HeaderName>().unwrap()));
        let headers = value.1.map(|name| (name, value.0)).into_iter().collect();
        refusal(Some(&PeerAddress((address.parse::<std::net::IpAddr>().unwrap(), 5).into())), &headers)
    }

    #[test]
    fn only_loopback_addresses_are_local() {
        for local in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(refused(local, None), None, "{local}");
            assert_eq!(refused(local, Some("user-agent")), None, "{local}");
        }
        for other in ["10.0.0.1", "192.168.1.2", "0.0.0.0", "::", "fe80::1", "::ffff:10.0.0.1", "128.0.0.1"] {
            assert!(refused(other, None).is_some_and(|what| what.contains("server's machine")), "{other}");
        }
        assert!(refusal(None, &HeaderMap::new()).is_some(), "a client whose address is unknown is refused");
    }

    #[test]
    fn what_a_proxy_or_a_web_page_sends_is_refused() {
        let forwarded = [
            "forwarded",
            "x-forwarded",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-proto",
            "x-forwarded-server",
            "x-forwarded-prefix",
            "x-original-forwarded-for",
            "x_forwarded_for",
            "x_real_ip",
        ];
        for name in HEADERS_OF_OTHERS.into_iter().chain(forwarded) {
            assert!(refused("127.0.0.1", Some(name)).is_some_and(|what| what.contains(name)), "{name}");
        }
    }
}
