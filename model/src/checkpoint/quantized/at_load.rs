//! Quantises a plain weight while it is loaded (`--quantize nf4|fp8`). A first pass over the weight finds the largest size
//! in each block of weights, from which the scales follow; the codes of rows are computed when they are read.
//!
//! ```text
//! fp8   scale = largest / 448                   code = nearest e4m3 of w / scale, ties to even
//! nf4   scale = double_quantised(largest)       code = nearest value of the table to w · (1 / largest), ties downwards
//! double_quantised(m):  mean = f32(Σ m / n);    d = m − mean;    D = the largest |d| of 256 consecutive ones
//!                       MAP[nearest value of MAP to d · (1 / D), ties to even codes] · D + mean
//! ```
//!
//! All operations are single f32 operations, except the sum. Sources: `finegrained_fp8` of transformers, with the blocks
//! that Qwen publishes; for nf4 with double quantisation `functional.py` and the CUDA kernels (`dQuantizeNF4`,
//! `dQuantize`) of bitsandbytes 0.50. bitsandbytes sums in f32, in an order that depends on the device, and its CUDA
//! kernels approximate reciprocals. A block of zeros stays 0, as bitsandbytes computes it without CUDA.

use std::ops::Range;

use rayon::prelude::*;
use reel_input::config::{Scales, WeightFormat};
use reel_input::tensor_file::StoredDType;
use reel_kernels::dequantize::CodeValues;
use reel_runtime::ops::ScaleBlocks;

use super::{Codes, QuantizedWeight};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::quantization::LoadFormat;
use crate::widen::widen_to_f32;

/// Consecutive weights of a block of nf4, the default of bitsandbytes.
pub(super) const NF4_BLOCK: usize = 64;

/// Rows and columns of a block of fp8.
pub(crate) const FP8_BLOCK: usize = 128;

/// Blocks of nf4 whose scales are quantised together.
const NESTED_BLOCK: usize = 256;

/// The largest finite number of e4m3.
const MAX_E4M3: f32 = 448.0;

/// The values of nf4, of `get_4bit_type` of bitsandbytes: quantiles of the normal distribution.
#[rustfmt::skip]
const NF4: [f32; 16] = [
    -1.0, -0.696_192_8, -0.525_073_05, -0.394_917_5, -0.284_441_38, -0.184_773_43, -0.091_050_036, 0.0,
    0.079_580_3, 0.160_930_2, 0.246_112_3, 0.337_915_24, 0.440_709_83, 0.562_617, 0.722_956_84, 1.0,
];

/// A plain weight `[out, in]` whose codes are computed when they are read.
#[derive(Debug)]
pub(super) struct PlainWeight<'a> {
    dtype: StoredDType,
    bytes: &'a [u8],
    /// The largest size in each block.
    largest: Vec<f32>,
}

impl LoadFormat {
    /// The format of files whose weights take the same memory.
    pub(crate) fn weight_format(self) -> WeightFormat {
        match self {
            LoadFormat::Nf4 => WeightFormat::Nf4,
            LoadFormat::Fp8 => {
                WeightFormat::Fp8 { scales: Scales::Block([FP8_BLOCK; 2]), scale_name: "weight_scale_inv" }
            }
        }
    }
}

impl Checkpoint {
    /// The plain weight with this classic name and shape, as `format` stores it.
    ///
    /// # Errors
    /// The weight is missing or has another shape; it has a NaN or an infinity.
    pub(crate) fn quantize(&self, name: &str, shape: [usize; 2], format: LoadFormat) -> Result<QuantizedWeight<'_>> {
        let view = self.tensor_with_shape(name, &shape)?;
        QuantizedWeight::of_plain(view.dtype, view.bytes, shape, format).map_err(|row| {
            let what = format!("row {row} has a NaN or an infinity, which cannot be quantised");
            Error::failed(name, what, "copy or download the file again")
        })
    }
}

