//! Models and data sets that options name by their Hugging Face hub id. They are found in the local cache or
//! downloaded into it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use reel_input::network;
use reel_input::rows::{WeightedPath, parse_data_paths};
use reel_support::diagnostic::escape_controls;
use reel_support::hub::{DatasetReference, DownloadProgress, Hub, Repository};

use crate::fail::{failed, usage_error};
use crate::output;

/// Time between two updates of the progress line of a download.
const INTERVAL: Duration = Duration::from_millis(200);

/// Extensions of data files. A path such as `data/train.jsonl` also has the form `ORG/NAME`, but is treated as a
/// missing file.
const DATA_FILES: [&str; 8] = [".json", ".jsonl", ".parquet", ".arrow", ".csv", ".tsv", ".txt", ".xlsx"];

/// Returns the local folder of a model. `model` is a folder, or `ORG/NAME` or `ORG/NAME@REVISION`, which is looked up
/// in the hub cache and downloaded if missing.
pub fn local_model_folder(model: &str) -> Result<PathBuf> {
    let folder = Path::new(model);
    if folder.is_dir() {
        return Ok(folder.to_path_buf());
    }
    match Repository::parse_model(model).filter(|_| !folder.exists()) {
        Some(repository) => download(&repository),
        None => {
            let what = if folder.exists() { "is not a folder" } else { "there is no such folder" };
            Err(failed(model, what, "give a model folder, or a hub id like Qwen/Qwen2.5-VL-3B-Instruct"))
        }
    }
}

/// Returns the local folder or file of benchmark data, the value of `option`. `data` is a path or a data set of the
/// hub (`ORG/NAME`, `hf://datasets/ORG/NAME@REVISION/FILE`), which is looked up in the hub cache and downloaded if
/// missing.
pub fn local_benchmark_path(option: &str, data: &Path) -> Result<PathBuf> {
    let path = WeightedPath { path: data.to_path_buf(), weight: None };
    match dataset_of(&path).filter(|_| !data.exists()) {
        Some(reference) if reference.selection.is_empty() => local_path(&reference),
        Some(_) => {
            let what = format!("{} names a part of a data set, but a benchmark is read from files", data.display());
            Err(usage_error(option, what, "give ORG/NAME, or hf://datasets/ORG/NAME@REVISION/FILE"))
        }
        None if has_scheme(&data.to_string_lossy()) => Err(no_address(option, data)),
        None => Ok(data.to_path_buf()),
    }
}

/// Replaces each hub data set in the value of the option `flag`, such as `--data`, by its folder or file in the hub
/// cache; downloads it if missing. Forms of data sets: `ORG/NAME`, `hf://datasets/ORG/NAME@REVISION/FILE`. Files and
/// folders stay as they are.
pub fn local_data_path(flag: &str, data: &Path) -> Result<PathBuf> {
    let Ok(paths) = parse_data_paths(data) else { return Ok(data.to_path_buf()) };
    let references: Vec<_> = paths.iter().map(dataset_of).collect();
    let strange =
        paths.iter().zip(&references).find(|(path, found)| found.is_none() && has_scheme(&path.path.to_string_lossy()));
    if let Some((WeightedPath { path, .. }, _)) = strange {
        return Err(no_address(flag, path));
    }
    if references.iter().all(Option::is_none) {
        return Ok(data.to_path_buf());
    }
    let mut local = Vec::new();
    for (WeightedPath { path, weight }, reference) in paths.iter().zip(references) {
        let path = match reference {
            Some(reference) => format!("{}{}", local_path(&reference)?.display(), reference.selection),
            None => path.display().to_string(),
        };
        local.push(weight.map_or(path.clone(), |weight| format!("{path}:{weight}")));
    }
    Ok(local.join(",").into())
}

fn no_address(option: &str, path: &Path) -> anyhow::Error {
    let what = format!("{} is not the address of a data set", path.display());
    usage_error(option, what, "give hf://datasets/ORG/NAME, with @REVISION and /FILE if needed")
}

/// Returns the folder or file of a hub data set in the cache; downloads the data set if it is missing.
fn local_path(reference: &DatasetReference) -> Result<PathBuf> {
    let folder = download(&reference.repository)?;
    Ok(reference.file.as_ref().map_or(folder.clone(), |file| folder.join(file)))
}

/// Returns the hub data set that a path names; `None` if the path is a file or folder.
fn dataset_of(path: &WeightedPath) -> Option<DatasetReference> {
    let text =
        path.path.to_str().filter(|text| !DATA_FILES.iter().any(|end| text.ends_with(end)) || has_scheme(text))?;
    let is_local =
        !has_scheme(text) && text.split(['@', '#', '/']).next().is_some_and(|first| Path::new(first).exists());
    DatasetReference::parse(text).filter(|_| !is_local)
}

fn has_scheme(text: &str) -> bool {
    text.starts_with("hf://")
}

fn download(repository: &Repository) -> Result<PathBuf> {
    let hub = Hub::from_environment();
    let hub = if network::are_downloads_forbidden() { hub.without_downloads("--offline") } else { hub };
    let mut printed = Instant::now();
    let mut progress = |progress: DownloadProgress| {
        let is_whole = progress.total == Some(progress.done);
        if !output::stderr_is_terminal() || (printed.elapsed() < INTERVAL && !is_whole) {
            return;
        }
        printed = Instant::now();
        let of = progress.total.map_or(String::new(), |total| format!(" of {:.1}", total as f64 / 1e6));
        let end = if is_whole { "\n" } else { "" };
        let (file, done) = (escape_controls(progress.file), progress.done as f64 / 1e6);
        let _ = write!(std::io::stderr(), "\rdownloading {file}: {done:.1}{of} MB{end}");
    };
    Ok(hub.download_if_missing(repository, &mut progress)?)
}
