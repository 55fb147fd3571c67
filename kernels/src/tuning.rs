//! Choices between variants of a kernel that are compiled in, by architecture.
//!
//! A variant is another plan of the same kernel: other tile shapes, stages or splits, with results within the same
//! tolerance. `reel bench op NAME --variants` times the variants at a size (`./run.sh tune` of the GPU bundle, at the
//! sizes that matter); [`TABLE`] has what was chosen by these times, and plans read nothing else.

use crate::launch::Kernel;
use crate::skinny::Scheme;
use crate::{Arch, attention, matmul::gemm, paged_attention, sample, skinny};

/// What plans choose on an architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choices {
    /// Compute capability times ten from which on these choices hold.
    pub sm: u32,
    /// Backward pass of attention on tensor cores: tiles of 128 keys instead of 64 if there are at least this many
    /// blocks of threads with 128 keys for two multiprocessors. Tiles of 128 keys read the queries and pass on the sums
    /// of dq half as often.
    pub attention_bwd_wide_blocks_per_2_multiprocessors: u64,
    /// Backward pass of attention on tensor cores: `dq` in a stage of its own for calls of up to this many tokens, if a
    /// sequence has more than 64. With few tokens, few blocks pass on the sums of dq, one after the other.
    pub attention_bwd_separate_dq_max_tokens: u32,
    /// Attention in bf16 with head_dim 64, 80 and 128: whether the forward pass and prefill run by products of warpgroups
    /// and decode by tiles of rows, all in the order of sums of `attention/row_state.cuh`. Otherwise they run by products
    /// of warps, in the order of `cuh/online_softmax.cuh`.
    pub attention_by_warpgroups: bool,
    /// Backward pass of attention: the head_dims for which products of warpgroups compute it, if a sequence has at least
    /// `attention_bwd_wgmma_min_seqlen` tokens.
    pub attention_bwd_wgmma_head_dims: &'static [u32],
    /// Minimum length of the longest sequence for products of warpgroups in the backward pass of attention. They have
    /// tiles of 128 keys, so those of windows of 64 tokens would be half empty.
    pub attention_bwd_wgmma_min_seqlen: u32,
    /// Products of a few rows: how blocks divide them and copy the weight to shared memory.
    pub skinny_scheme: Scheme,
    /// Products of a few rows whose blocks copy units: when these have 32 columns instead of 16.
    pub skinny_wide_blocks: WideBlocks,
    /// Products with a bf16 weight: maximum number of rows for the kernels of [`crate::skinny`]; cuBLASLt computes
    /// those of more rows. `reel bench op` times `skinny` and `matmul` at a size.
    pub skinny_max_rows: usize,
    /// Products of a few rows that follow a norm: maximum number of rows that their launch normalises itself, with the
    /// bits of [`crate::rms_norm`]. Every block normalises all its rows again, so with more of them a launch of its own
    /// is faster.
    pub skinny_norm_max_rows: usize,
    /// As `skinny_max_rows`, for the output layer in decoding.
    pub logits_max_rows: usize,
}

/// Rows of a product up to which the first of two choices holds.
pub const FEW_ROWS: u32 = 16;

/// Products of a few rows have blocks of 32 columns instead of 16 if there are at least this many blocks of 32 for four
/// multiprocessors; first with up to [`FEW_ROWS`] rows, then with more, which each block reads again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WideBlocks {
    /// With bf16 x and a bf16 weight.
    pub bf16: [u64; 2],
    /// With bf16 x and an int8 weight.
    pub int8: [u64; 2],
    /// With f32 x.
    pub f32: [u64; 2],
}

