//! The recipes of docs/examples in which a model learns to call tools: their data, and one step of each command.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use reel_input::MediaOptions;
use reel_samples::rewards::ProgramLog;
use reel_train::options::ToolOptions;
use reel_train::rollout::tools::ToolSet;
use serde_json::{Value, json};
use support::{read_metrics, run_in};

/// Bytes of a frame in a clip, after the line `FRAME`, and of that line.
const FRAME: usize = 3 * 56 * 56;
const MARK: &[u8] = b"FRAME\n";

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/examples")
}

/// A folder with the clips, a tiny model, and the files of the recipe `name`.
fn recipe(name: &str, more: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let clips = examples().join("tools-longvt/clips.py");
    let made = Command::new("python3").arg(clips).arg(folder.path()).args(more).status().expect("python3");
    assert!(made.success());
    for entry in fs::read_dir(examples().join(name)).expect("a recipe") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), folder.path().join(entry.file_name())).expect("copied");
    }
    run_in(folder.path(), ["init", "--preset", "tiny", "--out", "model"]).ok();
    folder
}

fn rows(folder: &Path, name: &str) -> Vec<Value> {
    let text = fs::read_to_string(folder.join(name)).expect("rows");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Runs a step of each command of a recipe.
fn run_steps(folder: &Path) {
    for (command, config, model) in [("sft", "parts", "model"), ("sft", "sft", "parts"), ("grpo", "grpo", "sft")] {
        let file = format!("{config}.toml");
        let data = if config == "grpo" { "rl.jsonl".to_string() } else { format!("{config}.jsonl") };
        let fixed = ["--model", model, "--data", &data, "--media-root", ".", "--out", config, "--max-steps", "1"];
        run_in(folder, [&[command, "--quiet", "--config", &file][..], &fixed].concat()).ok();
        assert_eq!(read_metrics(&folder.join(config)).len(), 1);
    }
}

/// The frames of a prompt say nothing about the answer: the first and the last frame of every clip are equal and dark.
#[test]
fn answers_are_not_in_the_frames_of_prompts() {
    let folder = recipe("tools-longvt", &[]);
    let at = folder.path();
    let options = ToolOptions { tools: vec!["crop_video".into()], ..ToolOptions::default() };
    let tools = ToolSet::open(&options, &MediaOptions::default(), &ProgramLog::new(|_| {})).expect("tools");
    assert_eq!(rows(at, "sft.jsonl")[0]["tools"], json!(tools.definitions()));
    let mut dark: Option<Vec<u8>> = None;
    for row in rows(at, "held-out.jsonl") {
        let bytes = fs::read(at.join(row["video"].as_str().expect("a path"))).expect("a clip");
        let frames: Vec<&[u8]> = bytes.rchunks(FRAME + MARK.len()).take(24).map(|frame| &frame[MARK.len()..]).collect();
        let dark = dark.get_or_insert_with(|| frames[0].to_vec());
        assert!(frames[0] == dark && frames[23] == dark, "{row}");
        let second: usize = row["question"]
            .as_str()
            .expect("a text")
            .split(' ')
            .rev()
            .nth(1)
            .expect("a word")
            .parse()
            .expect("a number");
        // The frames are in reverse order, two per second.
        assert!((0..2).all(|i| frames[23 - 2 * (second + i)] != dark), "{row}");
    }
    let shown = run_in(at, ["frames", "--video", "clips/held-out-000.y4m", "--nframes", "2", "--json"]).json();
    assert_eq!(shown["indices"], json!([0, 23]));
    run_steps(at);
}

#[test]
fn evidence_is_rewarded() {
    let folder = recipe("tools-open-o3", &["--boxes"]);
    run_steps(folder.path());
    let metrics = &read_metrics(&folder.path().join("grpo"))[0];
    for reward in ["rewards/accuracy", "rewards/format", "rewards/temporal", "rewards/spatial"] {
        assert!(metrics[reward].is_number(), "{reward}: {metrics}");
    }
}
