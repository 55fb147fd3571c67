//! Resolves MODEL arguments: a folder, or a hub id (`Qwen/Qwen2.5-VL-3B-Instruct`), which is downloaded into the
//! local hub cache if needed.
//!
//! The cache is that of the Hugging Face clients (`HF_HUB_CACHE`, `HF_HOME`): `models--ORG--NAME/refs/main` names a
//! commit, and `snapshots/COMMIT` holds its files. `HF_ENDPOINT`, `HF_HUB_OFFLINE` and `HF_TOKEN` have the same
//! meaning as for these clients.

mod download;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};

use reel_diagnostic::input;
use reel_input::network;
use serde_json::Value;

use crate::error::{ModelError, Result};

/// The progress of a download.
#[derive(Debug, Clone, Copy)]
pub struct DownloadProgress<'a> {
    /// Name of the file that is being downloaded now.
    pub file: &'a str,
    /// Number of bytes of this file downloaded so far.
    pub done: u64,
    /// The size of the file in bytes, if known.
    pub total: Option<u64>,
}

/// Returns the folder of a MODEL argument. A hub id that is not in the local cache is downloaded, and `progress` is
/// called again and again meanwhile.
pub fn resolve(model: &str, progress: &mut dyn FnMut(DownloadProgress)) -> Result<PathBuf> {
    let folder = Path::new(model);
    if folder.is_dir() {
        return Ok(folder.to_path_buf());
    }
    if !is_id(model) || folder.exists() {
        let what = if folder.exists() { "is not a folder" } else { "there is no such folder" };
        let help = "give a model folder, or a hub id like Qwen/Qwen2.5-VL-3B-Instruct";
        return Err(ModelError::hub(model, what, help));
    }
    Hub::from_environment().folder(model, progress)
}

/// Returns the folder of a MODEL argument that is a folder or is complete in the local hub cache; `None` if it would
/// have to be downloaded, or is neither a folder nor a hub id.
pub fn find_local(model: &str) -> Option<PathBuf> {
    let folder = Path::new(model);
    if folder.is_dir() {
        return Some(folder.to_path_buf());
    }
    is_id(model).then(|| cached(&Hub::from_environment().store(model))).flatten()
}

/// Whether a text is a hub id, `ORG/NAME`, with only the characters that the hub allows.
fn is_id(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && !part.contains("..")
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    matches!(text.split('/').collect::<Vec<_>>()[..], [org, name] if part(org) && part(name))
}

/// A hub and its local cache.
#[derive(Debug, Clone)]
struct Hub {
    cache: PathBuf,
    endpoint: String,
    token: Option<String>,
    /// What forbids downloads, if anything does: an environment variable, or an option of the program.
    offline: Option<&'static str>,
}

