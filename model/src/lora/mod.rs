//! LoRA adapters (Hu et al. 2021): a layer with frozen weight W `[out, in]` gets two small matrices, A `[r, in]` and
//! B `[out, r]`, and computes `W x + b + scale · B A x`. Adapter folders have the format of PEFT
//! (`adapter_config.json`, `adapter_model.safetensors`): PEFT can load adapters that are written here, and adapters
//! of PEFT can be loaded here.
//!
//! A and B have the dtype of activations, like other trained weights. In bf16 the optimizer also keeps their f32
//! master weights; rollouts, training and the saved file use the same bf16 bits. The base weights are read in place
//! if their dtype allows it.

mod config;
mod folder;
mod merge;
mod stack;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod variants_tests;

use std::sync::Arc;

use reel_device::{DType, Device, MemoryCategory};
use reel_input::config::{Family, ModelConfig};
use reel_runtime::Tensor;
use reel_runtime::ops::Lora;
use reel_support::philox;

use crate::checkpoint::{TensorNaming, expected_tensors};
use crate::error::Result;
use crate::init::weights::fnv1a_hash;
use crate::linear::Linear;
use crate::qwen_vl::QwenVl;
use crate::tensor_parallel::RowShare;
use crate::weights::{PaddedWidth, stored_and_padded_shapes};

pub use config::{ADAPTER_CONFIG_FILE, is_adapter_folder};
pub use folder::{ADAPTER_WEIGHTS_FILE, Adapter, AdapterFolder, save_adapter};
pub use merge::{MergeReport, merge_adapter};

/// A linear layer that supports an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearLayer {
    /// The classic name, such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// The number of rows of the layer's weight.
    pub out: usize,
    /// The number of columns of the layer's weight.
    pub inner: usize,
}

/// All layers of a model that support an adapter: the linear layers except the output layer. Tables (of embeddings and
/// of learned positions) and the convolution of the patch embedding are no linear layers.
pub fn linear_layers(config: &ModelConfig) -> Vec<LinearLayer> {
    let layer = |(name, shape): (String, Vec<usize>)| match (name.strip_suffix(".weight"), &shape[..]) {
        (Some("model.embed_tokens" | "lm_head" | "visual.pos_embed"), _) => None,
        (Some(name), &[out, inner]) => Some(LinearLayer { name: name.to_string(), out, inner }),
        _ => None,
    };
    expected_tensors(config).into_iter().filter_map(layer).collect()
}

/// The seven linear layers of a decoder layer, which are the default targets.
pub const DECODER_LINEAR_LAYERS: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// The target name that in PEFT selects all linear layers.
pub const ALL_LINEAR: &str = "all-linear";

/// The options of a new adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraSpec {
    /// The rank, 1 or more.
    pub r: usize,
    /// Alpha; the product `B A x` is scaled by `alpha / r`.
    pub alpha: f64,
    /// The target layers: full names in either naming scheme, ends of names such as `q_proj` (matched as in PEFT), or
    /// [`ALL_LINEAR`] alone.
    pub targets: Vec<String>,
    /// Whether layers of the vision tower and its merger can be targets.
    pub vision: bool,
}

impl LoraSpec {
    /// The layers that get an adapter, in model order.
    ///
    /// # Errors
    /// A target that matches no layer; the error lists the names that exist.
    pub fn target_layers(&self, config: &ModelConfig) -> std::result::Result<Vec<LinearLayer>, UnknownLoraTarget> {
        let all: Vec<LinearLayer> = linear_layers(config)
            .into_iter()
            .filter(|layer| self.vision || !layer.name.starts_with("visual."))
            .collect();
        if self.is_all() {
            return Ok(all);
        }
        let named = |layer: &LinearLayer, target: &str| {
            let name = TensorNaming::Nested.from_classic_name(&layer.name);
            let matches =
                |name: &str| name.strip_suffix(target).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
            matches(&layer.name) || matches(&name)
        };
        if let Some(target) = self.targets.iter().find(|target| !all.iter().any(|layer| named(layer, target))) {
            return Err(UnknownLoraTarget { target: target.clone(), known: self.known(config.family()) });
        }
        Ok(all.into_iter().filter(|layer| self.targets.iter().any(|target| named(layer, target))).collect())
    }

    fn is_all(&self) -> bool {
        self.targets == [ALL_LINEAR]
    }

