//! Reads and writes an adapter folder in the format of PEFT: `adapter_config.json`, and `adapter_model.safetensors`
//! with two matrices per layer, `base_model.model.LAYER.lora_A.weight` `[r, in]` and
//! `base_model.model.LAYER.lora_B.weight` `[out, r]`. Tensors without `lora_` in their name replace tensors of the base
//! model (PEFT's `modules_to_save`).

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use reel_device::MappedFile;
use reel_input::config::{Family, ModelConfig};
use reel_input::tensor_file::{HeaderTensor, StoredDType, read_header};
use reel_support::files::write_temporary;
use reel_support::hub::{Hub, Repository};

use super::config::{AdapterConfig, adapter_config_json};
use super::{ADAPTER_CONFIG_FILE, LinearLayer, LoraSpec, linear_layers};
use crate::checkpoint::{Checkpoint, EMBEDDINGS, LM_HEAD, TensorNaming, expected_tensors};
use crate::error::{Error, Result};
use crate::save::{ConfigAndTokenizerFiles, TensorSpec, write_tensor_file_and_finish};
use crate::widen::widen_to_f32;

/// The file with the matrices of an adapter.
pub const ADAPTER_WEIGHTS_FILE: &str = "adapter_model.safetensors";

const OF_BASE: &str = "use the model that the adapter was trained on";

/// The prefix that PEFT puts before layer names.
const PREFIX: &str = "base_model.model.";

/// The config and the memory-mapped matrices of an adapter folder.
#[derive(Debug)]
pub struct Adapter {
    path: PathBuf,
    config: AdapterConfig,
    file: Arc<MappedFile>,
    /// The naming scheme of the stored tensors.
    naming: TensorNaming,
    /// The adapted layers, keyed by their classic name (as on the hub).
    layers: BTreeMap<String, AdaptedLayer>,
    /// The tensors that replace tensors of the base model, keyed by their classic name.
    replaced: BTreeMap<String, HeaderTensor>,
}

/// The rank and the scale of an adapted layer, and its matrices A and B.
#[derive(Debug)]
struct AdaptedLayer {
    r: usize,
    scale: f32,
    matrices: [Option<HeaderTensor>; 2],
}

/// The LoRA matrices of a layer, in f32.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LoraMatrices {
    /// The factor by which `B A x` is multiplied: alpha / r, or alpha / √r with rsLoRA.
    pub(super) scale: f32,
    pub(super) r: usize,
    pub(super) inner: usize,
    pub(super) out: usize,
    /// The matrix A, `[r, inner]`.
    pub(super) down: Vec<f32>,
    /// The matrix B, `[out, r]`.
    pub(super) up: Vec<f32>,
}

impl Adapter {
    /// Memory-maps an adapter folder and checks that its files agree with each other. [`Adapter::check`] checks them
    /// against a model.
    pub fn open(folder: &Path) -> Result<Adapter> {
        let config = AdapterConfig::open(folder)?;
        let path = folder.join(ADAPTER_WEIGHTS_FILE);
        if !path.exists() && folder.join("adapter_model.bin").exists() {
            let what = "is a pickle file, which is not supported";
            let help = "save the adapter with PEFT's save_pretrained(…, safe_serialization=True)";
            return Err(Error::failed(folder.join("adapter_model.bin").display().to_string(), what, help));
        }
        let file = MappedFile::open(&path).map_err(|e| Error::cannot_read(&path, e))?;
        let (mut layers, mut replaced) = (BTreeMap::<_, AdaptedLayer>::new(), BTreeMap::<_, HeaderTensor>::new());
        let header = read_header(&path, file.as_bytes())?;
        let naming = TensorNaming::of(header.iter().filter_map(|stored| stored.name.strip_prefix(PREFIX)));
        for stored in header {
            let twice = |other: &HeaderTensor| {
                let what = format!("names the same matrix as {}", other.name);
                Err(fault(&path, &stored.name, what, "keep one of the two"))
            };
            match TensorName::parse(&stored.name) {
                Some(TensorName::Matrix(module, index)) => {
                    let layer = layers.entry(TensorNaming::to_classic_name(module)).or_insert_with(|| {
                        let (r, scale) = config.rank_and_scale(module);
                        AdaptedLayer { r, scale: scale as f32, matrices: [None, None] }
                    });
                    if let Some(other) = &layer.matrices[index] {
                        return twice(other);
                    }
                    layer.matrices[index] = Some(stored);
                }
                Some(TensorName::Replaced(name)) => {
                    if let Some(other) = replaced.get(&name) {
                        return twice(other);
                    }
                    replaced.insert(name, stored);
                }
                None => {
                    let what = "is not a matrix of a LoRA adapter (…lora_A.weight or …lora_B.weight)";
                    let help = "only plain LoRA is supported; merge this adapter with PEFT (merge_and_unload)";
                    return Err(fault(&path, &stored.name, what, help));
                }
            }
        }
        if layers.is_empty() && replaced.is_empty() {
            let help = "use a trained adapter";
            return Err(Error::failed(path.display().to_string(), "has no matrices", help));
        }
        Ok(Adapter { path, config, file, naming, layers, replaced })
    }

