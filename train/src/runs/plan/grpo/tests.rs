use std::path::Path;
use std::sync::atomic::AtomicBool;

use crate::options::GradientCheckpointing;
use crate::options::{Optim, RunOptions};
use reel_device::Kernels;
use reel_input::MediaOptions;
use reel_input::tensor_file::StoredDType;

use super::*;
use crate::runs::plan::stored_weights;
use crate::runs::testing::golden;
use crate::setup::{GrpoSetup, ReportSetup, RunControl};

/// Returns the options of a run on three rows: one with text only, one with a video, one with an image. All
/// completions have the maximum length.
fn options(dir: &Path) -> GrpoOptions {
    let frames =
        "[\"media/frames/000.png\", \"media/frames/001.png\", \"media/frames/002.png\", \"media/frames/003.png\"]";
    let rows = [
        "\"2 + 2?\"".to_string(),
        format!("[{{\"type\": \"video\", \"video\": {frames}}}, {{\"type\": \"text\", \"text\": \"Where?\"}}]"),
        "[{\"type\": \"image\", \"image\": \"media/b.png\"}, {\"type\": \"text\", \"text\": \"What?\"}]".to_string(),
    ];
    let row = |content: &String| {
        format!(
            "{{\"prompt\": [{{\"role\": \"user\", \"content\": {content}}}], \"solution\": \"<answer>4</answer>\", \"problem_type\": \"numerical\"}}"
        )
    };
    let data = dir.join("rows.jsonl");
    std::fs::write(&data, rows.iter().map(row).collect::<Vec<_>>().join("\n")).unwrap();
    let run = RunOptions {
        model: golden("model_a").display().to_string(),
        data,
        media_root: Some(golden("../grpo/grpo_clip_iter2")),
        out: dir.join("out"),
        per_device_train_batch_size: 4,
        gradient_accumulation_steps: 1,
        max_steps: Some(3),
        gradient_checkpointing: GradientCheckpointing::Full,
        ..Default::default()
    };
    GrpoOptions {
        run,
        num_generations: 4,
        max_completion_length: 6,
        min_completion_length: 6,
        mask_truncated_completions: false,
        ..Default::default()
    }
}

#[test]
fn plan_equals_the_peak_of_a_run() {
    type Change = fn(&mut GrpoOptions);
    let cases: [(&str, DType, Change); 14] = [
        ("f32", DType::F32, |_| ()),
        ("shuffled films too", DType::F32, |o| o.temporal = true),
        ("bf16 with small moments", DType::BF16, |o| o.optim = Optim::AdamwBf16),
        ("no reference", DType::BF16, |o| o.beta = 0.0),
        ("two steps on a set", DType::F32, |o| o.num_iterations = 2),
        ("two groups at a time, twice", DType::F32, |o| {
            (o.per_device_train_batch_size, o.gradient_accumulation_steps, o.max_steps) = (8, 2, Some(2));
        }),
        ("prompts of their own", DType::F32, |o| o.shared_prefix = false),
        ("adapter", DType::F32, |o| o.lora_r = 4),
        ("frozen tower", DType::BF16, |o| o.freeze_vision = true),
        ("a reward model", DType::F32, |o| o.siglip = Some(golden("../siglip/model"))),
        ("products of the rollout", DType::F32, |o| o.gradient_checkpointing = GradientCheckpointing::None),
        ("products of two groups, twice", DType::BF16, |o| {
            (o.per_device_train_batch_size, o.gradient_accumulation_steps, o.max_steps) = (8, 2, Some(2));
            (o.gradient_checkpointing, o.temporal) = (GradientCheckpointing::Selective, true);
        }),
        ("products with adapters", DType::BF16, |o| {
            (o.gradient_checkpointing, o.lora_r) = (GradientCheckpointing::None, 4);
        }),
        ("products of the first of two steps", DType::F32, |o| {
            (o.gradient_checkpointing, o.num_iterations) = (GradientCheckpointing::None, 2);
        }),
    ];
    for (name, dtype, change) in cases {
        let dir = tempfile::tempdir().unwrap();
        let mut options = options(dir.path());
        change(&mut options);
        let (model, device, never) = (golden("model_a"), Device::cpu(2), AtomicBool::new(false));
        let media =
            MediaOptions { profile: reel_input::media::profile::MediaProfile::VideorftTrain, ..Default::default() };
        let setup = GrpoSetup {
            options: &options,
            data: DataSetup { model: &model, media: &media, seed: 3 },
            trainer: TrainerSetup::new(&device, dtype),
            reports: ReportSetup::quiet(&serde_json::Value::Null),
            control: RunControl::one_process(&never),
        };
        let config = ModelConfig::open(&model).unwrap();
        let plan = plan_run_on_data(&options, &setup.data, &setup.trainer, stored_weights(&model, &config)).unwrap();
        let last = crate::runs::run::grpo::run(&setup).unwrap().last.unwrap();
        assert_eq!(plan.memory.peak as u64, last.peak_bytes, "{name}: {:?}", plan.memory);
        let parts: usize = plan.memory.at_peak.iter().map(|(_, bytes)| bytes).sum();
        assert_eq!(parts, plan.memory.peak, "{name}");
    }
}

