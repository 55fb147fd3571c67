//! The attention kernels that a plan chooses for each GPU architecture, and the variants that it chooses from.

use reel_device::Arch;

use super::{
    BWD_BF16, BWD_BF16_EARLY, BWD_BF16_MMA, BWD_BF16_WGMMA, FWD_BF16, FWD_BF16_MMA, FWD_BF16_WGMMA,
    FWD_BF16_WGMMA_EVICT_NORMAL,
};
use crate::tuning::{Variant, choices_for_sm};

/// The kernels that attention plans choose on one GPU architecture.
pub(crate) struct PlanChoices {
    /// Whether attention in bf16 with head_dim 64, 72, 80 and 128 uses wgmma. If true, the forward pass and the prefill
    /// of [`crate::paged_attention`] use wgmma, the decode of paged attention uses tiles of rows, and all three sum
    /// in the order of `attention/row_state.cuh`. If false, they use mma.sync and sum in the order of
    /// `cuh/online_softmax.cuh`.
    pub(crate) by_warpgroups: bool,
    /// The head_dims whose backward pass uses wgmma, if a sequence has at least `bwd_wgmma_min_seqlen` tokens.
    pub(super) bwd_wgmma_head_dims: &'static [u32],
    /// The backward pass uses wgmma if the longest sequence has at least this many tokens. The tiles of wgmma have
    /// 128 keys, so windows of 64 tokens would leave half of a tile empty.
    pub(super) bwd_wgmma_min_seqlen: u32,
}

/// The choices by compute capability. Gradients with head_dim 128 and 8192 tokens on an H200: a prototype with wgmma
/// reached 497 to 524 TFLOP/s, mma.sync 207 TFLOP/s. The gradients with head_dim 64, 72 and 80 were not measured.
static TABLE: [(u32, PlanChoices); 2] = [
    (80, PlanChoices { by_warpgroups: false, bwd_wgmma_head_dims: &[], bwd_wgmma_min_seqlen: 0 }),
    (90, PlanChoices { by_warpgroups: true, bwd_wgmma_head_dims: &[64, 72, 80, 128], bwd_wgmma_min_seqlen: 65 }),
];

/// Returns the plan choices for a GPU of this architecture.
pub(crate) fn plan_choices(arch: &Arch) -> &'static PlanChoices {
    choices_for_sm(&TABLE, arch.sm)
}

pub(super) const VARIANTS: &[Variant] = &[
    Variant { of: &FWD_BF16, name: "products of warps", kernel: &FWD_BF16_MMA },
    Variant { of: &FWD_BF16, name: "products of warpgroups", kernel: &FWD_BF16_WGMMA },
    Variant { of: &FWD_BF16, name: "products of warpgroups, no hint for L2", kernel: &FWD_BF16_WGMMA_EVICT_NORMAL },
    Variant { of: &BWD_BF16, name: "products of warps", kernel: &BWD_BF16_MMA },
    Variant { of: &BWD_BF16, name: "products of warpgroups", kernel: &BWD_BF16_WGMMA },
    Variant { of: &BWD_BF16, name: "products of warpgroups, early exponentials of dq", kernel: &BWD_BF16_EARLY },
];

#[cfg(test)]
mod tests {
    use reel_device::Kernel;

    use super::super::FOLDER;
    use super::*;
    use crate::catalogue::variants_of;
    use crate::folder::Sizes;

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
        assert_eq!(attention(&[("tokens", 8192), ("head_dim", 72)]), "attention_bwd_bf16_wgmma_72");
        let vision = [("tokens", 2048), ("head_dim", 80), ("heads", 16), ("kv_heads", 16), ("causal", 0), ("seqs", 32)];
        assert_eq!(attention(&vision), "attention_bwd_bf16_dkv_80");
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
            assert!(all.len() == 3 && all[0] != all[1] && all[1] != all[2] && all[0] != all[2], "{all:?}");
        }
    }
}
