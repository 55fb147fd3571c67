//! Reads and writes an adapter folder in the format of PEFT: `adapter_config.json`, and `adapter_model.safetensors`
//! with two matrices per layer, `base_model.model.LAYER.lora_A.weight` `[r, in]` and
//! `base_model.model.LAYER.lora_B.weight` `[out, r]`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use reel_device::MappedFile;
use reel_files::write_temporary;
use reel_hub::{Hub, Repository};
use reel_input::config::ModelConfig;
use reel_input::tensor_file::{HeaderTensor, StoredDType, read_header};

use super::config::{AdapterConfig, adapter_config_json};
use super::{ADAPTER_CONFIG_FILE, LinearLayer, LoraSpec, linear_layers};
use crate::checkpoint::TensorNaming;
use crate::error::{ModelError, Result};
use crate::save::{ConfigAndTokenizerFiles, TensorSpec, write_tensor_file_and_finish};
use crate::weights::widen_to_f32;

/// The file with the matrices of an adapter.
pub const ADAPTER_WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// The prefix that PEFT puts before layer names.
const PREFIX: &str = "base_model.model.";

/// The config and the memory-mapped matrices of an adapter folder.
#[derive(Debug)]
pub struct Adapter {
    path: PathBuf,
    config: AdapterConfig,
    file: Arc<MappedFile>,
    /// The matrices A and B of each adapted layer, keyed by the layer's classic name (as on the hub).
    layers: BTreeMap<String, [Option<HeaderTensor>; 2]>,
}

/// The LoRA matrices of a layer, in f32.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LoraMatrices {
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
            return Err(ModelError::weights(folder.join("adapter_model.bin").display().to_string(), what, help));
        }
        let file = MappedFile::open(&path).map_err(|e| ModelError::cannot_read(&path, e))?;
        let mut layers: BTreeMap<String, [Option<HeaderTensor>; 2]> = BTreeMap::new();
        for stored in read_header(&path, file.as_bytes())? {
            let Some((layer, place)) = parse_matrix_name(&stored.name) else {
                let what = "is not a matrix of a LoRA adapter (…lora_A.weight or …lora_B.weight)";
                let help = "only plain LoRA is supported; merge this adapter with PEFT (merge_and_unload)";
                return Err(fault(&path, &stored.name, what, help));
            };
            let places = layers.entry(layer).or_default();
            if let Some(other) = &places[place] {
                let what = format!("names the same matrix as {}", other.name);
                return Err(fault(&path, &stored.name, what, "keep one of the two"));
            }
            places[place] = Some(stored);
        }
        if layers.is_empty() {
            let help = "use a trained adapter";
            return Err(ModelError::weights(path.display().to_string(), "has no matrices", help));
        }
        Ok(Adapter { path, config, file, layers })
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
            return Err(ModelError::config(location, "is missing", help));
        };
        let cached = || Hub::from_environment().cached_folder(&Repository::parse_model(base)?);
        let local = Path::new(base).is_dir().then(|| PathBuf::from(base)).or_else(cached);
        local.ok_or_else(|| {
            let what = format!("names {base}, which is neither a folder nor in the hub cache");
            ModelError::config(location, what, help)
        })
    }

    /// The factor by which `B A x` is multiplied: alpha / r, or alpha / √r with rsLoRA.
    pub fn scale(&self) -> f32 {
        self.config.scale as f32
    }

    /// The classic names (as on the hub) of the adapted layers.
    pub fn adapted_layers(&self) -> impl Iterator<Item = &str> {
        self.layers.keys().map(String::as_str)
    }

    /// Checks the adapter against a model: all layers exist with the right shape, and all values are finite.
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        let known = linear_layers(config);
        let known: BTreeMap<&str, &LinearLayer> = known.iter().map(|layer| (layer.name.as_str(), layer)).collect();
        for (name, places) in &self.layers {
            let r = self.config.r;
            let any = places.iter().flatten().next().map_or(name.as_str(), |stored| &stored.name);
            let Some(layer) = known.get(name.as_str()) else {
                let what = "belongs to a layer that the model does not have, or that cannot have an adapter";
                return Err(fault(&self.path, any, what, "use the model that the adapter was trained on"));
            };
            for (stored, shape) in places.iter().zip([[r, layer.inner], [layer.out, r]]) {
                let Some(stored) = stored else {
                    let what = "has no counterpart: each layer needs both lora_A and lora_B";
                    return Err(fault(&self.path, any, what, "copy or download the file again"));
                };
                if stored.shape != shape {
                    let what = format!("has shape {:?}, expected {shape:?} by the model and r = {r}", stored.shape);
                    let help = "use the model that the adapter was trained on";
                    return Err(fault(&self.path, &stored.name, what, help));
                }
                if self.values(stored)?.iter().any(|x| !x.is_finite()) {
                    let what = "has a value that is not finite";
                    return Err(fault(&self.path, &stored.name, what, "train the adapter again"));
                }
            }
        }
        Ok(())
    }

    /// The LoRA matrices of a layer; `None` if the layer has no adapter. [`Adapter::check`] must have been called
    /// before.
    pub(super) fn matrices(&self, layer: &str) -> Result<Option<LoraMatrices>> {
        let Some([Some(down), Some(up)]) = self.layers.get(layer) else { return Ok(None) };
        let (&[r, inner], &[out, _]) = (&down.shape[..], &up.shape[..]) else { return Ok(None) };
        Ok(Some(LoraMatrices { r, inner, out, down: self.values(down)?, up: self.values(up)? }))
    }

    fn values(&self, stored: &HeaderTensor) -> Result<Vec<f32>> {
        let bytes = self.file.as_bytes().get(stored.begin..stored.end).unwrap_or_default();
        match StoredDType::from_safetensors_name(&stored.dtype).and_then(|dtype| widen_to_f32(dtype, bytes)) {
            Some(values) => Ok(values),
            None => {
                let what = format!("is stored as {}; only F32, BF16 and F16 are supported", stored.dtype);
                Err(fault(&self.path, &stored.name, what, "save the adapter in one of these dtypes"))
            }
        }
    }
}

