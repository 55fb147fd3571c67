//! `reel quantize`: what the files have is what the formulas of the formats say, and the report is what the written model
//! computes.

#[path = "support/sft_rows.rs"]
mod sft_rows;
mod support;
#[path = "support/tensors.rs"]
mod tensors;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::Value;
use support::{golden, run_in, tiny_model_of};
use tensors::{Tensor, read_tensors, relative_distance};

/// The dtype, shape and bytes of each tensor.
type Stored = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn stored(model: &Path) -> Stored {
    let bytes = fs::read(model.join("model.safetensors")).expect("weights");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let each = file.tensors().into_iter();
    each.map(|(name, t)| (name, (t.dtype(), t.shape().to_vec(), t.data().to_vec()))).collect()
}

fn write(model: &Path, tensors: &Stored) {
    let views =
        tensors.iter().map(|(name, (d, shape, data))| (name, TensorView::new(*d, shape.clone(), data).expect(name)));
    serialize_to_file(views, None, &model.join("model.safetensors")).expect("written");
}

/// Changes the f32 values of the tensors of a model.
fn change(model: &Path, values_of: impl Fn(&str, &Tensor) -> Option<Vec<f64>>) {
    let mut all = stored(model);
    for (name, tensor) in read_tensors(&model.join("model.safetensors")) {
        let Some(values) = values_of(&name, &tensor) else { continue };
        all.get_mut(&name).expect("a tensor").2 = values.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect();
    }
    write(model, &all);
}

fn is_quantized(name: &str) -> bool {
    name.contains("layers.") && name.ends_with("_proj.weight")
}

fn f32s(bytes: &[u8]) -> Vec<f64> {
    bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect()
}

/// The value of an 8-bit float e4m3.
fn e4m3(code: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7) / 8.0);
    let size = if exponent == 0 { mantissa / 64.0 } else { (1.0 + mantissa) * 2f64.powi(exponent - 7) };
    if code & 0x80 != 0 { -size } else { size }
}

/// The nearest value of f16, which has 10 bits after the leading one.
fn f16(x: f64) -> f64 {
    let unit = 2f64.powi((x.log2().floor() as i32).max(-14) - 10);
    (x / unit).round_ties_even() * unit
}

/// The values and the scale of a group of 128 weights after plain rounding to 4 bits with a zero point.
fn rounded_group(w: &[f64]) -> (Vec<f64>, f64) {
    let [min, max] = [f64::min as fn(f64, f64) -> f64, f64::max].map(|f| w.iter().copied().fold(0.0, f));
    let scale = f16((max - min).max(1e-5) / 15.0);
    let zero = (-min / scale).round_ties_even();
    (w.iter().map(|w| (((w / scale).round_ties_even() + zero).clamp(0.0, 15.0) - zero) * scale).collect(), scale)
}

