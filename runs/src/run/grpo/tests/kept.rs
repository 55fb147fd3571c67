//! Tests training steps that reuse the outputs of the rollout's matrix products instead of computing them again.

use proptest::prelude::*;
use reel_train::metrics::StepMetrics;
use reel_train::options::GradientCheckpointing;

use super::live::case;
use super::*;
use crate::testing::metrics_without_times;

/// A reward command whose rewards differ between completions: the length of the JSON row.
const REWARD: &str = "while read -r line; do echo ${#line}; done";

/// Does a run of two steps on a text row; returns the number of matrix products in the policy's forward passes.
fn forward_products(dir: &Path, change: impl FnOnce(&mut GrpoOptions)) -> usize {
    let row = live::data_rows().lines().next().unwrap().to_string();
    let case = case(dir, "out", &row).with(|o| {
        (o.max_steps, o.temporal, o.save_steps, o.overwrite) = (Some(2), false, 0, true);
        o.reward_command = vec![REWARD.into()];
        change(o);
    });
    case.device.profiler().record_timeline(true);
    case.run().unwrap();
    let events = case.device.profiler().launch_events().unwrap();
    events.iter().filter(|event| event.part == "forward" && event.name == "matmul_fwd").count()
}

#[test]
fn the_forward_pass_computes_no_product_of_the_rollout_again() {
    let dir = tempfile::tempdir().unwrap();
    let layers = reel_input::config::ModelConfig::open(&golden("model_a")).unwrap().text.num_hidden_layers;
    let products = |change: fn(&mut GrpoOptions)| forward_products(dir.path(), change);
    // With full recompute, each of the two steps computes four matrix products per layer, and those of the output
    // layer.
    let all = products(|o| o.gradient_checkpointing = GradientCheckpointing::Full);
    let none = all - 2 * 4 * layers;
    assert_eq!(products(|o| o.gradient_checkpointing = GradientCheckpointing::None), none);
    assert_eq!(products(|o| o.gradient_checkpointing = GradientCheckpointing::Selective), none);
    assert_eq!(products(|o| o.gradient_checkpointing = GradientCheckpointing::Auto), none);
    // With an adapter, each of a layer's seven linear layers does three matrix products; one of them is computed again.
    let with_adapters = |o: &mut GrpoOptions, kind| (o.lora_r, o.gradient_checkpointing) = (2, kind);
    let of_kind = |kind| forward_products(dir.path(), |o| with_adapters(o, kind));
    let all_with_adapters = of_kind(GradientCheckpointing::Full);
    assert_eq!(of_kind(GradientCheckpointing::None), all_with_adapters - 2 * 2 * 7 * layers);
    // The second step on a rollout set has other weights, so it must compute its products.
    assert_eq!(products(|o| o.num_iterations = 2), all - 4 * layers);
    // No output is kept if tokens are packed without a shared prefix, or if groups are chosen by their rewards.
    assert_eq!(products(|o| o.dynamic_sampling = true), all);
    let repeated = |o: &mut GrpoOptions, kind| (o.shared_prefix, o.gradient_checkpointing) = (false, kind);
    let of_kind = |kind| forward_products(dir.path(), |o| repeated(o, kind));
    assert_eq!(of_kind(GradientCheckpointing::None), of_kind(GradientCheckpointing::Full));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    /// A run that reuses the matrix products of its rollouts gives the same bits as a run that computes them again.
    #[test]
    fn runs_have_the_bits_of_computed_products(
        bf16: bool,
        generations in 2usize..5,
        groups_at_a_time in 1usize..3,
        micro_batches in 1usize..3,
        lengths in (1usize..14, 0usize..14),
        (mask, temporal, selective, lora) in any::<(bool, bool, bool, bool)>(),
        seed in 0u64..1000,
    ) {
        let dir = tempfile::tempdir().unwrap();
        // One of the prompts is long enough to be prefilled in several chunks.
        let long = "Count to ten. ".repeat(60);
        let row = json!({"prompt": [{"role": "user", "content": long}], "problem_type": "numerical", "solution": "4"});
        let rows = format!("{}\n{row}", live::data_rows());
        let run = |out: &str, kind: GradientCheckpointing| {
            let case = case(dir.path(), out, &rows).with(|o| {
                (o.num_generations, o.per_device_train_batch_size) = (generations, generations * groups_at_a_time);
                (o.gradient_accumulation_steps, o.max_steps) = (micro_batches, Some(2));
                (o.max_completion_length, o.min_completion_length) = (lengths.0.max(lengths.1), lengths.1);
                (o.mask_truncated_completions, o.temporal, o.lora_r) = (mask, temporal, if lora { 2 } else { 0 });
                (o.gradient_checkpointing, o.save_steps, o.reward_command) = (kind, 0, vec![REWARD.into()]);
            });
            let dtype = if bf16 { DType::BF16 } else { DType::F32 };
            Case { dtype, seed, ..case }.run().unwrap();
            let lines = metrics_without_times(&dir.path().join(out)).into_iter();
            lines.map(|line| StepMetrics { peak_bytes: 0, ..line }).collect::<Vec<_>>()
        };
        let kept = run("kept", if selective { GradientCheckpointing::Selective } else { GradientCheckpointing::None });
        prop_assert_eq!(kept, run("computed", GradientCheckpointing::Full));
    }
}