/// The choices by architecture, ascending.
///
/// Those of compute capability 8.0 follow from counting: with 1.5 blocks of attention per multiprocessor every one is
/// busy, and two blocks of a product of a few rows are resident, which with up to 64 rows read a weight once.
///
/// Those of 9.0 follow the times of an H200 (`benches/results/h200/2026-11-27-kernels.json` and
/// `2026-11-27-models.json`):
///
/// - Gradients of attention by `mma.sync` with dq in a stage of its own take 1 / 1.32 to 1 / 1.41 of the time with up to
///   4096 tokens of one sequence; with 8192 tokens, or in windows of 64, they take longer. That now concerns head_dim 72
///   and windows only: by products of warpgroups a prototype for head_dim 128 had 497 to 524 TFLOP/s with 8192 tokens,
///   `mma.sync` 228 (`attention/mod.rs`). Products of warpgroups for head_dim 64 and 80 were not measured.
/// - Products of a few rows: prototypes of the kernels by tiles read weights of 3584 to 37888 rows at 3.94 to 4.16 TB/s
///   with up to 16 rows; kernels that copy units reached 2.1. More rows were not measured.
pub const TABLE: [Choices; 2] = [
    Choices {
        sm: 80,
        attention_bwd_wide_blocks_per_2_multiprocessors: 3,
        attention_bwd_separate_dq_max_tokens: 0,
        attention_by_warpgroups: false,
        attention_bwd_wgmma_head_dims: &[],
        attention_bwd_wgmma_min_seqlen: 0,
        skinny_scheme: Scheme::Units,
        skinny_wide_blocks: WideBlocks { bf16: [8, 3], int8: [8, 3], f32: [8, 3] },
        skinny_max_rows: 64,
        skinny_norm_max_rows: 16,
        logits_max_rows: 64,
    },
    Choices {
        sm: 90,
        attention_bwd_wide_blocks_per_2_multiprocessors: 3,
        attention_bwd_separate_dq_max_tokens: 4096,
        attention_by_warpgroups: true,
        attention_bwd_wgmma_head_dims: &[64, 80, 128],
        attention_bwd_wgmma_min_seqlen: 65,
        skinny_scheme: Scheme::Tiles,
        skinny_wide_blocks: WideBlocks { bf16: [24, 3], int8: [3, 3], f32: [8, 3] },
        skinny_max_rows: 64,
        skinny_norm_max_rows: 64,
        logits_max_rows: 64,
    },
];

/// The choices for a GPU of this architecture.
pub fn choices(arch: &Arch) -> &'static Choices {
    choices_of_capability(arch.sm)
}

/// The choices for a GPU of this compute capability times ten: the last entry of [`TABLE`] that is not newer.
pub fn choices_of_capability(sm: u32) -> &'static Choices {
    TABLE.iter().rev().find(|c| c.sm <= sm).unwrap_or(&TABLE[0])
}

/// A kernel with a fixed choice.
pub struct Variant {
    /// The kernel that chooses by [`TABLE`].
    pub of: &'static Kernel,
    /// What is fixed, as text.
    pub name: &'static str,
    /// The kernel whose plan has this choice.
    pub kernel: &'static Kernel,
}

