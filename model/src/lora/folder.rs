//! An adapter's folder: `adapter_config.json`, and `adapter_model.safetensors` with two matrices a layer under PEFT's
//! names, `base_model.model.LAYER.lora_A.weight` `[r, in]` and `….lora_B.weight` `[out, r]`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use reel_runtime::device::MappedFile;

use super::config::{AdapterConfig, json};
use super::{ADAPTER_CONFIG, LinearLayer, LoraSpec, linear_layers};
use crate::checkpoint::header::{self, Stored};
use crate::checkpoint::{Naming, StoredDType};
use crate::config::ModelConfig;
use crate::error::{ModelError, Result};
use crate::save::{TensorSpec, copy_companions, same_folder, write_file, write_whole};
use crate::weights::widen;

/// The file of an adapter's matrices.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";

/// What PEFT puts before a layer's name.
const PREFIX: &str = "base_model.model.";

/// An adapter's files, in place.
#[derive(Debug)]
pub struct Adapter {
    path: PathBuf,
    config: AdapterConfig,
    file: Arc<MappedFile>,
    /// A and B by the layer's classic name.
    layers: BTreeMap<String, [Option<Stored>; 2]>,
}

/// The matrices of a layer, widened.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pair {
    pub(super) r: usize,
    pub(super) inner: usize,
    pub(super) out: usize,
    /// A, `[r, inner]`
    pub(super) down: Vec<f32>,
    /// B, `[out, r]`
    pub(super) up: Vec<f32>,
}

impl Adapter {
    /// Maps the files and checks them on their own; [`Adapter::check`] holds them against a model.
    pub fn open(folder: &Path) -> Result<Adapter> {
        let config = AdapterConfig::open(folder)?;
        let path = folder.join(ADAPTER_WEIGHTS);
        if !path.exists() && folder.join("adapter_model.bin").exists() {
            let what = "is a pickle file, which is not read";
            let help = "save the adapter with PEFT's save_pretrained(…, safe_serialization=True)";
            return Err(ModelError::weights(folder.join("adapter_model.bin").display().to_string(), what, help));
        }
        let file = MappedFile::open(&path).map_err(|e| ModelError::read(&path, e))?;
        let mut layers: BTreeMap<String, [Option<Stored>; 2]> = BTreeMap::new();
        for stored in header::read(&path, file.as_bytes())?.tensors {
            let Some((layer, place)) = place_of(&stored.name) else {
                let what = "is no matrix of a LoRA adapter (…lora_A.weight or …lora_B.weight)";
                let help = "only plain LoRA can be read; merge this adapter with PEFT (merge_and_unload)";
                return Err(fault(&path, &stored.name, what, help));
            };
            let places = layers.entry(layer).or_default();
            if let Some(other) = &places[place] {
                let what = format!("is there beside {}, which means the same", other.name);
                return Err(fault(&path, &stored.name, what, "keep one of them"));
            }
            places[place] = Some(stored);
        }
        if layers.is_empty() {
            let help = "give an adapter that was trained";
            return Err(ModelError::weights(path.display().to_string(), "holds no matrix", help));
        }
        Ok(Adapter { path, config, file, layers })
    }

    /// The model that it says it belongs to: a folder or a hub id.
    pub fn base(&self) -> Option<&str> {
        self.config.base.as_deref()
    }

    /// What `B A x` is multiplied by: alpha / r, or with rsLoRA alpha / √r.
    pub fn scale(&self) -> f32 {
        self.config.scale as f32
    }

    /// The layers that it is put on, by their classic names.
    pub fn layers(&self) -> impl Iterator<Item = &str> {
        self.layers.keys().map(String::as_str)
    }

