//! Models with quantised weights, against the plain models that `reel dequantize` writes of them.

#[path = "support/rank_runs.rs"]
mod rank_runs;
#[path = "support/sft_rows.rs"]
mod sft_rows;
mod support;
#[path = "support/tensors.rs"]
mod tensors;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rank_runs::run_sft;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::{Value, json};
use sft_rows::training_folder;
use support::{file_names_in, golden, read_metrics, run_in};
use tensors::read_tensors;

/// Rows and columns that share a scale in the folder `fp8`; they divide no matrix of the tiny model.
const BLOCK: [usize; 2] = [24, 20];

/// Rows and columns that share a scale with `--quantize fp8`.
const BLOCK_AT_LOAD: [usize; 2] = [128, 128];

/// The size of an 8-bit float e4m3 with these lowest seven bits.
fn e4m3(code: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(code >> 3), f64::from(code & 7) / 8.0);
    if exponent == 0 { mantissa * 2f64.powi(-6) } else { (1.0 + mantissa) * 2f64.powi(exponent - 7) }
}

/// Makes the folder `to` with the files of `from`, but without weights.
fn copy_without_weights(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a folder");
    for name in file_names_in(from).iter().filter(|name| !name.ends_with(".safetensors")) {
        fs::copy(from.join(name), to.join(name)).expect("copied");
    }
}

fn is_linear(name: &str) -> bool {
    name.contains("layers.") && name.ends_with("_proj.weight")
}

/// Writes a copy of the model in `folder` whose decoder has linear layers of 8-bit floats with a scale for each block,
/// as Qwen publishes them.
fn quantize(from: &Path, to: &Path, tile: [usize; 2]) {
    copy_without_weights(from, to);
    let mut config: Value =
        serde_json::from_slice(&fs::read(from.join("config.json")).expect("a config")).expect("JSON");
    config["quantization_config"] = json!({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": tile});
    fs::write(to.join("config.json"), config.to_string()).expect("written");

    let mut stored: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> = BTreeMap::new();
    let f32s = |values: &[f64]| values.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect::<Vec<u8>>();
    for (name, tensor) in read_tensors(&from.join("model.safetensors")) {
        let (&[out, inner], true) = (&tensor.shape[..], is_linear(&name)) else {
            stored.insert(name, (Dtype::F32, tensor.shape.clone(), f32s(&tensor.values)));
            continue;
        };
        let grid = [out.div_ceil(tile[0]), inner.div_ceil(tile[1])];
        let mut largest = vec![0f64; grid[0] * grid[1]];
        let block_of = |i: usize| i / inner / tile[0] * grid[1] + i % inner / tile[1];
        tensor.values.iter().enumerate().for_each(|(i, x)| largest[block_of(i)] = x.abs().max(largest[block_of(i)]));
        let scales: Vec<f64> = largest.iter().map(|x| x / 448.0).collect();
        let code = |(i, x): (usize, &f64)| {
            let size = x.abs() / scales[block_of(i)];
            let nearest = (0..0x7f).min_by(|&a, &b| (e4m3(a) - size).abs().total_cmp(&(e4m3(b) - size).abs()));
            nearest.expect("a code") | if *x < 0.0 { 0x80 } else { 0 }
        };
        let codes = tensor.values.iter().enumerate().map(code).collect();
        stored.insert(format!("{name}_scale_inv"), (Dtype::F32, grid.to_vec(), f32s(&scales)));
        stored.insert(name, (Dtype::F8_E4M3, tensor.shape.clone(), codes));
    }
    let views = stored
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).expect("a tensor")));
    serialize_to_file(views, None, &to.join("model.safetensors")).expect("written");
}

/// The number of `table` that is nearest to `x`.
fn nearest(table: &[f64], x: f64) -> f64 {
    *table.iter().min_by(|a, b| (*a - x).abs().total_cmp(&(*b - x).abs())).expect("numbers")
}

