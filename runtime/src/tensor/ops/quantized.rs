//! Weights that stay quantised in memory. A product dequantises its weight into memory that it frees afterwards; the
//! backward rule dequantises again. So one weight at a time has its full size. On a CPU a product of few rows
//! dequantises a few rows of the weight at a time, which stay in the cache. Results have the bits of a model whose
//! weights were dequantised before.

use std::ops::Range;
use std::sync::Arc;

use reel_device::cpu::simd::{Isa, isa};
use reel_device::launch::{Matmul, Operand, RightLayout};
use reel_device::{Addr, DType, Device, Kernels, MemoryCategory, in_op};
use reel_kernels::dequantize::{CodeValues, Params, dequantize};
use reel_kernels::matmul::{cpu, plain_product};

use super::{rows_cols, size};
use crate::error::{Result, shape_error};
use crate::tensor::Tensor;
use crate::tensor::cx::Cx;

const OP: &str = "dequantize";

/// Which weights of a matrix share a scale and a zero point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScaleBlocks {
    /// Blocks of so many rows and columns; those at the end may be smaller.
    Tiles([usize; 2]),
    /// A block for each row and value of this list, which has the block of each column. The blocks are `0..count`.
    OfColumns {
        /// Number of blocks in a row.
        count: usize,
        /// The block of each column.
        block: Vec<i32>,
    },
    /// So many consecutive weights of the whole matrix.
    Consecutive(usize),
}

impl ScaleBlocks {
    /// Number of blocks of a matrix of `shape`.
    pub fn count(&self, [n, k]: [usize; 2]) -> usize {
        match self {
            ScaleBlocks::Tiles([rows, columns]) => n.div_ceil(*rows) * k.div_ceil(*columns),
            ScaleBlocks::OfColumns { count, .. } => n * count,
            ScaleBlocks::Consecutive(length) => (n * k).div_ceil(*length),
        }
    }

    /// The blocks of row `row`, which has `k` columns, in order: the number of each block, and its columns.
    pub fn of_row(&self, row: usize, k: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
        let mut first = 0;
        std::iter::from_fn(move || {
            if first >= k {
                return None;
            }
            let (block, end) = match self {
                ScaleBlocks::Tiles([rows, columns]) => {
                    let column = first / columns;
                    (row / rows * k.div_ceil(*columns) + column, (column + 1) * columns)
                }
                ScaleBlocks::OfColumns { count, block } => (row * count + block[first] as usize, first + 1),
                ScaleBlocks::Consecutive(length) => {
                    let block = (row * k + first) / length;
                    (block, (block + 1) * length - row * k)
                }
            };
            let columns = first..end.min(k);
            first = columns.end;
            Some((block, columns))
        })
    }
}

/// A weight `[N, K]` whose elements are `(value of the code − zero point) · scale`; see [`reel_kernels::dequantize`].
#[derive(Clone, Debug)]
pub struct QuantizedMatrix {
    shape: [usize; 2],
    values: CodeValues,
    codes: Tensor,                 // u8 [N, ⌈K / 2⌉] or [N, K]
    table: Option<Tensor>,         // f32 [16], of codes of 4 bits
    scales: Tensor,                // f32 [blocks]
    zeros: Option<Tensor>,         // f32 [blocks]
    column_blocks: Option<Tensor>, // i32 [K]
    /// The parameters of the kernel, without a result.
    params: Arc<Params>,
}

