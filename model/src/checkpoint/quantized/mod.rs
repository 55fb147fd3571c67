//! Quantised weights of linear layers: which tensors store them, and the values that they stand for.
//!
//! ```text
//! w = (value of code − zero point) · scale        both operands exact in f32, one f32 product
//! ```
//!
//! This holds for all formats ([`reel_input::config::WeightFormat`]): the code is an integer, an 8-bit float, or an index
//! into a table (nf4). Sources: the layouts of AutoAWQ's `gemm` kernels, of GPTQModel, compressed-tensors, bitsandbytes,
//! and of transformers' `finegrained_fp8`.

mod at_load;
mod codes;
mod parts;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use rayon::prelude::*;
use reel_device::Device;
use reel_input::config::{Scales, WeightFormat, WeightQuantization};
use reel_input::tensor_file::StoredDType;
use reel_kernels::dequantize::CodeValues;
use reel_runtime::ops::{QuantizedMatrix, ScaleBlocks};
use reel_support::diagnostic::print_note_once;

use super::{Checkpoint, fault};
use crate::error::{Error, Result};
pub(crate) use at_load::FP8_BLOCK;
use at_load::PlainWeight;
pub(crate) use codes::AWQ_POSITION;
use codes::CodeLayout;
use parts::{Part, QuantizedParts, main_part, part_names};

/// The weight `[out, in]` of a linear layer as its quantised files store it.
#[derive(Debug)]
pub struct QuantizedWeight<'a> {
    /// The number of rows (outputs) and columns (inputs).
    pub shape: [usize; 2],
    codes: Codes<'a>,
    values: CodeValues,
    /// The zero point of each block; empty if all are 0.
    zeros: Vec<f32>,
    scales: Vec<f32>,
    blocks: ScaleBlocks,
}

/// Where the codes of a weight are.
#[derive(Debug)]
enum Codes<'a> {
    /// In the files, in this layout.
    Stored(&'a [u8], CodeLayout),
    /// In no file: the weight is quantised while it is loaded.
    OfPlain(PlainWeight<'a>),
}

/// The number of rows that a thread reads at a time. A word of AWQ has 8 rows, and a cache line 16 words.
const ROWS_AT_ONCE: usize = 128;

impl QuantizedWeight<'_> {
    /// Writes the values of the rows `rows` to `to`, `[rows, in]`, on several threads.
    ///
    /// # Errors
    /// The number of a row that has a NaN.
    pub fn read_rows(&self, rows: Range<usize>, to: &mut [f32]) -> Result<(), usize> {
        let (inner, table) = (self.shape[1], std::array::from_fn(|code| self.values.value(code as u8)));
        to.par_chunks_mut(ROWS_AT_ONCE * inner).enumerate().try_for_each(|(i, to)| {
            let first = rows.start + i * ROWS_AT_ONCE;
            let rows = first..first + to.len() / inner;
            let mut codes = vec![0; to.len()];
            self.read_codes(&rows, &mut codes);
            let mut each = rows.zip(to.chunks_exact_mut(inner).zip(codes.chunks_exact(inner)));
            each.try_for_each(|(row, (to, codes))| {
                self.read_row(row, codes, &table, to);
                if to.iter().fold(true, |all, x| all & x.is_finite()) { Ok(()) } else { Err(row) }
            })
        })
    }

    /// Writes the codes of the rows `rows` to `to`, `[rows, in]`.
    fn read_codes(&self, rows: &Range<usize>, to: &mut [u8]) {
        match &self.codes {
            Codes::Stored(bytes, layout) => layout.read_rows(bytes, self.shape, rows, to),
            Codes::OfPlain(plain) => self.compute_codes(plain, rows, to),
        }
    }

    /// Writes the values of a row whose codes are `codes`; `table` has the value of each code.
    fn read_row(&self, row: usize, codes: &[u8], table: &[f32; 256], to: &mut [f32]) {
        for (block, columns) in self.blocks.of_row(row, codes.len()) {
            let (scale, zero) = (self.scales[block], self.zeros.get(block).copied().unwrap_or(0.0));
            let each = to[columns.clone()].iter_mut().zip(&codes[columns]);
            each.for_each(|(to, &code)| *to = (table[usize::from(code)] - zero) * scale);
        }
    }

    /// The codes `[rows, in]` of the rows `rows`, a byte each. They are read on several threads.
    ///
    /// # Errors
    /// The number of a row that has a NaN.
    pub(crate) fn codes_of_rows(&self, rows: Range<usize>) -> Result<Vec<u8>, usize> {
        let inner = self.shape[1];
        let mut codes = vec![0; rows.len() * inner];
        codes.par_chunks_mut(ROWS_AT_ONCE * inner).enumerate().try_for_each(|(i, codes)| {
            let first = rows.start + i * ROWS_AT_ONCE;
            self.read_codes(&(first..first + codes.len() / inner), codes);
            let is_nan = |code: &u8| code & 0x7f == 0x7f;
            match codes.iter().position(is_nan).filter(|_| self.values == CodeValues::E4m3) {
                Some(at) => Err(first + at / inner),
                None => Ok(()),
            }
        })?;
        Ok(codes)
    }

    /// The scale of each block.
    pub(crate) fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// [`QuantizedMatrix::is_read_fast_on`]
    pub(crate) fn is_read_fast_on(&self, device: &Device) -> bool {
        QuantizedMatrix::is_read_fast_on(device, &self.values, &self.blocks)
    }

    /// A weight on the device with these scales, and with codes that are not initialised.
    ///
    /// # Errors
    /// Out of memory.
    pub(crate) fn empty_matrix(&self, device: &Device) -> Result<QuantizedMatrix> {
        let has_zeros = !self.zeros.is_empty();
        let matrix = QuantizedMatrix::new(device, self.shape, self.values, self.blocks.clone(), has_zeros)?;
        matrix.write_scales(&self.scales, &self.zeros)?;
        Ok(matrix)
    }
}

