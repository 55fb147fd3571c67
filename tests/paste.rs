//! Runs published commands of other programs on a tiny model. Each command runs, or is refused with one message whose
//! corrected command runs. `tests/paste/README.md` lists the sources; the tests in `cli/paste_tests` translate all of
//! the commands.

#[path = "paste/every_command.rs"]
mod every_command;
#[path = "support/server.rs"]
mod server;
mod support;
#[path = "support/tensors.rs"]
mod tensors;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use server::Server;
use support::{FinishedRun, finished_run, reel, run_in, tiny_model};
use tensors::read_tensors;

/// Options that keep a run short.
const SHORT: &str = "--max-steps 1 --device cpu --overwrite --save-steps 0";

fn rows() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/paste/rows")
}

/// Creates a folder with a tiny model named `tiny`, and the test rows with their media.
fn workshop() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    tiny_model(folder.path());
    for entry in std::fs::read_dir(rows()).expect("the rows") {
        let path = entry.expect("an entry").path();
        std::fs::copy(&path, folder.path().join(path.file_name().expect("a name"))).expect("a copy");
    }
    folder
}

/// Returns the published commands of both JSON files.
fn commands() -> Vec<Value> {
    let list = |text: &str| serde_json::from_str::<Vec<Value>>(text).expect("a list");
    [list(include_str!("paste/commands.json")), list(include_str!("paste/further.json"))].concat()
}

/// Returns the words and the environment of a published command, with MODEL and DATA replaced.
fn published(folder: &Path, id: &str) -> (Vec<String>, Vec<(String, String)>) {
    let all = commands();
    let entry = all.iter().find(|entry| entry["id"] == id).expect("the command");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let data = text(&entry["rows"]);
    let mut words: Vec<String> = text(&entry["command"]).split(' ').map(String::from).collect();
    let base = all.iter().find(|other| other["id"] == entry["base"]).unwrap_or(entry);
    if let Some(config) = base["config"].as_str() {
        let config = config.replace("DATA", &data).replace("MODEL", "tiny");
        let config = config.replace("hiyouga/math12k@train", &data).replace("Qwen/Qwen2.5-7B-Instruct", "tiny");
        std::fs::write(folder.join("run.yaml"), config).expect("a file");
    }
    match entry["words"].as_array() {
        Some(list) => words.extend(list.iter().map(|word| {
            let word = text(word);
            word.replace("DATA", &data).replace("MODEL", "tiny").replace("MEDIA", ".")
        })),
        None => words.extend(["--config".into(), "run.yaml".into()]),
    }
    // These commands name no data set, because the script that they come from sets it.
    if ["C08", "D25"].contains(&id) {
        words.extend(["--dataset_name".into(), data]);
    }
    let environment = entry["environment"].as_object().expect("an object");
    // The published value of CUDA_VISIBLE_DEVICES is not used: the test itself sets which GPUs are visible.
    let environment = environment.iter().filter(|(name, _)| *name != "CUDA_VISIBLE_DEVICES");
    (words, environment.map(|(name, value)| (name.clone(), text(value))).collect())
}

/// Returns the corrected command in an error message.
fn corrected(message: &str) -> String {
    let start =
        message.find("\n  reel ").unwrap_or_else(|| panic!("no corrected command: {message}")) + "\n  reel ".len();
    message[start..].split("\nnote: ").next().unwrap_or_default().trim().to_string()
}

/// Runs `reel` with these words in a shell.
fn shell(folder: &Path, words: &str) -> FinishedRun {
    let program = reel();
    let mut command = Command::new("sh");
    command.current_dir(folder).args(["-c", &format!("\"$0\" {words}")]).arg(program.get_program());
    command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    finished_run(command.output().expect("a shell"))
}

