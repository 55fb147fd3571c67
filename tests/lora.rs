//! LoRA as commands: adapters of PEFT, training, resume, merge, generation, and invalid input.

mod support;
#[path = "support/tensors.rs"]
mod tensors;

use std::fs;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use support::{file_names_in, golden, read_metrics, run};
use tensors::{assert_close, read_tensors};

struct Place {
    dir: tempfile::TempDir,
    base: String,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a folder"), base: golden("train/model_a").display().to_string() }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// Computes logits with `reel score` for the inputs of PEFT's golden values.
    fn score(&self, model: &[&str]) -> Vec<f64> {
        self.score_inputs(&golden("lora/inputs.safetensors").display().to_string(), model)
    }

    fn score_inputs(&self, inputs: &str, model: &[&str]) -> Vec<f64> {
        let out = self.path("score.safetensors");
        let args = ["score", "--dtype", "f32", "--inputs", inputs, "--out", &out, "--quiet"];
        run([&args[..], model].concat()).ok();
        read_tensors(Path::new(&out))["logits"].values.clone()
    }

    fn sft(&self, out: &str, more: &[&str]) -> support::FinishedRun {
        let (data, out) = (golden("train/sft_all_tokens/data.jsonl").display().to_string(), self.path(out));
        let args = ["sft", "--model", &self.base, "--data", &data, "--out", &out, "--labels", "text", "--quiet"];
        run([
            &args[..],
            &["--learning-rate", "1e-2", "--save-steps", "2", "--dtype", "f32", "--lr-scheduler-type", "constant"],
            more,
        ]
        .concat())
    }
}

#[test]
fn peft_adapter_gives_pefts_logits_and_merge() {
    let p = Place::new();
    let want = read_tensors(&golden("lora/logits.safetensors"));
    for name in ["all_linear", "rslora"] {
        let adapter = golden("lora").join(name).display().to_string();
        assert_close(name, &p.score(&["--model", &p.base, "--adapter", &adapter]), &want[name].values, 1e-5);
        let merged = p.path(name);
        let said = run(["merge", "--model", &p.base, "--adapter", &adapter, "--out", &merged, "--json"]).json();
        assert!(said["layers"].as_u64().expect("a count") > 5 && said["bytes"].as_u64().expect("bytes") > 800_000);
        assert_close(name, &p.score(&["--model", &merged]), &want[name].values, 1e-5);
        assert_eq!(file_names_in(Path::new(&merged)), file_names_in(&golden("train/model_a")));
    }
}

#[test]
fn adapter_is_trained_used_and_merged() {
    let p = Place::new();
    p.sft("whole", &["--lora-r", "4", "--max-steps", "4", "--gradient-accumulation-steps", "1"]).ok();
    let (whole, parts) = (p.path("whole"), p.path("parts"));
    let names = file_names_in(Path::new(&whole));
    for name in ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "checkpoint-4", "run.json"] {
        assert!(names.iter().any(|n| n == name), "no {name} in {names:?}");
    }
    assert!(!names.iter().any(|n| n == "config.json" || n == "model.safetensors"), "{names:?}");
    // The adapter has two matrices for each of the seven linear layers of each decoder layer, and none for the vision
    // tower.
    let losses: Vec<f64> =
        read_metrics(Path::new(&whole)).iter().map(|m| m["loss"].as_f64().expect("a loss")).collect();
    assert_eq!(losses.len(), 4);
    let matrices = read_tensors(&Path::new(&whole).join("adapter_model.safetensors"));
    assert_eq!(matrices.len(), 2 * 7 * 2);
    assert!(
        matrices.keys().all(|name| name.starts_with("base_model.model.model.language_model.layers.")),
        "{:?}",
        matrices.keys()
    );

    // A resumed run gives the same bits as an uninterrupted one.
    let part = |steps: &str, more: &[&str]| {
        let args = ["--lora-r", "4", "--max-steps", steps, "--gradient-accumulation-steps", "1"];
        p.sft("parts", &support::with_options(&args, more)).ok().len()
    };
    part("2", &[]);
    part("4", &["--resume-from-checkpoint", "last"]);
    let bytes = |out: &str, name: &str| fs::read(Path::new(out).join(name)).expect("a file");
    for name in ["adapter_model.safetensors", "checkpoint-4/training/optimizer.safetensors"] {
        assert!(bytes(&whole, name) == bytes(&parts, name), "{name} differs");
    }
    let hash = |out: &str| read_metrics(Path::new(out)).last().expect("a line")["hash"].clone();
    assert_eq!(hash(&whole), hash(&parts));
    let other = ["--lora-r", "8", "--gradient-accumulation-steps", "1", "--max-steps", "6"];
    p.sft("parts", &[&other[..], &["--resume-from-checkpoint", "last"]].concat())
        .assert_refused(2, &["--lora-r: is 8, but was 4"]);

    // A step can be replayed from the base model or from a checkpoint.
    for step in ["1", "3"] {
        assert_eq!(run(["replay", &whole, "--step", step, "--json"]).json()["same"], true, "step {step}");
    }

    // The adapter folder as the model, the base model with `--adapter`, and the merged model give the same results.
    let own = p.score(&["--model", &whole]);
    assert_eq!(own, p.score(&["--model", &p.base, "--adapter", &whole]));
    assert_ne!(own, p.score(&["--model", &p.base]));
    let merged = p.path("merged");
    run(["merge", "--model", &p.base, "--adapter", &whole, "--out", &merged]).ok();
    assert_close("merged", &p.score(&["--model", &merged]), &own, 1e-6);
    // The merged model has the frame and pixel settings of the adapter's training.
    assert_eq!(bytes(&merged, "run.json"), bytes(&whole, "run.json"));
    let ask = |model: &str| {
        let args = ["generate", "--model", model, "--prompt", "Hello", "--max-new-tokens", "12", "--temperature", "0"];
        run([&args[..], &["--dtype", "f32", "--json"]].concat()).json()["token_ids"].clone()
    };
    assert_eq!(ask(&whole), ask(&merged));
}

