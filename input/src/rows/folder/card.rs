//! The configurations in the front matter of a data set's README.md.

use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern};
use reel_support::diagnostic::{input, one_line};
use serde_json::Value;

use super::{DEFAULT_SPLIT, Splits, names};
use crate::error::{Error, Result};

/// A configuration of a data set.
#[derive(Clone, Debug)]
pub(super) struct DatasetConfig {
    pub(super) name: String,
    pub(super) is_default: bool,
    data_files: Value,
    data_dir: Option<String>,
}

/// Reads the `configs` of DIR/README.md. Empty if README.md or its field `configs` is missing.
pub(super) fn read_dataset_configs(folder: &Path) -> Result<Vec<DatasetConfig>> {
    let path = folder.join("README.md");
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = input::read_file(&path, input::MAX_CONFIG_BYTES).map_err(|e| Error::cannot_read(&path, &e))?;
    let text = String::from_utf8_lossy(&text);
    let Some(yaml) = front_matter(&text) else { return Ok(Vec::new()) };
    let error =
        |what: String| Error::data(path.display().to_string(), what, "correct its front matter, or remove `configs`");
    let values: Value = serde_saphyr::from_str_with_options(yaml, serde_saphyr::options! { with_snippet: false })
        .map_err(|e| error(format!("has front matter that is not YAML: {}", one_line(e.to_string()))))?;
    let Some(configs) = values.get("configs") else { return Ok(Vec::new()) };
    let Some(configs) = configs.as_array() else { return Err(error("has `configs` that are not a list".into())) };
    configs
        .iter()
        .map(|config| {
            let text = |key: &str| config.get(key).and_then(Value::as_str).map(str::to_string);
            let name = text("config_name").ok_or_else(|| error("has a configuration without `config_name`".into()))?;
            let is_default = config.get("default") == Some(&Value::Bool(true));
            let data_files = config.get("data_files").cloned().unwrap_or(Value::Null);
            Ok(DatasetConfig { name, is_default, data_files, data_dir: text("data_dir") })
        })
        .collect()
}

/// Returns the YAML between two lines `---` at the start of a text.
fn front_matter(text: &str) -> Option<&str> {
    let text = text.trim_start_matches('\u{feff}');
    let rest = text.strip_prefix("---\n").or_else(|| text.strip_prefix("---\r\n"))?;
    let end =
        rest.match_indices("\n---").find(|(at, _)| rest[at + 4..].lines().next().unwrap_or("").trim().is_empty())?;
    Some(&rest[..end.0 + 1])
}

impl DatasetConfig {
    /// Finds the files of the configuration among all files of the folder.
    ///
    /// # Errors
    /// A pattern is invalid or matches no file, or `data_files` has an unknown form. The error is a text about what is
    /// wrong with the configuration.
    pub(super) fn splits(&self, all: &[PathBuf]) -> Result<Splits, String> {
        let in_folder: Vec<PathBuf> = match &self.data_dir {
            Some(folder) => all.iter().filter(|file| file.starts_with(normal(folder))).cloned().collect(),
            None => all.to_vec(),
        };
        let train = |files| Ok(Splits::from([(DEFAULT_SPLIT.to_string(), files)]));
        match &self.data_files {
            Value::Null => {
                let prefix = self.data_dir.as_deref().map(normal).unwrap_or_default();
                let relative: Vec<PathBuf> =
                    in_folder.iter().filter_map(|file| Some(file.strip_prefix(&prefix).ok()?.to_path_buf())).collect();
                let mut splits = names::splits_of_files(&relative);
                splits.values_mut().flatten().for_each(|file| *file = prefix.join(&*file));
                Ok(splits)
            }
            Value::Array(list) if list.iter().any(Value::is_object) => {
                let mut splits = Splits::new();
                for entry in list {
                    let split =
                        entry.get("split").and_then(Value::as_str).ok_or("an entry of data_files has no `split`")?;
                    let found = self.matching(entry.get("path").unwrap_or(&Value::Null), all)?;
                    splits.entry(split.to_string()).or_default().extend(found);
                }
                Ok(splits)
            }
            Value::Object(by_split) => {
                let found = by_split.iter().map(|(split, files)| Ok((split.clone(), self.matching(files, all)?)));
                found.collect()
            }
            patterns => train(self.matching(patterns, all)?),
        }
    }

