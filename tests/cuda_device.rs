//! Device `cuda`: its host side on a driver that checks everywhere, the binary on a GPU where there is one.

mod support;
#[path = "support/tensors.rs"]
mod tensors;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use reel_kernels::cuda::fake::Fake;
use reel_kernels::cuda::{Gpu, Nvidia};
use reel_kernels::{Arch, compile};
use reel_model::batch::Batch;
use reel_model::checkpoint::Checkpoint;
use reel_model::config::ModelConfig;
use reel_model::input::{MediaOptions, Tokens};
use reel_model::qwen2_5_vl::Qwen25Vl;
use reel_runtime::{Cx, DType, Device, SimOptions};
use reel_train::options::{RunOptions, SftOptions};
use reel_train::sft::{self, Setup};
use serde_json::Value;
use support::{done, golden, reel_on_gpu};
use tensors::{distance, read, rows};

/// Device `cuda` on a driver that checks, and the driver.
fn checked() -> (Fake, Device) {
    let fake = Fake::new(Arch::A100, 512 << 20);
    let gpu = Gpu::with(Arc::new(fake.clone())).expect("a fake GPU");
    (fake, Device::on_gpu(gpu).expect("a device"))
}

fn simulated() -> Device {
    Device::sim(SimOptions { threads: 1, ..SimOptions::default() }).expect("a simulator")
}

/// Logits of a case.
fn logits(device: &Device, case: &str, dtype: DType) -> Vec<f32> {
    let folder = golden("model").join(case);
    let config = ModelConfig::open(&folder.join("model")).expect("a configuration");
    let tokens = Tokens::read(&folder.join("inputs.safetensors"), &config).expect("tokens");
    let files = Checkpoint::open(&folder.join("model")).expect("weights");
    let model = Qwen25Vl::open(device, &files, &config, dtype).expect("a model");
    let cx = Cx::inference(device, dtype);
    let batch = Batch::new(device, &config, dtype, &[tokens.sequence()], "case").expect("a batch");
    let hidden = model.hidden(&cx, &batch, false).expect("a forward pass");
    model.logits(&cx, &hidden).expect("logits").to_f32().expect("numbers")
}

#[test]
fn a_forward_pass_keeps_the_drivers_rules_and_gives_the_bits_of_sim() {
    let Some(()) = compile::for_test() else { return };
    for dtype in [DType::F32, DType::BF16] {
        let (fake, device) = checked();
        assert!(
            logits(&device, "image_hd128_bf16", dtype) == logits(&simulated(), "image_hd128_bf16", dtype),
            "{dtype}"
        );
        drop(device);
        assert_eq!((fake.left_open(), fake.violations()), (0, Vec::new()));
    }
}

/// A training step: its metrics, the weights' file, and what run.json says of the products' library.
fn step(device: &Device, dtype: DType) -> (Value, Vec<u8>, Value) {
    let case = golden("train").join("sft_videorft_rows");
    let folder = tempfile::tempdir().expect("a folder");
    let model = case.join("../model_a");
    let run = RunOptions {
        model: model.display().to_string(),
        data: case.join("data.jsonl"),
        media_root: Some(case),
        out: folder.path().join("out"),
        learning_rate: 5e-4,
        weight_decay: 0.1,
        max_grad_norm: 0.5,
        max_steps: Some(1),
        gradient_accumulation_steps: 1,
        no_shuffle: true,
        ..RunOptions::default()
    };
    let options = SftOptions { run, ..SftOptions::default() };
    let mut media = MediaOptions::default();
    media.overrides.max_pixels = Some(12_544);
    let setup = Setup {
        options: &options,
        model: &model,
        device,
        dtype,
        seed: 0,
        media: &media,
        resolved: &Value::Object(serde_json::Map::new()),
        quiet: true,
        stop: &AtomicBool::new(false),
    };
    sft::run(&setup).expect("a step");
    let metrics = std::fs::read_to_string(options.out.join("metrics.jsonl")).expect("metrics.jsonl");
    let metrics: Value = serde_json::from_str(metrics.lines().next().expect("a line")).expect("JSON");
    let kept = ["loss", "grad_norm", "hash"].map(|key| metrics[key].clone());
    let run = std::fs::read_to_string(options.out.join("run.json")).expect("run.json");
    let mut run: Value = serde_json::from_str(&run).expect("JSON");
    let weights = std::fs::read(options.out.join("model.safetensors")).expect("weights");
    (Value::from(kept.to_vec()), weights, run["products"].take())
}

#[test]
fn a_training_step_keeps_the_drivers_rules_and_gives_the_bits_of_sim() {
    let Some(()) = compile::for_test() else { return };
    for dtype in [DType::F32, DType::BF16] {
        let (fake, device) = checked();
        let (got, want) = (step(&device, dtype), step(&simulated(), dtype));
        assert_eq!(got.0, want.0, "{dtype}");
        assert!(got.1 == want.1, "{dtype}: the weights differ");
        // The library and its algorithms, which are the same in every run.
        assert_eq!(got.2["library"], "fake products 1.0.0");
        assert!(got.2["algorithms"].as_u64() > Some(20) && got.2["hash"].as_str().is_some_and(|h| h.len() == 16));
        let (_fake, again) = checked();
        assert_eq!((step(&again, dtype).2, want.2), (got.2, Value::Null), "{dtype}");
        drop(device);
        assert_eq!((fake.left_open(), fake.violations()), (0, Vec::new()));
    }
}

/// Scores a case on the GPU; gives its logits and those that the reference has.
fn score(case: &Path, dtype: &str) -> (Vec<f64>, Vec<f64>) {
    let out = tempfile::tempdir().expect("a folder");
    let to = out.path().join("score.safetensors");
    let path = |name: &str| case.join(name).display().to_string();
    let (model, inputs, file) = (path("model"), path("inputs.safetensors"), to.display().to_string());
    let args = ["score", "--model", &model, "--inputs", &inputs, "--out", &file, "--device", "cuda", "--dtype", dtype];
    done(reel_on_gpu().args(args).output().expect("the binary starts")).ok();
    let expected = read(&case.join("expected.safetensors"));
    (rows(&read(&to)["logits"], &expected["logit_rows"].values), expected["logits"].values.clone())
}

#[test]
fn the_gpu_agrees_with_the_reference_and_with_itself() {
    if !Nvidia::present() {
        return println!("no GPU: skipped");
    }
    let folder = golden("model");
    for case in std::fs::read_dir(folder).expect("goldens").map(|e| e.expect("an entry").path()).filter(|p| p.is_dir())
    {
        let name = case.display().to_string();
        let ((first, want), (second, _)) = (score(&case, "f32"), score(&case, "f32"));
        let off = distance(&name, &first, &want);
        println!("{name}: logits of cuda and the reference differ by {off:.2e}");
        assert!(off <= 1e-3, "{name}: logits of cuda and the reference differ by {off:.2e}");
        assert!(first == second, "{name}: two runs differ");
    }
}
