//! Compares adapters with results of PEFT (tests/golden/lora), with finite differences of the loss, and with merged
//! weights.

use std::fs;
use std::path::{Path, PathBuf};

use reel_input::ModelInput;
use reel_runtime::{Checkpointing, Cx, Grads, ops};
use serde_json::{Value, json};

use super::*;
use crate::batch::Batch;
use crate::checkpoint::Checkpoint;
use crate::quantization::Quantization;
use crate::qwen_vl::ForwardOptions;
use crate::save::{ConfigAndTokenizerFiles, TensorSpec, write_tensor_file_and_finish};
use crate::testing::qwen3_config;
use crate::widen::widen_to_f32;

pub(super) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

pub(super) fn base() -> PathBuf {
    golden("train/model_a")
}

pub(super) fn config() -> ModelConfig {
    ModelConfig::open(&base()).unwrap()
}

pub(super) fn spec(targets: &[&str], vision: bool) -> LoraSpec {
    LoraSpec { r: 3, alpha: 5.0, targets: targets.iter().map(|t| t.to_string()).collect(), vision }
}

pub(super) fn open(device: &Device, folder: &Path) -> QwenVl {
    QwenVl::open(device, &Checkpoint::open(folder).unwrap(), &config(), DType::F32).unwrap()
}

fn with_peft(device: &Device, name: &str, trained: bool) -> QwenVl {
    let adapter = Adapter::open(&golden("lora").join(name)).unwrap();
    adapter.check(&config()).unwrap();
    open(device, &base()).with_adapter(device, DType::F32, AdapterSource::Files(&adapter), trained).unwrap()
}

pub(super) fn batch(device: &Device) -> (Batch, Vec<i32>) {
    let tokens = ModelInput::read(&golden("lora/inputs.safetensors"), &config()).unwrap();
    let next: Vec<i32> = tokens.input_ids[1..].iter().map(|&id| id as i32).chain([-1]).collect();
    (Batch::new(device, &config(), &[tokens.sequence()], "inputs").unwrap(), next)
}

pub(super) fn logits(device: &Device, model: &QwenVl) -> Vec<f32> {
    let cx = Cx::inference(device, DType::F32);
    let hidden = model.forward(&cx, &batch(device).0, ForwardOptions::default()).unwrap();
    model.logits(&cx, &hidden).unwrap().to_f32().unwrap()
}

fn expected(name: &str) -> Vec<f32> {
    let bytes = fs::read(golden("lora/logits.safetensors")).unwrap();
    let stored = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    widen_to_f32(reel_input::tensor_file::StoredDType::F32, stored.tensor(name).unwrap().data()).unwrap()
}

pub(super) fn off(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let sum = |f: &dyn Fn(f64, f64) -> f64| got.iter().zip(want).map(|(&g, &w)| f(g.into(), w.into())).sum::<f64>();
    (sum(&|g, w| (g - w) * (g - w)) / sum(&|_, w| w * w)).sqrt()
}

const PEFTS: [&str; 2] = ["all_linear", "rslora"];

#[test]
fn logits_with_peft_adapters_equal_peft() {
    let device = Device::cpu(2);
    assert!(off(&logits(&device, &open(&device, &base())), &expected("base")) <= 1e-5);
    for name in PEFTS {
        let off = off(&logits(&device, &with_peft(&device, name, false)), &expected(name));
        assert!(off <= 1e-5, "{name}: off by {off:.2e}");
    }
}

/// The error of an adapter on int8 weights is no larger than the error of the quantised base model: the logits with
/// the adapter are off by no more than the logits of the base model alone.
#[test]
fn adapters_work_with_an_int8_base() {
    let device = Device::cpu(2);
    let files = Checkpoint::open(&base()).unwrap();
    let int8 = || QwenVl::open_quantized(&device, &files, &config(), DType::F32, Quantization::Int8, None).unwrap();
    let rounding = off(&logits(&device, &int8()), &expected("base"));
    assert!((1e-4..0.05).contains(&rounding), "{rounding:.2e}");
    for name in PEFTS {
        let adapter = Adapter::open(&golden("lora").join(name)).unwrap();
        let adapted = int8().with_adapter(&device, DType::F32, AdapterSource::Files(&adapter), false).unwrap();
        let got = logits(&device, &adapted);
        let (from_peft, from_base) = (off(&got, &expected(name)), off(&got, &expected("base")));
        assert!(from_peft < 3.0 * rounding && from_peft < 0.3 * from_base, "{name}: {from_peft:.2e}, {from_base:.2e}");
    }
}

