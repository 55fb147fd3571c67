//! Finds the weight files of a model folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use reel_input::tensor_file::foreign_checkpoint;
use reel_support::diagnostic::{input, print_note_once};
use serde_json::Value;

use super::COPY_AGAIN;
use crate::error::{Error, Result};

/// The weight files of a model folder.
pub(super) struct WeightFilePaths {
    /// The paths of the files, in the order in which they are opened.
    pub(super) files: Vec<PathBuf>,
    /// Each tensor's name and the file that holds it, according to the index; empty without an index.
    pub(super) indexed_tensors: Vec<(String, PathBuf)>,
}

/// Finds the weight files of a folder: the shards of the index, or `model.safetensors`, or all `*.safetensors` files. A
/// note names other files of weights that are not used.
///
/// # Errors
/// There is no such file; or there are an index and a `model.safetensors` that the index does not list. In that case
/// transformers reads the file and vLLM reads the shards of the index, so it is unclear which weights are wanted.
pub(super) fn find_weight_files(folder: &Path) -> Result<WeightFilePaths> {
    let single = folder.join("model.safetensors");
    let index = folder.join("model.safetensors.index.json");
    let found = match (index.exists(), single.exists()) {
        (true, has_single) => {
            let found = from_index(folder, &index)?;
            if has_single && !found.files.contains(&single) {
                let what = "is beside model.safetensors.index.json, which does not list it, so there are two models";
                let help = "remove the one that does not belong to this model";
                return Err(Error::failed(single.display().to_string(), what, help));
            }
            found
        }
        (false, true) => WeightFilePaths { files: vec![single], indexed_tensors: Vec::new() },
        (false, false) => return any(folder),
    };
    let unused = |name: &String| name.starts_with("model") || name.starts_with("consolidated");
    let used = |name: &String| found.files.contains(&folder.join(name));
    for name in safetensors_names(folder)?.into_iter().filter(|name| unused(name) && !used(name)) {
        print_note_once(format!(
            "{}: not used, because the weights are read from other files",
            folder.join(name).display()
        ));
    }
    Ok(found)
}

/// The names of the files in a folder that end in `.safetensors`, sorted.
fn safetensors_names(folder: &Path) -> Result<Vec<String>> {
    let cannot_read = |e| Error::cannot_read(folder, e);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(cannot_read)? {
        let name = entry.map_err(cannot_read)?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".safetensors") {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn from_index(folder: &Path, index: &Path) -> Result<WeightFilePaths> {
    let broken = |what: String| Error::failed(index.display().to_string(), what, COPY_AGAIN);
    let text = input::read_text(index, input::MAX_CONFIG_BYTES).map_err(|e| Error::cannot_read(index, e))?;
    let value: Value = serde_json::from_str(&text).map_err(|e| broken(format!("is not JSON ({e})")))?;
    let Some(map) = value.get("weight_map").and_then(Value::as_object) else {
        return Err(broken("has no `weight_map` object".to_string()));
    };
    let mut files = BTreeMap::new();
    let mut indexed_tensors = Vec::with_capacity(map.len());
    for (name, file) in map {
        let Some(file) = file.as_str().filter(|file| is_plain_name(file)) else {
            return Err(broken(format!(
                "gives {file} as the file of `{name}`, which is not the name of a file in this folder"
            )));
        };
        let path = folder.join(file);
        if files.insert(file.to_string(), path.clone()).is_none() && !path.exists() {
            let what = "is missing, although model.safetensors.index.json lists it";
            return Err(Error::failed(path.display().to_string(), what, "copy or download it into the folder"));
        }
        indexed_tensors.push((name.clone(), path));
    }
    if files.is_empty() {
        return Err(broken("has an empty `weight_map`".to_string()));
    }
    Ok(WeightFilePaths { files: files.into_values().collect(), indexed_tensors })
}

/// Whether a file name in an index has no folder part, so that it cannot refer to a file outside the folder.
fn is_plain_name(file: &str) -> bool {
    !file.is_empty() && file != ".." && file != "." && !file.contains(['/', '\\', '\0'])
}

fn any(folder: &Path) -> Result<WeightFilePaths> {
    let names = safetensors_names(folder)?;
    let paths = names.iter().filter(|name| !name.starts_with("adapter_")).map(|name| folder.join(name));
    let files: Vec<PathBuf> = paths.filter(|path| path.is_file()).collect();
    if files.is_empty() {
        let none = ("has no *.safetensors", "use a folder with the weights of the model");
        let (what, help) = foreign_checkpoint(folder).unwrap_or(none);
        return Err(Error::failed(folder.display().to_string(), what, help));
    }
    Ok(WeightFilePaths { files, indexed_tensors: Vec::new() })
}
