//! The tiles of the kernels for Hopper (`sm90a.cuh`), and the choice of a tile for a product.
//!
//! All tiles of a form (layout of operands and type of C) give the same bits, so the choice affects only the time.
//! The time of a tile is proportional to its size times k, even if it reaches beyond the end of C, and a
//! multiprocessor computes one tile after the other. So the time of a product is proportional to
//!
//! ```text
//! elements that the busiest multiprocessor computes / rate of the tile relative to 128 x 256 (GemmTile::rate)
//! ```
//!
//! and the plan takes the tile with the least time. If several tiles are equal, it takes the first one of `candidates`.
//! A tile whose rate is an estimate must be faster by more than NEAR_TIE.
//!
//! The *share of whole waves* is the number of elements of C divided by what all multiprocessors could compute in the
//! time of the busiest one. It says how much of the GPU the tiles leave idle: 3584 columns are 14 tiles of 256, so 1024
//! rows give 112 tiles, and 20 of 132 multiprocessors have none. With 16 tiles of 224 columns, 4 have none. Below
//! `reel_device::MIN_WAVE_SHARE` cuBLASLt is taken instead, except for products that must be batch invariant
//! (`reel_device::MatmulImplementation`).
//!
//! These kernels have not been timed. The rates in the table are those of their prototypes, whose main loops have the
//! same products, copies and waits in the same order, divided by those of cuBLAS 13.0: medians of 21 rounds in turns on
//! an NVIDIA H200, 2026-11-27. `reel bench op gemm_fwd_bf16 --variants` times the kernels. A product is named by its
//! rows, columns and k.
//!
//! | tile | taken for | rate |
//! |---|---|---|
//! | forward, 256 x 192 in halves | 8192 x 4608 x 3584; 8192 x 18944 x 3584 | 1.02 (128 x 256: 1.00); 1.06 (1.04) |
//! | forward, 128 x 256 | 8192 x 3584 x 3584, where 256 x 192 leaves multiprocessors idle | 1.006 (256 x 192: 0.957) |
//! | forward, 128 x 256 held | k greater than n: 8192 x 3584 x 18944 | 1.000 (128 x 256: 0.998) |
//! | forward, 128 x 192 | 512 x 18944 x 3584 | 1.011 (128 x 256: 0.764) |
//! | forward, 64 x 144 | up to 128 rows, or up to 144 columns: 64 x 18944 x 3584 | 0.999 |
//! | forward, 128 x 224 | 1024 to 4096 x 3584 x 3584 | no prototype |
//! | forward, 128 x 160 | 1024 to 4096 x 2560 x 2048 | no prototype |
//! | forward, 128 x 128 | 1024 x 2048 x 2048 | no prototype |
//! | SwiGLU, 256 x 192 in halves | gate and up in one launch: 4096 x 37888 x 3584 | no prototype |
//! | dx, 256 x 192 in halves | 8192 x 18944 x 3584 | 1.065 (128 x 256: 1.043) |
//! | dx, 128 x 256 | 8192 x 3584 x 18944 | 0.999 (256 x 192: 0.938) |
//! | dx, 128 x 224 | 1024 to 4096 x 3584 x 18944 | no prototype |
//! | dx, 128 x 128 | 1024 x 2048 x 11008 | no prototype |
//! | dw, 128 x 256 held | bf16: 18944 x 3584 x 8192; 3584 x 18944 x 8192 | 1.003; 1.027 |
//! | dw, 128 x 256 added | bf16 added to the old C: the same | 0.975; 1.003 |
//! | dw, 128 x 256 to f32 | f32 added to the old C: the same | 0.972; 0.998 |
//! | dw, 128 x 160 to f32 | 2560 x 2048 x 8192 | no prototype |
//!
//! Not measured: the forward product and dx added to the old C or with an f32 C, which have the tiles of dw.
//!
//! Tiles without a prototype. Their number of stages is the largest for which shared memory also holds 16 KiB of chunks
//! of each warpgroup. Their rate relative to 128 x 256 is estimated from the elements of A and B that a block loads for
//! each multiply-add, with B as wide as it is copied (dx, dw: whole blocks of 64 columns):
//!
//! ```text
//! loads = (rows + copied columns) / (rows * columns)
//! rate  = 1 - 0.27 * (loads / loads of 128 x 256 - 1)
//! ```
//!
//! The factor 0.27 is that of both tiles that were measured: 128 x 192 has 1.11 times the loads and a rate of 0.97, and
//! 64 x 144 has 1.93 times the loads and a rate of 0.75. The estimate takes no account of the loads that a cluster
//! shares.

