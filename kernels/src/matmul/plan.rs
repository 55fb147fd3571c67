//! The tiles of the kernels for Hopper (`sm90a.cuh`), and the choice of a tile for a product.
//!
//! All tiles of a form (layout of operands and type of C) give the same bits, so the choice affects only the time.
//! The time of a tile is proportional to its size times k, even if it reaches beyond the end of C, and a
//! multiprocessor computes one tile after the other. So the plan takes the tile with which the busiest multiprocessor
//! computes the fewest elements. If several tiles are equal, it takes the first one in this table. These kernels have
//! not been timed. The rates are those of their prototypes, whose main loops have the same products, copies and waits
//! in the same order, divided by those of cuBLAS 13.0: medians of 21 rounds in turns on an NVIDIA H200, 2026-11-27.
//! `reel bench op gemm_fwd_bf16 --variants` times the kernels. A product is named by its rows, columns and k.
//!
//! | tile | taken for | rate |
//! |---|---|---|
//! | forward, 256 x 192 in halves | 8192 x 4608 x 3584; 8192 x 18944 x 3584 | 1.02 (128 x 256: 1.00); 1.06 (1.04) |
//! | forward, 128 x 256 | 8192 x 3584 x 3584, where 256 x 192 leaves multiprocessors idle | 1.006 (256 x 192: 0.957) |
//! | forward, 128 x 256 held | k greater than n: 8192 x 3584 x 18944 | 1.000 (128 x 256: 0.998) |
//! | forward, 128 x 192 | up to 1024 rows: 512 x 18944 x 3584 | 1.011 (128 x 256: 0.764) |
//! | forward, 64 x 144 | up to 128 rows, or up to 144 columns: 64 x 18944 x 3584 | 0.999 |
//! | dx, 256 x 192 in halves | 8192 x 18944 x 3584 | 1.065 (128 x 256: 1.043) |
//! | dx, 128 x 256 | 8192 x 3584 x 18944 | 0.999 (256 x 192: 0.938) |
//! | dw, 128 x 256 held | bf16: 18944 x 3584 x 8192; 3584 x 18944 x 8192 | 1.003; 1.027 |
//! | dw, 128 x 256 added | bf16 added to the old C: the same | 0.975; 1.003 |
//! | dw, 128 x 256 to f32 | f32 added to the old C: the same | 0.972; 0.998 |
//!
//! Not measured: the forward product and dx added to the old C or with an f32 C, which have the tiles of dw.

use std::mem::offset_of;

use reel_device::{Addr, Arch, DType, Stage};
use reel_sim::tensor_map::{DataType, Interleave, L2Promotion, OobFill, Swizzle, TensorMap};

use super::gemm::{OperandLayout, Params};

/// What a kernel does with the old contents of C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AccumulateMode {
    /// Replaces it.
    Replaced,
    /// Adds the product to it.
    Added,
    /// Either, as the parameters say.
    Either,
}

/// The tile of a kernel. Its numbers are the template arguments of the kernel in `sm90a.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GemmTile {
    /// Symbol of the kernel.
    pub symbol: &'static str,
    /// Rows of C of a block's tile.
    pub rows: u32,
    /// Columns of C of a block's tile.
    pub columns: u32,
    /// Consumer warpgroups of a block.
    pub warpgroups: u32,
    /// Stages of the ring buffer in shared memory; a stage holds 64 k of A and of B.
    pub stages: u32,
    /// Thread blocks of a cluster, whose tiles follow each other along the rows of C.
    pub cluster: u32,
    /// Chunks (8 KiB of shared memory) in which each warpgroup collects C; 0 if its threads store C directly.
    pub chunks: u32,
    pub(super) old_c: AccumulateMode,
}

/// Returns a tile of 256 x 192 elements. Its upper half is stored while its lower half is computed, and the reverse.
const fn halves(symbol: &'static str) -> GemmTile {
    GemmTile { symbol, rows: 256, columns: 192, stages: 3, chunks: 3, ..wide(symbol, AccumulateMode::Replaced) }
}

/// Returns a tile of 128 x 256 elements, in a cluster of two blocks.
const fn wide(symbol: &'static str, old_c: AccumulateMode) -> GemmTile {
    GemmTile { symbol, rows: 128, columns: 256, warpgroups: 2, stages: 4, cluster: 2, chunks: 2, old_c }
}

