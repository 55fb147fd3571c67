//! Writes the folder of a model with quantised weights, in a format that transformers and vLLM read. The linear layers
//! of the decoder are quantised; the vision tower, embeddings, output layer, norms and biases keep their dtype.

mod awq;
mod fp8;

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use reel_input::config::ModelConfig;
use reel_input::tensor_file::StoredDType;
use serde_json::json;

use super::dequantize::narrow;
use super::draft::{Draft, copy_others};
use super::hub_folder::set_quantization;
use super::weight_files::{FileDType, TensorSpec};
use crate::checkpoint::{Checkpoint, LM_HEAD, TensorView};
use crate::error::{Error, Result};
use crate::linear_inputs::LinearInputs;
use crate::widen::widen_to_f32;

/// A format in which a model can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuantizedFormat {
    /// 8-bit floats e4m3 with a scale, f32, for each block of 128 × 128 weights.
    Fp8,
    /// 4 bits with a scale, f16, and a zero point for each 128 inputs of an output; layout `gemm`.
    Awq,
}

/// The element type of a tensor of a quantised model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PartDType {
    Plain(StoredDType),
    F8E4m3,
    I32,
}

impl FileDType for PartDType {
    fn element_bytes(self) -> usize {
        match self {
            PartDType::Plain(dtype) => dtype.element_bytes(),
            PartDType::F8E4m3 => 1,
            PartDType::I32 => 4,
        }
    }

    fn safetensors_name(self) -> &'static str {
        match self {
            PartDType::Plain(dtype) => dtype.safetensors_name(),
            PartDType::F8E4m3 => "F8_E4M3",
            PartDType::I32 => "I32",
        }
    }
}

impl QuantizedFormat {
    /// The tensors that store a weight `[out, in]`: the end of the name, dtype and shape.
    fn parts(self, [out, inner]: [usize; 2]) -> Vec<(&'static str, PartDType, Vec<usize>)> {
        let (f16, f32) = (PartDType::Plain(StoredDType::F16), PartDType::Plain(StoredDType::F32));
        match self {
            QuantizedFormat::Fp8 => vec![
                ("weight", PartDType::F8E4m3, vec![out, inner]),
                ("weight_scale_inv", f32, [out, inner].map(|size| size.div_ceil(fp8::BLOCK)).to_vec()),
            ],
            QuantizedFormat::Awq => vec![
                ("qweight", PartDType::I32, vec![inner, out / awq::OUTPUTS_IN_WORD]),
                ("qzeros", PartDType::I32, vec![inner / awq::GROUP, out / awq::OUTPUTS_IN_WORD]),
                ("scales", f16, vec![inner / awq::GROUP, out]),
            ],
        }
    }
}

/// The bytes of the tensors that store a weight, by the end of the name.
type Parts = BTreeMap<&'static str, Vec<u8>>;

/// The factors of AWQ, by tensor.
#[derive(Debug, Default)]
struct Folding {
    /// By what the columns of a weight are multiplied.
    columns: BTreeMap<String, Vec<f32>>,
    /// By what the rows of a weight, or the elements of a vector, are divided.
    rows: BTreeMap<String, Vec<f32>>,
}

impl Folding {
    /// Multiplies and divides the values of the tensor `name`.
    fn apply(&self, name: &str, values: &mut [f32]) {
        if let Some(factors) = self.columns.get(name) {
            values.chunks_exact_mut(factors.len()).for_each(|row| row.iter_mut().zip(factors).for_each(|(w, s)| *w *= s));
        }
        if let Some(factors) = self.rows.get(name) {
            let width = (values.len() / factors.len()).max(1);
            values.chunks_exact_mut(width).zip(factors).for_each(|(row, s)| row.iter_mut().for_each(|w| *w /= s));
        }
    }
}

/// The linear layers of a decoder layer that have the same input, the first of which records it, and the tensors whose
/// rows or elements compute this input.
const SAME_INPUT: [(&[&str], &[&str]); 4] = [
    (&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], &["input_layernorm.weight"]),
    (&["self_attn.o_proj"], &["self_attn.v_proj.weight", "self_attn.v_proj.bias"]),
    (&["mlp.gate_proj", "mlp.up_proj"], &["post_attention_layernorm.weight"]),
    (&["mlp.down_proj"], &["mlp.up_proj.weight"]),
];

/// A model folder that is about to be written with quantised weights.
#[derive(Debug)]
pub struct ModelQuantizer {
    base: PathBuf,
    out: PathBuf,
    config: ModelConfig,
    files: Checkpoint,
    format: QuantizedFormat,
    draft: Draft,
}

