//! Finds the files of a data set's folder by the rules of the library `datasets`:
//!
//! 1. `dataset_dict.json` or `state.json`: a folder of `save_to_disk` (Arrow files).
//! 2. `configs` in the front matter of README.md: `data_files` and `data_dir` of each configuration (`card.rs`).
//! 3. Otherwise file names: `data/train-00000-of-00002.parquet`, a folder `train/`, or `train.jsonl`. Files whose names
//!    say no split belong to `train`.
//!
//! `DIR@split` chooses a split, and `DIR#config@split` also chooses a configuration. Without them, the split is
//! `train`, and the configuration is the only one or the default.

mod card;
mod names;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use reel_support::diagnostic::input;
use serde_json::Value;

use crate::error::{Error, Result};

/// The split that is read by default.
const DEFAULT_SPLIT: &str = "train";

/// The maximum number of data files in a folder.
const MAX_FILES: usize = 100_000;

/// The maximum depth of subfolders that are searched for data files.
const MAX_DEPTH: usize = 12;

/// The files of each split in order, by the name of the split.
type Splits = BTreeMap<String, Vec<PathBuf>>;

/// The folder of a data set, with the configuration and the split to read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DatasetFolder {
    pub(crate) folder: PathBuf,
    config: Option<String>,
    split: Option<String>,
}

impl DatasetFolder {
    /// Parses `DIR`, `DIR@split`, `DIR#config` or `DIR#config@split`. `None` if the text does not name a folder.
    pub(crate) fn parse(path: &Path) -> Option<Self> {
        if path.exists() {
            return path.is_dir().then(|| Self { folder: path.to_path_buf(), config: None, split: None });
        }
        let text = path.to_str()?;
        let (rest, split) = match text.rsplit_once('@') {
            Some((rest, split)) if is_name(split) => (rest, Some(split.to_string())),
            _ => (text, None),
        };
        let (rest, config) = match rest.rsplit_once('#') {
            Some((folder, config)) if is_name(config) && !Path::new(rest).is_dir() => {
                (folder, Some(config.to_string()))
            }
            _ => (rest, None),
        };
        let folder = PathBuf::from(rest);
        folder.is_dir().then_some(Self { folder, config, split })
    }

    fn error(&self, what: impl Into<String>, help: impl Into<String>) -> Error {
        Error::data(self.folder.display().to_string(), what, help)
    }

