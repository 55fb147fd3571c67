//! Finds the split of a file by the file's name or its folder.

use std::path::{Path, PathBuf};

use super::{DEFAULT_SPLIT, Splits};

/// Words that stand for a split, with the name of the split, as in the library `datasets`.
const SPLIT_WORDS: [(&str, &str); 9] = [
    ("train", "train"),
    ("training", "train"),
    ("validation", "validation"),
    ("valid", "validation"),
    ("val", "validation"),
    ("dev", "validation"),
    ("test", "test"),
    ("testing", "test"),
    ("eval", "test"),
];

/// JSON files of a data set that contain metadata and no rows.
const NO_DATA: [&str; 4] = ["dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"];

/// Returns the format of a data file by its extension. JSON Lines has two extensions.
pub(super) fn format_name(path: &Path) -> &'static str {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    match &extension[..] {
        "json" => "json",
        "jsonl" | "ndjson" => "jsonl",
        "parquet" => "parquet",
        _ => "",
    }
}

/// Tells by a file's name whether the file contains rows of data.
pub(super) fn is_data_file(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    !format_name(path).is_empty() && !NO_DATA.contains(&&*name)
}

/// Divides files among splits. If there are names like `data/SPLIT-00000-of-00002.parquet`, all other files are
/// ignored. Otherwise a word in the name of a file or of its folder determines the split. If no name has such a word,
/// all files belong to the split `train`.
pub(super) fn splits_of_files(files: &[PathBuf]) -> Splits {
    for split_of in [split_of_shard, split_of_words] {
        let mut splits = Splits::new();
        for file in files {
            if let Some(split) = split_of(file) {
                splits.entry(split).or_default().push(file.clone());
            }
        }
        if !splits.is_empty() {
            return splits;
        }
    }
    Splits::from([(DEFAULT_SPLIT.to_string(), files.to_vec())])
}

/// Returns the split of a file that is named `data/SPLIT-NNNNN-of-NNNNN…`.
fn split_of_shard(file: &Path) -> Option<String> {
    let name = file.strip_prefix("data").ok()?.to_str()?;
    let (split, rest) = name.split_once('-')?;
    let is_number = |text: Option<&str>| text.is_some_and(|t| t.len() == 5 && t.bytes().all(|b| b.is_ascii_digit()));
    let is_word = !split.is_empty() && split.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '.');
    (is_word && is_number(rest.get(..5)) && rest.get(5..9) == Some("-of-")).then(|| split.to_string())
}

/// Returns the split for which a word in the file's name stands, or else a word in the name of one of its folders.
fn split_of_words(file: &Path) -> Option<String> {
    let split = |name: &str| {
        let words = name.split(|c: char| !c.is_ascii_alphabetic());
        let found: Vec<&str> = words.filter_map(|word| Some(SPLIT_WORDS.iter().find(|(w, _)| *w == word)?.1)).collect();
        found.first().map(ToString::to_string)
    };
    let stem = file.file_stem()?.to_str()?;
    split(stem).or_else(|| file.parent()?.iter().rev().find_map(|folder| split(folder.to_str()?)))
}
