//! Tests of a model whose lists are as long as those of a published model: 36 decoder layers, 32 vision blocks, all
//! tensor names, a vocabulary of 151,936. Its hidden size is only 16, so training, serving and saving take seconds.
//! Here the headers of the weights file and of the optimizer state exceed 65,535 bytes, which they do not with a tiny
//! model.

use std::fs;
use std::path::{Path, PathBuf};

use reel_input::config::ModelConfig;
use reel_input::tensor_file::StoredDType;
use reel_model::checkpoint::{TensorNaming, expected_tensors};
use reel_model::init::{InitOptions, Preset, init_without_weights};
use reel_model::save::{TensorSpec, write_weights};
use serde_json::{Value, json};

use crate::server::{Server, question};
use crate::support::{file_names_in, golden, run_in};

/// Maximum size of a shard in bytes; it is small, so that the folder has several shards and an index.
const SHARD_BYTES: u64 = 2 << 20;

/// Creates a folder with the wide model, a question about an image, and training rows with this question.
fn wide_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let at = folder.path();
    write_wide_model(&at.join("wide"));
    fs::copy(golden("grpo/grpo_clip_iter2/media/b.png"), at.join("b.png")).expect("an image");
    let asked =
        json!({"role": "user", "content": [{"type": "image", "image": "b.png"}, {"type": "text", "text": "Left?"}]});
    let write = |name: &str, value: &Value| fs::write(at.join(name), value.to_string()).expect("written");
    write("m.json", &json!([asked]));
    write("sft.json", &json!([{"messages": [asked, {"role": "assistant", "content": "No."}]}]));
    write(
        "grpo.json",
        &json!([{"prompt": [asked], "solution": "<answer>A</answer>", "problem_type": "multiple choice"}]),
    );
    folder
}

/// Writes the wide model: the config and other small files of the 3B preset, with smaller sizes, and random weights.
fn write_wide_model(folder: &Path) {
    let options = InitOptions { preset: Preset::B3, layers: None, vocab: None, dtype: None, seed: 0 };
    init_without_weights(&options, folder).expect("the small files");
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).expect("a config")).expect("JSON");
    for (key, value) in [("hidden_size", 16), ("intermediate_size", 16), ("num_attention_heads", 2)] {
        config[key] = value.into();
    }
    config["num_key_value_heads"] = 1.into();
    config["rope_scaling"]["mrope_section"] = json!([1, 1, 2]);
    for (key, value) in [("hidden_size", 16), ("intermediate_size", 16), ("num_heads", 2), ("out_hidden_size", 16)] {
        config["vision_config"][key] = value.into();
    }
    fs::write(&path, config.to_string()).expect("written");
    let config = ModelConfig::open(folder).expect("a config");
    assert_eq!((config.text.num_hidden_layers, config.vision.depth, config.text.vocab_size), (36, 32, 151_936));
    let dtype = StoredDType::Bf16;
    let specs: Vec<TensorSpec> =
        expected_tensors(&config).into_iter().map(|(name, shape)| TensorSpec { name, dtype, shape }).collect();
    // Weights come from a linear congruential generator and are uniform in ±0.125; the weights of norms are 1.
    let mut state = 1u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 26) as f32 - 0.125
    };
    write_weights(folder, TensorNaming::Classic, &specs, SHARD_BYTES, |spec, out| {
        let is_norm = spec.shape.len() == 1 && spec.name.contains("norm");
        let elements = spec.shape.iter().product::<usize>();
        // The upper half of an f32 is its value as bf16, rounded toward zero.
        let bf16 = |x: f32| (x.to_bits() >> 16) as u16;
        let value = |_| bf16(if is_norm { 1.0 } else { random() }).to_le_bytes();
        out.write_all(&(0..elements).flat_map(value).collect::<Vec<u8>>())
    })
    .expect("the weights");
    assert!(folder.join("model.safetensors.index.json").exists());
}

/// Runs a command of reel in the folder; options are separated by spaces.
#[track_caller]
fn reel(folder: &Path, command: &str) -> String {
    run_in(folder, command.split_whitespace().chain(["--quiet"])).ok().to_string()
}

/// Removes what the run `out` wrote after step 1, as if it had been killed there, and resumes it to step 2. Checks
/// that the weights equal those of the uninterrupted run.
fn resume_equals(folder: &Path, out: &str, weights: &str, command: &str) {
    let straight = fs::read(folder.join(out).join(weights)).expect("weights");
    for name in file_names_in(&folder.join(out)).iter().filter(|name| *name == "checkpoint-2" || *name == weights) {
        let path = folder.join(out).join(name);
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.expect("removed");
    }
    reel(folder, &format!("{command} --resume-from-checkpoint last"));
    let resumed = fs::read(folder.join(out).join(weights)).expect("weights");
    assert!(straight == resumed, "{out}: the resumed run has different weights");
}

