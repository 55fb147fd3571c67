//! `reel init`: writes a model folder in the hub's layout with random weights and a small tokenizer.
//!
//! Equal seeds give equal bytes on every machine. Weights are generated and written chunk by chunk, so memory use is
//! small.

mod bpe;
mod normal;
mod presets;
mod qwen3;
mod siglip;
#[cfg(test)]
mod tests;
pub(crate) mod weights;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use reel_input::chat::{CHAT_TEMPLATE, QWEN3_CHAT_TEMPLATE};
use reel_input::config::{Family, ModelConfig};
use reel_input::tensor_file::StoredDType;
use reel_support::diagnostic::TemporaryPaths;
use reel_support::files::{FOLDER_LOCK_FILE, FolderLock, write_atomically};
use serde_json::{Value, json};

use crate::checkpoint::{TensorNaming, expected_tensors};
use crate::error::{Error, Result};
use crate::save::{MAX_SHARD_BYTES, TensorSpec, write_weights};

pub(crate) use bpe::{MERGES, SmallTokenizer, small_tokenizer};
pub use presets::Preset;
pub use siglip::init_siglip;

/// Options of [`init_model_folder`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InitOptions {
    /// The model size.
    pub preset: Preset,
    /// The number of decoder layers; `None` keeps the preset's number.
    pub layers: Option<usize>,
    /// The number of rows of the embedding table; `None` keeps the preset's number.
    pub vocab: Option<usize>,
    /// The dtype of the weights; `None` keeps the preset's dtype.
    pub dtype: Option<StoredDType>,
    /// The seed of the weights.
    pub seed: u64,
}

/// The result of [`init_model_folder`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InitReport {
    /// The number of parameters.
    pub parameters: u64,
    /// The size of the weights in bytes.
    pub bytes: u64,
}

/// Writes a model folder for a preset. The folder `out` must be new or empty.
pub fn init_model_folder(options: &InitOptions, out: &Path) -> Result<InitReport> {
    let tokenizer = options.preset.tokenizer();
    let dtype = options.dtype.unwrap_or(options.preset.default_dtype());
    let config = config_json(options, &tokenizer)?;
    let parsed = ModelConfig::parse(&out.join("config.json").display().to_string(), &config.to_string())?;
    let tensors: Vec<TensorSpec> =
        expected_tensors(&parsed).into_iter().map(|(name, shape)| TensorSpec { name, dtype, shape }).collect();
    let family = options.preset.family();
    let files = small_files(family, &config, &tokenizer);
    write_folder(&files, TensorNaming::of_family(family), &tensors, out, |spec, file| {
        weights::write_random_tensor(spec, weights::initializer(&spec.name, &spec.shape, &parsed), options.seed, file)
    })
}

/// Writes the model folder of [`init_model_folder`] without its weights. Such a folder is enough to read and encode
/// training data.
pub fn init_without_weights(options: &InitOptions, out: &Path) -> Result<()> {
    let tokenizer = options.preset.tokenizer();
    let config = config_json(options, &tokenizer)?;
    make_empty(out)?;
    write_small_files(&small_files(options.preset.family(), &config, &tokenizer), out)
}

/// The config that [`init_model_folder`] would write, for `reel plan --preset`.
pub fn preset_config(options: &InitOptions) -> Result<ModelConfig> {
    let tokenizer = options.preset.tokenizer();
    let config = config_json(options, &tokenizer)?;
    ModelConfig::parse("--preset", &config.to_string())
}

/// Writes the small files and the weights into the folder `out`. After an error, removes what was written.
fn write_folder(
    files: &[(&str, String)],
    naming: TensorNaming,
    tensors: &[TensorSpec],
    out: &Path,
    fill: impl FnMut(&TensorSpec, &mut dyn io::Write) -> io::Result<()>,
) -> Result<InitReport> {
    let _lock = FolderLock::acquire(out).map_err(|e| Error::cannot_lock_folder(out, e))?;
    make_empty(out)?;
    let paths = files.iter().map(|(name, _)| out.join(name)).chain([out.join("model.safetensors")]);
    let _unfinished = TemporaryPaths::new(paths);
    let large = || write_weights(out, naming, tensors, MAX_SHARD_BYTES, fill);
    if let Err(error) = write_small_files(files, out).and_then(|()| large()) {
        // Ignores errors, because the error that interrupted the writing is returned. The lock removes the folder.
        files.iter().for_each(|(name, _)| drop(fs::remove_file(out.join(name))));
        return Err(error);
    }
    let bytes: u64 = tensors.iter().map(TensorSpec::bytes).sum();
    let parameters = tensors.iter().map(|t| t.bytes() / t.dtype.element_bytes() as u64).sum();
    Ok(InitReport { parameters, bytes })
}

