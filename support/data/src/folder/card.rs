//! The configurations in the front matter of a data set's README.md.

use std::path::{Path, PathBuf};

use reel_diagnostic::{input, one_line};
use serde_json::Value;

use super::{DEFAULT_SPLIT, Splits, names};
use crate::{DataError, Result};

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
    let text = input::read_file(&path, input::MAX_CONFIG_BYTES).map_err(|e| DataError::cannot_read(&path, &e))?;
    let text = String::from_utf8_lossy(&text);
    let Some(yaml) = front_matter(&text) else { return Ok(Vec::new()) };
    let error = |what: String| {
        DataError::malformed(path.display().to_string(), what, "correct its front matter, or remove `configs`")
    };
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
    /// A pattern matches no file, or `data_files` has an unknown form. The error is a text about what is wrong with
    /// the configuration.
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
            let Some(pattern) = pattern.as_str() else {
                return Err("data_files is not text or a list of texts".into());
            };
            let pattern = normal(self.data_dir.as_deref().unwrap_or_default()).join(normal(pattern));
            let pattern: Vec<char> = pattern.to_string_lossy().chars().collect();
            let found =
                all.iter().filter(|file| matches(&pattern, &file.to_string_lossy().chars().collect::<Vec<_>>()));
            let before = files.len();
            for file in found {
                if !files.contains(file) {
                    files.push(file.clone());
                }
            }
            if files.len() == before {
                return Err(format!("no data file matches {}", pattern.iter().collect::<String>()));
            }
        }
        Ok(files)
    }
}

/// Returns a relative path without `./` components.
fn normal(path: &str) -> PathBuf {
    Path::new(path).components().filter(|part| !matches!(part, std::path::Component::CurDir)).collect()
}

/// Tells whether a path matches a pattern with `*` and `?` (without `/`), `**` (any folders) and `[a-z]` or `[!a-z]`.
fn matches(pattern: &[char], path: &[char]) -> bool {
    // One row of a dynamic programming table: entry j tells whether the first i characters of the pattern match the
    // first j characters of the path.
    let mut now = vec![false; path.len() + 1];
    now[0] = true;
    let mut at = 0;
    while at < pattern.len() {
        let mut next = vec![false; path.len() + 1];
        match pattern[at] {
            '*' if pattern.get(at + 1) == Some(&'*') => {
                // `**/` also matches an empty sequence of folders.
                at += if pattern.get(at + 2) == Some(&'/') { 3 } else { 2 };
                let whole_folders = pattern[at - 1] == '/';
                let mut open = false;
                for j in 0..=path.len() {
                    open |= now[j];
                    next[j] = now[j] || open && (!whole_folders || path[j - 1] == '/');
                }
            }
            '*' => {
                at += 1;
                for j in 0..=path.len() {
                    next[j] = now[j] || j > 0 && next[j - 1] && path[j - 1] != '/';
                }
            }
            c => {
                let set = if c == '[' { character_set(&pattern[at..]) } else { None };
                at += set.as_ref().map_or(1, |(length, _)| *length);
                for j in 0..path.len() {
                    let fits = match &set {
                        Some((_, accepts)) => path[j] != '/' && accepts(path[j]),
                        None => c == path[j] || c == '?' && path[j] != '/',
                    };
                    next[j + 1] = now[j] && fits;
                }
            }
        }
        now = next;
    }
    now[path.len()]
}

/// Returns the length of a character set such as `[0-9]` at the start of a pattern, and a function that tells which
/// characters the set contains.
fn character_set(pattern: &[char]) -> Option<(usize, impl Fn(char) -> bool)> {
    let end = 2 + pattern.iter().skip(2).position(|&c| c == ']')?;
    let inside = &pattern[1..end];
    let (negated, inside) = match inside.first() {
        Some('!' | '^') => (true, inside[1..].to_vec()),
        _ => (false, inside.to_vec()),
    };
    let accepts = move |c: char| {
        let (mut i, mut found) = (0, false);
        while i < inside.len() {
            if inside.get(i + 1) == Some(&'-') && i + 2 < inside.len() {
                found |= (inside[i]..=inside[i + 2]).contains(&c);
                i += 3;
            } else {
                found |= inside[i] == c;
                i += 1;
            }
        }
        found != negated
    };
    Some((end + 1, accepts))
}

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
            ("t[0-9", "t[0-9", true),
            ("", "", true),
        ] {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            assert_eq!(matches(&chars(pattern), &chars(path)), wanted, "{pattern} {path}");
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