#[test]
fn merged_model_equals_adapted_model() {
    let device = Device::cpu(2);
    for name in PEFTS {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("merged");
        let merged = merge_adapter(&base(), &golden("lora").join(name), &out, &[], None, &device).unwrap();
        assert_eq!(merged.layers, Adapter::open(&golden("lora").join(name)).unwrap().adapted_layers().count());
        let off = off(&logits(&device, &open(&device, &out)), &logits(&device, &with_peft(&device, name, false)));
        // A merged weight is rounded once, and its sums run in another order than those of base weight and adapter,
        // so the logits differ slightly.
        assert!(off <= 3e-6, "{name}: off by {off:.2e}");
        weights_are_the_formula(&out, &golden("lora").join(name));
        // All files except the weights equal the files of the base folder, and there are no further files.
        for entry in fs::read_dir(base()).unwrap().map(|e| e.unwrap().file_name()) {
            if entry != "model.safetensors" {
                assert!(fs::read(base().join(&entry)).unwrap() == fs::read(out.join(&entry)).unwrap(), "{entry:?}");
            }
        }
        assert_eq!(fs::read_dir(&out).unwrap().count(), fs::read_dir(base()).unwrap().count());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let again =
            merge_adapter(&base(), &golden("lora").join(name), &out, &[], None, &device).unwrap_err().to_string();
        assert!(again.contains("merged: is not empty; "), "{again}");
    }
}

/// Compares each merged weight with `W + scale · B A`, computed in f64.
pub(super) fn weights_are_the_formula(merged: &Path, adapter: &Path) {
    let (before, after) = (Checkpoint::open(&base()).unwrap(), Checkpoint::open(merged).unwrap());
    let adapter = Adapter::open(adapter).unwrap();
    let values = |files: &Checkpoint, name: &str| {
        widen_to_f32(reel_input::tensor_file::StoredDType::F32, files.tensor(name).unwrap().bytes).unwrap()
    };
    for name in before.tensor_names() {
        let (old, new) = (values(&before, name), values(&after, name));
        let Some(pair) = adapter.matrices(name.strip_suffix(".weight").unwrap_or_default()).unwrap() else {
            assert_eq!(old, new, "{name}");
            continue;
        };
        assert_ne!(old, new, "{name}");
        for (i, (old, new)) in old.iter().zip(&new).enumerate() {
            let (row, column) = (i / pair.inner, i % pair.inner);
            let terms = (0..pair.r)
                .map(|k| f64::from(pair.up[row * pair.r + k]) * f64::from(pair.down[k * pair.inner + column]));
            let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
            let want = f64::from(*old) + f64::from(pair.scale) * sum;
            let bound = 1e-6 * (f64::from(*old).abs() + f64::from(pair.scale) * size);
            assert!((f64::from(*new) - want).abs() <= bound, "{name}[{i}] is {new}, not {want}");
        }
    }
}

