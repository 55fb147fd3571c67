//! Device `cuda`: tests of its host code with a fake driver that enforces the rules of the driver API, and of the
//! binary on a GPU if there is one.

#[path = "support/bf16.rs"]
mod bf16;
#[path = "support/fake_gpu.rs"]
mod fake_gpu;
#[path = "support/hardware.rs"]
mod hardware;
mod support;
#[path = "support/tensors.rs"]
mod tensors;
#[path = "support/training.rs"]
mod training;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use reel_device::compile::toolkit::Toolkit;
use reel_device::cuda::fake::FakeDriver;
use reel_device::cuda::{Gpu, Nvidia};
use reel_device::{Arch, DType, Device, SimOptions, compile};
use reel_input::config::ModelConfig;
use reel_input::{MediaOptions, ModelInput};
use reel_model::init::{InitOptions, Preset, init_model_folder};
use reel_train::options::{GrpoOptions, RunOptions, SftOptions};
use reel_train::runs::{grpo, sft};
use reel_train::setup::{DataSetup, ReportSetup, RunControl, RunSetup, TrainerSetup};
use serde_json::Value;

use fake_gpu::assert_no_violations_or_leaks;
use support::{file_names_in, finished_run, golden, reel_on_gpu};
use tensors::{Tensor, assert_close, gathered_rows, parse_tensors, read_tensors, relative_distance};

fn fake_cuda() -> (FakeDriver, Device) {
    fake_gpu::fake_cuda(512 << 20)
}

fn simulated() -> Device {
    Device::sim(SimOptions { threads: 1, ..SimOptions::default() }).expect("a simulator")
}

/// Reads the tokens and the pixels of a case of `tests/golden/model`.
fn input_of(case: &str) -> (PathBuf, ModelInput) {
    let folder = golden("model").join(case);
    let config = ModelConfig::open(&folder.join("model")).expect("a configuration");
    let tokens = ModelInput::read(&folder.join("inputs.safetensors"), &config).expect("tokens");
    (folder.join("model"), tokens)
}

/// Computes the logits of a case of `tests/golden/model` on a device.
fn logits(device: &Device, case: &str, dtype: DType) -> Vec<f64> {
    let (model, tokens) = input_of(case);
    bf16::logits(device, &model, &tokens, dtype)
}

#[test]
fn forward_pass_on_the_fake_driver_has_the_bits_of_sim_and_breaks_no_rule() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    for dtype in [DType::F32, DType::BF16] {
        let (fake, device) = fake_cuda();
        assert!(
            logits(&device, "image_hd128_bf16", dtype) == logits(&simulated(), "image_hd128_bf16", dtype),
            "{dtype}"
        );
        drop(device);
        assert_no_violations_or_leaks(&fake, &dtype.to_string());
    }
}

/// The results of a training step: the metrics in the first line of metrics.jsonl, the bytes of the weights file, and
/// the matrix-product library (`products`) in run.json.
#[derive(Clone, PartialEq)]
struct Step {
    metrics: Value,
    weights: Vec<u8>,
    products: Value,
}

/// Where a training step runs: on a device, in a dtype, from the weights of a model folder.
type Place<'a> = (&'a Device, DType, &'a Path);

fn model_a() -> PathBuf {
    golden("train/model_a")
}

