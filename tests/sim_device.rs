//! Device `sim`: the CUDA kernels on the simulator agree with device `cpu`, and the simulator has no findings.

mod support;
#[path = "support/tensors.rs"]
mod tensors;

use std::path::Path;

use reel_device::compile;
use reel_device::{DType, Device, SimOptions};
use reel_input::config::ModelConfig;
use reel_input::{ModelInput, Sequence};
use reel_model::batch::Batch;
use reel_model::checkpoint::Checkpoint;
use reel_model::qwen_vl::{ForwardOptions, QwenVl};
use reel_model::text::KvCache;
use reel_runtime::Cx;
use reel_runtime::ops::{KvPages, SequencePages};
use serde_json::Value;

use support::{golden, run, tiny_model};
use tensors::{read_tensors, relative_distance};

/// Computes the logits of a golden case with `reel score` on a device.
fn logits(case: &str, device: &str, dtype: &str) -> Vec<f64> {
    let folder = golden("model").join(case);
    let out = tempfile::tempdir().expect("a folder");
    let to = out.path().join("score.safetensors");
    let path = |name: &str| folder.join(name).display().to_string();
    let (model, inputs, file) = (path("model"), path("inputs.safetensors"), to.display().to_string());
    let args = ["score", "--model", &model, "--inputs", &inputs, "--out", &file, "--device", device, "--dtype", dtype];
    run(args).ok();
    read_tensors(&to)["logits"].values.clone()
}

/// The cases cover attention heads of 12 to 128 elements, vision windows that are cut off at the image's edge,
/// images, and a video.
#[test]
fn forward_pass_agrees_with_cpu() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    for case in ["image_hd128_bf16", "video_mp4", "frames_list"] {
        for (dtype, limit) in [("f32", 1e-5), ("bf16", 2e-2)] {
            let off = relative_distance(case, &logits(case, "sim", dtype), &logits(case, "cpu", dtype));
            println!("{case} {dtype}: logits of sim and cpu differ by {off:.2e}");
            assert!(off <= limit, "{case} {dtype}: logits of sim and cpu differ by {off:.2e}, allowed {limit:.0e}");
        }
    }
}

#[test]
fn greedy_completions_equal_those_of_cpu() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let folder = golden("model").join("image_hd128_bf16");
    let path = |name: &str| folder.join(name).display().to_string();
    let (model, messages) = (path("model"), path("messages.json"));
    let generate = |more: &[&str]| {
        let fixed = ["generate", "--model", &model, "--messages", &messages, "--temperature", "0", "--json"];
        let got = run([&fixed, &["--max-new-tokens", "6"][..], more].concat()).json();
        (got["token_ids"].clone(), got["prompt_tokens"].clone())
    };
    let want = generate(&["--device", "cpu"]);
    assert_eq!(want.0.as_array().map(Vec::len), Some(6));
    assert_eq!(generate(&["--device", "sim"]), want);
}

#[test]
fn sampled_completions_equal_those_of_cpu_under_several_interleavings() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let model = tiny_model(folder.path()).display().to_string();
    let generate = |more: &[&str]| {
        let fixed = ["generate", "--model", &model, "--prompt", "Hi", "--max-new-tokens", "2", "--seed", "3", "--json"];
        run([&fixed, &["--temperature", "0.8", "--top-p", "0.9"][..], more].concat()).json()["token_ids"].clone()
    };
    assert_eq!(generate(&["--device", "sim", "--interleavings", "3"]), generate(&["--device", "cpu"]));
}

/// The option `--products` selects the library of matrix products; it is only for device `cuda`.
#[test]
fn products_are_chosen_on_device_cuda_only() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = tiny_model(folder.path()).display().to_string();
    for device in ["cpu", "sim"] {
        let ask = ["generate", "--model", &model, "--prompt", "Hi", "--device", device, "--products", "own"];
        run(ask).assert_refused(2, &["--products: ", "--device cuda"]);
    }
}

/// Runs one step of a training case; returns its metrics and the change of every weight.
fn step(device: &str, dtype: &str) -> (Value, Vec<f64>) {
    let case = golden("train").join("sft_videorft_rows");
    let folder = tempfile::tempdir().expect("a folder");
    let path = |p: &Path| p.display().to_string();
    let (model, data, out) = (case.join("../model_a"), case.join("data.jsonl"), folder.path().join("out"));
    let (m, d, root, o) = (path(&model), path(&data), path(&case), path(&out));
    let fixed = ["sft", "--model", &m, "--data", &d, "--media-root", &root, "--out", &o, "--no-shuffle", "--quiet"];
    let step = ["--learning-rate", "0.0005", "--max-steps", "1", "--weight-decay", "0.1", "--max-grad-norm", "0.5"];
    // The run has one row with a small image, because a step on the simulator is slow.
    let small = ["--gradient-accumulation-steps", "1", "--max-pixels", "12288", "--min-pixels", "4096"];
    run([&fixed[..], &step[..], &small[..], &["--device", device, "--dtype", dtype]].concat()).ok();
    let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).expect("metrics.jsonl");
    let (before, after) =
        (read_tensors(&model.join("model.safetensors")), read_tensors(&out.join("model.safetensors")));
    let change = after.iter().flat_map(|(name, t)| t.values.iter().zip(&before[name].values).map(|(a, b)| a - b));
    (serde_json::from_str(metrics.lines().next().expect("a line")).expect("JSON"), change.collect())
}