pub(super) static FWD_HALVES: GemmTile = halves("gemm_fwd_bf16_256x192_halves");
pub(super) static FWD_128X256: GemmTile =
    GemmTile { cluster: 1, ..wide("gemm_fwd_bf16_128x256", AccumulateMode::Replaced) };
pub(super) static FWD_HELD: GemmTile = wide("gemm_fwd_bf16_128x256_held", AccumulateMode::Replaced);
pub(super) static FWD_128X192: GemmTile = GemmTile {
    columns: 192,
    stages: 5,
    cluster: 1,
    chunks: 1,
    ..wide("gemm_fwd_bf16_128x192", AccumulateMode::Replaced)
};
pub(super) static FWD_64X144: GemmTile = GemmTile {
    symbol: "gemm_fwd_bf16_64x144",
    rows: 64,
    columns: 144,
    warpgroups: 1,
    stages: 8,
    cluster: 1,
    chunks: 0,
    old_c: AccumulateMode::Either,
};
pub(super) static FWD_ADDED: GemmTile = wide("gemm_fwd_bf16_128x256_added", AccumulateMode::Added);
pub(super) static FWD_F32: GemmTile = wide("gemm_fwd_f32_128x256", AccumulateMode::Either);
pub(super) static DX_HALVES: GemmTile = halves("gemm_dx_bf16_256x192_halves");
pub(super) static DX_128X256: GemmTile = wide("gemm_dx_bf16_128x256", AccumulateMode::Replaced);
pub(super) static DX_ADDED: GemmTile = wide("gemm_dx_bf16_128x256_added", AccumulateMode::Added);
pub(super) static DX_F32: GemmTile = wide("gemm_dx_f32_128x256", AccumulateMode::Either);
pub(super) static DW_HELD: GemmTile = wide("gemm_dw_bf16_128x256_held", AccumulateMode::Replaced);
pub(super) static DW_ADDED: GemmTile = wide("gemm_dw_bf16_128x256_added", AccumulateMode::Added);
pub(super) static DW_F32: GemmTile = wide("gemm_dw_f32_128x256", AccumulateMode::Either);

/// All tiles.
pub static ALL: [&GemmTile; 14] = [
    &FWD_HALVES,
    &FWD_128X256,
    &FWD_HELD,
    &FWD_128X192,
    &FWD_64X144,
    &FWD_ADDED,
    &FWD_F32,
    &DX_HALVES,
    &DX_128X256,
    &DX_ADDED,
    &DX_F32,
    &DW_HELD,
    &DW_ADDED,
    &DW_F32,
];

/// Elements of k of a stage.
const STAGE_K: u32 = 64;
/// Rows and columns of a block of the plain kernels (`plain.cuh`).
const PLAIN_SIDE: u32 = 64;
/// Maximum number of rows of a product that uses the tile of 128 x 192 (MAX_ROWS_OF_128X192), and of one that uses the
/// tile of 64 x 144 (MAX_ROWS_OF_64X144).
const MAX_ROWS_OF_128X192: u32 = 1024;
const MAX_ROWS_OF_64X144: u32 = 128;

impl GemmTile {
    /// Returns the bytes of shared memory of a block: the ring of stages, the chunks of C, and the mbarriers.
    fn shared_bytes(&self) -> u32 {
        let stage = (self.rows + self.columns) * STAGE_K * 2;
        let chunks = self.warpgroups * self.chunks * 8192;
        1024 + self.stages * (stage + 16) + chunks + 8 * self.warpgroups
    }

    /// Whether the tile can compute a product. The tiles in halves treat the first and the last stage of k differently,
    /// so k must have at least two stages.
    fn takes(&self, p: &Params) -> bool {
        let other = if p.accumulate != 0 { AccumulateMode::Replaced } else { AccumulateMode::Added };
        self.old_c != other && (p.k > STAGE_K || self.rows != FWD_HALVES.rows)
    }

    /// Returns the number of cluster tiles (the tiles of all blocks of a cluster together) that cover C.
    pub fn count(&self, p: &Params) -> u32 {
        p.m.div_ceil(self.rows * self.cluster) * p.n.div_ceil(self.columns)
    }

    /// Returns the number of clusters that a GPU runs at a time.
    pub fn resident(&self, arch: &Arch) -> u32 {
        (arch.multiprocessors / self.cluster).max(1)
    }

