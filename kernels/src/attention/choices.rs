//! What plans of attention choose by architecture, and the variants among which they choose.

use super::{
    BWD_BF16, BWD_BF16_64_KEYS, BWD_BF16_128_KEYS, BWD_BF16_SEPARATE_DQ, BWD_BF16_WGMMA, FWD_BF16, FWD_BF16_MMA,
    FWD_BF16_WGMMA,
};
use crate::Arch;
use crate::tuning::{Variant, choices_of};

/// What plans choose on an architecture.
pub(crate) struct Choices {
    /// Attention in bf16 with head_dim 64, 80 and 128: whether the forward pass and the prefill of
    /// [`crate::paged_attention`] run by products of warpgroups and its decode by tiles of rows, all in the order of
    /// sums of `attention/row_state.cuh`. Otherwise they run by products of warps, in the order of
    /// `cuh/online_softmax.cuh`.
    pub(crate) by_warpgroups: bool,
    /// Backward pass on tensor cores: tiles of 128 keys instead of 64 if there are at least this many blocks of threads
    /// with 128 keys for two multiprocessors. Tiles of 128 keys read the queries and pass on the sums of dq half as
    /// often.
    pub(super) bwd_wide_blocks_per_2_multiprocessors: u64,
    /// Backward pass on tensor cores: `dq` in a stage of its own for calls of up to this many tokens, if a sequence has
    /// more than 64. With few tokens, few blocks pass on the sums of dq, one after the other.
    pub(super) bwd_separate_dq_max_tokens: u32,
    /// Backward pass: the head_dims for which products of warpgroups compute it, if a sequence has at least
    /// `bwd_wgmma_min_seqlen` tokens.
    pub(super) bwd_wgmma_head_dims: &'static [u32],
    /// Minimum length of the longest sequence for products of warpgroups in the backward pass. They have tiles of 128
    /// keys, so those of windows of 64 tokens would be half empty.
    pub(super) bwd_wgmma_min_seqlen: u32,
}

/// The choices by compute capability.
///
/// Those of 8.0 follow from counting: with 1.5 blocks per multiprocessor every one is busy. Those of 9.0 follow the
/// times of an H200 (`benches/results/h200/2026-11-27-kernels.json` and `2026-11-27-models.json`): gradients by
/// `mma.sync` with dq in a stage of its own take 1 / 1.32 to 1 / 1.41 of the time with up to 4096 tokens of one
/// sequence; with 8192 tokens, or in windows of 64, they take longer. That now concerns head_dim 72 and windows only:
/// by products of warpgroups a prototype for head_dim 128 had 497 to 524 TFLOP/s with 8192 tokens, `mma.sync` 228
/// (`mod.rs`). Products of warpgroups for head_dim 64 and 80 were not measured.
static TABLE: [(u32, Choices); 2] = [
    (
        80,
        Choices {
            by_warpgroups: false,
            bwd_wide_blocks_per_2_multiprocessors: 3,
            bwd_separate_dq_max_tokens: 0,
            bwd_wgmma_head_dims: &[],
            bwd_wgmma_min_seqlen: 0,
        },
    ),
    (
        90,
        Choices {
            by_warpgroups: true,
            bwd_wide_blocks_per_2_multiprocessors: 3,
            bwd_separate_dq_max_tokens: 4096,
            bwd_wgmma_head_dims: &[64, 80, 128],
            bwd_wgmma_min_seqlen: 65,
        },
    ),
];

/// The choices for a GPU of this architecture.
pub(crate) fn choices(arch: &Arch) -> &'static Choices {
    choices_of(&TABLE, arch.sm)
}

pub(super) const VARIANTS: &[Variant] = &[
    Variant { of: &FWD_BF16, name: "products of warps", kernel: &FWD_BF16_MMA },
    Variant { of: &FWD_BF16, name: "products of warpgroups", kernel: &FWD_BF16_WGMMA },
    Variant { of: &BWD_BF16, name: "tiles of 128 keys", kernel: &BWD_BF16_128_KEYS },
    Variant { of: &BWD_BF16, name: "tiles of 64 keys", kernel: &BWD_BF16_64_KEYS },
    Variant { of: &BWD_BF16, name: "dq in a stage of its own", kernel: &BWD_BF16_SEPARATE_DQ },
    Variant { of: &BWD_BF16, name: "products of warpgroups", kernel: &BWD_BF16_WGMMA },
];

#[cfg(test)]
mod tests {
    use super::super::FOLDER;
    use super::*;
    use crate::Kernel;
    use crate::folder::Sizes;
    use crate::tuning::variants_of;

    #[test]
    fn an_h100_plans_what_was_fastest_on_an_h200() {
        let attention = |sizes: &[(&str, u64)]| {
            let sizes = Sizes::new(sizes.iter().map(|(name, size)| (name.to_string(), *size))).unwrap();
            let examples = FOLDER.examples_with_sizes(&sizes).unwrap();
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
        for tokens in [64, 512, 8192] {
            let sizes = Sizes::new([("tokens".to_string(), tokens)]).unwrap();
            let examples = FOLDER.examples_with_sizes(&sizes).unwrap();
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