    /// The base model that the config names: a folder or a hub id.
    pub fn base_model(&self) -> Option<&str> {
        self.config.base.as_deref()
    }

    /// The folder of the base model that the config names, if it is on this machine: a folder, or a complete model of
    /// the hub cache. `folder` is the adapter's folder; the error for a missing base model ends with `help`.
    ///
    /// # Errors
    /// The config names no base model, or a base model that is not on this machine. It is never downloaded, because
    /// the adapter may come from an untrusted author.
    pub fn local_base_model(&self, folder: &Path, help: &str) -> Result<PathBuf> {
        let location = format!("{}: base_model_name_or_path", folder.join(ADAPTER_CONFIG_FILE).display());
        let Some(base) = self.base_model() else {
            return Err(Error::input(location, "is missing", help));
        };
        let cached = || Hub::from_environment().cached_folder(&Repository::parse_model(base)?);
        let local = Path::new(base).is_dir().then(|| PathBuf::from(base)).or_else(cached);
        local.ok_or_else(|| {
            let what = format!("names {base}, which is neither a folder nor in the hub cache");
            Error::input(location, what, help)
        })
    }

    /// The factor by which `B A x` of a layer is multiplied, by the layer's classic name: alpha / r, or alpha / √r with
    /// rsLoRA; `None` if the layer has no adapter.
    pub fn scale(&self, layer: &str) -> Option<f32> {
        self.layers.get(layer).map(|layer| layer.scale)
    }

    /// Whether the adapter replaces tensors of the base model (PEFT's `modules_to_save`).
    pub fn replaces_tensors(&self) -> bool {
        !self.replaced.is_empty()
    }

    /// The classic names (as on the hub) of the adapted layers.
    pub fn adapted_layers(&self) -> impl Iterator<Item = &str> {
        self.layers.keys().map(String::as_str)
    }