    /// Returns the number of elements of C, including those beyond its ends, that the busiest multiprocessor computes.
    fn busiest(&self, p: &Params, arch: &Arch) -> u64 {
        u64::from(self.count(p).div_ceil(self.resident(arch))) * u64::from(self.rows * self.columns)
    }

    fn stage(&self, p: &Params, arch: &Arch, form: OperandLayout) -> Stage {
        let map = |addr, dtype, rows, columns, box_rows| tensor_map(addr, dtype, [rows, columns], box_rows);
        let a = if form.a_transposed {
            map(p.a, DType::BF16, p.k, p.m, STAGE_K)
        } else {
            map(p.a, DType::BF16, p.m, p.k, self.rows)
        };
        let b = if form.b_transposed {
            map(p.b, DType::BF16, p.k, p.n, STAGE_K)
        } else {
            map(p.b, DType::BF16, p.n, p.k, self.columns / self.cluster)
        };
        let mut tensor_maps = vec![(offset_of!(Params, map_a), a), (offset_of!(Params, map_b), b)];
        if self.chunks > 0 {
            tensor_maps.push((offset_of!(Params, map_c), map(p.c, form.c_dtype, p.m, p.n, 64)));
        }
        let blocks = self.resident(arch).min(self.count(p)) * self.cluster;
        Stage {
            cluster: [self.cluster, 1, 1],
            shared: self.shared_bytes(),
            tensor_maps,
            ..Stage::one_dimensional(self.symbol, blocks, 128 * (self.warpgroups + 1))
        }
    }
}

/// Returns the tensor map of a row-major array `[rows, columns]`. Its boxes have `box_rows` rows of 128 bytes.
fn tensor_map(addr: Addr, dtype: DType, [rows, columns]: [u32; 2], box_rows: u32) -> TensorMap {
    let size = dtype.size() as u32;
    TensorMap {
        data_type: if dtype == DType::F32 { DataType::F32 } else { DataType::Bf16 },
        rank: 2,
        address: addr.0,
        dims: [columns.into(), rows.into(), 1, 1, 1],
        strides: [u64::from(columns) * u64::from(size), 0, 0, 0],
        box_dims: [128 / size, box_rows, 1, 1, 1],
        element_strides: [1; 5],
        interleave: Interleave::None,
        swizzle: Swizzle::B128,
        l2_promotion: L2Promotion::B256,
        oob_fill: OobFill::Zero,
    }
}

/// Chooses the tile of a product by the table in this module's documentation.
fn chosen(p: &Params, arch: &Arch, form: OperandLayout) -> &'static GemmTile {
    let few_rows = p.m <= MAX_ROWS_OF_64X144 || p.n <= FWD_64X144.columns;
    let candidates: &[(bool, &'static GemmTile)] = match (form.a_transposed, form.b_transposed, form.c_dtype) {
        (true, _, DType::F32) => &[(true, &DW_F32)],
        (false, true, DType::F32) => &[(true, &DX_F32)],
        (false, false, DType::F32) => &[(true, &FWD_F32)],
        (true, ..) => &[(true, &DW_HELD), (true, &DW_ADDED)],
        (false, true, _) => &[(true, &DX_HALVES), (true, &DX_128X256), (true, &DX_ADDED)],
        (false, false, _) => &[
            (p.n > FWD_64X144.columns, &FWD_HALVES),
            (p.k > p.n, &FWD_HELD),
            (true, &FWD_128X256),
            (true, &FWD_ADDED),
            (p.m <= MAX_ROWS_OF_128X192, &FWD_128X192),
            (few_rows, &FWD_64X144),
        ],
    };
    let taken = candidates.iter().filter(|(applies, tile)| *applies && tile.takes(p)).map(|(_, tile)| *tile);
    taken.min_by_key(|tile| tile.busiest(p, arch)).expect("every form has a tile that supports all products")
}

/// Returns the name of the plain kernel of a form, for GPUs below compute capability 9.0.
fn plain_symbol(form: OperandLayout) -> &'static str {
    match (form.a_transposed, form.b_transposed, form.c_dtype) {
        (true, _, DType::F32) => "gemm_dw_f32_plain",
        (true, ..) => "gemm_dw_bf16_plain",
        (false, true, DType::F32) => "gemm_dx_f32_plain",
        (false, true, _) => "gemm_dx_bf16_plain",
        (false, false, DType::F32) => "gemm_fwd_f32_plain",
        (false, false, _) => "gemm_fwd_bf16_plain",
    }
}