impl<'a> QuantizedWeight<'a> {
    /// The weight `[out, in]` with these stored elements, as `format` stores it.
    ///
    /// # Errors
    /// The number of a row that has a NaN or an infinity.
    fn of_plain(dtype: StoredDType, bytes: &'a [u8], shape: [usize; 2], format: LoadFormat) -> Result<Self, usize> {
        let largest = largest_of_blocks(dtype, bytes, shape[1], format)?;
        let (values, scales, blocks) = match format {
            LoadFormat::Nf4 => {
                (CodeValues::Table(NF4), double_quantized(&largest), ScaleBlocks::Consecutive(NF4_BLOCK))
            }
            LoadFormat::Fp8 => {
                // The bound keeps the scale of zeros, and of the smallest numbers, above 0.
                let scales = largest.iter().map(|largest| (largest / MAX_E4M3).max(f32::MIN_POSITIVE)).collect();
                (CodeValues::E4m3, scales, ScaleBlocks::Tiles([FP8_BLOCK; 2]))
            }
        };
        let codes = Codes::OfPlain(PlainWeight { dtype, bytes, largest });
        Ok(QuantizedWeight { shape, codes, values, zeros: Vec::new(), scales, blocks })
    }
}

/// The largest size in each block of a weight with `inner` columns, or a row with a NaN or an infinity.
fn largest_of_blocks(dtype: StoredDType, bytes: &[u8], inner: usize, format: LoadFormat) -> Result<Vec<f32>, usize> {
    // A part has whole blocks.
    let part = match format {
        LoadFormat::Nf4 => NF4_BLOCK * 4096,
        LoadFormat::Fp8 => FP8_BLOCK * inner,
    };
    let largest = |values: &[f32]| values.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    let parts = bytes.par_chunks(part * dtype.element_bytes()).enumerate().map(|(i, bytes)| {
        let values = widen_to_f32(dtype, bytes).unwrap_or_default();
        if let Some(at) = values.iter().position(|x| !x.is_finite()) {
            return Err((i * part + at) / inner);
        }
        let blocks = match format {
            LoadFormat::Nf4 => values.chunks(NF4_BLOCK).map(largest).collect(),
            LoadFormat::Fp8 => {
                let mut blocks = vec![0f32; inner.div_ceil(FP8_BLOCK)];
                for (block, values) in values.chunks(inner).flat_map(|row| row.chunks(FP8_BLOCK).enumerate()) {
                    blocks[block] = largest(values).max(blocks[block]);
                }
                blocks
            }
        };
        Ok(blocks)
    });
    Ok(parts.collect::<Result<Vec<Vec<f32>>, usize>>()?.concat())
}

impl QuantizedWeight<'_> {
    /// Writes the codes of the rows `rows` of `plain`, the weight itself, to `to`, `[rows, in]`.
    pub(super) fn compute_codes(&self, plain: &PlainWeight, rows: &Range<usize>, to: &mut [u8]) {
        let (inner, size) = (self.shape[1], plain.dtype.element_bytes());
        for (row, to) in rows.clone().zip(to.chunks_exact_mut(inner)) {
            let stored = &plain.bytes[row * inner * size..][..inner * size];
            let values = widen_to_f32(plain.dtype, stored).unwrap_or_default();
            for (block, columns) in self.blocks.of_row(row, inner) {
                let each = to[columns.clone()].iter_mut().zip(&values[columns]);
                match self.values {
                    CodeValues::E4m3 => each.for_each(|(to, x)| *to = e4m3(x / self.scales[block])),
                    _ => {
                        let factor = reciprocal(plain.largest[block]);
                        each.for_each(|(to, x)| *to = nf4(x * factor));
                    }
                }
            }
        }
    }
}

/// `1 / size`, where 0 counts as 1e-38.
fn reciprocal(size: f32) -> f32 {
    1.0 / size.max(1e-38)
}

/// The code of nf4 whose value is nearest to `x`; the lower of two.
fn nf4(x: f32) -> u8 {
    let is_above = |pair: &[f32]| u8::from(x > (pair[0] + pair[1]) / 2.0);
    NF4.windows(2).map(is_above).sum()
}

/// The code of e4m3 whose value is nearest to `x`, the even one of two. Larger numbers become 448.
fn e4m3(x: f32) -> u8 {
    let size = x.abs().min(MAX_E4M3);
    // The numbers between 2^e and 2^(e + 1) are 2^(e - 3) apart, and so are those below 2^-6. After the sum with 2^23 such
    // steps, the lowest bit of f32 is one step.
    let exponent = (size.to_bits() >> 23).max(127 - 6);
    let steps = (size + f32::from_bits((exponent - 3 + 23) << 23)).to_bits() & 31;
    let sign = (x.to_bits() >> 24) & 0x80;
    (sign | (((exponent - 121) << 3) + steps)) as u8
}