    /// The short names (such as `q_proj`) of all layers that can be targets in a model of `family`. The name `proj`
    /// alone would also match the patch embedding in PEFT.
    fn known(&self, family: Family) -> Vec<&'static str> {
        let vision: &[&str] = match family {
            _ if !self.vision => &[],
            Family::Qwen25Vl => &["qkv", "attn.proj", "mlp.0", "mlp.2"],
            Family::Qwen3Vl => &["attn.qkv", "attn.proj", "linear_fc1", "linear_fc2"],
        };
        DECODER_LINEAR_LAYERS.into_iter().chain(vision.iter().copied()).collect()
    }

    /// The targets by the names of the file ([`save_adapter`]) of a model of `family`; `all-linear` is replaced by the
    /// names of all layers, because old versions of PEFT do not know it.
    fn target_names(&self, family: Family) -> Vec<String> {
        let names = match self.is_all() {
            true => self.known(family),
            false => self.targets.iter().map(|target| peft_target(family, target)).collect(),
        };
        names.into_iter().map(|name| TensorNaming::Nested.from_classic_name(name)).collect()
    }

    /// The factor by which `B A x` is multiplied: alpha divided by the rank.
    pub fn scale(&self) -> f32 {
        (self.alpha / self.r as f64) as f32
    }
}

/// The name by which PEFT selects the layers of the target `target`. PEFT would also put an adapter on the patch
/// embedding (a Conv3d) for `proj`, so Qwen3-VL gets the name of the attention's output projection.
fn peft_target(family: Family, target: &str) -> &str {
    match (family, target) {
        (Family::Qwen3Vl, "proj") => "attn.proj",
        _ => target,
    }
}

/// A LoRA target matches no layer of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownLoraTarget {
    /// The target that matches no layer.
    pub target: String,
    /// The short names of the layers that can be targets.
    pub known: Vec<&'static str>,
}

/// Where the matrices of an adapter come from.
#[derive(Clone, Copy, Debug)]
pub enum AdapterSource<'a> {
    /// A new adapter for these layers; the last field is the seed. A is uniform within ±1/√in (Kaiming with a = √5,
    /// the default of PEFT) and depends only on the seed and the layer name; B is zero.
    New(&'a [LinearLayer], &'a LoraSpec, u64),
    /// Uninitialised matrices of the right size, for the dry device, which computes nothing.
    Nothing(&'a [LinearLayer], &'a LoraSpec),
    /// The files of an adapter that was checked against the config.
    Files(&'a Adapter),
}

impl AdapterSource<'_> {
    /// Returns the matrices A and B for the layer `name`; `None` if the adapter does not change this layer. `widths`
    /// are the stored and padded sizes of the layer's weight: A and B are padded with zeros where the weight is. B has
    /// the layer's share of the rows.
    fn of(
        &self,
        device: &Device,
        dtype: DType,
        name: &str,
        (widths, share): (Option<[PaddedWidth; 2]>, RowShare),
    ) -> Result<Option<Lora>> {
        let find = |layers: &[LinearLayer]| layers.iter().find(|layer| layer.name == name).cloned();
        // The size of dimension `i` of a matrix. It includes the weight's padding if the weight has `stored` elements
        // in that dimension.
        let width = |i: usize, stored: usize| {
            let of_weight = widths.map(|widths| widths[i]).filter(|width| width.stored == stored);
            of_weight.unwrap_or(stored.into())
        };
        let empty = |widths: [PaddedWidth; 2]| -> Result<Tensor> {
            let (stored, padded) = stored_and_padded_shapes(&widths);
            Ok(Tensor::empty(device, &padded, dtype, MemoryCategory::Weights)?.with_unpadded_shape(&stored)?)
        };
        let put = |widths: [PaddedWidth; 2], values: &[f32]| -> Result<Tensor> {
            let t = empty(widths)?;
            t.write_unpadded_f32(values)?;
            Ok(t)
        };
        let of_down = |r: usize, inner: usize| [r.into(), width(1, inner)];
        let of_up = |out: usize, r: usize| [width(0, share.row_range(out).len()), r.into()];
        Ok(match *self {
            AdapterSource::New(layers, spec, seed) => match find(layers) {
                Some(LinearLayer { out, inner, .. }) => Some(Lora {
                    down: put(
                        of_down(spec.r, inner),
                        &uniform(seed, name, spec.r * inner, 1.0 / (inner as f32).sqrt()),
                    )?,
                    up: put(of_up(out, spec.r), &vec![0.0; share.row_range(out).len() * spec.r])?,
                    scale: spec.scale(),
                }),
                None => None,
            },
            AdapterSource::Nothing(layers, spec) => match find(layers) {
                Some(LinearLayer { out, inner, .. }) => Some(Lora {
                    down: empty(of_down(spec.r, inner))?,
                    up: empty(of_up(out, spec.r))?,
                    scale: spec.scale(),
                }),
                None => None,
            },
            AdapterSource::Files(adapter) => match adapter.matrices(name)? {
                Some(pair) => Some(Lora {
                    down: put(of_down(pair.r, pair.inner), &pair.down)?,
                    up: put(of_up(pair.out, pair.r), share_of_rows(&pair.up, pair.out, share))?,
                    scale: pair.scale,
                }),
                None => None,
            },
        })
    }
}