/// All variants.
static VARIANTS: &[Variant] = &[
    Variant { of: &attention::FWD_BF16, name: "products of warps", kernel: &attention::FWD_BF16_MMA },
    Variant { of: &attention::FWD_BF16, name: "products of warpgroups", kernel: &attention::FWD_BF16_WGMMA },
    Variant { of: &attention::BWD_BF16, name: "tiles of 128 keys", kernel: &attention::BWD_BF16_128_KEYS },
    Variant { of: &attention::BWD_BF16, name: "tiles of 64 keys", kernel: &attention::BWD_BF16_64_KEYS },
    Variant { of: &attention::BWD_BF16, name: "dq in a stage of its own", kernel: &attention::BWD_BF16_SEPARATE_DQ },
    Variant { of: &attention::BWD_BF16, name: "products of warpgroups", kernel: &attention::BWD_BF16_WGMMA },
    Variant { of: &gemm::FWD_BF16, name: "256 x 192 in halves", kernel: &gemm::FWD_BF16_HALVES },
    Variant { of: &gemm::FWD_BF16, name: "128 x 256", kernel: &gemm::FWD_BF16_128X256 },
    Variant { of: &gemm::FWD_BF16, name: "128 x 256 held", kernel: &gemm::FWD_BF16_HELD },
    Variant { of: &gemm::FWD_BF16, name: "128 x 192", kernel: &gemm::FWD_BF16_128X192 },
    Variant { of: &gemm::FWD_BF16, name: "64 x 144", kernel: &gemm::FWD_BF16_64X144 },
    Variant { of: &gemm::DX_BF16, name: "256 x 192 in halves", kernel: &gemm::DX_BF16_HALVES },
    Variant { of: &gemm::DX_BF16, name: "128 x 256", kernel: &gemm::DX_BF16_128X256 },
    Variant { of: &paged_attention::FWD_BF16, name: "products of warps", kernel: &paged_attention::FWD_BF16_MMA },
    Variant {
        of: &paged_attention::FWD_BF16,
        name: "decode in the order of the forward pass",
        kernel: &paged_attention::FWD_BF16_DECODE_ROWS,
    },
    Variant {
        of: &paged_attention::FWD_BF16,
        name: "prefill by products of warpgroups",
        kernel: &paged_attention::FWD_BF16_PREFILL_WGMMA,
    },
    Variant { of: &sample::SAMPLE, name: "one block per row", kernel: &sample::SAMPLE_BY_ONE_BLOCK },
    Variant { of: &skinny::LINEAR_BF16, name: "16 columns", kernel: &skinny::LINEAR_BF16_16_COLUMNS },
    Variant { of: &skinny::LINEAR_BF16, name: "32 columns", kernel: &skinny::LINEAR_BF16_32_COLUMNS },
    Variant { of: &skinny::LINEAR_BF16, name: "one block per multiprocessor", kernel: &skinny::LINEAR_BF16_ONE_BLOCK },
    Variant { of: &skinny::LINEAR_BF16, name: "tiles", kernel: &skinny::LINEAR_BF16_TILES },
    Variant { of: &skinny::LINEAR_BF16, name: "tiles of half the columns", kernel: &skinny::LINEAR_BF16_MANY_TILES },
    Variant { of: &skinny::LINEAR_BF16, name: "tiles of twice the columns", kernel: &skinny::LINEAR_BF16_FEW_TILES },
    Variant { of: &skinny::LOGITS_BF16, name: "16 columns", kernel: &skinny::LOGITS_BF16_16_COLUMNS },
    Variant { of: &skinny::LOGITS_BF16, name: "32 columns", kernel: &skinny::LOGITS_BF16_32_COLUMNS },
    Variant { of: &skinny::LOGITS_BF16, name: "tiles", kernel: &skinny::LOGITS_BF16_TILES },
    Variant { of: &skinny::LOGITS_BF16, name: "tiles of half the columns", kernel: &skinny::LOGITS_BF16_MANY_TILES },
    Variant { of: &skinny::LOGITS_BF16, name: "tiles of twice the columns", kernel: &skinny::LOGITS_BF16_FEW_TILES },
    Variant { of: &skinny::SWIGLU_BF16, name: "copies of 16 bytes", kernel: &skinny::SWIGLU_BF16_UNITS },
    Variant { of: &skinny::SWIGLU_BF16, name: "one block per multiprocessor", kernel: &skinny::SWIGLU_BF16_ONE_BLOCK },
    Variant { of: &skinny::SWIGLU_BF16, name: "tiles", kernel: &skinny::SWIGLU_BF16_TILES },
    Variant { of: &skinny::SWIGLU_BF16, name: "tiles of half the columns", kernel: &skinny::SWIGLU_BF16_MANY_TILES },
    Variant { of: &skinny::SWIGLU_BF16, name: "tiles of twice the columns", kernel: &skinny::SWIGLU_BF16_FEW_TILES },
    Variant { of: &skinny::QKV_BF16, name: "copies of 16 bytes", kernel: &skinny::QKV_BF16_UNITS },
    Variant { of: &skinny::QKV_BF16, name: "tiles", kernel: &skinny::QKV_BF16_TILES },
    Variant { of: &skinny::QKV_BF16, name: "tiles of half the columns", kernel: &skinny::QKV_BF16_MANY_TILES },
    Variant { of: &skinny::QKV_BF16, name: "tiles of twice the columns", kernel: &skinny::QKV_BF16_FEW_TILES },
    Variant { of: &skinny::LINEAR_INT8_BF16, name: "16 columns", kernel: &skinny::LINEAR_INT8_BF16_16_COLUMNS },
    Variant { of: &skinny::LINEAR_INT8_BF16, name: "32 columns", kernel: &skinny::LINEAR_INT8_BF16_32_COLUMNS },
    Variant { of: &skinny::LINEAR_INT8_BF16, name: "tiles", kernel: &skinny::LINEAR_INT8_BF16_TILES },
    Variant {
        of: &skinny::LINEAR_INT8_BF16,
        name: "tiles of half the columns",
        kernel: &skinny::LINEAR_INT8_BF16_MANY_TILES,
    },
    Variant {
        of: &skinny::LINEAR_INT8_BF16,
        name: "tiles of twice the columns",
        kernel: &skinny::LINEAR_INT8_BF16_FEW_TILES,
    },
    Variant { of: &skinny::LOGITS_INT8_BF16, name: "16 columns", kernel: &skinny::LOGITS_INT8_BF16_16_COLUMNS },
    Variant { of: &skinny::LOGITS_INT8_BF16, name: "32 columns", kernel: &skinny::LOGITS_INT8_BF16_32_COLUMNS },
    Variant { of: &skinny::LOGITS_INT8_BF16, name: "tiles", kernel: &skinny::LOGITS_INT8_BF16_TILES },
    Variant {
        of: &skinny::LOGITS_INT8_BF16,
        name: "tiles of half the columns",
        kernel: &skinny::LOGITS_INT8_BF16_MANY_TILES,
    },
    Variant {
        of: &skinny::LOGITS_INT8_BF16,
        name: "tiles of twice the columns",
        kernel: &skinny::LOGITS_INT8_BF16_FEW_TILES,
    },
    Variant { of: &skinny::SWIGLU_INT8_BF16, name: "copies of 16 bytes", kernel: &skinny::SWIGLU_INT8_BF16_UNITS },
    Variant { of: &skinny::SWIGLU_INT8_BF16, name: "tiles", kernel: &skinny::SWIGLU_INT8_BF16_TILES },
    Variant {
        of: &skinny::SWIGLU_INT8_BF16,
        name: "tiles of half the columns",
        kernel: &skinny::SWIGLU_INT8_BF16_MANY_TILES,
    },
    Variant {
        of: &skinny::SWIGLU_INT8_BF16,
        name: "tiles of twice the columns",
        kernel: &skinny::SWIGLU_INT8_BF16_FEW_TILES,
    },
    Variant { of: &skinny::QKV_INT8_BF16, name: "copies of 16 bytes", kernel: &skinny::QKV_INT8_BF16_UNITS },
    Variant { of: &skinny::QKV_INT8_BF16, name: "tiles", kernel: &skinny::QKV_INT8_BF16_TILES },
    Variant {
        of: &skinny::QKV_INT8_BF16,
        name: "tiles of half the columns",
        kernel: &skinny::QKV_INT8_BF16_MANY_TILES,
    },
    Variant {
        of: &skinny::QKV_INT8_BF16,
        name: "tiles of twice the columns",
        kernel: &skinny::QKV_INT8_BF16_FEW_TILES,
    },
];