/// Runs one training step on a case of `tests/golden` in a temporary folder. `options` gets the run's options, and
/// `run` is `sft::run` or `grpo::run`. `weights` is the name of the file that the step writes.
fn step<O, S>(
    (device, dtype, model): Place,
    case: &Path,
    weights: &str,
    options: impl FnOnce(RunOptions) -> O,
    run: fn(&RunSetup<O>) -> reel_train::Result<S>,
) -> Step {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let options = options(RunOptions {
        model: model.display().to_string(),
        data: case.join("data.jsonl"),
        media_root: Some(case.to_path_buf()),
        out: out.clone(),
        learning_rate: 5e-4,
        weight_decay: 0.1,
        max_grad_norm: 0.5,
        max_steps: Some(1),
        gradient_accumulation_steps: 1,
        no_shuffle: true,
        ..RunOptions::default()
    });
    let mut media = MediaOptions::default();
    media.overrides.max_pixels = Some(12_544);
    let (resolved, stop) = (Value::Object(serde_json::Map::new()), AtomicBool::new(false));
    let setup = RunSetup {
        options: &options,
        data: DataSetup { model, media: &media, seed: 0 },
        trainer: TrainerSetup::new(device, dtype),
        reports: ReportSetup::quiet(&resolved),
        control: RunControl::one_process(&stop),
    };
    run(&setup).expect("a step");
    let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).expect("metrics.jsonl");
    let metrics: Value = serde_json::from_str(metrics.lines().next().expect("a line")).expect("JSON");
    let kept = ["loss", "grad_norm", "hash", "kl", "completion_length"].map(|key| metrics[key].clone());
    let run = std::fs::read_to_string(out.join("run.json")).expect("run.json");
    let mut run: Value = serde_json::from_str(&run).expect("JSON");
    Step {
        metrics: Value::from(kept.to_vec()),
        weights: std::fs::read(out.join(weights)).expect("weights"),
        products: run["products"].take(),
    }
}

/// Runs an SFT step with images: of all weights (`lora_r` 0), or of a LoRA adapter on every linear layer.
fn sft_step(device: &Device, dtype: DType, lora_r: usize) -> Step {
    sft_step_on((device, dtype, &model_a()), &golden("train/sft_videorft_rows"), lora_r)
}

/// Like [`sft_step`], of any model and on the rows in `case/data.jsonl`.
fn sft_step_on(place: Place, case: &Path, lora_r: usize) -> Step {
    let file = if lora_r > 0 { "adapter_model.safetensors" } else { "model.safetensors" };
    let options = |run| {
        let lora_target_modules = (lora_r > 0).then(|| vec!["all-linear".to_string()]);
        SftOptions { run: RunOptions { lora_r, lora_target_modules, ..run }, ..SftOptions::default() }
    };
    step(place, case, file, options, sft::run)
}

/// Runs a GRPO step with a reference model, on recorded completions or on completions that the policy samples.
fn grpo_step(place: Place, samples: bool) -> Step {
    let case = golden("grpo").join("grpo_videorft");
    let options = |run| GrpoOptions {
        run: RunOptions { per_device_train_batch_size: 4, ..run },
        num_generations: 4,
        // Recorded completions have up to 12 tokens. With sampling, 5 tokens suffice: a captured decode step is
        // replayed from the third token on.
        max_completion_length: if samples { 5 } else { 12 },
        rollouts: (!samples).then(|| case.join("rollouts.jsonl")),
        ..GrpoOptions::default()
    };
    step(place, &case, "model.safetensors", options, grpo::run)
}

/// Checks that a step on the fake driver has the bits of device `sim`, leaves no handle open and breaks no rule of the
/// driver API. Returns the matrix-product library in run.json.
fn check_step_on_the_fake_driver(name: &str, step: impl Fn(&Device) -> Step) -> Value {
    let (fake, device) = fake_cuda();
    let (got, want) = (step(&device), step(&simulated()));
    assert_eq!(got.metrics, want.metrics, "{name}");
    assert!(got.weights == want.weights, "{name}: the weights differ from those of device sim");
    assert_eq!(got.products["library"], "fake products 1.0.0");
    let (algorithms, hash) = (&got.products["algorithms"], &got.products["hash"]);
    assert!(algorithms.as_u64() > Some(20) && hash.as_str().is_some_and(|h| h.len() == 16), "{name}");
    assert_eq!(want.products, Value::Null);
    drop(device);
    assert_no_violations_or_leaks(&fake, name);
    got.products
}