    /// Returns the files that match a pattern or one of a list of patterns, in the order of the patterns and then of
    /// the file names.
    fn matching(&self, patterns: &Value, all: &[PathBuf]) -> Result<Vec<PathBuf>, String> {
        let patterns: Vec<&Value> = match patterns {
            Value::Array(list) => list.iter().collect(),
            one => vec![one],
        };
        let mut files: Vec<PathBuf> = Vec::new();
        for pattern in patterns {
            let Some(text) = pattern.as_str() else {
                return Err("data_files is not text or a list of texts".into());
            };
            let path = normal(self.data_dir.as_deref().unwrap_or_default()).join(normal(text));
            let pattern = Pattern::new(&path.to_string_lossy())
                .map_err(|e| format!("data_files has the invalid pattern {text}: {}", e.msg))?;
            let found = all.iter().filter(|file| pattern.matches_with(&file.to_string_lossy(), PATTERN_OPTIONS));
            let before = files.len();
            for file in found {
                if !files.contains(file) {
                    files.push(file.clone());
                }
            }
            if files.len() == before {
                return Err(format!("no data file matches {pattern}"));
            }
        }
        Ok(files)
    }
}

/// Returns a relative path without `./` components.
fn normal(path: &str) -> PathBuf {
    Path::new(path).components().filter(|part| !matches!(part, std::path::Component::CurDir)).collect()
}

/// `*`, `?`, `[a-z]` and `[!a-z]` match no `/`; `**` matches any folders.
const PATTERN_OPTIONS: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: false };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_a_shell() {
        for (pattern, path, wanted) in [
            ("a.json", "a.json", true),
            ("*.json", "a.json", true),
            ("*.json", "d/a.json", false),
            ("d/*", "d/a.json", true),
            ("**/*.json", "a.json", true),
            ("**/*.json", "d/e/a.json", true),
            ("**", "d/e/a.json", true),
            ("d/**", "d/e/a.json", true),
            ("d/**/a.json", "d/a.json", true),
            ("d/**/a.json", "da.json", false),
            ("**/a.json", "xa.json", false),
            ("t?.json", "t1.json", true),
            ("t?.json", "t/.json", false),
            ("t[0-9].json", "t7.json", true),
            ("t[0-9].json", "tx.json", false),
            ("t[!0-9].json", "tx.json", true),
            ("T?.json", "t1.json", false),
            ("*", ".json", true),
            ("", "", true),
        ] {
            let got = Pattern::new(pattern).unwrap().matches_with(path, PATTERN_OPTIONS);
            assert_eq!(got, wanted, "{pattern} {path}");
        }
    }

    #[test]
    fn invalid_patterns_are_named() {
        let data_files = Value::Null;
        let config = DatasetConfig { name: "a".into(), is_default: true, data_files, data_dir: Some("d".into()) };
        for pattern in ["t[0-9", "**.json", "***"] {
            let error = config.matching(&Value::from(pattern), &[]).unwrap_err();
            assert!(error.starts_with(&format!("data_files has the invalid pattern {pattern}: ")), "{error}");
        }
    }

    #[test]
    fn front_matter_is_between_dashes() {
        assert_eq!(front_matter("---\na: 1\n---\nText"), Some("a: 1\n"));
        assert_eq!(front_matter("---\r\na: 1\r\n---\r\n"), Some("a: 1\r\n"));
        assert_eq!(front_matter("# Title\n---\na\n---\n"), None);
        assert_eq!(front_matter("---\na: 1\n----\n"), None);
    }
}