/// Splits the name of a stored matrix into its layer's classic name and the kind of matrix: 0 for A, 1 for B. Old
/// versions of PEFT add the adapter name (`default`) to matrix names.
fn parse_matrix_name(name: &str) -> Option<(String, usize)> {
    let rest = name.strip_prefix(PREFIX)?.strip_suffix(".weight")?;
    let rest = rest.strip_suffix(".default").unwrap_or(rest);
    let (layer, place) = match rest.strip_suffix(".lora_A") {
        Some(layer) => (layer, 0),
        None => (rest.strip_suffix(".lora_B")?, 1),
    };
    Some((TensorNaming::to_classic_name(layer), place))
}

fn fault(path: &Path, tensor: &str, what: impl Into<String>, help: &str) -> ModelError {
    ModelError::weights(format!("{}: {tensor}", path.display()), what, help)
}

/// Everything that [`save_adapter`] needs to write an adapter folder, except the matrices.
#[derive(Clone, Copy, Debug)]
pub struct AdapterFolder<'a> {
    /// The adapter.
    pub spec: &'a LoraSpec,
    /// The value of `base_model_name_or_path`: an absolute path or a hub id.
    pub base: &'a str,
    /// The base model's tokenizer and templates.
    pub small_files: &'a ConfigAndTokenizerFiles,
    /// The naming scheme of the base model.
    pub naming: TensorNaming,
}

/// Writes an adapter folder as PEFT and TRL do: config and matrices of the adapter, and copies of the base model's
/// tokenizer and processor files. `tensors` have parameter names (`LAYER.lora_A.weight`); `fill` writes the bytes of
/// one tensor and is called once per tensor, in order. All files get their final names together at the end.
pub fn save_adapter(
    out: &Path,
    folder: AdapterFolder,
    tensors: &[TensorSpec],
    fill: impl FnMut(&TensorSpec, &mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    std::fs::create_dir_all(out).map_err(|e| ModelError::cannot_write(out, e))?;
    let mut files = folder.small_files.write_tokenizer_and_processor_files(out)?;
    let config = format!("{:#}\n", adapter_config_json(folder.spec, folder.base));
    files.push(write_temporary(&out.join(ADAPTER_CONFIG_FILE), config.as_bytes())?);
    let rename = |name: &str| format!("{PREFIX}{}", folder.naming.from_classic_name(name));
    write_tensor_file_and_finish(files, &out.join(ADAPTER_WEIGHTS_FILE), rename, tensors, fill)
}