use std::mem::offset_of;

use reel_device::{Addr, Arch, DType, Stage};
use reel_sim::tensor_map::{DataType, Interleave, L2Promotion, OobFill, Swizzle, TensorMap};

use super::form::{self, OperandLayout, Params};

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
    /// Bytes of a row of a chunk: 128, or 64 if bf16 C has columns that are not a multiple of 64.
    pub(super) chunk_row_bytes: u32,
    pub(super) old_c: AccumulateMode,
    /// Whether one half of the columns is multiplied with the gate weights, and the other half with the up weights. C
    /// has one column for both.
    pub(super) gated: bool,
    /// Columns of B in a stage: more than `columns` if blocks of 64 columns are copied.
    pub(super) copied_columns: u32,
    pub(super) rate: Rate,
}

/// Rate of multiply-adds of a tile relative to that of 128 x 256, in percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rate {
    /// From times of its prototype.
    Measured(u32),
    /// From the elements that it loads (see the module's documentation).
    Estimated(u32),
}

impl Rate {
    fn percent(self) -> u32 {
        match self {
            Self::Measured(percent) | Self::Estimated(percent) => percent,
        }
    }
}

/// Returns a tile of 256 x 192 elements. Its upper half is stored while its lower half is computed, and the reverse.
const fn halves(symbol: &'static str) -> GemmTile {
    let shape = GemmTile { columns: 192, copied_columns: 192, ..wide(symbol, AccumulateMode::Replaced) };
    GemmTile { rows: 256, stages: 3, chunks: 3, ..shape }
}

/// Returns a tile of 128 x 256 elements, in a cluster of two blocks.
const fn wide(symbol: &'static str, old_c: AccumulateMode) -> GemmTile {
    GemmTile {
        symbol,
        rows: 128,
        columns: 256,
        warpgroups: 2,
        stages: 4,
        cluster: 2,
        chunks: 2,
        chunk_row_bytes: 128,
        old_c,
        gated: false,
        copied_columns: 256,
        rate: Rate::Measured(100),
    }
}

/// Returns a tile of 128 x 224 elements.
const fn of_224_columns(symbol: &'static str, copied_columns: u32, rate: u32) -> GemmTile {
    let shape = GemmTile { columns: 224, copied_columns, ..wide(symbol, AccumulateMode::Replaced) };
    GemmTile { chunks: 4, chunk_row_bytes: 64, rate: Rate::Estimated(rate), ..shape }
}

/// Returns a tile of 128 x 128 elements.
const fn square(symbol: &'static str) -> GemmTile {
    let shape = GemmTile { columns: 128, copied_columns: 128, ..wide(symbol, AccumulateMode::Replaced) };
    GemmTile { stages: 6, rate: Rate::Estimated(91), ..shape }
}

pub(super) static FWD_HALVES: GemmTile = halves("gemm_fwd_bf16_256x192_halves");
pub(super) static SWIGLU_HALVES: GemmTile = GemmTile {
    chunk_row_bytes: 64,
    gated: true,
    rate: Rate::Estimated(106),
    ..halves("gemm_swiglu_bf16_256x192_halves")
};
pub(super) static FWD_128X256: GemmTile =
    GemmTile { cluster: 1, ..wide("gemm_fwd_bf16_128x256", AccumulateMode::Replaced) };
