//! Writes a model folder in the hub's layout: weights in shards, and copies of the small files of the source folder. A
//! training run creates the folder under a hidden name, its processes fill in the weights, and the finished files are
//! moved to their place.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use reel_input::tensor_file::StoredDType;
use reel_support::diagnostic::input;
use reel_support::files::{AtomicFile, FinishedFile, write_atomically, write_temporary};
use serde_json::{Value, json};

use super::folder_format::{CompanionFiles, FolderFormat, convert_small_files};
use super::weight_files::{FileDType, SHARD_INDEX_FILE, TensorSpec, WeightFiles, header_bytes};
use crate::checkpoint::TensorNaming;
use crate::error::{Error, Result};

/// The largest size of a shard: 5 GB, as on the hub.
pub const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// The small files that are copied from the source folder if they exist there.
const COMPANIONS: [&str; 12] = [
    "generation_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
];

/// The small files of a model folder (config, tokenizer, templates) in memory. A training run reads them before its
/// first step, so that saving a checkpoint does not depend on the folder.
#[derive(Debug, Clone)]
pub struct ConfigAndTokenizerFiles {
    /// The folder that the files were read from.
    folder: PathBuf,
    config: Value,
    /// The contents of the other small files, by file name.
    others: CompanionFiles,
}

impl ConfigAndTokenizerFiles {
    /// Reads the small files of the model folder `folder`.
    ///
    /// # Errors
    /// A file cannot be read, is not a regular file, or is too long; config.json is missing or is not JSON.
    pub fn read(folder: &Path) -> Result<Self> {
        let companion =
            |&name: &&'static str| Some(read_companion(folder, name).transpose()?.map(|bytes| (name, bytes)));
        let others = COMPANIONS.iter().filter_map(companion);
        Ok(Self { folder: folder.to_path_buf(), config: read_config(folder)?, others: others.collect::<Result<_>>()? })
    }

    /// The content of the small file `name`, other than config.json.
    #[cfg(test)]
    pub(super) fn file(&self, name: &str) -> Option<&[u8]> {
        self.others.get(name).map(Vec::as_slice)
    }

    /// Converts the files to the layout of a transformers version.
    ///
    /// # Errors
    /// A file is not a JSON object.
    pub fn in_format(mut self, format: FolderFormat) -> Result<Self> {
        convert_small_files(format, &self.folder, &mut self.config, &mut self.others)?;
        Ok(self)
    }

    /// Converts the small files of `folder`, which this program has just written, to the layout `format`.
    ///
    /// # Errors
    /// A file cannot be read or written, or is not a JSON object.
    pub fn convert_folder(folder: &Path, format: FolderFormat) -> Result<()> {
        let files = Self::read(folder)?.in_format(format)?;
        write_atomically(&folder.join("config.json"), format!("{:#}\n", files.config).as_bytes())?;
        for name in COMPANIONS {
            let path = folder.join(name);
            match files.others.get(name) {
                Some(bytes) => write_atomically(&path, bytes)?,
                None if path.exists() => fs::remove_file(&path).map_err(|e| Error::cannot_write(&path, e))?,
                None => {}
            }
        }
        Ok(())
    }

    /// Writes the files of tokenizer, templates and processor settings into `out` under temporary names. If `out` is
    /// the folder that the files were read from, nothing is written.
    pub(crate) fn write_tokenizer_and_processor_files(&self, out: &Path) -> Result<Vec<FinishedFile>> {
        if is_same_folder(&self.folder, out) {
            return Ok(Vec::new());
        }
        self.others.iter().map(|(name, bytes)| write_temporary(&out.join(name), bytes)).collect()
    }

    /// The text of config.json for weights of type `dtype`. The dtype is written under the key that the source file
    /// uses (`dtype` or `torch_dtype`).
    fn config_text(&self, dtype: StoredDType) -> String {
        let mut root = self.config.clone();
        set_dtype(&mut root, dtype);
        for part in ["text_config", "vision_config"] {
            if let Some(part) = root.get_mut(part) {
                set_dtype(part, dtype);
            }
        }
        format!("{root:#}\n")
    }
}