/// Writes a copy of the model in `folder` whose decoder has the values of nf4 with double quantisation in its linear
/// layers, in f32. The two tables are those that bitsandbytes stored in a file.
fn write_nf4_values(from: &Path, to: &Path) {
    copy_without_weights(from, to);
    let stored = read_tensors(&golden("quant/bnb-nf4-double.safetensors"));
    let table = |end: &str| &stored.iter().find(|(name, _)| name.ends_with(end)).expect(end).1.values;
    let (values, map) = (table(".quant_map"), table("nested_quant_map"));
    let mut plain = read_tensors(&from.join("model.safetensors"));
    for (_, tensor) in plain.iter_mut().filter(|(name, _)| is_linear(name)) {
        let largest: Vec<f32> =
            tensor.values.chunks(64).map(|block| block.iter().fold(0f64, |m, x| m.max(x.abs())) as f32).collect();
        let mean = (largest.iter().map(|&x| f64::from(x)).sum::<f64>() / largest.len() as f64) as f32;
        let scales = largest.chunks(256).flat_map(|block| {
            let size = block.iter().fold(0f32, |m, x| m.max((x - mean).abs()));
            block.iter().map(move |x| nearest(map, f64::from((x - mean) * (1.0 / size))) as f32 * size + mean)
        });
        for ((block, largest), scale) in tensor.values.chunks_mut(64).zip(&largest).zip(scales.collect::<Vec<f32>>()) {
            for x in block {
                *x = f64::from(nearest(values, f64::from(*x as f32 * (1.0 / largest))) as f32 * scale);
            }
        }
    }
    let bytes: BTreeMap<&String, (Vec<usize>, Vec<u8>)> = plain
        .iter()
        .map(|(name, t)| (name, (t.shape.clone(), t.values.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect())))
        .collect();
    let view = |(shape, bytes)| TensorView::new(Dtype::F32, Clone::clone(shape), bytes).expect("a tensor");
    let views = bytes.iter().map(|(name, (shape, bytes))| (name, view((shape, bytes))));
    serialize_to_file(views, None, &to.join("model.safetensors")).expect("written");
}

/// A folder with rows, the tiny model, a quantised copy `fp8` of the model `from` of that folder, and the plain copies
/// `f32` and `bf16` of that.
fn models(from: &Path) -> tempfile::TempDir {
    let folder = training_folder(9);
    quantize(&folder.path().join(from), &folder.path().join("fp8"), BLOCK);
    for dtype in ["f32", "bf16"] {
        let args = ["dequantize", "--model", "fp8", "--out", dtype, "--dtype", dtype, "--json"];
        let said = run_in(folder.path(), args).json();
        assert_eq!(said["out"], dtype);
        let config = fs::read_to_string(folder.path().join(dtype).join("config.json")).expect("a config");
        assert!(!config.contains("quantization_config"), "{config}");
    }
    folder
}

#[test]
fn a_quantised_model_computes_what_its_plain_copy_does() {
    let model = golden("train/model_a");
    let folder = models(&model);
    let at = folder.path();
    let inputs = golden("lora/inputs.safetensors").display().to_string();
    let logits = |model: &str, dtype: &str| {
        let args = ["score", "--model", model, "--inputs", &inputs, "--out", "s.safetensors", "--dtype", dtype];
        run_in(at, [&args[..], &["--quiet"]].concat()).ok();
        fs::read(at.join("s.safetensors")).expect("logits")
    };
    let ask = |model: &str, dtype: &str| {
        let args = ["generate", "--model", model, "--prompt", "Hello", "--max-new-tokens", "12", "--dtype", dtype];
        run_in(at, [&args[..], &["--temperature", "0", "--json"]].concat()).json()["token_ids"].clone()
    };
    for dtype in ["f32", "bf16"] {
        assert!(logits("fp8", dtype) == logits(dtype, dtype), "{dtype}");
        assert!(logits("fp8", dtype) != logits(&model.display().to_string(), dtype), "{dtype}");
        assert_eq!(ask("fp8", dtype), ask(dtype, dtype));
    }
    let run = |args: &[&str]| run_in(at, args);
    run(&["dequantize", "--model", "tiny", "--out", "new"])
        .assert_refused(1, &["config.json", "has no quantization_config"]);
    fs::copy(at.join("fp8/config.json"), at.join("f32/config.json")).expect("copied");
    run(&["dequantize", "--model", "f32", "--out", "new"])
        .assert_refused(1, &["f32/config.json", "no weight of the files is quantised"]);
    run(&["dequantize", "--model", "fp8", "--out", "tiny"]).assert_refused(1, &["tiny", "is not empty"]);
    let int8 = ["generate", "--model", "fp8", "--prompt", "Hello", "--quantize", "int8"];
    run(&int8).assert_refused(1, &["--quantize", "are quantised in its files"]);
    assert!(!at.join("new").exists());
}