/// The rows of `share`, taken from a matrix that has `rows` rows.
fn share_of_rows(matrix: &[f32], rows: usize, share: RowShare) -> &[f32] {
    let (own, columns) = (share.row_range(rows), matrix.len() / rows.max(1));
    &matrix[own.start * columns..own.end * columns]
}

/// `n` random numbers, uniform in `-bound .. bound`.
fn uniform(seed: u64, name: &str, n: usize, bound: f32) -> Vec<f32> {
    let stream = fnv1a_hash(name);
    let unit = |bits: u32| (bits >> 8) as f32 / (1 << 23) as f32 - 1.0;
    let draws = (0u64..).flat_map(|block| philox::random_words(seed, stream, block));
    draws.take(n).map(|bits| unit(bits) * bound).collect()
}

impl QwenVl {
    /// Returns the model with an adapter, which replaces any other adapter. If `trained`, the adapter's matrices are
    /// parameters named `LAYER.lora_A.weight` and `LAYER.lora_B.weight`.
    ///
    /// # Errors
    /// Out of memory; a matrix of an unsupported dtype.
    pub fn with_adapter(
        mut self,
        device: &Device,
        dtype: DType,
        source: AdapterSource,
        trained: bool,
    ) -> Result<QwenVl> {
        let changed_tower = self.vision.linear_layers_mut().any(|linear| linear.adapter.is_some());
        for linear in self.linear_layers_mut() {
            let name = linear.name.clone();
            let part = |t: Tensor, part: &str| -> Result<Tensor> {
                Ok(if trained { t.into_parameter(&format!("{name}.{part}.weight"))? } else { t })
            };
            linear.adapter = match source.of(device, dtype, &linear.name, (linear.weight_widths(), linear.share))? {
                Some(Lora { down, up, scale }) => {
                    Some(Lora { down: part(down, "lora_A")?, up: part(up, "lora_B")?, scale })
                }
                None => None,
            };
        }
        self.forget_features_if(changed_tower);
        Ok(self)
    }

    /// Returns the model without an adapter. Copies no weights.
    pub fn without_adapter(&self) -> QwenVl {
        let mut base = self.clone();
        let changed_tower = base.vision.linear_layers_mut().any(|linear| linear.adapter.take().is_some());
        base.linear_layers_mut().for_each(|linear| linear.adapter = None);
        base.forget_features_if(changed_tower);
        base
    }

    /// Whether a layer of the model has an adapter.
    pub fn has_adapter(&self) -> bool {
        let mut model = self.clone();
        model.linear_layers_mut().any(|linear| linear.adapter.is_some())
    }

    /// Returns the model with the adapter of another model of the same architecture. Copies no weights.
    pub fn with_adapter_of(&self, other: &QwenVl) -> QwenVl {
        let (mut model, mut other) = (self.without_adapter(), other.clone());
        for (linear, from) in model.linear_layers_mut().zip(other.linear_layers_mut()) {
            linear.adapter = from.adapter.take();
        }
        model.forget_features_if(false);
        model
    }

    /// Replaces the feature cache by an empty one if the vision tower had an adapter (`changed_tower`) or has one
    /// now. Other models share the old cache, but their vision towers compute different tokens.
    fn forget_features_if(&mut self, changed_tower: bool) {
        if changed_tower || self.vision.linear_layers_mut().any(|linear| linear.adapter.is_some()) {
            self.features = self.features.take().map(|cache| Arc::new(cache.empty_copy()));
        }
    }

    fn linear_layers_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.vision.linear_layers_mut().chain(self.text.linear_layers_mut())
    }
}
