//! Writes the plain folder of a quantised model, and reads weights of either kind for new folders.

use std::borrow::Cow;
use std::path::Path;

use half::{bf16, f16};
use reel_input::config::ModelConfig;
use reel_input::tensor_file::StoredDType;

use super::draft::{Draft, copy_others};
use super::hub_folder::set_unquantized;
use super::weight_files::TensorSpec;
use crate::checkpoint::{Checkpoint, TensorView};
use crate::error::{Error, Result};
use crate::widen::widen_to_f32;

/// A weight as a model folder stores it.
pub(crate) enum StoredValues<'a> {
    /// The stored tensor.
    Plain(TensorView<'a>),
    /// The values of a quantised weight.
    Dequantized(Vec<f32>),
}

impl Checkpoint {
    /// The weight that `spec` describes.
    ///
    /// # Errors
    /// The tensor is missing or has another shape; a quantised weight has a NaN or an infinity.
    pub(crate) fn stored_values(&self, spec: &TensorSpec) -> Result<StoredValues<'_>> {
        if let &[out, inner] = &spec.shape[..]
            && let Some(weight) = self.quantized(&spec.name, [out, inner])?
        {
            return Ok(StoredValues::Dequantized(self.dequantized_rows(&spec.name, &weight, 0..out)?));
        }
        self.tensor_with_shape(&spec.name, &spec.shape).map(StoredValues::Plain)
    }
}

/// Writes the model folder `out`, which must be new or empty: the quantised model `base` with all weights in `dtype`,
/// under their names, and a config.json without `quantization_config`. The other files of `base` (but not its
/// sub-folders) are copied. Returns the size of the weights in bytes.
///
/// # Errors
/// The model is not quantised; a value is outside the range of `dtype`; `out` is not empty; a folder cannot be read or
/// written.
pub fn dequantize_model(base: &Path, out: &Path, dtype: StoredDType) -> Result<u64> {
    let config = ModelConfig::open(base)?;
    if config.quantization.is_none() {
        let file = base.join("config.json").display().to_string();
        let what = "has no quantization_config, so the weights are not quantised";
        return Err(Error::input(file, what, "use the folder as it is"));
    }
    let files = Checkpoint::open(base)?;
    files.check(&config)?;
    let draft = Draft::begin(out)?;
    copy_others(base, &draft.path)?;
    set_unquantized(&draft.path, Some(dtype))?;
    let weights = files.weights(&config).into_iter();
    let specs: Vec<TensorSpec> = weights.map(|(name, shape)| TensorSpec { name, dtype, shape }).collect();
    draft.write_weights(&files, &specs, |spec| match files.stored_values(spec)? {
        StoredValues::Plain(view) if view.dtype == dtype => Ok(Cow::Borrowed(view.bytes)),
        StoredValues::Plain(view) => {
            rounded(base, spec, widen_to_f32(view.dtype, view.bytes).unwrap_or_default()).map(Cow::Owned)
        }
        StoredValues::Dequantized(values) => rounded(base, spec, values).map(Cow::Owned),
    })?;
    draft.publish(out)?;
    Ok(specs.iter().map(TensorSpec::bytes).sum())
}

/// The bytes of a weight, rounded to the dtype of `spec`. `from` is where the weight comes from, for messages.
///
/// # Errors
/// A value is outside the range of the dtype.
pub(crate) fn rounded(from: &Path, spec: &TensorSpec, values: Vec<f32>) -> Result<Vec<u8>> {
    narrow(spec.dtype, &values).ok_or_else(|| {
        let what = format!("has a value outside the range of {}", spec.dtype.safetensors_name());
        let help = "use bf16 or f32, whose range is larger: a base model in this dtype, or --dtype";
        Error::failed(format!("{}: {}", from.display(), spec.name), what, help)
    })
}

/// Rounds values to a dtype; `None` if a value is outside the range of the dtype.
pub(super) fn narrow(dtype: StoredDType, values: &[f32]) -> Option<Vec<u8>> {
    let bytes: Vec<u8> = match dtype {
        StoredDType::F32 => bytemuck::cast_slice(values).to_vec(),
        StoredDType::Bf16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        StoredDType::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
    };
    widen_to_f32(dtype, &bytes)?.iter().all(|x| x.is_finite()).then_some(bytes)
}
