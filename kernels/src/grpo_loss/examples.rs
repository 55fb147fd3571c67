//! Example calls of this folder's kernels. `reel kernels list`, `show` and `bench` use them.

#[cfg(test)]
use crate::checks::traffic::{TrafficArrays, TrafficLaunches, allow_one_tenth_more};
use crate::folder::{LabeledLaunches, Sizes, placeholder_params};
use crate::grpo_loss;

pub(crate) fn example_calls(_: &Sizes) -> LabeledLaunches {
    let params = grpo_loss::Params {
        completions: 8,
        epsilon_low: 0.2,
        epsilon_high: 0.2,
        beta: 0.04,
        kl_limit: 10.0,
        ..placeholder_params()
    };
    vec![("8 completions of 1024 tokens", grpo_loss::loss(8 * 1024, &params))]
}

/// Returns launches on allocated arrays. A test compares the memory traffic that the simulator counts with the traffic
/// in the `Cost` of each launch.
#[cfg(test)]
pub(crate) fn traffic_launches(arrays: &mut TrafficArrays) -> TrafficLaunches {
    use bytemuck::Zeroable;
    let (tokens, completions) = (2048usize, 2u32);
    let cu_seqlens = arrays.alloc_i32([0, 1024, 2048]);
    let counted = arrays.alloc_i32([1024, 1024]);
    let [log_prob, old, sampled, reference, entropy, d_log_prob, d_entropy] =
        [(); 7].map(|()| arrays.alloc_f32(tokens));
    let [advantage, weight, stats] = [(); 3].map(|()| arrays.alloc_f32(8usize));
    let p = grpo_loss::Params {
        log_prob,
        old,
        reference,
        cu_seqlens,
        counted,
        advantage,
        weight,
        d_log_prob,
        stats,
        completions,
        epsilon_low: 0.2,
        epsilon_high: 0.2,
        beta: 0.04,
        kl_limit: 10.0,
        ..Zeroable::zeroed()
    };
    let all = grpo_loss::Params { sampled, entropy, d_entropy, ..p };
    allow_one_tenth_more([grpo_loss::loss(tokens, &p), grpo_loss::loss(tokens, &all)])
}
