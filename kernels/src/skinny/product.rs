//! A product as its plans see it: its operands, and its columns with the tensor maps of their weights.

use reel_device::{Addr, Arch};
use reel_sim::tensor_map::{DataType, L2Promotion, Swizzle, TensorMap};

use super::choices::{CopyScheme, plan_choices};
use super::{Fixed, Operands};

/// Bytes of shared memory for the norm of a row: partial sums of 16 warps, padding, and the scale (which the kernels by
/// tiles keep in registers instead).
pub(super) const NORM_SHARED_BYTES_PER_ROW: u32 = (16 + 1 + 1) * 4;

/// The operands of a product that its plan depends on: the rows of x, the norm, and the addresses of the weights.
pub(super) struct SkinnyProduct<'a> {
    pub(super) x: Addr,
    pub(super) m: u32,
    pub(super) k: u32,
    pub(super) norm: Addr,
    pub(super) weights: &'a [Addr],
    /// Whether the kernel can normalise x.
    pub(super) normalises: bool,
}

impl SkinnyProduct<'_> {
    /// Returns how blocks divide the product.
    pub(super) fn choose_copy_scheme(&self, arch: &Arch, fixed: Fixed) -> CopyScheme {
        fixed.scheme.unwrap_or_else(|| plan_choices(arch.sm).scheme)
    }

    /// Whether 16-byte units of the weights are aligned and whole.
    pub(super) fn has_aligned_weights(&self, operands: Operands) -> bool {
        let whole = (u64::from(self.k) * operands.weight_bytes).is_multiple_of(16);
        whole && self.weights.iter().all(|w| w.0.is_multiple_of(16))
    }
}

/// The columns of a product, and the weights that they need.
pub(super) struct ColumnPartition<'a> {
    /// Number of parts of the columns: the heads of `qkv`, otherwise 1. A block has columns of one part only.
    pub(super) parts: u32,
    /// Number of columns of a part; in `qkv`, number of pairs of columns of a head.
    pub(super) columns: u32,
    /// Number of sets of weight rows that a block's columns need: 2 in `qkv` and `swiglu`, otherwise 1.
    pub(super) sets: u32,
    /// For each weight, the offset of its tensor map in the parameters, its address and its number of rows.
    pub(super) weights: &'a [(usize, Addr, u32)],
    /// The offset of the tensor map of x in the parameters.
    pub(super) x_slot: usize,
}

impl ColumnPartition<'_> {
    /// Returns the number of columns per block if `blocks` blocks divide a part; the same as `width` in `products.cuh`.
    pub(super) fn columns_per_block(&self, blocks: u32) -> u32 {
        self.columns.div_ceil(blocks).next_multiple_of(4)
    }

    /// Returns how many blocks divide a part. A wave is `resident_blocks` blocks, which run at the same time. The
    /// number of waves is the least with which blocks have at most `max_width` columns, and all waves are full. If the
    /// blocks do not divide evenly among the parts, there are a few too many (`rounds_up`) or too few.
    pub(super) fn blocks_per_part(
        &self,
        row_blocks: u32,
        max_width: u32,
        resident_blocks: u32,
        rounds_up: bool,
    ) -> u32 {
        let (others, resident_blocks) = (u64::from(self.parts) * u64::from(row_blocks), u64::from(resident_blocks));
        let least = u64::from(self.columns.div_ceil(max_width));
        let in_waves = (least * others).div_ceil(resident_blocks) * resident_blocks;
        let blocks = if rounds_up { in_waves.div_ceil(others) } else { in_waves / others };
        let most = self.columns.div_ceil(4);
        self.columns.div_ceil(self.columns_per_block(blocks.clamp(least, u64::from(most)) as u32))
    }

    /// Returns the tensor maps of the weights, with boxes of `width` rows and elements of `weight_bytes` bytes, and the
    /// map of x. `None` if tensor copies do not support one of the arrays.
    pub(super) fn tensor_maps(
        &self,
        weight_bytes: u64,
        width: u32,
        x: TensorMap,
        k: u32,
    ) -> Option<Vec<(usize, TensorMap)>> {
        let weight = |&(slot, w, n): &(usize, Addr, u32)| Some((slot, tensor_map(w, weight_bytes, [n, k], width)?));
        self.weights.iter().map(weight).chain([Some((self.x_slot, x))]).collect()
    }
}

/// Returns the tensor map of an array `[rows, k]` of elements of 1 or 2 bytes, in boxes of `box_rows` rows of 128
/// bytes. `None` if tensor copies do not support the array.
pub(super) fn tensor_map(at: Addr, bytes: u64, [rows, k]: [u32; 2], box_rows: u32) -> Option<TensorMap> {
    let data_type = if bytes == 1 { DataType::U8 } else { DataType::Bf16 };
    let (dims, strides) = ([u64::from(k), u64::from(rows)], [u64::from(k) * bytes]);
    let map =
        TensorMap::tiled(data_type, at.0, &dims, &strides, &[128 / bytes as u32, box_rows], Swizzle::B128).ok()?;
    Some(TensorMap { l2_promotion: L2Promotion::B256, ..map })
}