#[test]
fn adapters_are_trained_on_a_quantised_base() {
    let folder = models(Path::new("tiny"));
    let at = folder.path();
    let adapter = |out: &str| fs::read(at.join(out).join("adapter_model.safetensors")).expect("an adapter");
    let losses = |out: &str| -> Vec<Value> {
        let metrics = read_metrics(&at.join(out)).into_iter();
        metrics.map(|line| json!([line["loss"], line["grad_norm"]])).collect()
    };
    let sft = |model: &str, out: &str, more: &[&str]| {
        let options = ["--model", model, "--max-steps", "2", "--lora-r", "4", "--dtype", "bf16"];
        run_sft(at, out, &support::with_options(&options, more)).ok();
        (losses(out), adapter(out))
    };
    let plain = sft("bf16", "plain", &[]);
    assert!(plain == sft("fp8", "own", &[]), "another adapter");
    let zero = ["--gpus", "2", "--zero-stage", "3", "--gradient-checkpointing", "full"];
    assert!(plain == sft("fp8", "zero", &zero), "another adapter of two processes");

    // The plan counts the weights as they are in memory.
    let plan = ["plan", "sft", "--model", "fp8", "--data", "rows.jsonl", "--device", "cpu", "--json", "--lora-r", "4"];
    let options = ["--gradient-accumulation-steps", "8", "--max-steps", "2", "--dtype", "bf16"];
    let planned = run_in(at, [&plan[..], &options].concat()).plan_json()["peak_bytes"].clone();
    assert_eq!(read_metrics(&at.join("own")).last().expect("a step")["peak_bytes"], planned);

    let merge = |model: &str, out: &str| {
        run_in(at, ["merge", "--model", model, "--adapter", "own", "--out", out]).ok();
        fs::read(at.join(out).join("model.safetensors")).expect("weights")
    };
    merge("fp8", "merged");
    let rounded = |out: &str| read_tensors(&at.join(out).join("model.safetensors"));
    merge("f32", "merged-plain");
    assert_eq!(rounded("merged"), rounded("merged-plain"));

    let refused = run_sft(at, "full", &["--model", "fp8", "--max-steps", "2"]);
    refused.assert_refused(2, &["--model", "has quantised weights", "--lora-r"]);
}

const GRPO_ROWS: &str = concat!(
    r#"{"prompt": [{"role": "user", "content": "2 + 2?"}], "problem_type": "numerical", "#,
    r#""solution": "<answer>4</answer>"}"#,
    "\n"
);

/// Trains an adapter on rl.jsonl, and checks that the policy samples from the base that it trains on. Returns the adapter.
fn run_grpo(at: &Path, out: &str, more: &[&str]) -> Vec<u8> {
    let fixed = "grpo --data rl.jsonl --num-generations 2 --per-device-train-batch-size 2 --max-completion-length 8 \
                 --lora-r 4 --gradient-accumulation-steps 2 --learning-rate 0.05 --save-steps 1 --quiet --reward-command";
    let own = ["while read -r line; do echo ${#line}; done", "--out", out];
    let args: Vec<&str> = fixed.split_whitespace().chain(own).collect();
    run_in(at, support::with_options(&args, more)).ok();
    let metrics = read_metrics(&at.join(out));
    assert!(metrics.iter().all(|line| line["rollout_drift"] == 0.0), "{metrics:?}");
    fs::read(at.join(out).join("adapter_model.safetensors")).expect("an adapter")
}

/// A resumed run has the bits of a whole one.
#[test]
fn grpo_on_a_quantised_base() {
    let folder = models(Path::new("tiny"));
    let at = folder.path();
    fs::write(at.join("rl.jsonl"), GRPO_ROWS.repeat(4)).expect("rows");
    let grpo = |out: &str, more: &[&str]| run_grpo(at, out, &[&["--model", "fp8"], more].concat());
    let whole = grpo("whole", &["--max-steps", "3"]);
    grpo("parts", &["--max-steps", "1"]);
    assert!(whole == grpo("parts", &["--max-steps", "3", "--resume-from-checkpoint", "last"]));
    assert!(whole == grpo("ranks", &["--max-steps", "3", "--gpus", "2"]));
    let replayed = run_in(at, ["replay", "whole", "--step", "2", "--json"]).json();
    assert_eq!(replayed["same"], true, "{replayed}");
}