/// How weights of files in a format lie in memory.
pub(crate) struct MatrixLayout {
    values: CodeValues,
    blocks: ScaleBlocks,
    has_zeros: bool,
}

impl MatrixLayout {
    /// The layout of a weight `[out, in]`. The values of its codes, and the blocks of its columns, are not those of
    /// files.
    pub(crate) fn of(format: WeightFormat, shape: [usize; 2]) -> MatrixLayout {
        const TABLE: CodeValues = CodeValues::Table([0.0; 16]);
        let of_bits = |bits: u32| if bits == 8 { CodeValues::U8 } else { TABLE };
        let (values, scales, has_zeros) = match format {
            WeightFormat::Awq(scales) => (TABLE, scales, true),
            WeightFormat::Gptq { bits, scales, .. } => (of_bits(bits), scales, true),
            WeightFormat::Packed { bits, scales, is_symmetric } => (of_bits(bits), scales, !is_symmetric || bits == 8),
            WeightFormat::Int8 { scales, is_symmetric } => (CodeValues::I8, scales, !is_symmetric),
            WeightFormat::Fp8 { scales, .. } => (CodeValues::E4m3, scales, false),
            WeightFormat::Nf4 => (TABLE, Scales::Tensor, false),
        };
        let tile = scales.block(shape);
        let blocks = match format {
            // The default of bitsandbytes, which config.json does not name.
            WeightFormat::Nf4 => ScaleBlocks::Consecutive(at_load::NF4_BLOCK),
            WeightFormat::Gptq { reorders: true, .. } => {
                ScaleBlocks::OfColumns { count: shape[1].div_ceil(tile[1]), block: vec![0; shape[1]] }
            }
            _ => ScaleBlocks::Tiles(tile),
        };
        MatrixLayout { values, blocks, has_zeros }
    }

    /// [`QuantizedMatrix::is_read_fast_on`]
    pub(crate) fn is_read_fast_on(&self, device: &Device) -> bool {
        QuantizedMatrix::is_read_fast_on(device, &self.values, &self.blocks)
    }

    /// A weight on the device that needs as much memory as one of files.
    ///
    /// # Errors
    /// Out of memory.
    pub(crate) fn empty_matrix(self, device: &Device, shape: [usize; 2]) -> Result<QuantizedMatrix> {
        Ok(QuantizedMatrix::new(device, shape, self.values, self.blocks, self.has_zeros)?)
    }
}

