//! LoRA (Hu et al. 2021): beside a frozen weight W `[out, in]` stand two thin matrices, A `[r, in]` and B `[out, r]`,
//! so that a layer gives `W x + b + scale · B A x`. Kept in PEFT's folder (`adapter_config.json`,
//! `adapter_model.safetensors`), which PEFT loads and whose adapters are loaded here.
//!
//! A and B are held in the dtype of activations, as other trained weights are: with bf16 the optimizer has their exact
//! f32 master, and rollouts, training and the saved file have the same bits. The base stays as it is, read in place
//! where its dtype allows.

mod config;
mod folder;
mod merge;
#[cfg(test)]
mod tests;

use reel_kernels::philox;
use reel_runtime::ops::Lora;
use reel_runtime::{Category, DType, Device, Tensor};

use crate::checkpoint::expected_tensors;
use crate::config::ModelConfig;
use crate::error::Result;
use crate::init::weights::fnv1a;
use crate::linear::Linear;
use crate::qwen2_5_vl::Qwen25Vl;

pub use config::{ADAPTER_CONFIG, is_adapter};
pub use folder::{ADAPTER_WEIGHTS, Adapter, AdapterFolder, save};
pub use merge::{Merged, merge};

/// A layer that an adapter can be put on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearLayer {
    /// Its classic name: `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// Rows of its weight.
    pub out: usize,
    /// Columns of its weight.
    pub inner: usize,
}

/// Every layer of a model that an adapter can be put on: all linear ones but the embedding and the head.
pub fn linear_layers(config: &ModelConfig) -> Vec<LinearLayer> {
    let layer = |(name, shape): (String, Vec<usize>)| match (name.strip_suffix(".weight"), &shape[..]) {
        (Some("model.embed_tokens" | "lm_head"), _) => None,
        (Some(name), &[out, inner]) => Some(LinearLayer { name: name.to_string(), out, inner }),
        _ => None,
    };
    expected_tensors(config).into_iter().filter_map(layer).collect()
}

/// The decoder's seven: what an adapter is put on where nobody says otherwise.
pub const DECODER_LAYERS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// PEFT's word for every linear layer.
pub const ALL_LINEAR: &str = "all-linear";

/// An adapter to be trained.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraSpec {
    /// The rank, 1 or more.
    pub r: usize,
    /// The products are scaled by `alpha / r`.
    pub alpha: f64,
    /// Names of layers, or how names end, as PEFT matches them; or [`ALL_LINEAR`] alone.
    pub targets: Vec<String>,
    /// Whether layers of the vision tower and its merger are among them.
    pub vision: bool,
}

impl LoraSpec {
    /// The layers that the targets name, in the model's order. Where a target names none: that target, and what there
    /// is to name.
    pub fn layers(&self, config: &ModelConfig) -> std::result::Result<Vec<LinearLayer>, UnknownTarget> {
        let all: Vec<LinearLayer> = linear_layers(config)
            .into_iter()
            .filter(|layer| self.vision || !layer.name.starts_with("visual."))
            .collect();
        if self.is_all() {
            return Ok(all);
        }
        let named = |layer: &LinearLayer, target: &str| {
            layer.name.strip_suffix(target).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        if let Some(target) = self.targets.iter().find(|target| !all.iter().any(|layer| named(layer, target))) {
            return Err(UnknownTarget { target: target.clone(), known: self.known() });
        }
        Ok(all.into_iter().filter(|layer| self.targets.iter().any(|target| named(layer, target))).collect())
    }

    fn is_all(&self) -> bool {
        self.targets == [ALL_LINEAR]
    }

    /// Short names that reach every layer of each kind.
    fn known(&self) -> Vec<&'static str> {
        let vision: &[&str] = if self.vision { &["qkv", "attn.proj", "mlp.0", "mlp.2"] } else { &[] };
        DECODER_LAYERS.into_iter().chain(vision.iter().copied()).collect()
    }

    /// The targets as names that every reader of PEFT's folders understands.
    fn target_names(&self) -> Vec<String> {
        if self.is_all() { self.known().into_iter().map(str::to_string).collect() } else { self.targets.clone() }
    }

    /// What `B A x` is multiplied by.
    pub fn scale(&self) -> f32 {
        (self.alpha / self.r as f64) as f32
    }
}