/// The small files of a model folder, and the naming scheme and dtype of its weights.
#[derive(Debug, Clone, Copy)]
pub struct HubFolder<'a> {
    /// Config, tokenizer and templates.
    pub small_files: &'a ConfigAndTokenizerFiles,
    /// The naming scheme of the tensors in the files. [`crate::checkpoint::Checkpoint::tensor_naming`] returns the
    /// naming scheme of a source folder.
    pub naming: TensorNaming,
    /// The dtype of the weights, which config.json states.
    pub dtype: StoredDType,
}

/// Creates a model folder whose weight files have their full length, but not yet the contents of the tensors. Several
/// writers then write the tensors at their [`WeightFiles::tensor_positions`].
///
/// # Errors
/// A file cannot be written.
pub fn create_hub_folder(out: &Path, folder: HubFolder, weight_files: &WeightFiles) -> Result<()> {
    fs::create_dir_all(out).map_err(|e| Error::cannot_write(out, e))?;
    let mut files = folder.small_files.write_tokenizer_and_processor_files(out)?;
    let config = folder.small_files.config_text(folder.dtype);
    files.push(write_temporary(&out.join("config.json"), config.as_bytes())?);
    files.into_iter().try_for_each(FinishedFile::rename_to_final_name)?;
    weight_files.create(out)
}

/// Moves the files of the complete folder `from` to `to`, on the same disk. If the files are a model, then removes
/// weight files of an earlier save from `to`, because loaders might read those instead.
///
/// # Errors
/// A file cannot be moved or removed.
pub fn move_hub_files(from: &Path, to: &Path) -> Result<()> {
    let mut names = Vec::new();
    for entry in fs::read_dir(from).map_err(|e| Error::cannot_read(from, e))? {
        names.push(entry.map_err(|e| Error::cannot_read(from, e))?.file_name().to_string_lossy().into_owned());
    }
    for name in &names {
        let target = to.join(name);
        fs::rename(from.join(name), &target).map_err(|e| Error::cannot_write(&target, e))?;
    }
    match names.iter().any(|name| name == "config.json") {
        true => remove_others(to, &names.iter().map(String::as_str).collect::<Vec<_>>()),
        false => Ok(()),
    }
}

pub(crate) fn is_same_folder(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

fn read_companion(source: &Path, name: &str) -> Result<Option<Vec<u8>>> {
    match input::read_file(source.join(name), input::MAX_TOKENIZER_BYTES) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::cannot_read(source.join(name), e)),
    }
}

fn read_config(folder: &Path) -> Result<Value> {
    let path = folder.join("config.json");
    let text = input::read_text(&path, input::MAX_CONFIG_BYTES).map_err(|e| Error::cannot_read(&path, e))?;
    serde_json::from_str(&text).map_err(|e| {
        Error::input(path.display().to_string(), format!("is not JSON ({e})"), "copy or download config.json again")
    })
}

/// Writes into config.json of `folder` that the output layer has a tensor of its own.
pub(crate) fn untie_embeddings(folder: &Path) -> Result<()> {
    const KEY: &str = "tie_word_embeddings";
    let mut config = read_config(folder)?;
    if let Some(tied) = config.get_mut("text_config").and_then(|text| text.get_mut(KEY)) {
        *tied = json!(false);
    }
    config[KEY] = json!(false);
    write_atomically(&folder.join("config.json"), format!("{config:#}\n").as_bytes())
}

/// Writes into config.json of `folder` how the weights are quantised.
pub(super) fn set_quantization(folder: &Path, quantization: Value) -> Result<()> {
    let mut config = read_config(folder)?;
    config["quantization_config"] = quantization;
    write_atomically(&folder.join("config.json"), format!("{config:#}\n").as_bytes())
}

/// Writes into config.json of `folder` that the weights are not quantised, and, if it is given, their dtype.
pub(crate) fn set_unquantized(folder: &Path, dtype: Option<StoredDType>) -> Result<()> {
    let mut config = read_config(folder)?;
    let parts = ["", "/text_config", "/vision_config"];
    for part in parts {
        let Some(object) = config.pointer_mut(part) else { continue };
        if let Some(object) = object.as_object_mut() {
            object.shift_remove("quantization_config");
        }
        dtype.into_iter().for_each(|dtype| set_dtype(object, dtype));
    }
    write_atomically(&folder.join("config.json"), format!("{config:#}\n").as_bytes())
}

