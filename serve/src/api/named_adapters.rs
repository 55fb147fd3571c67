//! The LoRA adapters that requests can name as their model.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use reel_engine::{AdapterId, EngineError};
use reel_model::lora::Adapter;
use tokio::sync::oneshot;

use super::admin::weight_files_error;
use super::fields::wrong_field;
use super::shared::ServerState;
use super::{ApiError, seconds_since_1970};
use crate::engine_thread::LoadAdapterCommand;

/// Maximum number of bytes of an adapter's name.
const MAX_NAME_BYTES: usize = 256;

/// An adapter that requests can name.
#[derive(Clone, Debug)]
pub(crate) struct NamedAdapter {
    pub(crate) id: AdapterId,
    /// The folder from which the adapter was loaded.
    pub(crate) folder: PathBuf,
    /// The time at which the adapter was loaded, in seconds since 1970.
    pub(crate) created: u64,
}

/// The adapters by their names.
#[derive(Debug, Default)]
pub(crate) struct AdapterNames(RwLock<BTreeMap<String, NamedAdapter>>);

impl AdapterNames {
    pub(crate) fn get(&self, name: &str) -> Option<NamedAdapter> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// All adapters, in the order of their names.
    pub(crate) fn all(&self) -> Vec<(String, NamedAdapter)> {
        let names = self.0.read().unwrap_or_else(PoisonError::into_inner);
        names.iter().map(|(name, adapter)| (name.clone(), adapter.clone())).collect()
    }

    fn insert(&self, name: String, adapter: NamedAdapter) -> Option<NamedAdapter> {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(name, adapter)
    }

    pub(crate) fn remove(&self, name: &str) -> Option<NamedAdapter> {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(name)
    }
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
pub(crate) async fn load_adapter(
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
    let adapter = checked.map_err(|e| weight_files_error(EngineError::Model(e), "lora_path"))?;
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