/// The slope of the loss along the gradient of a matrix must equal the length of that gradient; the slope is measured
/// with finite differences.
#[test]
fn gradients_equal_finite_differences_of_the_loss() {
    let device = Device::cpu(2);
    let model = with_peft(&device, "all_linear", true);
    let (batch, next) = batch(&device);
    let targets = Tensor::from_i32(&device, &[next.len()], &next).unwrap();
    let loss = |cx: &Cx| {
        let hidden = model.forward(cx, &batch, ForwardOptions::default()).unwrap();
        let log_probs = ops::linear_log_prob(cx, &hidden, model.text.lm_head().unwrap(), &targets, 1.0).unwrap();
        let each = vec![-1.0; next.len()];
        let each = Tensor::from_f32(&device, &[next.len()], DType::F32, &each, MemoryCategory::Inputs).unwrap();
        ops::weighted_sum(cx, &log_probs, &each).unwrap()
    };
    let gradients = |checkpointing| {
        let cx = Cx::training(&device, DType::F32).with_checkpointing(checkpointing);
        let mut grads = Grads::new();
        cx.backward(&loss(&cx), 1.0, &mut grads).unwrap();
        grads.iter().map(|(name, g)| (name.to_string(), g.to_f32().unwrap())).collect::<Vec<_>>()
    };
    let grads = gradients(Checkpointing::None);
    for checkpointing in [Checkpointing::Selective, Checkpointing::Full] {
        assert_eq!(grads, gradients(checkpointing), "{checkpointing:?}: recomputing activations changed the gradients");
    }
    let parameters: Vec<Tensor> = model.parameters().cloned().collect();
    assert_eq!(
        parameters.len(),
        2 * linear_layers(&config()).len(),
        "the parameters are not exactly the matrices of the adapter"
    );
    assert_eq!(grads.len(), parameters.len());
    for (name, gradient) in &grads {
        let p = parameters.iter().find(|p| p.parameter_name() == Some(name)).unwrap();
        let before = p.to_f32().unwrap();
        let length = gradient.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        // A step of size h changes the loss by about 0.02. This is far more than rounding errors, and the loss is
        // still nearly linear in h.
        let h = 0.02 / length;
        let moved = |by: f64| {
            let at: Vec<f32> =
                before.iter().zip(gradient).map(|(x, &g)| x + (by / length * f64::from(g)) as f32).collect();
            p.write(&at).unwrap();
            let value = loss(&Cx::inference(&device, DType::F32)).to_f32().unwrap()[0];
            f64::from(value)
        };
        let slope = (8.0 * (moved(h) - moved(-h)) - (moved(2.0 * h) - moved(-2.0 * h))) / (12.0 * h);
        p.write(&before).unwrap();
        assert!(
            (slope / length - 1.0).abs() <= 1e-2,
            "{name}: the loss has slope {slope} along a gradient of length {length}"
        );
    }
}

#[test]
fn new_adapter_changes_no_bits() {
    let device = Device::cpu(2);
    let spec = spec(&[ALL_LINEAR], true);
    let layers = spec.target_layers(&config()).unwrap();
    let base = open(&device, &base());
    let new = |seed| {
        let source = AdapterSource::New(&layers, &spec, seed);
        base.clone().with_adapter(&device, DType::F32, source, false).unwrap()
    };
    assert_eq!(logits(&device, &new(1)), logits(&device, &base));
    let held = device.memory().current;
    let adapted = with_peft(&device, "all_linear", false);
    assert_ne!(logits(&device, &adapted), logits(&device, &base));
    let with = device.memory().current;
    let bare = adapted.without_adapter();
    assert_eq!((logits(&device, &bare), device.memory().current), (logits(&device, &base), with));
    assert!(with > held);
}

#[test]
fn new_a_is_uniform_by_seed_and_name_and_b_is_zero() {
    let device = Device::cpu(1);
    let spec = LoraSpec { r: 200, ..spec(&["q_proj", "down_proj"], false) };
    let layers = spec.target_layers(&config()).unwrap();
    let matrices = |seed| {
        let source = AdapterSource::New(&layers, &spec, seed);
        let of = |name| source.of(&device, DType::F32, name, (None, RowShare::ALL_ROWS)).unwrap().unwrap();
        ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "model.layers.0.mlp.down_proj"].map(of)
    };
    let values = |lora: &Lora| lora.down.to_f32().unwrap();
    let (one, same, other) = (matrices(1), matrices(1), matrices(2));
    assert_eq!(values(&one[0]), values(&same[0]));
    assert_ne!(values(&one[0]), values(&other[0]));
    assert_ne!(values(&one[0]), values(&one[1]));
    for lora in &one {
        let (a, bound) = (values(lora), 1.0 / (lora.down.shape()[1] as f64).sqrt());
        let mean = a.iter().map(|&x| f64::from(x)).sum::<f64>() / a.len() as f64;
        let square = a.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / a.len() as f64;
        assert!(a.iter().all(|&x| f64::from(x.abs()) <= bound));
        assert!(mean.abs() < 0.03 * bound && (square * 3.0 / bound.powi(2) - 1.0).abs() < 0.05, "{mean} {square}");
        assert!(lora.up.to_f32().unwrap().iter().all(|&x| x == 0.0));
        assert_eq!(lora.scale, 5.0 / 200.0);
    }
}