/// Returns the header length of a safetensors file.
fn header_bytes(path: PathBuf) -> u64 {
    let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"))
}

#[test]
fn all_weights_are_trained_saved_and_resumed_with_every_optimizer() {
    let folder = wide_folder();
    let at = folder.path();
    for optim in ["adamw", "adamw-bf16", "adamw-8bit"] {
        let command = format!(
            "sft --model wide --data sft.json --out {optim} --optim {optim} --max-steps 2 --save-steps 1 \
             --gradient-accumulation-steps 1 --learning-rate 1e-3"
        );
        reel(at, &command);
        let trained = at.join(optim);
        assert!(header_bytes(trained.join("model.safetensors")) > u64::from(u16::MAX));
        assert!(header_bytes(trained.join("checkpoint-1/training/optimizer.safetensors")) > u64::from(u16::MAX));
        resume_equals(at, optim, "model.safetensors", &command);
        reel(at, &format!("replay {optim} --step 2"));
    }
    reel(at, "generate --model adamw --messages m.json --max-new-tokens 3");
}

/// The embedding and the output layer have more weights than a cell, so several processes own parts of each.
#[test]
fn several_processes_train_and_save_the_bits_of_one() {
    let folder = wide_folder();
    let at = folder.path();
    let train = |out: &str, optim: &str, more: &str| {
        let command = format!(
            "sft --model wide --data sft.json --out {out} --optim {optim} --dtype bf16 --num-train-epochs 3 --max-steps 1 \
             --save-steps 1 --gradient-accumulation-steps 3 --learning-rate 1e-3 {more}"
        );
        reel(at, &command);
    };
    for optim in ["adamw", "adamw-8bit"] {
        let [one, three] = ["1", "3"].map(|processes| format!("{optim}-{processes}"));
        train(&one, optim, "");
        train(&three, optim, "--gpus 3");
        for file in ["model.safetensors", "checkpoint-1/training/optimizer.safetensors"] {
            let bytes = |out: &str| fs::read(at.join(out).join(file)).expect("a file");
            assert!(bytes(&one) == bytes(&three), "{optim}: {file} differs");
        }
    }
}

#[test]
fn adapters_of_all_layers_are_trained_merged_and_served_with_every_optimizer() {
    let folder = wide_folder();
    let at = folder.path();
    for optim in ["adamw", "adamw-bf16", "adamw-8bit"] {
        let command = format!(
            "sft --model wide --data sft.json --out {optim} --optim {optim} --max-steps 2 --save-steps 1 --lora-r 2 \
             --lora-target-modules all-linear --gradient-accumulation-steps 1 --learning-rate 1e-2"
        );
        reel(at, &command);
        assert!(header_bytes(at.join(optim).join("adapter_model.safetensors")) > u64::from(u16::MAX));
        resume_equals(at, optim, "adapter_model.safetensors", &command);
    }
    reel(at, "replay adamw --step 2");
    reel(at, "merge --model wide --adapter adamw --out merged");
    assert!(header_bytes(at.join("merged/model.safetensors")) > u64::from(u16::MAX));
    let generate =
        |model: &str| reel(at, &format!("generate {model} --messages m.json --max-new-tokens 4 --temperature 0"));
    assert_eq!(generate("--model merged --dtype f32"), generate("--model wide --adapter adamw --dtype f32"));
    reel(at, "score --model wide --messages m.json --out s.safetensors");
    assert_eq!(file_names_in(at).iter().filter(|name| *name == "s.safetensors").count(), 1);
    let model = at.join("wide");
    let server = Server::start_with(folder, model, &["--quiet"]);
    server.chat(&json!({"messages": question("x"), "max_tokens": 2})).ok();
}

#[test]
fn completions_are_sampled_rewarded_and_replayed() {
    let folder = wide_folder();
    let at = folder.path();
    for (out, lora) in [("all", ""), ("lora", "--lora-r 2 --lora-target-modules all-linear")] {
        reel(
            at,
            &format!(
                "grpo --model wide --data grpo.json --out {out} --max-steps 2 --save-steps 1 --num-generations 2 \
                 --per-device-train-batch-size 2 --gradient-accumulation-steps 1 --max-completion-length 4 \
                 --learning-rate 1e-3 {lora}"
            ),
        );
        reel(at, &format!("replay {out} --step 2"));
    }
}