#[test]
fn training_step_on_the_fake_driver_has_the_bits_of_sim_and_breaks_no_rule() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let [.., first] = [(DType::F32, 0), (DType::BF16, 0), (DType::BF16, 4)].map(|(dtype, lora_r)| {
        check_step_on_the_fake_driver(&format!("{dtype}, rank {lora_r}"), |device| sft_step(device, dtype, lora_r))
    });
    // A second run reports the same matrix-product library with the same chosen algorithms.
    assert_eq!(first, sft_step(&fake_cuda().1, DType::BF16, 4).products);
}

#[test]
fn grpo_step_on_the_fake_driver_has_the_bits_of_sim_and_breaks_no_rule() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    for (dtype, samples) in [(DType::F32, false), (DType::BF16, true)] {
        check_step_on_the_fake_driver(&format!("{dtype}, sampled {samples}"), |device| {
            let step = grpo_step((device, dtype, &model_a()), samples);
            assert!(step.metrics[2].as_str().is_some_and(|hash| hash.len() == 16), "{}", step.metrics);
            step
        });
    }
}

/// Runs a GRPO step on two completions that the policy samples for the row in `case/data.jsonl`.
fn grpo_step_on(case: &Path, device: &Device) -> Step {
    let options = |run| GrpoOptions {
        run: RunOptions { per_device_train_batch_size: 2, ..run },
        num_generations: 2,
        max_completion_length: 4,
        ..GrpoOptions::default()
    };
    step((device, DType::BF16, &model_a()), case, "model.safetensors", options, grpo::run)
}

/// Runs steps of SFT and GRPO with the driver of each CUDA version. GRPO samples completions, so it also tests
/// captured decode steps. Each driver loads the code that is compiled for its version, and all compute the same bits.
/// The rows have no images, because the versions differ only in how code is loaded and launched.
#[test]
fn steps_on_the_drivers_of_cuda_12_and_13_have_the_same_bits() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let has_ptxas_12 = Toolkit::from_environment().ptxas_of_major(12).is_some();
    let [sft_rows, grpo_rows] = [
        r#"{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}"#,
        r#"{"problem": "2 + 2?", "problem_type": "numerical", "data_type": "text", "solution": "<answer>4</answer>"}"#,
    ]
    .map(|row| {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("data.jsonl"), format!("{row}\n")).expect("a row");
        folder
    });
    let mut first: Option<[Step; 2]> = None;
    // A GPU after Hopper runs the kernels of compute capability 8.0.
    let blackwell = Arch { sm: 100, ..Arch::A100 };
    for (arch, version) in
        [(Arch::A100, 13_000), (Arch::A100, 12_080), (Arch::A100, 12_040), (Arch::A100, 12_000), (blackwell, 13_000)]
    {
        if version == 12_000 && !has_ptxas_12 {
            println!("skipped: steps on a driver of CUDA 12.0: no ptxas of CUDA 12; ./x setup fetches it");
            continue;
        }
        let (fake, device) = fake_gpu::open_cuda_device(FakeDriver::with_driver_version(arch, 512 << 20, version));
        let sft = sft_step_on((&device, DType::BF16, &model_a()), sft_rows.path(), 4);
        let steps = [sft, grpo_step_on(grpo_rows.path(), &device)];
        drop(device);
        assert_no_violations_or_leaks(&fake, &format!("sm_{}, {version}", arch.sm));
        let first = first.get_or_insert_with(|| steps.clone());
        assert!(
            first.iter().zip(&steps).all(|(a, b)| a == b),
            "the steps on sm_{} by a driver of CUDA {version} differ",
            arch.sm
        );
    }
}

#[test]
fn the_fake_driver_is_as_kernels_and_plans_assume() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let fake = FakeDriver::new(Arch::H100, 512 << 20);
    let gpu = Gpu::from_driver(Arc::new(fake.clone())).expect("a fake GPU");
    hardware::check_boxes_of_a_cache(&gpu);
    hardware::check_resident_blocks(&gpu, |folder| folder == "matmul");
    // The three kernels of queries, keys and values, of which a multiprocessor runs two blocks, and variants.
    assert!(fake.functions_that_prefer_shared() > 0);
    drop(gpu);
    assert_no_violations_or_leaks(&fake, "H100");
}