#[test]
fn targets_match_layers_like_peft() {
    let names = |targets: &[&str], vision| -> Vec<String> {
        spec(targets, vision).target_layers(&config()).unwrap().into_iter().map(|layer| layer.name).collect()
    };
    // The model has two decoder layers and three vision blocks.
    assert_eq!(names(&["q_proj"], true), ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]);
    assert_eq!(names(&["gate_proj"], true).len(), 5);
    assert_eq!(names(&["gate_proj"], false).len(), 2);
    assert_eq!(names(&DECODER_LINEAR_LAYERS, false).len(), 14);
    assert_eq!(names(&[ALL_LINEAR], true).len(), 2 * 7 + 3 * 5 + 2);
    assert_eq!(
        names(&["proj"], true).len(),
        3,
        "`proj` must match attn.proj of each vision block only, not names that end in _proj"
    );
    assert_eq!(
        names(&["layers.1.mlp.up_proj", "merger.mlp.0"], true),
        ["visual.merger.mlp.0", "model.layers.1.mlp.up_proj"]
    );
    assert_eq!(names(&["model.language_model.layers.0.mlp.up_proj"], false), ["model.layers.0.mlp.up_proj"]);
    // A saved config lists layer names instead of all-linear; they must match the same layers.
    let all = spec(&[ALL_LINEAR], true);
    let written = LoraSpec { targets: all.target_names(Family::Qwen25Vl), ..all.clone() };
    assert_eq!(written.target_layers(&config()).unwrap(), all.target_layers(&config()).unwrap());
    for (target, vision) in
        [("lm_head", true), ("embed_tokens", true), ("qkv", false), ("q_prj", true), ("_proj", true)]
    {
        assert_eq!(spec(&["v_proj", target], vision).target_layers(&config()).unwrap_err().target, target);
    }
}

/// In Qwen3-VL, `all-linear` selects every linear layer except the output layer: no table and no convolution.
#[test]
fn targets_of_qwen3_match_layers_like_peft() {
    let config = ModelConfig { tie_word_embeddings: false, ..qwen3_config() };
    let names = |targets: &[&str], vision| -> Vec<String> {
        spec(targets, vision).target_layers(&config).unwrap().into_iter().map(|layer| layer.name).collect()
    };
    let is_linear = |name: &str| {
        let tables = ["lm_head", "embed_tokens", "pos_embed", "patch_embed", "norm"];
        !tables.iter().any(|part| name.contains(part))
    };
    let all: Vec<String> = crate::checkpoint::expected_tensors(&config)
        .into_iter()
        .filter_map(|(name, _)| Some(name.strip_suffix(".weight")?.to_string()))
        .filter(|name| is_linear(name))
        .collect();
    // Two decoder layers, four vision blocks, the merger and two DeepStack mergers.
    assert_eq!((all.len(), &names(&[ALL_LINEAR], true)), (2 * 7 + 4 * 4 + 3 * 2, &all));
    assert_eq!(names(&[ALL_LINEAR], false).len(), 2 * 7);
    assert_eq!(names(&["linear_fc1"], true).len(), 4 + 3);
    assert_eq!(names(&["proj"], true), names(&["attn.proj"], true));
    let own = spec(&["proj", "deepstack_merger_list.1.linear_fc2"], true).target_names(Family::Qwen3Vl);
    assert_eq!(own, ["attn.proj", "deepstack_merger_list.1.linear_fc2"]);
    for vision in [false, true] {
        let all = spec(&[ALL_LINEAR], vision);
        let written = LoraSpec { targets: all.target_names(Family::Qwen3Vl), ..all.clone() };
        assert_eq!(written.target_layers(&config).unwrap(), all.target_layers(&config).unwrap());
        for target in ["mlp.0", "pos_embed", "patch_embed.proj", "lm_head", "q_norm"] {
            let error = spec(&[target], vision).target_layers(&config).unwrap_err();
            assert_eq!((&error.target[..], error.known.contains(&"linear_fc2")), (target, vision));
        }
    }
}

#[test]
fn adapters_of_the_other_family_are_refused_by_name() {
    let folder = golden("lora/all_linear");
    let error = Adapter::open(&folder).unwrap().check(&qwen3_config()).unwrap_err().to_string();
    let file = folder.join(ADAPTER_WEIGHTS_FILE).display().to_string();
    assert!(error.starts_with(&format!("{file}: base_model.model.")) && !error.contains('\n'), "{error}");
    assert!(error.contains("a layer that the model does not have") || error.contains("has shape ["), "{error}");
}