/// Runs a published command with additional options that shorten it, or the corrected command in its one error
/// message. Returns the stderr of the first call.
fn runs(folder: &Path, id: &str, more: &str) -> String {
    let (words, environment) = published(folder, id);
    let mut first = reel();
    first
        .current_dir(folder)
        .envs(environment.clone())
        .args(&words)
        .args(more.split(' ').filter(|word| !word.is_empty()));
    let first = finished_run(first.output().expect("the binary starts"));
    if first.code == Some(0) {
        return first.stderr;
    }
    assert_eq!(first.code, Some(2), "{id}: {}", first.stderr);
    shell(folder, &corrected(&first.stderr)).ok();
    first.stderr
}

#[test]
fn commands_that_train_run() {
    let folder = workshop();
    // C01 is a command of VideoRFT with video rows, C15 a configuration file of LLaMA-Factory with image rows.
    let stderr = runs(folder.path(), "C01", SHORT);
    assert!(stderr.contains("no effect here") && stderr.contains("--deepspeed"), "{stderr}");
    let stderr = runs(folder.path(), "C15", SHORT);
    assert!(stderr.contains("note: ") && folder.path().join("saves/qwen2_5vl-7b/lora/sft").exists(), "{stderr}");
    // C11, a command of ms-swift, sets its own intervals, and `split_dataset_ratio` holds rows back for a validation
    // loss.
    runs(folder.path(), "C11", "--max-steps 1 --device cpu --overwrite");
    let metrics = fs::read_to_string(folder.path().join("output/metrics.jsonl")).expect("metrics");
    assert!(metrics.contains("\"eval_loss\":"), "{metrics}");
    // C20, a command of QwenLM's training script, freezes the vision tower and trains its merger and the decoder.
    runs(folder.path(), "C20", SHORT);
}

#[test]
fn commands_with_rewards_run() {
    let folder = workshop();
    let short = format!("{SHORT} --max-completion-length 8").replace("--max-steps 1", "--max_steps 1");
    let (mut words, _) = published(folder.path(), "C13");
    let at = words.iter().position(|word| word == "--max_completion_length").expect("the option");
    words.drain(at..at + 2);
    words.extend(short.split(' ').map(String::from));
    let first = run_in(folder.path(), &words);
    assert!(
        first.code == Some(2) && first.stderr.contains("--system examples/train/grpo/prompt.txt: "),
        "{}",
        first.stderr
    );
    shell(folder.path(), &corrected(&first.stderr)).ok();
    // A command of verl with keys and rows of verl: a step has two prompts with two completions each.
    let words = "grpo data.train_files=geo3k.jsonl actor_rollout_ref.model.path=tiny actor_rollout_ref.rollout.n=2 \
                 actor_rollout_ref.actor.ppo_mini_batch_size=2 data.max_response_length=4 trainer.total_training_steps=1 \
                 actor_rollout_ref.rollout.name=vllm trainer.logger=['console'] algorithm.adv_estimator=grpo --device cpu";
    let done = run_in(folder.path(), words.split_whitespace());
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(done.stderr.contains("a step has 2 prompts with 2 completions each"), "{}", done.stderr);
    assert!(folder.path().join("checkpoints/project/experiment/metrics.jsonl").exists());
}

/// Frozen parts keep their bits and trained parts change. Rows that are too long are cut.
#[test]
fn frozen_parts_do_not_change_and_long_rows_are_cut() {
    let folder = workshop();
    let train = |out: &str, more: &str| {
        let words = format!(
            "sft --model tiny --data llava.json --out {out} --max-steps 1 --device cpu --learning-rate 1e-2 --optim adamw \
             --save-steps 0 {more}"
        );
        run_in(folder.path(), words.split_whitespace())
    };
    let changed = |out: &str| {
        let names =
            ["visual.blocks.0.attn.qkv.weight", "visual.merger.mlp.0.weight", "model.layers.0.mlp.up_proj.weight"];
        let tensors = |folder: &Path| read_tensors(&folder.join("model.safetensors"));
        let (before, after) = (tensors(&folder.path().join("tiny")), tensors(&folder.path().join(out)));
        names.map(|name| before[name] != after[name])
    };
    train("a", "--freeze-llm --max-samples 1").ok();
    assert_eq!(changed("a"), [true, true, false]);
    train("b", "--freeze-vision --freeze-merger false").ok();
    assert_eq!(changed("b"), [false, true, true]);
    train("c", "--freeze-vision --freeze-llm").assert_refused(2, &["--freeze-llm: leaves nothing to train"]);
    // The rows have more than 100 tokens, mostly of an image. A cut within the image is not possible, so these rows
    // are skipped.
    let long = train("d", "--max-length 20 --truncation-strategy right");
    assert!(long.code != Some(0) && long.stderr.contains("more than --max-length 20 allows"), "{}", long.stderr);
    let metrics = |out: &str| std::fs::read_to_string(folder.path().join(out).join("metrics.jsonl")).expect("metrics");
    let tokens = |out: &str| {
        serde_json::from_str::<Value>(metrics(out).lines().next().expect("a step")).expect("JSON")["tokens"].as_u64()
    };
    train("e", "--per-device-train-batch-size 1 --gradient-accumulation-steps 1").ok();
    let whole = tokens("e").expect("tokens");
    train("f", &format!("--per-device-train-batch-size 1 --gradient-accumulation-steps 1 --max-length {} --truncation-strategy right", whole - 2)).ok();
    assert_eq!(tokens("f"), Some(whole - 2));
}