impl ModelQuantizer {
    /// Checks the model folder `base`, and begins the folder `out`, which must be new or empty.
    ///
    /// # Errors
    /// The weights are quantised; a value is NaN or infinite; the format cannot store the shape of a weight; a folder
    /// cannot be read or written.
    pub fn open(base: &Path, out: &Path, format: QuantizedFormat) -> Result<Self> {
        let config = ModelConfig::open(base)?;
        if config.quantization.is_some() {
            let file = base.join("config.json").display().to_string();
            let what = "has a quantization_config: the weights are already quantised";
            return Err(Error::input(file, what, "give the model as it was before, or run `reel dequantize` first"));
        }
        let files = Checkpoint::open(base)?;
        files.check(&config)?;
        let (out, draft) = (out.to_path_buf(), Draft::begin(out)?);
        let own = Self { base: base.to_path_buf(), out, config, files, format, draft };
        let fits = |[out, inner]: [usize; 2]| {
            out.is_multiple_of(awq::OUTPUTS_IN_WORD) && inner.is_multiple_of(awq::GROUP)
        };
        let unfit = own.linear_weights().into_iter().find(|(_, shape)| !fits(*shape));
        if let Some((name, shape)) = unfit.filter(|_| format == QuantizedFormat::Awq) {
            let what = format!("has shape {shape:?}; awq needs a multiple of 8 rows and of 128 columns");
            return Err(own.error_about(&name, &what, "give --format fp8, which has no such limit"));
        }
        own.files.check_values()?;
        Ok(own)
    }

    /// Writes the folder: weights, a config.json with `quantization_config`, and the other files of the model, without
    /// sub-folders. `inputs` are those of a forward pass of the model, from which AWQ computes the factors of input
    /// channels; without them all are 1. Returns the size of the weights in bytes.
    ///
    /// # Errors
    /// A weight is outside the range of the format; a folder cannot be read or written.
    pub fn write(self, inputs: &LinearInputs) -> Result<u64> {
        let linear = self.linear_weights();
        let folding = self.folding(inputs)?;
        let mut specs = Vec::new();
        for (name, shape) in self.files.weights(&self.config) {
            let module = name.strip_suffix(".weight").unwrap_or(&name);
            match linear.get(&name) {
                Some(&matrix) => specs.extend(
                    self.format.parts(matrix).into_iter().map(|(part, dtype, shape)| TensorSpec {
                        name: format!("{module}.{part}"),
                        dtype,
                        shape,
                    }),
                ),
                None => {
                    let dtype = PartDType::Plain(self.files.tensor_with_shape(&name, &shape)?.dtype);
                    specs.push(TensorSpec { name, dtype, shape });
                }
            }
        }
        copy_others(&self.base, &self.draft.path)?;
        set_quantization(&self.draft.path, self.quantization_config())?;
        // The parts of a weight follow each other; the first makes those of the others, too.
        let made = RefCell::new((String::new(), Parts::new()));
        self.draft.write_weights(&self.files, &specs, |spec| {
            let (module, part) = spec.name.rsplit_once('.').unwrap_or(("", &spec.name));
            let weight = format!("{module}.weight");
            let Some(&shape) = linear.get(&weight).filter(|_| part != "bias") else {
                return self.plain(&spec.name, &folding);
            };
            let mut made = made.borrow_mut();
            if made.0 != module {
                let mut values = self.values(&weight)?;
                folding.apply(&weight, &mut values);
                *made = (module.to_string(), self.quantized(&weight, shape, &values)?);
            }
            Ok(Cow::Owned(made.1.remove(part).unwrap_or_default()))
        })?;
        self.draft.publish(&self.out)?;
        Ok(specs.iter().map(TensorSpec::bytes).sum())
    }

    /// The classic names and shapes of the weights to quantise.
    fn linear_weights(&self) -> BTreeMap<String, [usize; 2]> {
        let weights = self.files.weights(&self.config).into_iter();
        let is_linear = |name: &str| name.starts_with("model.layers.") && name.ends_with("_proj.weight");
        weights.filter(|(name, _)| is_linear(name)).filter_map(|(n, shape)| Some((n, shape.try_into().ok()?))).collect()
    }

    fn error_about(&self, name: &str, what: &str, help: &str) -> Error {
        let stored = self.files.tensor_naming().from_classic_name(name);
        Error::failed(format!("{}: {stored}", self.base.display()), what, help)
    }