/// Saves some adapter tensors of the decoder, then reads the folder back.
#[test]
fn saved_adapter_reads_back_equal() {
    let dir = tempfile::tempdir().unwrap();
    let adapter = Adapter::open(&golden("lora/all_linear")).unwrap();
    let spec = LoraSpec { alpha: 5.0, ..spec(&["q_proj"], false) };
    let names = ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"];
    let matrix = |name: &str, part: &str| {
        let shape = if part == "lora_A" { vec![3, 64] } else { vec![64, 3] };
        TensorSpec { name: format!("{name}.{part}.weight"), dtype: reel_input::tensor_file::StoredDType::F32, shape }
    };
    let tensors: Vec<TensorSpec> = names.iter().flat_map(|n| [matrix(n, "lora_A"), matrix(n, "lora_B")]).collect();
    let small_files = ConfigAndTokenizerFiles::read(&base()).unwrap();
    let folder =
        AdapterFolder { spec: &spec, family: Family::Qwen25Vl, base: "/models/base", small_files: &small_files };
    save_adapter(dir.path(), folder, &tensors, |spec, to| {
        let (layer, part) = spec.name.strip_suffix(".weight").unwrap().rsplit_once('.').unwrap();
        let pair = adapter.matrices(layer).unwrap().unwrap();
        to.write_all(bytemuck::cast_slice(if part == "lora_A" { &pair.down } else { &pair.up }))
    })
    .unwrap();
    let again = Adapter::open(dir.path()).unwrap();
    again.check(&config()).unwrap();
    assert_eq!((again.base_model(), again.scale(names[1])), (Some("/models/base"), Some(5.0 / 3.0)));
    assert_eq!(again.adapted_layers().collect::<Vec<_>>(), names);
    assert!(names.iter().all(|name| again.matrices(name).unwrap() == adapter.matrices(name).unwrap()));
    assert!(dir.path().join("tokenizer.json").is_file() && !dir.path().join("config.json").exists());
    // transformers 5 knows no other names.
    let bytes = fs::read(dir.path().join(ADAPTER_WEIGHTS_FILE)).unwrap();
    let stored = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert!(stored.names().iter().all(|name| name.starts_with("base_model.model.model.language_model.layers.")));
}

/// A copy of a golden adapter, which a test may damage.
fn copy(dir: &Path) -> PathBuf {
    let to = dir.join("adapter");
    fs::create_dir(&to).unwrap();
    for name in [ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE] {
        fs::copy(golden("lora/all_linear").join(name), to.join(name)).unwrap();
    }
    to
}

/// The error message of merging an adapter after `change` has altered its config or its folder.
fn merge_error(change: impl FnOnce(&mut Value, &Path)) -> String {
    let dir = tempfile::tempdir().unwrap();
    let folder = copy(dir.path());
    let path = folder.join(ADAPTER_CONFIG_FILE);
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut config, &folder);
    fs::write(&path, config.to_string()).unwrap();
    let out = dir.path().join("out");
    let error = merge_adapter(&base(), &folder, &out, &[], None, &Device::cpu(1)).unwrap_err().to_string();
    assert!(!out.exists() && fs::read_dir(dir.path()).unwrap().count() == 1, "files are left over: {error}");
    assert!(!error.contains('\n') && error.contains("; "), "{error}");
    error
}

#[test]
fn rejects_other_adapters_than_plain_lora() {
    let cases: [(&str, Value, &str); 15] = [
        ("use_dora", json!(true), "asks for DoRA"),
        ("r", json!(0), "is 0, expected a rank"),
        ("r", json!("8"), "is \"8\", expected a rank"),
        ("lora_alpha", Value::Null, "is null, expected a number"),
        ("lora_alpha", json!(1e300), "outside the range of f32"),
        ("peft_type", json!("LOHA"), "is LOHA, not LORA"),
        ("bias", json!("all"), "biases of the base model were trained too"),
        ("modules_to_save", json!("lm_head"), "is \"lm_head\", expected a list of names"),
        ("rank_pattern", json!(["q_proj"]), "is [\"q_proj\"], expected an object"),
        ("rank_pattern", json!({"q_proj": 0}), "has the key \"q_proj\", whose value is 0, expected a rank"),
        ("alpha_pattern", json!({"q_proj": "2"}), "whose value is \"2\", expected a number"),
        ("alpha_pattern", json!({"(?=q)": 2}), "has the key \"(?=q)\", which is not a supported regular expression"),
        ("fan_in_fan_out", json!(true), "transposed"),
        ("init_lora_weights", json!("pissa"), "is pissa, which changed the weights of the base model"),
        ("target_parameters", json!(["x"]), "outside of linear layers"),
    ];
    for (field, value, words) in cases {
        let error = merge_error(|config, _| config[field] = value.clone());
        assert!(
            error.contains(&format!("{ADAPTER_CONFIG_FILE}: {field}: ")) && error.contains(words),
            "{field}: {error}"
        );
    }
}