/// A target that names no layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownTarget {
    /// What was asked for.
    pub target: String,
    /// What can be asked for.
    pub known: Vec<&'static str>,
}

/// Where an adapter's matrices come from.
#[derive(Clone, Copy, Debug)]
pub enum AdapterSource<'a> {
    /// A drawn from the uniform distribution on ±1/√in (Kaiming's with a = √5, as PEFT has it), B zero. The draws of a
    /// layer depend on the seed and the layer's name alone.
    New(&'a [LinearLayer], &'a LoraSpec, u64),
    /// Memory of the right size with nothing in it, for the dry device.
    Nothing(&'a [LinearLayer], &'a LoraSpec),
    /// An adapter's files, which were held against the model's config.
    Files(&'a Adapter),
}

impl AdapterSource<'_> {
    /// The adapter of a layer, if it has one.
    fn of(&self, device: &Device, dtype: DType, name: &str) -> Result<Option<Lora>> {
        let find = |layers: &[LinearLayer]| layers.iter().find(|layer| layer.name == name).cloned();
        let put = |shape: [usize; 2], values: &[f32]| {
            Tensor::from_f32(device, &shape, dtype, values, Category::Weights).map_err(crate::ModelError::from)
        };
        Ok(match *self {
            AdapterSource::New(layers, spec, seed) => match find(layers) {
                Some(LinearLayer { out, inner, .. }) => Some(Lora {
                    down: put([spec.r, inner], &uniform(seed, name, spec.r * inner, 1.0 / (inner as f32).sqrt()))?,
                    up: put([out, spec.r], &vec![0.0; out * spec.r])?,
                    scale: spec.scale(),
                }),
                None => None,
            },
            AdapterSource::Nothing(layers, spec) => match find(layers) {
                Some(LinearLayer { out, inner, .. }) => Some(Lora {
                    down: Tensor::empty(device, &[spec.r, inner], dtype, Category::Weights)?,
                    up: Tensor::empty(device, &[out, spec.r], dtype, Category::Weights)?,
                    scale: spec.scale(),
                }),
                None => None,
            },
            AdapterSource::Files(adapter) => match adapter.pair(name)? {
                Some(pair) => Some(Lora {
                    down: put([pair.r, pair.inner], &pair.down)?,
                    up: put([pair.out, pair.r], &pair.up)?,
                    scale: adapter.scale(),
                }),
                None => None,
            },
        })
    }
}

/// `n` numbers from the uniform distribution on `-bound .. bound`.
fn uniform(seed: u64, name: &str, n: usize, bound: f32) -> Vec<f32> {
    let stream = fnv1a(name);
    let unit = |bits: u32| (bits >> 8) as f32 / (1 << 23) as f32 - 1.0;
    let draws = (0u64..).flat_map(|block| philox::words(seed, stream, block));
    draws.take(n).map(|bits| unit(bits) * bound).collect()
}

impl Qwen25Vl {
    /// The same weights with an adapter beside some of them, in place of any that was there. `trained`: its matrices
    /// are parameters, named `LAYER.lora_A.weight` and `LAYER.lora_B.weight`.
    ///
    /// # Errors
    /// Out of memory; an adapter's file that cannot be used.
    pub fn with_adapter(
        mut self,
        device: &Device,
        dtype: DType,
        source: AdapterSource,
        trained: bool,
    ) -> Result<Qwen25Vl> {
        for linear in self.linears_mut() {
            let name = linear.name.clone();
            let part = |t: Tensor, part: &str| -> Result<Tensor> {
                Ok(if trained { t.into_parameter(&format!("{name}.{part}.weight"))? } else { t })
            };
            linear.adapter = match source.of(device, dtype, &linear.name)? {
                Some(Lora { down, up, scale }) => {
                    Some(Lora { down: part(down, "lora_A")?, up: part(up, "lora_B")?, scale })
                }
                None => None,
            };
        }
        Ok(self)
    }

    /// The same weights without an adapter: no weight is copied.
    pub fn without_adapter(&self) -> Qwen25Vl {
        let mut base = self.clone();
        base.linears_mut().for_each(|linear| linear.adapter = None);
        base
    }

    fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.vision.linears_mut().chain(self.text.linears_mut())
    }
}