#[test]
fn gpu_is_as_kernels_and_plans_assume() {
    if !gpu_is_present() {
        return;
    }
    let gpu = Gpu::open(0).expect("a GPU");
    if gpu.arch().sm >= 90 {
        hardware::check_boxes_of_a_cache(&gpu);
    }
    hardware::check_resident_blocks(&gpu, |folder| folder != "skinny");
}

/// Returns true if there is a GPU; otherwise prints that the test is skipped.
fn gpu_is_present() -> bool {
    let present = Nvidia::has_gpu();
    if !present {
        println!("no GPU: skipped");
    }
    present
}

/// Computes logits with `reel score` on the GPU in f32.
fn score_on_gpu(inputs: &Path, model: &[&str]) -> Tensor {
    let out = tempfile::tempdir().expect("a folder");
    let to = out.path().join("score.safetensors");
    let mut score = reel_on_gpu();
    score.args(["score", "--device", "cuda", "--dtype", "f32", "--inputs"]).arg(inputs).arg("--out").arg(&to);
    finished_run(score.args(model).output().expect("the binary starts")).ok();
    read_tensors(&to)["logits"].clone()
}

/// Checks that two runs on the GPU give the same bits, and that they differ from the reference by at most 1e-3
/// (relative distance).
fn check_reproducible(name: &str, score: impl Fn() -> Vec<f64>, want: &[f64]) {
    let first = score();
    let off = relative_distance(name, &first, want);
    println!("{name}: logits of cuda and the reference differ by {off:.2e}");
    assert!(off <= 1e-3, "{name}: logits of cuda and the reference differ by {off:.2e}");
    assert!(first == score(), "{name}: two runs differ");
}

#[test]
fn gpu_logits_agree_with_the_reference_and_are_reproducible() {
    if !gpu_is_present() {
        return;
    }
    for name in file_names_in(&golden("model")) {
        let case = golden("model").join(&name);
        let model = case.join("model").display().to_string();
        let expected = read_tensors(&case.join("expected.safetensors"));
        let gathered_rows = || {
            gathered_rows(
                &score_on_gpu(&case.join("inputs.safetensors"), &["--model", &model]),
                &expected["logit_rows"].values,
            )
        };
        check_reproducible(&name, gathered_rows, &expected["logits"].values);
    }
    let want = read_tensors(&golden("lora/logits.safetensors"));
    let base = golden("train/model_a").display().to_string();
    for name in ["all_linear", "rslora"] {
        let adapter = golden("lora").join(name).display().to_string();
        let model = ["--model", &base, "--adapter", &adapter];
        check_reproducible(
            name,
            || score_on_gpu(&golden("lora/inputs.safetensors"), &model).values,
            &want[name].values,
        );
    }
}

#[test]
fn gpu_training_steps_agree_with_the_reference_and_are_reproducible() {
    if !gpu_is_present() {
        return;
    }
    let cases = |kind: &'static str| file_names_in(&golden(kind)).into_iter().map(move |name| format!("{kind}/{name}"));
    // Cases with a video (`_mp4`) are left out, because a GPU machine may lack FFmpeg, which reads videos.
    let all = cases("train").chain(cases("grpo")).filter(|case| golden(case).join("expected.json").exists());
    for case in all.filter(|case| !case.ends_with("_mp4")) {
        let hash = || training::check_training_case(reel_on_gpu(), &case, &["--device", "cuda"]);
        assert_eq!(hash(), hash(), "{case}: two runs differ");
        println!("{case}: agrees with the reference, and two runs give the same weights");
    }
}