fn config() -> ModelConfig {
    ModelConfig::open(&golden("model_a")).unwrap()
}

fn shaped(tokens: usize, patches: usize, change: impl FnOnce(&mut GrpoOptions)) -> Result<Plan> {
    let mut options = GrpoOptions { max_completion_length: 32, ..Default::default() };
    change(&mut options);
    let shape = RowShape::new(tokens, patches, &config())?;
    plan_rows_of_one_size(
        &options,
        &config(),
        StoredDType::Bf16.into(),
        DType::BF16,
        &shape,
        &Device::dry(Kernels::Cuda),
    )
}

fn flops(plan: &Plan, phase: &str) -> f64 {
    let ops = plan.phases.0.iter().find(|(name, _)| *name == phase).unwrap_or_else(|| panic!("no {phase}"));
    ops.1.values().map(|op| op.cost.flops).sum()
}

#[test]
fn phases_are_those_of_the_work() {
    let plan = shaped(100, 64, |_| ()).unwrap();
    let names: Vec<&str> = plan.phases.0.iter().map(|p| p.0).filter(|name| !name.is_empty()).collect();
    assert_eq!(names, ["prefill", "decode", "reference", "forward", "backward", "optimizer"]);
    // Each of the 8 completions decodes 31 tokens after its first token, or 62 if the maximum length is 63.
    let more = shaped(100, 64, |o| o.max_completion_length = 63).unwrap();
    let ratio = flops(&more, "decode") / flops(&plan, "decode");
    assert!((1.9..2.3).contains(&ratio), "{ratio}");
    assert_eq!(flops(&more, "prefill"), flops(&plan, "prefill"));
    // With `--beta 0` there is no reference model, so the plan has neither its memory nor its forward pass.
    let alone = shaped(100, 64, |o| o.beta = 0.0).unwrap();
    assert!(!alone.phases.0.iter().any(|p| p.0 == "reference"));
    let weights = |plan: &Plan| plan.memory.at_peak[0].1;
    assert_eq!(weights(&plan), 2 * weights(&alone));
}

#[test]
fn steps_on_a_set_share_its_draws() {
    let [one, five] = [1, 5].map(|k| shaped(60, 0, |o| o.num_iterations = k).unwrap());
    assert_eq!((one.steps, five.steps, five.tokens), (1, 5, 5 * one.tokens));
    for phase in ["prefill", "decode", "reference"] {
        assert_eq!(flops(&five, phase), flops(&one, phase), "{phase}");
    }
    for phase in ["forward", "backward", "optimizer"] {
        assert!((flops(&five, phase) / flops(&one, phase) - 5.0).abs() < 1e-3, "{phase}");
    }
}

#[test]
fn temporal_reward_samples_half_as_many_completions_more() {
    let [plain, temporal] = [false, true].map(|t| shaped(100, 64, |o| o.temporal = t).unwrap());
    // With the temporal reward, completions are also sampled for each prompt with shuffled frames: twice as many
    // prompts are prefilled, and 50 % more completions are decoded.
    let ratio = flops(&temporal, "prefill") / flops(&plain, "prefill");
    assert!((1.99..=2.0).contains(&ratio), "{ratio}");
    let ratio = flops(&temporal, "decode") / flops(&plain, "decode");
    assert!((1.4..2.1).contains(&ratio), "{ratio}");
    assert_eq!(flops(&temporal, "backward"), flops(&plain, "backward"));
}

#[test]
fn senseless_sizes_are_refused() {
    let e = shaped(100, 0, |o| o.max_prompt_length = Some(99)).unwrap_err().to_string();
    assert!(e.starts_with("--tokens: has 100 tokens, more than --max-prompt-length 99"), "{e}");
    assert!(shaped(100, 0, |o| o.num_generations = 1).unwrap_err().is_usage_error());
}
