use crate::options::GradientCheckpointing::{self, Full, Selective};
use crate::options::{EvaluationOptions, Optim, RunOptions};
use reel_device::Kernels;
use reel_input::MediaOptions;

use super::*;
use crate::runs::testing::golden;
use crate::setup::{ReportSetup, SftSetup};

fn config() -> ModelConfig {
    ModelConfig::open(&golden("model_a")).unwrap()
}

/// Plans a run and does the run. Returns the plan and the run's summary, so that tests can compare the two memory
/// peaks.
fn both(dtype: DType, change: impl Fn(&mut SftOptions)) -> (Plan, sft::RunSummary) {
    let dir = tempfile::tempdir().unwrap();
    let run = RunOptions {
        model: golden("model_a").display().to_string(),
        data: golden("sft_all_tokens/data.jsonl"),
        out: dir.path().join("out"),
        gradient_checkpointing: Full,
        ..Default::default()
    };
    let mut options = SftOptions { run, ..Default::default() };
    change(&mut options);
    let model = golden("model_a");
    let media = MediaOptions { profile: reel_input::media::profile::MediaProfile::VideorftTrain, ..Default::default() };
    let (device, never) = (Device::cpu(2), AtomicBool::new(false));
    let setup = SftSetup {
        options: &options,
        data: DataSetup { model: &model, media: &media, seed: 3 },
        trainer: TrainerSetup::new(&device, dtype),
        reports: ReportSetup::quiet(&serde_json::Value::Null),
        control: RunControl::one_process(&never),
    };
    let plan = plan_run_on_data(&options, &setup.data, &setup.trainer, stored_weights(&model, &config())).unwrap();
    (plan, sft::run(&setup).unwrap())
}

#[test]
fn a_run_needs_what_its_plan_says() {
    type Change = fn(&mut SftOptions);
    let cases: [(&str, DType, Change); 10] = [
        ("f32", DType::F32, |_| ()),
        ("norms again", DType::BF16, |o| o.gradient_checkpointing = Selective),
        ("bf16", DType::BF16, |o| o.per_device_train_batch_size = 3),
        ("kept", DType::F32, |o| o.gradient_checkpointing = GradientCheckpointing::None),
        ("frozen", DType::BF16, |o| o.freeze_vision = true),
        ("adapter", DType::F32, |o| o.lora_r = 4),
        ("adapter of both towers", DType::BF16, |o| {
            (o.lora_r, o.lora_target_modules) = (2, Some(vec!["all-linear".into()]));
        }),
        ("packed", DType::F32, |o| (o.packing, o.max_length) = (true, Some(140))),
        ("moments of bf16", DType::BF16, |o| o.optim = Optim::AdamwBf16),
        ("moments of 8 bits", DType::F32, |o| o.optim = Optim::Adamw8bit),
    ];
    for (name, dtype, change) in cases {
        let (plan, run) = both(dtype, change);
        let last = run.last.unwrap();
        assert_eq!(plan.steps, run.steps, "{name}");
        assert_eq!(plan.memory.peak as u64, last.peak_bytes, "{name}: {:?}", plan.memory);
        let parts: usize = plan.memory.at_peak.iter().map(|(_, bytes)| bytes).sum();
        assert_eq!(parts, plan.memory.peak, "{name}");
    }
}

/// Checks that the plan's peak is that of the evaluation if an evaluation needs more memory than a step, as with long
/// answers.
#[test]
fn an_evaluation_that_needs_more_than_a_step_is_counted() {
    const TOKENS: usize = 100_000;
    let plan = |eval_batch_size: Option<usize>, eval_max_new_tokens: usize| {
        let evaluation = EvaluationOptions {
            eval_steps: u64::from(eval_batch_size.is_some()),
            eval_benchmark: Some("mmvu".into()),
            eval_data: Some("bench".into()),
            eval_batch_size,
            eval_max_new_tokens,
            ..EvaluationOptions::default()
        };
        let evaluation = if evaluation.has_benchmarks() { evaluation } else { EvaluationOptions::default() };
        let run = RunOptions { lora_r: 2, freeze_vision: true, evaluation, ..Default::default() };
        let options = SftOptions { run, ..Default::default() };
        let shape = RowShape { tokens: 64, video_grid_thw: Vec::new() };
        let (config, device) = (config(), Device::dry(Kernels::Cpu));
        plan_rows_of_one_size(&options, &config, StoredDType::F32.into(), DType::F32, &shape, &device).unwrap()
    };
    let (without, small, large) = (plan(None, 1), plan(Some(1), 1), plan(Some(1), TOKENS));
    assert_eq!(small.memory, without.memory, "an evaluation that needs less than a step");
    let with_all = |plan: &Plan| plan.divided.memory_with_all.as_ref().map(|memory| memory.peak);
    assert!(with_all(&without).is_none() && with_all(&small).is_some_and(|peak| peak < small.memory.peak));
    assert_eq!(with_all(&large), Some(large.memory.peak));
    let text = config().text;
    let keys = TOKENS * 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * DType::F32.size();
    assert!(large.memory.peak > keys && large.memory.peak > without.memory.peak, "{:?}", large.memory);
    assert_eq!((&large.phases, large.steps), (&without.phases, without.steps));
}