/// In commands of the program 2U1, `vision_lora` adapts the vision tower although the tower's own weights are frozen.
/// Without `vision_lora` the tower gets no adapter.
#[test]
fn adapters_of_the_tower_are_trained_where_the_program_trains_them() {
    let folder = workshop();
    let towers = |out: &str, more: &str| {
        let words = format!(
            "sft --model_id tiny --data_path llava.json --output_dir {out} --lora_enable True --freeze_llm True \
             --freeze_vision_tower True --freeze_merger True --lora_rank 2 --learning_rate 1e-4 {SHORT} {more}"
        );
        run_in(folder.path(), words.split_whitespace()).ok();
        let tensors = read_tensors(&folder.path().join(out).join("adapter_model.safetensors"));
        tensors.keys().filter(|name| name.contains("visual")).count()
    };
    assert_eq!(towers("a", ""), 0);
    assert!(towers("b", "--vision_lora True") > 0);
}

/// Starts a server by a command of vLLM: with model names, limits, unknown fields, and an API key from the
/// environment.
#[test]
fn a_server_answers_as_pasted() {
    let server = Server::start(&["--limit-mm-per-prompt", "image=1,video=0", "--max-model-len", "64"]);
    let ask = |body: &str| server.send("POST", "/v1/chat/completions", "", body);
    let text = |model: &str, more: &str| {
        format!(
            "{{\"model\": \"{model}\", \"max_tokens\": 2, {more} \"messages\": [{{\"role\": \"user\", \"content\": \"x\"}}]}}"
        )
    };
    for (body, status) in [
        (text("tiny", ""), 200),
        (text("Qwen/tiny", ""), 200),
        (text("other", ""), 404),
        (text("tiny", "\"my_own_field\": 3,"), 200),
        (text("tiny", "\"suffix\": \"x\","), 400),
        (text("tiny", "\"max_completion_tokens\": 100,"), 400),
    ] {
        let reply = ask(&body);
        assert_eq!(reply.status, status, "{body}: {}", reply.body);
    }
    let image = "{\"type\": \"image_url\", \"image_url\": {\"url\": \"data:image/png;base64,aGVsbG8=\"}}";
    let body = format!("{{\"messages\": [{{\"role\": \"user\", \"content\": [{image}, {image}]}}]}}");
    let reply = ask(&body);
    assert!(reply.status == 400 && reply.body.contains("have 2 images, and this server allows 1"), "{}", reply.body);
}

#[test]
fn defaults_are_explained() {
    let folder = tempfile::tempdir().expect("a folder");
    let done = run_in(folder.path(), ["grpo", "--explain-defaults", "verl"]);
    let text = done.ok();
    assert!(text.starts_with("Defaults of verl 0.8.0.dev") && text.contains("--top-p"), "{text}");
    run_in(folder.path(), ["sft", "--explain-defaults", "nothing"]).assert_refused(2, &["--explain-defaults"]);
}