    /// Checks the adapter against a model: all layers and replaced tensors exist with the right shape, and all values
    /// are finite.
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        let known = linear_layers(config);
        let known: BTreeMap<&str, &LinearLayer> = known.iter().map(|layer| (layer.name.as_str(), layer)).collect();
        for (name, AdaptedLayer { r, matrices, .. }) in &self.layers {
            let any = matrices.iter().flatten().next().map_or(name.as_str(), |stored| &stored.name);
            let Some(layer) = known.get(name.as_str()) else {
                let what = "belongs to a layer that the model does not have, or that cannot have an adapter";
                return Err(fault(&self.path, any, what, OF_BASE));
            };
            for (stored, shape) in matrices.iter().zip([[*r, layer.inner], [layer.out, *r]]) {
                let Some(stored) = stored else {
                    let what = "has no counterpart: each layer needs both lora_A and lora_B";
                    return Err(fault(&self.path, any, what, "copy or download the file again"));
                };
                self.check_tensor(stored, &shape, &format!("the model and r = {r}"))?;
            }
        }
        // With tied embeddings the adapter may have an output layer of its own.
        let known = expected_tensors(&ModelConfig { tie_word_embeddings: false, ..config.clone() });
        for (name, shape) in &known {
            match self.replaced.get(name) {
                Some(stored) => self.check_tensor(stored, shape, "the model")?,
                None if self.must_replace(name) => {
                    let what = format!("lacks {name}, although modules_to_save lists its module");
                    let help = "copy or download the file again";
                    return Err(Error::failed(self.path.display().to_string(), what, help));
                }
                None => {}
            }
        }
        match self.replaced.iter().find(|(name, _)| !known.iter().any(|(known, _)| known == *name)) {
            Some((_, stored)) => Err(fault(&self.path, &stored.name, "is not a tensor of the model", OF_BASE)),
            None => Ok(()),
        }
    }

    /// Like [`Adapter::check`], for an adapter that shares the weights of its base model with other adapters.
    ///
    /// # Errors
    /// The errors of [`Adapter::check`]; the adapter replaces tensors of the base model.
    pub fn check_shared(&self, config: &ModelConfig) -> Result<()> {
        self.check(config)?;
        let Some(stored) = self.replaced.values().next() else { return Ok(()) };
        let what = "replaces a tensor of the base model (modules_to_save), which other adapters use too";
        let help = "serve the adapter alone, as --model, or merge it (reel merge)";
        Err(fault(&self.path, &stored.name, what, help))
    }

    /// Whether `modules_to_save` lists a module that has the tensor `name`. By PEFT's rule it lists each module whose
    /// name ends with one of its texts.
    fn must_replace(&self, name: &str) -> bool {
        let name = self.naming.from_classic_name(name);
        let mut modules = name.match_indices('.').map(|(end, _)| &name[..end]);
        modules.any(|module| self.config.modules_to_save.iter().any(|listed| module.ends_with(listed)))
    }

    fn check_tensor(&self, stored: &HeaderTensor, shape: &[usize], by: &str) -> Result<()> {
        if stored.shape != shape {
            let what = format!("has shape {:?}, expected {shape:?} by {by}", stored.shape);
            return Err(fault(&self.path, &stored.name, what, OF_BASE));
        }
        if self.values(stored)?.iter().any(|x| !x.is_finite()) {
            let what = "has a value that is not finite";
            return Err(fault(&self.path, &stored.name, what, "train the adapter again"));
        }
        Ok(())
    }

    /// Replaces tensors in the weights of the base model, and returns the files and the config of the result. If one of
    /// two tied tensors is replaced, the result has both. [`Adapter::check`] must have been called before.
    pub fn replace_tensors(&self, mut files: Checkpoint, config: &ModelConfig) -> Result<(Checkpoint, ModelConfig)> {
        let mut config = config.clone();
        if config.tie_word_embeddings && [EMBEDDINGS, LM_HEAD].iter().any(|name| self.replaced.contains_key(*name)) {
            config.tie_word_embeddings = false;
            files.copy_entry(EMBEDDINGS, LM_HEAD);
        }
        let replaced = self.replaced.iter().map(|(name, stored)| Ok((name.clone(), self.dtype(stored)?, stored)));
        files.replace_tensors(&self.file, replaced.collect::<Result<Vec<_>>>()?);
        Ok((files, config))
    }

    /// The LoRA matrices of a layer; `None` if the layer has no adapter. [`Adapter::check`] must have been called
    /// before.
    pub(super) fn matrices(&self, layer: &str) -> Result<Option<LoraMatrices>> {
        let Some(AdaptedLayer { scale, matrices: [Some(down), Some(up)], .. }) = self.layers.get(layer) else {
            return Ok(None);
        };
        let (&[r, inner], &[out, _]) = (&down.shape[..], &up.shape[..]) else { return Ok(None) };
        Ok(Some(LoraMatrices { scale: *scale, r, inner, out, down: self.values(down)?, up: self.values(up)? }))
    }

    fn dtype(&self, stored: &HeaderTensor) -> Result<StoredDType> {
        StoredDType::from_safetensors_name(&stored.dtype).ok_or_else(|| {
            let what = format!("is stored as {}; only F32, BF16 and F16 are supported", stored.dtype);
            fault(&self.path, &stored.name, what, "save the adapter in one of these dtypes")
        })
    }

    fn values(&self, stored: &HeaderTensor) -> Result<Vec<f32>> {
        let bytes = self.file.as_bytes().get(stored.begin..stored.end).unwrap_or_default();
        // The header's check has found that the size is that of whole elements.
        Ok(widen_to_f32(self.dtype(stored)?, bytes).unwrap_or_default())
    }
}