impl QuantizedMatrix {
    /// Allocates a weight. Codes, scales and zero points are not initialised.
    ///
    /// # Errors
    /// A size of 0; a list of blocks of another length; out of memory.
    pub fn new(
        device: &Device,
        shape: [usize; 2],
        values: CodeValues,
        blocks: ScaleBlocks,
        has_zeros: bool,
    ) -> Result<QuantizedMatrix> {
        let wrong = |what: &str| Err(shape_error("quantized matrix", what.to_string()));
        let sizes = match &blocks {
            ScaleBlocks::Tiles(sizes) => *sizes,
            ScaleBlocks::OfColumns { count, block } if block.len() == shape[1] => [*count; 2],
            ScaleBlocks::OfColumns { .. } => return wrong("the list of blocks has not one for each column"),
            ScaleBlocks::Consecutive(length) => [*length; 2],
        };
        if sizes.contains(&0) {
            return wrong("blocks are empty");
        }
        let empty = |shape: &[usize], dtype| Tensor::empty(device, shape, dtype, MemoryCategory::Weights);
        let count = blocks.count(shape);
        let column_blocks = match &blocks {
            ScaleBlocks::OfColumns { block, .. } => {
                Some(Tensor::from_slice(device, &[shape[1]], DType::I32, block, MemoryCategory::Weights)?)
            }
            _ => None,
        };
        let table = match &values {
            CodeValues::Table(values) => {
                Some(Tensor::from_slice(device, &[16], DType::F32, values, MemoryCategory::Weights)?)
            }
            _ => None,
        };
        let (codes, scales) =
            (empty(&[shape[0], values.row_bytes(shape[1])], DType::U8)?, empty(&[count], DType::F32)?);
        let zeros = has_zeros.then(|| empty(&[count], DType::F32)).transpose()?;
        let [n, k] = shape;
        let ([block_rows, block_columns], row_blocks) = match &blocks {
            ScaleBlocks::Tiles(tile) => (*tile, k.div_ceil(tile[1])),
            ScaleBlocks::OfColumns { count, .. } => ([1, 1], *count),
            ScaleBlocks::Consecutive(length) => ([0, *length], 0),
        };
        let address = |t: &Option<Tensor>| t.as_ref().map_or(Addr::NULL, Tensor::addr);
        let params = Arc::new(Params {
            codes: codes.addr(),
            values: address(&table),
            scales: scales.addr(),
            zeros: address(&zeros),
            column_blocks: address(&column_blocks),
            y: Addr::NULL,
            n: size(OP, n)?,
            k: size(OP, k)?,
            block_rows: size(OP, block_rows)?,
            block_columns: size(OP, block_columns)?,
            blocks: size(OP, row_blocks)?,
            kind: values.kind(),
        });
        Ok(QuantizedMatrix { shape, codes, values, table, scales, zeros, column_blocks, params })
    }

    /// Whether decode steps read such a weight about as fast as a plain one, or faster: on a CPU with AVX-512, codes of 4
    /// bits in blocks of consecutive columns. Other weights are dequantised more slowly than memory delivers plain ones.
    pub fn is_read_fast_on(device: &Device, values: &CodeValues, blocks: &ScaleBlocks) -> bool {
        let is_wide = match blocks {
            ScaleBlocks::Tiles([_, columns]) => *columns >= 32,
            ScaleBlocks::Consecutive(length) => *length >= 32,
            ScaleBlocks::OfColumns { .. } => false,
        };
        let has_lookups = device.kernels() == Kernels::Cpu && isa() >= Isa::Avx512;
        matches!(values, CodeValues::Table(_)) && is_wide && has_lookups
    }