/// Checks a training step of a model in bf16: loss, norm of the gradient, and change of the weights.
fn check_step_in_bf16(name: &str, device: &Device, cpu: &Device, model: &Path, step: impl Fn(Place) -> Step) {
    let before = read_tensors(&model.join("model.safetensors"));
    let places = [(device, DType::BF16, model), (cpu, DType::BF16, model), (cpu, DType::F32, model)];
    let [got, of_cpu, reference] = places.map(|place| {
        let step = step(place);
        let after = parse_tensors(&step.weights).expect("weights");
        let changes = after.iter().flat_map(|(name, after)| after.values.iter().zip(&before[name].values));
        let changes = changes.map(|(after, before)| after - before).collect::<Vec<f64>>();
        let metrics = [0, 1].map(|i| step.metrics[i].as_f64().expect("a number"));
        (metrics.to_vec(), changes)
    });
    bf16::check_distances(&format!("{name}, loss and norm of the gradient"), &got.0, &of_cpu.0, &reference.0);
    // A step changes a weight by few units of bf16 or by none, so the reference in f32 says nothing here. A distance of
    // 0.25 means that one weight in 16 is off by one unit.
    assert_close(&format!("{name}, change of the weights"), &got.1, &of_cpu.1, 0.25);
}

fn check_steps_in_bf16(device: &Device, cpu: &Device) {
    // Heads of 128 elements have kernels of their own.
    for (name, model) in [("model_a", model_a()), ("hd128", golden("model/image_hd128_bf16/model"))] {
        let sft = |place: Place| sft_step_on(place, &golden("train/sft_videorft_rows"), 0);
        check_step_in_bf16(&format!("SFT step of {name}"), device, cpu, &model, sft);
        check_step_in_bf16(&format!("GRPO step of {name}"), device, cpu, &model, |place| grpo_step(place, false));
    }
}

/// The kernels of Hopper, in the simulator, agree with the CPU in bf16.
#[test]
fn hopper_kernels_on_the_fake_driver_agree_with_the_cpu_in_bf16() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let (fake, device) = fake_gpu::open_cuda_device(FakeDriver::new(Arch::H100, 512 << 20));
    let cpu = Device::cpu(2);
    let (model, tokens) = input_of("image_hd128_bf16");
    bf16::check_logits("image_hd128_bf16", &device, &cpu, &model, &tokens);
    let prompt = ModelInput::from_text_tokens((0..150).map(|i| i * 7 % 400).collect());
    bf16::check_decoding("image_hd128_bf16", &device, &cpu, &model, &prompt, 6);
    check_steps_in_bf16(&device, &cpu);
    drop(device);
    // Only kernels of Hopper may begin before the launch before them has ended.
    assert!(fake.programmatic_launch_count() > 0);
    assert_no_violations_or_leaks(&fake, "H100");
}

#[test]
fn gpu_results_in_bf16_agree_with_the_cpu() {
    if !gpu_is_present() {
        return;
    }
    let device = Device::on_gpu(Gpu::open(0).expect("a GPU")).expect("a device");
    let cpu = Device::cpu(std::thread::available_parallelism().expect("a number").get());
    for case in file_names_in(&golden("model")) {
        let (model, tokens) = input_of(&case);
        bf16::check_logits(&case, &device, &cpu, &model, &tokens);
    }
    check_steps_in_bf16(&device, &cpu);
    // Three layers of the published widths, whose products have many tiles and whose attention many blocks of keys.
    for preset in [Preset::B3, Preset::B7, Preset::Qwen3B2, Preset::Qwen3B8] {
        let folder = tempfile::tempdir().expect("a folder");
        let options = InitOptions { preset, layers: Some(3), vocab: Some(4096), dtype: None, seed: 0 };
        init_model_folder(&options, folder.path()).expect("a model");
        let tokens = |count: u32| ModelInput::from_text_tokens((0..count).map(|i| i * 7 % 4000).collect());
        bf16::check_logits(preset.name(), &device, &cpu, folder.path(), &tokens(1100));
        bf16::check_decoding(preset.name(), &device, &cpu, folder.path(), &tokens(600), 64);
    }
}