impl Checkpoint {
    /// The weight with this classic name, which config.json requires to have this shape, if it is quantised.
    ///
    /// # Errors
    /// A tensor of the weight is missing, has another shape or dtype, or a value that is not possible.
    pub fn quantized(&self, name: &str, shape: [usize; 2]) -> Result<Option<QuantizedWeight<'_>>> {
        let Some(format) = self.quantization.as_ref().map(|config| config.format) else { return Ok(None) };
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let find = |part: &str| {
            let entry = self.parts.get(&format!("{module}.{part}"))?;
            let bytes = self.shards.get(entry.shard)?.as_bytes().get(entry.begin..entry.end)?;
            Some(Part { dtype: &entry.dtype, shape: &entry.shape, bytes })
        };
        if find(main_part(format)).is_none() {
            return Ok(None);
        }
        let fault = |part: &str, what: String, help: &str| self.part_fault(&format!("{module}.{part}"), what, help);
        QuantizedParts { format, shape, find: &find, fault: &fault }.open().map(Some)
    }

    /// The values `[rows, in]` of some rows of the quantised weight with this classic name.
    ///
    /// # Errors
    /// A value is NaN or infinite.
    pub(crate) fn dequantized_rows(
        &self,
        name: &str,
        weight: &QuantizedWeight,
        rows: Range<usize>,
    ) -> Result<Vec<f32>> {
        let mut values = vec![0.0; rows.len() * weight.shape[1]];
        weight.read_rows(rows, &mut values).map_err(|row| self.not_a_number(name, row))?;
        Ok(values)
    }

    /// An error about a row of the quantised weight with this classic name.
    pub(crate) fn not_a_number(&self, name: &str, row: usize) -> Error {
        let main = self.quantization.as_ref().map_or("weight", |config| main_part(config.format));
        let part = format!("{}.{main}", name.strip_suffix(".weight").unwrap_or(name));
        self.part_fault(&part, format!("row {row} has a NaN or an infinity"), "copy or download the file again")
    }

    /// An error about a tensor of a quantised weight.
    fn part_fault(&self, name: &str, what: impl Into<String>, help: &str) -> Error {
        let shard = self.parts.get(name).and_then(|entry| self.shards.get(entry.shard));
        let file = shard.map_or(self.folder.as_path(), |file| file.path());
        fault(file, &self.naming.from_classic_name(name), what, help)
    }

    /// How config.json says that linear layers are quantised, if they are.
    pub(crate) fn quantization(&self) -> Option<&WeightQuantization> {
        self.quantization.as_ref()
    }

    /// The classic names of the quantised weights, sorted.
    pub fn quantized_names(&self) -> impl Iterator<Item = String> {
        let end = self.quantization.as_ref().map_or("", |config| main_part(config.format));
        let module = move |name: &String| Some(format!("{}.weight", name.strip_suffix(end)?.strip_suffix('.')?));
        self.parts.keys().filter_map(module)
    }

    /// Whether the tensor is a bias of zeros of a linear layer of the decoder. AutoGPTQ stored such biases for layers
    /// without a bias.
    pub(super) fn is_unused_bias(&self, name: &str) -> bool {
        let is_bias = name.starts_with("model.layers.") && name.ends_with("_proj.bias");
        is_bias
            && self.quantization.is_some()
            && self.tensor(name).is_some_and(|view| view.bytes.iter().all(|&byte| byte == 0))
    }

    /// Whether a stored tensor is a part of a quantised weight.
    pub(super) fn is_part(&self, name: &str, dtype: &str) -> bool {
        let Some(format) = self.quantization.as_ref().map(|config| config.format) else { return false };
        let ends = |part: &str| name.strip_suffix(part).is_some_and(|module| module.ends_with('.'));
        let main = main_part(format);
        let is_main = ends(main) && (main != "weight" || StoredDType::from_safetensors_name(dtype).is_none());
        is_main || part_names(format).iter().any(|part| ends(part))
    }

    /// Checks the quantised weights against the names and shapes `expected` of all weights.
    ///
    /// # Errors
    /// A weight outside of the decoder's linear layers is quantised, or one that config.json lists as plain; no weight is
    /// quantised; a part belongs to no quantised weight; the errors of [`Checkpoint::quantized`].
    pub(super) fn check_quantized(&self, expected: &[(String, Vec<usize>)]) -> Result<()> {
        let Some(quantization) = &self.quantization else { return Ok(()) };
        let names: BTreeSet<String> = self.quantized_names().collect();
        let shapes: BTreeMap<&str, &[usize]> = expected.iter().map(|(name, shape)| (&name[..], &shape[..])).collect();
        for name in self.parts.keys() {
            let ends = part_names(quantization.format).iter().copied().chain([main_part(quantization.format)]);
            let mut modules = ends.filter_map(|part| name.strip_suffix(part)?.strip_suffix('.'));
            let module = modules.next().unwrap_or(name);
            let wrong = |what: String| Err(self.part_fault(name, what, parts::HELP));
            let is_linear = module.starts_with("model.layers.") && shapes.contains_key(&*format!("{module}.weight"));
            if !is_linear {
                return wrong("is quantised; only the linear layers of the decoder may be".to_string());
            }
            if !names.contains(&format!("{module}.weight")) {
                return wrong(format!("has no {} beside it", main_part(quantization.format)));
            }
            if self.tensors.contains_key(&format!("{module}.weight")) {
                return wrong("is stored, but the files also have the weight unquantised".to_string());
            }
            let stored = self.naming.from_classic_name(module);
            if [module, &stored].iter().any(|name| quantization.is_listed_as_plain(name)) {
                return wrong(format!(
                    "is quantised, but {} lists this module as not quantised",
                    quantization.plain_key
                ));
            }
        }
        if names.is_empty() {
            let what = "has a quantization_config, but no weight of the files is quantised";
            let config = self.folder.join("config.json").display().to_string();
            return Err(Error::input(config, what, "use the config.json that belongs to these weights"));
        }
        for name in &names {
            if let Some(&&[out, inner]) = shapes.get(&name[..]) {
                self.quantized(name, [out, inner])?;
            }
        }
        if let Some(note) = &quantization.note {
            print_note_once(note.clone());
        }
        Ok(())
    }
}