/// The values that the double quantisation of bitsandbytes stores for the sizes `largest` of blocks.
fn double_quantized(largest: &[f32]) -> Vec<f32> {
    let mean = (largest.iter().copied().map(f64::from).sum::<f64>() / largest.len().max(1) as f64) as f32;
    let map = dynamic_map();
    let code = |x: f32| {
        let above = map.partition_point(|&value| value < x).clamp(1, 255);
        let middle = (map[above - 1] + map[above]) * 0.5;
        if x > middle || (x == middle && above % 2 == 0) { above } else { above - 1 }
    };
    let of_block = |block: &[f32]| -> Vec<f32> {
        let differences = block.iter().map(|x| x - mean);
        let scale = differences.clone().fold(0f32, |largest, x| largest.max(x.abs()));
        differences.map(|x| map[code(x * reciprocal(scale))] * scale + mean).collect()
    };
    largest.par_chunks(NESTED_BLOCK).flat_map_iter(of_block).collect()
}

/// The 256 values of `create_dynamic_map` of bitsandbytes, in ascending order: for each power of ten from 1e-6 to 1, the
/// middles of 1, 2, 4, … 64 equal parts of the range from a tenth of it to it, with both signs; 0; 1.
fn dynamic_map() -> Vec<f32> {
    let mut map = vec![0.0, 1.0];
    for (power, scale) in [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0f32].into_iter().enumerate() {
        let parts = 1usize << power;
        let step = (1.0 - 0.1) / parts as f32;
        // `torch.linspace` counts from the nearer end, with fused multiply-adds.
        let boundary = |i: usize| match i < parts.div_ceil(2) {
            true => step.mul_add(i as f32, 0.1),
            false => (-step).mul_add((parts - i) as f32, 1.0),
        };
        for i in 0..parts {
            let value = scale * ((boundary(i) + boundary(i + 1)) / 2.0);
            map.extend([value, -value]);
        }
    }
    map.sort_by(f32::total_cmp);
    map
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use proptest::prelude::*;
    use sha2::{Digest, Sha256};

    use super::*;

    fn values(weight: &QuantizedWeight) -> Vec<f32> {
        let mut values = vec![f32::NAN; weight.shape[0] * weight.shape[1]];
        weight.read_rows(0..weight.shape[0], &mut values).unwrap();
        values
    }

    /// The weight of tests/golden/quant/at_load.json with this seed.
    fn golden_weight([out, inner]: [usize; 2], seed: u64) -> Vec<bf16> {
        let element = |i: usize| {
            let hash = (i as u64 + seed * 1_000_003).wrapping_mul(2_654_435_761) % (1 << 32);
            let x = (hash >> 8) as f32 * 2f32.powi(-24) - 0.5;
            let is_zero = (640..768).contains(&i);
            let size = 0.25 * 2f32.powi((i / inner % 5) as i32 - 2);
            bf16::from_f32(if is_zero { 0.0 } else { x * x * x * size })
        };
        (0..out * inner).map(element).collect()
    }

    #[test]
    fn nf4_has_the_bits_of_bitsandbytes() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/quant/at_load.json");
        let cases: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        for case in cases.as_array().unwrap() {
            let shape: [usize; 2] = serde_json::from_value(case["shape"].clone()).unwrap();
            let plain = golden_weight(shape, case["seed"].as_u64().unwrap());
            let bytes = bytemuck::cast_slice(&plain);
            let weight = QuantizedWeight::of_plain(StoredDType::Bf16, bytes, shape, LoadFormat::Nf4).unwrap();
            let values = values(&weight);
            let rounded: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
            for (dtype, bytes) in
                [("f32", bytemuck::cast_slice::<_, u8>(&values)), ("bf16", bytemuck::cast_slice(&rounded))]
            {
                let hash: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
                assert_eq!(case[dtype], hash, "{case}");
            }
        }
        let row = |change: fn(&mut Vec<bf16>), format| {
            let mut plain = golden_weight([9, 40], 1);
            change(&mut plain);
            QuantizedWeight::of_plain(StoredDType::Bf16, bytemuck::cast_slice(&plain), [9, 40], format).unwrap_err()
        };
        for format in [LoadFormat::Nf4, LoadFormat::Fp8] {
            assert_eq!(row(|plain| plain[7 * 40] = bf16::NAN, format), 7);
            assert_eq!(row(|plain| plain[3 * 40 - 1] = bf16::NEG_INFINITY, format), 2);
        }
    }

    /// The value of `table` that is nearest to `x`; the one with an even code of two.
    fn nearest(table: &[f64], x: f64) -> f64 {
        let distance = |code: usize| ((table[code] - x).abs(), code % 2);
        table[(0..table.len()).min_by(|&a, &b| distance(a).partial_cmp(&distance(b)).unwrap()).unwrap()]
    }

    /// Whether `x` is, up to a rounding, in the middle of two neighbours in `table`.
    fn is_tie(table: &[f64], x: f64) -> bool {
        table.windows(2).any(|pair| ((pair[0] + pair[1]) / 2.0 - x).abs() < 1e-7)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn e4m3_is_rounded_to_nearest_even(bits: u32, near in -12i32..10) {
            let table: Vec<f64> = (0..0x7f).map(|code| f64::from(CodeValues::E4m3.value(code))).collect();
            let mantissa = f32::from_bits((bits & 0x7f_ffff) | 0x3f80_0000);
            let (exact, short) = (mantissa * 2f32.powi(near), f32::from_bits(mantissa.to_bits() & !0x7_ffff) * 2f32.powi(near));
            for x in [exact, short, -exact, f32::from_bits(bits)] {
                prop_assume!(x.is_finite());
                let wanted = nearest(&table, f64::from(x).abs().min(448.0)) * f64::from(x.signum());
                prop_assert_eq!(f64::from(CodeValues::E4m3.value(e4m3(x))), wanted, "{}", x);
            }
        }

        /// Shapes that fill no blocks, in all dtypes of files, and rows from any row on.
        #[test]
        fn any_weight_has_the_nearest_values(
            out in 1usize..200, inner in 1usize..200, first in 0usize..200, scale in -20i32..20, seed in 0u64..1 << 30,
        ) {
            let shape = [out, inner];
            let plain: Vec<f32> = golden_weight(shape, seed).iter().map(|x| x.to_f32() * 2f32.powi(scale)).collect();
            let bytes = bytemuck::cast_slice(&plain);
            let fp8 = QuantizedWeight::of_plain(StoredDType::F32, bytes, shape, LoadFormat::Fp8).unwrap();
            let codes: Vec<f64> = (0..0x7f).map(|code| f64::from(CodeValues::E4m3.value(code))).collect();
            let mut largest = vec![0f32; out.div_ceil(128) * inner.div_ceil(128)];
            let block = |i: usize| i / inner / 128 * inner.div_ceil(128) + i % inner / 128;
            plain.iter().enumerate().for_each(|(i, x)| largest[block(i)] = largest[block(i)].max(x.abs()));
            for (i, (x, got)) in plain.iter().zip(values(&fp8)).enumerate() {
                let scale = largest[block(i)] / 448.0;
                let wanted = if scale == 0.0 { 0.0 } else { nearest(&codes, f64::from(x.abs() / scale).min(448.0)) };
                prop_assert_eq!(got, x.signum() * wanted as f32 * scale, "{} at {}", x, i);
            }

            let nf4 = QuantizedWeight::of_plain(StoredDType::F32, bytes, shape, LoadFormat::Nf4).unwrap();
            let (table, map) = (NF4.map(f64::from), dynamic_map());
            let map: Vec<f64> = map.into_iter().map(f64::from).collect();
            let largest: Vec<f32> = plain.chunks(64).map(|b| b.iter().fold(0f32, |m, x| m.max(x.abs()))).collect();
            let mean = (largest.iter().map(|&x| f64::from(x)).sum::<f64>() / largest.len() as f64) as f32;
            let all = values(&nf4);
            for (i, (&x, &got)) in plain.iter().zip(&all).enumerate() {
                let nested = largest[i / 64 / 256 * 256..].iter().take(256);
                let widest = nested.fold(0f32, |m, x| m.max((x - mean).abs()));
                let difference = f64::from((largest[i / 64] - mean) * (1.0 / widest.max(1e-38)));
                let scale = nearest(&map, difference) as f32 * widest + mean;
                let x = f64::from(x * (1.0 / largest[i / 64].max(1e-38)));
                let is_exempt = is_tie(&table, x) || is_tie(&map, difference) && widest > 0.0;
                prop_assert!(got == nearest(&table, x) as f32 * scale || is_exempt, "{} at {}: {}", x, i, got);
            }
            let rows = first.min(out - 1)..out;
            let mut some = vec![0.0; rows.len() * inner];
            nf4.read_rows(rows.clone(), &mut some).unwrap();
            prop_assert_eq!(&some, &all[rows.start * inner..]);
        }
    }
}