pub(super) static FWD_HELD: GemmTile = wide("gemm_fwd_bf16_128x256_held", AccumulateMode::Replaced);
pub(super) static FWD_128X192: GemmTile = GemmTile {
    columns: 192,
    copied_columns: 192,
    stages: 5,
    cluster: 1,
    chunks: 1,
    rate: Rate::Measured(97),
    ..wide("gemm_fwd_bf16_128x192", AccumulateMode::Replaced)
};
pub(super) static FWD_128X224: GemmTile = of_224_columns("gemm_fwd_bf16_128x224", 224, 99);
pub(super) static FWD_128X160: GemmTile =
    GemmTile { columns: 160, stages: 5, ..of_224_columns("gemm_fwd_bf16_128x160", 160, 95) };
pub(super) static FWD_128X128: GemmTile = square("gemm_fwd_bf16_128x128");
pub(super) static FWD_64X144: GemmTile = GemmTile {
    rows: 64,
    columns: 144,
    copied_columns: 144,
    warpgroups: 1,
    stages: 8,
    cluster: 1,
    chunks: 0,
    rate: Rate::Measured(75),
    ..wide("gemm_fwd_bf16_64x144", AccumulateMode::Either)
};
pub(super) static FWD_ADDED: GemmTile = wide("gemm_fwd_bf16_128x256_added", AccumulateMode::Added);
pub(super) static FWD_F32: GemmTile = wide("gemm_fwd_f32_128x256", AccumulateMode::Either);
pub(super) static DX_HALVES: GemmTile = halves("gemm_dx_bf16_256x192_halves");
pub(super) static DX_128X256: GemmTile = wide("gemm_dx_bf16_128x256", AccumulateMode::Replaced);
pub(super) static DX_128X224: GemmTile = of_224_columns("gemm_dx_bf16_128x224", 256, 96);
pub(super) static DX_128X128: GemmTile = square("gemm_dx_bf16_128x128");
pub(super) static DX_ADDED: GemmTile = wide("gemm_dx_bf16_128x256_added", AccumulateMode::Added);
pub(super) static DX_F32: GemmTile = wide("gemm_dx_f32_128x256", AccumulateMode::Either);
pub(super) static DW_HELD: GemmTile = wide("gemm_dw_bf16_128x256_held", AccumulateMode::Replaced);
pub(super) static DW_ADDED: GemmTile = wide("gemm_dw_bf16_128x256_added", AccumulateMode::Added);
pub(super) static DW_F32: GemmTile = wide("gemm_dw_f32_128x256", AccumulateMode::Either);
pub(super) static DW_F32_128X160: GemmTile = GemmTile {
    columns: 160,
    copied_columns: 192,
    rate: Rate::Estimated(91),
    ..wide("gemm_dw_f32_128x160", AccumulateMode::Either)
};

/// All tiles.
pub static ALL: [&GemmTile; 21] = [
    &FWD_HALVES,
    &SWIGLU_HALVES,
    &FWD_128X256,
    &FWD_HELD,
    &FWD_128X192,
    &FWD_128X224,
    &FWD_128X160,
    &FWD_128X128,
    &FWD_64X144,
    &FWD_ADDED,
    &FWD_F32,
    &DX_HALVES,
    &DX_128X256,
    &DX_128X224,
    &DX_128X128,
    &DX_ADDED,
    &DX_F32,
    &DW_HELD,
    &DW_ADDED,
    &DW_F32,
    &DW_F32_128X160,
];

/// Elements of k of a stage.
const STAGE_K: u32 = 64;
/// Rows and columns of a block of the plain kernels (`plain.cuh`).
const PLAIN_SIDE: u32 = 64;
/// A tile with an estimated rate is chosen if it saves more than this share of the time of the best measured tile, in
/// percent.
const NEAR_TIE: u64 = 3;

