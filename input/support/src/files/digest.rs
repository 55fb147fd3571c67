//! Short fingerprints of weights and files: XXH3 in 16 hex digits. They detect changes, but do not protect against
//! manipulation.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::diagnostic::input;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use crate::files::fingerprint::{self, bytes_fingerprint};

/// Returns the fingerprint of the small files of a model folder that determine how text and media become tokens
/// (config, tokenizer, chat template).
pub fn config_files_fingerprint(folder: &Path) -> Result<String> {
    let names = [
        "config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "chat_template.json",
    ];
    // These files have been part of the fingerprint since Qwen3-VL, whose frames they determine.
    let of_qwen3 = ["processor_config.json", "video_preprocessor_config.json"];
    let config = input::read_text(folder.join("config.json"), input::MAX_CONFIG_BYTES).unwrap_or_default();
    let further = if config.contains("\"qwen3_vl\"") { &of_qwen3[..] } else { &[] };
    let mut all = FingerprintBuilder::default();
    for name in names.iter().chain(further) {
        match input::read_file(folder.join(name), input::MAX_TOKENIZER_BYTES) {
            Ok(text) => all.add(name, XxHash3_64::oneshot(&text)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::cannot_read(folder.join(name), &e)),
        }
    }
    Ok(all.finish())
}

/// Computes one fingerprint of several named pieces of data. It depends on the names, contents and order of the
/// pieces.
#[derive(Debug, Default)]
pub struct FingerprintBuilder(Vec<u64>);

impl FingerprintBuilder {
    /// Adds the piece `name`, whose bytes have the hash `content_hash`.
    pub fn add(&mut self, name: &str, content_hash: u64) {
        self.0.push(XxHash3_64::oneshot(name.as_bytes()));
        self.0.push(content_hash);
    }

    /// Returns the fingerprint of all added pieces.
    pub fn finish(self) -> String {
        fingerprint::hash_to_hex(fingerprint::combine_hashes(&self.0))
    }
}

/// Returns the fingerprint of a file, which equals [`bytes_fingerprint`] of its contents.
pub fn file_fingerprint(path: &Path) -> Result<String> {
    let file = input::open_regular_file(path);
    file.and_then(|file| fingerprint::file_fingerprint(&file)).map_err(|e| Error::cannot_read(path, &e))
}

/// The file extensions that a model folder's fingerprint covers.
const MODEL_FILES: [&str; 3] = ["safetensors", "json", "jinja"];

/// The maximum number of files that a message lists.
const MAX_NAMED_FILES: usize = 3;

/// The fingerprints of the files of a model folder by file name: its weights, its JSON files and its chat template. A
/// run records these fingerprints, so that a later process can tell which file was changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ModelFiles(BTreeMap<String, String>);

impl ModelFiles {
    /// Computes the fingerprints of the files of a model folder.
    ///
    /// # Errors
    /// The folder or a file in it cannot be read.
    pub fn read(dir: &Path) -> Result<Self> {
        let failed = |e| Error::cannot_read(dir, &e);
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_file() && MODEL_FILES.iter().any(|extension| path.extension().is_some_and(|e| e == *extension)) {
                files.insert(name, file_fingerprint(&path)?);
            }
        }
        Ok(Self(files))
    }

    /// True if there are no files.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the names and fingerprints of the files, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &String)> {
        self.0.iter()
    }

    /// Returns one fingerprint of all files.
    pub fn fingerprint(&self) -> String {
        let all: String = self.0.iter().map(|(name, fingerprint)| format!("{name} {fingerprint}\n")).collect();
        bytes_fingerprint(all.as_bytes())
    }

    /// Returns a text about the files that differ from those that a run recorded, such as ` (vocab.json differs)`.
    /// Empty if the record has no files.
    pub fn differences_from(&self, recorded: &Self) -> String {
        let names: BTreeSet<&String> = self.0.keys().chain(recorded.0.keys()).collect();
        let mut different: Vec<&str> =
            names.into_iter().filter(|name| self.0.get(*name) != recorded.0.get(*name)).map(String::as_str).collect();
        if recorded.is_empty() || different.is_empty() {
            return String::new();
        }
        let verb = if different.len() == 1 { "differs" } else { "differ" };
        let more = different.split_off(different.len().min(MAX_NAMED_FILES)).len();
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        format!(" ({}{more} {verb})", different.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_hash_equals_hash_of_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        std::fs::write(&path, "{}").unwrap();
        assert_eq!(file_fingerprint(&path).unwrap(), bytes_fingerprint(b"{}"));
        assert!(file_fingerprint(&dir.path().join("none")).is_err());
    }

    fn named<const N: usize>(parts: [(&str, &[u8]); N]) -> String {
        let mut digest = FingerprintBuilder::default();
        parts.into_iter().for_each(|(name, data)| digest.add(name, XxHash3_64::oneshot(data)));
        digest.finish()
    }

    #[test]
    fn digest_depends_on_names_order_and_contents() {
        let one = named([("a", &[1u8, 2][..]), ("b", &[3])]);
        assert_eq!(one, named([("a", &[1u8, 2][..]), ("b", &[3])]));
        assert_eq!(one.len(), 16);
        for other in [
            named([("b", &[3][..]), ("a", &[1, 2])]),
            named([("a", &[1][..]), ("b", &[2, 3])]),
            named([("a", &[1, 2][..]), ("c", &[3])]),
        ] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn folder_hash_depends_on_weights_json_files_and_template() {
        let dir = tempfile::tempdir().unwrap();
        let folder_fingerprint = |dir: &Path| ModelFiles::read(dir).map(|files| files.fingerprint());
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        let before = folder_fingerprint(dir.path()).unwrap();
        std::fs::write(dir.path().join("notes.txt"), "x").unwrap();
        assert_eq!(folder_fingerprint(dir.path()).unwrap(), before);
        std::fs::write(dir.path().join("model.safetensors"), "x").unwrap();
        let with_weights = folder_fingerprint(dir.path()).unwrap();
        assert_ne!(with_weights, before);
        std::fs::write(dir.path().join("chat_template.jinja"), "x").unwrap();
        assert_ne!(folder_fingerprint(dir.path()).unwrap(), with_weights);
    }

    #[test]
    fn changed_files_of_a_model_are_named() {
        let files = |names: &[(&str, &str)]| {
            ModelFiles(names.iter().map(|(name, hash)| (name.to_string(), hash.to_string())).collect())
        };
        let was = files(&[("a.json", "1"), ("b.json", "1"), ("c.json", "1"), ("d.json", "1")]);
        assert_eq!(was.differences_from(&was), "");
        assert_eq!(was.differences_from(&ModelFiles::default()), "");
        let now = files(&[("a.json", "1"), ("b.json", "2"), ("c.json", "1"), ("d.json", "1")]);
        assert_eq!(now.differences_from(&was), " (b.json differs)");
        let now = files(&[("b.json", "1"), ("c.json", "2"), ("d.json", "1"), ("e.json", "1")]);
        assert_eq!(now.differences_from(&was), " (a.json, c.json, e.json differ)");
        assert_eq!(files(&[]).differences_from(&was), " (a.json, b.json, c.json and 1 more differ)");
    }
}
