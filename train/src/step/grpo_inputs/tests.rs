//! Compares losses, clip ratios and gradients with TRL's (`tests/golden/grpo_loss/trl.json`).

use std::collections::BTreeMap;
use std::sync::Arc;

use clap::{Args, FromArgMatches};
use reel_device::SimOptions;
use reel_device::compile::skip_without_nvrtc;
use reel_input::ModelInput;
use reel_runtime::{Cx, Grads, ops};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::*;
use crate::rollout::Prompt;

#[derive(Deserialize)]
struct Golden {
    vocab: usize,
    temperature: f32,
    max_completion_length: usize,
    micro_batches: Vec<Vec<Completion>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Completion {
    logits: Vec<Vec<f32>>,
    ids: Vec<u32>,
    old: Vec<f32>,
    sampled: Vec<f32>,
    #[serde(rename = "ref")]
    reference: Vec<f32>,
    advantage: f32,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    options: Map<String, Value>,
    first_step: bool,
    micro_batches: Vec<Expected>,
}

#[derive(Deserialize)]
struct Expected {
    loss: f64,
    clip_ratio: f64,
    gradient: Vec<Vec<f32>>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../../../../tests/golden/grpo_loss/trl.json")).unwrap()
}

/// The options with TRL's names and values `given`.
fn options(golden: &Golden, given: &Map<String, Value>) -> GrpoOptions {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), String::from);
    let given = given.iter().map(|(name, value)| format!("--{}={}", name.replace('_', "-"), text(value)));
    let size = golden.micro_batches[0].len();
    let sizes = [
        format!("--num-generations={size}"),
        format!("--per-device-train-batch-size={size}"),
        format!("--max-completion-length={}", golden.max_completion_length),
    ];
    let command = GrpoOptions::augment_args(clap::Command::new("grpo"));
    let args = ["grpo".to_string()].into_iter().chain(sizes).chain(given);
    GrpoOptions::from_arg_matches(&command.try_get_matches_from(args).unwrap()).unwrap()
}

fn group(completions: &[Completion]) -> Rollout {
    let tokens = |c: &Completion| CompletionTokens {
        ids: c.ids.clone(),
        learned_len: c.ids.len(),
        log_probs: c.sampled.clone(),
        ..CompletionTokens::default()
    };
    let prompt = Arc::new(Prompt::from_model_input(ModelInput::default()));
    let mut group = Rollout::with_rewards(prompt, completions.iter().map(tokens).collect(), Vec::new());
    group.scores.advantage = completions.iter().map(|c| c.advantage).collect();
    group
}

/// Returns the loss, the clip ratio and the gradient of the logits of micro-batch `i`.
fn micro_batch(device: &Device, golden: &Golden, rules: &LossRules<'_>, i: usize, first: bool) -> (f64, f64, Vec<f32>) {
    let (of_batch, v) = (&golden.micro_batches[i], golden.vocab);
    let tensor =
        |shape: &[usize], x: &[f32]| Tensor::from_f32(device, shape, DType::F32, x, MemoryCategory::Weights).unwrap();
    let logits: Vec<f32> = of_batch.iter().flat_map(|c| c.logits.concat()).collect();
    let logits = tensor(&[logits.len() / v, v], &logits).into_parameter("logits").unwrap();
    let identity: Vec<f32> = (0..v * v).map(|i| if i % (v + 1) == 0 { 1.0 } else { 0.0 }).collect();
    let targets: Vec<i32> = of_batch.iter().flat_map(|c| c.ids.iter().map(|&id| id as i32)).collect();
    let targets = Tensor::from_i32(device, &[targets.len()], &targets).unwrap();
    let cx = Cx::training(device, DType::F32);
    let hidden = logits.reshape(logits.shape()).unwrap();
    let (log_probs, entropy) = ops::linear_log_prob_with_entropy(
        &cx,
        &hidden,
        &tensor(&[v, v], &identity),
        &targets,
        1.0 / golden.temperature,
    )
    .unwrap();
    let lengths: Vec<usize> = of_batch.iter().map(|c| c.ids.len()).collect();
    let completions = CuSeqlens::from_lengths(device, &lengths).unwrap();
    let old: Vec<f32> = of_batch.iter().flat_map(|c| c.old.clone()).collect();
    let reference: Vec<f32> = of_batch.iter().flat_map(|c| c.reference.clone()).collect();
    let old = Some(old.as_slice()).filter(|_| !first);
    let mut inputs = rules.inputs(device, &[group(of_batch)], &completions, (old, Some(&reference))).unwrap();
    let entropies = entropy.to_f32().unwrap();
    inputs.entropy = rules.entropy_term(entropy, &entropies);
    let (loss, stats) = ops::grpo_loss(&cx, &log_probs, &inputs).unwrap();
    let mut grads = Grads::new();
    cx.backward(&loss, 1.0, &mut grads).unwrap();
    let stats = stats.to_f32().unwrap();
    let (rows, _) = stats.as_chunks::<4>();
    let clip_ratio = match rules.options.importance_sampling_level {
        ImportanceSamplingLevel::Sequence => rows.iter().filter(|row| row[2] > 0.0).count() as f64 / rows.len() as f64,
        _ => rows.iter().map(|row| f64::from(row[2])).sum::<f64>() / targets.count() as f64,
    };
    (loss.to_f32().unwrap()[0].into(), clip_ratio, grads.get("logits").unwrap().to_f32().unwrap())
}