impl GemmTile {
    /// Returns the bytes of shared memory of a block: the ring of stages, the chunks of C, and the mbarriers.
    fn shared_bytes(&self) -> u32 {
        let stage = (self.rows + self.copied_columns) * STAGE_K * 2;
        let chunks = self.warpgroups * self.chunks * 64 * self.chunk_row_bytes;
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

    /// Returns the share of whole waves of a product.
    fn wave_share(&self, p: &Params, arch: &Arch) -> f64 {
        let elements = f64::from(p.m) * f64::from(p.n);
        elements / (self.busiest(p, arch) as f64 * f64::from(arch.multiprocessors))
    }

    /// Returns the predicted time of a product, in units that are the same for all tiles.
    fn time(&self, p: &Params, arch: &Arch) -> u64 {
        self.busiest(p, arch) * 10_000 / u64::from(self.rate.percent())
    }

    fn stage(&self, p: &Params, arch: &Arch, form: OperandLayout) -> Stage {
        let map = |addr, dtype, rows, columns, box_rows| tensor_map(addr, dtype, [rows, columns], [box_rows, 128]);
        let stored_columns = if self.gated { p.n / 2 } else { p.n };
        let a = if form.a_transposed {
            map(p.a, DType::BF16, p.k, p.m, STAGE_K)
        } else {
            map(p.a, DType::BF16, p.m, p.k, self.rows)
        };
        let b = if form.b_transposed {
            map(p.b, DType::BF16, p.k, p.n, STAGE_K)
        } else {
            map(p.b, DType::BF16, stored_columns, p.k, self.columns / self.cluster)
        };
        let mut tensor_maps = vec![(offset_of!(Params, map_a), a), (offset_of!(Params, map_b), b)];
        if self.gated {
            let b2 = map(p.b2, DType::BF16, stored_columns, p.k, self.columns / self.cluster);
            tensor_maps.push((offset_of!(Params, map_b2), b2));
        }
        if self.chunks > 0 {
            let c = tensor_map(p.c, form.c_dtype, [p.m, stored_columns], [64, self.chunk_row_bytes]);
            tensor_maps.push((offset_of!(Params, map_c), c));
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

/// Returns the tensor map of a row-major array `[rows, columns]`. Its boxes have `box_rows` rows of `row_bytes` bytes,
/// 128 or 64.
fn tensor_map(addr: Addr, dtype: DType, [rows, columns]: [u32; 2], [box_rows, row_bytes]: [u32; 2]) -> TensorMap {
    let size = dtype.size() as u32;
    TensorMap {
        data_type: if dtype == DType::F32 { DataType::F32 } else { DataType::Bf16 },
        rank: 2,
        address: addr.0,
        dims: [columns.into(), rows.into(), 1, 1, 1],
        strides: [u64::from(columns) * u64::from(size), 0, 0, 0],
        box_dims: [row_bytes / size, box_rows, 1, 1, 1],
        element_strides: [1; 5],
        interleave: Interleave::None,
        swizzle: if row_bytes == 128 { Swizzle::B128 } else { Swizzle::B64 },
        l2_promotion: L2Promotion::B256,
        oob_fill: OobFill::Zero,
    }
}

/// Returns the tiles that can compute a product, the preferred ones first.
fn candidates(p: &Params, form: OperandLayout) -> Vec<&'static GemmTile> {
    let of_form: &[&'static GemmTile] = match (form.a_transposed, form.b_transposed, form.c_dtype) {
        (true, _, DType::F32) => &[&DW_F32, &DW_F32_128X160],
        (false, true, DType::F32) => &[&DX_F32],
        (false, false, DType::F32) => &[&FWD_F32],
        (true, ..) => &[&DW_HELD, &DW_ADDED],
        (false, true, _) => &[&DX_HALVES, &DX_128X256, &DX_128X224, &DX_128X128, &DX_ADDED],
        (false, false, _) => &[
            &FWD_HALVES,
            &FWD_HELD,
            &FWD_128X256,
            &FWD_ADDED,
            &FWD_128X192,
            &FWD_128X224,
            &FWD_128X160,
            &FWD_128X128,
            &FWD_64X144,
        ],
    };
    // Held sums are stored during the products of the next tile, which is only faster for long sums.
    let is_candidate = |tile: &&&GemmTile| tile.takes(p) && (p.k > p.n || ***tile != FWD_HELD);
    of_form.iter().filter(is_candidate).copied().collect()
}

/// Chooses the tile of a product by the rule in this module's documentation.
fn chosen(p: &Params, arch: &Arch, form: OperandLayout) -> &'static GemmTile {
    let candidates = candidates(p, form);
    let fastest = |tiles: &mut dyn Iterator<Item = &'static GemmTile>| tiles.min_by_key(|tile| tile.time(p, arch));
    let is_measured = |tile: &&GemmTile| matches!(tile.rate, Rate::Measured(_));
    let measured = fastest(&mut candidates.iter().copied().filter(is_measured)).expect("every form has such a tile");
    let best = fastest(&mut candidates.iter().copied()).expect("the same");
    let is_near = 100 * best.time(p, arch) >= (100 - NEAR_TIE) * measured.time(p, arch);
    if is_near { measured } else { best }
}

/// Returns the share of whole waves of a product with the tile that the plan chooses.
pub(super) fn wave_share(p: &Params, arch: &Arch, form: OperandLayout) -> f64 {
    chosen(p, arch, form).wave_share(p, arch)
}

/// Returns the share of whole waves of a launch of `gemm_swiglu_bf16`; `None` if the tile cannot compute it.
pub(super) fn swiglu_wave_share(p: &Params, arch: &Arch) -> Option<f64> {
    SWIGLU_HALVES.takes(p).then(|| SWIGLU_HALVES.wave_share(p, arch))
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
        return vec![plain_stage(plain_symbol(form), p)];
    }
    vec![fixed.filter(|tile| tile.takes(p)).unwrap_or_else(|| chosen(p, arch, form)).stage(p, arch, form)]
}

fn plain_stage(symbol: &'static str, p: &Params) -> Stage {
    Stage::one_dimensional(symbol, p.m.div_ceil(PLAIN_SIDE) * p.n.div_ceil(PLAIN_SIDE), 128)
}

/// Plans the launch of `gemm_swiglu_bf16`, whose k has at least two stages.
pub(super) fn plan_swiglu_stages(p: &Params, arch: &Arch) -> Vec<Stage> {
    vec![if arch.sm < 90 { plain_stage("gemm_swiglu_bf16_plain", p) } else { SWIGLU_HALVES.stage(p, arch, form::FWD) }]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use bytemuck::Zeroable;
    use proptest::prelude::*;
    use reel_device::MatmulImplementation;

    use super::*;

    fn symbol(form: OperandLayout, [m, n, k]: [u32; 3], accumulate: u32) -> &'static str {
        chosen(&Params { m, n, k, accumulate, ..Params::zeroed() }, &Arch::H100, form).symbol
    }