    /// The shape of the weight, `[N, K]`.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// The tensors that hold the weight.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let optional = [&self.table, &self.zeros, &self.column_blocks].into_iter().flatten();
        [&self.codes, &self.scales].into_iter().chain(optional)
    }

    /// Writes rows from `first` on, whose codes `[rows, K]` have a byte each.
    ///
    /// # Errors
    /// The rows are not in the weight.
    pub fn write_codes(&self, first: usize, codes: &[u8]) -> Result<()> {
        let k = self.shape[1].max(1);
        let rows = self.codes.rows(first, codes.len() / k)?;
        match &self.values {
            CodeValues::Table(_) => rows.write(&codes.chunks(k).flat_map(packed_row).collect::<Vec<u8>>()),
            _ => rows.write(codes),
        }
    }

    /// Writes the scales of all blocks, and the zero points if the weight has them.
    ///
    /// # Errors
    /// Another number of scales or zero points.
    pub fn write_scales(&self, scales: &[f32], zeros: &[f32]) -> Result<()> {
        self.scales.write(scales)?;
        self.zeros.as_ref().map_or(Ok(()), |own| own.write(zeros))
    }

    /// The weight as a plain tensor of the context's dtype. Rules of the backward pass that save it dequantise again.
    ///
    /// # Errors
    /// Out of memory.
    pub fn dequantized(&self, cx: &Cx) -> Result<Tensor> {
        let _op = in_op(OP);
        let weight = self.clone();
        let compute = move |cx: &Cx| {
            let y = cx.empty(&weight.shape, cx.dtype())?;
            cx.launch(&dequantize(cx.dtype(), &Params { y: y.addr(), ..*weight.params }))?;
            Ok(y)
        };
        Ok(cx.recompute_in_backward(OP, compute(cx)?, compute))
    }

    /// Whether products with x read the weight as it is: those of few rows on a CPU, which need no backward rule.
    pub(super) fn is_read_by_products(&self, cx: &Cx, x: &Tensor) -> Result<bool> {
        let (m, _) = rows_cols(OP, "x", x)?;
        let is_few = m <= cpu::MAX_ROWS_OF_QUANTIZED_PRODUCT && cx.device().kernels() == Kernels::Cpu;
        Ok(is_few && !(cx.is_training() && x.needs_grad()))
    }

    /// The product `y = x wᵀ` on the CPU, of the bits of that with [`QuantizedMatrix::dequantized`].
    pub(super) fn product(&self, x: &Tensor, y: &Tensor) -> Result<Matmul> {
        let (m, k) = rows_cols(OP, "x", x)?;
        let operand = |addr| Operand { addr, dtype: x.dtype(), transposed: false };
        let description = Addr(Arc::as_ptr(&self.params) as u64);
        let bytes = self.tensors().map(|t| t.meta().bytes()).sum();
        let product =
            plain_product([m, self.shape[0], k], operand(x.addr()), operand(description), y.addr(), y.dtype());
        Ok(Matmul { b_layout: RightLayout::Quantized { bytes }, ..product })
    }
}