#[test]
fn sampling_uses_the_adapter_and_the_reference_does_not() {
    let p = Place::new();
    let rows = p.path("rows.jsonl");
    let row = r#"{"prompt": [{"role": "user", "content": "2 + 2?"}], "problem_type": "numerical", "solution": "<answer>4</answer>"}"#;
    fs::write(&rows, format!("{row}\n{row}\n{row}\n")).expect("a file");
    for dtype in ["f32", "bf16"] {
        let out = p.path(dtype);
        let args = ["grpo", "--model", &p.base, "--data", &rows, "--out", &out, "--dtype", dtype, "--quiet"];
        let more = ["--num-generations", "2", "--per-device-train-batch-size", "2", "--max-completion-length", "8"];
        let lora =
            ["--lora-r", "4", "--lora-target-modules", "all-linear", "--max-steps", "3", "--learning-rate", "0.05"];
        // The rewards alternate between 0 and 1, so that advantages are not 0.
        let reward = ["--reward-command", "while read -r row; do i=$((i + 1)); echo $((i % 2)); done"];
        // With full checkpointing, training recomputes every product and reuses none from the rollout.
        let steps = ["--gradient-accumulation-steps", "1", "--gradient-checkpointing", "full"];
        run([&args[..], &more, &lora, &steps, &reward].concat()).ok();
        let lines = read_metrics(Path::new(&out));
        assert_eq!(lines.len(), 3);
        let of = |i: usize, key: &str| lines[i][key].as_f64().unwrap_or_else(|| panic!("no {key} in {}", lines[i]));
        // A new adapter does not change the outputs, so the policy equals the base model and KL is 0; after training
        // steps KL is above 0.
        assert_eq!(of(0, "kl"), 0.0, "{dtype}");
        for i in 0..3 {
            assert_eq!(of(i, "rollout_drift"), 0.0, "{dtype}, step {}", i + 1);
        }
        assert!(of(0, "grad_norm") > 0.0 && of(2, "kl") > 0.0, "{dtype}");
    }
}

/// PEFT's `modules_to_save`: the adapter has the output layer of a model with tied embeddings.
#[test]
fn an_adapter_with_its_own_output_layer_unties_the_embeddings() {
    let p = Place::new();
    let tiny = support::tiny_model(p.dir.path());
    let base = read_tensors(&tiny.join("model.safetensors"));
    let [vocab, hidden] = base["model.embed_tokens.weight"].shape[..] else { panic!("not a matrix") };
    let head: Vec<u8> =
        (0..vocab * hidden).flat_map(|i| ((i * 7919 % 1009) as f32 / 1009.0 - 0.5).to_le_bytes()).collect();
    let adapter = p.path("adapter");
    fs::create_dir(&adapter).expect("a folder");
    let view = TensorView::new(Dtype::F32, vec![vocab, hidden], &head).expect("a tensor");
    let file = Path::new(&adapter).join("adapter_model.safetensors");
    let bytes = safetensors::serialize([("base_model.model.lm_head.weight", view)], None).expect("a file");
    fs::write(file, bytes).expect("written");
    let config = r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "modules_to_save": ["lm_head"]}"#;
    fs::write(Path::new(&adapter).join("adapter_config.json"), config).expect("written");

    let (tiny, merged) = (tiny.display().to_string(), p.path("merged"));
    run(["merge", "--model", &tiny, "--adapter", &adapter, "--out", &merged, "--quiet"]).ok();
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(Path::new(&merged).join("config.json")).expect("a file")).expect("JSON");
    assert_eq!(config["tie_word_embeddings"], false);
    let ask = |more: &[&str]| {
        let args = ["generate", "--prompt", "Hello", "--max-new-tokens", "8", "--temperature", "0", "--json"];
        run([&args[..], more].concat()).json()["token_ids"].clone()
    };
    let with_adapter = ask(&["--model", &tiny, "--adapter", &adapter]);
    assert_eq!(with_adapter, ask(&["--model", &merged]));
    assert_ne!(with_adapter, ask(&["--model", &tiny]));
    // The adapters of a server share one base model.
    run(["serve", "--model", &tiny, "--port", "0", "--device", "cpu", "--lora", &format!("x={adapter}")])
        .assert_refused(1, &["lm_head.weight: replaces a tensor of the base model (modules_to_save)", "reel merge"]);
}