#[test]
fn operations_follow_the_tokens() {
    let plan = |tokens, patches, checkpointing| {
        let options = SftOptions {
            run: RunOptions {
                gradient_accumulation_steps: 1,
                gradient_checkpointing: checkpointing,
                ..Default::default()
            },
            ..Default::default()
        };
        let shape = RowShape::new(tokens, patches, &config()).unwrap();
        let plan = plan_rows_of_one_size(
            &options,
            &config(),
            StoredDType::F32.into(),
            DType::F32,
            &shape,
            &Device::dry(Kernels::Cpu),
        )
        .unwrap();
        assert_eq!((plan.steps, plan.tokens as usize), (1, tokens));
        plan
    };
    let products = |plan: &Plan| {
        let is_product = |name: &str| ["matmul", "linear_log_prob"].iter().any(|family| name.starts_with(family));
        plan.phases.0[0].1.iter().filter(|(name, _)| is_product(name)).map(|(_, op)| op.cost.flops).sum::<f64>()
    };
    let per_token =
        |checkpointing| (products(&plan(400, 0, checkpointing)) - products(&plan(200, 0, checkpointing))) / 200.0;
    // Per weight and token, the forward pass does 2 operations and the backward pass 4. Full gradient checkpointing
    // repeats the forward pass of the layers, which then do 8 in total. The output head always does 6, because the
    // CPU keeps few logits.
    let layers = 2.0 * (64.0 * (64.0 + 2.0 * 32.0) + 64.0 * 64.0 + 3.0 * 64.0 * 96.0);
    let head = 64.0 * 432.0;
    let (kept, again) = (6.0 * (layers + head), 8.0 * layers + 6.0 * head);
    for (got, want) in
        [(per_token(GradientCheckpointing::None), kept), (per_token(Selective), kept), (per_token(Full), again)]
    {
        assert!((got / want - 1.0).abs() < 1e-9, "{got} {want}");
    }
    assert!(products(&plan(2000, 4096, Full)) > products(&plan(2000, 0, Full)));
}

/// Returns the number of launches of each kernel in one step on a GPU, for one row of 400 tokens with a video of 64
/// patches.
fn launches_of_a_step(optim: Optim, dtype: DType, lora_r: usize) -> BTreeMap<&'static str, u64> {
    let options = SftOptions {
        run: RunOptions { optim, lora_r, gradient_accumulation_steps: 1, ..Default::default() },
        ..Default::default()
    };
    let (shape, device) = (RowShape::new(400, 64, &config()).unwrap(), Device::dry(Kernels::Cuda));
    let plan = plan_rows_of_one_size(&options, &config(), StoredDType::Bf16.into(), dtype, &shape, &device).unwrap();
    plan.phases.0[0].1.iter().map(|(name, op)| (*name, op.launches)).collect()
}

#[test]
fn the_optimizer_has_three_launches_for_any_number_of_tensors() {
    for optim in [Optim::Adamw, Optim::AdamwBf16, Optim::Adamw8bit] {
        for (dtype, lora_r) in [(DType::F32, 0), (DType::BF16, 0), (DType::BF16, 4)] {
            let launches = launches_of_a_step(optim, dtype, lora_r);
            let is_of_optimizer = |name: &str| name.starts_with("adamw") || ["sum_squares", "clip"].contains(&name);
            let optimizer: Vec<_> = launches.iter().filter(|(name, _)| is_of_optimizer(name)).collect();
            assert!(
                optimizer.len() == 3 && optimizer.iter().all(|(_, n)| **n == 1),
                "{optim:?} {dtype}: {optimizer:?}"
            );
        }
    }
}

#[test]
fn planned_videos_have_even_sides_and_all_patches() {
    for patches in [4, 8, 32, 4096, 16 * 52, 4 * 97] {
        let shape = RowShape::new(5000, patches, &config()).unwrap();
        let [t, h, w] = shape.video_grid_thw[0];
        assert_eq!((t * h * w, h % 2, w % 2), (patches, 0, 0), "{:?}", shape.video_grid_thw);
    }
    assert_eq!(RowShape::new(5000, 4096, &config()).unwrap().video_grid_thw, [[8, 16, 32]]);
    for (tokens, patches) in [(100, 6), (10, 40)] {
        let e = RowShape::new(tokens, patches, &config()).unwrap_err();
        assert!(e.is_usage_error() && e.to_string().starts_with("--vision-patches: "), "{e}");
    }
}

#[test]
fn the_published_sizes_are_planned_without_memory_or_weights() {
    let options = SftOptions { packing: true, max_length: Some(4000), ..Default::default() };
    let config = config();
    let shape = RowShape::new(1300, 4096, &config).unwrap();
    let plan = plan_rows_of_one_size(
        &options,
        &config,
        StoredDType::Bf16.into(),
        DType::BF16,
        &shape,
        &Device::dry(Kernels::Cuda),
    )
    .unwrap();
    // A micro-batch of at most 4000 tokens has 3 rows of 1300 tokens; a step has 2 micro-batches.
    assert_eq!(plan.tokens, 2 * 3 * 1300);
    let e = plan_rows_of_one_size(
        &options,
        &config,
        StoredDType::Bf16.into(),
        DType::BF16,
        &RowShape::new(4001, 0, &config).unwrap(),
        &Device::dry(Kernels::Cuda),
    )
    .unwrap_err();
    assert!(e.to_string().contains("more than --max-length 4000"), "{e}");
}