impl Hub {
    fn from_environment() -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let home = || variable("HOME").map_or_else(|| PathBuf::from("."), PathBuf::from);
        // Hugging Face's own library expands ~, too.
        let path = |name: &str| {
            variable(name).map(|value| {
                match value.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with('/')) {
                    Some(rest) => home().join(rest.trim_start_matches('/')),
                    None => PathBuf::from(value),
                }
            })
        };
        let hub_home = || {
            let cache = || path("XDG_CACHE_HOME").unwrap_or_else(|| home().join(".cache")).join("huggingface");
            path("HF_HOME").unwrap_or_else(cache)
        };
        let yes = |value: String| matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE");
        Self {
            cache: path("HF_HUB_CACHE")
                .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
                .unwrap_or_else(|| hub_home().join("hub")),
            endpoint: variable("HF_ENDPOINT")
                .unwrap_or_else(|| "https://huggingface.co".to_string())
                .trim_end_matches('/')
                .to_string(),
            token: variable("HF_TOKEN"),
            offline: match variable("HF_HUB_OFFLINE").is_some_and(yes) {
                true => Some("HF_HUB_OFFLINE"),
                false => network::is_forbidden().then_some("--offline"),
            },
        }
    }

    /// The folder of a model in the cache.
    fn store(&self, id: &str) -> PathBuf {
        self.cache.join(format!("models--{}", id.replace('/', "--")))
    }

    /// Returns the snapshot folder of a model. Downloads the files that are missing in the cache.
    fn folder(&self, id: &str, progress: &mut dyn FnMut(DownloadProgress)) -> Result<PathBuf> {
        let store = self.store(id);
        if let Some(snapshot) = cached(&store) {
            return Ok(snapshot);
        }
        if let Some(cause) = self.offline {
            let cache = self.cache.display();
            let what =
                format!("is not complete in the hub cache {cache} and is not downloaded, because {cause} is set");
            return Err(ModelError::hub(id, what, format!("remove {cause}, or give a model folder")));
        }
        self.fetch(id, &store, progress)
    }

    fn fetch(&self, id: &str, store: &Path, progress: &mut dyn FnMut(DownloadProgress)) -> Result<PathBuf> {
        let (commit, files) = self.listing(id)?;
        let snapshot = store.join("snapshots").join(&commit);
        fs::create_dir_all(&snapshot).map_err(|e| ModelError::cannot_write(&snapshot, e))?;
        for file in files.iter().filter(|file| is_wanted(file)) {
            let address = format!("{}/{id}/resolve/{commit}/{file}", self.endpoint);
            download::download_file(&address, self.token.as_deref(), &snapshot.join(file), file, progress)?;
        }
        let refs = store.join("refs");
        fs::create_dir_all(&refs).map_err(|e| ModelError::cannot_write(&refs, e))?;
        reel_files::write_atomically(&refs.join("main"), commit.as_bytes())?;
        match is_whole(&snapshot) {
            true => Ok(snapshot),
            false => Err(ModelError::hub(
                id,
                "lacks config.json, tokenizer.json or weights in *.safetensors",
                "use a model in the safetensors format",
            )),
        }
    }

    /// The commit of branch `main`, and the names of its files.
    fn listing(&self, id: &str) -> Result<(String, Vec<String>)> {
        let address = format!("{}/api/models/{id}/revision/main", self.endpoint);
        let text = download::download_text(&address, self.token.as_deref()).map_err(|what| {
            let what = format!("is not a folder, is not in the hub cache {}, and {what}", self.cache.display());
            let help = "check the name and the network, or give a model folder; set HF_TOKEN for a gated model";
            ModelError::hub(id, what, help)
        })?;
        let strange =
            || ModelError::hub(id, format!("{address} did not answer with a list of files"), "check HF_ENDPOINT");
        let value: Value = serde_json::from_str(&text).map_err(|_| strange())?;
        let commit = value
            .get("sha")
            .and_then(Value::as_str)
            .filter(|sha| sha.chars().all(|c| c.is_ascii_alphanumeric()) && !sha.is_empty());
        let files = value.get("siblings").and_then(Value::as_array);
        let (Some(commit), Some(files)) = (commit, files) else { return Err(strange()) };
        let names = files.iter().filter_map(|file| file.get("rfilename")?.as_str()).map(str::to_string);
        Ok((commit.to_string(), names.collect()))
    }
}

/// The folder of the cached snapshot whose commit `refs/main` names, if it is complete.
fn cached(store: &Path) -> Option<PathBuf> {
    let commit = input::read_text(store.join("refs/main"), input::MAX_CONFIG_BYTES).ok()?;
    let snapshot = store.join("snapshots").join(commit.trim());
    is_whole(&snapshot).then_some(snapshot)
}

/// Whether a folder has a config, a tokenizer and all weight files.
fn is_whole(snapshot: &Path) -> bool {
    let has = |name: &str| snapshot.join(name).is_file();
    if !has("config.json") || !has("tokenizer.json") {
        return false;
    }
    if has("model.safetensors") {
        return true;
    }
    let index = input::read_text(snapshot.join("model.safetensors.index.json"), input::MAX_CONFIG_BYTES).ok();
    let index: Option<Value> = index.and_then(|text| serde_json::from_str(&text).ok());
    let map = index.as_ref().and_then(|index| index.get("weight_map")?.as_object());
    map.is_some_and(|map| !map.is_empty() && map.values().all(|file| file.as_str().is_some_and(has)))
}

/// Whether a file of a hub model is needed, and so downloaded: weights and the small files of a model folder, but no
/// file in a sub-folder.
fn is_wanted(file: &str) -> bool {
    let kinds = [".safetensors", ".json", ".jinja", ".txt"];
    !file.contains(['/', '\\']) && !file.starts_with('.') && kinds.iter().any(|kind| file.ends_with(kind))
}