    fn view(&self, name: &str) -> Result<TensorView<'_>> {
        let missing = || self.error_about(name, "is missing", "use the weights that belong to this config.json");
        self.files.tensor(name).ok_or_else(missing)
    }

    fn values(&self, name: &str) -> Result<Vec<f32>> {
        let view = self.view(name)?;
        Ok(widen_to_f32(view.dtype, view.bytes).unwrap_or_default())
    }

    /// The bytes of a tensor that is not quantised.
    fn plain(&self, name: &str, folding: &Folding) -> Result<Cow<'_, [u8]>> {
        let view = self.view(name)?;
        if !folding.rows.contains_key(name) {
            return Ok(Cow::Borrowed(view.bytes));
        }
        let mut values = self.values(name)?;
        folding.apply(name, &mut values);
        narrow(view.dtype, &values).map(Cow::Owned).ok_or_else(|| self.out_of_range(name, "its dtype"))
    }

    fn out_of_range(&self, name: &str, dtype: &str) -> Error {
        self.error_about(name, &format!("has values outside the range of {dtype}"), "give --format fp8")
    }

    /// The tensors that store the weight `name` with these values.
    fn quantized(&self, name: &str, [_, inner]: [usize; 2], values: &[f32]) -> Result<Parts> {
        Ok(match self.format {
            QuantizedFormat::Fp8 => {
                let (codes, scales) = fp8::quantize(values, inner);
                let scales = scales.into_iter().flat_map(f32::to_le_bytes).collect();
                Parts::from([("weight", codes), ("weight_scale_inv", scales)])
            }
            QuantizedFormat::Awq => {
                let awq::AwqParts { qweight, qzeros, scales } =
                    awq::quantize(values, inner).ok_or_else(|| self.out_of_range(name, "scales in f16"))?;
                Parts::from([("qweight", qweight), ("qzeros", qzeros), ("scales", scales)])
            }
        })
    }

    /// The factors of all layers.
    fn folding(&self, inputs: &LinearInputs) -> Result<Folding> {
        let mut folding = Folding::default();
        for index in 0..self.config.text.num_hidden_layers {
            for (layers, before) in SAME_INPUT {
                let full = |part: &&str| format!("model.layers.{index}.{part}");
                let (names, before) = (layers.iter().map(full), before.iter().map(full));
                let weights: Vec<String> = names.clone().map(|name| format!("{name}.weight")).collect();
                let Some(moments) = names.clone().next().and_then(|name| inputs.get(&name)) else { continue };
                let means = moments.means();
                // Query heads that share value heads have inputs of o_proj that v_proj cannot divide one by one.
                let divides = |name: &String| self.files.tensor(name).is_some_and(|view| view.shape[0] == means.len());
                let before: Vec<String> = before.filter(|name| self.files.tensor(name).is_some()).collect();
                if means.is_empty() || !before.iter().all(divides) {
                    continue;
                }
                let values = weights.iter().map(|name| self.values(name)).collect::<Result<Vec<_>>>()?;
                let mut factors = awq::channel_factors(&values, &means);
                for name in before {
                    if name.ends_with("norm.weight") {
                        self.make_exact(&name, &mut factors)?;
                    }
                    folding.rows.insert(name, factors.clone());
                }
                folding.columns.extend(weights.into_iter().map(|name| (name, factors.clone())));
            }
        }
        Ok(folding)
    }

    /// Changes factors so that the norm's weight, divided by them, is a value of its dtype.
    fn make_exact(&self, norm: &str, factors: &mut [f32]) -> Result<()> {
        let dtype = self.view(norm)?.dtype;
        let values = self.values(norm)?;
        let divided: Vec<f32> = values.iter().zip(&*factors).map(|(w, s)| w / s).collect();
        let rounded = narrow(dtype, &divided).and_then(|bytes| widen_to_f32(dtype, &bytes));
        let rounded = rounded.ok_or_else(|| self.out_of_range(norm, "its dtype"))?;
        for ((s, w), divided) in factors.iter_mut().zip(values).zip(rounded) {
            let exact = w / divided;
            if exact.is_normal() {
                *s = exact;
            }
        }
        Ok(())
    }

    /// `quantization_config` of config.json, as transformers and vLLM read it.
    fn quantization_config(&self) -> serde_json::Value {
        let naming = self.files.tensor_naming();
        match self.format {
            QuantizedFormat::Fp8 => {
                // vLLM compares whole names of modules.
                let weights = self.files.weights(&self.config).into_iter();
                let plain = weights.filter(|(name, shape)| name.starts_with("visual.") && shape.len() > 1);
                let plain = plain.map(|(name, _)| name).chain([LM_HEAD.to_string()]);
                let module = |name: String| naming.from_classic_name(name.strip_suffix(".weight").unwrap_or(&name));
                json!({
                    "quant_method": "fp8",
                    "fmt": "e4m3",
                    "activation_scheme": "dynamic",
                    "weight_block_size": [fp8::BLOCK, fp8::BLOCK],
                    "modules_to_not_convert": plain.map(module).collect::<Vec<String>>(),
                })
            }
            QuantizedFormat::Awq => json!({
                "quant_method": "awq",
                "bits": 4,
                "group_size": awq::GROUP,
                "zero_point": true,
                "version": "gemm",
                // vLLM takes these as parts of names; transformers 5 as the beginnings or ends of nested names.
                "modules_to_not_convert": ["visual", "model.visual", "lm_head"],
            }),
        }
    }
}

#[cfg(test)]
mod tests;