/// Packs the codes of a row, two a byte, the first in the lower half.
fn packed_row(codes: &[u8]) -> impl Iterator<Item = u8> {
    codes.chunks(2).map(|pair| pair[0] | pair.get(1).map_or(0, |upper| upper << 4))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{
        DecodeWeight, Lora, linear, lora_linear, skinny_linear, skinny_logits, skinny_swiglu, weighted_sum,
    };
    use crate::tensor::tape::Grads;

    const SHAPE: [usize; 2] = [6, 8];

    fn weight(device: &Device) -> QuantizedMatrix {
        let values = CodeValues::Table(std::array::from_fn(|value| value as f32));
        let blocks = ScaleBlocks::Tiles([1, 4]);
        let weight = QuantizedMatrix::new(device, SHAPE, values, blocks, true).unwrap();
        let codes: Vec<u8> = (0..48).map(|i| (i * 7 % 16) as u8).collect();
        weight.write_codes(0, &codes[..16]).unwrap();
        weight.write_codes(2, &codes[16..]).unwrap();
        let scales: Vec<f32> = (0..12).map(|i| 0.125 * (i % 5) as f32 - 0.25).collect();
        weight.write_scales(&scales, &[8.0; 12]).unwrap();
        let wanted: Vec<f32> =
            codes.iter().enumerate().map(|(i, &code)| (f32::from(code) - 8.0) * scales[i / 4]).collect();
        let plain = weight.dequantized(&Cx::inference(device, DType::F32)).unwrap();
        assert_eq!((plain.shape(), plain.to_f32().unwrap()), (&SHAPE[..], wanted));
        weight
    }

    /// Products and gradients have the bits of those with the plain weight, and its memory is freed between them.
    #[test]
    fn a_quantised_weight_computes_what_its_plain_copy_does() {
        let device = Device::cpu(2);
        let weight = weight(&device);
        let plain = weight.dequantized(&Cx::inference(&device, DType::F32)).unwrap();
        let numbers = |count: usize, by: f32| -> Vec<f32> { (0..count).map(|i| (i as f32 * by).sin()).collect() };
        let tensor = |shape: &[usize], by| {
            let count = shape.iter().product();
            Tensor::from_f32(&device, shape, DType::F32, &numbers(count, by), MemoryCategory::Weights).unwrap()
        };
        let [n, k] = SHAPE;
        let run = |is_quantised: bool, with_adapter: bool| {
            let x = tensor(&[3, k], 0.7).into_parameter("x").unwrap();
            let lora = Lora {
                down: tensor(&[2, k], 0.3).into_parameter("down").unwrap(),
                up: tensor(&[n, 2], 0.9).into_parameter("up").unwrap(),
                scale: 0.5,
            };
            let cx = Cx::training(&device, DType::F32);
            let before = device.memory().current;
            let w = if is_quantised { weight.dequantized(&cx).unwrap() } else { plain.clone() };
            let y = match with_adapter {
                true => lora_linear(&cx, &x, &w, None, &lora).unwrap(),
                false => linear(&cx, &x, &w, None).unwrap(),
            };
            drop(w);
            let kept = device.memory().current - before;
            let loss = weighted_sum(&cx, &y, &tensor(&[3, n], 0.4)).unwrap();
            let mut grads = Grads::new();
            cx.backward(&loss, 1.0, &mut grads).unwrap();
            let names: &[&str] = if with_adapter { &["x", "down", "up"] } else { &["x"] };
            let all: Vec<Vec<f32>> = names.iter().map(|name| grads.get(name).unwrap().to_f32().unwrap()).collect();
            (y.to_f32().unwrap(), all, kept)
        };
        for with_adapter in [false, true] {
            assert_eq!(run(true, with_adapter), run(false, with_adapter));
        }
    }

    /// Decode steps of few and of many rows have the bits of those with the plain weight.
    #[test]
    fn decode_steps_read_a_quantised_weight_as_its_plain_copy() {
        let device = Device::cpu(2);
        let weight = weight(&device);
        for dtype in [DType::F32, DType::BF16] {
            let cx = Cx::inference(&device, dtype);
            let plain = weight.dequantized(&cx).unwrap();
            let [n, k] = SHAPE;
            for rows in [1, 3, cpu::MAX_ROWS_OF_QUANTIZED_PRODUCT + 1] {
                let tensor = |shape: &[usize], by: f32| {
                    let values: Vec<f32> = (0..shape.iter().product()).map(|i: usize| (i as f32 * by).sin()).collect();
                    Tensor::from_f32(&device, shape, dtype, &values, MemoryCategory::Weights).unwrap()
                };
                let (x, bias, residual) = (tensor(&[rows, k], 0.7), tensor(&[n], 0.3), tensor(&[rows, n], 0.2));
                let of = |w: DecodeWeight| {
                    let linear = skinny_linear(&cx, &x, w, Some(&bias), Some(&residual)).unwrap();
                    let all = [linear, skinny_swiglu(&cx, &x, None, w, w).unwrap(), skinny_logits(&cx, &x, w).unwrap()];
                    all.map(|y| y.to_f32().unwrap())
                };
                assert_eq!(of((&weight).into()), of((&plain).into()), "{dtype} {rows}");
            }
            let wrong = Tensor::empty(&device, &[1, k + 1], dtype, MemoryCategory::Weights).unwrap();
            assert!(skinny_linear(&cx, &wrong, &weight, None, None).is_err());
        }
    }

    #[test]
    fn impossible_weights_are_refused() {
        let device = Device::cpu(1);
        let of_columns = |block| ScaleBlocks::OfColumns { count: 2, block };
        for blocks in [ScaleBlocks::Tiles([0, 4]), ScaleBlocks::Consecutive(0), of_columns(vec![0; 7])] {
            assert!(QuantizedMatrix::new(&device, SHAPE, CodeValues::I8, blocks, false).is_err());
        }
        let weight = weight(&device);
        assert!(weight.write_codes(5, &[0; 16]).is_err() && weight.write_scales(&[0.0; 11], &[]).is_err());
    }
}