fn set_dtype(object: &mut Value, dtype: StoredDType) {
    for key in ["dtype", "torch_dtype"] {
        if let Some(value) = object.get_mut(key) {
            *value = json!(dtype.torch_dtype_name());
        }
    }
}

/// Writes `model.safetensors`, or several shards with an index. A shard has at most `shard_bytes`, unless it is a
/// single larger tensor. All files get their final names together at the end. Then weight files that remain from an
/// earlier save are removed from the folder.
pub fn write_weights<D: FileDType>(
    out: &Path,
    naming: TensorNaming,
    tensors: &[TensorSpec<D>],
    shard_bytes: u64,
    mut fill: impl FnMut(&TensorSpec<D>, &mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    let weight_files = WeightFiles::new(naming, tensors, shard_bytes);
    let (mut files, mut names) = (Vec::new(), Vec::new());
    for (name, shard) in weight_files.shards() {
        files.push(write_shard(&out.join(name), |name| naming.from_classic_name(name), shard, &mut fill)?);
        names.push(name.as_str());
    }
    if let Some(index) = weight_files.index_json() {
        files.push(write_temporary(&out.join(SHARD_INDEX_FILE), index.as_bytes())?);
        names.push(SHARD_INDEX_FILE);
    }
    files.into_iter().try_for_each(FinishedFile::rename_to_final_name)?;
    remove_others(out, &names)
}

/// Writes a safetensors file of `tensors`. The finished `files` get their final names together with this file. `rename`
/// gives each tensor its name in the file.
pub(crate) fn write_tensor_file_and_finish(
    mut files: Vec<FinishedFile>,
    path: &Path,
    rename: impl Fn(&str) -> String,
    tensors: &[TensorSpec],
    mut fill: impl FnMut(&TensorSpec, &mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    files.push(write_shard(path, rename, tensors, &mut fill)?);
    files.into_iter().try_for_each(FinishedFile::rename_to_final_name)
}

fn write_shard<D: FileDType>(
    path: &Path,
    rename: impl Fn(&str) -> String,
    shard: &[TensorSpec<D>],
    fill: &mut impl FnMut(&TensorSpec<D>, &mut dyn Write) -> io::Result<()>,
) -> Result<FinishedFile> {
    let mut file = AtomicFile::create(path)?;
    header_bytes(rename, shard).and_then(|header| file.write_all(&header)).map_err(|e| file.write_error(e))?;
    for tensor in shard {
        let mut writer = TensorWriter::new(&mut file, tensor.bytes());
        let filled = fill(tensor, &mut writer).and_then(|()| writer.check());
        filled.map_err(|e| file.write_error(e))?;
    }
    file.finish()
}

/// Removes the weight files of an earlier save. Loaders might read them instead of the new files.
fn remove_others(out: &Path, names: &[&str]) -> Result<()> {
    for entry in fs::read_dir(out).map_err(|e| Error::cannot_read(out, e))? {
        let path = entry.map_err(|e| Error::cannot_read(out, e))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let is_ours = name == "model.safetensors"
            || name == SHARD_INDEX_FILE
            || (name.starts_with("model-") && name.contains("-of-") && name.ends_with(".safetensors"));
        if is_ours && !names.contains(&name) {
            fs::remove_file(&path).map_err(|e| Error::cannot_write(&path, e))?;
        }
    }
    Ok(())
}

/// A writer for the bytes of one tensor. It refuses more bytes than the file's header states, and
/// [`TensorWriter::check`] fails if fewer were written.
#[derive(Debug)]
pub struct TensorWriter<W> {
    inner: W,
    left: u64,
}

impl<W: Write> TensorWriter<W> {
    /// Makes a writer of a tensor of `bytes` bytes to `inner`.
    pub fn new(inner: W, bytes: u64) -> Self {
        Self { inner, left: bytes }
    }

    /// Checks that all bytes of the tensor were written.
    ///
    /// # Errors
    /// Bytes are missing.
    pub fn check(&self) -> io::Result<()> {
        match self.left {
            0 => Ok(()),
            left => Err(io::Error::other(format!("{left} bytes of a tensor were not written"))),
        }
    }
}

impl<W: Write> Write for TensorWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            return Err(io::Error::other("more bytes were written for a tensor than its shape has"));
        }
        let n = self.inner.write(bytes)?;
        self.left -= n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