/// Rows whose answers are numbers, for calibration and for the perplexity.
fn write_rows(folder: &Path) {
    let row = |n: usize| {
        let (question, answer) = (format!("What is {n} + {n}?"), format!("The answer is {}.", 2 * n));
        serde_json::json!({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
    };
    fs::write(folder.join("rows.jsonl"), (0..12).map(|n| format!("{}\n", row(n))).collect::<String>()).expect("rows");
    fs::write(folder.join("other.jsonl"), (20..24).map(|n| format!("{}\n", row(n))).collect::<String>()).expect("rows");
}

/// A folder with rows and a tiny model with the same names as published models of the family.
fn workshop(preset: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    tiny_model_of(folder.path(), preset);
    write_rows(folder.path());
    folder
}

const PRESETS: [&str; 2] = ["tiny", "qwen3-tiny"];

#[test]
fn fp8_is_rounded_by_the_absolute_maximum_of_a_block() {
    for preset in PRESETS {
        let folder = workshop(preset);
        let at = folder.path();
        // A block of zeros.
        let zeroed = |name: &str, t: &Tensor| {
            (is_quantized(name) && name.contains("layers.0.mlp.gate")).then(|| {
                t.values.iter().enumerate().map(|(i, x)| if i < 128 * t.shape[1] { 0.0 } else { *x }).collect()
            })
        };
        change(&at.join("tiny"), zeroed);
        let args = ["quantize", "--model", "tiny", "--format", "fp8", "--out", "fp8", "--eval-file", "other.jsonl"];
        let report = run_in(at, [&args[..], &["--json"]].concat()).json();
        let (plain, written) = (read_tensors(&at.join("tiny/model.safetensors")), stored(&at.join("fp8")));
        for (name, (dtype, shape, bytes)) in stored(&at.join("tiny")) {
            if !is_quantized(&name) {
                assert!(written[&name] == (dtype, shape, bytes), "{preset}: {name}");
                continue;
            }
            let (dtype, found, codes) = &written[&name];
            assert_eq!((*dtype, found), (Dtype::F8_E4M3, &shape), "{preset}: {name}");
            let (dtype, grid, scales) = &written[&format!("{name}_scale_inv")];
            assert_eq!((*dtype, &grid[..]), (Dtype::F32, &[shape[0].div_ceil(128), shape[1].div_ceil(128)][..]));
            let (scales, mut largest) = (f32s(scales), vec![0f64; grid[0] * grid[1]]);
            let block = |i: usize| i / shape[1] / 128 * grid[1] + i % shape[1] / 128;
            let values = &plain[&name].values;
            values.iter().enumerate().for_each(|(i, x)| largest[block(i)] = largest[block(i)].max(x.abs()));
            for (i, (x, &code)) in values.iter().zip(codes).enumerate() {
                let (scale, most) = (scales[block(i)], largest[block(i)]);
                assert!((scale - most / 448.0).abs() <= 1e-7 * scale || most == 0.0, "{preset}: {name}[{i}]: {scale}");
                let step = (x.abs() / 8.0).max(scale / 512.0);
                assert!((e4m3(code) * scale - x).abs() <= 0.5001 * step, "{preset}: {name}[{i}]: {x} {code} {scale}");
            }
        }
        let config: Value =
            serde_json::from_slice(&fs::read(at.join("fp8/config.json")).expect("a config")).expect("JSON");
        let quantization = &config["quantization_config"];
        assert_eq!((&quantization["quant_method"], &quantization["fmt"]), (&"fp8".into(), &"e4m3".into()));
        assert_eq!(quantization["weight_block_size"], serde_json::json!([128, 128]));
        let skipped = quantization["modules_to_not_convert"].as_array().expect("a list");
        let tower = if preset == "tiny" { "visual.blocks.1.attn.qkv" } else { "model.visual.blocks.1.attn.qkv" };
        assert!(skipped.contains(&tower.into()) && skipped.contains(&"lm_head".into()), "{skipped:?}");

        // The plain copy has the loss that the report says.
        run_in(at, ["dequantize", "--model", "fp8", "--out", "plain", "--dtype", "f32"]).ok();
        let args = ["quantize", "--model", "plain", "--format", "fp8", "--out", "again", "--eval-file", "other.jsonl"];
        let again = run_in(at, [&args[..], &["--json"]].concat()).json();
        assert_eq!(report["after"]["eval_loss"], again["before"]["eval_loss"]);
        assert!(report["after"]["eval_loss"] != report["before"]["eval_loss"], "{report}");
        let perplexity = report["perplexity_after"].as_f64().expect("a number");
        assert!((perplexity.ln() - report["after"]["eval_loss"].as_f64().expect("a number")).abs() < 1e-9);
        assert_eq!((&report["before"]["eval_rows"], &report["calibration"]), (&4.into(), &Value::Null));
        let file = fs::read_to_string(at.join("fp8/quantize.json")).expect("a report");
        assert_eq!(serde_json::from_str::<Value>(&file).expect("JSON"), report);
    }
}

/// Makes a few channels of the residual, and so the inputs of q, k, v, gate and up, much larger than the others.
fn with_outliers(model: &Path) {
    change(model, |name, t| {
        let is_norm = name.contains("layers.") && name.ends_with("layernorm.weight");
        let larger = |(i, x): (usize, &f64)| x * if i % 37 == 5 { 30.0 } else { 1.0 };
        is_norm.then(|| t.values.iter().enumerate().map(larger).collect())
    });
}

#[test]
fn awq_protects_the_channels_that_matter() {
    for preset in PRESETS {
        let folder = workshop(preset);
        let at = folder.path();
        with_outliers(&at.join("tiny"));
        let args = ["quantize", "--model", "tiny", "--format", "awq", "--out", "awq", "--data", "rows.jsonl"];
        let report = run_in(at, [&args[..], &["--max-samples", "8", "--json"]].concat()).json();
        assert_eq!((&report["calibration"]["rows"], &report["before"]), (&8.into(), &Value::Null), "{report}");
        run_in(at, ["dequantize", "--model", "awq", "--out", "plain", "--dtype", "f32"]).ok();

        // The weights of layers after a norm are those of the formula, for the factors by which the norm was divided.
        let [before, after] = ["tiny", "plain"].map(|model| read_tensors(&at.join(model).join("model.safetensors")));
        for (name, w) in before.iter().filter(|(name, _)| is_quantized(name)) {
            let stem = name.split("self_attn.").next().and_then(|rest| rest.split("mlp.").next()).expect("a name");
            let norm = match name {
                _ if name.contains("o_proj") || name.contains("down_proj") => continue,
                // The rows of up_proj are divided by the factors of down_proj.
                _ if name.contains("up_proj") => continue,
                _ if name.contains("self_attn") => format!("{stem}input_layernorm.weight"),
                _ => format!("{stem}post_attention_layernorm.weight"),
            };
            let factors: Vec<f64> = before[&norm].values.iter().zip(&after[&norm].values).map(|(n, d)| n / d).collect();
            assert!(factors.iter().cloned().fold(0.0, f64::max) > 1.5, "{norm}: {factors:?}");
            for (group, found) in w.values.chunks(128).zip(after[name].values.chunks(128)) {
                let scaled: Vec<f64> = group.iter().zip(&factors).map(|(w, s)| w * s).collect();
                let (values, scale) = rounded_group(&scaled);
                // The factors are rounded differently here, so a weight between two codes may get the other one.
                let differ = values.iter().zip(found).filter(|(a, b)| (*a - *b).abs() > 1e-3 * scale).count();
                let is_near = values.iter().zip(found).all(|(a, b)| (a - b).abs() < 1.01 * scale);
                assert!(differ <= 1 && is_near, "{preset}: {name}: {values:?} {found:?}");
            }
        }

        // The outputs are nearer to those of the model than with plain rounding.
        fs::create_dir(at.join("rounded")).expect("a folder");
        for file in support::file_names_in(&at.join("tiny")) {
            fs::copy(at.join("tiny").join(&file), at.join("rounded").join(&file)).expect("copied");
        }
        change(&at.join("rounded"), |name, t| {
            is_quantized(name).then(|| t.values.chunks(128).flat_map(|group| rounded_group(group).0).collect())
        });
        let question =
            r#"[{"role": "user", "content": "What is 3 + 3?"}, {"role": "assistant", "content": "The answer is 6."}]"#;
        fs::write(at.join("messages.json"), question).expect("written");
        let logits = |model: &str| {
            run_in(at, ["score", "--model", model, "--messages", "messages.json", "--out", "s.safetensors", "--quiet"])
                .ok();
            read_tensors(&at.join("s.safetensors")).remove("logits").expect("logits").values
        };
        let original = logits("tiny");
        let [calibrated, rounded] = ["awq", "rounded"].map(|model| relative_distance(model, &logits(model), &original));
        assert!(calibrated < 0.95 * rounded && calibrated > 0.0, "{preset}: {calibrated} {rounded}");
    }
}

#[test]
fn what_cannot_be_quantised_is_refused() {
    let folder = workshop("tiny");
    let at = folder.path();
    let quantize = |model: &str, format: &str, more: &[&str]| {
        run_in(at, [&["quantize", "--model", model, "--format", format, "--out", "new"][..], more].concat())
    };
    let rows = ["--data", "rows.jsonl"];
    quantize("tiny", "awq", &[]).assert_refused(2, &["--data"]);
    quantize("tiny", "fp8", &rows).assert_refused(2, &["--data", "fp8 needs none"]);
    quantize("tiny", "awq", &["--data", "none.jsonl"]).assert_refused(1, &["none.jsonl"]);
    let small = golden("train/model_a").display().to_string();
    quantize(&small, "awq", &rows).assert_refused(1, &["_proj", "multiple of 8 rows and of 128 columns"]);
    run_in(at, ["quantize", "--model", "tiny", "--format", "fp8", "--out", "fp8", "--quiet"]).ok();
    quantize("fp8", "fp8", &[]).assert_refused(1, &["fp8/config.json", "already quantised"]);
    run_in(at, ["quantize", "--model", "tiny", "--format", "fp8", "--out", "fp8"]).assert_refused(1, &["is not empty"]);
    run_in(at, ["quantize", "--model", "tiny", "--format", "fp8", "--out", "tiny"]).assert_refused(2, &["--model"]);
    for value in [f64::NAN, f64::INFINITY] {
        let folder = workshop("tiny");
        let name = "model.layers.1.mlp.down_proj.weight";
        let broken = |own: &str, t: &Tensor| {
            (own == name).then(|| t.values.iter().enumerate().map(|(i, x)| if i == 300 { value } else { *x }).collect())
        };
        change(&folder.path().join("tiny"), broken);
        let args = ["quantize", "--model", "tiny", "--format", "awq", "--out", "new", "--data", "rows.jsonl"];
        run_in(folder.path(), args).assert_refused(1, &[name, "NaN or infinite, at [1][44]"]);
    }
    let folder = workshop("tiny");
    let huge =
        |name: &str, t: &Tensor| (name.contains("1.mlp.up_proj")).then(|| t.values.iter().map(|x| x * 1e9).collect());
    change(&folder.path().join("tiny"), huge);
    let args = ["quantize", "--model", "tiny", "--format", "awq", "--out", "new", "--data", "rows.jsonl", "--quiet"];
    run_in(folder.path(), args).assert_refused(1, &["layers.1.mlp.up_proj", "too large for f16"]);
    assert!(!at.join("new").exists() && !folder.path().join("new").exists());
    // Nothing is left of a folder that was not finished.
    let left = support::file_names_in(folder.path()).into_iter().filter(|name| name.starts_with('.')).count();
    assert_eq!(left, 0);
}