/// Plans the launches of a matrix product. On Hopper the plan uses the tile `fixed`, if it is given and supports the
/// product; else the tile that the table chooses.
pub(super) fn plan_stages(
    p: &Params,
    arch: &Arch,
    form: OperandLayout,
    fixed: Option<&'static GemmTile>,
) -> Vec<Stage> {
    if arch.sm < 90 {
        let blocks = p.m.div_ceil(PLAIN_SIDE) * p.n.div_ceil(PLAIN_SIDE);
        return vec![Stage::one_dimensional(plain_symbol(form), blocks, 128)];
    }
    vec![fixed.filter(|tile| tile.takes(p)).unwrap_or_else(|| chosen(p, arch, form)).stage(p, arch, form)]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use bytemuck::Zeroable;

    use super::super::gemm;
    use super::*;

    fn symbol(form: OperandLayout, [m, n, k]: [u32; 3], accumulate: u32) -> &'static str {
        chosen(&Params { m, n, k, accumulate, ..Params::zeroed() }, &Arch::H100, form).symbol
    }

    #[test]
    fn an_h100_takes_the_tiles_of_the_table() {
        let fwd = |m, n, k| symbol(gemm::FWD, [m, n, k], 0);
        assert_eq!(fwd(8192, 4608, 3584), "gemm_fwd_bf16_256x192_halves");
        assert_eq!(fwd(8192, 18944, 3584), "gemm_fwd_bf16_256x192_halves");
        assert_eq!(fwd(8192, 3584, 3584), "gemm_fwd_bf16_128x256");
        assert_eq!(fwd(8192, 3584, 18944), "gemm_fwd_bf16_128x256_held");
        assert_eq!(fwd(512, 18944, 3584), "gemm_fwd_bf16_128x192");
        assert_eq!(fwd(64, 18944, 3584), "gemm_fwd_bf16_64x144");
        assert_eq!(fwd(8192, 16, 3584), "gemm_fwd_bf16_64x144");
        assert_eq!(fwd(8192, 4608, 64), "gemm_fwd_bf16_128x256");
        assert_eq!(symbol(gemm::DX, [8192, 18944, 3584], 0), "gemm_dx_bf16_256x192_halves");
        assert_eq!(symbol(gemm::DX, [8192, 3584, 18944], 0), "gemm_dx_bf16_128x256");
        for shape in [[18944, 3584, 8192], [3584, 18944, 8192]] {
            assert_eq!(symbol(gemm::DW, shape, 0), "gemm_dw_bf16_128x256_held");
            assert_eq!(symbol(gemm::DW, shape, 1), "gemm_dw_bf16_128x256_added");
            assert_eq!(symbol(gemm::DW_TO_F32, shape, 1), "gemm_dw_f32_128x256");
        }
        // A product that is added to the residual uses a Hopper tile, too.
        assert_eq!(symbol(gemm::FWD, [8192, 3584, 3584], 1), "gemm_fwd_bf16_128x256_added");
        assert_eq!(symbol(gemm::FWD, [64, 18944, 3584], 1), "gemm_fwd_bf16_64x144");
    }

    /// Every kernel of `sm90a.cuh` has a tile in this file with the same numbers, and every tile has a kernel.
    #[test]
    fn tiles_have_the_numbers_of_the_kernels() {
        let planned = ALL.iter().map(|t| {
            let numbers = [t.rows, t.columns, t.warpgroups, t.stages, t.cluster, t.chunks.max(1)];
            format!("{}, {}", t.symbol, numbers.map(|n| n.to_string()).join(", "))
        });
        let kernels = include_str!("sm90a.cuh").lines().filter_map(|line| line.strip_prefix("GEMM("));
        let kernels = kernels.map(|line| line.split(", ").take(7).collect::<Vec<_>>().join(", "));
        assert_eq!(planned.collect::<BTreeSet<_>>(), kernels.collect::<BTreeSet<_>>());
        assert!(ALL.iter().all(|t| t.shared_bytes() <= Arch::H100.shared_per_block));
    }
}