/// Checks all cases on `device`. Returns for each the largest differences of the losses and of the gradients.
fn differences(device: &Device, golden: &Golden) -> BTreeMap<String, [f64; 2]> {
    let groups: Vec<Rollout> = golden.micro_batches.iter().map(|batch| group(batch)).collect();
    let of_case = |case: &Case| {
        let options = options(golden, &case.options);
        options.variants.validate().unwrap();
        let rules = LossRules { options: &options, weights: LossWeights::new(&options, &groups) };
        let mut largest = [0.0f64; 2];
        for (i, expected) in case.micro_batches.iter().enumerate() {
            let (loss, clip_ratio, gradient) = micro_batch(device, golden, &rules, i, case.first_step);
            let want = expected.gradient.concat();
            assert!(want.len() == gradient.len() && want.iter().any(|g| *g != 0.0), "{}", case.name);
            assert!((clip_ratio - expected.clip_ratio).abs() <= 1e-6, "{}: clip ratio {clip_ratio}", case.name);
            let of_gradient = want.iter().zip(&gradient).map(|(want, got)| f64::from((want - got).abs()));
            largest = [largest[0].max((loss - expected.loss).abs()), of_gradient.fold(largest[1], f64::max)];
        }
        (case.name.clone(), largest)
    };
    golden.cases.iter().map(of_case).collect()
}

#[test]
fn losses_and_gradients_equal_trl() {
    let golden = golden();
    assert!(golden.cases.len() >= 30);
    for (name, [loss, gradient]) in differences(&Device::cpu(1), &golden) {
        println!("{name}: loss {loss:.1e}, gradient {gradient:.1e}");
        assert!(loss <= 4e-7 && gradient <= 2e-7, "{name}: {loss:.1e}, {gradient:.1e}");
    }
}

#[test]
fn simulated_losses_and_gradients_equal_trl() {
    let Some(()) = skip_without_nvrtc() else { return };
    let mut golden = golden();
    golden.cases.retain(|case| ["all", "sequence_entropy", "sequence_mask_first_step"].contains(&case.name.as_str()));
    assert_eq!(golden.cases.len(), 3);
    let device = Device::sim(SimOptions { threads: 1, ..Default::default() }).unwrap();
    for (name, [loss, gradient]) in differences(&device, &golden) {
        assert!(loss <= 4e-7 && gradient <= 2e-7, "{name}: {loss:.1e}, {gradient:.1e}");
    }
}

/// Completions of a `--rollouts` file have no sampled log-probabilities, and neither have offline answers.
#[test]
fn completions_that_were_not_sampled_are_not_corrected() {
    let golden = golden();
    let device = Device::cpu(1);
    let given = |text: &str| options(&golden, &serde_json::from_str(text).unwrap());
    let (plain, corrected) = (given("{}"), given(r#"{"vllm_importance_sampling_mode": "token_truncate"}"#));
    let mut groups = vec![group(&golden.micro_batches[0])];
    let correction = |options: &GrpoOptions, groups: &[Rollout]| {
        let rules = LossRules { options, weights: LossWeights::new(options, groups) };
        let lengths: Vec<usize> = learned_lens(groups).collect();
        let completions = CuSeqlens::from_lengths(&device, &lengths).unwrap();
        let of_rules = rules.inputs(&device, groups, &completions, (None, None)).unwrap().correction;
        of_rules.map(|correction| correction.sampled_log_probs.to_f32().unwrap())
    };
    assert_eq!(correction(&plain, &groups), None);
    groups[0].completions[1].log_probs.clear();
    let sampled = correction(&corrected, &groups).unwrap();
    let first = groups[0].completions[0].ids.len();
    let second = first + groups[0].completions[1].ids.len();
    assert_eq!(sampled[..first], golden.micro_batches[0][0].sampled[..]);
    assert!(sampled[first..second].iter().all(|x| x.is_nan()) && sampled[second..].iter().all(|x| x.is_finite()));
    groups[0].completions.iter_mut().for_each(|completion| completion.log_probs.clear());
    assert_eq!(correction(&corrected, &groups), None);
}

#[test]
fn least_entropy_is_the_quantile_of_torch() {
    let entropies = [0.5, 0.1, 0.9, 0.3, 0.7, 0.2];
    assert_eq!(least_entropy(&entropies, 1.0), f32::NEG_INFINITY);
    assert_eq!(least_entropy(&[], 0.5), f32::NEG_INFINITY);
    assert_eq!(least_entropy(&entropies, 0.0), 0.9);
    // The quantile 0.8 of six values is the fifth.
    assert_eq!(least_entropy(&entropies, 0.2), 0.7);
    assert!((least_entropy(&entropies, 0.5) - 0.4).abs() < 1e-7);
}
