//! The tensors that store a quantised weight: their names, shapes and dtypes in each format.

use reel_input::config::{Scales, WeightFormat};
use reel_input::tensor_file::StoredDType;
use reel_kernels::dequantize::CodeValues;
use reel_runtime::ops::ScaleBlocks;
use serde_json::Value;

use super::codes::{AWQ_POSITION, CodeLayout, code, word};
use super::{Codes, QuantizedWeight};
use crate::error::{Error, Result};
use crate::widen::widen_to_f32;

pub(super) const HELP: &str = "use the weights that belong to this config.json";

/// A stored tensor of any dtype.
#[derive(Clone, Copy, Debug)]
pub(in crate::checkpoint) struct Part<'a> {
    /// The name of the dtype in the safetensors format.
    pub(in crate::checkpoint) dtype: &'a str,
    pub(in crate::checkpoint) shape: &'a [usize],
    pub(in crate::checkpoint) bytes: &'a [u8],
}

/// The end of the name of the tensor that has the codes, after the name of the module.
pub(in crate::checkpoint) fn main_part(format: WeightFormat) -> &'static str {
    match format {
        WeightFormat::Awq(_) | WeightFormat::Gptq { .. } => "qweight",
        WeightFormat::Packed { .. } => "weight_packed",
        WeightFormat::Int8 { .. } | WeightFormat::Fp8 { .. } | WeightFormat::Nf4 => "weight",
    }
}

/// The ends of the names of all tensors that may store a weight, without that of the codes. Scales of activations are
/// among them: they are not used, because activations are not quantised.
pub(in crate::checkpoint) fn part_names(format: WeightFormat) -> &'static [&'static str] {
    match format {
        WeightFormat::Awq(_) => &["qzeros", "scales"],
        WeightFormat::Gptq { .. } => &["qzeros", "scales", "g_idx"],
        WeightFormat::Packed { .. } => &["weight_scale", "weight_shape", "weight_zero_point", "input_scale"],
        WeightFormat::Int8 { .. } => &["weight_scale", "weight_zero_point", "input_scale", "input_zero_point"],
        WeightFormat::Fp8 { .. } => &["weight_scale", "weight_scale_inv", "input_scale", "activation_scale"],
        WeightFormat::Nf4 => &[
            "weight.absmax",
            "weight.quant_map",
            "weight.nested_absmax",
            "weight.nested_quant_map",
            "weight.quant_state.bitsandbytes__nf4",
        ],
    }
}

/// The tensors of one module. Errors name the file and the tensor.
pub(in crate::checkpoint) struct QuantizedParts<'a, 'f> {
    pub(in crate::checkpoint) format: WeightFormat,
    /// The shape `[out, in]` that config.json requires.
    pub(in crate::checkpoint) shape: [usize; 2],
    /// Finds a tensor by the end of its name.
    pub(in crate::checkpoint) find: &'f dyn Fn(&str) -> Option<Part<'a>>,
    /// Makes an error about the tensor with this end of its name: what is wrong, and what to do.
    pub(in crate::checkpoint) fault: &'f dyn Fn(&str, String, &str) -> Error,
}

