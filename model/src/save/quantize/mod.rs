//! Writes the folder of a model with quantised weights, in a format that transformers and vLLM read. The linear layers
//! of the decoder are quantised; the vision tower, embeddings, output layer, norms and biases keep their dtype.

mod awq;
mod fp8;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use reel_input::config::ModelConfig;
use reel_input::tensor_file::StoredDType;
use serde_json::json;

use super::dequantize::narrow;
use super::draft::{Draft, copy_others};
use super::hub_folder::set_quantization;
use super::weight_files::{FileDType, TensorSpec};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::linear_inputs::{LinearInputs, SAME_INPUT};
use crate::widen::widen_to_f32;

/// A dtype in files: its name and the size of an element in bytes.
type NamedDType = (&'static str, usize);

impl FileDType for NamedDType {
    fn name_and_bytes(self) -> NamedDType {
        self
    }
}

/// The factors of AWQ, by classic name of the tensor.
#[derive(Debug, Default)]
struct Folding {
    /// By what the columns of a weight are multiplied.
    columns: BTreeMap<String, Vec<f32>>,
    /// By what the rows of a weight, or the elements of a vector, are divided.
    rows: BTreeMap<String, Vec<f32>>,
}

impl Folding {
    fn apply(&self, name: &str, values: &mut [f32]) {
        if let Some(factors) = self.columns.get(name) {
            let rows = values.chunks_exact_mut(factors.len());
            rows.for_each(|row| row.iter_mut().zip(factors).for_each(|(w, s)| *w *= s));
        }
        if let Some(factors) = self.rows.get(name) {
            let rows = values.chunks_exact_mut(values.len() / factors.len());
            rows.zip(factors).for_each(|(row, s)| row.iter_mut().for_each(|w| *w /= s));
        }
    }
}

/// A model folder that is about to be written with quantised weights.
#[derive(Debug)]
pub struct ModelQuantizer {
    base: PathBuf,
    files: Checkpoint,
    /// The classic names and shapes of all weights.
    weights: Vec<(String, Vec<usize>)>,
    /// The weights to quantise, `[out, in]`.
    linear: BTreeMap<String, [usize; 2]>,
    /// Whether the format is AWQ. Otherwise it is fp8.
    is_awq: bool,
    draft: Draft,
}

impl ModelQuantizer {
    /// Checks the model folder `base`, and begins the folder `out`, which must be new or empty.
    ///
    /// # Errors
    /// The weights are quantised; a value is NaN or infinite; the format cannot store the shape of a weight; a folder
    /// cannot be read or written.
    pub fn open(base: &Path, out: &Path, is_awq: bool) -> Result<Self> {
        let config = ModelConfig::open(base)?;
        if config.quantization.is_some() {
            let file = base.join("config.json").display().to_string();
            let what = "has a quantization_config: the weights are already quantised";
            return Err(Error::input(file, what, "give the model as it was before, or run `reel dequantize` first"));
        }
        let files = Checkpoint::open(base)?;
        files.check(&config)?;
        let weights = files.weights(&config);
        let is_linear = |name: &str| name.starts_with("model.layers.") && name.ends_with("_proj.weight");
        let linear = weights.iter().filter(|(name, _)| is_linear(name));
        let linear = linear.filter_map(|(name, shape)| Some((name.clone(), shape[..].try_into().ok()?))).collect();
        let own = Self { base: base.to_path_buf(), files, weights, linear, is_awq, draft: Draft::begin(out)? };
        let is_unfit = |[out, inner]: [usize; 2]| out % awq::OUTPUTS_IN_WORD + inner % awq::GROUP > 0;
        if let Some((name, shape)) = own.linear.iter().find(|(_, shape)| is_awq && is_unfit(**shape)) {
            let what = format!("has shape {shape:?}; awq needs a multiple of 8 rows and of 128 columns");
            return Err(own.error_about(name, what));
        }
        own.files.check_values()?;
        Ok(own)
    }

    /// Writes the folder `out`: weights, a config.json with `quantization_config`, and the other files of the model,
    /// without sub-folders. `inputs` are those of a forward pass of the model, from which AWQ computes the factors of
    /// input channels. Returns the size of the weights in bytes.
    ///
    /// # Errors
    /// A weight is outside the range of the format; a folder cannot be read or written.
    pub fn write(self, inputs: &LinearInputs, out: &Path) -> Result<u64> {
        let folding = self.folding(inputs)?;
        let mut specs = Vec::new();
        for (name, shape) in &self.weights {
            let module = name.strip_suffix(".weight").unwrap_or(name);
            let parts = match self.linear.get(name) {
                Some(&shape) => self.parts(shape),
                None => vec![("", self.files.tensor_with_shape(name, shape)?.dtype.name_and_bytes(), shape.clone())],
            };
            let name = |part: &str| if part.is_empty() { name.clone() } else { format!("{module}.{part}") };
            specs.extend(parts.into_iter().map(|(part, dtype, shape)| TensorSpec { name: name(part), dtype, shape }));
        }
        copy_others(&self.base, &self.draft.path)?;
        set_quantization(&self.draft.path, self.quantization_config())?;
        self.draft.write_weights(&self.files, &specs, |spec| {
            let (module, part) = spec.name.rsplit_once('.').unwrap_or_default();
            let weight = format!("{module}.weight");
            let (name, shape) = match self.linear.get(&weight).filter(|_| part != "bias") {
                Some(&shape) => (&weight, Some(shape)),
                None => (&spec.name, None),
            };
            let view = self.files.tensor(name).filter(|_| shape.is_none() && !folding.rows.contains_key(name));
            if let Some(view) = view {
                return Ok(Cow::Borrowed(view.bytes));
            }
            let (dtype, mut values) = self.values(name)?;
            folding.apply(name, &mut values);
            let bytes = match shape {
                Some([_, inner]) if self.is_awq => awq::quantized_part(part, &values, inner),
                Some([_, inner]) => Some(fp8::quantized_part(part, &values, inner)),
                None => narrow(dtype, &values),
            };
            bytes.map(Cow::Owned).ok_or_else(|| self.error_about(name, "has values that are too large for f16".into()))
        })?;
        self.draft.publish(out)?;
        Ok(specs.iter().map(TensorSpec::bytes).sum())
    }

    /// The tensors that store a weight: the end of the name, dtype and shape.
    fn parts(&self, [out, inner]: [usize; 2]) -> Vec<(&'static str, NamedDType, Vec<usize>)> {
        let (words, groups) = (out / awq::OUTPUTS_IN_WORD, inner / awq::GROUP);
        let blocks = [out, inner].map(|size| size.div_ceil(fp8::BLOCK)).to_vec();
        match self.is_awq {
            true => vec![
                ("qweight", ("I32", 4), vec![inner, words]),
                ("qzeros", ("I32", 4), vec![groups, words]),
                ("scales", ("F16", 2), vec![groups, out]),
            ],
            false => vec![("weight", ("F8_E4M3", 1), vec![out, inner]), ("weight_scale_inv", ("F32", 4), blocks)],
        }
    }

    fn error_about(&self, name: &str, what: String) -> Error {
        let stored = self.files.tensor_naming().from_classic_name(name);
        let help = "give --format fp8, which has no such limit";
        Error::failed(format!("{}: {stored}", self.base.display()), what, help)
    }

    /// The dtype and the values of a tensor.
    fn values(&self, name: &str) -> Result<(StoredDType, Vec<f32>)> {
        let view = self.files.tensor(name).ok_or_else(|| self.error_about(name, "is missing".into()))?;
        Ok((view.dtype, widen_to_f32(view.dtype, view.bytes).unwrap_or_default()))
    }

    /// The factors of all layers with recorded inputs.
    fn folding(&self, inputs: &LinearInputs) -> Result<Folding> {
        let mut folding = Folding::default();
        for (first, moments) in inputs {
            for (layers, before) in SAME_INPUT {
                let Some(prefix) = first.strip_suffix(layers[0]) else { continue };
                let names = layers.iter().map(|layer| format!("{prefix}{layer}.weight"));
                let weights = names.clone().map(|name| Ok(self.values(&name)?.1)).collect::<Result<Vec<_>>>()?;
                let factors = awq::channel_factors(&weights, &moments.means().1);
                folding.columns.extend(names.map(|name| (name, factors.clone())));
                folding.rows.insert(format!("{prefix}{before}"), factors);
            }
        }
        Ok(folding)
    }

    /// `quantization_config` of config.json, as transformers and vLLM read it.
    fn quantization_config(&self) -> serde_json::Value {
        if self.is_awq {
            // vLLM takes the names as parts of a module's name; transformers 5 as the beginning of a nested name.
            return json!({"quant_method": "awq", "bits": 4, "group_size": awq::GROUP, "zero_point": true,
                "version": "gemm", "modules_to_not_convert": ["visual", "model.visual", "lm_head"]});
        }
        // vLLM compares whole names of modules.
        let tower = self.weights.iter().filter(|(name, shape)| name.starts_with("visual.") && shape.len() > 1);
        let modules = tower.filter_map(|(name, _)| name.strip_suffix(".weight")).chain(["lm_head"]);
        let modules: Vec<String> = modules.map(|name| self.files.tensor_naming().from_classic_name(name)).collect();
        json!({"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
            "weight_block_size": [fp8::BLOCK, fp8::BLOCK], "modules_to_not_convert": modules})
    }
}

#[cfg(test)]
mod tests;