    /// Returns the files to read, in order.
    ///
    /// # Errors
    /// The folder has no files of a known format, the configuration or the split does not exist, or the folder has
    /// several configurations and none is chosen.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>> {
        if let Some(saved) = self.saved_files()? {
            return Ok(saved);
        }
        let all = self.list()?;
        let splits = match card::read_dataset_configs(&self.folder)? {
            configs if configs.is_empty() => {
                if let Some(config) = &self.config {
                    let what = format!("has no configuration {config}: its README.md names none");
                    return Err(self.error(what, "leave #… out"));
                }
                names::splits_of_files(&all)
            }
            configs => self.splits_of_config(&configs, &all)?,
        };
        let files = self.choose_split(splits)?;
        let mut formats: Vec<String> = files.iter().map(|file| names::format_name(file).to_string()).collect();
        formats.dedup();
        formats.sort();
        formats.dedup();
        if formats.len() > 1 {
            let what = format!("has files of several formats for one split: {}", formats.join(", "));
            return Err(self.error(what, "give the files themselves, separated by commas"));
        }
        Ok(files.into_iter().map(|file| self.folder.join(file)).collect())
    }

    /// Returns the files of each split of one configuration: the configuration that the path names, the only one, or
    /// the default.
    fn splits_of_config(&self, configs: &[card::DatasetConfig], all: &[PathBuf]) -> Result<Splits> {
        let names: Vec<&str> = configs.iter().map(|config| config.name.as_str()).collect();
        let list = names.join(", ");
        let chosen = match (&self.config, configs) {
            (Some(name), _) => configs.iter().find(|config| config.name == *name),
            (None, [only]) => Some(only),
            (None, _) => configs.iter().find(|c| c.is_default).or(configs.iter().find(|c| c.name == "default")),
        };
        let Some(chosen) = chosen else {
            let example = format!("{}#{}", self.folder.display(), names[0]);
            return Err(match &self.config {
                Some(name) => self.error(format!("has no configuration {name}"), format!("it has {list}")),
                None => self.error(format!("has several configurations: {list}"), format!("choose one: {example}")),
            });
        };
        chosen
            .splits(all)
            .map_err(|what| self.error(format!("configuration {}: {what}", chosen.name), "correct its README.md"))
    }

    fn choose_split(&self, mut splits: Splits) -> Result<Vec<PathBuf>> {
        splits.retain(|_, files| !files.is_empty());
        let names = splits.keys().cloned().collect::<Vec<_>>().join(", ");
        if splits.is_empty() {
            let what = "has no data files (.json, .jsonl, .ndjson or .parquet)";
            return Err(self.error(what, "give a folder with such files, or convert its files"));
        }
        let split = self.split.as_deref().unwrap_or(DEFAULT_SPLIT);
        let example =
            || splits.keys().next().map_or(String::new(), |split| format!("{}@{split}", self.folder.display()));
        match splits.contains_key(split) {
            true => Ok(splits.remove(split).unwrap_or_default()),
            false => {
                Err(self.error(format!("has no split {split}; it has {names}"), format!("choose one: {}", example())))
            }
        }
    }

    /// Returns the files of a folder that `save_to_disk` wrote; `None` for other folders.
    fn saved_files(&self) -> Result<Option<Vec<PathBuf>>> {
        let (dict, state) = (self.folder.join("dataset_dict.json"), self.folder.join("state.json"));
        let folder = if dict.exists() {
            let splits = read_json(&dict)?["splits"].as_array().cloned().unwrap_or_default();
            let splits = splits.iter().filter_map(Value::as_str).map(|split| (split.to_string(), vec![split.into()]));
            let folders = self.choose_split(splits.collect())?;
            self.folder.join(folders.first().cloned().unwrap_or_default())
        } else if state.exists() && !self.folder.join("config.json").exists() {
            if self.split.is_some() {
                return Err(self.error("is a single data set without splits", "leave @… out"));
            }
            self.folder.clone()
        } else {
            return Ok(None);
        };
        if self.config.is_some() {
            return Err(self.error("is a saved data set, which has no configurations", "leave #… out"));
        }
        let state = folder.join("state.json");
        let listed = read_json(&state)?;
        let names = listed["_data_files"].as_array().into_iter().flatten().filter_map(|file| file["filename"].as_str());
        // The names in an untrusted file must not lead out of the folder.
        let files: Option<Vec<PathBuf>> = names.map(|name| Some(folder.join(Path::new(name).file_name()?))).collect();
        match files.filter(|files| !files.is_empty()) {
            Some(files) => Ok(Some(files)),
            None => Err(Error::data(state.display().to_string(), "names no data files", "save the data set again")),
        }
    }

    /// Lists all files below the folder that have a known format. The paths are relative to the folder and sorted.
    fn list(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        let mut folders = vec![(PathBuf::new(), 0)];
        while let Some((relative, depth)) = folders.pop() {
            let folder = self.folder.join(&relative);
            let entries = std::fs::read_dir(&folder).map_err(|e| Error::cannot_read(&folder, &e))?;
            for entry in entries {
                let name = entry.map_err(|e| Error::cannot_read(&folder, &e))?.file_name();
                let text = name.to_string_lossy();
                if text.starts_with('.') || text.starts_with("__") {
                    continue;
                }
                let path = relative.join(&name);
                let full = self.folder.join(&path);
                if full.is_dir() {
                    if depth < MAX_DEPTH {
                        folders.push((path, depth + 1));
                    }
                } else if names::is_data_file(&path) {
                    files.push(path);
                }
                if files.len() > MAX_FILES {
                    return Err(self.error(format!("has more than {MAX_FILES} files"), "give a folder of its own"));
                }
            }
        }
        files.sort();
        Ok(files)
    }
}

/// Tells whether a text can be the name of a configuration or a split.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.'))
}

fn read_json(path: &Path) -> Result<Value> {
    let text = input::read_text(path, input::MAX_CONFIG_BYTES).map_err(|e| Error::cannot_read(path, &e))?;
    serde_json::from_str(&text)
        .map_err(|e| Error::data(path.display().to_string(), format!("is not JSON: {e}"), "save the data set again"))
}

#[cfg(test)]
mod tests;