    #[test]
    fn an_h100_takes_the_tiles_of_the_table() {
        let fwd = |m, n, k| symbol(form::FWD, [m, n, k], 0);
        assert_eq!(fwd(8192, 4608, 3584), "gemm_fwd_bf16_256x192_halves");
        assert_eq!(fwd(8192, 18944, 3584), "gemm_fwd_bf16_256x192_halves");
        assert_eq!(fwd(8192, 3584, 3584), "gemm_fwd_bf16_128x256");
        assert_eq!(fwd(8192, 3584, 18944), "gemm_fwd_bf16_128x256_held");
        assert_eq!(fwd(512, 18944, 3584), "gemm_fwd_bf16_128x192");
        assert_eq!(fwd(64, 18944, 3584), "gemm_fwd_bf16_64x144");
        assert_eq!(fwd(8192, 16, 3584), "gemm_fwd_bf16_64x144");
        assert_eq!(fwd(8192, 4608, 64), "gemm_fwd_bf16_128x256");
        assert_eq!(symbol(form::DX, [8192, 18944, 3584], 0), "gemm_dx_bf16_256x192_halves");
        assert_eq!(symbol(form::DX, [8192, 3584, 18944], 0), "gemm_dx_bf16_128x256");
        for shape in [[18944, 3584, 8192], [3584, 18944, 8192]] {
            assert_eq!(symbol(form::DW, shape, 0), "gemm_dw_bf16_128x256_held");
            assert_eq!(symbol(form::DW, shape, 1), "gemm_dw_bf16_128x256_added");
            assert_eq!(symbol(form::DW_TO_F32, shape, 1), "gemm_dw_f32_128x256");
        }
        // A product that is added to the residual uses a Hopper tile, too.
        assert_eq!(symbol(form::FWD, [8192, 3584, 3584], 1), "gemm_fwd_bf16_128x256_added");
        assert_eq!(symbol(form::FWD, [64, 18944, 3584], 1), "gemm_fwd_bf16_64x144");
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

    /// Name, n and k of each weight `[n, k]` of a layer. q, k, v are one weight, and gate and up another.
    type Layer = [(&'static str, u32, u32); 4];

    /// The layers of three models. Of 72B a rank of ZeRO-3 computes with whole weights.
    const LAYERS: [(&str, Layer); 3] = [
        ("7B", [("qkv", 4608, 3584), ("o", 3584, 3584), ("gate, up", 37888, 3584), ("down", 3584, 18944)]),
        ("3B", [("qkv", 2560, 2048), ("o", 2048, 2048), ("gate, up", 22016, 2048), ("down", 2048, 11008)]),
        ("72B", [("qkv", 10240, 8192), ("o", 8192, 8192), ("gate, up", 59136, 8192), ("down", 8192, 29568)]),
    ];

    /// Of the 180 products of a layer, own kernels compute those that keep 0.9 of the GPU busy, and cuBLASLt the other
    /// ones. Prints tile and share of whole waves of each.
    #[test]
    fn products_of_a_layer_have_whole_waves_or_go_to_cublaslt() {
        let [by_share, invariant] =
            [false, true].map(|batch_invariant| MatmulImplementation::ByWaveShare { batch_invariant });
        let (mut own, mut own_if_invariant) = (0, 0);
        let weights = LAYERS.iter().flat_map(|(model, weights)| weights.map(|weight| (model, weight)));
        for (model, (weight, n, k)) in weights {
            for tokens in [512, 1024, 2048, 4096, 8192] {
                let products = [
                    ("forward", form::FWD, [tokens, n, k]),
                    ("dX", form::DX, [tokens, k, n]),
                    ("dW", form::DW_TO_F32, [n, k, tokens]),
                ];
                for (name, form, [m, n, k]) in products {
                    let p = Params { m, n, k, ..Params::zeroed() };
                    let (tile, share) = (chosen(&p, &Arch::H100, form), wave_share(&p, &Arch::H100, form));
                    let is_own = share >= 0.9;
                    assert_eq!(by_share.takes_cublaslt(form == form::FWD, share), !is_own);
                    own += u32::from(is_own);
                    own_if_invariant += u32::from(!invariant.takes_cublaslt(form == form::FWD, share));
                    let by = if is_own { "" } else { ", cuBLASLt unless batch invariant" };
                    println!("{model:3} {weight:8} {name:7} {m:5} x {n:5} x {k:5} {share:.3} {}{by}", tile.symbol);
                }
            }
        }
        // Without the tiles whose rates are estimated, own kernels would have 129 of these products.
        assert_eq!((own, own_if_invariant), (158, 165));
    }

    /// SwiGLU is computed in the launch of the product of gate and up for the rows of a prefill, but not for few rows,
    /// which are less than the tile of a cluster.
    #[test]
    fn swiglu_is_fused_with_products_that_fill_the_gpu() {
        for (model, weights) in LAYERS {
            let (_, n, k) = weights[2];
            for (m, fused) in [(64, false), (256, false), (2048, true), (4096, true), (8192, true)] {
                let p = Params { m, n, k, ..Params::zeroed() };
                let share = swiglu_wave_share(&p, &Arch::H100).unwrap();
                assert_eq!(share >= 0.9, fused, "{model}, {m} rows: {share}");
            }
        }
        assert_eq!(swiglu_wave_share(&Params { m: 512, n: 192, k: STAGE_K, ..Params::zeroed() }, &Arch::H100), None);
    }

    proptest! {
        /// If SwiGLU is computed in the launch of a product, own kernels compute the product without it, too.
        #[test]
        fn a_product_with_swiglu_is_an_own_one_without(m in 1u32..20_000, n in 1u32..40_000, k in 65u32..20_000) {
            let p = Params { m, n, k, ..Params::zeroed() };
            let [with, without] =
                [swiglu_wave_share(&p, &Arch::H100).unwrap(), wave_share(&p, &Arch::H100, form::FWD)];
            prop_assert!(with < 0.9 || without >= 0.9, "{with} {without}");
        }

        /// No tile that can compute a product is faster by its rate, but for near ties, in which a measured tile is
        /// taken; and no tile with the same rate has a larger share of whole waves.
        #[test]
        fn the_fastest_tile_is_chosen(
            form in 0usize..6, m in 1u32..20_000, n in 1u32..40_000, k in 1u32..20_000, accumulate in 0u32..2,
            multiprocessors in 2u32..200,
        ) {
            let forms = [form::FWD, form::FWD_TO_F32, form::DX, form::DX_TO_F32, form::DW, form::DW_TO_F32];
            let (form, arch) = (forms[form], Arch { multiprocessors, ..Arch::H100 });
            let p = Params { m, n, k, accumulate, ..Params::zeroed() };
            let tile = chosen(&p, &arch, form);
            prop_assert!(tile.takes(&p));
            let kind = |tile: &GemmTile| tile.symbol.split('_').take(3).collect::<String>();
            let is_other = |other: &&&GemmTile| kind(other) == kind(tile) && other.takes(&p);
            for other in ALL.iter().filter(is_other).filter(|other| ***other != FWD_HELD || k > n) {
                let [time, others] = [tile, *other].map(|t| t.busiest(&p, &arch) as f64 / f64::from(t.rate.percent()));
                let is_measured = matches!(tile.rate, Rate::Measured(_)) && matches!(other.rate, Rate::Estimated(_));
                let tie = if is_measured { 1.031 } else { 1.000_001 };
                prop_assert!(time <= others * tie, "{}: {time}, {}: {others}", tile.symbol, other.symbol);
                if tile.rate == other.rate {
                    prop_assert!(wave_share(&p, &arch, form) >= other.wave_share(&p, &arch) - 1e-9);
                }
            }
        }
    }

    /// The estimated rates are those of the formula in this module's documentation, which gives the measured ones, too.
    #[test]
    fn rates_follow_the_loads_of_a_tile() {
        let loads = |t: &GemmTile| f64::from(t.rows + t.copied_columns) / f64::from(t.rows * t.columns);
        for tile in ALL.iter().filter(|tile| tile.rate != Rate::Measured(100)) {
            let rate = 100.0 * (1.0 - 0.27 * (loads(tile) / loads(&FWD_128X256) - 1.0));
            assert_eq!(rate.round(), f64::from(tile.rate.percent()), "{}", tile.symbol);
        }
    }
}
