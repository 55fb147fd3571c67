//! Models and data sets of the Hugging Face hub, in a local cache.
//!
//! The cache has the layout of the Hugging Face clients: `models--ORG--NAME/refs/REVISION` names a commit, and
//! `snapshots/COMMIT` contains its files. Cached files are not requested again. Missing files are downloaded, several
//! at a time, in pieces. Failed pieces are requested again, an interrupted download is continued, and the hub's
//! checksums are verified. Archives of a data set are unpacked into the folder that contains them.

mod archives;
mod checksum;
mod download;
mod environment;
mod fetch;
mod listing;
mod reference;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use crate::diagnostic::input;
use crate::error::{Error, Result};
use reference::is_safe_path;
use serde_json::Value;

pub use download::DownloadProgress;
pub use environment::Hub;
pub use reference::{DatasetReference, Repository, RepositoryKind};

/// A file in the snapshot of a data set. It exists if all files are there and the archives are unpacked.
const COMPLETE_FILE: &str = ".reel-complete";

impl Hub {
    /// Returns the folder of a model or a data set. Downloads files that are missing in the cache, and calls
    /// `progress` repeatedly during the download.
    ///
    /// # Errors
    /// Files are missing and must not or cannot be downloaded; a file differs from the hub's checksum; an archive
    /// cannot be unpacked; the disk has no space.
    pub fn download_if_missing(
        &self,
        repository: &Repository,
        progress: &mut dyn FnMut(DownloadProgress),
    ) -> Result<PathBuf> {
        if self.lacks_home {
            let what = "is not set, and the system knows no home folder of this user, so the hub cache has no place";
            return Err(Error::failed("HOME", what, "set HOME, or HF_HOME to the folder of the cache"));
        }
        if let Some(snapshot) = self.cached_folder(repository) {
            return Ok(snapshot);
        }
        let Some(cause) = self.offline else { return self.download_repository(repository, progress) };
        // Other clients write no file that tells whether the snapshot is complete.
        if repository.kind == RepositoryKind::Dataset
            && let Some(snapshot) = self.snapshot(repository).filter(|snapshot| snapshot.is_dir())
        {
            let (name, folder) = (repository.name(), snapshot.display());
            crate::diagnostic::note!("{name}: {folder} was not downloaded by reel and may be incomplete");
            return Ok(snapshot);
        }
        let cache = self.cache.display();
        let what = format!("is not complete in the hub cache {cache} and is not downloaded, because {cause} is set");
        Err(Error::failed(repository.name(), what, format!("remove {cause}, or give a folder")))
    }

    /// Returns the folder of a model or a data set if it is complete in the cache.
    pub fn cached_folder(&self, repository: &Repository) -> Option<PathBuf> {
        self.snapshot(repository).filter(|snapshot| match repository.kind {
            RepositoryKind::Model => is_whole_model(snapshot),
            RepositoryKind::Dataset => snapshot.join(COMPLETE_FILE).is_file(),
        })
    }

    /// Returns the folder of a repository in the cache.
    fn store(&self, repository: &Repository) -> PathBuf {
        self.cache.join(format!("{}--{}", repository.kind.plural_name(), repository.id.replace('/', "--")))
    }

    /// Returns the folder for the files of the repository's revision, which need not exist; `None` if the commit of
    /// the revision is not known.
    fn snapshot(&self, repository: &Repository) -> Option<PathBuf> {
        let store = self.store(repository);
        let snapshots = store.join("snapshots");
        if repository.is_commit() {
            return Some(snapshots.join(&repository.revision));
        }
        let commit = input::read_text(store.join("refs").join(&repository.revision), input::MAX_CONFIG_BYTES).ok()?;
        is_safe_path(commit.trim()).then(|| snapshots.join(commit.trim()))
    }
}

/// Tells whether a folder contains a config, a tokenizer and all weight files.
fn is_whole_model(snapshot: &Path) -> bool {
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