impl<'a> QuantizedParts<'a, '_> {
    /// Checks that all tensors are there with their shapes, and reads scales and zero points.
    ///
    /// # Errors
    /// A tensor is missing, has another shape or dtype, or a value that is not possible.
    pub(in crate::checkpoint) fn open(&self) -> Result<QuantizedWeight<'a>> {
        let [out, inner] = self.shape;
        let weight = |codes, layout, values, zeros, scales, blocks| QuantizedWeight {
            shape: self.shape,
            codes: Codes::Stored(codes, layout),
            values,
            zeros,
            scales,
            blocks,
        };
        match self.format {
            WeightFormat::Awq(scales) => {
                let (columns, groups) = self.groups("scales", scales)?;
                self.whole_words("qweight", out, 4)?;
                let codes = self.part("qweight", "I32", &[inner, out / 8])?;
                let scales = transposed(&self.floats("scales", &[groups, out])?, groups);
                let packed = self.part("qzeros", "I32", &[groups, out / 8])?;
                let zero = |group: usize, o: usize| {
                    let shift = 4 * AWQ_POSITION[o % 8];
                    ((word(packed, group * (out / 8) + o / 8) >> shift) & 15) as f32
                };
                let zeros = by_row(out, groups, |o, group| zero(group, o));
                let index = ScaleBlocks::Tiles([1, columns]);
                Ok(weight(codes, CodeLayout::OutputsOfAwq, integers(4), zeros, scales, index))
            }
            WeightFormat::Gptq { bits, scales, is_version_1, reorders } => {
                self.gptq((bits, scales), is_version_1, reorders)
            }
            WeightFormat::Packed { bits, scales, is_symmetric } => {
                let words = (inner * bits as usize).div_ceil(32);
                let codes = self.part("weight_packed", "I32", &[out, words])?;
                let stored = self.part("weight_shape", "I64", &[2])?;
                let stored: Vec<i64> = stored.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect();
                if stored != [out as i64, inner as i64] {
                    let what = format!("is {stored:?}, but config.json requires {:?}", self.shape);
                    return Err((self.fault)("weight_shape", what, HELP));
                }
                let (index, shape) = self.scale_blocks("weight_scale", scales)?;
                let values = self.floats("weight_scale", &shape)?;
                // The stored code of a symmetric weight is its value plus half of the range.
                let middle = (1u32 << (bits - 1)) as f32;
                let of_codes = match (integers(bits), is_symmetric) {
                    (CodeValues::Table(table), true) => CodeValues::Table(table.map(|value| value - middle)),
                    (values, _) => values,
                };
                let zeros = match is_symmetric {
                    true if bits == 4 => Vec::new(),
                    true => vec![middle; values.len()],
                    false => {
                        // Zero points are packed along the outputs.
                        let columns = shape.get(1).copied().unwrap_or(1);
                        let packed_rows = (out * bits as usize).div_ceil(32);
                        let packed = self.part("weight_zero_point", "I32", &[packed_rows, columns])?;
                        let per_word = (32 / bits) as usize;
                        by_row(out, columns, |o, group| {
                            let word = word(packed, o / per_word * columns + group).to_le_bytes();
                            f32::from(code(&word, bits, o % per_word))
                        })
                    }
                };
                let layout = CodeLayout::Rows { bits, row_bytes: 4 * words };
                Ok(weight(codes, layout, of_codes, zeros, values, index))
            }
            WeightFormat::Int8 { scales, is_symmetric } => {
                let codes = self.part("weight", "I8", &self.shape)?;
                let (index, shape) = self.scale_blocks("weight_scale", scales)?;
                let signed = |bytes: &[u8]| bytes.iter().map(|&byte| f32::from(byte as i8)).collect();
                let zeros = match is_symmetric {
                    true => Vec::new(),
                    false => signed(self.part("weight_zero_point", "I8", &shape)?),
                };
                let scales = self.floats("weight_scale", &shape)?;
                let layout = CodeLayout::Rows { bits: 8, row_bytes: inner };
                Ok(weight(codes, layout, CodeValues::I8, zeros, scales, index))
            }
            WeightFormat::Fp8 { scales, scale_name } => {
                let codes = self.part("weight", "F8_E4M3", &self.shape)?;
                let (index, shape) = self.scale_blocks(scale_name, scales)?;
                let scales = self.floats(scale_name, &shape)?;
                let layout = CodeLayout::Rows { bits: 8, row_bytes: inner };
                Ok(weight(codes, layout, CodeValues::E4m3, Vec::new(), scales, index))
            }
            WeightFormat::Nf4 => self.nf4(),
        }
    }

    fn gptq(&self, (bits, scales): (u32, Scales), is_version_1: bool, reorders: bool) -> Result<QuantizedWeight<'a>> {
        let [out, inner] = self.shape;
        let (columns, groups) = self.groups("scales", scales)?;
        let per_word = (32 / bits) as usize;
        self.whole_words("qweight", inner, bits)?;
        self.whole_words("qzeros", out, bits)?;
        let codes = self.part("qweight", "I32", &[inner / per_word, out])?;
        let scales = transposed(&self.floats("scales", &[groups, out])?, groups);
        let packed = self.part("qzeros", "I32", &[groups, out / per_word])?;
        let largest = (1u32 << bits) - 1;
        let stored = |group: usize, o: usize| u32::from(code(packed, bits, group * out + o));
        if is_version_1 && (0..packed.len() * 8 / bits as usize).any(|i| u32::from(code(packed, bits, i)) == largest) {
            let what = format!(
                "has the zero point {largest}, which some programs read as {} and some as 0 in this version of the format",
                largest + 1
            );
            return Err((self.fault)("qzeros", what, "convert the model to checkpoint_format gptq_v2"));
        }
        let blocks = match (self.find)("g_idx") {
            None => ScaleBlocks::Tiles([1, columns]),
            Some(_) => {
                let indices = self.part("g_idx", "I32", &[inner])?;
                let block: Vec<i32> = (0..inner).map(|i| word(indices, i) as i32).collect();
                if let Some(i) = block.iter().position(|&group| !(0..groups as i32).contains(&group)) {
                    let what = format!("has {} at [{i}], but there are {groups} groups", block[i]);
                    return Err((self.fault)("g_idx", what, HELP));
                }
                match reorders || block.iter().enumerate().any(|(i, &group)| group as usize != i / columns) {
                    true => ScaleBlocks::OfColumns { count: groups, block },
                    false => ScaleBlocks::Tiles([1, columns]),
                }
            }
        };
        Ok(QuantizedWeight {
            shape: self.shape,
            codes: Codes::Stored(codes, CodeLayout::Columns { bits }),
            values: integers(bits),
            zeros: by_row(out, groups, |o, group| (stored(group, o) + u32::from(is_version_1)) as f32),
            scales,
            blocks,
        })
    }

    fn nf4(&self) -> Result<QuantizedWeight<'a>> {
        const STATE: &str = "weight.quant_state.bitsandbytes__nf4";
        let [out, inner] = self.shape;
        let size = out * inner;
        let codes = self.part("weight", "U8", &[size.div_ceil(2), 1])?;
        let bytes = (self.find)(STATE).filter(|part| part.dtype == "U8");
        let bytes = bytes.ok_or_else(|| (self.fault)(STATE, "is missing".to_string(), HELP))?.bytes;
        let broken = |what: String| (self.fault)(STATE, what, HELP);
        let state: Value = serde_json::from_slice(bytes).map_err(|e| broken(format!("is not JSON ({e})")))?;
        let length = |key: &str| {
            let found = state.get(key).and_then(Value::as_u64).filter(|&length| length > 0 && length < 1 << 31);
            found.map(|length| length as usize).ok_or_else(|| broken(format!("has no valid `{key}`")))
        };
        let shape: Option<Vec<u64>> = state["shape"].as_array().and_then(|l| l.iter().map(Value::as_u64).collect());
        if shape.as_deref() != Some(&[out as u64, inner as u64]) {
            return Err(broken(format!("has the shape {}, but config.json requires {:?}", state["shape"], self.shape)));
        }
        let block = length("blocksize")?;
        let blocks = size.div_ceil(block);
        let map = self.floats("weight.quant_map", &[16])?;
        let values = CodeValues::Table(*map.as_chunks().0.first().unwrap_or(&[0.0; 16]));
        let is_double = (self.find)("weight.absmax").is_some_and(|part| part.dtype == "U8");
        let scales = match is_double {
            false => self.floats("weight.absmax", &[blocks])?,
            true => {
                let stored = self.part("weight.absmax", "U8", &[blocks])?;
                let nested = length("nested_blocksize")?;
                let map = self.floats("weight.nested_quant_map", &[256])?;
                let largest = self.floats("weight.nested_absmax", &[blocks.div_ceil(nested)])?;
                let offset = state.get("nested_offset").and_then(Value::as_f64).map(|offset| offset as f32);
                let offset = offset.filter(|offset| offset.is_finite());
                let offset = offset.ok_or_else(|| broken("has no finite `nested_offset`".to_string()))?;
                let each = stored.iter().enumerate();
                each.map(|(i, &code)| map[usize::from(code)] * largest[i / nested] + offset).collect()
            }
        };
        Ok(QuantizedWeight {
            shape: self.shape,
            codes: Codes::Stored(codes, CodeLayout::UpperHalfFirst),
            values,
            zeros: Vec::new(),
            scales,
            blocks: ScaleBlocks::Consecutive(block),
        })
    }

    /// The number of inputs in a group, and the number of groups.
    fn groups(&self, name: &str, scales: Scales) -> Result<(usize, usize)> {
        let [_, columns] = scales.block(self.shape);
        let inner = self.shape[1];
        if !inner.is_multiple_of(columns) {
            let what = format!("has groups of {columns} inputs, which do not divide {inner} inputs");
            return Err((self.fault)(name, what, HELP));
        }
        Ok((columns, inner / columns))
    }

    /// Fails unless `length` codes of `bits` bits fill whole words.
    fn whole_words(&self, name: &str, length: usize, bits: u32) -> Result<()> {
        let per_word = (32 / bits) as usize;
        if length.is_multiple_of(per_word) {
            return Ok(());
        }
        Err((self.fault)(name, format!("packs {per_word} codes a word, which do not divide {length}"), HELP))
    }

    /// Which scale a weight has, and the shape in which compressed-tensors stores the scales.
    fn scale_blocks(&self, name: &str, scales: Scales) -> Result<(ScaleBlocks, Vec<usize>)> {
        let [out, inner] = self.shape;
        let [rows, columns] = scales.block(self.shape);
        if matches!(scales, Scales::Group(_)) {
            self.groups(name, scales)?;
        }
        // A single scale has the shape [1], or none.
        let is_scalar = scales == Scales::Tensor && (self.find)(name).is_some_and(|part| part.shape.is_empty());
        let shape = match scales {
            Scales::Tensor if is_scalar => Vec::new(),
            Scales::Tensor => vec![1],
            _ => vec![out.div_ceil(rows), inner.div_ceil(columns)],
        };
        Ok((ScaleBlocks::Tiles([rows, columns]), shape))
    }

    /// The bytes of a tensor with this dtype and shape.
    fn part(&self, name: &str, dtype: &str, shape: &[usize]) -> Result<&'a [u8]> {
        let part = self.with_shape(name, shape)?;
        match part.dtype == dtype {
            true => Ok(part.bytes),
            false => Err((self.fault)(name, format!("is stored as {}, but must be {dtype}", part.dtype), HELP)),
        }
    }

    /// The values of a tensor of f32, bf16 or f16 with this shape.
    fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let part = self.with_shape(name, shape)?;
        let dtype = StoredDType::from_safetensors_name(part.dtype);
        let Some(values) = dtype.and_then(|dtype| widen_to_f32(dtype, part.bytes)) else {
            let what = format!("is stored as {}, but must be F32, BF16 or F16", part.dtype);
            return Err((self.fault)(name, what, HELP));
        };
        // With larger scales, products with values of up to 512 would be infinite.
        match values.iter().position(|x| !(x.abs() < f32::MAX / 1024.0)) {
            None => Ok(values),
            Some(at) => {
                let what = format!("has a value that is NaN, infinite or too large, number {at}");
                Err((self.fault)(name, what, "copy or download the weights again"))
            }
        }
    }

    fn with_shape(&self, name: &str, shape: &[usize]) -> Result<Part<'a>> {
        let Some(part) = (self.find)(name) else {
            return Err((self.fault)(name, format!("is missing; expected shape {shape:?}"), HELP));
        };
        if part.shape != shape {
            let what = format!("has shape {:?}, but config.json requires {shape:?}", part.shape);
            return Err((self.fault)(name, what, HELP));
        }
        Ok(part)
    }
}

/// The values of integer codes.
fn integers(bits: u32) -> CodeValues {
    if bits == 8 { CodeValues::U8 } else { CodeValues::Table(std::array::from_fn(|code| code as f32)) }
}

/// Values `[out, groups]`.
fn by_row(out: usize, groups: usize, value: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    (0..out * groups).map(|i| value(i / groups, i % groups)).collect()
}

/// Values `[groups, out]` as `[out, groups]`.
fn transposed(values: &[f32], groups: usize) -> Vec<f32> {
    let out = values.len() / groups.max(1);
    by_row(out, groups, |o, group| values[group * out + o])
}