/// The variants of a kernel; none if it has no choice.
pub fn variants_of(kernel: &'static Kernel) -> impl Iterator<Item = &'static Variant> {
    VARIANTS.iter().filter(move |v| std::ptr::eq(v.of, kernel))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::{KernelFolder, Sizes};

    #[test]
    fn the_table_is_ascending_and_every_gpu_has_choices() {
        assert!(TABLE.is_sorted_by_key(|c| c.sm));
        for arch in [Arch::A100, Arch::SM86, Arch::SM89] {
            assert_eq!(choices(&arch).sm, 80);
        }
        assert_eq!(choices(&Arch::H100).sm, 90);
    }

    #[test]
    fn a_plan_of_a_product_of_a_few_rows_is_that_of_a_variant() {
        for (batch, n) in [(1, 3584), (16, 3584), (64, 3584), (1, 18944), (16, 18944), (64, 18944), (1, 152_064)] {
            let sizes = [("batch", batch), ("n", n), ("k", 3584)].map(|(name, size)| (name.to_string(), size));
            let examples = skinny::FOLDER.examples_with_sizes(&Sizes::new(sizes).unwrap()).unwrap();
            for launch in examples.iter().map(|example| &example.launch) {
                for arch in [Arch::A100, Arch::H100] {
                    let plan = |kernel: &Kernel| (kernel.plan)(&launch.params, &arch);
                    let all: Vec<_> = variants_of(launch.kernel).map(|v| plan(v.kernel)).collect();
                    assert!(
                        all.is_empty() || all.contains(&plan(launch.kernel)),
                        "{batch} {n} {:?}: {all:?}",
                        launch.kernel
                    );
                    let tiles = all.iter().filter(|stages| !stages[0].tensor_maps.is_empty()).count();
                    assert_eq!(tiles > 0, arch.sm >= 90 && !all.is_empty(), "{:?}", launch.kernel);
                }
            }
        }
    }

    /// A comparison of variants must have both ways, whichever a GPU chooses.
    #[test]
    fn attention_has_variants_with_other_plans_on_every_gpu() {
        for (folder, name) in
            [(&attention::FOLDER, "attention_fwd_bf16"), (&paged_attention::FOLDER, "paged_attention_fwd_bf16")]
        {
            let examples = folder.examples_with_sizes(&Sizes::default()).unwrap();
            for launch in examples.iter().map(|e| &e.launch).filter(|launch| launch.kernel.name == name) {
                for arch in [Arch::A100, Arch::H100] {
                    let plan = |kernel: &Kernel| (kernel.plan)(&launch.params, &arch);
                    let others = variants_of(launch.kernel).filter(|v| plan(v.kernel) != plan(launch.kernel)).count();
                    assert!(others > 0 || arch.sm < 90, "{name}: {:?}", plan(launch.kernel));
                    assert!(variants_of(launch.kernel).any(|v| plan(v.kernel) == plan(launch.kernel)), "{name}");
                }
            }
        }
    }

    #[test]
    fn an_h100_plans_what_was_fastest_on_an_h200() {
        let skinny = |name: &str, batch: usize, n: usize| {
            let sizes = [("batch", batch), ("n", n), ("k", 3584)].map(|(name, size)| (name.to_string(), size as u64));
            let examples = skinny::FOLDER.examples_with_sizes(&Sizes::new(sizes).unwrap()).unwrap();
            let launch = &examples.iter().find(|e| e.launch.kernel.name == name).unwrap().launch;
            (launch.kernel.plan)(&launch.params, &Arch::H100)[0].symbol
        };
        let products = [
            ("skinny_linear_bf16", 3584, 64, Some(32)),
            ("skinny_linear_bf16", 18944, 144, Some(160)),
            ("skinny_linear_int8_bf16", 3584, 64, None),
            ("skinny_swiglu_bf16", 18944, 144, Some(160)),
            ("skinny_logits_bf16", 152_064, 144, Some(160)),
            ("skinny_qkv_bf16", 18944, 64, Some(32)),
        ];
        for (rows, tiles) in [(1, "x1"), (8, "x1"), (9, "x2"), (16, "x2"), (32, "x4"), (33, "x8"), (64, "x8")] {
            for (name, n, width, of_clusters) in products {
                let symbol = match of_clusters.filter(|_| rows > 16) {
                    Some(columns) => format!("{name}_clusters_{columns}"),
                    None => format!("{name}_{width}_{tiles}"),
                };
                assert_eq!(skinny(name, rows, n), symbol);
            }
        }
        let attention = |sizes: &[(&str, u64)]| {
            let sizes = Sizes::new(sizes.iter().map(|(name, size)| (name.to_string(), *size))).unwrap();
            let examples = attention::FOLDER.examples_with_sizes(&sizes).unwrap();
            let launch = &examples.iter().find(|e| e.launch.kernel.name == "attention_bwd_bf16").unwrap().launch;
            (launch.kernel.plan)(&launch.params, &Arch::H100)[1].symbol
        };
        for tokens in [1024, 2048, 4096, 8192, 16384] {
            assert_eq!(attention(&[("tokens", tokens)]), "attention_bwd_bf16_wgmma_128");
        }
        for (tokens, symbol) in [(4096, "attention_bwd_bf16_dkv_72"), (8192, "attention_bwd_bf16_all_72")] {
            assert_eq!(attention(&[("tokens", tokens), ("head_dim", 72)]), symbol);
        }
        let vision = [("tokens", 2048), ("head_dim", 80), ("heads", 16), ("kv_heads", 16), ("causal", 0), ("seqs", 32)];
        assert_eq!(attention(&vision), "attention_bwd_bf16_all_80_by_64");
    }

    #[test]
    fn a_plan_is_that_of_one_variant_and_variants_differ() {
        let folder: &KernelFolder = &attention::FOLDER;
        for tokens in [64, 512, 8192] {
            let sizes = Sizes::new([("tokens".to_string(), tokens)]).unwrap();
            let examples = folder.examples_with_sizes(&sizes).unwrap();
            let launch = &examples.iter().find(|e| e.launch.kernel.name == "attention_bwd_bf16").unwrap().launch;
            let symbols = |kernel: &Kernel| {
                let stages = (kernel.plan)(&launch.params, &Arch::H100);
                stages.iter().map(|s| s.symbol).collect::<Vec<_>>()
            };
            let all: Vec<_> = variants_of(launch.kernel).map(|v| symbols(v.kernel)).collect();
            assert_eq!(all.iter().filter(|v| **v == symbols(launch.kernel)).count(), 1, "{tokens}: {all:?}");
            assert!(all[0] != all[1] && all[1] != all[2] && all[0] != all[2], "{all:?}");
        }
    }
}