#[test]
fn training_step_agrees_with_cpu() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    for (dtype, limit, weights) in [("f32", 1e-5, 2e-3), ("bf16", 2e-2, 0.3)] {
        let (got, want) = (step("sim", dtype), step("cpu", dtype));
        for key in ["loss", "grad_norm"] {
            let (a, b) = (got.0[key].as_f64().expect("a number"), want.0[key].as_f64().expect("a number"));
            println!("{dtype}: {key} of sim and cpu differ by {:.2e}", (a / b - 1.0).abs());
            assert!((a - b).abs() <= limit * b.abs(), "{dtype}: {key} is {a} on sim, but {b} on cpu");
        }
        // In its first step, Adam changes every weight by plus or minus the learning rate. If a tiny gradient has
        // different signs on the two devices, its weight differs by twice the learning rate; therefore the tolerance
        // is large.
        let off = relative_distance("weights", &got.1, &want.1);
        println!("{dtype}: weight changes on sim and cpu differ by {off:.2e}");
        assert!(off <= weights, "{dtype}: weight changes on sim and cpu differ by {off:.2e}, allowed {weights}");
    }
}

/// A golden model on device `sim`.
struct Model {
    device: Device,
    model: QwenVl,
    config: ModelConfig,
    cx: Cx,
}

impl Model {
    /// Computes the logits of all tokens of these sequences in one forward pass over a packed batch.
    fn packed(&self, all: &[Sequence]) -> Vec<f32> {
        let batch = Batch::new(&self.device, &self.config, all, "case").expect("a batch");
        let hidden = self.model.forward(&self.cx, &batch, ForwardOptions::default()).expect("a forward pass");
        self.model.logits(&self.cx, &hidden).expect("logits").to_f32().expect("numbers")
    }

    /// Computes the logits of a sequence that passes through a KV cache in chunks; `lengths` has the number of tokens
    /// of each chunk.
    fn cached(&self, all: Sequence, lengths: &[usize]) -> Vec<f32> {
        let (dtype, tokens) = (self.cx.dtype(), all.input_ids.len());
        let blocks = tokens.div_ceil(KvPages::BLOCK_TOKENS);
        let cache = KvCache::new(&self.device, &self.config.text, dtype, blocks).expect("a cache");
        let blocks: Vec<i32> = (0..cache.block_count() as i32).rev().collect();
        let (mut past, mut out) = (0, Vec::new());
        for &n in lengths {
            let part = Sequence {
                input_ids: &all.input_ids[past..past + n],
                position_ids: all.position_ids.map(|p| &p[past..past + n]),
                ..Sequence::default()
            };
            let batch = Batch::new(&self.device, &self.config, &[part], "case").expect("a batch");
            let pages =
                KvPages::new(&self.device, &[SequencePages { cached_tokens: past, new_tokens: n, blocks: &blocks }])
                    .expect("pages");
            let hidden = self
                .model
                .forward(&self.cx, &batch, ForwardOptions { cache: Some((&cache, &pages)), ..Default::default() })
                .expect("a forward pass");
            out.extend(self.model.logits(&self.cx, &hidden).expect("logits").to_f32().expect("numbers"));
            past += n;
        }
        out
    }
}

#[test]
fn logits_do_not_depend_on_chunks_or_batch() {
    let Some(()) = compile::skip_without_nvrtc() else { return };
    let folder = golden("model").join("text_multiturn");
    let config = ModelConfig::open(&folder.join("model")).expect("a configuration");
    let tokens = ModelInput::read(&folder.join("inputs.safetensors"), &config).expect("tokens");
    let files = Checkpoint::open(&folder.join("model")).expect("weights");
    let whole = tokens.sequence();
    let part = |start: usize, n: usize| Sequence {
        input_ids: &whole.input_ids[start..start + n],
        position_ids: whole.position_ids.map(|p| &p[..n]),
        ..Sequence::default()
    };
    // The longer sequence (69 tokens) needs more than one attention tile of queries and more than one block of the KV
    // cache.
    let (ours, other) = (part(0, 69), part(80, 21));
    for dtype in [DType::F32, DType::BF16] {
        let device = Device::sim(SimOptions { threads: 1, ..SimOptions::default() }).expect("a simulator");
        let model = QwenVl::open(&device, &files, &config, dtype).expect("a model");
        let m = Model { cx: Cx::inference(&device, dtype), device, model, config: config.clone() };
        let want = m.packed(&[ours]);
        let vocab = config.text.vocab_size;
        let batch = m.packed(&[other, ours]);
        assert!(batch[21 * vocab..] == want, "{dtype}: the logits depend on the other sequence of the batch");
        assert!(m.cached(ours, &[64, 1, 1, 1, 1, 1]) == want, "{dtype}: decoding token by token changes the logits");
        assert!(m.cached(ours, &[17, 40, 12]) == want, "{dtype}: prefilling in chunks changes the logits");
    }
}