/// The safetensors format pads no header, so that elements may begin at odd addresses.
#[test]
fn files_whose_data_begin_at_any_byte_are_read() {
    let p = Place::new();
    let (base, adapter, inputs) =
        (golden("train/model_a"), golden("lora/all_linear"), golden("lora/inputs.safetensors"));
    let adapter = adapter.display().to_string();
    let wanted = p.score(&["--model", &p.base, "--adapter", &adapter]);
    for more in [1, 2, 3, 4] {
        let shifted = |from: &Path, to: &str| {
            let bytes = fs::read(from).expect("a file");
            let (length, rest) = bytes.split_first_chunk().expect("eight bytes");
            let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
            let header = [header, &b"    "[..more]].concat();
            fs::write(to, [&(header.len() as u64).to_le_bytes()[..], &header, data].concat()).expect("written");
        };
        let folder = |from: &Path, name: &str| {
            let to = p.path(&format!("{name}{more}"));
            fs::create_dir(&to).expect("a folder");
            for file in file_names_in(from) {
                let (from, to) = (from.join(&file), format!("{to}/{file}"));
                if file.ends_with(".safetensors") {
                    shifted(&from, &to);
                } else {
                    fs::copy(from, to).expect("copied");
                }
            }
            to
        };
        let (base, adapter, to) =
            (folder(&base, "base"), folder(Path::new(&adapter), "adapter"), p.path("in.safetensors"));
        shifted(&inputs, &to);
        assert_eq!(p.score_inputs(&to, &["--model", &base, "--adapter", &adapter]), wanted, "{more}");
    }
}

#[test]
fn invalid_input_gives_one_line_errors() {
    let p = Place::new();
    let golden = golden("lora/all_linear").display().to_string();
    let (base, out) = (p.base.clone(), p.path("out"));
    p.sft("x", &["--lora-r", "4", "--lora-target-modules", "q_proj,nope"])
        .assert_refused(2, &["--lora-target-modules: nope is not a linear layer", "q_proj, k_proj", "qkv"]);
    p.sft("x", &["--lora-r", "4", "--lora-target-modules", "qkv", "--freeze-vision"])
        .assert_refused(2, &["qkv is not a linear layer"]);
    p.sft("x", &["--lora-alpha", "4"]).assert_refused(2, &["--lora-alpha: is for LoRA"]);
    p.sft("x", &["--lora-r", "4", "--lora-alpha", "0"]).assert_refused(2, &["--lora-alpha: is 0"]);
    p.sft("x", &["--lora-r", "99999"]).assert_refused(2, &["--lora-r: is 99999"]);
    p.sft("x", &["--lora-r", "4", "--lora-target-modules", "all-linear,q_proj"])
        .assert_refused(2, &["combines all-linear with names of layers"]);
    p.sft("x", &["--lora-r", "4", "--learning-rate-vision", "1"])
        .assert_refused(2, &["trains no layer of the vision tower"]);
    assert!(!Path::new(&p.path("x")).exists(), "a refused run leaves no files");

    // Refused inputs: an adapter given as a model, a model given as an adapter, and an adapter that was trained on
    // another model.
    run(["sft", "--model", &golden, "--data", "d.json", "--out", &out])
        .assert_refused(1, &["is an adapter, not a model"]);
    run(["merge", "--model", &base, "--adapter", &base, "--out", &out]).assert_refused(1, &["is not an adapter"]);
    run(["merge", "--model", &golden, "--adapter", &golden, "--out", &out])
        .assert_refused(1, &["is an adapter, not a model"]);
    let tiny = support::tiny_model(p.dir.path()).display().to_string();
    run(["merge", "--model", &tiny, "--adapter", &golden, "--out", &out])
        .assert_refused(1, &["lora_", "the model that the adapter was trained on"]);
    assert!(!Path::new(&out).exists());
    run(["merge", "--model", &base, "--adapter", &golden, "--out", &tiny]).assert_refused(1, &["tiny: is not empty"]);
    let file = p.path("file");
    fs::write(&file, "x").expect("a file");
    run(["merge", "--model", &base, "--adapter", &golden, "--out", &file]).assert_refused(1, &["file: is a file"]);
    let ask = |more: &[&str]| run(support::with_options(&["generate", "--prompt", "x", "--max-new-tokens", "1"], more));
    ask(&["--model", &golden, "--adapter", &golden]).assert_refused(2, &["--model: is an adapter itself"]);
    let moved = p.path("moved");
    fs::create_dir(&moved).expect("a folder");
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        let text = fs::read(Path::new(&golden).join(name)).expect("a file");
        fs::write(Path::new(&moved).join(name), text).expect("a file");
    }
    ask(&["--model", &moved]).assert_refused(
        1,
        &[
            "base_model_name_or_path: names ../../train/model_a, which is neither a folder nor in the hub cache",
            "--adapter",
        ],
    );
}