/// Training, sampling and scoring with `--quantize` have the bits of those with the model that has been quantised before.
#[test]
fn plain_weights_are_quantised_at_load() {
    let folder = training_folder(9);
    let at = folder.path();
    quantize(&at.join("tiny"), &at.join("fp8"), BLOCK_AT_LOAD);
    write_nf4_values(&at.join("tiny"), &at.join("nf4"));
    let adapter = |out: &str| fs::read(at.join(out).join("adapter_model.safetensors")).expect("an adapter");
    let losses = |out: &str| -> Vec<Value> {
        let metrics = read_metrics(&at.join(out)).into_iter();
        metrics.map(|line| json!([line["loss"], line["grad_norm"]])).collect()
    };
    let zero = ["--gpus", "2", "--zero-stage", "3", "--gradient-checkpointing", "full"];
    for format in ["nf4", "fp8"] {
        let sft = |out: &str, more: &[&str]| {
            let out = format!("{format}-{out}");
            let options = ["--lora-r", "4", "--dtype", "f32", "--max-steps", "2", "--save-steps", "1"];
            run_sft(at, &out, &support::with_options(&options, more)).ok();
            (losses(&out), adapter(&out))
        };
        let before = sft("before", &["--model", format]);
        let own = ["--model", "tiny", "--quantize", format];
        assert!(before == sft("own", &own), "{format}: another adapter");
        assert!(before == sft("zero", &[&own[..], &zero].concat()), "{format}: another adapter of two processes");
        sft("parts", &[&own[..], &["--max-steps", "1"]].concat());
        let resumed = [&own[..], &["--resume-from-checkpoint", "last"]].concat();
        assert!(before.1 == sft("parts", &resumed).1, "{format}: another adapter of a resumed run");
        let plain = ["--model", "tiny", "--lora-r", "4", "--dtype", "f32", "--max-steps", "2"];
        let other =
            run_sft(at, &format!("{format}-parts"), &[&plain[..], &["--resume-from-checkpoint", "last"]].concat());
        other.assert_refused(2, &["--quantize"]);

        let plan = ["plan", "sft", "--model", "tiny", "--data", "rows.jsonl", "--device", "cpu", "--json"];
        let options = ["--gradient-accumulation-steps", "8", "--max-steps", "2", "--dtype", "f32", "--lora-r", "4"];
        let plan = |more: &[&str]| {
            run_in(at, [&plan[..], &options, more].concat()).plan_json()["peak_bytes"].as_u64().expect("bytes")
        };
        let planned = plan(&["--quantize", format]);
        assert_eq!(read_metrics(&at.join(format!("{format}-own"))).last().expect("a step")["peak_bytes"], planned);
        assert!(planned < plan(&[]), "{format}");

        let ask = |model: &str, more: &[&str]| {
            let args = ["generate", "--model", model, "--prompt", "Hello", "--max-new-tokens", "12", "--dtype", "f32"];
            run_in(at, [&args[..], &["--temperature", "0", "--json"], more].concat()).json()["token_ids"].clone()
        };
        let answer = ask(format, &[]);
        assert_eq!(ask("tiny", &["--quantize", format]), answer);
        assert_eq!(ask("tiny", &["--quantize", format, "--tensor-parallel-size", "2"]), answer);
    }
    let twice = run_sft(at, "twice", &["--model", "fp8", "--quantize", "nf4", "--lora-r", "4"]);
    twice.assert_refused(1, &["--quantize", "are quantised in its files"]);
    let plan = ["plan", "sft", "--model", "fp8", "--tokens", "64", "--lora-r", "4", "--quantize", "nf4"];
    run_in(at, plan).assert_refused(1, &["--quantize", "are quantised in its files"]);
    run_sft(at, "full", &["--model", "tiny", "--quantize", "nf4"]).assert_refused(2, &["--quantize", "--lora-r"]);
    fs::write(at.join("rl.jsonl"), GRPO_ROWS.repeat(4)).expect("rows");
    let of_two = |out: &str, more: &[&str]| run_grpo(at, out, &[&["--max-steps", "2"], more].concat());
    let whole = of_two("whole", &["--model", "tiny", "--quantize", "nf4"]);
    assert!(
        whole == of_two("before", &["--model", "nf4"])
            && whole == of_two("ranks", &["--model", "tiny", "--quantize", "nf4", "--gpus", "2"])
    );
    let replayed = run_in(at, ["replay", "whole", "--step", "2", "--json"]).json();
    assert_eq!(replayed["same"], true, "{replayed}");
}

/// A code that stands for NaN is named with its file, before a command writes anything.
#[test]
fn values_that_are_not_finite_are_refused() {
    let folder = models(Path::new("tiny"));
    let at = folder.path();
    let file = at.join("fp8/model.safetensors");
    let mut bytes = fs::read(&file).expect("weights");
    let name = "model.layers.1.mlp.down_proj.weight";
    let parsed = safetensors::SafeTensors::deserialize(&bytes).expect("a file");
    let offset = parsed.tensor(name).expect(name).data().as_ptr() as usize - bytes.as_ptr() as usize;
    bytes[offset + 5] = 0x7f;
    fs::write(&file, bytes).expect("written");
    let words = ["fp8/model.safetensors", name, "row 0 has a NaN"];
    run_in(at, ["generate", "--model", "fp8", "--prompt", "Hello"]).assert_refused(1, &words);
    run_in(at, ["dequantize", "--model", "fp8", "--out", "new"]).assert_refused(1, &words);
    assert!(!at.join("new").exists());
}