fn write_small_files(files: &[(&str, String)], out: &Path) -> Result<()> {
    files.iter().try_for_each(|(name, text)| write_atomically(&out.join(name), text.as_bytes()))
}

/// Creates the folder if it does not exist. Returns an error if it has a file other than the lock of this process.
fn make_empty(out: &Path) -> Result<()> {
    fs::create_dir_all(out).map_err(|e| Error::cannot_write(out, e))?;
    let entries = fs::read_dir(out).map_err(|e| Error::cannot_read(out, e))?;
    match entries.flatten().all(|entry| entry.file_name() == FOLDER_LOCK_FILE) {
        true => Ok(()),
        false => {
            let help = "use a folder that does not exist yet, or an empty one";
            Err(Error::input(out.display().to_string(), "is not empty", help))
        }
    }
}

/// The content of config.json.
///
/// # Errors
/// The vocabulary is smaller than that of the tokenizer.
fn config_json(options: &InitOptions, tokenizer: &SmallTokenizer) -> Result<Value> {
    let dtype = options.dtype.unwrap_or(options.preset.default_dtype());
    if let Some(vocab) = options.vocab.filter(|&vocab| vocab < tokenizer.end as usize) {
        let what =
            format!("{vocab} is too small for this preset's tokenizer, whose ids go up to {}", tokenizer.end - 1);
        return Err(Error::usage("--vocab", what, format!("use at least {}", tokenizer.end)));
    }
    Ok(options.preset.config_json(options.layers, options.vocab, dtype, &tokenizer.added, tokenizer.end))
}

fn small_files(family: Family, config: &Value, tokenizer: &SmallTokenizer) -> Vec<(&'static str, String)> {
    let pretty = |value: &Value| format!("{value:#}\n");
    let ids = &tokenizer.added;
    let (template, generation, preprocessor) = match family {
        Family::Qwen25Vl => (CHAT_TEMPLATE, qwen25_generation_config(ids), qwen25_image_processor()),
        Family::Qwen3Vl => (QWEN3_CHAT_TEMPLATE, qwen3::generation_config(ids), qwen3::image_processor()),
    };
    let mut tokenizer_config = tokenizer.config.clone();
    tokenizer_config["chat_template"] = json!(template);
    let mut files = vec![
        ("config.json", pretty(config)),
        ("generation_config.json", pretty(&generation)),
        ("preprocessor_config.json", pretty(&preprocessor)),
        ("chat_template.json", pretty(&json!({"chat_template": template}))),
        ("tokenizer.json", pretty(&tokenizer.json)),
        ("tokenizer_config.json", pretty(&tokenizer_config)),
        ("vocab.json", tokenizer.vocab.to_string()),
        ("merges.txt", MERGES.to_string()),
    ];
    if family == Family::Qwen3Vl {
        files.push(("video_preprocessor_config.json", pretty(&qwen3::video_processor())));
    }
    files
}

/// The content of generation_config.json of Qwen2.5-VL.
fn qwen25_generation_config(ids: &BTreeMap<&str, u32>) -> Value {
    json!({
        "bos_token_id": ids["<|endoftext|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "do_sample": true,
        "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
        "repetition_penalty": 1.0,
        "temperature": 1e-6,
        "transformers_version": "4.49.0",
    })
}

/// The content of preprocessor_config.json of Qwen2.5-VL.
fn qwen25_image_processor() -> Value {
    json!({
        "min_pixels": 3136,
        "max_pixels": 12_845_056,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
    })
}