    /// Holds it against a model: every layer there, of the right shape, and all numbers finite.
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        let known = linear_layers(config);
        let known: BTreeMap<&str, &LinearLayer> = known.iter().map(|layer| (layer.name.as_str(), layer)).collect();
        for (name, places) in &self.layers {
            let r = self.config.r;
            let any = places.iter().flatten().next().map_or(name.as_str(), |stored| &stored.name);
            let Some(layer) = known.get(name.as_str()) else {
                let what = "is for a layer that the model does not have, or that no adapter can be put on";
                return Err(fault(&self.path, any, what, "give the model that the adapter was trained on"));
            };
            for (stored, shape) in places.iter().zip([[r, layer.inner], [layer.out, r]]) {
                let Some(stored) = stored else {
                    let what = "is there without its other half (lora_A and lora_B belong together)";
                    return Err(fault(&self.path, any, what, "copy or download the file again"));
                };
                if stored.shape != shape {
                    let what = format!("has shape {:?}, expected {shape:?} by the model and r = {r}", stored.shape);
                    let help = "give the model that the adapter was trained on";
                    return Err(fault(&self.path, &stored.name, what, help));
                }
                if self.values(stored)?.iter().any(|x| !x.is_finite()) {
                    let what = "holds a value that is no finite number";
                    return Err(fault(&self.path, &stored.name, what, "train the adapter again"));
                }
            }
        }
        Ok(())
    }

    /// The matrices of a layer, if it has any. The adapter was checked.
    pub(super) fn pair(&self, layer: &str) -> Result<Option<Pair>> {
        let Some([Some(down), Some(up)]) = self.layers.get(layer) else { return Ok(None) };
        let (&[r, inner], &[out, _]) = (&down.shape[..], &up.shape[..]) else { return Ok(None) };
        Ok(Some(Pair { r, inner, out, down: self.values(down)?, up: self.values(up)? }))
    }

    fn values(&self, stored: &Stored) -> Result<Vec<f32>> {
        let bytes = self.file.as_bytes().get(stored.begin..stored.end).unwrap_or_default();
        match StoredDType::parse(&stored.dtype).and_then(|dtype| widen(dtype, bytes)) {
            Some(values) => Ok(values),
            None => {
                let what = format!("is stored as {}; only F32, BF16 and F16 can be read", stored.dtype);
                Err(fault(&self.path, &stored.name, what, "save the adapter in one of these"))
            }
        }
    }
}

/// The layer of a matrix, and 0 for A or 1 for B. PEFT left out the adapter's name (`default`) of late only.
fn place_of(name: &str) -> Option<(String, usize)> {
    let rest = name.strip_prefix(PREFIX)?.strip_suffix(".weight")?;
    let rest = rest.strip_suffix(".default").unwrap_or(rest);
    let (layer, place) = match rest.strip_suffix(".lora_A") {
        Some(layer) => (layer, 0),
        None => (rest.strip_suffix(".lora_B")?, 1),
    };
    Some((Naming::to_classic(layer), place))
}

fn fault(path: &Path, tensor: &str, what: impl Into<String>, help: &str) -> ModelError {
    ModelError::weights(format!("{}: {tensor}", path.display()), what, help)
}

/// What an adapter's folder says beside its matrices.
#[derive(Clone, Copy, Debug)]
pub struct AdapterFolder<'a> {
    /// The adapter.
    pub spec: &'a LoraSpec,
    /// The base model as `base_model_name_or_path` is to have it: an absolute path or a hub id.
    pub base: &'a str,
    /// The base's folder, whose tokenizer and templates go along.
    pub source: &'a Path,
    /// How the base's files name the tensors.
    pub naming: Naming,
}

/// Writes a folder as PEFT and TRL leave one: the adapter, and what a tokenizer and a processor need. `tensors` have
/// the names of parameters (`LAYER.lora_A.weight`); `fill` writes the bytes of one, and is called once for each, in
/// order.
pub fn save(
    out: &Path,
    folder: AdapterFolder,
    tensors: &[TensorSpec],
    fill: impl FnMut(&TensorSpec, &mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    std::fs::create_dir_all(out).map_err(|e| ModelError::write(out, e))?;
    if !same_folder(folder.source, out) {
        copy_companions(folder.source, out)?;
    }
    write_whole(&out.join(ADAPTER_CONFIG), format!("{:#}\n", json(folder.spec, folder.base)).as_bytes())?;
    let rename = |name: &str| format!("{PREFIX}{}", folder.naming.from_classic(name));
    write_file(&out.join(ADAPTER_WEIGHTS), rename, tensors, fill)
}