/// What a tensor of an adapter's file is, by its name.
enum TensorName<'a> {
    /// A matrix of the layer with this stored name: index 0 is A, 1 is B.
    Matrix(&'a str, usize),
    /// The new content of the tensor with this classic name.
    Replaced(String),
}

impl<'a> TensorName<'a> {
    /// Parses a stored name. Old versions of PEFT add the adapter's name (`default`). A module that is both adapted and
    /// saved has `base_layer` in its name.
    fn parse(name: &'a str) -> Option<Self> {
        let rest = name.strip_prefix(PREFIX)?;
        if !rest.contains(".lora_") {
            let name = rest.replace(".modules_to_save.default.", ".").replace(".base_layer.", ".");
            return Some(Self::Replaced(TensorNaming::to_classic_name(&name)));
        }
        let rest = rest.strip_suffix(".weight")?;
        let rest = rest.strip_suffix(".default").unwrap_or(rest);
        let (layer, index) = match rest.strip_suffix(".lora_A") {
            Some(layer) => (layer, 0),
            None => (rest.strip_suffix(".lora_B")?, 1),
        };
        Some(Self::Matrix(layer, index))
    }
}

fn fault(path: &Path, tensor: &str, what: impl Into<String>, help: &str) -> Error {
    Error::failed(format!("{}: {tensor}", path.display()), what, help)
}

/// Everything that [`save_adapter`] needs to write an adapter folder, except the matrices.
#[derive(Clone, Copy, Debug)]
pub struct AdapterFolder<'a> {
    /// The adapter.
    pub spec: &'a LoraSpec,
    /// The family of the base model.
    pub family: Family,
    /// The value of `base_model_name_or_path`: an absolute path or a hub id.
    pub base: &'a str,
    /// The base model's tokenizer and templates.
    pub small_files: &'a ConfigAndTokenizerFiles,
}

/// Writes an adapter folder as PEFT and TRL do: config and matrices of the adapter, and copies of the base model's
/// tokenizer and processor files. The layers have the names of transformers 4.52 and later, whatever the layout of the
/// base folder: transformers 5 ignores matrices with older names. `tensors` have parameter names
/// (`LAYER.lora_A.weight`); `fill` writes the bytes of one tensor and is called once per tensor, in order. All files
/// get their final names together at the end.
pub fn save_adapter(
    out: &Path,
    folder: AdapterFolder,
    tensors: &[TensorSpec],
    fill: impl FnMut(&TensorSpec, &mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    std::fs::create_dir_all(out).map_err(|e| Error::cannot_write(out, e))?;
    let mut files = folder.small_files.write_tokenizer_and_processor_files(out)?;
    let config = format!("{:#}\n", adapter_config_json(folder.spec, folder.family, folder.base));
    files.push(write_temporary(&out.join(ADAPTER_CONFIG_FILE), config.as_bytes())?);
    let rename = |name: &str| format!("{PREFIX}{}", TensorNaming::Nested.from_classic_name(name));
    write_tensor_file_and_finish(files, &out.join(ADAPTER_WEIGHTS_FILE), rename, tensors, fill)
}