#[test]
fn rejects_adapters_of_other_models() {
    let error = merge_error(|config, _| config["r"] = json!(4));
    assert!(error.contains(".weight: has shape [3, ") && error.contains("by the model and r = 4; "), "{error}");
    let error = merge_error(|_, folder| {
        let path = folder.join(ADAPTER_WEIGHTS_FILE);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 9]).unwrap();
    });
    assert!(error.contains("is cut off, or has bytes after its last tensor"), "{error}");
    let write = |folder: &Path, name: &str, shape: Vec<usize>, value: f32| {
        let tensors = [TensorSpec { name: name.into(), dtype: reel_input::tensor_file::StoredDType::F32, shape }];
        write_tensor_file_and_finish(
            Vec::new(),
            &folder.join(ADAPTER_WEIGHTS_FILE),
            str::to_string,
            &tensors,
            |spec, to| to.write_all(&value.to_le_bytes().repeat(spec.shape.iter().product())),
        )
        .unwrap();
    };
    for (name, shape, value, words) in [
        (
            "base_model.model.model.layers.2.mlp.up_proj.lora_A.weight",
            [3, 64],
            0.0,
            "a layer that the model does not have",
        ),
        ("base_model.model.lm_head.lora_A.weight", [3, 64], 0.0, "cannot have an adapter"),
        ("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight", [3, 64], 0.0, "has no counterpart"),
        ("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight", [3, 64], f32::NAN, "a value that is not finite"),
        (
            "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight",
            [3, 65],
            0.0,
            "has shape [3, 65], expected [3, 64]",
        ),
        ("base_model.model.model.embed_tokens.lora_embedding_A", [3, 64], 0.0, "is not a matrix of a LoRA adapter"),
        ("model.layers.0.mlp.up_proj.weight", [3, 64], 0.0, "is not a matrix of a LoRA adapter"),
    ] {
        let error = merge_error(|_, folder| write(folder, name, shape.to_vec(), value));
        assert!(error.contains(name) && error.contains(words), "{name}: {error}");
    }
    let error = merge_error(|_, folder| {
        fs::rename(folder.join(ADAPTER_WEIGHTS_FILE), folder.join("adapter_model.bin")).unwrap();
    });
    assert!(error.contains("is a pickle file"), "{error}");
    let none = Adapter::open(&base()).unwrap_err().to_string();
    assert!(none.contains("model_a: is not an adapter"), "{none}");
}

#[test]
fn rejects_a_merge_outside_the_dtype_range() {
    let dir = tempfile::tempdir().unwrap();
    // The base is stored in f16, whose largest value is 65504.
    let base_f16 = dir.path().join("base");
    fs::create_dir(&base_f16).unwrap();
    for name in ["config.json", "tokenizer.json"] {
        fs::copy(base().join(name), base_f16.join(name)).unwrap();
    }
    let files = Checkpoint::open(&base()).unwrap();
    let specs: Vec<TensorSpec> = crate::checkpoint::expected_tensors(&config())
        .into_iter()
        .map(|(name, shape)| TensorSpec { name, dtype: reel_input::tensor_file::StoredDType::F16, shape })
        .collect();
    write_tensor_file_and_finish(
        Vec::new(),
        &base_f16.join("model.safetensors"),
        str::to_string,
        &specs,
        |spec, to| {
            let view = files.tensor(&spec.name).unwrap();
            let wide = widen_to_f32(view.dtype, view.bytes).unwrap();
            wide.iter().try_for_each(|&x| to.write_all(&half::f16::from_f32(x).to_le_bytes()))
        },
    )
    .unwrap();
    let adapter = copy(dir.path());
    let device = Device::cpu(1);
    merge_adapter(&base_f16, &adapter, &dir.path().join("fits"), &[], None, &device).unwrap();
    let path = adapter.join(ADAPTER_CONFIG_FILE);
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["lora_alpha"] = json!(1e9);
    fs::write(&path, config.to_string()).unwrap();
    let error =
        merge_adapter(&base_f16, &adapter, &dir.path().join("out"), &[], None, &device).unwrap_err().to_string();
    assert!(error.contains(": has a value outside the range of F16; "), "{error}");
    assert!(!dir.path().join("out").exists());
}
